"""The system call filter of a boxed program, which may fork, execute and use its own ipc; pure, for x86_64 and aarch64.

Like the filter of the guests' jail it answers EPERM to what is denied, ENOSYS to what is younger than its table, and death to entry by
another ABI. What only capabilities allow (setuid to others, devices) is left to the kernel: there are none.
"""

from __future__ import annotations

import errno
import struct

from roost.host import seccomp

_NOTIFY = 0x7FC00000  # SECCOMP_RET_USER_NOTIF
_NO_FAMILY = 0x00050000 | errno.EAFNOSUPPORT
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_NO_PROTOCOL = 0x00050000 | errno.EPROTONOSUPPORT
_USUAL, _ICMP6 = 17, 58
"""Protocols up to UDP; younger ones (SCTP, DCCP, MPTCP) make the host load modules for whoever asks."""
_AF_NETLINK = 16
_DEVICE = 0o020000  # the bit of S_IFMT that character and block devices have, and sockets, pipes and files have not
_ARGUMENT_1, _ARGUMENT_2, _ARGUMENT_3 = 24, 32, 40

_FREE = (
    *("fork", "vfork", "execveat", "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
    *("setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "mknod", "mknodat"),
    *("pidfd_open", "pidfd_send_signal", "personality", "setreuid", "setregid", "setfsuid", "setfsgid"),
    *("setuid", "setgid", "setresuid", "setresgid", "setgroups", "capset", "unshare", "remap_file_pages"),
)
"""Denied to a hypervisor, but not to a program. Of mknod, chmod and unshare only devices, special bits and namespaces are denied."""
_IPC = (
    *("shmget", "shmat", "shmctl", "shmdt", "semget", "semop", "semctl", "semtimedop", "msgget", "msgsnd", "msgrcv"),
    *("msgctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr"),
)
_BY_NAME = {"ptrace": ("ptrace", "process_vm_readv", "process_vm_writev", "kcmp"), "modify_ldt": ("modify_ldt",)}
_CONNECT: dict[str, tuple[int | None, int | None]] = {"connect": (42, 203)}
_FILES: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "stat": (4, None), "lstat": (6, None),
    "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "execve": (59, 221), "execveat": (322, 281), "chdir": (80, 49),
    "mkdir": (83, None), "mkdirat": (258, 34), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "rmdir": (84, None), "truncate": (76, 45), "statfs": (137, 43),
}  # fmt: skip
"""What "learn" reports, by number on x86_64 and on aarch64."""
_MKNOD: dict[str, tuple[tuple[int | None, int | None], int]] = {
    "mknod": ((133, None), _ARGUMENT_1),
    "mknodat": ((259, 33), _ARGUMENT_2),
}
_SPECIAL = 0o6000
"""S_ISUID and S_ISGID: such a file in a lent directory would give its owner's rights to everybody on the host."""
_CREATES = 0o20000100  # O_CREAT and what O_TMPFILE has of its own: without them there is no mode to look at
_MODES: dict[str, tuple[tuple[int | None, int | None], int, int]] = {
    "chmod": ((90, None), _ARGUMENT_1, 0),
    "fchmod": ((91, 52), _ARGUMENT_1, 0),
    "fchmodat": ((268, 53), _ARGUMENT_2, 0),
    "fchmodat2": ((452, 452), _ARGUMENT_2, 0),
    "creat": ((85, None), _ARGUMENT_1, 0),
    "open": ((2, None), _ARGUMENT_2, _ARGUMENT_1),
    "openat": ((257, 56), _ARGUMENT_3, _ARGUMENT_2),
}
"""Where a mode is, and where the flags are that say whether there is one (0: always)."""
_OPENAT2 = 437  # its mode is behind a pointer, where no filter sees it; all who use it fall back to openat
_UNSHARE, _KILL, _SETPRIORITY = (272, 97), (62, 129), (141, 140)
_PRIO_PGRP = 1


def build(
    machine: str, *, watch: str = "", calls: tuple[str, ...] = (), isolated: bool = True, signals: bool = True
) -> bytes:
    """The filter for a process on `machine` (uname -m), as an array of struct sock_filter; empty for a machine without one.

    Not `isolated` means that it shares the host's network and ipc: then it gets AF_UNIX alone and no System V ipc.
    Without `signals` it may not signal its own process group, in which its caller is too. Raises KeyError for unknown `calls`.
    """
    if machine not in seccomp.ARCHITECTURES:
        return b""
    arch = seccomp.ARCHITECTURES[machine]
    opened = {*_FREE, *(_IPC if isolated else ()), *(name for call in calls for name in _BY_NAME[call])}
    denied = {name: numbers for name, numbers in seccomp.forbidden().items() if name not in opened}
    program = [
        *seccomp.entrance(arch),
        *_without_bits(arch.clone, 16, seccomp.NAMESPACES, seccomp.DENY),
        *_without_bits(_UNSHARE[arch.column], 16, seccomp.NAMESPACES, seccomp.DENY),
        *seccomp.terminal_input(arch.ioctl),
        *_sockets(arch.socket, isolated),
        *_sockets(arch.socketpair, isolated),
    ]
    program += _without_value(_SETPRIORITY[arch.column], _PRIO_PGRP)
    if not signals:
        program += _without_value(_KILL[arch.column], 0)
    for numbers, offset in _MKNOD.values():
        program += _without_bits(numbers[arch.column], offset, _DEVICE | _SPECIAL, seccomp.DENY)
    program += [seccomp.if_equal(_OPENAT2, 1), seccomp.give(seccomp.ABSENT)]
    for numbers, offset, flags in _MODES.values():
        program += _without_special(numbers[arch.column], offset, flags)
    program += _answer(denied, arch.column, seccomp.DENY)
    if watch:
        program += _answer(_CONNECT if watch == "connect" else {**_CONNECT, **_FILES}, arch.column, _NOTIFY)
    program.append(seccomp.give(seccomp.ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _answer(calls: dict[str, tuple[int | None, int | None]], column: int, value: int) -> list[seccomp.Instruction]:
    """This value for every one of these calls: rows of comparisons with an answer behind each, since a jump is short."""
    numbers = sorted({numbers[column] for numbers in calls.values()} - {None}, key=lambda number: number or 0)
    program: list[seccomp.Instruction] = []
    for start in range(0, len(numbers), 100):
        row = [number for number in numbers[start : start + 100] if number is not None]
        # Each jumps to the answer behind the row when equal; the last one over it when not.
        for index, number in enumerate(row):
            left = len(row) - 1 - index
            program.append(seccomp.Instruction(0x15, left, 0 if left else 1, number))
        program.append(seccomp.give(value))
    return program


def _without_bits(number: int | None, offset: int, bits: int, answer: int) -> list[seccomp.Instruction]:
    """The call is refused when its argument has one of the bits, else allowed."""
    if number is None:
        return []
    return [
        seccomp.if_equal(number, 4),
        seccomp.load(offset),
        seccomp.Instruction(0x45, 0, 1, bits),  # BPF_JMP|BPF_JSET
        seccomp.give(answer),
        seccomp.give(seccomp.ALLOW),
    ]


def _without_special(number: int | None, offset: int, flags: int) -> list[seccomp.Instruction]:
    """The call is refused when it would give a file one of the special bits; else what follows decides."""
    if number is None:
        return []
    test = [seccomp.load(offset), seccomp.Instruction(0x45, 0, 1, _SPECIAL), seccomp.give(seccomp.DENY)]
    if flags:
        test = [seccomp.load(flags), seccomp.Instruction(0x45, 0, len(test), _CREATES), *test]
    body = [*test, seccomp.load(seccomp.NUMBER)]
    return [seccomp.if_equal(number, len(body)), *body]


def _without_value(number: int, value: int) -> list[seccomp.Instruction]:
    """The call is refused when its first argument is this one, else allowed."""
    return [
        *(seccomp.if_equal(number, 4), seccomp.load(16), seccomp.if_equal(value, 1)),
        *(seccomp.give(seccomp.DENY), seccomp.give(seccomp.ALLOW)),
    ]


def _sockets(number: int, isolated: bool) -> list[seccomp.Instruction]:
    """IP in a network of its own, where NETLINK_ROUTE may be read too (getifaddrs needs it); else nothing but AF_UNIX."""
    families = _FAMILIES if isolated else _FAMILIES[:1]
    routes = [
        *(seccomp.if_equal(_AF_NETLINK, 3), seccomp.load(_ARGUMENT_2)),
        *(seccomp.if_equal(0, 1), seccomp.give(seccomp.ALLOW)),
    ]
    body = [
        *(seccomp.load(_ARGUMENT_2), seccomp.Instruction(0x25, 0, 2, _USUAL)),  # BPF_JMP|BPF_JGT
        *(seccomp.Instruction(0x15, 1, 0, _ICMP6), seccomp.give(_NO_PROTOCOL)),
        seccomp.load(16),
    ]
    for family in families:
        body += [seccomp.if_equal(family, 1), seccomp.give(seccomp.ALLOW)]
    body += [*(routes if isolated else []), seccomp.give(_NO_FAMILY)]
    return [seccomp.if_equal(number, len(body)), *body]
