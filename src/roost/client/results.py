"""What commands inside machines give back."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Output(NamedTuple):
    """A piece of a running command's output, cut anywhere."""

    stream: Literal["stdout", "stderr"]
    data: bytes

    @property
    def text(self) -> str:
        """The piece as text; what is not UTF-8 becomes U+FFFD (also a character cut in two: join `data` where that matters)."""
        return self.data.decode(errors="replace")


class Progress(NamedTuple):
    """How far something long is: words for people and, where known, the share that is done (0 to 1)."""

    text: str
    fraction: float | None = None
