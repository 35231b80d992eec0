"""Starting and finding QEMU: the parts that need none."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from roost.errors import Conflict, NotStarted, RoostError, Unavailable
from roost.host.jail import Jailed
from roost.host.paths import MachineFiles
from roost.hypervisor import record, spawning
from roost.hypervisor.base import Launch
from roost.hypervisor.greeting import translate
from roost.hypervisor.inmates import ErrorFile
from roost.hypervisor.record import Entry, Record
from roost.model.machine import Process
from roost.model.meta import MiB

UID = "7d3f0f5e-2a54-4c0e-9b1e-0b8a5d1c2e3f"
LAUNCH = Launch(UID, "x86_64", 1, 512 * MiB, "tcg", "direct", MachineFiles(Path("/keep"), Path("/live")))


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ('-blockdev x: Failed to get "write" lock\nIs another process using the image?', Conflict),
        ('-blockdev x: Failed to get shared "write" lock', Conflict),
        ("cannot set up guest memory 'mem': Cannot allocate memory", Unavailable),
        ("Could not access KVM kernel module: Permission denied", Unavailable),
        ("qemu-system-x86_64: load of migration failed: Invalid argument", Unavailable),
        ("", NotStarted),
        ("something new", NotStarted),
    ],
)
def test_last_words_become_errors_with_a_next_step(words: str, error: type[RoostError]) -> None:
    translated = translate(words, LAUNCH)
    assert isinstance(translated, error)
    assert translated.why
    assert translated.fix


def test_messages_are_bounded_and_harmless() -> None:
    file = ErrorFile()
    os.write(file.fileno(), b"\x1b[31mred\n")
    assert file.read() == "?[31mred"
    os.write(file.fileno(), b"x" * (64 << 10))
    with pytest.raises(PermissionError):
        os.write(file.fileno(), b"x")
    assert file.read() == "x" * 2000
    file.close()


@pytest.mark.fault(67)
@pytest.mark.parametrize(("accelerator", "boundary"), [("tcg", "jail"), ("kvm", "hardware+jail")])
def test_emulation_is_never_more_than_the_jail(accelerator: str, boundary: str) -> None:
    jailed = Jailed(Process(pid=1, start=1, uid=1, boot="b"), -1, ("seccomp",), (), None)
    launch = LAUNCH._replace(accelerator="kvm" if accelerator == "kvm" else "tcg")
    isolation = spawning._isolation(launch, jailed)
    assert isolation.boundary == boundary
    assert ("only the jail" in isolation.note) == (boundary == "jail")


def test_a_record_of_another_machine_is_none(tmp_path: Path) -> None:
    machine = MachineFiles(tmp_path, tmp_path)
    saved = Entry(Process(pid=1, start=1, uid=1, boot="b"))
    record.write(machine, Record("other", 300001, saved))
    assert record.read(machine, UID) is None
    record.write(machine, Record(UID, 300001, saved))
    assert record.read(machine, UID) == Record(UID, 300001, saved)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"x" * (1 << 20), b'{"uid": 7}'])
def test_a_broken_record_is_none(tmp_path: Path, text: bytes) -> None:
    machine = MachineFiles(tmp_path, tmp_path)
    machine.record.write_bytes(text)
    assert record.read(machine, UID) is None


def test_the_largest_file_follows_the_disk_of_the_guest(tmp_path: Path) -> None:
    overlay = tmp_path / "root.qcow2"
    overlay.write_bytes(b"QFI\xfb" + bytes(20) + (10 << 30).to_bytes(8, "big") + bytes(64))
    assert spawning.virtual_size(overlay) == 10 << 30
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(4096))
    assert spawning.virtual_size(raw) == 4096


def test_a_record_survives_its_way_through_json() -> None:
    saved = Entry(Process(pid=1, start=2, uid=3, boot="b"), ("/sys/fs/cgroup/roost/x",))
    known = Record(UID, 300001, saved, beside=(saved,), cloning="in-place", interrupted=True)
    assert msgspec.json.decode(msgspec.json.encode(known), type=Record) == known
