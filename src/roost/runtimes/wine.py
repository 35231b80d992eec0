"""Windows programs for x86_64, under Wine: each with a Windows of its own that is gone afterwards."""

from __future__ import annotations

import os

from roost.errors import Unavailable
from roost.host import packages
from roost.light import Any, Mapping
from roost.runtimes import display, program_file, wine_prefix
from roost.runtimes.base import Command, Ending, Found, MiB, Mount, Need, Progress, Request, silent
from roost.runtimes.display import Display
from roost.runtimes.wine_prefix import CRASHED, PREFIX, Installation

_SCORE = 50
_OWN_MEMORY = 128 * MiB  # of the server and what Wine keeps in each process
_NO_DIALOGS = "mscoree,mshtml,winemenubuilder.exe="
_NO_SERVICES = "wineboot.exe," + _NO_DIALOGS
"""Without `wineboot` no services start, which takes 200 ms of 250. What they do (devices, printers, windows) a console program rarely asks for."""
_WATCH = rf"""
exec 3<&0
"$@" <&3 3<&- &
program=$! asked=
trap 'asked=1; test -t 0 || kill -INT $program' INT
while wait $program 2>/dev/null; code=$?; kill -0 $program 2>/dev/null; do :; done
end() {{ trap - INT; ulimit -c 0; kill -"$1" $$; }}
if test -e {CRASHED}; then
  case $code in
    5|6|253) end SEGV;;
    14[1-9]) end FPE;;
    29|150) end ILL;;
    3|4) end TRAP;;
    99) end ABRT;;
  esac
fi
case $asked$code in
  10) end INT;;
  *152) test "$(ulimit -t)" = unlimited || end XCPU;;
esac
exit $code
"""
"""A process has 8 bits for its end and Windows 32: of C0000005, an access violation, 5 is left, and Ctrl-C becomes 0. Together with the mark of an
unhandled exception the low byte tells which one it was, and the program ends by the signal that it would have ended by on Linux. On a terminal
the kernel sends Ctrl-C to all of us; elsewhere we get it alone."""
_EXCEPTIONS = {
    4: "an illegal instruction",
    5: "a breakpoint",
    6: "an unhandled exception",
    8: "an arithmetic exception",
    11: "an access violation",
}


class Wine:
    """Runs `exe` through Wine."""

    name = "wine"

    def probe(self) -> Mapping[str, Any]:
        """The Wine of this host: its loader and version."""
        wine = wine_prefix.installation()
        return {} if wine is None else {"path": wine.loader, "version": wine.version}

    def score(self, found: Found) -> int:
        """All that is for x86_64 Windows; what is for .NET needs `clr`."""
        return _SCORE if found.kind == "exe" and found.arch == "x86_64" else 0

    def needs(self, found: Found) -> tuple[Need, ...]:
        """Wine itself."""
        if wine_prefix.installation() is not None:
            return ()
        return (Need("Wine for 64-bit programs", packages.apt(packages.WINE[0]), "windows"),)

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Any:
        """The Wine and its prepared prefix. Raises Unavailable."""
        wine = wine_prefix.installation()
        if wine is None:
            need = self.needs(found)[0]
            raise Unavailable(
                f"{os.path.basename(request.file)} can not run", f"{need.what} is not installed", need.install
            )
        display.lend(request, windows=_has_windows(found))  # it says what is missing before the work
        return wine, wine_prefix.prefix(wine, progress)

    def command(self, found: Found, request: Request, prepared: Any) -> Command:
        """The loader with the program, watched for how it really ends. Raises Invalid when it opens windows and may not."""
        wine, directory = prepared
        return _command(wine, directory, request, display.lend(request, windows=_has_windows(found)))

    def beforehand(self, prepared: Any) -> tuple[str, ...]:
        """The server, which by itself the first process of a program starts; it ends when it serves. With -p it does not end for want of one."""
        wine: Installation = prepared[0]
        return wine.server, "-p"

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """The signal tells which exception it was."""
        if ending.reason == "signal" and ending.signal in _EXCEPTIONS:
            return ending._replace(message=f"the program ended by {_EXCEPTIONS[ending.signal]}")
        return ending


def _has_windows(found: Found) -> bool:
    return found.details.get("subsystem") == "gui"


def _command(wine: Installation, directory: str, request: Request, shown: Display | None) -> Command:
    memory = request.policy.memory
    inside, file = program_file.shown(request)
    env = {**wine_prefix.environment(wine), "WINEDLLOVERRIDES": _NO_SERVICES if shown is None else _NO_DIALOGS}
    mounts = [*file, Mount(directory, PREFIX, "overlay", lent=True)]
    if shown is not None:
        env.update(shown.env)
        mounts.extend(shown.mounts)
    return Command(
        argv=("/bin/sh", "-c", _WATCH, "wine", wine.loader, inside, *request.arguments),
        env=env,
        mounts=tuple(mounts),
        files=wine_prefix.FILES if shown is None else {},
        system=True,
        memory=None if memory is None else memory + _OWN_MEMORY,
    )
