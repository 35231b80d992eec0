"""Times as people write them: durations such as 30s, 10m, 1h, 7d, and when something expires."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from roost.errors import Invalid, Problem

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
LONGEST = 366 * 86400.0
"""Seconds that a duration may have: a leap year."""


def seconds(text: str | float, field: str) -> float:
    """Seconds in `text` ("90", "10m", "7d"), more than 0. Raises Invalid that names `field`."""
    match = _DURATION.fullmatch(text.strip()) if isinstance(text, str) else None
    value = float(match[1]) * _UNITS[match[2]] if match else text
    if isinstance(value, str) or not 0 < value <= LONGEST:
        problem = Problem(field, f"{text!r} is not a duration: write 30s, 10m, 1h or 7d, at most 366d")
        raise Invalid("the request is wrong", problems=[problem])
    return value


def moment_after(expires: str | float | None, now: datetime | None = None) -> str | None:
    """When something expires, as objects write it: a duration from now on ("7d", seconds); an RFC 3339 time and None stay. Raises Invalid."""
    if expires is None or (isinstance(expires, str) and not _DURATION.fullmatch(expires.strip()) and "-" in expires):
        return expires
    moment = (now or datetime.now(UTC)) + timedelta(seconds=seconds(expires, "expires"))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp(now: datetime | None = None) -> str:
    """A snapshot's name when it was given none: the time it is asked for (UTC), such as 20261123-091500."""
    return (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
