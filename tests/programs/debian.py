"""Programs of Debian packages for other architectures, fetched once with apt's own keys and lists into .cache/programs."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.programs.build import CACHE

ARCHITECTURES = {
    "aarch64": "arm64",
    "arm": "armhf",
    "i386": "i386",
    "mips64el": "mips64el",
    "ppc64le": "ppc64el",
    "s390x": "s390x",
}
_SECONDS = 300


def busybox(arch: str) -> Path:
    """The static busybox of the host's Debian release for another architecture. Skips the test where the archive does not answer."""
    debian = ARCHITECTURES[arch]
    place = CACHE / f"busybox-{debian}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / ".debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            with tempfile.TemporaryDirectory(prefix=".new-", dir=CACHE) as work:
                _fetch("busybox-static", debian, Path(work)).rename(place)
    return place


def _fetch(package: str, debian: str, work: Path) -> Path:
    """The program of the package, by a private state of apt: nothing of the host's changes."""
    if shutil.which("apt-get") is None:
        pytest.skip("not installed: apt-get")
    state = work / "state"
    (state / "lists" / "partial").mkdir(parents=True)
    (state / "status").touch()
    # apt gives up root to fetch, and must then write here.
    for directory in (work, state, state / "lists", state / "lists" / "partial"):
        directory.chmod(0o777)
    options = (
        f"APT::Architecture={debian}", f"APT::Architectures::={debian}", f"Dir::State={state}", f"Dir::State::status={state}/status",
        f"Dir::Cache={work}/cache", f"Dir::State::lists={state}/lists", "Acquire::Languages=none", "APT::Sandbox::User=root",
    )  # fmt: skip
    flags = [word for option in options for word in ("-o", option)]
    # A list that is just being replaced on the archive fails the update; the others may do.
    for step in (["update"], ["download", package]):
        done = subprocess.run(
            ["apt-get", "-qq", *flags, *step], cwd=work, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    if not [*work.glob("*.deb")]:
        pytest.skip(f"{package} for {debian} could not be fetched: {done.stderr.strip()[-300:]}")
    (archive,) = work.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, work / "root"], check=True, timeout=60)
    return next(
        path
        for path in (work / "root").rglob("busybox")
        if path.is_file() and not path.is_symlink() and path.parent.name == "bin"
    )
