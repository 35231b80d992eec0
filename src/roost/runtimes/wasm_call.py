"""The call that runs a WebAssembly program in its sandbox, and what it reports of the end; it can be handed to a sandbox made before."""

from __future__ import annotations

import fcntl
import marshal
import mmap
import os

from roost.errors import RoostError
from roost.host import sandbox
from roost.host.box import Receive
from roost.light import Callable, suppress
from roost.runtimes import plan, wasm_kept
from roost.runtimes.base import FAILED, LIMIT, TRAPPED, Command, MiB, Policy, Request
from roost.runtimes.wasm_compile import Artefact, artefact_of_bytes
from roost.runtimes.wasm_engine import Options, Stop, set_trap_handlers, trap_handlers
from roost.runtimes.wasm_program import SMALL, Component, make_linker
from roost.runtimes.wasm_program import Command as Program
from roost.runtimes.wasm_wasi import NOTHING, Guest, Preopen, preopens, root

_OURS = 128 * MiB
"""Bytes that the sandbox holds beside the guest's memory: our interpreter and the library."""
_NOTHING = b"\0asm\1\0\0\0\1\4\1`\0\0\3\2\1\0\5\3\1\0\1\7\12\1\6_start\0\0\n\4\1\2\0\v"
"""A module with a memory and a `_start` that does nothing."""
_ONE_THREAD = {"TOKIO_WORKER_THREADS": "1"}
"""Of the library: it starts one for each processor otherwise, and a short run pays for the beginning and the end of each."""
_SEALS = 0x7  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW: nobody may take away the page that we read


class Report:
    """One page that the sandboxed process shares with us. What stands there was written beside a hostile guest: bounded, and never trusted."""

    def __init__(self, descriptor: int = -1) -> None:
        self._page = mmap.mmap(descriptor, mmap.PAGESIZE)

    def share(self) -> int:
        """A descriptor of the page, for another process, which the caller closes. Nothing may have been written yet."""
        descriptor = os.memfd_create("report", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(descriptor, mmap.PAGESIZE)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self._page = mmap.mmap(descriptor, mmap.PAGESIZE)
        return descriptor

    def write(self, stop: Stop) -> None:
        """For `read`."""
        words = "\0".join((stop.kind, str(stop.code), stop.limit, stop.message)).encode("utf-8", "replace")
        words = words[: mmap.PAGESIZE - 2]
        self._page[2 : 2 + len(words)] = words
        self._page[:2] = len(words).to_bytes(2, "big")

    def read(self) -> Stop | None:
        """What was written, if that can be."""
        size = int.from_bytes(self._page[:2], "big")
        words = self._page[2 : 2 + size].decode("utf-8", "ignore").split("\0")
        if (
            len(words) != 4
            or words[0] not in ("exit", "trap", "limit", "error")
            or words[2] not in ("", "memory", "fuel", "wall")
        ):
            return None
        return Stop(words[0], "".join(filter(str.isprintable, words[3])), 0, words[2])


class Call:
    """Runs a program for one guest; its value is the exit code. Code that is an artefact still is mapped where it runs."""

    def __init__(self, code: Program | Component | Artefact, guest: Guest, report: Report) -> None:
        self._artefact = code if isinstance(code, Artefact) else None
        self._program = None if isinstance(code, Artefact) else code
        self._guest = guest
        self._report = report
        self._actions = trap_handlers()

    def __call__(self) -> int:
        set_trap_handlers(self._actions)
        os.environ.update(_ONE_THREAD)  # ours: what the guest is given stands in `guest`
        try:
            stop = self._mapped().run(self._guest, last=True)
        except RoostError as error:
            stop = Stop("error", f"{error.what}: {error.why}")
        self._report.write(stop)
        return _code(stop)

    def settle(self) -> None:
        """Map the code. Raises RoostError."""
        self._mapped()

    def pack(self) -> tuple[bytes, tuple[int, ...]]:
        """Everything, for `_receive`."""
        artefact, guest = self._artefact, self._guest
        if artefact is None:
            raise RoostError("its code is mapped here already")
        preopens = tuple((each.name, each.inside, each.outside, each.writable) for each in guest.preopens)
        given = (guest.arguments, dict(guest.env), preopens, guest.network, guest.root, guest.memory)
        self._artefact = None
        strategy, fuel, epochs = artefact.options
        words = marshal.dumps((artefact.size, (strategy, fuel, epochs), given))
        return words, (artefact.descriptor, self._report.share())

    def _mapped(self) -> Program | Component:
        if self._artefact is not None:
            artefact, self._artefact = self._artefact, None
            self._program = Program(artefact)
        if self._program is None:
            raise RoostError("the program can not be loaded", "its code was handed to a sandbox that has ended")
        return self._program


def command(call: Callable[[], int], policy: Policy) -> Command:
    """What the sandbox is to hold for a call."""
    return Command(
        call=call,
        files={f"{NOTHING}/.keep": b""},
        layers=("wasi", *(("fuel",) if policy.fuel is not None else ())),
        memory=policy.memory and policy.memory + _OURS,
    )


def stand_by() -> None:
    """Make a sandbox for the next run in this process, which has a policy that allows nothing."""
    policy = Policy()
    empty = _code_of_nothing()
    facts = plan.Facts(os.getpid(), {0: 0, 1: 1, 2: 2})
    actions = trap_handlers()

    def ready() -> Receive:
        wasm_kept.forget()
        _warm_up(empty, actions)
        make_linker(Options())
        return lambda words, descriptors: _receive(words, descriptors, actions)

    sandbox.prepare(plan.box(Request("", policy=policy), command(lambda: 0, policy), facts), ready)
    with suppress(RoostError, OSError):
        _rehearse()


def suits(artefact: Artefact, policy: Policy) -> bool:
    """Whether such a run is for the sandbox of `stand_by`."""
    usual = artefact.options == Options() and not artefact.component and artefact.size <= SMALL
    return usual and sandbox.prepared() and policy._replace(env=()) == Policy()


def _code_of_nothing() -> bytes:
    artefact = artefact_of_bytes(_NOTHING, Options())
    try:
        return os.pread(artefact.descriptor, artefact.size, 0)
    finally:
        os.close(artefact.descriptor)


def _rehearse() -> None:
    """Do what comes before the sandbox of a run, for the same reason as `_warm_up`."""
    from roost.runtimes import detect, execution, policy

    descriptor = os.memfd_create("nothing", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, _NOTHING)
        parsed = policy.parse([f"/proc/self/fd/{descriptor}", "out"])
        request = Request(parsed.file, parsed.arguments, parsed.policy, "/", name=parsed.file)
        found = detect.detect(request.file)
        runtime = execution.choose(found)
        made = runtime.command(found, request, runtime.prepare(found, request))
        facts = plan.Facts(os.getpid(), {0: 0, 1: 1, 2: 2})
        handover = plan.box(request, made, facts).handover
        for number in () if handover is None else handover.pack()[1]:
            os.close(number)
    finally:
        os.close(descriptor)


def _warm_up(code: bytes, actions: dict[int, bytes]) -> None:
    """Go once all the way that a program will go: a fork copies each page when it is first written, and that takes longer than the rest."""
    descriptor = os.memfd_create("nothing", os.MFD_CLOEXEC)
    os.write(descriptor, code)
    guest = Guest((b"nothing",), plan.ENVIRONMENT, preopens((), "/"), root=root(), memory=MiB)
    call = Call(Artefact(descriptor, False, Options(), len(code)), guest, Report())
    _receive(*call.pack(), actions)


def _receive(words: bytes, descriptors: tuple[int, ...], actions: dict[int, bytes]) -> int:
    """In a sandbox that was made before: run what was packed."""
    set_trap_handlers(actions)
    size, options, (arguments, env, preopens, network, root, memory) = marshal.loads(words)
    opened = tuple(Preopen(*each) for each in preopens)
    guest = Guest(arguments, env, opened, network=network, root=root, memory=memory)
    report = Report(descriptors[1])
    os.close(descriptors[1])
    return Call(Artefact(descriptors[0], False, Options(*options), size), guest, report)()


def _code(stop: Stop) -> int:
    return {"exit": stop.code & 0xFF, "trap": TRAPPED, "limit": LIMIT}.get(stop.kind, FAILED)
