"""The accelerator verdict with a hypervisor that answers, refuses, or hangs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from roost.errors import RoostError, Unavailable
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor import accel
from roost.hypervisor.accel import Accelerator
from roost.hypervisor.base import Agent, DirectBoot, Guest, Launch
from roost.model.facts import HostFacts

HOST = msgspec.json.decode((Path(__file__).parents[2] / "data/hosts/kvm-hangs.json").read_bytes(), type=HostFacts)
BOOT = DirectBoot(Path("/k"), Path("/i"), "")


class Trial:
    """A hypervisor, its only guest and that guest's agent."""

    def __init__(self, *, hangs: bool = False, fails: RoostError | None = None) -> None:
        self.launches: list[Launch] = []
        self.killed = 0
        self._hangs = hangs
        self._fails = fails

    async def start(self, launch: Launch) -> Guest:
        self.launches.append(launch)
        if self._fails is not None:
            raise self._fails
        return cast("Guest", self)

    async def adopt(self, machine: MachineFiles, uid: str) -> Guest | None:
        return None

    async def resume(self) -> None:
        await asyncio.sleep(0)

    async def agent(self) -> Agent:
        if self._hangs:
            await asyncio.get_running_loop().create_future()
        return cast("Agent", self)

    async def ping(self, timeout: float) -> None:
        await asyncio.sleep(0)

    async def kill(self) -> None:
        self.killed += 1


def accelerator(tmp_path: Path, trial: Trial, facts: HostFacts = HOST, digest: str = "sha256:1") -> Accelerator:
    async def boot() -> tuple[DirectBoot, str]:
        return BOOT, digest

    return Accelerator(Paths(tmp_path, tmp_path / "run"), facts, trial, boot)


async def test_kvm_that_boots_the_guest_is_used(tmp_path: Path) -> None:
    trial = Trial()
    verdict = await accelerator(tmp_path, trial).verdict()
    assert (verdict.accelerator, trial.killed) == ("kvm", 1)
    assert trial.launches[0].accelerator == "kvm"
    assert not any((tmp_path / "machines").iterdir())


async def test_kvm_that_hangs_is_given_up_in_time_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_SECONDS", 0.02)
    trial = Trial(hangs=True)
    verdict = await accelerator(tmp_path, trial).verdict()
    assert (verdict.accelerator, trial.killed) == ("tcg", 1)
    assert "did not answer" in verdict.reason
    assert "\n" not in verdict.reason


async def test_a_refusal_is_the_reason(tmp_path: Path) -> None:
    trial = Trial(fails=Unavailable("x", "the jail may\nnot", "chmod"))
    verdict = await accelerator(tmp_path, trial).verdict()
    assert verdict.reason == "a guest under KVM did not start: the jail may not; fix: chmod"


async def test_all_who_ask_wait_for_one_trial_and_it_is_remembered(tmp_path: Path) -> None:
    trial = Trial()
    asked = accelerator(tmp_path, trial)
    verdicts = await asyncio.gather(*(asked.verdict() for _ in range(5)))
    later = await accelerator(tmp_path, trial).verdict()
    assert len(trial.launches) == 1
    assert {verdict.key for verdict in (*verdicts, later)} == {later.key}


@pytest.mark.parametrize(
    "changes",
    [
        {"boot": "another"},
        {"kernel": "6.99"},
        {"emulators": {"x86_64": msgspec.structs.replace(HOST.emulators["x86_64"], version="9")}},
    ],
)
async def test_a_new_boot_kernel_or_qemu_is_a_new_trial(tmp_path: Path, changes: dict[str, Any]) -> None:
    trial = Trial()
    await accelerator(tmp_path, trial).verdict()
    await accelerator(tmp_path, trial, msgspec.structs.replace(HOST, **changes)).verdict()
    assert len(trial.launches) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kvm": "denied"}, "sudo usermod -aG kvm $USER"),
        ({"kvm": "absent"}, "no KVM"),
        ({"emulators": {}}, "not installed"),
    ],
)
async def test_where_there_is_nothing_to_try_the_reason_says_why(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    trial = Trial()
    verdict = await accelerator(tmp_path, trial, msgspec.structs.replace(HOST, **changes)).verdict()
    assert verdict.accelerator == "tcg"
    assert reason in verdict.reason
    assert not trial.launches
