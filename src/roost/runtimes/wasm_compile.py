"""Compiled WebAssembly: made once in a process of its own with bounds, and kept in a private cache that is checked before it is mapped."""

from __future__ import annotations

import os
import stat
import struct
import sys
import time
import zlib
from ctypes import byref, c_char, c_void_p

from roost.errors import Invalid, RoostError, Unavailable
from roost.light import NamedTuple
from roost.runtimes.base import GiB, MiB, Progress, silent
from roost.runtimes.cache import Cache
from roost.runtimes.libwasmtime import ByteVector, find, library, take_bytes
from roost.runtimes.wasm_engine import CRANELIFT, WINCH, Options, engine, message_of_error

LONGEST = 256 * MiB
"""Bytes of a module that is compiled at all."""

_QUICK = 128 << 10  # bytes of a module for which Cranelift needs no more than some 50 ms
_MEMORY, _OUTPUT = (
    4 * GiB,
    2 * GiB,
)  # of a compilation: esbuild, 20 MB, takes 0.5 GiB with Winch, and its code has 60 MB
_SECONDS = {WINCH: 60, CRANELIFT: 300}
_AGAIN = 600.0  # seconds after which a background compilation that came to nothing is tried once more
_SETTLED = 1.0  # seconds that a file has rested before its hash is kept: two changes in one tick look alike

_MAGIC = b"roostwc3"  # another one whenever `wasm_engine.engine` configures engines differently
_TRAILER = struct.Struct("<8sQIII")  # magic, bytes of code, component or not, CRC-32 of its first and of its last bytes
_EDGE = 4096

_code = Cache("wasm", 4 * GiB)
_index = Cache("wasm-index", 1 * MiB)


class Artefact(NamedTuple):
    """Code ready to be mapped: a descriptor of it (the receiver closes it), what it is, and for which engine."""

    descriptor: int
    component: bool
    options: Options
    size: int


def artefact_of_file(path: str, options: Options, progress: Progress = silent, *, background: bool = True) -> Artefact:
    """The code of a module, component or text file. Raises Invalid for what can not be compiled, Unavailable, OSError.

    A large module comes from Winch at once where that can compile it, and from Cranelift as soon as a process in the background is done.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > LONGEST:
            raise Invalid(f"{path} can not be run", f"it is not a regular file of at most {LONGEST // MiB} MiB")
        seen = "-".join(
            f"{n:x}" for n in (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        )
        digest = _recorded(seen)
        artefact = digest and _find(digest, options)
        if not artefact:
            source = _read(descriptor, path)
            digest = _digest(source)
            if time.time() - found.st_ctime > _SETTLED:
                _record(seen, digest)
            artefact = _find(digest, options) or _make(source, digest, options, progress)
    finally:
        os.close(descriptor)
    if background and artefact.options.strategy == WINCH and len(digest) > 1:
        _improve(path, digest, artefact.options)
    return artefact


def artefact_of_bytes(source: bytes, options: Options) -> Artefact:
    """The code of a module, a component or a text, from Cranelift. Raises Invalid for what can not be compiled, Unavailable."""
    digest = _digest(source)
    wanted = options._replace(strategy=CRANELIFT)
    return _open(digest, wanted) or _compiled(source, digest, wanted)


def improve(path: str, digest: str, options: Options) -> None:
    """Compile a file once more, by Cranelift, and let its code take the place of Winch's. For a process in the background."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        source = _read(descriptor, path)
    finally:
        os.close(descriptor)
    if _digest(source) == digest:
        os.close(_compiled(source, digest, options._replace(strategy=CRANELIFT)).descriptor)
        _code.discard(_key(digest, options))


def _read(descriptor: int, path: str) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        source = file.read(LONGEST + 1)
    if len(source) > LONGEST:
        raise Invalid(f"{path} can not be run", f"it has more than {LONGEST // MiB} MiB")
    return source


def _digest(source: bytes) -> str:
    from hashlib import sha256

    return sha256(source).hexdigest()


def _recorded(seen: str) -> str:
    """The digest that a file had which looked like this, "" when that is not known."""
    descriptor = _index.open(seen)
    if descriptor is None:
        return ""
    try:
        return os.read(descriptor, 64).decode("ascii", "replace")
    finally:
        os.close(descriptor)


def _record(seen: str, text: str) -> None:
    def write(path: str) -> None:
        with open(path, "x") as file:
            file.write(text)

    try:
        _index.discard(seen)
        _index.make(seen, write)
    except (RoostError, OSError):
        return  # then the file is hashed each time


def _key(digest: str, options: Options) -> str:
    """What code depends on: the content, the library, the processor, the options."""
    library_is = os.stat(find())
    flags = "".join(str(int(word)) for word in options)
    return f"{digest[:48]}-{library_is.st_size:x}-{library_is.st_mtime_ns:x}-{_processor()}-{flags}"


_processor_name = ""


def _processor() -> str:
    """A short name for the instruction set: the machine, and a checksum of its features."""
    global _processor_name
    if _processor_name:
        return _processor_name
    with open("/proc/cpuinfo", "rb") as file:
        start = file.read(4096)
    features = [line for line in start.splitlines() if line.startswith((b"flags", b"Features", b"isa"))]
    _processor_name = f"{os.uname().machine}-{zlib.crc32(b''.join(features[:1])):x}"
    return _processor_name


def _find(digest: str, options: Options) -> Artefact | None:
    return _open(digest, options._replace(strategy=CRANELIFT)) or _open(digest, options._replace(strategy=WINCH))


def _open(digest: str, options: Options) -> Artefact | None:
    key = _key(digest, options)
    descriptor = _code.open(key)
    if descriptor is None:
        return None
    checked = _check(descriptor)
    if checked is None:
        os.close(descriptor)
        _code.discard(key)
        return None
    return Artefact(descriptor, checked[0], options, checked[1])


def _check(descriptor: int) -> tuple[bool, int] | None:
    """(is it a component, its size) of code that is whole, by its trailer, its size and both its ends; None of what is not."""
    size = os.fstat(descriptor).st_size - _TRAILER.size
    if size <= 0:
        return None
    magic, told, component, first, last = _TRAILER.unpack(os.pread(descriptor, _TRAILER.size, size))
    if magic != _MAGIC or told != size or (first, last) != _edges(descriptor, size):
        return None
    return bool(component), size


def _edges(descriptor: int, size: int) -> tuple[int, int]:
    edge = min(_EDGE, size)
    return zlib.crc32(os.pread(descriptor, edge, 0)), zlib.crc32(os.pread(descriptor, edge, size - edge))


def _make(source: bytes, digest: str, options: Options, progress: Progress) -> Artefact:
    """Compile for the first time, as quickly as can be."""
    if len(source) > _QUICK:
        progress("compiling")
        try:
            return _compiled(source, digest, options._replace(strategy=WINCH))
        except Invalid:
            progress(
                "compiling, which takes longer for this one"
            )  # Winch lacks exceptions, some proposals, some processors
    return _compiled(source, digest, options._replace(strategy=CRANELIFT))


def _compiled(source: bytes, digest: str, options: Options) -> Artefact:
    """Compile and keep; where nothing can be kept, the code is in memory alone. Raises Invalid."""
    made = os.memfd_create("code", os.MFD_CLOEXEC)
    try:
        _compile(source, options, made)

        def write(path: str) -> None:
            _copy(made, path)

        try:
            _code.make(_key(digest, options), write)
        except (Unavailable, OSError):
            checked = _check(made)
            kept = Artefact(os.dup(made), checked[0], options, checked[1]) if checked else None
        else:
            kept = _open(digest, options)
    finally:
        os.close(made)
    if kept is None:
        raise Unavailable("the program was not compiled", "its code is not whole", "try once more")
    return kept


def _copy(descriptor: int, path: str) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size, done = os.fstat(descriptor).st_size, 0
        while done < size:
            done += os.sendfile(target, descriptor, done, size - done)
    finally:
        os.close(target)


def _compile(source: bytes, options: Options, target: int) -> None:
    """Compile into `target` in a process of its own: a module is hostile, and may be made to be slow or large to compile. Raises Invalid."""
    from roost.host import bounded  # only for what is not in the cache

    library()  # mapped before the fork, for there it has no files
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    seconds = _SECONDS[options.strategy]
    memory = min(_MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    try:
        status = bounded.run(
            lambda: _write_code(source, options, target, said),
            (target, said),
            bounded.Bounds(memory, _OUTPUT, seconds, float(seconds)),
        )
        why = os.pread(said, 8192, 0).decode("utf-8", "replace")
    except TimeoutError as error:
        status, why = 1, f"compiling it is {error}"
    finally:
        os.close(said)
    if status:
        raise Invalid("the program can not be compiled", why or "compiling it takes more memory or time than it may")


def _write_code(source: bytes, options: Options, target: int, said: int) -> int:
    lib = library()
    binary = source
    if not source.startswith(b"\0asm"):
        vector = ByteVector()
        error = lib.wasmtime_wat2wasm(source, len(source), byref(vector))
        if error:
            os.write(said, message_of_error(error).encode())
            return 1
        binary = take_bytes(vector)
    what = "component" if binary[6:8] == b"\1\0" else "module"
    made = c_void_p()
    error = getattr(lib, f"wasmtime_{what}_new")(engine(options), binary, len(binary), byref(made))
    if error:
        os.write(said, message_of_error(error).encode())
        return 1
    code = ByteVector()
    error = getattr(lib, f"wasmtime_{what}_serialize")(made, byref(code))
    if error:
        os.write(said, message_of_error(error).encode())
        return 1
    with open(target, "wb", closefd=False) as file:
        file.write((c_char * code.size).from_address(code.data or 0))
    first, last = _edges(target, code.size)
    os.pwrite(target, _TRAILER.pack(_MAGIC, code.size, what == "component", first, last), code.size)
    return 0


def _improve(path: str, digest: str, options: Options) -> None:
    """Start the process in the background, unless one was started lately."""
    from roost.host import workers

    key = f"improving-{_key(digest, options)}"
    last = _recorded(key)
    if last.replace(".", "").isdigit() and time.time() - float(last) < _AGAIN:
        return
    _record(key, f"{time.time():.0f}")
    names = ("PATH", "HOME", "ROOST_CACHE", "XDG_CACHE_HOME", "PYTHONPATH")
    env = {name: os.environ[name] for name in names if name in os.environ}
    words = [
        sys.executable,
        "-P",
        "-m",
        "roost.runtimes.wasm_background",
        path,
        digest,
        *(str(int(word)) for word in options),
    ]
    try:
        workers.start_detached(words, env)
    except OSError:
        return  # Winch's code runs too
