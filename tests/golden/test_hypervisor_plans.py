"""Every way to start a machine, on every recorded host: a change of a command line shows as a change of a file here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from roost.host.paths import MachineFiles
from roost.hypervisor.base import Card, DirectBoot, Disk, Launch, Saved
from roost.hypervisor.plan import Plan, plan
from roost.model.facts import HostFacts
from roost.model.machine import Publish
from roost.model.meta import GiB, MiB

HERE = Path(__file__).parent
HOSTS = HERE.parent / "data" / "hosts"
GOLDEN = HERE / "hypervisor"
UPDATE = os.environ.get("ROOST_GOLDEN_UPDATE") == "1"

UID = "7d3f0f5e-2a54-4c0e-9b1e-0b8a5d1c2e3f"
FILES = MachineFiles(Path("/state/machines") / UID, Path("/run/roost/machines") / UID)
IMAGE = Path("/state/images/sha256-0123")
DEBIAN = DirectBoot(IMAGE / "kernel", IMAGE / "initramfs", "root=/dev/vda1 ro console=ttyS0 quiet")
TINY = DirectBoot(IMAGE / "kernel", IMAGE / "initramfs", "console=ttyS0 quiet")
LAYERS = (Path("/state/layers/2/disk.qcow2"), Path("/state/layers/1/disk.qcow2"), IMAGE / "disk.qcow2")
ROOT = Disk(FILES.disk, (IMAGE / "disk.qcow2",), serial="root")

BASIC = Launch(UID, "x86_64", 1, 512 * MiB, "tcg", "direct", FILES)
TINY_LAUNCH = BASIC._replace(direct=TINY)
DEBIAN_LAUNCH = BASIC._replace(direct=DEBIAN, disks=(ROOT,), cpus=2, memory=2 * GiB)
BIOS = BASIC._replace(firmware="bios", disks=(ROOT,), seed=FILES.seed, memory=1 * GiB)
UEFI = BIOS._replace(firmware="uefi", publish=(Publish(host_port=8080, guest_port=80),))
DATA = Disk(Path("/state/volumes/data.raw"), format="raw", serial="data")
ISO = Disk(Path("/state/volumes/cd.iso"), format="raw", read_only=True)
CARDS = (Card(0, "52:54:00:00:00:10", tap=7), Card(1, "52:54:00:00:00:11", tap=8), Card(2, "52:54:00:00:00:12"))


class Case(NamedTuple):
    """A launch on a recorded host."""

    name: str
    host: str
    launch: Launch


CASES = (
    Case("kvm-hangs-tiny", "kvm-hangs", TINY_LAUNCH._replace(network="none")),
    Case("kvm-hangs-debian", "kvm-hangs", DEBIAN_LAUNCH),
    Case("kvm-hangs-bios", "kvm-hangs", BIOS),
    Case("kvm-hangs-uefi", "kvm-hangs", UEFI),
    Case("kvm-hangs-aarch64", "kvm-hangs", DEBIAN_LAUNCH._replace(arch="aarch64")),
    Case("kvm-hangs-aarch64-uefi", "kvm-hangs", UEFI._replace(arch="aarch64")),
    Case("kvm-hangs-riscv64", "kvm-hangs", DEBIAN_LAUNCH._replace(arch="riscv64")),
    Case("no-kvm-tiny", "no-kvm", TINY_LAUNCH),
    Case("kvm-hangs-cards", "kvm-hangs", TINY_LAUNCH._replace(network="none", cards=CARDS)),
    Case("kvm-intel-debian", "kvm-intel", DEBIAN_LAUNCH._replace(accelerator="kvm", cpus=8)),
    Case("kvm-intel-disks", "kvm-intel", BIOS._replace(accelerator="kvm", disks=(ROOT, DATA, ISO))),
    Case("kvm-amd-uefi", "kvm-amd", UEFI._replace(accelerator="kvm")),
    Case("kvm-amd-tiny", "kvm-amd", TINY_LAUNCH._replace(accelerator="kvm")),
    Case("kvm-amd-riscv64-uefi", "kvm-amd", UEFI._replace(arch="riscv64")),
    Case("aarch64-kvm", "aarch64", UEFI._replace(arch="aarch64", accelerator="kvm")),
    Case("aarch64-emulates-x86", "aarch64", DEBIAN_LAUNCH),
    Case("kvm-hangs-forked", "kvm-hangs", DEBIAN_LAUNCH._replace(saved=Saved(None, None))),
    Case("kvm-hangs-layered", "kvm-hangs", DEBIAN_LAUNCH._replace(disks=(ROOT._replace(below=LAYERS),))),
    Case("kvm-hangs-unplugged", "kvm-hangs", DEBIAN_LAUNCH._replace(network="unplugged")),
    Case("kvm-hangs-tpm", "kvm-hangs", UEFI._replace(tpm=True)),
)


def host(name: str) -> HostFacts:
    """A recorded host."""
    return msgspec.json.decode((HOSTS / f"{name}.json").read_bytes(), type=HostFacts)


def show(decided: Plan) -> Iterator[str]:
    """A plan for people: one argument with its value a line."""
    yield decided.argv[0]
    line = ""
    for word in decided.argv[1:]:
        if word.startswith("-") and line:
            yield f"  {line}"
            line = ""
        line = f"{line} {word}".strip()
    yield f"  {line}"
    yield from (f"resource {resource}" for resource in decided.resources)
    yield from (f"mount {mount}" for mount in decided.mounts)
    yield f"{decided.bounds}"
    yield from (f"note {note}" for note in decided.notes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_plan_is_the_recorded_one(case: Case) -> None:
    text = "\n".join(show(plan(case.launch, host(case.host)))) + "\n"
    golden = GOLDEN / f"{case.name}.txt"
    if UPDATE:
        golden.write_text(text)
    assert text == golden.read_text(), f"if this is meant: scripts/golden, then look at the difference of {golden.name}"


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {case.name for case in CASES}


@pytest.mark.fault(63)
def test_no_plan_starts_a_program_or_opens_a_port() -> None:
    texts = [path.read_text() for path in GOLDEN.glob("*.txt")]
    assert not [text for text in texts for word in ("exec:", "script=", "tcp:", "host=", "helper=") if word in text]
    assert all(
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in text for text in texts
    )
