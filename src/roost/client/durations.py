"""Times as people write them: durations such as 30s, 10m, 1h, 7d, and when something expires."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from roost.errors import Invalid, Problem
from roost.model import duration


def seconds(text: str | float, field: str) -> float:
    """Seconds in `text` ("90", "10m", "7d"), more than 0. Raises Invalid that names `field`."""
    try:
        return duration.parse(text) if isinstance(text, str) else duration.checked(text)
    except ValueError as error:
        raise Invalid("the request is wrong", problems=[Problem(field, str(error))]) from None


def moment_after(expires: str | float | None, now: datetime | None = None) -> str | None:
    """When something expires, as objects write it: a duration from now on ("7d", seconds); an RFC 3339 time and None stay. Raises Invalid."""
    if expires is None or (isinstance(expires, str) and "-" in expires):
        return expires
    moment = (now or datetime.now(UTC)) + timedelta(seconds=seconds(expires, "expires"))
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def stamp(now: datetime | None = None) -> str:
    """A snapshot's name when it was given none: the time it is asked for (UTC), such as 20261123-091500."""
    return (now or datetime.now(UTC)).strftime("%Y%m%d-%H%M%S")
