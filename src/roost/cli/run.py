"""`roost run`: a program of any kind in a sandbox, with the caller's input, output, signals and exit code.

Exit codes: the program's own; 124 a limit was hit; 125 Roost's own error; 126 its runtime is missing; 127 not found or of no known kind;
128 and the number of the signal that ended it; 134 a WebAssembly trap. Only what every run needs is imported at once: a small WebAssembly
program must not cost more than a blink.
"""

# pathlib would cost a run milliseconds:
# ruff: noqa: PTH109, PTH118

from __future__ import annotations

import os
import sys

from roost.errors import RoostError
from roost.light import Any, Callable, import_module, suppress
from roost.runtimes import detect, execution, policy
from roost.runtimes.base import Ending, Found, Progress, Request, Result, silent
from roost.runtimes.policy import Parsed

_ZYGOTE = (sys.executable, "-P", "-c", "from roost.cli.run import serve; serve()")


def run(before: list[str], words: list[str]) -> int:
    """Run a command line in this process; the exit code. `before` stood before the verb."""
    try:
        if before:
            words = _with_globals(before, words)
        parsed = policy.parse(words)
    except RoostError as error:
        return _failed(error, _descriptor(words))
    except FileNotFoundError:
        gone = RoostError("nothing was run", "the current directory was removed", "change to another one: cd")
        return _failed(gone, _descriptor(words))
    if parsed.options["help"]:
        from roost.cli.dispatch import print_help

        print_help("run")
        return 0
    if parsed.options["detach"]:
        from roost.cli.programs import detach

        return detach(parsed)
    return perform(parsed)


def _accept(words: list[str]) -> tuple[str, Callable[[], int]] | None:
    """File and run of the words if they are a plain run of a file, for the zygote."""
    try:
        parsed = policy.parse(words)
    except RoostError:
        return None
    options = parsed.options
    if any(options[name] for name in ("help", "detach", "format")):
        return None
    if options["learn"] is not None or options["status_json"] is not None:
        return None
    path = os.path.join(os.getcwd(), parsed.file)
    found = detect.detect(path)
    if found.refusal or (found.kind != "wasm" and (os.isatty(1) or os.isatty(2))):
        return None
    return path, lambda: perform(parsed, found)


def serve() -> None:
    """Be the zygote: load what runs need, and run them for whoever comes."""
    from roost.runtimes import spare, wasm_call, wasm_kept, zygote

    for name in _LATER:
        import_module(name)
    wasm_kept.prepare()

    def accept(words: list[str]) -> zygote.Accepted | None:
        accepted = _accept(words)
        return zygote.Accepted(*accepted) if accepted else None

    zygote.serve(zygote.Work(accept, wasm_kept.keep, wasm_call.stand_by, spare.stand_by))


_LATER = (
    *("roost.cli.render", "roost.host.binaries", "roost.host.packages"),
    *(f"roost.runtimes.detect_{kind}" for kind in ("class", "elf", "pe", "text", "wasm", "zip")),
    *(f"roost.runtimes.{name}" for name in ("clr", "doors", "foreign", "jvm", "native", "script", "wasm", "wine")),
)
"""What a run imports only when it needs it."""


def perform(parsed: Parsed, found: Found | None = None) -> int:
    """Run it and say how it went; the exit code, also of what went wrong. `found` is what the file is, where that is known."""
    options = parsed.options
    status: int | None = options["status_json"]
    try:
        _check(status)
        result = _run(parsed, found)
        _print(result, parsed)
        if status is not None:
            _tell(status, execution.document(result))
        code = result.ending.code
        if found is None:
            _prepare_next(result)
    except RoostError as error:
        return _failed(error, status)
    except KeyboardInterrupt:
        return _failed(RoostError("interrupted"), status, 130)
    except Exception as error:
        return failed(error, status)
    return code


def failed(error: Exception, status: int | None = None) -> int:
    """Say what nobody expected; the exit code for it."""
    if not isinstance(error, RoostError):
        from roost.cli.dispatch import explained

        error = explained(error, "run")
    return _failed(error, status)


def _run(parsed: Parsed, found: Found | None) -> Result:
    options = parsed.options
    cwd = os.getcwd()
    request = Request(
        os.path.join(cwd, parsed.file), parsed.arguments, parsed.policy, cwd, options["vm"] or "", parsed.file
    )
    if options["learn"] is not None:
        from roost.runtimes import learning

        return learning.learn(request, options["learn"])
    capture = options["format"] in ("json", "yaml")
    return execution.run(request, found=found, capture=capture, progress=_progress(options))


def _progress(options: dict[str, Any]) -> Progress:
    """On a terminal, what takes long is told."""
    if options["quiet"] or not sys.stderr.isatty():
        return silent
    return lambda text: print(f"roost: {text}", file=sys.stderr, flush=True)


def _print(result: Result, parsed: Parsed) -> None:
    """What a person should know, on standard error; with -o the result on standard output."""
    form = parsed.options["format"]
    if form in ("json", "yaml"):
        from roost.cli import render

        streams = {name: getattr(result, name).decode(errors="replace") for name in ("stdout", "stderr")}
        render.show(execution.document(result) | streams, form, render.Table("results", ()))
        sys.stdout.flush()
    if result.ending.message:
        _say(f"roost: {result.ending.message}")
    if result.ending.code:
        for refusal in result.refusals:
            _say(f"roost: refused: {refusal}")
    if not parsed.options["quiet"]:
        for layer in result.missing:
            if layer.startswith(_GRAVE):
                _say(f"roost: warning: without {layer}")


_GRAVE = ("minimal root", "seccomp", "no new privileges", "network namespace")
"""Layers whose absence is told with every run; of the others the status document speaks."""


def _say(text: str) -> None:
    """A line on standard error, in which names that others chose do nothing to a terminal; the terminal may be gone by now."""
    from roost.cli import render

    with suppress(OSError):
        print(render.clean(text).replace("\n", " "), file=sys.stderr, flush=True)


def _failed(error: RoostError, status: int | None, code: int = 0) -> int:
    """Say what went wrong, to people and to the status descriptor; the exit code for it."""
    code = code or execution.exit_code(error)
    ending = Ending(code, "failed", message=error.what)
    document = execution.document(Result(ending, "")) | {"error": {name: getattr(error, name) for name in _ERROR}}
    try:
        _tell(status, document)
    except RoostError as second:
        error = second
    if os.environ.get("ROOST_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    from roost.cli import render

    with suppress(OSError):
        render.print_error(error)
    return code


_ERROR = ("code", "what", "why", "fix")


def _check(status: int | None) -> None:
    """Raises RoostError, before anything runs, when nobody can be told how it ends."""
    if status is None:
        return
    import fcntl

    try:
        if fcntl.fcntl(status, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(0, "it is open for reading only")
    except OSError as error:
        raise _untold(status, error) from error


def _untold(status: int, error: OSError) -> RoostError:
    fix = f"open it for writing, as in {status}>status.json"
    return RoostError(f"the status can not be written to descriptor {status}", error.strerror or "", fix)


def _tell(status: int | None, document: dict[str, Any]) -> None:
    """One line of JSON to the descriptor, in one piece. Raises RoostError when nobody can take it."""
    if status is None:
        return
    import json

    data = json.dumps(document, ensure_ascii=True).encode() + b"\n"
    try:
        while data:
            data = data[os.write(status, data) :]
    except OSError as error:
        raise _untold(status, error) from error


def _descriptor(words: list[str]) -> int | None:
    """The descriptor for the status on a command line that can not be read as a whole."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name == "--status-json":
            value = value if equals else "".join(words[index + 1 : index + 2])
            return int(value) if value.isdecimal() and int(value) < 1 << 20 else None
        if not word.startswith("-"):
            continue
    return None


def _with_globals(before: list[str], words: list[str]) -> list[str]:
    """Global options are the same before and after the verb. May print help, or the version, and exit."""
    from roost.cli.dispatch import globals_of

    said = vars(globals_of(before))
    valued = {"-o": said["output"], "-p": said["project"], "--host": said["host"]}
    switches = {"-q": said["quiet"], "-y": said["yes"]}
    pairs = [word for name, value in valued.items() if value for word in (name, str(value))]
    return [*pairs, *(name for name, value in switches.items() if value), *words]


def _prepare_next(result: Result) -> None:
    """The next run finds a zygote, where the runtime of WebAssembly is there, for which it is made."""
    if os.environ.get("ROOST_ZYGOTE") != "0":
        from roost.runtimes import zygote

        zygote.start(_ZYGOTE)
