"""The caller's display for a program that may open windows (`gui` of its policy)."""

from __future__ import annotations

import os

from roost.errors import Invalid
from roost.light import NamedTuple
from roost.runtimes.base import Mount, Request

_SOCKETS = "/tmp/.X11-unix"
_KEY = "/tmp/.Xauthority"
_FONTS = (
    "/etc/fonts",
    "/var/cache/fontconfig",
)  # what fontconfig knows of the fonts in /usr; without it each program takes inventory


class Display(NamedTuple):
    """What a program needs to open windows: variables of its environment, and what it must see of the host."""

    env: dict[str, str]
    mounts: tuple[Mount, ...]


def fonts() -> tuple[Mount, ...]:
    """What a program needs to draw text, whether on a display or into a file."""
    return tuple(Mount(path, path) for path in _FONTS if os.path.isdir(path))


def lend(request: Request, *, windows: bool) -> Display | None:
    """The caller's X display, where the policy gives it; None for a program that neither has nor needs one (`windows`).

    Raises Invalid when it opens windows and may not, and when there is no display to give.
    """
    name = os.path.basename(request.file)
    if not request.policy.gui:
        if windows:
            raise Invalid(
                f"{name} opens windows", "a program has no display unless it is given one", f"roost run --gui {name}"
            )
        return None
    display = os.environ.get("DISPLAY", "")
    number = display.removeprefix(":").partition(".")[0]
    socket = f"{_SOCKETS}/X{number}"
    if not number.isdecimal() or not os.path.exists(socket):
        why = f"DISPLAY is {display}, which is no display of this host" if display else "DISPLAY is not set"
        raise Invalid(
            f"{name} can not open windows", why, f"run it in a graphical session, or: xvfb-run roost run --gui {name}"
        )
    env, mounts = {"DISPLAY": display}, [Mount(socket, socket), *fonts()]
    key = os.environ.get("XAUTHORITY") or os.path.join(os.path.expanduser("~"), ".Xauthority")
    if os.path.isfile(key):
        env["XAUTHORITY"] = _KEY
        mounts.append(Mount(key, _KEY, lent=True))
    return Display(env, tuple(mounts))
