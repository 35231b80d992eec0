"""One sandboxed program with all that belongs to it on our side: descriptors, pipes, connections, what it is refused, its supervisor."""

from __future__ import annotations

import os

from roost.errors import NotFound, NotStarted, Unavailable
from roost.host import sandbox
from roost.host.box import Box
from roost.host.sandbox import Boxed
from roost.light import Any, Callable, ExitStack
from roost.runtimes import plan, usage
from roost.runtimes.base import Command, Ending, Policy, Request
from roost.runtimes.late_group import LateGroup
from roost.runtimes.loop import READ, Loop, Ready
from roost.runtimes.refusals import Connects, Notifier, Refusals, hidden_files
from roost.runtimes.signals import Signals
from roost.runtimes.streams import Budget, Stream
from roost.runtimes.supervision import Bounds, End, Supervisor

CAPTURED = 64 << 20
"""Bytes of output that are kept at most where the policy sets no limit."""

_GROUP = "control group"

Observe = Callable[[Notifier], Ready]
"""Makes what answers the system calls that are reported of a program that is watched to learn its policy."""


class Session:
    """A context: leaving it ends the program, if it still runs, and leaves nothing. Everything here is called in one thread."""

    def __init__(self, request: Request, command: Command, fds: tuple[int, int, int], *, capture: bool = False) -> None:
        """`fds` are its standard descriptors; one that is not open becomes /dev/null. Raises RoostError."""
        self.layers: tuple[str, ...] = ()
        self.missing: tuple[str, ...] = ()
        _check(request)
        self._request = request
        self._command = command
        self._loop = Loop()
        self._refusals = Refusals()
        self._closing = ExitStack()
        self._pinned = _pin(request.policy)
        self._fds = [self._usable(descriptor) for descriptor in fds]
        self._capture = capture
        self._streams: list[Stream] = []
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def start(self, started: Callable[[Boxed], None] | None = None, observe: Observe | None = None) -> None:
        """Start it; `started` is told. Raises RoostError when it did not begin."""
        policy = self._request.policy
        published = self._publish(policy)
        self._make_streams(policy)
        box = plan.box(self._request, self._command, self._facts("learn" if observe else "connect"))
        signals = self._closing.enter_context(Signals())  # before the program can say that it is ready for one
        try:
            boxed = sandbox.start(box)
        except Unavailable as error:  # a required layer: no runtime is missing, and nothing began
            raise NotStarted(error.what, error.why, error.fix) from error
        bounds = self._bounds(box, boxed)
        self._supervisor = supervisor = Supervisor(self._loop, boxed, bounds, self._streams, signals)
        self._closing.callback(supervisor.close)
        for stream in self._streams:
            stream.started()
        if box.doors or published:
            self._open_doors(box, boxed, supervisor, published)
        self._watch_calls(boxed, observe)
        watchdog = bounds.memory is not None or bounds.cpu_time is not None
        self.layers = (*boxed.layers, *self._command.layers, *((plan.WATCHDOG,) if watchdog else ()))
        self.missing = boxed.missing
        if boxed.group is None:
            limits = box.limits
            room = None if limits.memory is None else limits.memory + box.tmp
            supervisor.late = LateGroup(self._loop, boxed.pid, room, limits.processes)
        if started is not None:
            started(boxed)

    def finish(self) -> End:
        """Wait for its end; then `layers` and `missing` tell what held at the end."""
        if self._supervisor is None:
            raise RuntimeError("the session was not started")
        late, end = self._supervisor.late, self._supervisor.run()
        if late is not None and late.joined:
            self.layers = (*self.layers, _GROUP)
        elif late is not None:
            self.missing = (*self.missing, f"{_GROUP}: {late.missing}")
        return end

    def captured(self) -> tuple[bytes, bytes]:
        """What it printed to stdout and stderr, where that was kept."""
        if not self._capture:
            return b"", b""
        output, errors = (bytes(stream.kept) for stream in self._streams)
        return output, errors

    def refused(self, ending: Ending) -> tuple[str, ...]:
        """What it was refused; after a failure also the files that its arguments name and that it did not see."""
        request = self._request
        if ending.code:
            for line in hidden_files(request.arguments, request.cwd, request.policy.fs, os.path.exists):
                self._refusals.note(line)
        return tuple(self._refusals.lines)

    def _usable(self, descriptor: int) -> int:
        """It, or /dev/null for one that is not open."""
        try:
            os.fstat(descriptor)
        except OSError:
            descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._closing.callback(os.close, descriptor)
        return descriptor

    def _make_streams(self, policy: Policy) -> None:
        if policy.output is None and not self._capture:
            return
        budget = Budget(CAPTURED if policy.output is None else policy.output, self._reach_output)
        for number in (1, 2):
            stream = Stream(self._loop, budget, -1 if self._capture else self._fds[number])
            self._closing.callback(stream.close)
            self._streams.append(stream)
            self._fds[number] = stream.wants

    def _reach_output(self) -> None:
        if self._supervisor is not None:
            self._supervisor.reach("output")

    def _facts(self, watch: str) -> plan.Facts:
        return plan.Facts(
            pid=os.getpid(),
            fds=dict(enumerate(self._fds)),
            tty=any(map(os.isatty, self._fds)),
            pinned=self._pinned,
            watch=watch,
            certificates=os.path.isdir(plan.CERTIFICATES),
        )

    def _bounds(self, box: Box, boxed: Boxed) -> Bounds:
        """What the kernel does not hold. A `call` begins with the memory of this process."""
        policy, memory = self._request.policy, box.limits.memory
        if "control group" in boxed.layers and plan.WATCHDOG not in policy.require:
            memory = None
        if memory is not None and box.call is not None:
            memory += usage.memory([os.getpid()], memory)
        return Bounds(policy.wall, memory, policy.cpu_time)

    def _publish(self, policy: Policy) -> list[tuple[Any, int]]:
        """Listening sockets of the host and the ports inside. Before the program runs: it may say at once that it can be reached."""
        if not policy.publish:
            return []
        from roost.runtimes.doors import listen  # most programs have no network, and this costs milliseconds

        return [(self._closing.enter_context(listen(each)), each.port) for each in policy.publish]

    def _open_doors(self, box: Box, boxed: Boxed, supervisor: Supervisor, published: list[tuple[Any, int]]) -> None:
        from roost.runtimes.doors import Doors

        doors = Doors(self._loop, supervisor.ask)
        self._closing.callback(doors.close)
        supervisor.answered = doors.answered
        doors.lead_out(boxed.listeners, box.doors)
        for listener, port in published:
            doors.publish(listener, port)

    def _watch_calls(self, boxed: Boxed, observe: Observe | None) -> None:
        if boxed.notify < 0:
            return
        self._closing.callback(os.close, boxed.notify)
        names = {address for found in self._pinned.values() for address in found}
        notifier = Notifier(boxed.notify)
        ready = observe(notifier) if observe is not None else Connects(notifier, self._refusals, names).ready
        self._loop.watch(
            boxed.notify, READ, lambda events: ready(events) if events & READ else self._loop.forget(boxed.notify)
        )


def _check(request: Request) -> None:
    """What the policy lends must be there. Raises NotFound."""
    for grant in request.policy.fs:
        if not os.path.exists(grant.source):
            fix = f"mkdir -p {grant.source}" if grant.writable else f"ls -ld {grant.source}"
            raise NotFound(f"--fs {grant.source}:{grant.target} is not possible", f"{grant.source} does not exist", fix)


def _pin(policy: Policy) -> dict[str, tuple[str, ...]]:
    if not policy.net:
        return {}
    from roost.runtimes import doors

    return doors.pin(policy.net)
