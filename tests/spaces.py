"""A user and a network namespace of its own, as a network has them, kept by a process that waits; and guests that are cabled to it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from roost.host import jail, kernel

ACCOUNT = jail.FIRST_UID + 180_001


class Space(NamedTuple):
    """Descriptors of both namespaces, and the process that keeps them."""

    user: int
    net: int
    pid: int

    def run(self, call: Callable[[], Any]) -> Any:
        """What it returns, called in a process of its own, with all capabilities over these namespaces."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                kernel.setns(self.user, kernel.NEWUSER)
                kernel.setns(self.net, kernel.NEWNET)
                kernel.drop_capabilities(tuple(range(38)))  # which keeps all of these through an exec
                answer = pickle.dumps((True, call()))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            with open(write, "wb") as file:
                file.write(answer)
            os._exit(0)
        os.close(write)
        with open(read, "rb") as file:
            answer = file.read()
        os.waitpid(pid, 0)
        fine, value = pickle.loads(answer)
        assert fine, value
        return value

    def shell(self, script: str) -> str:
        """What a shell script prints in there."""

        def call() -> str:
            done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, (script, done.stdout, done.stderr)
            return done.stdout

        return str(self.run(call))


def _keep(start: Callable[[], None]) -> tuple[int, Callable[[], None]]:
    """A process that has called `start` and then waits, and what lets it begin to."""
    ready, told = os.pipe()
    go, mapped = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
            start()
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.write(told, b"x")
            os.read(go, 1)
            signal.pause()
        finally:
            os._exit(0)
    os.close(told)
    assert os.read(ready, 1) == b"x"

    def release() -> None:
        os.write(mapped, b"x")
        for descriptor in (ready, go, mapped):
            os.close(descriptor)

    return pid, release


@contextlib.contextmanager
def _of(pid: int) -> Iterator[Space]:
    user, net = (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net"))
    try:
        yield Space(user, net, pid)
    finally:
        os.close(user)
        os.close(net)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def space() -> Iterator[Space]:
    """It knows one user, as 0: the uid of the network's jails, or, without root, ourselves."""
    pid, release = _keep(lambda: kernel.unshare(kernel.NEWUSER | kernel.NEWNET))
    known = f"0 {os.getuid() or ACCOUNT} 1"
    for name, text in (("setgroups", "deny"), ("gid_map", known), ("uid_map", known)):
        Path(f"/proc/{pid}/{name}").write_text(text)
    release()
    with _of(pid) as there:
        yield there


@contextlib.contextmanager
def guest(network: Space, tap: str, mac: str) -> Iterator[Space]:
    """A guest whose card eth0 is cabled to the interface `tap` of the network."""

    def start() -> None:
        kernel.setns(network.user, kernel.NEWUSER)
        kernel.unshare(kernel.NEWNET)
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)

    pid, release = _keep(start)
    release()
    with _of(pid) as there:
        network.shell(f"ip link add {tap} type veth peer name eth0 netns {pid}; ip link set {tap} up")
        there.shell(f"ip link set lo up; ip link set eth0 address {mac} up")
        yield there
