"""How one value of a policy is written: a grant, a variable, a service, a published port, a size, a time, a count; ValueError says what is wrong."""

from __future__ import annotations

import os
import stat

from roost.light import Iterable, Mapping, NamedTuple
from roost.model import duration, size
from roost.runtimes.base import Grant, Peer, Published

KiB = 1 << 10
LONGEST_PATH = 4095
"""Bytes of a path: Linux' PATH_MAX without the zero."""
LONGEST_VARIABLE = 128 * KiB - 1
"""Bytes of `K=V`: Linux' MAX_ARG_STRLEN without the zero."""
LEAST_MEMORY = 1 << 20
MOST = (1 << 63) - 1
"""What a counter of the kernel or of a runtime can hold."""
MOST_PROCESSES, MOST_FILES = 1 << 22, 1 << 20
"""Linux' PID_MAX_LIMIT and the default of fs.nr_open."""
_NOT_FOR_PROGRAMS = ("/proc", "/sys", "/dev")
_UNLIMITED = ("none", "unlimited")


class Place(NamedTuple):
    """Where a policy is said: what relative paths and `--env K` refer to."""

    cwd: str
    environ: Mapping[str, str]


def grant(text: str, place: Place) -> Grant:
    """`HOST[:GUEST][:ro|rw]`; GUEST is HOST's absolute path when it is not said, and the program may write unless `ro` is."""
    rest, _, mode = text.rpartition(":")
    if mode not in ("ro", "rw") or not rest:
        rest, mode = text, "rw"
    source, target = _halves(rest, place)
    return granted(source, target, writable=mode == "rw", place=place)


def _halves(text: str, place: Place) -> tuple[str, str]:
    """HOST and GUEST, "" where it is not said. What follows the last colon is GUEST when it is absolute, unless only the whole is a file."""
    source, colon, target = text.rpartition(":/")
    whole = os.path.lexists(os.path.join(place.cwd, text)) if "\0" not in text else False
    if source and (not whole or os.path.lexists(os.path.join(place.cwd, source))):
        return source, "/" + target
    if not colon and ":" in text and not whole:
        raise ValueError(f"{text!r}: the path inside must be absolute, as in ./data:/data:ro")
    return text, ""


def granted(source: str, target: str, *, writable: bool, place: Place) -> Grant:
    """The grant of `source`, whose symbolic links are followed here and now, at `target` ("" for the same path)."""
    if not source or "\0" in source + target:
        raise ValueError(f"{source!r} is not a path")
    written = os.path.join(place.cwd, source)
    found = os.path.realpath(written)
    try:
        mode = os.stat(found).st_mode
    except OSError as error:
        raise ValueError(f"{source!r} can not be lent: {error.strerror or error}") from None
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or _below(found, _NOT_FOR_PROGRAMS[:2]):
        raise ValueError(f"{source!r} can not be lent: only directories and ordinary files can")
    return Grant(found, _target(target or os.path.abspath(written)), writable)


def _target(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    clean = "/" + "/".join(parts)
    if not path.startswith("/") or ".." in parts or len(os.fsencode(clean)) > LONGEST_PATH:
        raise ValueError(
            f"{path!r} is not a path inside: it must be absolute, without .., of at most {LONGEST_PATH} bytes"
        )
    if clean == "/" or _below(clean, _NOT_FOR_PROGRAMS):
        raise ValueError(f"nothing can be put at {clean!r} inside: choose another path, as in ./data:/data")
    return clean


def _below(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(directory + "/") for directory in directories)


def variable(text: str, place: Place) -> tuple[str, str]:
    """`K=V`, or `K` for the caller's value."""
    name, equals, value = text.partition("=")
    if not name or "\0" in text or len(os.fsencode(text)) > LONGEST_VARIABLE:
        raise ValueError("it is not K or K=V" if "\0" in text or len(text) > 100 else f"{text!r} is not K or K=V")
    if not equals:
        if name not in place.environ:
            raise ValueError(f"{name} is not set here: write {name}=VALUE")
        value = place.environ[name]
    return name, value


def peer(text: str, place: Place) -> Peer:
    """`HOST:PORT`; HOST is a name, an IPv4 address, or an IPv6 address in brackets."""
    if "://" in text:
        host = text.partition("://")[2].partition("/")[0]
        raise ValueError(f"{text!r} is a URL: write {host if ':' in host else host + ':443'}")
    host, _, number = text.rpartition(":")
    if not host:
        raise ValueError(f"{text!r} is not HOST:PORT, as in example.org:443")
    return Peer(_host(host), _port(number))


def _host(text: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        return _ipv6(text[1:-1])
    name = text.rstrip(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            raise ValueError(f"{text!r} is not the name of a host") from None
    labels = name.split(".")
    if labels[-1][:1].isdecimal():
        return _ipv4(text)
    if len(name) > 253 or not all(_label(label) for label in labels):
        hint = (
            "; an IPv6 address stands in brackets"
            if ":" in text
            else "; name each host, there are no wildcards"
            if "*" in text
            else ""
        )
        raise ValueError(f"{text!r} is not the name of a host{hint}")
    return name


def _label(text: str) -> bool:
    plain = text.replace("-", "").replace("_", "")
    return 0 < len(text) <= 63 and (plain.isalnum() or not plain) and text[0] != "-" and text[-1] != "-"


def _ipv4(text: str) -> str:
    """The address, in the one form that means the same to every reader: no leading zeros, no hexadecimal, four numbers."""
    numbers = text.split(".")
    if len(numbers) != 4 or any(
        str(int(n)) != n or int(n) > 255 if n.isdecimal() and n.isascii() and len(n) < 4 else True for n in numbers
    ):
        raise ValueError(f"{text!r} is not an IPv4 address: write four numbers, as in 192.0.2.1")
    return text


def _ipv6(text: str) -> str:
    import socket  # not for the ordinary way: it costs milliseconds

    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text))
    except OSError:
        raise ValueError(f"{text!r} is not an IPv6 address") from None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and 0 < int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def published(text: str, place: Place) -> Published:
    """`[IP:]HOSTPORT:PORT`; IP is an address of the host, 127.0.0.1 when it is not said."""
    rest, _, inside = text.rpartition(":")
    address, _, outside = rest.rpartition(":")
    if not rest:
        raise ValueError(f"{text!r} is not [IP:]HOSTPORT:PORT, as in 8080:80")
    ip = "127.0.0.1" if not address else _ipv6(address[1:-1]) if address[0] + address[-1] == "[]" else _ipv4(address)
    return Published(ip, _port(outside), _port(inside))


def memory(text: str, _: Place) -> int | None:
    """A size of at least 1 MiB; none for no limit."""
    return None if text in _UNLIMITED else _between(size.parse(text), LEAST_MEMORY, MOST, text, "it is less than 1MiB")


def amount(text: str, _: Place) -> int | None:
    """A size; none for no limit."""
    return None if text in _UNLIMITED else _between(size.parse(text), 0, MOST, text)


def room(text: str, _: Place) -> int:
    """A size that is a limit in any case."""
    return _between(size.parse(text), 4 * KiB, MOST, text, "it is less than 4KiB")


def time(text: str, _: Place) -> float | None:
    """Seconds; none for no limit."""
    return None if text in _UNLIMITED else duration.parse(text)


def fuel(text: str, _: Place) -> int | None:
    """A number of instructions; none for no limit."""
    return None if text in _UNLIMITED else number(text, 1, MOST)


def processes(text: str, _: Place) -> int:
    """How many processes and threads."""
    return number(text, 1, MOST_PROCESSES)


def files(text: str, _: Place) -> int:
    """How many open files."""
    return number(text, 16, MOST_FILES)


def descriptor(text: str, _: Place) -> int:
    """The number of an open file of the caller."""
    return number(text, 0, MOST_FILES)


def number(text: str, least: int, most: int) -> int:
    """A whole number from `least` to `most`."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 19 and least <= int(text) <= most):
        raise ValueError(f"{text!r} is not a number from {least} to {most}")
    return int(text)


def layer(text: str, _: Place) -> str:
    """The name of a layer, as a result lists it."""
    name = " ".join(text.replace("_", " ").split())
    if not name or len(name) > 100 or not name.isprintable():
        raise ValueError(f"{text!r} is not the name of a layer")
    return name


def word(text: str, _: Place) -> str:
    """Any text that is not empty."""
    if not text or "\0" in text:
        raise ValueError("it is empty" if not text else f"{text!r} holds a zero byte")
    return text


def _between(value: int, least: int, most: int, text: str, small: str = "") -> int:
    if not least <= value <= most:
        raise ValueError(f"{text!r} is not possible: {small if value < least else 'it is more than there is anywhere'}")
    return value


def arranged(grants: Iterable[Grant]) -> tuple[tuple[Grant, ...], list[str]]:
    """The grants without doubles, an outer target before one below it, and what is wrong with them together."""
    ordered = sorted(dict.fromkeys(grants), key=lambda each: each.target.split("/"))
    faults: list[str] = []
    outer: list[Grant] = []
    for each in ordered:
        while outer and not _below(each.target, (outer[-1].target,)):
            outer.pop()
        if outer and (fault := _clash(outer[-1], each)):
            faults.append(fault)
        outer.append(each)
    return tuple(ordered), faults


def _clash(outer: Grant, inner: Grant) -> str:
    """Why `inner` can not be mounted over part of `outer`: a mount needs a place of its own kind, and no link may lead elsewhere."""
    if outer.target == inner.target:
        return f"two different things are put at {inner.target!r} inside"
    spot = outer.source + inner.target[len(outer.target) :]
    if (
        os.path.realpath(spot) != spot
        or not os.path.lexists(spot)
        or os.path.isdir(spot) != os.path.isdir(inner.source)
    ):
        kind = "directory" if os.path.isdir(inner.source) else "file"
        return f"{inner.target!r} lies in {outer.target!r}, but there is no {kind} {spot!r} to put it over"
    return ""
