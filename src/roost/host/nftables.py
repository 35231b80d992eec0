"""The one door to nftables: libnftables, in the network namespace of this process; a text is one transaction, all of it or nothing."""

from __future__ import annotations

import ctypes
import errno
import functools
import socket
import struct

from roost.errors import Conflict, Unavailable

_JSON, _TERSE = 1 << 4, 1 << 11  # enum nft_ctx_output, libnftables(3)
_LONGEST = 2000
_NETLINK_NETFILTER = 12
_NEW_GENERATION, _GET_GENERATION = 10 << 8 | 15, 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES
_SECONDS = 5.0
_NAMES = ("libnftables.so.1", "libnftables.so")


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
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    if context.value is None:
        raise Unavailable("networks can not be guarded", "the kernel has no nftables", "modprobe nf_tables")
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if flags:
            library.nft_ctx_output_set_flags(context, ctypes.c_uint(flags))
        if library.nft_run_cmd_from_buffer(context, text.encode()):
            said = library.nft_ctx_get_error_buffer(context).decode(errors="replace").strip()
            raise Conflict("the rules of the network were not changed", said[:_LONGEST] or "nftables refused them")
        answer: bytes = library.nft_ctx_get_output_buffer(context)
        return answer.decode(errors="replace")
    finally:
        library.nft_ctx_free(context)


def generation() -> int:
    """The number of this namespace's ruleset: the kernel counts up with every change that anybody makes. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as door:
        door.settimeout(_SECONDS)
        # struct nlmsghdr, then struct nfgenmsg: include/uapi/linux/netfilter/nf_tables.h
        door.send(struct.pack("=IHHIIBBH", 20, _GET_GENERATION, 1, 1, 0, 0, 0, 0))
        answer = door.recv(4096)
    length, kind = struct.unpack_from("=IH", answer)
    if kind != _NEW_GENERATION or length < 28:
        raise OSError(errno.EPROTO, "no generation of rules")
    return int(struct.unpack_from("!I", answer, 24)[0])
