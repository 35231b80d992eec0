"""What is read from QEMU's help output and from the host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from roost.host import facts

MACHINES = """Supported machines are:
pc                   Standard PC (i440FX + PIIX, 1996) (alias of pc-i440fx-10.0)
q35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-10.0)
pc-q35-9.2           Standard PC (Q35 + ICH9, 2009)
pc-q35-10.0          Standard PC (Q35 + ICH9, 2009)
pc-q35-4.0.1         Standard PC (Q35 + ICH9, 2009)
"""


@pytest.mark.parametrize(
    ("text", "family", "machine"),
    [
        (MACHINES, "pc-q35-", "pc-q35-10.0"),
        ("Supported machines are:\nvirt    RISC-V VirtIO board\n", "virt", "virt"),
        ("Supported machines are:\nnone    empty machine\n", "virt-", ""),
        ("", "virt-", ""),
    ],
)
def test_the_newest_versioned_machine_is_chosen_by_number_not_by_letter(text: str, family: str, machine: str) -> None:
    assert facts.newest_machine(text, family) == machine


@pytest.mark.parametrize(
    "text",
    [
        "Available CPUs:\nx86 qemu64       (alias)\nx86 Nehalem-v1   Intel\n\nRecognized CPUID flags:\n  3dnow\n",
        "Available CPUs:\n  qemu64       (alias)\n  Nehalem-v1   Intel\n\nRecognized CPUID flags:\n  3dnow\n",
        "Nehalem-v1\nqemu64\n",
    ],
    ids=["7.2", "10", "riscv"],
)
def test_cpu_models_are_read_in_every_form(text: str) -> None:
    assert facts._cpu_models(text) == ("Nehalem-v1", "qemu64")


def test_a_device_that_is_not_kvm_is_no_kvm(tmp_path: Path) -> None:
    assert facts._kvm(tmp_path / "none") == "absent"
    assert facts._kvm(Path("/dev/null")) == "absent"


async def test_a_host_without_programs_is_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(facts.system, "clean_environment", lambda: {"PATH": str(tmp_path)})
    found = await facts.gather(tmp_path / "cache.json")
    assert (found.emulators, found.passt, found.swtpm) == ({}, None, None)


async def test_what_a_binary_said_is_remembered_until_it_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "qemu-system-x86_64"
    binary.write_text(f"#!/bin/sh\necho x >> {tmp_path}/asked\necho QEMU emulator version 99\n")
    binary.chmod(0o755)
    monkeypatch.setattr(facts, "_which", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    for _ in range(2):
        found = await facts.gather(tmp_path / "cache.json")
        assert found.emulators["x86_64"].version == "99"
    assert len((tmp_path / "asked").read_text()) == 2 * 6
    binary.write_text("#!/bin/sh\nexit 1\n")
    assert (await facts.gather(tmp_path / "cache.json")).emulators == {}


async def test_what_a_binary_said_is_asked_again_when_more_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "qemu-system-x86_64"
    binary.write_text("#!/bin/sh\necho 'name \"tpm-crb\"'\n")
    binary.chmod(0o755)
    monkeypatch.setattr(facts, "_which", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    known = facts._DEVICES
    monkeypatch.setattr(facts, "_DEVICES", re.compile("vmgenid"))
    assert (await facts.gather(tmp_path / "cache.json")).emulators["x86_64"].devices == ()
    monkeypatch.setattr(facts, "_DEVICES", known)
    assert (await facts.gather(tmp_path / "cache.json")).emulators["x86_64"].devices == ("tpm-crb",)
