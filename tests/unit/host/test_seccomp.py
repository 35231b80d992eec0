"""The system call filter, run by a small interpreter of BPF."""

from __future__ import annotations

import struct

import pytest

from roost.host import seccomp
from roost.host.seccomp import ABSENT, ALLOW, ARCHITECTURES, DENY, KILL

I386, ARM = 0x40000003, 0x40000028
AF_UNIX, AF_INET, AF_NETLINK, AF_VSOCK = 1, 2, 16, 40
CLONE_THREAD, CLONE_NEWUSER, CLONE_NEWNET, CLONE_VM = 0x10000, 0x10000000, 0x40000000, 0x100
TIOCSTI, TIOCLINUX, TCGETS = 0x5412, 0x541C, 0x5401
# read, write, openat, mmap, futex, execve, ppoll, memfd_create, recvmsg, exit_group, madvise, eventfd2
NEEDED = {
    "x86_64": (0, 1, 257, 9, 202, 59, 271, 319, 47, 231, 28, 290),
    "aarch64": (63, 64, 56, 222, 98, 221, 73, 279, 212, 94, 233, 19),
}


def verdict(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """What the filter returns for a call: the classic BPF machine, as far as the filter uses it."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        operation, true, false, operand = code[position]
        position += 1
        match operation:
            case 0x20:
                accumulator = struct.unpack_from("=I", data, operand)[0]
            case 0x06:
                return operand
            case 0x15:
                position += true if accumulator == operand else false
            case 0x25:
                position += true if accumulator > operand else false
            case 0x35:
                position += true if accumulator >= operand else false
            case 0x45:
                position += true if accumulator & operand else false
            case _:
                raise AssertionError(f"instruction {operation:#x}")


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(machine: str, number: int, *arguments: int, **options: bool) -> int:
    return verdict(seccomp.build(machine, **options), number, *arguments, audit=ARCHITECTURES[machine].audit)


def test_what_a_hypervisor_needs_is_allowed(machine: str) -> None:
    assert {ask(machine, number) for number in NEEDED[machine]} == {ALLOW}


def test_every_listed_call_is_refused(machine: str) -> None:
    column = ARCHITECTURES[machine].column
    table = (seccomp._DENIED | seccomp._SANDBOXING).values()
    numbers = [pair[column] for pair in table if pair[column] is not None]
    assert len(numbers) > 100
    assert {ask(machine, number) for number in numbers if number is not None} == {DENY}


@pytest.mark.parametrize(("audit", "on"), [(I386, "x86_64"), (ARM, "aarch64")])
def test_entry_by_another_architecture_is_deadly(audit: int, on: str) -> None:
    assert verdict(seccomp.build(on), 20, audit=audit) == KILL


def test_x32_is_deadly() -> None:
    assert ask("x86_64", 0x40000000 | 39) == KILL


def test_calls_younger_than_the_table_do_not_exist(machine: str) -> None:
    assert {ask(machine, number) for number in (463, 467, 500, 1000)} == {ABSENT}


def test_threads_are_allowed(machine: str) -> None:
    assert ask(machine, ARCHITECTURES[machine].clone, CLONE_THREAD | CLONE_VM) == ALLOW


@pytest.mark.parametrize("flags", [17, CLONE_VM, CLONE_NEWUSER | CLONE_THREAD, CLONE_NEWNET])
def test_processes_and_namespaces_are_refused(machine: str, flags: int) -> None:
    assert ask(machine, ARCHITECTURES[machine].clone, flags) == DENY


def test_clone3_does_not_exist_so_that_the_c_library_uses_clone(machine: str) -> None:
    assert ask(machine, 435) == ABSENT


@pytest.mark.parametrize("family", [AF_INET, AF_NETLINK, AF_VSOCK])
def test_only_unix_sockets_are_made(machine: str, family: int) -> None:
    arch = ARCHITECTURES[machine]
    assert (ask(machine, arch.socket, AF_UNIX), ask(machine, arch.socketpair, AF_UNIX)) == (ALLOW, ALLOW)
    assert (ask(machine, arch.socket, family), ask(machine, arch.socketpair, family)) == (DENY, DENY)


def test_a_program_with_network_makes_any_socket(machine: str) -> None:
    assert ask(machine, ARCHITECTURES[machine].socket, AF_INET, network=True) == ALLOW


def test_a_program_that_sandboxes_itself_may_do_that_and_nothing_more(machine: str) -> None:
    column = ARCHITECTURES[machine].column
    own = [pair[column] or 0 for pair in seccomp._SANDBOXING.values()]
    others = [pair[column] or 0 for pair in seccomp._DENIED.values() if pair[column] is not None]
    assert {ask(machine, number, sandboxes_itself=True) for number in own} == {ALLOW}
    assert {ask(machine, number, sandboxes_itself=True) for number in others} == {DENY}


def test_a_program_that_forks_makes_processes_and_no_namespaces(machine: str) -> None:
    clone = ARCHITECTURES[machine].clone
    assert [ask(machine, clone, flags, forks=True) for flags in (17, CLONE_THREAD | CLONE_VM)] == [ALLOW, ALLOW]
    assert [ask(machine, clone, 17 | flag, forks=True) for flag in (CLONE_NEWUSER, CLONE_NEWNET)] == [DENY, DENY]


def test_only_a_program_that_enters_namespaces_may_do_that(machine: str) -> None:
    number = seccomp._DENIED["setns"][ARCHITECTURES[machine].column] or 0
    assert ask(machine, number, sandboxes_itself=True, enters=True) == ALLOW
    assert {ask(machine, number, **{option: True}) for option in ("network", "sandboxes_itself", "forks")} == {DENY}


def test_nothing_is_typed_into_a_terminal(machine: str) -> None:
    number = ARCHITECTURES[machine].ioctl
    assert [ask(machine, number, 5, request) for request in (TIOCSTI, TIOCLINUX, TCGETS)] == [DENY, DENY, ALLOW]


def test_an_unknown_architecture_has_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp.build("m68k")
