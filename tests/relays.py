"""A relay as an ordinary process, and what its tests ask of it."""

from __future__ import annotations

import array
import contextlib
import os
import platform
import resource
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from roost import guest


class Relay(NamedTuple):
    """A running relay with a control connection; `gate` is its listening socket's address."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    gate: str

    def ask(self, request: str, *descriptors: int) -> str:
        """The answer to one request."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.control.sendmsg([request.encode()], rights)
        return self.control.recv(1 << 17).decode()

    def publish(
        self, target: tuple[str, int], kind: int = socket.SOCK_STREAM, address: str = "127.0.0.1"
    ) -> tuple[str, int]:
        """An address that leads to the target."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as listener:
            listener.bind((address, 0))
            if kind == socket.SOCK_STREAM:
                listener.listen(1024)
            where = listener.getsockname()[:2]
            name = "tcp" if kind == socket.SOCK_STREAM else "udp"
            assert self.ask(f"add {name}-{where[1]} {name} {target[0]} {target[1]}", listener.fileno()) == "ok"
        return where

    def count(self) -> dict[str, int]:
        """Connections, sessions, refused."""
        words = self.ask("list").splitlines()[0].split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))

    def cpu(self) -> float:
        """Seconds of CPU time used."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


def descriptors(files: int) -> int:
    """Let this process have so many descriptors at least, or as many as it may; how many it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, PermissionError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(files, soft), max(files, hard)))
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], max(files, soft))


@contextlib.contextmanager
def relay(gate: str, files: int = 65536) -> Iterator[Relay]:
    """A relay that may have so many descriptors."""
    allowed = min(files, descriptors(files))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(gate)
        listener.listen(8)

        def prepare() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
            os.dup2(listener.fileno(), 3)

        program = guest.binary(platform.machine(), "relay")
        process = subprocess.Popen([program], pass_fds=[3], preexec_fn=prepare)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(10)
            control.connect(gate)
            yield Relay(process, control, gate)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def server(handle: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """A server that gives every connection to `handle` in a thread of its own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen(4096)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[:2]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
