"""The door to Wasmtime: those functions of its C library that we use, found in the wheel without importing the wheel's package.

That import costs 50 ms; this one two. The prototypes are those of the header files of version 50 (wasmtime.h, wasi.h, wasm.h).
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import (
    c_bool,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

from roost.errors import Unavailable
from roost.light import Any

VERSIONS = (50, 51)
"""The first major version that fits, and the first that is not known to: the library changes prototypes between majors."""

FIX = f"pip install 'wasmtime>={VERSIONS[0]},<{VERSIONS[1]}'"

FUNC, MEMORY = 0, 3
"""WASMTIME_EXTERN_*: kinds of an export."""

I32, I64, F32, F64 = range(4)
"""WASM_I32 and so on: kinds of a value."""

_TYPES = {
    "p": c_void_p,
    "s": c_char_p,
    "z": c_size_t,
    "b": c_bool,
    "i": c_int64,
    "u": c_uint64,
    "w": c_uint32,
    "k": c_uint8,
}

# Name: the letters of the result (- for none) and of the parameters.
_PROTOTYPES = {
    "sigaction": "wwss",  # the C library's, which this one is linked to
    "malloc_usable_size": "zp",  # so is this
    "wasm_config_new": "p",
    "wasm_engine_new_with_config": "pp",
    "wasmtime_config_strategy_set": "-pk",
    "wasmtime_config_consume_fuel_set": "-pb",
    "wasmtime_config_epoch_interruption_set": "-pb",
    "wasmtime_config_cranelift_opt_level_set": "-pk",
    "wasmtime_config_cranelift_regalloc_algorithm_set": "-pk",
    "wasmtime_engine_increment_epoch": "-p",
    "wasm_byte_vec_new": "-pzs",
    "wasm_byte_vec_delete": "-p",
    "wasmtime_wat2wasm": "pszp",
    "wasmtime_error_new": "ps",
    "wasmtime_error_delete": "-p",
    "wasmtime_error_message": "-pp",
    "wasmtime_error_exit_status": "bpp",
    "wasmtime_trap_new": "psz",
    "wasmtime_trap_code": "bpp",
    "wasm_trap_delete": "-p",
    "wasm_trap_message": "-pp",
    "wasmtime_module_new": "ppszp",
    "wasmtime_module_delete": "-p",
    "wasmtime_module_serialize": "ppp",
    "wasmtime_module_deserialize": "ppszp",
    "wasmtime_module_deserialize_file": "ppsp",
    "wasmtime_module_imports": "-pp",
    "wasmtime_module_exports": "-pp",
    "wasm_importtype_vec_delete": "-p",
    "wasm_importtype_module": "pp",
    "wasm_importtype_name": "pp",
    "wasm_importtype_type": "pp",
    "wasm_exporttype_vec_delete": "-p",
    "wasm_exporttype_name": "pp",
    "wasm_exporttype_type": "pp",
    "wasm_externtype_as_functype_const": "pp",
    "wasm_functype_new": "ppp",
    "wasm_functype_delete": "-p",
    "wasm_functype_params": "pp",
    "wasm_functype_results": "pp",
    "wasm_valtype_kind": "kp",
    "wasm_valtype_new": "pk",
    "wasm_valtype_vec_new": "-pzp",
    "wasmtime_store_new": "pppp",
    "wasmtime_store_delete": "-p",
    "wasmtime_store_context": "pp",
    "wasmtime_store_limiter": "-piiiii",
    "wasmtime_context_set_fuel": "ppu",
    "wasmtime_context_set_epoch_deadline": "-pu",
    "wasmtime_context_set_wasi": "ppp",
    "wasi_config_new": "p",
    "wasi_config_delete": "-p",
    "wasi_config_set_argv": "bpzp",
    "wasi_config_set_env": "bpzpp",
    "wasi_config_inherit_stdin": "-p",
    "wasi_config_inherit_stdout": "-p",
    "wasi_config_inherit_stderr": "-p",
    "wasi_config_set_stdin_bytes": "-pp",
    "wasi_config_set_stdout_custom": "-pppp",
    "wasi_config_set_stderr_custom": "-pppp",
    "wasi_config_inherit_network": "-p",
    "wasi_config_allow_ip_name_lookup": "-pb",
    "wasi_config_preopen_dir": "bpssb",
    "wasmtime_linker_new": "pp",
    "wasmtime_linker_delete": "-p",
    "wasmtime_linker_allow_shadowing": "-pb",
    "wasmtime_linker_define_wasi": "pp",
    "wasmtime_linker_define_func_unchecked": "ppszszpppp",
    "wasmtime_linker_instantiate_pre": "pppp",
    "wasmtime_instance_pre_delete": "-p",
    "wasmtime_instance_pre_instantiate": "ppppp",
    "wasmtime_instance_export_get": "bppszp",
    "wasmtime_func_call_unchecked": "ppppzp",
    "wasmtime_caller_export_get": "bpszp",
    "wasmtime_caller_context": "pp",
    "wasmtime_memory_data": "ppp",
    "wasmtime_memory_data_size": "zpp",
    "wasmtime_component_new": "ppszp",
    "wasmtime_component_delete": "-p",
    "wasmtime_component_serialize": "ppp",
    "wasmtime_component_deserialize": "ppszp",
    "wasmtime_component_deserialize_file": "ppsp",
    "wasmtime_component_get_export_index": "pppsz",
    "wasmtime_component_linker_new": "pp",
    "wasmtime_component_linker_delete": "-p",
    "wasmtime_component_linker_add_wasip2": "pp",
    "wasmtime_component_linker_allow_shadowing": "-pb",
    "wasmtime_component_linker_root": "pp",
    "wasmtime_component_linker_instance_add_instance": "ppszp",
    "wasmtime_component_linker_instance_add_func": "ppszppp",
    "wasmtime_component_linker_instance_delete": "-p",
    "wasmtime_component_linker_instantiate": "ppppp",
    "wasmtime_component_instance_get_func": "bpppp",
    "wasmtime_component_func_call": "ppppzpz",
}


class ByteVector(ctypes.Structure):
    """wasm_byte_vec_t: bytes that the library allocated."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))
    size: int
    data: int | None


class Vector(ctypes.Structure):
    """wasm_importtype_vec_t and its like: pointers to what the library allocated."""

    _fields_ = (("size", c_size_t), ("data", ctypes.POINTER(c_void_p)))
    size: int
    data: ctypes._Pointer[c_void_p]


class Extern(ctypes.Structure):
    """wasmtime_extern_t: `kind`, and what of that kind it is."""

    _fields_ = (("kind", c_uint8), ("of", c_uint64 * 3))
    kind: int


class Value(ctypes.Union):
    """wasmtime_val_raw_t: one value; its type is known by the function's."""

    _fields_ = (("i32", c_int32), ("i64", c_int64), ("f32", c_float), ("f64", c_double), ("v128", c_uint64 * 2))
    i32: int
    i64: int
    f32: float
    f64: float


Callback = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, ctypes.POINTER(Value), c_size_t)
"""wasmtime_func_unchecked_callback_t: (environment, caller, arguments and results, their number) -> a trap, or None."""

ComponentCallback = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)
"""wasmtime_component_func_callback_t: (environment, context, type, arguments, number, results, number) -> an error, or None."""

PAYLOAD = 8
"""Where a wasmtime_component_val_t has its value: an integer, or whether a result is ok."""

Writer = ctypes.CFUNCTYPE(ctypes.c_ssize_t, c_void_p, c_void_p, c_size_t)
"""What takes a guest's output: (environment, data, size) -> how much of it was taken, or -errno."""


class _Library(ctypes.CDLL):
    """The prototype of a function is set when it is first used, as most are not in one run; before that nobody sees it."""

    def __getattr__(self, name: str) -> Any:
        letters = _PROTOTYPES.get(name)
        if letters is None:
            raise AttributeError(name)
        function = self[name]
        function.restype = _TYPES.get(letters[0])
        kinds: list[Any] = [_TYPES[letter] for letter in letters[1:]]
        function.argtypes = kinds
        setattr(self, name, function)
        return function


_places: dict[tuple[str, ...], str] = {}
_library: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The C library with its prototypes set. Raises Unavailable where there is none, or none that fits."""
    global _library
    if _library is None:
        _library = _load(find())
    return _library


def find() -> str:
    """The path of the C library. Raises Unavailable."""
    known = _places.get(tuple(sys.path))
    if known:
        return known
    below = f"wasmtime/linux-{os.uname().machine}/_libwasmtime.so"
    for directory in sys.path:
        path = os.path.join(directory, below)
        if directory.startswith("/") and os.path.isfile(path):
            _check_version(version(directory))
            _places[tuple(sys.path)] = path
            return path
    raise Unavailable("WebAssembly programs can not run here", "the Python package wasmtime is not installed", FIX)


def version(directory: str) -> str:
    """The version of the wheel that is installed in a directory of sys.path; "" when it does not say."""
    for name in os.listdir(directory):
        if name.startswith("wasmtime-") and name.endswith(".dist-info"):
            return name[len("wasmtime-") : -len(".dist-info")]
    return ""


def take_bytes(vector: ByteVector) -> bytes:
    """The content of a vector, which is given back to the library."""
    content = ctypes.string_at(vector.data, vector.size) if vector.data else b""
    library().wasm_byte_vec_delete(ctypes.byref(vector))
    return content


def _check_version(found: str) -> None:
    major = found.partition(".")[0]
    if not major.isdigit() or not VERSIONS[0] <= int(major) < VERSIONS[1]:
        raise Unavailable(
            "WebAssembly programs can not run here", f"the Python package wasmtime has version {found or '?'}", FIX
        )


def _load(path: str) -> ctypes.CDLL:
    try:
        return _Library(path)
    except OSError as error:
        raise Unavailable("WebAssembly programs can not run here", f"{path}: {error}", FIX) from None
