"""Makes the changes that `doctor_network` proposes: by the programs of whom the rules belong to, and sysctls in a file of our own."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator
from pathlib import Path

from roost.errors import RoostError
from roost.host import files, system
from roost.host.doctor_network import SETTINGS, Remedy

_SECONDS, _PRINTED, _TOLD = 60.0, 1 << 20, 300
_LIMIT = 1 << 20
_HEAD = "# Written by `roost doctor network --fix`; without this file the host is as it was after its next start."


def apply(remedy: Remedy, settings: Path = Path(SETTINGS)) -> Iterator[str]:
    """Make the change, and say what was done, one after the other. Raises RoostError at the first that can not be done."""
    for command in remedy.commands:
        yield _perform(command)
    if remedy.settings:
        try:
            _keep(remedy.settings, settings)
            yield f"wrote {settings}"
            for path, value in remedy.settings:
                Path("/proc/sys", path).write_text(value)
                yield f"set {path} to {value}"
        except OSError as error:
            raise RoostError("a setting of the kernel was not changed", str(error), "look at what keeps it") from error


def _perform(command: tuple[str, ...]) -> str:
    line = shlex.join(command)
    done = asyncio.run(system.run(list(command), timeout=_SECONDS, limit=_PRINTED))
    if done.code:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[:_TOLD]
        raise RoostError("the host was not changed", f"`{line}` ended with code {done.code}: {said}")
    return f"ran {line}"


def _keep(wanted: tuple[tuple[str, str], ...], settings: Path) -> None:
    """Write the sysctls down; others that are there stay."""
    try:
        lines = files.read_bounded(settings, _LIMIT).decode().splitlines()
    except FileNotFoundError:
        lines = [_HEAD]
    paths = {path for path, _ in wanted}
    lines = [line for line in lines if line.partition("=")[0].strip() not in paths]
    lines += [f"{path} = {value}" for path, value in wanted]
    settings.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(settings, "".join(f"{line}\n" for line in lines).encode(), 0o644)
