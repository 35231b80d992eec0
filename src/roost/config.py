"""Settings, read once from the environment: directories, and who runs the daemon."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Config(NamedTuple):
    """Where Roost keeps things. `state` survives a reboot, `run` does not; both are private (0700) to the daemon's uid."""

    state: Path
    run: Path
    debug: bool = False

    @property
    def socket(self) -> Path:
        """The daemon's API socket."""
        return self.run / "api.sock"


def load(environ: Mapping[str, str] = os.environ, uid: int | None = None) -> Config:
    """Settings of a daemon that runs as `uid` (default: the caller).

    `ROOST_STATE` and `ROOST_RUN` win; root uses /var/lib/roost and /run/roost, a user the XDG directories.
    """
    uid = os.getuid() if uid is None else uid
    state, run = _system() if uid == 0 else _user(environ, uid)
    return Config(
        state=Path(environ.get("ROOST_STATE") or state).absolute(),
        run=Path(environ.get("ROOST_RUN") or run).absolute(),
        debug=environ.get("ROOST_DEBUG", "") not in ("", "0"),
    )


def _system() -> tuple[Path, Path]:
    return Path("/var/lib/roost"), Path("/run/roost")


def _user(environ: Mapping[str, str], uid: int) -> tuple[Path, Path]:
    home = Path(environ.get("HOME") or "/nonexistent")
    state = Path(environ.get("XDG_STATE_HOME") or home / ".local/state") / "roost"
    runtime = environ.get("XDG_RUNTIME_DIR")
    # Without a login session there is no runtime directory; /tmp plus the uid is private once it is made 0700 and its owner checked.
    return state, Path(runtime) / "roost" if runtime else Path(f"/tmp/roost-{uid}")
