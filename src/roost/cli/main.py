"""The entry of the command `roost`: sends `roost run` its own short way, and every other verb to the parsers."""

# A run must not cost more than a blink, so nothing is imported here that a run by the zygote does not need.

import gc
import os
import sys

from roost.cli import VALUED

_GARBAGE = 100_000
"""Objects until the collector looks for rings of them; with Python's 700 it looks a dozen times before a short run begins, for 2 ms."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line (default: the process's own); the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] in VALUED else 1
    if words[index : index + 1] != ["run"]:
        from roost.cli.dispatch import dispatch

        return dispatch(words)
    code = _run(words[:index], words[index + 1 :])
    if arguments is None:
        os._exit(code if _flushed() else code or 125)  # what the interpreter still takes down would only cost time
    return code


def _flushed() -> bool:
    """Whether all that was printed is written."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _run(before: list[str], words: list[str]) -> int:
    """By the zygote when there is one that will, else in this process; `before` stood before the verb."""
    from roost.runtimes import zygote_client

    gc.set_threshold(_GARBAGE)
    _fill_closed_streams()
    try:
        code = None if before else zygote_client.offer(words)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from roost.cli.run import failed

        return failed(error)
    if code is not None:
        return code
    from roost.cli.run import run

    return run(before, words)


def _fill_closed_streams() -> None:
    """A descriptor of 0 to 2 that the caller closed is /dev/null, before another file takes its place and is given to the program."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number; closes at exec
            setattr(sys, ("stdin", "stdout", "stderr")[number], open(nothing, "w" if number else "r"))  # noqa: SIM115 (they stay open)


if __name__ == "__main__":
    sys.exit(main())
