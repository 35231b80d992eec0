"""What `roost inspect` says of a program: what it is, what runs it, what is missing, its policy, and the layers that would hold it."""

from __future__ import annotations

import os
from typing import Any

from roost.errors import RoostError
from roost.runtimes import detect, policy, registry
from roost.runtimes.base import MISSING, UNKNOWN, Command, Found, Need, Policy, Request, Runtime
from roost.runtimes.session import Session

_SECONDS = 10.0
"""How long the sandbox that is made to see which layers hold may take."""

_ON_REQUEST = "control group"
"""The layer that short runs do without unless it is required."""


def inspect(path: str, allowed: Policy | None = None, vm: str = "") -> dict[str, Any]:
    """What there is to know of a program, of JSON's types; nothing of the file is executed. `missing` has what must be installed and by which line,
    `missing_layers` what does not hold here and why.

    `code` is what running it would end with before it began: 0, 126 (its runtime is missing, or nothing runs its kind) or 127 (of no known
    kind). The policy's variables are named without their values. Raises NotFound when there is no such file, Invalid when `vm` does not fit.
    """
    allowed = allowed or Policy()
    found = detect.detect(path)
    runtime, refusal = _runtime(found, vm)
    needs = runtime.needs(found) if runtime else ()
    layers, missing = _layers(runtime, allowed)
    absent = [layer for layer in allowed.require if runtime and layer not in layers]
    seen = {
        "file": path,
        "kind": found.kind,
        "arch": found.arch,
        "details": dict(found.details),
        "runtime": runtime.name if runtime else "",
        "installed": dict(runtime.probe()) if runtime else {},
        "others": [each.name for each in _others(found, runtime)],
        "missing": [need._asdict() for need in needs],
        "refusal": refusal.why if refusal else "",
        "fix": refusal.fix if refusal else " && ".join(dict.fromkeys(need.install for need in needs)),
        "policy": policy.to_mapping(allowed, secrets=False),
        "layers": layers,
        "missing_layers": [*missing, *(f"{layer}: required, and does not hold here" for layer in absent)],
        "code": _code(found, needs, refusal),
    }
    return {name: _plain(value) for name, value in seen.items()}


def _runtime(found: Found, vm: str) -> tuple[Runtime | None, RoostError | None]:
    if vm:
        return registry.choose(found, vm), None
    try:
        return registry.choose(found), None
    except RoostError as refusal:
        return None, refusal


def _others(found: Found, chosen: Runtime | None) -> list[Runtime]:
    if chosen is None:
        return []
    return [each for each in registry.candidates(found) if each.name != chosen.name]


def _code(found: Found, needs: tuple[Need, ...], refusal: RoostError | None) -> int:
    if refusal and found.kind == "unknown":
        return UNKNOWN
    return MISSING if refusal or needs else 0


def _layers(runtime: Runtime | None, allowed: Policy) -> tuple[list[str], list[str]]:
    """The layers that hold a program on this host, and those that do not, seen at a sandbox in which nothing is done."""
    if runtime is None:
        return [], []
    asked = tuple(layer for layer in allowed.require if layer == _ON_REQUEST)
    bounds = Policy(memory=allowed.memory, cpu_time=allowed.cpu_time, wall=_SECONDS, require=asked)
    command = Command(call=_nothing, layers=_own_layers(runtime.name, allowed))
    try:
        with Session(Request(file="inspect", policy=bounds), command, (-1, -1, -1)) as session:
            session.start()
            session.finish()
    except RoostError as error:
        return [], [f"sandbox: {error.why or error.what}"]
    return list(session.layers), list(session.missing)


def _nothing() -> int:
    return 0


def _own_layers(name: str, allowed: Policy) -> tuple[str, ...]:
    """What the built-in runtimes enforce themselves."""
    if name == "wasm":
        return ("wasi",) if allowed.fuel is None else ("wasi", "fuel")
    heap = {"jvm": "-Xmx", "clr": "max-heap-size"}
    return (heap[name],) if name in heap and allowed.memory is not None else ()


def _plain(value: Any) -> Any:
    """`value` of JSON's types; bytes of names that are no UTF-8 become replacement characters."""
    if isinstance(value, str | os.PathLike):
        return _text(os.fspath(value))
    if isinstance(value, dict):
        return {_text(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else _text(str(value))


def _text(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
