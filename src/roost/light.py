"""What a short run uses of typing, collections.abc, contextlib and signal, without those modules, whose import takes longer than the run.

`light.pyi` tells type checkers that these are the real ones; what is here behaves like them as far as it goes (tests/unit/test_light.py).
"""

# The types of this module are in the stub.

import _signal as signal
import sys
from _collections import _tuplegetter
from _collections_abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

__all__ = [
    "Any", "Callable", "ExitStack", "Iterable", "Iterator", "Mapping", "NamedTuple", "Protocol", "Sequence", "Set", "TypedDict", "Unpack",
    "import_module", "signal", "suppress",
]  # fmt: skip

Any = object


class Protocol:
    """As typing.Protocol, for the type checker alone."""


class TypedDict(dict):
    """As typing.TypedDict, for the type checker alone."""

    def __init_subclass__(cls, *, total=True):
        """Take what the type checker is told."""


class Unpack:
    """As typing.Unpack, for the type checker alone."""

    def __class_getitem__(cls, item):
        """Nothing that anybody looks at."""
        return item


class _Record(tuple):
    """What all named tuples can do."""

    __slots__ = ()

    def __new__(cls, /, *values, **named):
        if named or len(values) != len(cls._fields):
            values = _completed(cls, values, named)
        return tuple.__new__(cls, values)

    @classmethod
    def _make(cls, iterable):
        """As collections.namedtuple has it."""
        values = tuple(iterable)
        if len(values) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(values)}")
        return tuple.__new__(cls, values)

    def _replace(self, /, **changes):
        """As collections.namedtuple has it."""
        values = [changes.pop(name, value) for name, value in zip(self._fields, self, strict=True)]
        if changes:
            raise ValueError(f"Got unexpected field names: {list(changes)!r}")
        return self._make(values)

    def _asdict(self):
        """As collections.namedtuple has it."""
        return dict(zip(self._fields, self, strict=True))

    def __getnewargs__(self):
        return tuple(self)

    def __repr__(self):
        fields = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        return f"{type(self).__name__}({fields})"


def _completed(cls, values, named):
    """All values, where some were given by name or not at all."""
    names, defaults = cls._fields, cls._field_defaults
    if len(values) > len(names):
        raise TypeError(f"{cls.__name__}() takes {len(names)} values but {len(values)} were given")
    result = list(values)
    missing = []
    for name in names[len(values) :]:
        if name in named:
            result.append(named.pop(name))
        elif name in defaults:
            result.append(defaults[name])
        else:
            missing.append(name)
    if missing:
        raise TypeError(f"{cls.__name__}() lacks the values {missing!r}")
    if named:
        raise TypeError(f"{cls.__name__}() got an unexpected or second value for {next(iter(named))!r}")
    return result


class _Maker(type):
    """Makes ordinary classes of what is written as a subclass of NamedTuple."""

    def __new__(cls, name, bases, namespace):
        """A class with the fields that were annotated."""
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        fields = tuple(namespace.get("__annotations__", ()))
        defaults = {field: namespace[field] for field in fields if field in namespace}
        if tuple(defaults) != fields[len(fields) - len(defaults) :]:
            raise TypeError(f"{name}: a field without a default follows one with a default")
        for index, field in enumerate(fields):
            namespace[field] = _tuplegetter(index, f"Alias for field number {index}")
        namespace.update(_fields=fields, _field_defaults=defaults, __match_args__=fields, __slots__=())
        return type(name, (_Record,), namespace)


class NamedTuple(metaclass=_Maker):
    """As typing.NamedTuple, in its class syntax."""


def import_module(name):
    """As importlib.import_module, for an absolute name."""
    __import__(name)
    return sys.modules[name]


class suppress:
    """As contextlib.suppress."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds):
        self._kinds = kinds

    def __enter__(self):
        return None

    def __exit__(self, kind, error, trace):
        return kind is not None and issubclass(kind, self._kinds)


class ExitStack:
    """As contextlib.ExitStack, for contexts that swallow no exception."""

    def __init__(self):
        self._calls = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def callback(self, call, /, *values, **named):
        """Call it at the end, in reverse order."""
        self._calls.append((call, values, named))
        return call

    def enter_context(self, context):
        """Enter it, and leave it at the end."""
        value = context.__enter__()
        self._calls.append((context.__exit__, (None, None, None), {}))
        return value

    def close(self):
        """Do all of it; the first error is raised when it is done."""
        first = None
        while self._calls:
            call, values, named = self._calls.pop()
            try:
                call(*values, **named)
            except BaseException as error:
                first = first or error
        if first is not None:
            raise first
