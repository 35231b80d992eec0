"""What commands inside machines give back."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Literal, NamedTuple

from roost.errors import CommandFailed


class Output(NamedTuple):
    """A piece of a running command's output, cut anywhere."""

    stream: Literal["stdout", "stderr"]
    data: bytes

    @property
    def text(self) -> str:
        """The piece as text; what is not UTF-8 becomes U+FFFD (also a character cut in two: join `data` where that matters)."""
        return self.data.decode(errors="replace")


class Completed(NamedTuple):
    """A command that ended: its code (128 + signal when killed) and all it printed."""

    argv: Sequence[str]
    code: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """Standard output as text; what is not UTF-8 becomes U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; what is not UTF-8 becomes U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    def check(self) -> Completed:
        """This, when the code is 0. Raises CommandFailed with the end of standard error otherwise."""
        if self.code:
            why = f"exit code {self.code}: {self.stderr[-2000:].strip() or 'it printed nothing on standard error'}"
            raise CommandFailed(
                f"{shlex.join(self.argv)} failed", why, "see .stdout and .stderr of the result without check()"
            )
        return self


class Progress(NamedTuple):
    """How far something long is: words for people and, where known, the share that is done (0 to 1)."""

    text: str
    fraction: float | None = None
