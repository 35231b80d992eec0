"""Runs a coroutine as root or as an ordinary user: in a forked process with its own uid, home and launcher."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import pickle
import shutil
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from roost.host import jail, kernel

UID = 12345
TUN = Path("/dev/net/tun")
WHO = ("root", "user") if os.getuid() == 0 else ("user",)
"""Both, where the tests are run by root."""


def open_tun() -> Callable[[], None]:
    """Make the device of taps everybody's, as udev makes it (a container's may be root's); gives what undoes that."""
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(TUN.stat().st_mode)
        if mode & 0o006 != 0o006:
            TUN.chmod(0o666)
            return functools.partial(TUN.chmod, mode)
    return lambda: None


def require_tun() -> None:
    """Skip where the device of taps is not everybody's."""
    if not TUN.exists() or TUN.stat().st_mode & 0o006 != 0o006:
        pytest.skip(f"{TUN} is not open to users here: sudo chmod 0666 {TUN}")


def run_as(who: str, main: Callable[[], Coroutine[Any, Any, Any]], *, namespaces: bool = True) -> Any:
    """What `main` returns (it must be picklable), run in a process of its own as `who`.

    Without `namespaces` the process lives in a user namespace in which nobody can make further ones, as on a host that
    forbids them.
    """
    directory = Path(tempfile.mkdtemp(prefix="roost-test-"))
    try:
        return _fork(who, main, directory, namespaces)
    finally:
        shutil.rmtree(directory)


def _fork(who: str, main: Callable[[], Coroutine[Any, Any, Any]], directory: Path, namespaces: bool) -> Any:
    directory.chmod(0o755)
    home = directory / "home"
    home.mkdir()
    # The checkout and the interpreter may be where only root can read.
    shutil.copytree(Path(jail.__file__).parent, directory / "roost/host", ignore=shutil.ignore_patterns("__pycache__"))
    result, answer = os.pipe()
    ready, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if not namespaces:
                kernel.unshare(kernel.NEWUSER | kernel.NEWNS)
                os.write(ready[1], b"x")
                os.read(mapped[0], 1)
                Path("/proc/sys/user/max_user_namespaces").write_text("0")
            if who == "user":
                _become_ordinary(home)
                jail._LAUNCHER = directory / "roost/host/launcher.py"
            data = pickle.dumps((True, asyncio.run(main())))
        except BaseException:
            data = pickle.dumps((False, traceback.format_exc()))
        with open(answer, "wb") as file:
            file.write(data)
        os._exit(0)
    os.close(answer)
    if not namespaces:
        os.read(ready[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text("0 0 4294967295")
        os.write(mapped[1], b"x")
    with open(result, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    for descriptor in (*ready, *mapped):
        os.close(descriptor)
    fine, value = pickle.loads(data)
    assert fine, value
    return value


def _become_ordinary(home: Path) -> None:
    if os.getuid() == 0:
        os.chown(home, UID, UID)
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID, UID, UID)
    os.environ["HOME"] = str(home)
    os.environ["TMPDIR"] = str(home)
    if not os.access(sys.executable, os.X_OK):
        sys.executable = "/usr/bin/python3"
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
