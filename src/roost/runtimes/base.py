"""The seam of process virtual machines: what a program is, what it may do, and what a runtime makes of that.

`roost run` of a small WebAssembly program must not cost more than a blink, so this module and all that lies on that way import light
modules only: no msgspec, re, argparse, json, asyncio, pathlib (tests/architecture checks it).
"""

from __future__ import annotations

from roost.host.box import Handover
from roost.light import Any, Callable, Mapping, NamedTuple, Protocol

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

LIMIT, FAILED, MISSING, UNKNOWN, TRAPPED = 124, 125, 126, 127, 134
"""Exit codes of `roost run` beside the program's own 0 to 255 and 128+n for signal n: a limit was hit; Roost's own error; recognised but
its runtime is missing; not found or of no known kind; a WebAssembly trap."""


class Found(NamedTuple):
    """What a file is, by its content alone.

    `kind`: wasm, component, wat, elf, class, jar, pyz, exe, clr, script, or what nothing here runs: cwasm, macho, dos, war, apk, zip, ape,
    unknown. `arch` as `uname -m` writes it ("" where it does not matter). `details` holds what else was seen, of plain JSON types, sorted for
    reading: interpreter, imports, main class, class-file version, subsystem. `refusal` says in one sentence why it can not run, with `fix` the
    next step; both are "" for a file that some runtime may run.
    """

    kind: str
    arch: str = ""
    details: Mapping[str, Any] = {}
    refusal: str = ""
    fix: str = ""


class Grant(NamedTuple):
    """A file or directory of the host, absolute, that the program sees at `target`."""

    source: str
    target: str
    writable: bool = False


class Peer(NamedTuple):
    """A TCP service that the program may reach, as given: a name or an address, and a port."""

    host: str
    port: int


class Published(NamedTuple):
    """A TCP port of the host that leads to a port on which the program listens."""

    host_ip: str
    host_port: int
    port: int


class Policy(NamedTuple):
    """What a program may do: nothing, unless it is said here. The same object for flags, SDK, YAML and the daemon.

    Sizes in bytes, times in seconds, None for no limit. `output` bounds stdout and stderr together. `tmp` is the size of /tmp, which is private
    and gone afterwards. `fuel` counts WebAssembly instructions. `gui` gives it the caller's display. `require` names layers without which it
    must not run.
    """

    fs: tuple[Grant, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    net: tuple[Peer, ...] = ()
    publish: tuple[Published, ...] = ()
    memory: int | None = 512 * MiB
    cpu_time: float | None = None
    wall: float | None = None
    processes: int = 256
    files: int = 1024
    output: int | None = None
    tmp: int = 256 * MiB
    fuel: int | None = None
    gui: bool = False
    require: tuple[str, ...] = ()


class Request(NamedTuple):
    """One run: `file` is an absolute path of the host, `arguments` follow it (bytes that are no UTF-8 are surrogate escapes, as in sys.argv),
    `cwd` the directory of the host it was called in ("" for none), `vm` the runtime asked for ("" for the best one), `name` the file as it was
    given, which the program gets as its argv[0] ("": `file`)."""

    file: str
    arguments: tuple[str, ...] = ()
    policy: Policy = Policy()
    cwd: str = ""
    vm: str = ""
    name: str = ""


class Need(NamedTuple):
    """Something a runtime lacks on this host: what, the line that installs it, and the area of `roost doctor AREA --fix` that runs that line."""

    what: str
    install: str
    area: str = ""


class Mount(NamedTuple):
    """A file or directory of the host that exists in the sandbox at `target`.

    `kind`: "read" (files may be executed there), "write" (a whole tree: made, renamed, removed), "overlay" (the host's tree, with changes that
    are thrown away), "device" (a node). `lent` marks what belongs to the caller and not to the system: it is shown as owned by the program.
    """

    source: str
    target: str
    kind: str = "read"
    lent: bool = False


class Command(NamedTuple):
    """What runs in the sandbox: an `argv` with absolute paths of the inside (where argv[0] is none, `program` is the file to execute), or a `call`
    in the sandboxed process itself, whose value is the exit code. `files` are made in the sandbox with this content. `system` shows it the host's
    programs and libraries (/usr, /lib*, /bin, /sbin), read-only. `layers` names what the runtime itself enforces. `calls` names system calls
    beyond the usual ones ("ptrace", "modify_ldt").
    `grace` is the time in seconds from the end of the program to that of what it left running."""

    argv: tuple[str, ...] = ()
    call: Callable[[], int] | None = None
    env: Mapping[str, str] = {}
    mounts: tuple[Mount, ...] = ()
    files: Mapping[str, bytes] = {}
    system: bool = False
    layers: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    handlers: tuple[str, ...] = ()
    """Lines of binfmt_misc: how the kernel starts, in this sandbox, what is not for its processor."""
    program: str = ""
    memory: int | None = None
    """Bytes for the whole sandbox where the runtime needs more than the policy's `memory` for itself; None: the policy's."""
    handover: Handover | None = None
    """The call once more, where it can be handed to a sandbox that was made before."""
    keeps: Mapping[int, tuple[int, int]] = {}
    """Descriptors of ours that a `call` still needs in the sandbox, and the file (device, inode) that each must be of."""


class Ending(NamedTuple):
    """How a program ended. `code` is what `roost run` exits with.

    `reason`: exit, signal, trap, limit, refused, failed. `signal` is its number (0 for none), `limit` the name of the policy's field that was
    reached, `message` one sentence for a person ("" after an ordinary exit).
    """

    code: int
    reason: str = "exit"
    signal: int = 0
    limit: str = ""
    message: str = ""


class Result(NamedTuple):
    """A finished run. `layers` held; `missing` did not, each "name: why". `refusals` name what it was refused and the flag that would allow it.
    `stdout` and `stderr` only where they were captured. `timing` in seconds by phase: detect, prepare, start, run. `usage`: cpu seconds and
    peak memory in bytes."""

    ending: Ending
    runtime: str
    layers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    stdout: bytes = b""
    stderr: bytes = b""
    timing: Mapping[str, float] = {}
    usage: Mapping[str, float] = {}


Progress = Callable[[str], None]
"""Told what takes long, in a few words."""


def silent(_: str) -> None:
    """Progress that nobody watches."""


class Runtime(Protocol):
    """One process VM. A third party brings one by an entry point in the group `roost.runtimes`: a callable without arguments that gives it."""

    name: str
    """wasm, jvm, wine, clr, foreign, native, script: what `--vm` takes."""

    def probe(self) -> Mapping[str, Any]:
        """What of it is installed on this host, for people: paths and versions. Empty when nothing is. Starts nothing that takes long."""

    def score(self, found: Found) -> int:
        """How well it runs such a file: 0 not at all; the highest of all runtimes is taken. Pure."""

    def needs(self, found: Found) -> tuple[Need, ...]:
        """What this host lacks to run it; empty when it can."""

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Any:
        """Do once what makes this and later runs quick (compile, make a prefix, dump a class archive). What it returns goes to `command`.

        What is kept is a private cache: checked before use, written atomically, bounded. Raises RoostError; Unavailable when something of
        `needs` is missing.
        """

    def command(self, found: Found, request: Request, prepared: Any) -> Command:
        """What to run in the sandbox. Raises Invalid when the policy asks for what the runtime can not do."""

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """The ending in the runtime's own terms, from the raw one (reason exit or signal) and the last 4 KiB of stderr (empty unless captured):
        exact exit codes, traps, what went wrong in a sentence. Pure."""
