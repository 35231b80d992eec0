"""The system call filter of a boxed program, run by the interpreter of BPF."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from roost.host import boxed_filter
from roost.host.seccomp import ABSENT, ALLOW, ARCHITECTURES, DENY, KILL
from tests.unit.host.test_seccomp import AF_INET, AF_UNIX, AF_VSOCK, CLONE_NEWNET, CLONE_NEWUSER, TIOCSTI, verdict

NO_FAMILY = 0x00050000 | errno.EAFNOSUPPORT
NOTIFY = 0x7FC00000
DENIED = 0x00050000 | errno.EPROTONOSUPPORT
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {
        "clone": 56, "unshare": 272, "socket": 41, "ioctl": 16, "mknodat": 259, "kill": 62, "setpriority": 141, "connect": 42,
        "openat": 257, "execve": 59, "shmget": 29, "ptrace": 101, "mount": 165, "bpf": 321, "fchmod": 91, "personality": 135,
        "fchmodat": 268,
    },
    "aarch64": {
        "clone": 220, "unshare": 97, "socket": 198, "ioctl": 29, "mknodat": 33, "kill": 129, "setpriority": 140, "connect": 203,
        "openat": 56, "execve": 221, "shmget": 194, "ptrace": 117, "mount": 40, "bpf": 280, "fchmod": 52, "personality": 92,
        "fchmodat": 53,
    },
}  # fmt: skip


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(machine: str, name: str, *arguments: int, **options: Any) -> int:
    program = boxed_filter.build(machine, **options)
    return verdict(program, NUMBERS[machine][name], *arguments, audit=ARCHITECTURES[machine].audit)


@pytest.mark.parametrize("name", ["openat", "execve", "connect", "shmget", "fchmod", "personality"])
def test_what_programs_do_is_allowed(machine: str, name: str) -> None:
    assert ask(machine, name) == ALLOW


@pytest.mark.fault(91)
@pytest.mark.parametrize("name", ["ptrace", "mount", "bpf"])
def test_what_reaches_beyond_a_program_is_refused(machine: str, name: str) -> None:
    assert ask(machine, name) == DENY


@pytest.mark.parametrize("name", ["clone", "unshare"])
@pytest.mark.parametrize(
    ("flags", "answer"), [(17, ALLOW), (CLONE_NEWUSER, DENY), (CLONE_NEWNET | 17, DENY), (0x80, DENY)]
)
def test_processes_may_be_made_but_no_namespaces(machine: str, name: str, flags: int, answer: int) -> None:
    assert ask(machine, name, flags) == answer


@pytest.mark.parametrize("words", [(AF_UNIX,), (AF_INET,), (10,), (16, 3, 0)])
def test_sockets_are_local_or_of_its_own_network(machine: str, words: tuple[int, ...]) -> None:
    assert ask(machine, "socket", *words) == ALLOW


@pytest.mark.parametrize("words", [(16, 3, 9), (AF_VSOCK,), (17,), (38,)])
def test_sockets_of_other_families_do_not_exist(machine: str, words: tuple[int, ...]) -> None:
    assert ask(machine, "socket", *words) == NO_FAMILY


@pytest.mark.parametrize("family", [AF_INET, 10, 16, AF_VSOCK])
def test_in_the_network_of_the_host_there_are_no_sockets_but_local_ones(machine: str, family: int) -> None:
    assert (ask(machine, "socket", family, isolated=False), ask(machine, "socket", AF_UNIX, isolated=False)) == (
        NO_FAMILY,
        ALLOW,
    )


def test_in_the_ipc_of_the_host_there_is_none(machine: str) -> None:
    assert ask(machine, "shmget", isolated=False) == DENY


@pytest.mark.parametrize(
    ("mode", "answer"), [(0o100644, ALLOW), (0o010644, ALLOW), (0o140644, ALLOW), (0o020644, DENY), (0o060644, DENY)]
)
def test_pipes_and_sockets_may_be_made_but_no_devices(machine: str, mode: int, answer: int) -> None:
    assert ask(machine, "mknodat", 0, 0, mode) == answer


@pytest.mark.parametrize("request_number", [TIOCSTI, 0x541C, TIOCSTI | 1 << 32])
def test_nobody_types_into_the_callers_terminal(machine: str, request_number: int) -> None:
    assert ask(machine, "ioctl", 0, request_number) == DENY


def test_its_process_group_which_is_the_callers_is_left_alone(machine: str) -> None:
    assert ask(machine, "setpriority", 1) == DENY
    assert (ask(machine, "kill", 0, 9, signals=False), ask(machine, "kill", 5, 9, signals=False)) == (DENY, ALLOW)


@pytest.mark.parametrize(
    ("watch", "answers"), [("", (ALLOW, ALLOW)), ("connect", (NOTIFY, ALLOW)), ("learn", (NOTIFY, NOTIFY))]
)
def test_what_is_watched_is_told(machine: str, watch: str, answers: tuple[int, int]) -> None:
    assert (ask(machine, "connect", watch=watch), ask(machine, "openat", watch=watch)) == answers


def test_further_calls_are_opened_by_name(machine: str) -> None:
    assert ask(machine, "ptrace", calls=("ptrace",)) == ALLOW
    with pytest.raises(KeyError):
        boxed_filter.build(machine, calls=("mount",))


@pytest.mark.fault(91)
def test_another_abi_ends_the_process_and_a_young_call_does_not_exist(machine: str) -> None:
    program, audit = boxed_filter.build(machine), ARCHITECTURES[machine].audit
    assert verdict(program, 1, audit=0x40000003) == KILL
    assert verdict(program, 0x40000001, audit=audit) == KILL
    assert (verdict(program, 500, audit=audit), verdict(program, 435, audit=audit)) == (ABSENT, ABSENT)


def test_a_machine_without_a_table_gets_no_filter() -> None:
    assert boxed_filter.build("pdp11") == b""


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    ("name", "words", "answer"),
    [
        ("fchmod", (3, 0o755), ALLOW),
        ("fchmod", (3, 0o4755), DENY),
        ("fchmodat", (3, 0, 0o2755), DENY),
        ("mknodat", (3, 0, 0o104755), DENY),
        ("openat", (3, 0, 0o101, 0o644), ALLOW),
        ("openat", (3, 0, 0o101, 0o4755), DENY),
        ("openat", (3, 0, 0o20200001, 0o2755), DENY),
        ("openat", (3, 0, 0, 0o4755), ALLOW),
    ],
    ids=str,
)
def test_no_file_gets_a_bit_that_gives_its_owners_rights_to_others(
    machine: str, name: str, words: tuple[int, ...], answer: int
) -> None:
    """Without O_CREAT or O_TMPFILE there is no mode, and what stands in its place means nothing."""
    assert ask(machine, name, *words) == answer


@pytest.mark.parametrize("words", [(3, 0, 0, 0), (3, 0, 0o101, 0o644)])
def test_an_open_that_makes_nothing_special_is_still_reported_to_who_learns(
    machine: str, words: tuple[int, ...]
) -> None:
    assert ask(machine, "openat", *words, watch="learn") == NOTIFY


def test_a_mode_behind_a_pointer_is_not_taken(machine: str) -> None:
    assert verdict(boxed_filter.build(machine), 437, audit=ARCHITECTURES[machine].audit) == ABSENT


@pytest.mark.parametrize(
    ("protocol", "answer"),
    [(0, ALLOW), (6, ALLOW), (17, ALLOW), (58, ALLOW), (132, DENIED), (33, DENIED), (262, DENIED)],
)
def test_protocols_that_make_the_host_load_modules_are_unknown(machine: str, protocol: int, answer: int) -> None:
    assert ask(machine, "socket", AF_INET, 1, protocol) == answer
