"""Which runtime runs a file: the built-in ones by a table, imported when they are asked; those of third parties by entry points."""

from __future__ import annotations

from roost.errors import Invalid, NotFound, RoostError, Unavailable
from roost.light import Iterator, import_module
from roost.runtimes.base import Found, Runtime

GROUP = "roost.runtimes"
"""The entry points of third parties: NAME = "module:callable"; the callable gives a Runtime of that name."""

BUILT_IN = {
    "wasm": ("roost.runtimes.wasm", "WasmRuntime"),
    "jvm": ("roost.runtimes.jvm", "Jvm"),
    "wine": ("roost.runtimes.wine", "Wine"),
    "clr": ("roost.runtimes.clr", "Clr"),
    "foreign": ("roost.runtimes.foreign", "Foreign"),
    "native": ("roost.runtimes.native", "Native"),
    "script": ("roost.runtimes.script", "Script"),
}
"""Where each is. A name of this table is never a third party's."""

_FITTING = {
    "wasm": ("wasm",), "component": ("wasm",), "wat": ("wasm",), "elf": ("native", "foreign"), "class": ("jvm",), "jar": ("jvm",),
    "pyz": ("script", "wasm"), "exe": ("wine",), "clr": ("clr", "wine"), "script": ("script", "wasm"),
}  # fmt: skip
"""Which of them may run a kind, so that no other is imported."""


def choose(found: Found, vm: str = "") -> Runtime:
    """The runtime for a file: the one named `vm`, else the one that scores highest; of equals, the first that lacks nothing.

    Raises NotFound for a file of no known kind, Unavailable for one that is known and that nothing runs, Invalid when `vm` does not fit.
    """
    if vm:
        return _named(vm, found)
    fitting = candidates(found)
    if not fitting:
        raise refused(found)
    return fitting[0]


def candidates(found: Found) -> tuple[Runtime, ...]:
    """All runtimes for a file, the best first; for one that is refused only those of third parties, which may know better.

    They are looked up only when no built-in one fits: that costs ten milliseconds.
    """
    names = () if found.refusal else _FITTING.get(found.kind, ())
    fitting = [each for each in map(built_in, names) if each.score(found) > 0]
    if not fitting:
        fitting = [each for each in _third_parties() if each.score(found) > 0]
    if len(fitting) > 1:
        fitting.sort(key=lambda each: (-each.score(found), bool(each.needs(found))))
    return tuple(fitting)


def all_runtimes() -> tuple[Runtime, ...]:
    """Every runtime there is, the built-in ones first."""
    return (*map(built_in, BUILT_IN), *_third_parties())


def refused(found: Found) -> RoostError:
    """The error that says why a file does not run: NotFound when its kind is not known, else Unavailable."""
    kind = NotFound if found.kind == "unknown" else Unavailable
    fix = found.fix or "roost inspect FILE shows what it is; a package with a runtime for it may be installed"
    return kind("the program can not run", found.refusal or f"no runtime runs {describe(found)}", fix)


def describe(found: Found) -> str:
    """The kind of a file in words."""
    article = "an" if found.kind[:1] in "aeiou" else "a"
    return f"{article} {found.kind}" + (f" for {found.arch}" if found.arch else "")


def _named(vm: str, found: Found) -> Runtime:
    runtime = built_in(vm) if vm in BUILT_IN else next((each for each in _third_parties(vm) if each.name == vm), None)
    if runtime is None:
        names = ", ".join([*BUILT_IN, *(each.name for each in _third_parties())])
        raise Invalid(f"there is no runtime {vm!r}", f"there are {names}", "leave --vm out: the file's content decides")
    if runtime.score(found) > 0:
        return runtime
    if found.refusal:
        raise refused(found)
    names = ", ".join(each.name for each in candidates(found)) or "none"
    raise Invalid(
        f"the runtime {vm} does not run this file",
        f"it is {describe(found)}; runtimes for that: {names}",
        f"roost run --vm {names.partition(',')[0]}, or leave --vm out" if names != "none" else "leave --vm out",
    )


def built_in(name: str) -> Runtime:
    """A built-in runtime by its name; imports it."""
    module, attribute = BUILT_IN[name]
    made: Runtime = getattr(import_module(module), attribute)()
    return made


def _third_parties(wanted: str = "") -> Iterator[Runtime]:
    """Those that load; one that does not is an error only where it is `wanted`. Raises Unavailable."""
    from importlib.metadata import entry_points  # here, because it imports much

    for point in entry_points(group=GROUP):
        if point.name in BUILT_IN:
            continue
        try:
            made: Runtime = point.load()()
        except Exception as error:
            if point.name == wanted:
                why = f"{point.value} does not load: {type(error).__name__}: {error}"
                raise Unavailable(
                    f"the runtime {wanted} can not be used", why, "install the package that brings it again"
                ) from error
            continue
        yield made
