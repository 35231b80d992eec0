"""The verbs of volumes and pools, over a daemon with fake guests and a fake pool."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError

import pytest

from roost.cli.launch import mount
from tests.unit.cli.conftest import Roost


def status(roost: Roost, name: str) -> dict[str, object]:
    shown: dict[str, dict[str, object]] = json.loads(roost("volume", "show", name, "-o", "json").out)
    return shown["status"]


def test_a_volume_goes_in_and_out_of_a_running_machine(roost: Roost) -> None:
    roost("launch", "tiny", "plug")
    made = roost("volume", "create", "disk", "--size", "10GiB")
    attached, again = roost("volume", "attach", "disk", "plug"), roost("volume", "attach", "disk", "plug")
    listed = roost("volume", "list").out
    otherwise = roost("volume", "attach", "disk", "plug", "--read-only")
    detached, twice = roost("volume", "detach", "disk"), roost("volume", "detach", "disk")
    assert made.out == "volume disk is made; next: roost volume attach disk MACHINE\n"
    assert attached.out == again.out == "disk is attached to plug; inside it is the SCSI disk with the serial disk\n"
    assert listed.splitlines()[1].split()[:2] + listed.splitlines()[1].split()[-2:-1] == ["disk", "ready", "plug"]
    assert (otherwise.code, detached.out, twice.code) == (4, "disk is detached from plug\n", 3)


def test_a_volume_has_one_writer(roost: Roost) -> None:
    roost("launch", "tiny", "first", "--volume", "shared=1GiB")
    second = roost("launch", "tiny", "second", "--volume", "shared")
    roost("volume", "detach", "shared", "first")
    roost("volume", "share", "shared")
    readers = [roost("volume", "attach", "shared", name, "--read-only").code for name in ("first",)]
    writer = roost("launch", "tiny", "third", "--volume", "shared")
    assert (second.code, readers, writer.code) == (4, [0], 4)
    assert "roost volume detach shared first" in second.err
    assert "every machine may only read it" in writer.err


def test_several_machines_get_volumes_of_their_own(roost: Roost) -> None:
    made = roost("launch", "tiny", "bulk", "--count", "2", "--volume", "own=1GiB")
    assert made.code == 0
    assert (status(roost, "own-1")["machines"], status(roost, "own-2")["machines"]) == (["bulk-1"], ["bulk-2"])


def test_a_volume_grows_and_never_shrinks(roost: Roost) -> None:
    roost("volume", "create", "small", "--size", "1GiB")
    assert roost("volume", "grow", "small", "+1GiB").out == "small has 2GiB\n"
    assert roost("volume", "grow", "small", "3GiB").out == "small has 3GiB\n"
    assert "can not shrink from 3GiB" in roost("volume", "grow", "small", "1GiB").err
    assert status(roost, "small")["size"] == 3 << 30


def test_limits_are_said_and_taken_back(roost: Roost) -> None:
    roost("volume", "create", "slow", "--size", "1GiB", "--iops", "500")
    more = roost("volume", "limit", "slow", "--bandwidth", "50MiB")
    none, wrong = roost("volume", "limit", "slow", "--none"), roost("volume", "limit", "slow")
    assert more.out == "slow may do 500 reads and writes and 50MiB a second\n"
    assert (none.out, wrong.code) == ("slow has no limits\n", 2)


def test_what_is_deleted_comes_back(roost: Roost) -> None:
    roost("volume", "create", "dear", "--size", "1GiB")
    gone = roost("volume", "delete", "dear")
    taken = roost("volume", "create", "dear", "--size", "2GiB")
    trash, missing = roost("volume", "list", "--trash", "-o", "name").out, roost("volume", "restore", "never")
    conflict, back = roost("volume", "restore", "dear"), roost("volume", "restore", "dear", "--as", "older")
    assert gone.out == "dear is deleted; for 24 h it comes back by: roost volume restore dear\n"
    assert (taken.code, missing.code, conflict.code) == (0, 3, 4)
    assert trash.startswith("dear--trash-")
    assert (back.out, status(roost, "older")["size"]) == ("volume older is back\n", 1 << 30)


def test_now_is_past_the_trash(roost: Roost) -> None:
    roost("volume", "create", "scratch", "--size", "1GiB")
    assert roost("volume", "delete", "scratch", "--now").out == "scratch is deleted\n"
    assert "scratch" not in roost("get", "volumes", "-o", "name").out
    assert roost("volume", "delete", "scratch", "--ignore-missing").out == "scratch does not exist\n"


def test_what_is_protected_or_attached_is_not_deleted(roost: Roost) -> None:
    roost("launch", "tiny", "keeper", "--volume", "kept=1GiB")
    attached = roost("volume", "delete", "kept")
    roost("volume", "detach", "kept")
    roost("volume", "protect", "kept")
    protected = roost("volume", "delete", "kept", "--now")
    roost("volume", "protect", "kept", "--off")
    assert "roost volume detach kept keeper" in attached.err
    assert "roost volume protect kept --off" in protected.err
    assert roost("volume", "delete", "kept").code == 0


def test_an_instant_is_kept_and_copied(roost: Roost) -> None:
    roost("volume", "create", "base", "--size", "1GiB")
    taken, listed = roost("volume", "snapshot", "base", "monday"), roost("volume", "snapshots", "base", "-o", "name")
    made = roost("volume", "clone", "base.monday", "kid", "-o", "json")
    removed = roost("volume", "delete", "base.monday")
    assert taken.out == "base.monday is ready; next: roost volume clone base.monday NEW\n"
    assert (listed.out, json.loads(made.out)["spec"]["size"]) == ("base.monday\n", 1 << 30)
    assert removed.out == "base.monday is deleted\n"


def test_a_volume_moves_to_another_pool(roost: Roost) -> None:
    made = roost("pool", "create", "fast", "--path", "/nonexistent/fast", "--grace", "0s")
    roost("volume", "create", "rider", "--size", "1GiB")
    moved, kept = roost("volume", "move", "rider", "fast"), roost("pool", "delete", "fast")
    assert (made.code, moved.out) == (0, "rider is in pool fast\n")
    assert "it holds volume default/rider" in kept.err
    assert roost("volume", "delete", "rider").out == "rider is deleted\n"
    assert roost("pool", "delete", "fast").out == "fast is deleted\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("volume create x--trash-123456 --size 1GiB", "ends as the names of what is in the trash do"),
        (f"volume create {'a' * 37} --size 1GiB", "at most 36"),
        ("volume create x", "say how large it is"),
        ("volume create x --size 1GiB --pool nowhere", 'pool "nowhere" does not exist'),
        ("pool create x", "the daemon's own directory is that of the pool default"),
        ("pool create x --type ceph --server a:1 --export e --user u --keyring /k", "ceph is not there"),
        ("pool delete default", "every daemon has it"),
        ("volume attach nothing nobody", 'machine "nobody" does not exist'),
    ],
)
def test_what_can_not_be_is_refused(roost: Roost, words: str, why: str) -> None:
    refused = roost(*words.split())
    assert refused.code != 0
    assert why in refused.err


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("data", ("data", "", False)),
        ("data:ro", ("data", "", True)),
        ("data=10GiB", ("data", "10GiB", False)),
        ("data=1GiB:ro", ("data", "1GiB", True)),
    ],
)
def test_a_volume_in_words(word: str, wanted: tuple[str, str, bool]) -> None:
    assert mount(word) == wanted


@pytest.mark.parametrize("word", ["", ":ro", "data:rw", "data=", "=1GiB", "data:"])
def test_words_that_are_no_volume(word: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not NAME"):
        mount(word)
