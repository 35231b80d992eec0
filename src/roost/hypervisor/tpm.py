"""A TPM 2.0 for one machine: swtpm in a jail of its own, which ends with its machine, and its state as bytes.

While the machine runs, QEMU's stream of device state holds all of the TPM, what it keeps without power included (the vmstate
"tpm-emulator"): a checkpoint with memory needs nothing else, and the swtpm that takes it over writes it down again. Without memory the
TPM is its one file, which swtpm writes in place at each change: copy it while the guest stands still.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from roost import log
from roost.errors import Unavailable
from roost.host import files, jail
from roost.host.jail import Bind, Jail, Jailed, Limits
from roost.model.meta import MiB

STATE = "state"
"""The file in a TPM's directory: all that it keeps without power (swtpm's linear store). One file, so that the jail needs no directory."""

_CONTROL = 3
_ANSWER_SECONDS = 10.0
_LARGEST = MiB
"""A TPM's state is 2 kB when new and a few hundred kB when all of its storage is used (libtpms: NV_MEMORY_SIZE is 176 kB)."""

_MAGIC = b"nilmptws"
"""How swtpm's store begins (nvstore_linear.h: "swtpmlin" as a little-endian number). Over any other file it makes a new, empty one."""

# swtpm's control channel (tpm_ioctl.h): a number of four bytes, big-endian, and its arguments.
_GET_CAPABILITY, _INIT, _STOP = b"\0\0\0\x01", b"\0\0\0\x02" + bytes(4), b"\0\0\0\x0e"
_CAPABILITY_BYTES, _RESULT_BYTES = 8, 4


def arguments(program: str, state: str, descriptor: int) -> tuple[str, ...]:
    """swtpm's arguments: its state is the file `state`, its machine at the other end of the socket `descriptor`.

    It ends when that end closes. Its own filter of system calls is off: the jail has one that allows less.
    """
    return (
        program, "socket", "--tpm2", "--terminate",
        "--ctrl", f"type=unixio,clientfd={descriptor}",
        "--tpmstate", f"backend-uri=file://{state}",
        "--seccomp", "action=none",
    )  # fmt: skip


async def connect(
    program: str | None, uid: str, account: int, directory: Path, ends: tuple[socket.socket, socket.socket]
) -> Jailed:
    """The process that is the TPM of machine `uid`, once it has answered; its state is in `directory`, made when missing.

    `program` is `HostFacts.swtpm`, `account` its uid on the host where root runs the daemon. `ends` are the machine's and the TPM's
    end of a pair of stream sockets; both stay the caller's. Raises Unavailable (not installed, the state can not be used), NotStarted;
    then nothing is left behind.
    """
    if program is None:
        fix = "sudo apt-get install --no-install-recommends swtpm, or launch without --tpm"
        raise Unavailable("the machine has no TPM", "swtpm is not installed", fix)
    known = await asyncio.to_thread(_make_ready, directory, account)
    # The same path inside, for a host without namespaces; but swtpm can not be told of a comma.
    place = "/state" if "," in str(directory) else str(directory / STATE)
    jailed = await jail.enter(
        Jail(
            name=f"{uid}-tpm",
            argv=arguments(program, place, _CONTROL),
            binds=(*jail.program_binds(Path(program)), Bind(directory / STATE, place, writable=True)),
            fds={_CONTROL: ends[1].fileno()},
            limits=Limits(memory=64 * MiB, processes=4, files=32, file_size=_LARGEST),
            uid=account,
        )
    )
    try:
        await _answer(ends[0], known)
    except BaseException:
        await asyncio.shield(log.spawn_task(jail.end(jailed), f"end of the TPM of {uid}"))
        raise
    return jailed


def read(directory: Path) -> dict[str, bytes]:
    """The state kept in `directory`, a file name each; nothing when there is no TPM yet. Raises Invalid for what no TPM wrote."""
    try:
        data = files.read_bounded(directory / STATE, _LARGEST)
    except FileNotFoundError:
        return {}
    return {STATE: data} if data else {}


def write(directory: Path, state: Mapping[str, bytes]) -> None:
    """Put a state that `read` gave into `directory`, in place of any other; durable. The machine must not run."""
    directory.mkdir(mode=0o700, exist_ok=True)
    files.atomic_write(directory / STATE, state.get(STATE, b""))


def _make_ready(directory: Path, account: int) -> bool:
    """The file, for the jail to write; returns whether there is a state in it. Raises Unavailable for one that swtpm would replace."""
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory / STATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(descriptor, account, account)
        begin = os.pread(descriptor, len(_MAGIC), 0)
    finally:
        os.close(descriptor)
    if any(begin) and begin != _MAGIC:
        raise _unusable()
    return any(begin)


def _unusable() -> Unavailable:
    why = "swtpm can not use its state: it is damaged, or a newer swtpm wrote it"
    return Unavailable("the machine has no TPM", why, "roost restore NAME SNAPSHOT, or install the newer swtpm")


async def _answer(link: socket.socket, known: bool) -> None:
    """See that swtpm answers and, where there is a state, that it can use it: QEMU would start the machine with a broken TPM."""
    what = "the machine has no TPM"
    link.setblocking(False)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await _ask(link, _GET_CAPABILITY, _CAPABILITY_BYTES)
            if known and any(await _ask(link, _INIT, _RESULT_BYTES)):
                raise _unusable()
            if known:
                await _ask(link, _STOP, _RESULT_BYTES)
    except (TimeoutError, OSError) as error:
        raise Unavailable(
            what, f"swtpm does not answer: {str(error) or 'time is up'}", "try again, or: roost doctor"
        ) from None
    finally:
        link.setblocking(True)


async def _ask(link: socket.socket, question: bytes, size: int) -> bytes:
    """Ask on the control channel; the answer begins with the result. Raises OSError when swtpm is gone."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(link, question)
    answer = b""
    while len(answer) < size:
        more = await loop.sock_recv(link, size - len(answer))
        if not more:
            raise ConnectionResetError("it has ended")
        answer += more
    return answer
