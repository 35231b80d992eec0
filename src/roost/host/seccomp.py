"""The system call filter of a jail, written as BPF by hand; pure, stand-alone, for x86_64 and aarch64.

What QEMU, qemu-img and passt never need answers EPERM, and calls younger than this table answer ENOSYS, as an older
kernel would: a new call is closed until somebody looks at it. Entry by another ABI (32 bit, x32) ends the process.
"""

from __future__ import annotations

import errno
import struct

from roost.light import NamedTuple

ALLOW = 0x7FFF0000  # SECCOMP_RET_* : include/uapi/linux/seccomp.h
DENY = 0x00050000 | errno.EPERM
ABSENT = 0x00050000 | errno.ENOSYS
KILL = 0x80000000

NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # offsets in struct seccomp_data, little endian, low words
_AF_UNIX = 1
_CLONE_THREAD = 0x00010000
NAMESPACES = 0x7E020080  # every CLONE_NEW* flag: include/uapi/linux/sched.h
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_YOUNGEST = 462  # mseal; what came after is unknown here
_X32 = 0x40000000


class Architecture(NamedTuple):
    """AUDIT_ARCH_* and the numbers of the calls that are looked at by their arguments."""

    audit: int
    column: int
    clone: int
    socket: int
    socketpair: int
    ioctl: int


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 0, clone=56, socket=41, socketpair=53, ioctl=16),
    "aarch64": Architecture(0xC00000B7, 1, clone=220, socket=198, socketpair=199, ioctl=29),
}
_CLONE3 = 435

# name: number on x86_64 (arch/x86/entry/syscalls/syscall_64.tbl), number on aarch64 (asm-generic/unistd.h).
_SANDBOXING: dict[str, tuple[int | None, int | None]] = {
    "unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "setuid": (105, 146),
    "setgid": (106, 144), "setresuid": (117, 147), "setresgid": (119, 149), "setgroups": (116, 159), "capset": (126, 91),
}  # fmt: skip
"""What a program uses to build its own sandbox."""

_DENIED: dict[str, tuple[int | None, int | None]] = {
    # files: modes, owners and attributes of inherited descriptors, nodes, handles
    "mknod": (133, None), "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "lookup_dcookie": (212, 18), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "quotactl": (179, 60), "quotactl_fd": (443, 443), "ustat": (136, None),
    "sysfs": (139, None), "acct": (163, 89),
    # mounts and namespaces
    "chroot": (161, 51), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "move_mount": (429, 429), "open_tree": (428, 428), "mount_setattr": (442, 442), "statmount": (457, 457),
    "listmount": (458, 458), "swapon": (167, 224), "swapoff": (168, 225), "setns": (308, 268),
    # other processes, and new ones
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "move_pages": (279, 239), "migrate_pages": (256, 238),
    "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    # identity
    "setreuid": (113, 145), "setregid": (114, 143), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "lsm_set_self_attr": (460, 460),
    # surface of the kernel that has been a door before
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "memfd_secret": (447, 447), "remap_file_pages": (216, 234), "map_shadow_stack": (453, 453),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183), "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    "modify_ldt": (154, None), "personality": (135, 92), "iopl": (172, None), "ioperm": (173, None),
    "uselib": (134, None), "_sysctl": (156, None), "nfsservctl": (180, 42), "uretprobe": (335, None),
    "uprobe": (336, None),
    # the host as a whole
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "create_module": (174, None),
    "get_kernel_syms": (177, None), "query_module": (178, None), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58), "ioprio_set": (251, 30),
}  # fmt: skip


class Instruction(NamedTuple):
    """struct sock_filter: skip so many instructions when `true` or `false`."""

    code: int
    true: int
    false: int
    operand: int


def build(
    machine: str, *, network: bool = False, sandboxes_itself: bool = False, enters: bool = False, forks: bool = False
) -> bytes:
    """The filter for a process on `machine` (uname -m), as an array of struct sock_filter. Raises KeyError for others.

    `network` opens all socket families instead of AF_UNIX alone; `sandboxes_itself` leaves the calls by which a program
    locks itself up further, `enters` setns; `forks` lets it make processes.
    """
    arch = ARCHITECTURES[machine]
    left = (_SANDBOXING.keys() if sandboxes_itself else set()) | ({"setns"} if enters else set())
    denied = {name: numbers for name, numbers in forbidden().items() if name not in left}
    program = [
        *entrance(arch),
        *([] if sandboxes_itself else _clone(arch.clone, forks)),
        *terminal_input(arch.ioctl),
        *([] if network else [*_unix_only(arch.socket), *_unix_only(arch.socketpair)]),
    ]
    for numbers in denied.values():
        number = numbers[arch.column]
        if number is not None:
            program += [if_equal(number, 1), give(DENY)]
    program.append(give(ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def forbidden() -> dict[str, tuple[int | None, int | None]]:
    """Every call that a jail denies by its number alone, with its numbers on x86_64 and aarch64."""
    return _DENIED | _SANDBOXING


def entrance(arch: Architecture) -> list[Instruction]:
    """No other ABI, no call that is younger than the table, no clone3; then the number is loaded."""
    return [
        *(load(_ARCH), _unless_equal(arch.audit, 1), give(KILL)),
        load(NUMBER),
        *(Instruction(0x35, 0, 1, _X32), give(KILL)),  # BPF_JMP|BPF_JGE
        *(Instruction(0x25, 0, 1, _YOUNGEST), give(ABSENT)),  # BPF_JMP|BPF_JGT
        # The flags of clone3 are behind a pointer, where no filter sees them; the C library falls back to clone.
        *(if_equal(_CLONE3, 1), give(ABSENT)),
    ]


def load(offset: int) -> Instruction:
    """Look at this word of struct seccomp_data."""
    return Instruction(0x20, 0, 0, offset)  # BPF_LD|BPF_W|BPF_ABS


def give(value: int) -> Instruction:
    """The answer."""
    return Instruction(0x06, 0, 0, value)


def if_equal(value: int, skip: int) -> Instruction:
    """Go on when equal, else skip so many instructions."""
    return Instruction(0x15, 0, skip, value)


def _unless_equal(value: int, skip: int) -> Instruction:
    return Instruction(0x15, skip, 0, value)


def _clone(number: int, forks: bool) -> list[Instruction]:
    """No namespaces, and threads only unless it forks."""
    processes = [] if forks else [Instruction(0x45, 1, 0, _CLONE_THREAD), give(DENY)]  # BPF_JMP|BPF_JSET
    return [
        if_equal(number, 4 + len(processes)),
        load(_ARGUMENT_0),
        *(Instruction(0x45, 0, 1, NAMESPACES), give(DENY)),
        *processes,
        give(ALLOW),
    ]


def terminal_input(number: int) -> list[Instruction]:
    """No typing into a terminal that somebody left open."""
    return [
        if_equal(number, 5),
        load(_ARGUMENT_1),
        *(_unless_equal(_TIOCSTI, 1), if_equal(_TIOCLINUX, 1)),
        give(DENY),
        give(ALLOW),
    ]


def _unix_only(number: int) -> list[Instruction]:
    return [
        if_equal(number, 4),
        load(_ARGUMENT_0),
        *(_unless_equal(_AF_UNIX, 1), give(DENY)),
        give(ALLOW),
    ]
