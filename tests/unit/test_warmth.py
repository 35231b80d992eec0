"""Which machines may come up from a template, when a guest has settled, which templates stay and which deserve spares."""

from __future__ import annotations

import math
from itertools import accumulate
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.control.warmth import HOT_SECONDS, SPARE_MEMORY, Kept, budget, evict, reason_for_cold, settled, spares
from roost.host.paths import Paths
from roost.hypervisor.base import Disk, Launch, Saved
from roost.model.machine import MachineSpec, MachineStatus, Source
from roost.model.meta import GiB, MiB
from roost.storage.manifest import Manifest
from tests.control_plane import MANIFEST, WEB, spec

FILES = Paths(Path("/s"), Path("/r")).machine("u")
LAUNCH = Launch("u", "x86_64", 1, 512 * MiB, "tcg", "direct", FILES, disks=(Disk(FILES.disk),))

KEPT = st.builds(
    Kept,
    id=st.uuids().map(str),
    size=st.integers(0, 5 * GiB),
    used=st.floats(0, 1e9, allow_nan=False),
    busy=st.booleans(),
)


def with_spec(**changes: object) -> str:
    return reason_for_cold(msgspec.structs.replace(WEB, spec=spec(**changes)(WEB.spec)), MANIFEST, LAUNCH)


def test_an_ordinary_new_machine_needs_no_boot() -> None:
    assert reason_for_cold(WEB, MANIFEST, LAUNCH) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": Path("/s/seed.iso")}, "cloud-init"),
        ({"tpm": True}, "TPM"),
        ({"disks": (Disk(FILES.disk), Disk(FILES.disk))}, "more disks"),
        ({"network": "unplugged"}, "identity"),
        ({"saved": Saved(None, None)}, "saved state"),
    ],
)
def test_what_a_template_can_not_give_is_booted(changes: dict[str, object], reason: str) -> None:
    assert reason in reason_for_cold(WEB, MANIFEST, LAUNCH._replace(**changes))


@pytest.mark.parametrize("agent", ["qemu-ga", "ssh", "none"])
def test_an_image_without_our_agent_is_booted(agent: str) -> None:
    manifest: Manifest = msgspec.structs.replace(MANIFEST, agent=agent)
    assert "no Roost agent" in reason_for_cold(WEB, manifest, LAUNCH)


def test_a_cold_start_that_was_asked_for_is_one() -> None:
    assert "asked for" in with_spec(cold=True)


def test_a_copy_does_not_come_from_a_template() -> None:
    assert "copy" in with_spec(source=Source(machine="parent"))


def test_a_machine_that_has_run_boots_from_its_own_disk() -> None:
    born = msgspec.structs.replace(WEB, status=MachineStatus(born=True))
    assert "own disk" in reason_for_cold(born, MANIFEST, LAUNCH)


def test_what_the_agent_sets_up_needs_no_boot() -> None:
    assert with_spec(hostname="db", ssh_keys=("ssh-ed25519 AAAA",), disk=8 * GiB) == ""


def test_the_spec_of_these_tests_is_that_of_a_plain_machine() -> None:
    assert WEB.spec == MachineSpec(image="disk", memory=256 * MiB)


@pytest.mark.parametrize(
    ("used", "rest"),
    [
        ([], False),
        ([0.001], False),
        ([0.25, 0.001], False),
        ([0.001, 0.001], True),
        ([0.25, 0.25, 0.024, 0.0], True),
        ([0.001, 0.026], False),
        ([0.0, 0.0, 0.25], False),
    ],
)
def test_a_guest_has_settled_after_two_calm_windows(used: list[float], rest: bool) -> None:
    assert settled(list(accumulate(used, initial=7.0))) is rest


def test_a_busy_guest_of_many_cpus_has_not_settled() -> None:
    assert not settled([0.0, 2.0, 4.0])


def test_templates_get_a_tenth_of_a_small_disk_and_four_gibibytes_of_a_large_one() -> None:
    assert (budget(20 * GiB), budget(1000 * GiB)) == (2 * GiB, 4 * GiB)


def test_those_unused_for_longest_go_first() -> None:
    kept = [Kept("b", 3, 2.0), Kept("a", 3, 1.0), Kept("c", 3, 3.0)]
    assert evict(kept, 6) == ["a"]


def test_there_are_never_too_many() -> None:
    assert evict([Kept(str(number), 0, number) for number in range(10)], GiB) == ["0", "1"]


def test_one_in_use_stays_and_the_next_goes() -> None:
    assert evict([Kept("a", 3, 1.0, busy=True), Kept("b", 3, 2.0), Kept("c", 3, 3.0)], 6) == ["b"]


def test_a_single_template_larger_than_the_bound_stays() -> None:
    assert evict([Kept("a", 9 * GiB, 1.0)], GiB) == []


@given(st.lists(KEPT, max_size=14, unique_by=lambda entry: entry.id), st.integers(0, 20 * GiB))
def test_what_stays_keeps_the_bounds_but_for_what_is_in_use_and_the_latest(kept: list[Kept], allowed: int) -> None:
    gone = set(evict(kept, allowed))
    stays = [entry for entry in kept if entry.id not in gone]
    latest = max((entry.used for entry in kept), default=math.inf)
    exempt = all(entry.busy or entry.used == latest for entry in stays)
    assert exempt or (sum(entry.size for entry in stays) <= allowed and len(stays) <= 8)
    assert not any(entry.busy for entry in kept if entry.id in gone)


def test_the_two_hottest_templates_get_spares() -> None:
    assert spares({"a": 100.0, "b": 300.0, "c": 200.0}, 301.0, GiB) == {"b": 2, "c": 1}


def test_a_template_cools() -> None:
    assert spares({"a": 100.0, "b": 300.0}, 100.0 + HOT_SECONDS, GiB) == {"b": 2}


@pytest.mark.parametrize(
    ("free", "given_spares"), [(-GiB, {}), (SPARE_MEMORY, {"a": 1}), (3 * SPARE_MEMORY, {"a": 2, "b": 1})]
)
def test_spares_take_only_memory_that_is_free(free: int, given_spares: dict[str, int]) -> None:
    assert spares({"a": 2.0, "b": 1.0}, 3.0, free) == given_spares
