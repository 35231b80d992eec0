"""The memory of a WebAssembly guest, as its host reads and writes it."""

from __future__ import annotations

from ctypes import byref, memmove, string_at

from roost.errors import Invalid
from roost.runtimes.libwasmtime import MEMORY, Extern, library

_RESERVED = 1 << 30
"""Bytes of address space at least that Wasmtime keeps free behind each linear memory (4 GiB and a guard, less the memory)."""


def largest() -> int:
    """Bytes of the largest linear memory in this process; a component exports none that could be asked. 0 when it can not be told.

    Wasmtime reserves what a memory may grow to, and opens so much of it as it has.
    """
    found, size, end = 0, 0, 0
    try:
        with open("/proc/self/maps", "rb") as file:
            for line in file:
                place, rights = line.split(b" ", 2)[:2]
                first, last = (int(word, 16) for word in place.split(b"-"))
                if rights == b"---p" and first == end and last - first >= _RESERVED:
                    found = max(found, size)
                before = size if first == end else 0
                size, end = before + last - first if rights == b"rw-p" else 0, last
    except (OSError, ValueError):
        return 0
    return found


class Memory:
    """The linear memory of an instance, or of the guest that is calling us. Each access looks at its size anew; Invalid for what is outside."""

    def __init__(self, context: int, memory: Extern) -> None:
        self._context = context
        self._memory = memory

    @classmethod
    def of_caller(cls, caller: int) -> Memory:
        """That which the caller exports as "memory"."""
        lib, found = library(), Extern()
        if not lib.wasmtime_caller_export_get(caller, b"memory", 6, byref(found)) or found.kind != MEMORY:
            raise Invalid("the guest has no memory that can be read", 'it exports none as "memory"')
        return cls(lib.wasmtime_caller_context(caller), found)

    @property
    def size(self) -> int:
        """In bytes."""
        size: int = library().wasmtime_memory_data_size(self._context, byref(self._memory, 8))
        return size

    def read(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes."""
        return string_at(self._address(offset, size), size)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there."""
        memmove(self._address(offset, len(data)), data, len(data))

    def _address(self, offset: int, size: int) -> int:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Invalid(f"{size} bytes at {offset} are outside of the guest's memory", f"it has {self.size} bytes")
        start: int = library().wasmtime_memory_data(self._context, byref(self._memory, 8))
        return start + offset
