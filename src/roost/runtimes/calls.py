"""WebAssembly in the caller's own process: thousands of fresh, sandboxed calls a second, with typed traps and limits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import byref
from typing import Any

from roost.errors import Invalid, NotFound, RoostError
from roost.runtimes.base import FAILED, LIMIT, TRAPPED, Ending, MiB, Policy, Result
from roost.runtimes.libwasmtime import F32, F64, FUNC, I32, I64, MEMORY, Extern, Value, library
from roost.runtimes.wasm_compile import Artefact, artefact_of_bytes, artefact_of_file
from roost.runtimes.wasm_engine import Options, Stop
from roost.runtimes.wasm_memory import Memory
from roost.runtimes.wasm_program import Command, Component, Module, Store, call, memory_size
from roost.runtimes.wasm_ticks import ticker
from roost.runtimes.wasm_wasi import Guest, Output, preopens, root

_MEMORY = Policy().memory
_FIELDS = {I32: "i32", I64: "i64", F32: "f32", F64: "f64"}
_BITS = {I32: 32, I64: 64}
_Kinds = tuple[list[int], list[int]]


class Trap(RoostError):
    """A guest did what ends it: it reached `unreachable`, left its memory, overflowed its stack, divided by zero."""

    code = "trap"


class LimitReached(RoostError):
    """A guest was ended by a limit; `limit` names it: memory, fuel or wall."""

    code = "limit"

    def __init__(self, what: str, why: str = "", fix: str = "", limit: str = "") -> None:
        super().__init__(what, why, fix)
        self.limit = limit


class Wasm:
    """A module or component, compiled once, and called or run any number of times, each time in a fresh instance that knows nothing of others.

    `source` is a path, the bytes of a module, or its text (which starts with a parenthesis). `imports` maps "MODULE.NAME" to a callable that takes
    and gives ints and floats as the module's type of it says; one whose first parameter is called `memory` gets the caller's `Memory` there. What
    it raises ends the guest and arrives at the caller. Any number of threads may use one object at once: the guest runs without the GIL. A call
    without `wall` can not be interrupted, not by Ctrl-C either.

    Raises Invalid for what is no WebAssembly or wants what `imports` and WASI do not bring, NotFound, Unavailable.
    """

    def __init__(
        self, source: str | bytes | os.PathLike[str], *, imports: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        self._source = os.fspath(source)
        self._imports = dict(imports or {})
        self._loaded: dict[tuple[str, Options], Any] = {}
        self._lock = threading.Lock()
        self._raised: dict[int, BaseException] = {}
        self._load("component" if self._artefact(Options()).component else "module", Options())

    def call(
        self,
        name: str,
        *values: float,
        memory: int | None = _MEMORY,
        fuel: int | None = None,
        wall: float | None = None,
    ) -> Any:
        """Call an export of a fresh instance: its result, None for none, a tuple of many.

        `memory` in bytes, `fuel` in instructions, `wall` in seconds. Raises Trap, LimitReached, NotFound for no such function, Invalid for values
        that do not fit, and what an import raised.
        """
        with self.instance(memory=memory, fuel=fuel, wall=wall) as instance:
            return instance.call(name, *values)

    def instance(self, *, memory: int | None = _MEMORY, fuel: int | None = None, wall: float | None = None) -> Instance:
        """An instance that lasts until it is closed; `fuel` is for all its calls together, `wall` for each. Not for two threads at once."""
        options = Options(fuel=fuel is not None, epochs=wall is not None)
        module, functions = self._load("module", options)
        return Instance(module, functions, Guest(memory=memory, fuel=fuel, root=root()), wall, self._raised)

    def run(
        self,
        args: Sequence[str] = (),
        *,
        stdin: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        fs: Sequence[str] = (),
        output: int = 64 * MiB,
        **limits: Any,
    ) -> Result:
        """Run it as a command: args[0] is its name for itself, "program" when there are none; `fs` as in `roost run --fs`, `output` in bytes of
        each stream, and `memory`, `fuel`, `wall` as in `call`. It sees only that, and has no network.

        Enforced by WASI alone: `roost.run` adds the kernel's sandbox. Raises what the constructor raises; how the guest ended is in the result.
        """
        memory, fuel, wall = _limits(limits)
        options = Options(fuel=fuel is not None, epochs=wall is not None)
        program = self._load("command", options)
        outputs = Output(output), Output(output)
        guest = Guest(
            arguments=tuple(os.fsencode(word) for word in args or ("program",)),
            env=env or {},
            preopens=preopens(_grants(fs), os.getcwd()) if fs else (),
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            outputs=outputs,
            root=root(),
            memory=memory,
            fuel=fuel,
        )
        if wall is None:
            stop = program.run(guest)
        else:
            with ticker.running(program.artefact.options, wall) as deadline:
                stop = program.run(guest._replace(deadline=deadline))
        if stop.kind != "limit" and any(each.full for each in outputs):
            stop = Stop("limit", f"it wrote more than {output} bytes", limit="output")
        return Result(_ending(stop), "wasm", ("wasi",), stdout=outputs[0].content(), stderr=outputs[1].content())

    def _artefact(self, options: Options) -> Artefact:
        if isinstance(self._source, bytes):
            return artefact_of_bytes(self._source, options)
        if self._source.lstrip().startswith("("):
            return artefact_of_bytes(self._source.encode(), options)
        try:
            return artefact_of_file(os.path.abspath(self._source), options)
        except FileNotFoundError:
            raise NotFound(f"there is no file {self._source}") from None

    def _load(self, kind: str, options: Options) -> Any:
        """What runs it with these options, made when it is first asked for."""
        found = self._loaded.get((kind, options))
        if found is None:
            with self._lock:
                found = self._loaded.get((kind, options)) or self._make(kind, self._artefact(options))
                self._loaded[kind, options] = found
        return found

    def _make(self, kind: str, artefact: Artefact) -> Any:
        if artefact.component:
            if kind == "module":
                os.close(artefact.descriptor)
                raise Invalid(
                    "a component has no functions that can be called so", "only its command can be run", "use run()"
                )
            return Component(artefact)
        if kind == "command":
            return Command(artefact, self._define)
        module = Module(artefact)
        self._define(module)
        module.link()
        return module, {name: kinds for name, kinds in module.exports() if kinds is not None}

    def _define(self, module: Module) -> None:
        for space, name, kinds in module.imports():
            function = self._imports.get(f"{space}.{name}")
            if function is not None and kinds is not None:
                module.define(space.encode(), name.encode(), kinds, self._host(function, kinds))

    def _host(self, function: Callable[..., Any], kinds: _Kinds) -> Callable[[int, Any], int | None]:
        parameters, results = [_field(kind) for kind in kinds[0]], kinds[1]
        code = getattr(function, "__code__", None)
        wants_memory = code is not None and code.co_varnames[: code.co_argcount][:1] == ("memory",)

        def called(caller: int, values: Any) -> int | None:
            try:
                given = [getattr(values[index], field) for index, field in enumerate(parameters)]
                found = function(Memory.of_caller(caller), *given) if wants_memory else function(*given)
                _put(values, _as_tuple(found, len(results)), results)
            except BaseException as error:
                self._raised[library().wasmtime_caller_context(caller)] = error
                trap: int = library().wasmtime_trap_new(b"host", 4)
                return trap
            return None

        return called


class Instance:
    """One guest that keeps its memory from call to call. Close it, or use it in `with`."""

    def __init__(
        self,
        module: Module,
        functions: Mapping[str, _Kinds],
        guest: Guest,
        wall: float | None,
        raised: dict[int, BaseException],
    ) -> None:
        self._functions, self._guest, self._wall, self._raised = functions, guest, wall, raised
        self._options = module.artefact.options
        self._store = Store(module.artefact, guest)
        try:
            self._pointer, stop = self._timed(lambda: module.instantiate(self._store))
            self._check(stop)
        except BaseException:
            self._store.close()
            raise
        self._open = True

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.close()

    def close(self) -> None:
        """Give its memory back. Once is enough, and more often does no harm."""
        if self._open:
            self._open = False
            self._store.close()

    @property
    def memory(self) -> Memory:
        """What it exports as "memory". Raises NotFound; Invalid after `close`."""
        found = self._export("memory", MEMORY)
        return Memory(self._store.context, found)

    def call(self, name: str, *values: float) -> Any:
        """As `Wasm.call`, in this instance."""
        kinds = self._functions.get(name)
        if kinds is None:
            raise NotFound(f"the module has no function {name!r}", f"it exports {', '.join(self._functions) or 'none'}")
        function = self._export(name, FUNC)
        count = max(len(kinds[0]), len(kinds[1]))
        slots = (Value * count)()
        _put(slots, values, kinds[0])
        self._check(self._timed(lambda: call(self._store, function, slots, count)))
        found = tuple(getattr(slots[index], _field(kind)) for index, kind in enumerate(kinds[1]))
        return found if len(found) > 1 else found[0] if found else None

    def _export(self, name: str, kind: int) -> Extern:
        if not self._open:
            raise Invalid("the instance is closed")
        found, encoded = Extern(), name.encode()
        there = library().wasmtime_instance_export_get(
            self._store.context, byref(self._pointer), encoded, len(encoded), byref(found)
        )
        if not there or found.kind != kind:
            raise NotFound(f"the module does not export {name!r}")
        return found

    def _timed(self, work: Callable[[], Any]) -> Any:
        if self._wall is None:
            return work()
        with ticker.running(self._options, self._wall) as deadline:
            library().wasmtime_context_set_epoch_deadline(self._store.context, deadline)
            return work()

    def _check(self, stop: Stop | None) -> None:
        raised = self._raised.pop(self._store.context, None)
        if raised is not None:
            raise raised
        if stop is None:
            return
        if stop.kind == "limit":
            raise LimitReached("the guest was ended by a limit", stop.message, f"give it more {stop.limit}", stop.limit)
        if stop.kind == "trap":
            raise self._trap(stop)
        raise RoostError("the guest ended", stop.message or f"it left with {stop.code}")

    def _trap(self, stop: Stop) -> RoostError:
        size = memory_size(self._store, self._pointer)
        if self._guest.memory is not None and 2 * size >= self._guest.memory:
            why = f"it had {size} of {self._guest.memory} bytes when it stopped: {stop.message}"
            return LimitReached("the guest was ended by a limit", why, "give it more memory", "memory")
        return Trap("the guest trapped", stop.message)


def _field(kind: int) -> str:
    if kind not in _FIELDS:
        raise Invalid("the function can not be called from Python", "it has a parameter or result that is no number")
    return _FIELDS[kind]


def _put(slots: Any, values: Sequence[Any], kinds: list[int]) -> None:
    if len(values) != len(kinds):
        raise Invalid("the values do not fit", f"there are {len(values)}, and {len(kinds)} are wanted")
    for index, kind in enumerate(kinds):
        setattr(slots[index], _field(kind), _number(values[index], kind))


def _number(value: Any, kind: int) -> float:
    bits = _BITS.get(kind)
    if bits is None:
        return float(value)
    if not isinstance(value, int) or not -(1 << (bits - 1)) <= value < 1 << bits:
        raise Invalid("the values do not fit", f"{value!r} is no integer of {bits} bits")
    return value


def _as_tuple(found: Any, count: int) -> tuple[Any, ...]:
    if count == 0:
        return ()
    return tuple(found) if count > 1 else (found,)


def _limits(given: Mapping[str, Any]) -> tuple[int | None, int | None, float | None]:
    unknown = set(given) - {"memory", "fuel", "wall"}
    if unknown:
        raise TypeError(f"run() got an unexpected keyword argument {unknown.pop()!r}")
    return given.get("memory", _MEMORY), given.get("fuel"), given.get("wall")


def _grants(fs: Sequence[str]) -> Any:
    from roost.runtimes import policy

    return policy.from_mapping({"fs": list(fs)}).fs


def _ending(stop: Stop) -> Ending:
    if stop.kind == "exit":
        return Ending(stop.code & 0xFF)
    code = {"limit": LIMIT, "trap": TRAPPED}.get(stop.kind, FAILED)
    return Ending(code, "failed" if stop.kind == "error" else stop.kind, limit=stop.limit, message=stop.message)
