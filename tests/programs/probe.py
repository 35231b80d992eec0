#!/usr/bin/env python3
"""The probe as a script: the same small language as probe.c, for runtimes that run an interpreter."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

USAGE, UNSUPPORTED = 64, 65


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def args(*words: str) -> None:
    for word in words:
        say(os.fsencode(word).hex())


def env(name: str = "") -> int | None:
    if name:
        if name not in os.environ:
            return 1
        say(os.environ[name])
    else:
        for key, value in sorted(os.environ.items()):
            say(f"{key}={value}")
    return None


def cat() -> None:
    while piece := os.read(0, 1 << 16):
        spill(piece)


def spill(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def lines() -> None:
    for line in sys.stdin:
        say("got " + line.rstrip("\n"))


def err(*words: str) -> None:
    sys.stderr.write(" ".join(words) + "\n")


def segv() -> None:
    import ctypes

    ctypes.memset(8, 0, 1)


def trap() -> None:
    signal.raise_signal(signal.SIGILL)


def handle(code: str = "42") -> int:
    caught: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: caught.append(number))
    say("ready")
    while not caught:
        time.sleep(0.01)
    say(f"caught {int(caught[0])}")
    return int(code)


def wait() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    say("ready")
    while True:
        time.sleep(1000)


def read(path: str) -> None:
    spill(Path(path).read_bytes())


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def append(path: str, text: str) -> None:
    with Path(path).open("a") as file:
        file.write(text)


def names(path: str) -> None:
    for entry in sorted(Path(path).iterdir(), key=os.fsencode):
        say(entry.name)


def remove(path: str) -> None:
    Path(path).rmdir() if Path(path).is_dir() else Path(path).unlink()


def connect(host: str, port: str, text: str = "hello") -> None:
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(text.encode() + b"\n")
        while piece := connection.recv(1 << 16):
            spill(piece)


def listen(port: str) -> None:
    with socket.create_server(("", int(port))) as listener:
        say("ready")
        connection = listener.accept()[0]
        with connection:
            while piece := connection.recv(1 << 16):
                connection.sendall(piece)


def spin() -> None:
    say("ready")
    while True:
        pass


def eat(mebibytes: str) -> None:
    kept = [b"x" * (1 << 20) for _ in range(int(mebibytes))]
    say(f"ate {len(kept)}")


def flood(count: str = "") -> None:
    left = int(count or 1 << 62)
    while left:
        piece = b"x" * min(left, 1 << 16)
        spill(piece)
        left -= len(piece)


def fork(count: str) -> None:
    started = []
    with contextlib.suppress(OSError):
        for _ in range(int(count)):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
                os._exit(0)
            started.append(pid)
    say(f"started {len(started)}")
    time.sleep(1)
    for pid in started:
        os.kill(pid, signal.SIGKILL)


def fds() -> None:
    for number in range(3, 1024):
        with contextlib.suppress(OSError):
            os.fstat(number)
            say(str(number))


def tmp() -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp"), "probe.txt")
    path.write_text("kept")
    say(path.read_text())


def orphan() -> None:
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)


COMMANDS: dict[str, Callable[..., int | None]] = {
    "args": args, "env": env, "cat": cat, "lines": lines, "out": lambda *words: say(" ".join(words)), "err": err,
    "exit": lambda code: os._exit(int(code)), "abort": os.abort, "segv": segv, "trap": trap,
    "raise": lambda number: signal.raise_signal(int(number)), "handle": handle, "wait": wait, "cwd": lambda: say(str(Path.cwd())), "read": read,
    "write": write, "append": append, "list": names, "rename": lambda old, new: Path(old).rename(new) and None, "remove": remove, "mkdir": os.mkdir,
    "link": os.symlink, "size": lambda path: say(str(Path(path).stat().st_size)), "connect": connect, "listen": listen, "spin": spin, "eat": eat,
    "flood": flood, "fork": fork, "fds": fds, "uid": lambda: say(str(os.getuid())), "pid": lambda: say(str(os.getpid())),
    "tty": lambda: say(" ".join(str(os.isatty(number)).lower() for number in (0, 1, 2))), "time": lambda: say(str(int(time.time()))), "tmp": tmp,
    "orphan": orphan, "random": lambda: say(os.urandom(8).hex()),
}  # fmt: skip


def main(words: list[str]) -> int:
    if not words or words[0] not in COMMANDS:
        return USAGE
    try:
        return COMMANDS[words[0]](*words[1:]) or 0
    except BrokenPipeError:
        return 1
    except OSError as error:
        sys.stderr.write(f"{words[0]}: {error.strerror}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
