"""The one door to nftables: libnftables, in the network namespace of this process; a text is one transaction, all of it or nothing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import socket
import struct
from collections.abc import Iterator

from roost.errors import Conflict, Unavailable

_JSON, _TERSE = 1 << 4, 1 << 11  # enum nft_ctx_output, libnftables(3)
_LONGEST = 2000
_NETLINK_NETFILTER = 12
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES
_SECONDS = 5.0
_NAMES = ("libnftables.so.1", "libnftables.so")


_PID_BITS = 22


class _Open:
    """What this process leaves open: a library's context, and sockets of our own."""

    def __init__(self) -> None:
        self.context: ctypes.c_void_p | None = None
        self.doors: list[socket.socket] = []


_left: list[_Open] = []


def leave_open() -> None:
    """Close no socket from here on, in a process that ends soon and changes the rules of one namespace only: the kernel lets whoever closes one
    wait until what the last transaction took away is really gone, a grace period (5 to 30 ms), and nobody needs to wait for that."""
    _left.append(_Open())


@functools.cache
def _library() -> ctypes.CDLL:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        for function in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, function).restype = ctypes.c_char_p
        return library
    fix = "sudo apt-get install --no-install-recommends nftables"
    raise Unavailable("networks can not be guarded", "nftables is not installed (no libnftables.so.1)", fix)


def is_there() -> bool:
    """Whether the library is installed."""
    try:
        _library()
    except Unavailable:
        return False
    return True


def apply(text: str) -> None:
    """Do what the text says, in one transaction. Raises Conflict when the kernel or the syntax refuses it, and then nothing has changed."""
    _run(text, 0)


def listing(what: str, *, terse: bool = False) -> str:
    """The answer to a question such as "list table inet roost", in JSON (libnftables-json(5)); terse: without the elements of sets.

    Raises Conflict when there is no such thing.
    """
    return _run(what, _JSON | (_TERSE if terse else 0))


def _run(text: str, flags: int) -> str:
    library = _library()
    with _context(library) as context:
        library.nft_ctx_output_set_flags(context, ctypes.c_uint(flags))
        if library.nft_run_cmd_from_buffer(context, text.encode()):
            said = library.nft_ctx_get_error_buffer(context).decode(errors="replace").strip()
            raise Conflict("the rules of the network were not changed", said[:_LONGEST] or "nftables refused them")
        answer: bytes = library.nft_ctx_get_output_buffer(context)
        return answer.decode(errors="replace")


@contextlib.contextmanager
def _context(library: ctypes.CDLL) -> Iterator[ctypes.c_void_p]:
    context = _left[-1].context if _left else None
    if context is None:
        context = ctypes.c_void_p(library.nft_ctx_new(0))
        if context.value is None:
            raise Unavailable("networks can not be guarded", "the kernel has no nftables", "modprobe nf_tables")
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
    if _left:
        _left[-1].context = context
    try:
        yield context
    finally:
        if not _left:
            library.nft_ctx_free(context)


@contextlib.contextmanager
def _door() -> Iterator[socket.socket]:
    door = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    if _left:
        # One that stays open does not take the name that the library's is to have: whoever hears of a change finds this process by it.
        _left[-1].doors.append(door)
        door.bind((os.getpid() | len(_left[-1].doors) << _PID_BITS, 0))
    try:
        yield door
    finally:
        if not _left:
            door.close()


def generation() -> int:
    """The number of this namespace's ruleset: the kernel counts up with every change that anybody makes. Raises OSError."""
    with _door() as door:
        door.settimeout(_SECONDS)
        # struct nlmsghdr, then struct nfgenmsg: include/uapi/linux/netfilter/nf_tables.h
        door.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 1, 0, 0, 0, 0))
        answer = door.recv(4096)
    length, kind = struct.unpack_from("=IH", answer)
    if kind != _NEW_GENERATION or length < 28:
        raise OSError(errno.EPROTO, "no generation of rules")
    return int(struct.unpack_from("!I", answer, 24)[0])
