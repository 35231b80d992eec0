"""The Agent protocol over SSH, for images that have nothing else: reached through a port published on the host's loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Literal

import asyncssh

from roost import log
from roost.errors import CommandFailed, Forbidden, Invalid, NotFound, NotStarted, OutcomeUnknown
from roost.host.files import atomic_write
from roost.hypervisor.agentwire import readable
from roost.hypervisor.base import Chunk, Command, Setup
from roost.hypervisor.setupscript import setup_script, within

_PIECE = 64 << 10
_QUEUE = 16
"""Pieces that wait for a reader before the guest is held up."""


async def connect(host: str, port: int, *, user: str, key: Path, host_key: Path) -> SshAgent:
    """A guest's SSH server. Its host key is kept in `host_key` on first use, and must be the same ever after.

    Raises NotStarted when it does not answer (yet), Forbidden when it is another guest or does not accept `key`.
    """
    try:
        known = await _host_key(host, port, host_key)
        connection = await asyncssh.connect(
            host,
            port,
            username=user,
            client_keys=[str(key)],
            known_hosts=([known], [], []),
            config=None,
            agent_path=None,
        )
    except asyncssh.HostKeyNotVerifiable as error:
        why = f"the server at {host}:{port} has another host key than the one first seen"
        raise Forbidden("this is not the guest it was", why, f"if that is expected: rm {host_key}") from error
    except asyncssh.PermissionDenied as error:
        raise Forbidden(f"the guest does not let {user} in", readable(error.reason.encode())) from error
    except (OSError, asyncssh.Error) as error:
        raise NotStarted("the guest's SSH server does not answer", readable(str(error).encode())) from error
    return SshAgent(connection)


def make_key(path: Path) -> str:
    """The key pair whose private half is at `path` (0600), made when it is missing; returns the public half as one line."""
    if not path.exists():
        atomic_write(path, asyncssh.generate_private_key("ssh-ed25519", "roost").export_private_key())
    return asyncssh.read_private_key(path).export_public_key().decode().strip()


async def _host_key(host: str, port: int, path: Path) -> asyncssh.SSHKey:
    if path.exists():
        return asyncssh.import_public_key(path.read_bytes())
    key = await asyncssh.get_server_host_key(host, port, config=None)
    if key is None:
        raise NotStarted("the guest's SSH server does not answer", "it has no host key")
    atomic_write(path, key.export_public_key())
    return key


class SshSession:
    """A command run through SSH: see `base.Session`."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue(_QUEUE)
        self._readers = [log.spawn_task(self._read(name), f"ssh {name}") for name in ("stdout", "stderr")]

    async def _read(self, name: Literal["stdout", "stderr"]) -> None:
        stream = self._process.stdout if name == "stdout" else self._process.stderr
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await stream.read(_PIECE):
                await self._chunks.put(Chunk(name, data))
        await self._chunks.put(None)

    async def output(self) -> AsyncGenerator[Chunk, None]:
        """See `base.Session.output`. Raises OutcomeUnknown when the connection breaks."""
        ended = 0
        while ended < len(self._readers):
            chunk = await self._chunks.get()
            if chunk is None:
                ended += 1
            else:
                yield chunk
        await self._process.wait_closed()
        code = self._process.returncode
        if code is None:
            raise OutcomeUnknown("the SSH connection to the guest is lost", "the command may still run")
        yield Chunk("exit", code=code if code >= 0 else 128 - code)

    async def write(self, data: bytes) -> None:
        """See `base.Session.write`."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            for at in range(0, len(data), _PIECE):
                self._process.stdin.write(data[at : at + _PIECE])
                await self._process.stdin.drain()

    async def end_input(self) -> None:
        """See `base.Session.end_input`."""
        with contextlib.suppress(OSError):
            self._process.stdin.write_eof()

    async def signal(self, number: int) -> None:
        """See `base.Session.signal`. Raises Invalid for one that SSH has no name for."""
        import signal as numbers

        try:
            name = numbers.Signals(number).name.removeprefix("SIG")
        except ValueError:
            raise Invalid(f"there is no signal {number}", "SSH names signals") from None
        with contextlib.suppress(OSError):
            self._process.send_signal(name)

    async def resize(self, rows: int, columns: int) -> None:
        """See `base.Session.resize`."""
        with contextlib.suppress(OSError):
            self._process.change_terminal_size(columns, rows)

    async def close(self) -> None:
        """See `base.Session.close`. The channel's end is what kills: sshd sends SIGHUP where there is a terminal."""
        for reader in self._readers:
            reader.cancel()
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.close()


class SshAgent:
    """A guest's SSH server, as an agent."""

    kind: Literal["roost", "qemu-ga", "ssh"] = "ssh"

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection

    @property
    def closed(self) -> bool:
        """The connection is gone; a new one must be made with `connect`."""
        return self._connection.is_closed()

    async def ping(self, timeout: float) -> None:
        """See `base.Agent.ping`."""
        try:
            async with asyncio.timeout(timeout):
                await self._collect(Command(["true"]), "")
        except (TimeoutError, OutcomeUnknown, CommandFailed):
            raise NotStarted("the guest's SSH server does not answer", f"no answer within {timeout:g} s") from None

    async def execute(self, command: Command) -> SshSession:
        """See `base.Agent.execute`; SSH cannot tell a missing program from exit code 127. Without arguments it is the login shell."""
        terminal = command.terminal
        try:
            line = " ".join(shlex.quote(word) for word in within(command, switch_user=("sudo", "-n", "-u")))
        except ValueError as error:
            raise Invalid("the command cannot be sent to the guest", "its arguments are not UTF-8") from error
        exports = "".join(f"{shlex.quote(f'{name}={value}')} " for name, value in command.env.items())
        wanted = (f"env {exports}{line}" if exports else line) if command.argv or exports or command.user else None
        try:
            process = await self._connection.create_process(
                wanted,
                term_type=os.environ.get("TERM", "xterm-256color") if terminal else None,
                term_size=(terminal[1], terminal[0]) if terminal else (0, 0),
                stdin=asyncssh.PIPE if command.stdin or terminal else asyncssh.DEVNULL,
                encoding=None,
            )
        except (OSError, asyncssh.Error) as error:
            raise NotStarted("the command did not start in the guest", readable(str(error).encode())) from error
        return SshSession(process)

    async def _collect(self, command: Command, what: str, text: bytes = b"") -> None:
        session = await self.execute(command)
        said = b""
        try:
            if text:
                await session.write(text)
                await session.end_input()
            async for chunk in session.output():
                said = (said + chunk.data)[:8192]
                if chunk.stream == "exit" and chunk.code:
                    raise CommandFailed(what, readable(said) or f"exit code {chunk.code}")
        finally:
            await session.close()

    async def setup(self, setup: Setup) -> None:
        """See `base.Agent.setup`: with sudo unless it is root that we came as. The host keys stay: by them we know the guest. Raises
        CommandFailed."""
        script = 'if [ "$(id -u)" = 0 ]; then exec sh; else exec sudo -n sh; fi'
        what = "the first-boot set-up is incomplete"
        await self._collect(
            Command(["sh", "-c", script], stdin=True), what, setup_script(setup._replace(host_keys=())).encode()
        )

    async def seal(self) -> None:
        """See `base.Agent.seal`. Raises CommandFailed always: a copy could be given an identity only over the network, as another's."""
        raise CommandFailed(
            "the guest can not be made ready to be copied", "only its SSH server answers us", "roost launch --cold"
        )

    async def freeze(self) -> None:
        """See `base.Agent.freeze`. Raises CommandFailed always: over SSH nothing would thaw a guest that writes a login down."""
        raise CommandFailed(
            "the guest's file systems were not frozen",
            "only its SSH server answers us",
            "install qemu-guest-agent in it",
        )

    async def thaw(self) -> None:
        """See `base.Agent.thaw`: it never stopped."""

    async def power(self, action: Literal["off", "reboot"]) -> None:
        """See `base.Agent.power`: with sudo unless it is root that we came as."""
        verb = "poweroff" if action == "off" else "reboot"
        script = f'if [ "$(id -u)" = 0 ]; then {verb}; else sudo -n {verb}; fi'
        with contextlib.suppress(OutcomeUnknown):
            await self._collect(Command(["sh", "-c", script]), "the guest could not be asked to shut down")

    async def send_archive(self, path: str, stream: AsyncIterator[bytes]) -> None:
        """See `base.Agent.send_archive`. Raises CommandFailed."""
        script = 'mkdir -p "$0" && exec tar -xf - -C "$0"'
        session = await self.execute(Command(["sh", "-c", script, path], stdin=True))
        said = b""
        try:
            async for data in stream:
                await session.write(data)
            await session.end_input()
            async for chunk in session.output():
                said = (said + chunk.data)[:8192]
                if chunk.stream == "exit" and chunk.code:
                    raise CommandFailed(f"not everything was copied to {path}", readable(said))
        finally:
            await session.close()

    async def receive_archive(self, path: str) -> AsyncGenerator[bytes, None]:
        """See `base.Agent.receive_archive`. Raises CommandFailed when not everything could be read."""
        parent, name = os.path.split(os.path.normpath(path))
        script = 'test -e "$0/$1" || test -L "$0/$1" || exit 44; exec tar -cf - -C "$0" -- "$1"'
        session = await self.execute(Command(["sh", "-c", script, parent or ".", name or "."]))
        said = b""
        try:
            async for chunk in session.output():
                if chunk.stream == "stdout":
                    yield chunk.data
                elif chunk.stream == "stderr":
                    said = (said + chunk.data)[:8192]
                elif chunk.code == 44:
                    raise NotFound(f"there is no {path} in the guest")
                elif chunk.code:
                    raise CommandFailed(f"not everything of {path} was copied", readable(said))
        finally:
            await session.close()

    async def close(self) -> None:
        """See `base.Agent.close`."""
        self._connection.close()
        await self._connection.wait_closed()
