"""`roost doctor storage`: tells which file is not as it was written, who stands on it and what to do; and what is stood on is not deleted."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.live.inside import disk_of, kept, sh, until
from tests.needs import needs_program

pytestmark = [
    pytest.mark.timeout(1200),
    needs_program("qemu-system-x86_64", "passt", "qemu-img", "mmdebstrap"),
]


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    """A daemon with a stopped machine `web`, its snapshots `web.one` (with memory) and `web.two`, and `twin`, made of the latter."""
    made = Daemon()
    try:
        made.start()
        options = ("--memory", "256MiB", "--cold", "--network", "none")
        made.roost("launch", "debian:12", "web", *options, timeout=1200)
        for name, memory in (("one", "--memory"), ("two", "--no-memory")):
            sh(made, "web", f"head -c 1M /dev/urandom > /root/{name}; sync")
            made.roost("snapshot", "web", name, memory)
        made.roost("restore", "web", "two", "--as", "twin")
        made.roost("stop", "web", timeout=120)
        until(lambda: all("sha256:" in text for text in manifests(made)))
        yield made
    finally:
        left = made.close()
    assert not left, "left behind:\n" + "\n".join(left)


def manifests(daemon: Daemon) -> list[str]:
    """What is written of each layer; its digest comes a few seconds after it."""
    return [json.dumps(json.loads(file.read_text())["digest"]) for file in (daemon.state / "layers").glob("*/*.json")]


def layer_of(daemon: Daemon, snapshot: str) -> Path:
    """The file of the layer that a snapshot stands on."""
    held = json.loads((kept(daemon, snapshot) / "checkpoint.json").read_text())
    return next(path for path in (daemon.state / "layers").glob("*/*.qcow2") if path.parent.name in note(held))


def note(manifest: dict[str, Any]) -> str:
    """A checkpoint's note, as text."""
    return base64.b64decode(manifest["head"]["note"]).decode()


def examine(daemon: Daemon) -> tuple[int, list[dict[str, Any]], str]:
    """The exit code of `roost doctor storage`, its findings, and what it told people."""
    told = daemon.roost("doctor", "storage", check=False, timeout=300)
    found = daemon.roost("doctor", "storage", "-o", "json", check=False, timeout=300)
    assert told.returncode == found.returncode
    return told.returncode, json.loads(found.stdout), told.stdout + told.stderr


@contextmanager
def flipped(file: Path) -> Iterator[None]:
    """Another byte in the middle; mode and times are as before."""
    before, mode = file.read_bytes(), file.stat().st_mode
    file.chmod(0o600)
    middle = len(before) // 2
    with file.open("r+b") as stream:
        stream.seek(middle)
        stream.write(bytes([before[middle] ^ 1]))
    file.chmod(mode)
    yield
    file.chmod(0o600)
    with file.open("r+b") as stream:
        stream.seek(middle)
        stream.write(before[middle : middle + 1])
    file.chmod(mode)


@contextmanager
def writable(file: Path) -> Iterator[None]:
    """Somebody may write it."""
    mode = file.stat().st_mode
    file.chmod(0o644)
    yield
    file.chmod(mode)


@contextmanager
def moved(file: Path) -> Iterator[None]:
    """It is not there."""
    elsewhere = file.with_suffix(".away")
    file.rename(elsewhere)
    yield
    elsewhere.rename(file)


@contextmanager
def longer(file: Path) -> Iterator[None]:
    """It has some bytes more."""
    length, mode = file.stat().st_size, file.stat().st_mode
    file.chmod(0o600)
    with file.open("ab") as stream:
        stream.write(b"more")
    file.chmod(mode)
    yield
    file.chmod(0o600)
    with file.open("r+b") as stream:
        stream.truncate(length)
    file.chmod(mode)


Damage = Callable[[Path], AbstractContextManager[None]]


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (flipped, "its content was changed"),
        (writable, "it can be written (mode 0644)"),
        (moved, "it is missing"),
        (longer, "bytes and should have"),
    ],
)
def test_a_layer_that_is_not_as_it_was_is_named_with_who_stands_on_it(
    house: Daemon, damage: Damage, problem: str
) -> None:
    file = layer_of(house, "web.one")
    assert examine(house)[:2] == (0, [])
    with damage(file):
        code, findings, text = examine(house)
        assert code == 1
        assert [finding["name"] for finding in findings] == [str(file)]
        (found,) = findings
        assert problem in found["detail"]
        for user in (
            "machine default/twin",
            "machine default/web",
            "snapshot default/web.one",
            "snapshot default/web.two",
        ):
            assert user in found["detail"]
        assert "roost doctor storage" in found["fix"]
        assert all(word in text for word in (str(file), problem, "the storage of this host is damaged", "fix: "))
    assert "the storage of this host is whole" in examine(house)[2]


@pytest.mark.fault(46)
@pytest.mark.parametrize("file", ["memory", "device", "checkpoint.json"])
def test_a_snapshot_whose_seal_is_broken_is_named(house: Daemon, file: str) -> None:
    with flipped(kept(house, "web.one") / file):
        code, findings, text = examine(house)
        assert code == 1
        assert [finding["name"] for finding in findings] == ["snapshot default/web.one"]
        assert findings[0]["fix"] == "roost delete snapshot web.one"
        assert "the storage of this host is damaged" in text
    assert examine(house)[0] == 0


@pytest.mark.fault(7)
def test_a_machine_does_not_start_on_what_is_damaged_and_says_why(house: Daemon) -> None:
    file = layer_of(house, "web.one")
    with moved(file):
        refused = house.roost("start", "web", check=False, timeout=120)
        assert refused.returncode != 0
        assert str(file) in refused.stderr
        assert "it is missing" in refused.stderr
    house.roost("start", "web", timeout=300)
    assert sh(house, "web", "ls /root") == "one\ntwo"
    house.roost("stop", "web", timeout=120)


@pytest.mark.fault(7)
def test_an_image_goes_when_nobody_stands_on_it_any_more(house: Daemon) -> None:
    """Last in this file: it deletes everything."""
    image = house.json("show", "web")["status"]["image"]
    place = house.state / "images" / image.replace(":", "-")
    assert disk_of(house, "web").exists()
    assert place.is_dir()
    house.roost("image", "delete", "debian:12", "--yes", "--no-wait", check=False)
    until(lambda: "default/web" in why(house))
    house.roost("delete", "web", "twin", "--yes", timeout=120)
    assert place.is_dir()
    until(lambda: "snapshot" in why(house))
    assert "web.one" in why(house)
    house.roost("restore", "web", "one", "--as", "again", timeout=120)
    assert sh(house, "again", "ls /root") == "one"
    house.roost("delete", "again", "--yes")
    house.roost("delete", "snapshot", "web.one", "web.two", "--yes")
    until(lambda: not place.exists(), 60)
    assert not list((house.state / "layers").iterdir())


def why(daemon: Daemon) -> str:
    """Why the image is still there."""
    images = {item["name"]: item["status"]["error"] for item in daemon.json("image", "list")}
    return str((images.get("debian:12") or {}).get("why", ""))
