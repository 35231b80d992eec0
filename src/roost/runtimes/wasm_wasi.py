"""What a WASI guest is given: arguments, environment, directories, standard streams, network."""

from __future__ import annotations

import errno
import os
from ctypes import byref, c_char_p, memmove, string_at

from roost.errors import Invalid
from roost.light import Iterable, Mapping, NamedTuple, Sequence
from roost.runtimes.base import Grant
from roost.runtimes.libwasmtime import ByteVector, Writer, library

NOTHING = "/var/empty"
"""A directory of the sandbox that stands for all that is not granted: looking there says "no such file", as elsewhere, and not "bad descriptor"."""


class Output:
    """What a guest wrote to one stream: the first `bound` bytes; `full` when there were more."""

    def __init__(self, bound: int) -> None:
        self.full = False
        self._room = bound
        self._pieces: list[bytes] = []
        self.callback = Writer(self._write)

    def content(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)

    def _write(self, _: int | None, data: int, size: int) -> int:
        if size > self._room:
            self.full = True
            return -errno.ENOSPC
        self._room -= size
        self._pieces.append(string_at(data, size))
        return size


class Preopen(NamedTuple):
    """A directory that the guest knows as `name`. Its path is `inside` in the sandbox's own root, else `outside` ("": it exists inside alone)."""

    name: str
    inside: str
    outside: str
    writable: bool


class Guest(NamedTuple):
    """What one run is given. `stdin` and the two `outputs` are None for our own; `root` is the identity of the root directory that is not the
    sandbox's. `network`: it may try to connect, in a sandbox alone: that has a network of its own, which leads to what is allowed, and the kernel
    tells of the rest, so that the refusal names the flag. `memory` in bytes of each linear memory; `fuel` in instructions; `deadline` in ticks of
    the engine's epoch."""

    arguments: tuple[bytes, ...] = ()
    env: Mapping[str, str] = {}
    preopens: tuple[Preopen, ...] = ()
    stdin: bytes | None = None
    outputs: tuple[Output, Output] | None = None
    network: bool = False
    root: tuple[int, int] = (0, 0)
    memory: int | None = None
    fuel: int | None = None
    deadline: int | None = None


def root() -> tuple[int, int]:
    """The identity of this process's root directory: another one inside the sandbox, where it could make one."""
    found = os.stat("/")
    return found.st_dev, found.st_ino


def preopens(grants: Iterable[Grant], cwd: str) -> tuple[Preopen, ...]:
    """The directories for a policy: each by its absolute name, and by the name that leads there from `cwd`.

    A file that is granted is in its directory, of which the sandbox holds nothing else; so are the directories above.
    """
    found: dict[str, Preopen] = {}
    for grant in grants:
        target, source = grant.target.rstrip("/"), grant.source
        if not os.path.isdir(source):
            target, source = os.path.dirname(target), ""
        for name, below in _names(target, cwd):
            before = found.get(name)
            if before is None or grant.writable or before.outside == "":
                outside = source and os.path.join(source, below) if below else source
                found[name] = Preopen(name, os.path.join(target, below) if below else target, outside, grant.writable)
    for directory in _above([name for name in found if name.startswith("/")]):
        for name, below in _names(directory, cwd):
            found.setdefault(name, Preopen(name, os.path.join(directory, below) if below else directory, "", False))
    found.setdefault("/tmp", Preopen("/tmp", "/tmp", "", True))  # its own, private one
    found.setdefault("/", Preopen("/", NOTHING, "", False))
    # The C library of WASI takes both "." and "/" for the empty name, and of equals the last one; Go takes the first for its directory.
    return tuple(sorted(found.values(), key=lambda each: (each.name == ".", each.name)))


def _above(targets: Sequence[str]) -> list[str]:
    """The directories that lead to these, and hold nothing else in the sandbox: programs look for their files from the root on."""
    own = tuple(f"{target.rstrip('/')}/" for target in (*targets, "/tmp"))
    parts = [target.split("/") for target in targets]
    found = {"/".join(words[:count]) for words in parts for count in range(2, len(words))}
    return sorted(directory for directory in found if not f"{directory}/".startswith(own))


def _names(target: str, cwd: str) -> list[tuple[str, str]]:
    """(the name for the guest, where that is below `target`)."""
    names = [(target or "/", "")]
    if not cwd:
        return names
    if target.startswith(cwd.rstrip("/") + "/"):
        names.append((target[len(cwd.rstrip("/")) + 1 :], ""))
    elif cwd == target or cwd.startswith(target + "/"):
        names.append((".", cwd[len(target) + 1 :]))
    return names


def config(guest: Guest) -> int:
    """A wasi_config_t for one store. Raises Invalid for what WASI can not express."""
    lib = library()
    made: int = lib.wasi_config_new()
    try:
        _set_words(made, guest)
        _set_streams(made, guest)
        for preopen in guest.preopens:
            _open(made, preopen, inside=root() != guest.root)
    except BaseException:
        lib.wasi_config_delete(made)
        raise
    if guest.network and root() != guest.root:
        lib.wasi_config_inherit_network(made)
        _allow_tcp(made)
    return made


def _allow_tcp(made: int) -> None:
    """Name look-ups and TCP. From version 48 on Wasmtime leaves TCP off, and its C library (50.0.1) has no call to switch it on: the three switches
    for look-ups, UDP and TCP are bytes side by side, of which the first is found by setting it. Where that is not so, TCP stays off."""
    lib = library()
    size = lib.malloc_usable_size(made)
    before = string_at(made, size)
    lib.wasi_config_allow_ip_name_lookup(made, True)
    after = string_at(made, size)
    changed = [index for index in range(size) if before[index] != after[index]]
    if len(changed) == 1 and after[changed[0] : changed[0] + 3] == b"\1\0\0":
        memmove(made + changed[0] + 2, b"\1", 1)


def _set_words(made: int, guest: Guest) -> None:
    lib = library()
    if not lib.wasi_config_set_argv(made, len(guest.arguments), _array(guest.arguments)):
        raise Invalid("the arguments can not be handed to a WebAssembly program", "one of them is no UTF-8")
    names = [os.fsencode(name) for name in guest.env]
    values = [os.fsencode(value) for value in guest.env.values()]
    if not lib.wasi_config_set_env(made, len(names), _array(names), _array(values)):
        raise Invalid(
            "the environment can not be handed to a WebAssembly program",
            "a name or value is no UTF-8",
            "leave that --env out",
        )


def _array(words: Sequence[bytes]) -> object:
    return (c_char_p * len(words))(*words)


def _set_streams(made: int, guest: Guest) -> None:
    lib = library()
    if guest.stdin is None:
        lib.wasi_config_inherit_stdin(made)
    else:
        content = ByteVector()
        lib.wasm_byte_vec_new(byref(content), len(guest.stdin), guest.stdin)
        lib.wasi_config_set_stdin_bytes(made, byref(content))
    if guest.outputs is None:
        lib.wasi_config_inherit_stdout(made)
        lib.wasi_config_inherit_stderr(made)
    else:
        lib.wasi_config_set_stdout_custom(made, guest.outputs[0].callback, None, None)
        lib.wasi_config_set_stderr_custom(made, guest.outputs[1].callback, None, None)


def _open(made: int, preopen: Preopen, *, inside: bool) -> None:
    path = preopen.inside or "/" if inside else preopen.outside
    if not path:
        return
    opened = library().wasi_config_preopen_dir(made, os.fsencode(path), os.fsencode(preopen.name), preopen.writable)
    if not opened and preopen.outside:
        raise Invalid(f"{preopen.outside} can not be opened", "it is not a directory that the program may read")
