# Derived from aio/execution.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""A command running inside a machine, and the machine's console: streams over a WebSocket."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Self

from roost.client.blocking.channel import Channel
from roost.client.blocking.session import Session
from roost.client.protocol import Lost, path
from roost.client.results import Output
from roost.client.websocket import PIECE, STDIN, Closed, Ended, Received, Start, exec_message
from roost.errors import NotStarted, OutcomeUnknown, RoostError
from roost.model.completed import Completed

CAPTURE = 64 << 20
"""Bytes of output that `run` keeps before it gives up: longer output is for `stream`."""

AHEAD = 512 << 10
"""Bytes of input that may wait for the daemon."""

Input = bytes | str | Iterable[bytes] | None


class Execution:
    """A running command: iterate over its output (`Output` pieces); `code` is known when that ends. Leaving it early kills the command."""

    def __init__(self, session: Session, place: tuple[str, str], start: Start, given: Input = None) -> None:
        self._session = session
        self._place = place
        self._start = start
        self._given = _pieces(given) if given is not None else None
        self._opened: Channel | None = None
        self.code: int | None = None

    def open(self) -> Self:
        """Start the command, unless it is. Raises NotFound, Conflict (the machine does not run), NotStarted."""
        if self._opened is None:
            channel = Channel.open(
                self._session.connection(fresh=True), path("machines", *self._place, "exec")
            )
            self._opened = channel
            channel.queue(channel.core.text(self._start.message()))
            try:
                channel.flush()
            except Lost as error:
                self.close()
                raise NotStarted(f"{self._start.argv[0]!r} was not started", str(error), "try again") from error
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Output:
        """The next piece. Raises the daemon's error, or OutcomeUnknown when the connection is lost."""
        self.open()
        while self.code is None:
            if self._channel.received:
                output = self._take(self._channel.received.popleft())
                if output is not None:
                    return output
            else:
                self._feed()
                self._exchange()
        self.close()
        raise StopIteration

    def turn(self, also: Collection[int] = ()) -> tuple[list[Output], frozenset[int]]:
        """For programs that wait for more than the guest: returns at the next output or end, when one of the descriptors `also` can be
        read, or when input is no longer `congested`; what was printed, and which of those can."""
        self.open()
        congested = self.congested
        while self.code is None and not self._channel.received:
            happened = self._exchange(also)
            if happened or congested != self.congested:
                return [], happened
        outputs: list[Output] = []
        while self.code is None and self._channel.received:
            output = self._take(self._channel.received.popleft())
            if output is not None:
                outputs.append(output)
        return outputs, frozenset()

    @property
    def congested(self) -> bool:
        """Whether so much input waits for the guest that more should not be read yet."""
        return self._opened is not None and self._opened.waiting >= AHEAD

    def feed(self, data: bytes | None) -> None:
        """Queue standard input, or its end, for the next `turn`."""
        core = self._channel.core
        if data is None:
            self._channel.queue(core.text({"eof": True}))
        for begin in range(0, len(data or b""), PIECE):
            self._channel.queue(core.binary(bytes([STDIN]) + (data or b"")[begin : begin + PIECE]))

    def write(self, data: bytes) -> None:
        """Feed standard input (needs `stdin=True`); waits while the guest takes nothing. Raises OutcomeUnknown."""
        for begin in range(0, len(data), PIECE):
            self._channel.queue(self._channel.core.binary(bytes([STDIN]) + data[begin : begin + PIECE]))
            self._flush()

    def end_input(self) -> None:
        """End of standard input."""
        self._tell({"eof": True})

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._tell({"signal": number})

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size."""
        self._tell({"resize": [rows, columns]})

    def completed(self, limit: int = CAPTURE) -> Completed:
        """All of the output, at most `limit` bytes of each stream, and the code."""
        kept = {"stdout": bytearray(), "stderr": bytearray()}
        for output in self:
            kept[output.stream] += output.data
            if len(kept[output.stream]) > limit:
                self.close()
                fix = "iterate over machine.stream(...) instead of machine.run(...)"
                raise RoostError(
                    f"{self._start.argv[0]!r} was killed", f"it printed more than {limit} bytes on {output.stream}", fix
                )
        assert self.code is not None
        return Completed(self._start.argv, self.code, bytes(kept["stdout"]), bytes(kept["stderr"]))

    def close(self) -> None:
        """Hang up: the command is killed if it still runs. May be called twice."""
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def _channel(self) -> Channel:
        if self._opened is None:
            raise NotStarted(
                f"{self._start.argv[0]!r} was not started", "nobody asked for its output", "iterate, or open() it first"
            )
        return self._opened

    def _take(self, received: Received) -> Output | None:
        if isinstance(received, Closed):
            raise self._unknown(f"the daemon closed the connection: {received.reason or received.code}")
        if not isinstance(received, bytes | str):
            return None
        message = exec_message(received)
        if isinstance(message, Ended):
            self.code = message.code
            return None
        return Output(*message) if message is not None else None

    def _feed(self) -> None:
        """Queue input while there is room."""
        while self._given is not None and self._channel.waiting < AHEAD:
            piece = next(self._given, None)
            if piece is None:
                self._given = None
                self._channel.queue(self._channel.core.text({"eof": True}))
            elif piece:
                self._channel.queue(self._channel.core.binary(bytes([STDIN]) + piece))

    def _exchange(self, also: Collection[int] = ()) -> frozenset[int]:
        try:
            return self._channel.exchange(None, also)
        except Lost as error:
            raise self._unknown(str(error)) from error

    def _tell(self, message: dict[str, object]) -> None:
        self._channel.queue(self._channel.core.text(message))
        self._flush()

    def _flush(self) -> None:
        try:
            self._channel.flush()
        except Lost as error:
            raise self._unknown(str(error)) from error

    def _unknown(self, why: str) -> OutcomeUnknown:
        self.close()
        return OutcomeUnknown(
            f"what became of {self._start.argv[0]!r} is not known",
            why,
            "look inside the machine before you run it again",
        )


class Console:
    """The serial console: iterate for what was printed lately and then live; `write` types."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def open(cls, session: Session, place: tuple[str, str]) -> Self:
        """Attach to the console of the machine at `place`. Raises NotFound, Conflict."""
        return cls(Channel.open(session.connection(fresh=True), path("machines", *place, "console")))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """What was printed. Ends with the machine."""
        while True:
            while self._channel.received:
                received = self._channel.received.popleft()
                if isinstance(received, Closed):
                    raise StopIteration
                if isinstance(received, bytes):
                    return received
            try:
                self._channel.exchange()
            except Lost:
                raise StopIteration from None

    def turn(self, also: Collection[int] = ()) -> tuple[bytes | None, frozenset[int]]:
        """Returns at the next output (None: the end), or when one of the descriptors `also` can be read, with which of those can."""
        try:
            happened = self._channel.exchange(None, also) if not self._channel.received else frozenset()
        except Lost:
            return None, frozenset()
        printed = b""
        while self._channel.received:
            received = self._channel.received.popleft()
            if isinstance(received, Closed):
                if not printed:
                    return None, happened
                self._channel.received.appendleft(received)
                break
            printed += received if isinstance(received, bytes) else b""
        return printed, happened

    def write(self, data: bytes) -> None:
        """Type. Raises OutcomeUnknown when the connection is lost."""
        self._channel.queue(self._channel.core.binary(data))
        try:
            self._channel.flush()
        except Lost as error:
            raise OutcomeUnknown("not everything was typed", str(error), "attach to the console again") from error

    def close(self) -> None:
        """Hang up; the machine does not notice."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pieces(given: bytes | str | Iterable[bytes]) -> Iterator[bytes]:
    """The input in pieces that fit a message."""
    if isinstance(given, str):
        given = given.encode()
    for whole in (given,) if isinstance(given, bytes) else given:
        for begin in range(0, len(whole), PIECE):
            yield whole[begin : begin + PIECE]
