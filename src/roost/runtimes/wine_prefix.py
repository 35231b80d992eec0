"""The Windows installation that programs find under Wine: made once, shared read-only by all runs, each with changes of its own thrown away."""

from __future__ import annotations

import os
import stat

from roost.errors import Unavailable
from roost.light import NamedTuple
from roost.runtimes.base import Command, GiB, MiB, Mount, Policy, Progress
from roost.runtimes.cache import Cache
from roost.runtimes.forwarder import forwarder

PREFIX = "/prefix"
"""Where it is in the sandbox."""
CRASHED = "/tmp/.unhandled"  # as in the registry below
"""A file that appears when a Windows program ends by an exception which it does not handle."""

_RECIPE = 1  # raise it when what is made here changes
_BOUND = 200 * MiB  # ten of them
_POLICY = Policy(memory=2 * GiB, wall=180.0, processes=512, tmp=64 * MiB)  # 3 s are usual, a minute under load
_SYSTEM32 = "drive_c/windows/system32"
_MACHINE_KEYS = r"""
[System\\CurrentControlSet\\Control\\ComputerName\\ActiveComputerName]
"ComputerName"="ROOST"

[System\\CurrentControlSet\\Control\\ComputerName\\ComputerName]
"ComputerName"="ROOST"

[Software\\Microsoft\\Windows NT\\CurrentVersion\\AeDebug]
"Auto"="1"
"Debugger"="cmd.exe /c echo %ld %ld> Z:\\tmp\\.unhandled"
"""
"""What `wineboot` would find out at each start; and in place of its debugger, which explains a crash for seconds and lets it end with 0, a word to
us, for which Wine waits. The server takes the last of several values."""
_USER_KEYS = r"""
[Software\\Wine]
"Version"="win10"
"""
_MISSING_DLLS = {"bcryptprimitives.dll": {"ProcessPrng": "advapi32.SystemFunction036"}}


class Installation(NamedTuple):
    """A Wine of this host: its loader and server, its directory of Windows DLLs, its setup script, and the version where that can be told."""

    loader: str
    server: str
    libraries: str
    script: str
    version: str


_PLACES = (
    ("/usr/lib/wine/wine64", "/usr/lib/wine/wineserver64"),
    ("/usr/bin/wine64", "/usr/bin/wineserver"),
    ("/usr/bin/wine", "/usr/bin/wineserver"),
)  # Debian and Ubuntu; Fedora and WineHQ; Arch. In Debian the names in /usr/bin are scripts.
_LIBRARIES = tuple(f"{above}/wine/x86_64-windows" for above in ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"))
_SCRIPTS = ("/usr/share/wine/wine/wine.inf", "/usr/share/wine/wine.inf")


def installation() -> Installation | None:
    """The Wine of this host that runs 64-bit programs, if there is one."""
    pairs = (pair for pair in _PLACES if all(map(_is_binary, pair)))
    loader, server = next(pairs, ("", ""))
    libraries = next(filter(os.path.isdir, _LIBRARIES), "")
    script = next(filter(os.path.isfile, _SCRIPTS), "")
    if not (loader and libraries and script):
        return None
    return Installation(loader, server, libraries, script, _version(script))


def _is_binary(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def _version(script: str) -> str:
    """From the second line of the script, ";; Version: Wine 8.0": nothing is started to ask."""
    try:
        with open(script, "rb") as file:
            words = file.read(200).decode(errors="replace").partition("Version: ")[2].split()
    except OSError:
        return ""
    return words[1] if len(words) > 1 else ""


FILES = {"/etc/fonts/fonts.conf": b"<fontconfig><cachedir>/tmp/fontconfig</cachedir></fontconfig>\n"}
"""A program of the console has no use for the system's fonts, whose inventory takes longer than its whole run."""


def environment(wine: Installation) -> dict[str, str]:
    """What Wine itself takes from the environment."""
    return {"WINEPREFIX": PREFIX, "WINEDEBUG": "-all,err+module", "WINELOADER": wine.loader, "WINESERVER": wine.server}


def prefix(wine: Installation, progress: Progress) -> str:
    """The directory of the prepared prefix, made now when there is none for this Wine. Raises Unavailable."""
    cache, key = Cache("wine", _BOUND), _key(wine)
    found = cache.find(key)
    if found is not None:
        return found
    progress("preparing Windows (once)")
    return cache.make(key, lambda path: _make(wine, path))


def _key(wine: Installation) -> str:
    """Of what the prefix is made from: another Wine, another prefix."""
    parts = [str(_RECIPE)]
    for path in (wine.loader, wine.server, wine.script, os.path.join(wine.libraries, "ntdll.dll")):
        found = os.stat(path)
        parts.append(f"{found.st_size:x}.{found.st_mtime_ns:x}")
    return "-".join(parts)


def _make(wine: Installation, path: str) -> None:
    from roost.runtimes import execution  # which imports all that supervises a run; only needed once

    os.mkdir(path, 0o700)
    command = Command(
        # The server writes the registry when it ends; by itself it would do so seconds after the last service.
        argv=("/bin/sh", "-c", '"$1" wineboot --init; "$2" -k; "$2" -w', "sh", wine.loader, wine.server),
        env={**environment(wine), "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe="},
        mounts=(Mount(path, PREFIX, "write", lent=True),),
        files=FILES,
        system=True,
    )
    ending, output = execution.run_command(command, _POLICY, name="wine")
    if ending.code != 0 or not os.path.isfile(os.path.join(path, "system.reg")):
        why = ending.message or output.decode(errors="replace")[-500:].strip() or f"wineboot ended with {ending.code}"
        raise Unavailable("Windows was not prepared", why, "roost doctor windows")
    _link_libraries(path, wine.libraries)
    for name, forwards in _MISSING_DLLS.items():
        _add_library(os.path.join(path, _SYSTEM32, name), os.path.join(wine.libraries, name), forwarder(name, forwards))
    _append(os.path.join(path, "system.reg"), _MACHINE_KEYS)
    _append(os.path.join(path, "user.reg"), _USER_KEYS)
    with open(os.path.join(path, ".update-timestamp"), "w") as file:
        file.write("disable\n")  # it is made anew for another Wine


def _link_libraries(path: str, libraries: str) -> None:
    """Turn the copies of Wine's own files, 0.7 GB, into links to them."""
    for directory, _, names in os.walk(os.path.join(path, "drive_c")):
        for name in names:
            copy, original = os.path.join(directory, name), os.path.join(libraries, name)
            if _is_same(copy, original):
                os.unlink(copy)
                os.symlink(original, copy)


def _is_same(copy: str, original: str) -> bool:
    try:
        found, meant = os.stat(copy, follow_symlinks=False), os.stat(original)
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != meant.st_size:
        return False
    with open(copy, "rb") as one, open(original, "rb") as other:
        return one.read() == other.read()


def _add_library(path: str, original: str, content: bytes) -> None:
    """A newer Wine brings its own."""
    if not os.path.exists(original) and not os.path.lexists(path):
        with open(path, "xb") as file:
            file.write(content)


def _append(path: str, text: str) -> None:
    with open(path, "a", encoding="ascii", newline="\n") as file:
        file.write(text)
