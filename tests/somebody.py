"""An ordinary user of this host: a home, the sources under test, and what the kernel gives everybody; no root."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

UID = 12345
DISTRIBUTION = Path("/usr/bin/python3")


class Ordinary:
    """Somebody with a home of his own who runs Roost from the sources under test."""

    def __init__(self, home: Path, python: str, uid: int = UID) -> None:
        self.home, self.python, self.uid = home, python, uid
        self.groups: tuple[int, ...] = ()
        self.state, self.run = home / "state", home / "run"
        packages = sysconfig.get_path("purelib")
        self.environ = {
            "HOME": str(home),
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "ROOST_STATE": str(self.state),
            "ROOST_RUN": str(self.run),
            "NO_COLOR": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{home / 'src'}:{packages}",
        }

    def python_says(self, *argv: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the interpreter as the user, in no group but `groups`."""
        return subprocess.run(
            [self.python, *argv],
            env=self.environ, cwd=self.home, user=self.uid, group=self.uid, extra_groups=self.groups,
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def roost(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A verb; the first starts the user's own daemon."""
        done = self.python_says("-m", "roost.cli.main", *arguments, timeout=timeout)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def show(self, name: str) -> dict[str, Any]:
        """A machine or program as the API shows it."""
        return dict(json.loads(self.roost("show", name, "-o", "json").stdout))


def python_for(home: Path, uid: int = UID) -> str:
    """An interpreter that the user may run and that can load what Roost needs; the test is skipped where there is none."""
    for candidate in (sys.executable, str(DISTRIBUTION)):
        try:
            if (
                Ordinary(home, candidate, uid).python_says("-c", "import roost, msgspec, litestar, pycdlib").returncode
                == 0
            ):
                return candidate
        except PermissionError:
            continue
    pytest.skip(f"neither {sys.executable} nor {DISTRIBUTION} can run Roost as uid {uid}")


def processes(uid: int = UID) -> list[int]:
    """The processes of the user."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == uid:
                found.append(int(entry.name))
        except OSError:
            continue
    return found
