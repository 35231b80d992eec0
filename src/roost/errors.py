"""The errors a caller can meet: each is something a caller does differently, and each says what, why and how to fix it."""

from __future__ import annotations

from roost.light import Iterable, NamedTuple


class Problem(NamedTuple):
    """One thing wrong with a document: where (`spec.publish[0].host_port`) and what."""

    path: str
    message: str


class RoostError(Exception):
    """Base of every error Roost raises on purpose.

    `what` names the object and what did not happen, `why` the reason with the offending value, `fix` the exact next
    step. `code` is stable and travels over the API.
    """

    code = "failed"

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class NotFound(RoostError):
    """No such object, or not one the caller may know of."""

    code = "not-found"


class Conflict(RoostError):
    """The object is not in the state, or not at the revision, that the request supposes."""

    code = "conflict"


class Invalid(RoostError):
    """The request is wrong; `problems` holds every wrong field at once."""

    code = "invalid"

    def __init__(self, what: str, why: str = "", fix: str = "", problems: Iterable[Problem] = ()) -> None:
        self.problems = tuple(Problem(*problem) for problem in problems)
        if self.problems and not why:
            why = "; ".join(f"{path}: {message}" if path else message for path, message in self.problems)
        super().__init__(what, why, fix)


class Forbidden(RoostError):
    """The caller may see the object but not do this to it."""

    code = "forbidden"


class QuotaExceeded(RoostError):
    """The project has used up what it was given."""

    code = "quota-exceeded"


class Unavailable(RoostError):
    """The host lacks something (a program, memory, disk space, a permission); `roost doctor` explains."""

    code = "unavailable"


class NotStarted(RoostError):
    """The operation did not begin, so nothing happened: a retry is safe."""

    code = "not-started"


class OutcomeUnknown(RoostError):
    """The operation may have happened: look before you retry."""

    code = "outcome-unknown"


class CommandFailed(RoostError):
    """A command inside a guest ended with a code other than 0 (`Completed.check`)."""

    code = "command-failed"


BY_CODE: dict[str, type[RoostError]] = {
    error.code: error
    for error in (
        RoostError, NotFound, Conflict, Invalid, Forbidden, QuotaExceeded, Unavailable, NotStarted, OutcomeUnknown, CommandFailed,
    )
}  # fmt: skip
"""Every error by its code, so that a client raises what the server raised."""
