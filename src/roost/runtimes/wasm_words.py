"""Arguments that are no UTF-8, for modules of WASI preview 1: Wasmtime takes only text, where a native program gets bytes."""

from __future__ import annotations

from roost.errors import RoostError
from roost.light import Any, Callable
from roost.runtimes.libwasmtime import I32
from roost.runtimes.wasm_memory import Memory

_FAULT = 21  # of the errno of WASI


def is_text(word: bytes) -> bool:
    """Whether Wasmtime takes it."""
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True


def functions(words: tuple[bytes, ...]) -> dict[bytes, tuple[tuple[list[int], list[int]], Callable[[int, Any], None]]]:
    """The functions of `wasi_snapshot_preview1` that tell a guest its arguments: by name the kinds of their values, and what they do."""
    text = b"".join(word + b"\0" for word in words)

    def sizes(memory: Memory, count: int, size: int) -> None:
        memory.write(count, len(words).to_bytes(4, "little"))
        memory.write(size, len(text).to_bytes(4, "little"))

    def get(memory: Memory, pointers: int, buffer: int) -> None:
        memory.write(buffer, text)
        for index, word in enumerate(words):
            memory.write(pointers + 4 * index, buffer.to_bytes(4, "little"))
            buffer += len(word) + 1

    kinds = ([I32, I32], [I32])
    return {b"args_sizes_get": (kinds, _told(sizes)), b"args_get": (kinds, _told(get))}


def _told(write: Callable[[Memory, int, int], None]) -> Callable[[int, Any], None]:
    def called(caller: int, values: Any) -> None:
        try:
            write(Memory.of_caller(caller), values[0].i32 & 0xFFFFFFFF, values[1].i32 & 0xFFFFFFFF)
        except (RoostError, OverflowError):
            values[0].i32 = _FAULT
        else:
            values[0].i32 = 0

    return called
