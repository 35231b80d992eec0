"""What a command or a program that ended gives back."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Self

import msgspec

from roost.errors import CommandFailed

_SAID = 2000
"""Characters of the end of standard error that an error quotes."""


class Completed(msgspec.Struct, frozen=True):
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

    def check(self) -> Self:
        """This, when the code is 0. Raises CommandFailed with what is known of the failure otherwise: mostly the end of standard error."""
        if self.code:
            what = f"{shlex.join(self.argv)} failed"
            raise CommandFailed(what, self._failure(), "see .stdout and .stderr of the result without check()")
        return self

    def _failure(self) -> str:
        return f"exit code {self.code}: {self.stderr[-_SAID:].strip() or 'it printed nothing on standard error'}"
