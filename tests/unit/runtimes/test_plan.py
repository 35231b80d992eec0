"""What a program gets and what it never gets, however its policy asks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.errors import Invalid
from roost.runtimes.base import Command, Grant, Mount, Peer, Policy, Request
from roost.runtimes.plan import Facts, box, doors, hosts

FACTS = Facts(pid=1, fds={0: 0, 1: 1, 2: 2})


def planned(policy: Policy, command: Command | None = None) -> tuple[tuple[str, str, str, bool], ...]:
    return box(Request("/f", policy=policy), command or Command(argv=("/x",)), FACTS).mounts


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/1", "/dev/shm", "/sys", "relative", ""])
def test_the_places_of_the_sandbox_are_not_for_grants(target: str) -> None:
    with pytest.raises(Invalid, match="--fs"):
        planned(Policy(fs=(Grant("/data", target),)))


def test_the_caller_wins_where_the_runtime_mounts_too() -> None:
    command = Command(argv=("/x",), mounts=(Mount("/theirs", "/data"),))
    assert planned(Policy(fs=(Grant("/mine", "/data"),)), command) == (("/mine", "/data", "read", True),)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["/a", "/a/b", "/a/b/c", "/b", "/ab", "/a.b"]), unique=True))
def test_outer_mounts_come_before_inner_ones(targets: list[str]) -> None:
    order = [target for _, target, _, _ in planned(Policy(fs=tuple(Grant("/s", target) for target in targets)))]
    assert sorted(order) == sorted(targets)
    assert all(not order[late].startswith(order[early] + "/") for early in range(len(order)) for late in range(early))


def test_each_address_and_port_has_one_door() -> None:
    policy = Policy(net=(Peer("a", 1), Peer("b", 1), Peer("a", 2), Peer("a", 1)))
    assert doors(policy, {"a": ("192.0.2.1",), "b": ("192.0.2.1", "192.0.2.2")}) == (
        ("192.0.2.1", 1),
        ("192.0.2.2", 1),
        ("192.0.2.1", 2),
    )


def test_only_names_stand_in_hosts() -> None:
    assert hosts({"a.example": ("192.0.2.1", "::2"), "192.0.2.3": ("192.0.2.3",)}) == (
        b"127.0.0.1 localhost roost\n::1 localhost\n192.0.2.1 a.example\n::2 a.example\n"
    )


def test_hosts_of_a_mount_stay_its_own() -> None:
    request = Request("/f", policy=Policy(fs=(Grant("/mine", "/etc"),)))
    assert not box(request, Command(argv=("/x",)), FACTS).files


def test_a_required_layer_of_the_runtime_is_not_asked_of_the_sandbox() -> None:
    request = Request("/f", policy=Policy(require=("landlock", "wasi", "watchdog")))
    assert box(request, Command(argv=("/x",), layers=("wasi",)), FACTS).require == ("landlock",)
    with pytest.raises(Invalid, match="wasi"):
        box(request, Command(argv=("/x",)), FACTS)
