"""The memory of a WebAssembly guest, as its host reads and writes it."""

from __future__ import annotations

from ctypes import byref, memmove, string_at

from roost.errors import Invalid
from roost.runtimes.libwasmtime import MEMORY, Extern, library


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
