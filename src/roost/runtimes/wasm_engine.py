"""Wasmtime's engines, and what its errors and traps mean."""

from __future__ import annotations

from ctypes import byref, c_int32, c_uint8, create_string_buffer

from roost.light import NamedTuple
from roost.runtimes.libwasmtime import ByteVector, library, take_bytes

CRANELIFT, WINCH = 1, 2
"""WASMTIME_STRATEGY_*: the compiler for fast code, and the one that compiles fast."""

_NO_OPTIMIZATION, _SINGLE_PASS = 0, 1  # WASMTIME_OPT_LEVEL_NONE, WASMTIME_REGALLOC_SINGLE_PASS
_LONGEST = 2000  # characters of a message: a guest chooses the names in it
_MEMORY_LIMITS = ("exceeds memory limits", "memory limit", "exceeds the limit of allocations", "GC heap out of memory")
_SIGACTION = 152  # bytes of struct sigaction, as the C library has it
_TRAP = "wasm trap: "
_RUNNING, _CAUSE = "error while executing at wasm backtrace", "Caused by: "
_TRAPS = {
    0: "stack overflow",
    1: "out of bounds memory access",
    2: "misaligned memory access",
    3: "out of bounds table access",
    4: "indirect call to null",
    5: "indirect call of a function of another type",
    6: "integer overflow",
    7: "integer division by zero",
    8: "invalid conversion to integer",
    9: "unreachable executed",
    10: "interrupted",
    11: "out of fuel",
}
_PHRASES = {
    "call stack exhausted": 0,
    "out of bounds memory access": 1,
    "integer divide by zero": 7,
    "wasm `unreachable` instruction executed": 9,
    "interrupt": 10,
    "all fuel consumed by WebAssembly": 11,
}
"""How Wasmtime says what `_TRAPS` has: a component tells its traps only in words."""


class Options(NamedTuple):
    """What code is compiled for, and by which compiler: code fits only an engine with the same options."""

    strategy: int = CRANELIFT
    fuel: bool = False
    epochs: bool = False


class Stop(NamedTuple):
    """Why a guest stopped before its function returned: `kind` is exit (`code`), trap, limit (`limit` names the policy's field) or error."""

    kind: str
    message: str = ""
    code: int = 0
    limit: str = ""


_engines: dict[Options, int] = {}


def engine(options: Options) -> int:
    """The one engine of this process with these options; it lives as long as the process."""
    found = _engines.get(options)
    if found is None:
        lib = library()
        config = lib.wasm_config_new()
        lib.wasmtime_config_strategy_set(config, options.strategy)
        lib.wasmtime_config_consume_fuel_set(config, options.fuel)
        lib.wasmtime_config_epoch_interruption_set(config, options.epochs)
        if options.strategy == WINCH:  # which has Cranelift make what leads into each function: as quickly as that can
            lib.wasmtime_config_cranelift_opt_level_set(config, _NO_OPTIMIZATION)
            lib.wasmtime_config_cranelift_regalloc_algorithm_set(config, _SINGLE_PASS)
        found = _engines.setdefault(options, lib.wasm_engine_new_with_config(config))
    return found


def trap_handlers() -> dict[int, bytes]:
    """The signal actions by which the library turns faults of its guests into traps; `set_trap_handlers` brings them back in a forked child."""
    return {number: _sigaction(number, None) for number in (4, 7, 8, 11)}  # SIGILL, SIGBUS, SIGFPE, SIGSEGV


def set_trap_handlers(actions: dict[int, bytes]) -> None:
    """Put signal actions in place again: a sandbox starts its program with none."""
    for number, action in actions.items():
        _sigaction(number, action)


def _sigaction(number: int, action: bytes | None) -> bytes:
    before = create_string_buffer(_SIGACTION)
    library().sigaction(number, action, before)
    return before.raw


def stop_of_error(error: int) -> Stop:
    """What an error means, which is given back to the library."""
    lib = library()
    status = c_int32()
    if lib.wasmtime_error_exit_status(error, byref(status)):
        lib.wasmtime_error_delete(error)
        return Stop("exit", code=status.value)
    text = message_of_error(error)
    _, found, cause = text.rpartition(_TRAP)
    if found:
        number = _PHRASES.get(cause.strip(), -1)
        return _stop_of_trap(number, cause.strip())
    if any(phrase in text for phrase in _MEMORY_LIMITS):
        return Stop("limit", _cause(text), limit="memory")
    if text.startswith(_RUNNING):  # it called the host with what no call takes, as a pointer out of its memory
        return Stop("trap", f"a call of the host was refused: {_cause(text)}")
    return Stop("error", text)


def stop_of_trap(trap: int) -> Stop:
    """What a trap means, which is given back to the library."""
    lib = library()
    code, text = c_uint8(), ByteVector()
    known = lib.wasmtime_trap_code(trap, byref(code))
    lib.wasm_trap_message(trap, byref(text))
    lib.wasm_trap_delete(trap)
    message = clean(take_bytes(text))
    return _stop_of_trap(code.value if known else -1, _cause(message.rpartition(_TRAP)[2]))


def _cause(text: str) -> str:
    """The last words of an error, without the way it came."""
    return text.rpartition(_CAUSE)[2].strip()


def message_of_error(error: int) -> str:
    """The words of an error, which is given back to the library."""
    text = ByteVector()
    library().wasmtime_error_message(error, byref(text))
    library().wasmtime_error_delete(error)
    return clean(take_bytes(text))


def clean(text: bytes) -> str:
    """Words of the library as one printable line: they quote the guest."""
    words = text.decode("utf-8", "replace").replace("\0", "").split()
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(words))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def _stop_of_trap(number: int, words: str) -> Stop:
    if number == 11:
        return Stop("limit", "it has used up its fuel", limit="fuel")
    if number == 10:
        return Stop("limit", "it has used up its time", limit="wall")
    return Stop("trap", _TRAPS.get(number) or words)
