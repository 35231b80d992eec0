"""A WebAssembly program in this process: its code mapped and linked with WASI once, run in fresh stores."""

from __future__ import annotations

import os
from ctypes import byref, c_bool, c_uint8, c_uint64, c_void_p, string_at

from roost.errors import Invalid, RoostError
from roost.light import Any, Callable, Iterable, Mapping, suppress
from roost.runtimes import wasm_memory
from roost.runtimes.base import MiB
from roost.runtimes.libwasmtime import (
    I32,
    MEMORY,
    PAYLOAD,
    ByteVector,
    Callback,
    ComponentCallback,
    Extern,
    Vector,
    library,
)
from roost.runtimes.wasm_compile import Artefact
from roost.runtimes.wasm_engine import Options, Stop, engine, message_of_error, stop_of_error, stop_of_trap
from roost.runtimes.wasm_wasi import Guest, config

SMALL = 1 * MiB
"""Bytes of code that is copied sooner than mapped."""

_UNLIMITED = -1
_TABLES = 16  # bytes of an element of a table: as much of them as of memory
_MINORS = range(16)  # of WASI 0.2, more than there are
_WORLDS = tuple(f"wasi:cli/run@0.2.{minor}" for minor in _MINORS)
_EXITS = tuple(f"wasi:cli/exit@0.2.{minor}".encode() for minor in _MINORS)
_PREVIEW_1 = b"wasi_snapshot_preview1"
_START = b"_start"


_linkers: dict[Options, int] = {}


def make_linker(options: Options) -> None:
    """Make the linker of the next module with these options."""
    _linkers[options] = _linker(options)


def _linker(options: Options) -> int:
    lib = library()
    made: int = lib.wasmtime_linker_new(engine(options))
    lib.wasmtime_linker_allow_shadowing(made, True)
    _check(lib.wasmtime_linker_define_wasi(made))
    return made


_wasi_guests = 0


def has_run_wasi() -> bool:
    """Whether a guest with WASI has been in this process: then wasmtime has threads and descriptors here that no fork can use."""
    return _wasi_guests > 0


class Store:
    """One guest's memory and state; gone with `close`. Not for two threads at once."""

    def __init__(self, artefact: Artefact, guest: Guest) -> None:
        lib = library()
        self._guest = guest
        self.pointer: int = lib.wasmtime_store_new(engine(artefact.options), None, None)
        self.context: int = lib.wasmtime_store_context(self.pointer)
        memory = _UNLIMITED if guest.memory is None else guest.memory
        tables = _UNLIMITED if guest.memory is None else guest.memory // _TABLES
        lib.wasmtime_store_limiter(self.pointer, memory, tables, _UNLIMITED, _UNLIMITED, _UNLIMITED)
        if artefact.options.fuel:
            lib.wasmtime_context_set_fuel(self.context, (1 << 64) - 1 if guest.fuel is None else guest.fuel)
        if artefact.options.epochs:
            lib.wasmtime_context_set_epoch_deadline(self.context, 1 << 62 if guest.deadline is None else guest.deadline)

    def give_wasi(self) -> None:
        """Let it have what its guest is given."""
        global _wasi_guests
        _wasi_guests += 1
        error = library().wasmtime_context_set_wasi(self.context, config(self._guest))
        if error:
            raise Invalid("the program can not be given its files and streams", message_of_error(error))

    def close(self) -> None:
        """Give everything back."""
        library().wasmtime_store_delete(self.pointer)


class Module:
    """A core module, linked with WASI preview 1 and what `define` brings; `link` comes after that. For any number of threads."""

    def __init__(self, artefact: Artefact) -> None:
        self.artefact = artefact
        self._pointer, self.sources = _mapped(artefact)
        self._linker = _linkers.pop(artefact.options, 0) or _linker(artefact.options)
        self._pre = c_void_p()
        self._callbacks: list[Any] = []

    def close(self) -> None:
        """Give everything back; no instance of it may be in use."""
        lib = library()
        if self._pre.value:
            lib.wasmtime_instance_pre_delete(self._pre)
        lib.wasmtime_linker_delete(self._linker)
        lib.wasmtime_module_delete(self._pointer)

    def define(
        self, module: bytes, name: bytes, kinds: tuple[list[int], list[int]], function: Callable[[int, Any], int | None]
    ) -> None:
        """Bring a function of ours: it gets the caller and the values, puts its results in their place, and gives a trap or None."""

        def called(_: int | None, caller: int, values: Any, count: int) -> int | None:
            return function(caller, values)

        callback = Callback(called)
        self._callbacks.append(callback)
        lib = library()
        shape = _function_type(*kinds)
        error = lib.wasmtime_linker_define_func_unchecked(
            self._linker, module, len(module), name, len(name), shape, callback, None, None
        )
        lib.wasm_functype_delete(shape)
        _check(error)

    def define_wasi(
        self, functions: Mapping[bytes, tuple[tuple[list[int], list[int]], Callable[[int, Any], int | None]]]
    ) -> None:
        """Bring functions of ours in place of Wasmtime's own of WASI preview 1."""
        for name, (kinds, function) in functions.items():
            self.define(_PREVIEW_1, name, kinds, function)

    def link(self) -> None:
        """Find everything that it imports. Raises Invalid when it wants what nobody brings."""
        error = library().wasmtime_linker_instantiate_pre(self._linker, self._pointer, byref(self._pre))
        if error:
            why = message_of_error(error)
            raise Invalid(
                "the program can not run here", f"it was made for another host: {why}", "build it for wasm32-wasip1"
            )

    def instantiate(self, store: Store) -> tuple[Any, Stop | None]:
        """A new instance, or None and why it did not come about."""
        made, trap = (c_uint64 * 4)(), c_void_p()
        error = library().wasmtime_instance_pre_instantiate(self._pre, store.context, byref(made), byref(trap))
        stop = _stop(error, trap)
        return (made if stop is None else None), stop

    def exports(self) -> list[tuple[str, tuple[list[int], list[int]] | None]]:
        """The name of each export, with the kinds of a function's parameters and results (None for what is no function)."""
        lib, vector = library(), Vector()
        lib.wasmtime_module_exports(self._pointer, byref(vector))
        try:
            return [
                (_name(lib.wasm_exporttype_name(each)), _kinds(lib.wasm_exporttype_type(each)))
                for each in vector.data[: vector.size]
            ]
        finally:
            lib.wasm_exporttype_vec_delete(byref(vector))

    def imports(self) -> list[tuple[str, str, tuple[list[int], list[int]] | None]]:
        """Module and name of each import, with the kinds of a function's parameters and results (None for what is no function)."""
        lib, vector = library(), Vector()
        lib.wasmtime_module_imports(self._pointer, byref(vector))
        try:
            return [
                (
                    _name(lib.wasm_importtype_module(each)),
                    _name(lib.wasm_importtype_name(each)),
                    _kinds(lib.wasm_importtype_type(each)),
                )
                for each in vector.data[: vector.size]
            ]
        finally:
            lib.wasm_importtype_vec_delete(byref(vector))


class Component:
    """A component, linked with WASI preview 2, of whose `wasi:cli/exit` it has `exit-with-code` too: with `exit` alone it ends with 0 or 1."""

    def __init__(self, artefact: Artefact) -> None:
        lib = library()
        self.artefact = artefact
        self._pointer, self.sources = _mapped(artefact)
        self._linker: int = lib.wasmtime_component_linker_new(engine(artefact.options))
        _check(lib.wasmtime_component_linker_add_wasip2(self._linker))
        self._codes: dict[int, int] = {}
        self._callbacks = [ComponentCallback(self._exit), ComponentCallback(self._exit_with_code)]
        self._define_exit()

    def close(self) -> None:
        """Give everything back."""
        library().wasmtime_component_linker_delete(self._linker)
        library().wasmtime_component_delete(self._pointer)

    def run(self, guest: Guest, *, last: bool = False) -> Stop:
        """Run it as a command; `last`: nothing is run in this process after it."""
        store = Store(self.artefact, guest)
        try:
            store.give_wasi()
            return self._run(store, guest, last=last)
        finally:
            store.close()

    def _run(self, store: Store, guest: Guest, *, last: bool) -> Stop:
        lib = library()
        world = next(filter(None, (self._export(None, name.encode()) for name in _WORLDS)), None)
        run = world and self._export(world, b"run")
        if not run:
            return Stop("error", "it does not export wasi:cli/run: it is a library, and no command")
        instance, function, result = (c_uint64 * 4)(), (c_uint64 * 4)(), (c_uint8 * 64)()
        error = lib.wasmtime_component_linker_instantiate(self._linker, store.context, self._pointer, byref(instance))
        if error:
            return self._ended(store, error) or _foreign(stop_of_error(error))
        if last:
            _close(self.sources)
        if not lib.wasmtime_component_instance_get_func(byref(instance), store.context, run, byref(function)):
            return Stop("error", "its wasi:cli/run is no function")
        error = lib.wasmtime_component_func_call(byref(function), store.context, None, 0, byref(result), 1)
        if error:
            return self._ended(store, error) or _limited(stop_of_error(error), wasm_memory.largest(), guest)
        return Stop("exit", code=0 if c_bool.from_buffer(result, PAYLOAD).value else 1)

    def _define_exit(self) -> None:
        """In place of Wasmtime's own, which has no `exit-with-code`. A component finds the version that it names, or the last one."""
        lib = library()
        lib.wasmtime_component_linker_allow_shadowing(self._linker, True)
        root = lib.wasmtime_component_linker_root(self._linker)
        for interface in _EXITS:
            made = c_void_p()
            _check(lib.wasmtime_component_linker_instance_add_instance(root, interface, len(interface), byref(made)))
            for name, callback in zip((b"exit", b"exit-with-code"), self._callbacks, strict=True):
                add = lib.wasmtime_component_linker_instance_add_func
                _check(add(made, name, len(name), callback, None, None))
            lib.wasmtime_component_linker_instance_delete(made)
        lib.wasmtime_component_linker_instance_delete(root)

    def _exit(self, _: int | None, context: int, shape: int, values: int, *results: int) -> int:
        return self._end(context, 0 if c_bool.from_address(values + PAYLOAD).value else 1)

    def _exit_with_code(self, _: int | None, context: int, shape: int, values: int, *results: int) -> int:
        return self._end(context, c_uint8.from_address(values + PAYLOAD).value)

    def _end(self, context: int, code: int) -> int:
        self._codes[context] = code
        error: int = library().wasmtime_error_new(b"exit")
        return error

    def _ended(self, store: Store, error: int) -> Stop | None:
        """How it wanted to end, where the error is but that; the error is then given back."""
        code = self._codes.pop(store.context, None)
        if code is None:
            return None
        library().wasmtime_error_delete(error)
        return Stop("exit", code=code)

    def _export(self, inside: int | None, name: bytes) -> int | None:
        found: int | None = library().wasmtime_component_get_export_index(self._pointer, inside, name, len(name))
        return found


class Command:
    """A core module with a `_start`."""

    def __init__(self, artefact: Artefact, define: Callable[[Module], None] = lambda _: None) -> None:
        self.artefact = artefact
        self._module = Module(artefact)
        define(self._module)
        self._codes: dict[int, int] = {}
        self._module.define_wasi({b"proc_exit": (([I32], []), self._exit)})
        self._module.link()
        if not any(name == "_start" and kinds == ([], []) for name, kinds in self._module.exports()):
            raise Invalid(
                "the program can not run",
                "it has no _start: it is a library, and no command",
                "call its functions by roost.Wasm",
            )

    def close(self) -> None:
        """Give everything back."""
        self._module.close()

    @property
    def sources(self) -> Mapping[int, tuple[int, int]]:
        """Descriptors by which the library has the code, and their file: what `Box.keeps` takes."""
        return self._module.sources

    def run(self, guest: Guest, *, last: bool = False) -> Stop:
        """Run it to its end; `last`: nothing is run in this process after it."""
        store = Store(self._module.artefact, guest)
        try:
            store.give_wasi()
            instance, stop = self._module.instantiate(store)
            if stop is None:
                if last:
                    _close(self.sources)
                found = Extern()
                library().wasmtime_instance_export_get(
                    store.context, byref(instance), _START, len(_START), byref(found)
                )
                stop = call(store, found, None, 0)
            if stop is None or store.context in self._codes:
                return Stop("exit", code=self._codes.get(store.context, 0))
            return _limited(stop, memory_size(store, instance), guest)
        finally:
            self._codes.pop(store.context, None)
            store.close()

    def _exit(self, caller: int, values: Any) -> int | None:
        # Wasmtime's own proc_exit takes every code from 126 on for an error.
        self._codes[library().wasmtime_caller_context(caller)] = values[0].i32 & 0xFF
        trap: int = library().wasmtime_trap_new(b"exit", 4)
        return trap


def call(store: Store, function: Extern, values: Any, count: int) -> Stop | None:
    """Call an exported function with its values, which its results replace; why it did not return, or None."""
    trap = c_void_p()
    error = library().wasmtime_func_call_unchecked(store.context, byref(function, 8), values, count, byref(trap))
    return _stop(error, trap)


def memory_size(store: Store, instance: Any, name: bytes = b"memory") -> int:
    """Bytes of an exported memory; 0 when there is none of that name, or no instance (None): the library aborts when it is asked for that."""
    if instance is None:
        return 0
    found = Extern()
    there = library().wasmtime_instance_export_get(store.context, byref(instance), name, len(name), byref(found))
    if not there or found.kind != MEMORY:
        return 0
    size: int = library().wasmtime_memory_data_size(store.context, byref(found, 8))
    return size


def _limited(stop: Stop, size: int, guest: Guest) -> Stop:
    """A guest that is refused memory does what it likes, mostly to trap: then the limit is what the caller wants to hear of. It had `size` bytes."""
    if stop.kind != "trap" or guest.memory is None or 2 * size < guest.memory:
        return stop
    had = f"it had {size // MiB} of {guest.memory // MiB} MiB when it stopped: {stop.message}"
    return Stop("limit", had, limit="memory")


def _mapped(artefact: Artefact) -> tuple[int, Mapping[int, tuple[int, int]]]:
    """The code, mapped or copied from its descriptor, which is closed; and the library's own descriptors of what was mapped, with its identity
    (device, inode): it maps the first content of an instance's memory from there."""
    pointer = c_void_p()
    what = "component" if artefact.component else "module"
    try:
        if artefact.size <= SMALL:  # also where the descriptor may not be opened once more
            code = os.pread(artefact.descriptor, artefact.size, 0)
            error = getattr(library(), f"wasmtime_{what}_deserialize")(
                engine(artefact.options), code, len(code), byref(pointer)
            )
            _check(error)
            return pointer.value or 0, {}
        path = f"/proc/self/fd/{artefact.descriptor}".encode()
        error = getattr(library(), f"wasmtime_{what}_deserialize_file")(engine(artefact.options), path, byref(pointer))
        sources = _descriptors(artefact.descriptor)
    finally:
        os.close(artefact.descriptor)
    _check(error)
    return pointer.value or 0, sources


def _descriptors(like: int) -> Mapping[int, tuple[int, int]]:
    """All others that are open of the same file."""
    found = {}
    wanted = os.fstat(like)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            seen = os.fstat(int(name))
            if int(name) != like and (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                found[int(name)] = (seen.st_dev, seen.st_ino)
    return found


def _close(sources: Iterable[int]) -> None:
    """What the guest needs no more: its memory is there."""
    for descriptor in sources:
        with suppress(OSError):
            os.close(descriptor)


def _check(error: int | None) -> None:
    if error:
        raise RoostError("the program can not be loaded", message_of_error(error))


def _stop(error: int | None, trap: c_void_p) -> Stop | None:
    if error:
        return stop_of_error(error)
    return stop_of_trap(trap.value) if trap.value else None


def _foreign(stop: Stop) -> Stop:
    if stop.kind == "error":
        return Stop("error", f"it was made for another host: {stop.message}")
    return stop


def _function_type(parameters: list[int], results: list[int]) -> int:
    lib = library()
    vectors = [Vector(), Vector()]
    for vector, kinds in zip(vectors, (parameters, results), strict=True):
        types = (c_void_p * len(kinds))(*[lib.wasm_valtype_new(kind) for kind in kinds])
        lib.wasm_valtype_vec_new(byref(vector), len(kinds), types)
    made: int = lib.wasm_functype_new(byref(vectors[0]), byref(vectors[1]))
    return made


def _kinds(shape: int) -> tuple[list[int], list[int]] | None:
    lib = library()
    function = lib.wasm_externtype_as_functype_const(shape)
    if not function:
        return None
    found = []
    for vector in (lib.wasm_functype_params(function), lib.wasm_functype_results(function)):
        types = Vector.from_address(vector)
        found.append([lib.wasm_valtype_kind(each) for each in types.data[: types.size]])
    return found[0], found[1]


def _name(vector: int) -> str:
    """A name, which stays the library's."""
    found = ByteVector.from_address(vector)
    return string_at(found.data, found.size).decode("utf-8", "replace") if found.data else ""
