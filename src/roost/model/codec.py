"""Documents to objects and back: strict, every problem at once with its field path, and JSON Schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from roost.errors import Invalid, Problem
from roost.model import size
from roost.model.meta import Struct

T = TypeVar("T")
_FIX = "correct the fields named above; `roost get KIND -o yaml` shows valid ones"
_type_info = cache(inspect.type_info)
"""Reading a type's annotations costs 3 ms, a hundred times what checking a document against it does."""
MAX_DEPTH = 32
"""Nesting a document may have; deeper ones are refused before anything recurses into them."""


def decode(data: Any, type_: type[T], what: str) -> T:
    """`data` (plain dicts, lists, strings, numbers) as a `type_`. Raises Invalid with every problem, under the heading `what`."""
    info = _type_info(cast("Any", type_))
    problems = list(_walk(data, info, "", 0))
    if problems:
        problems += _semantic_besides(data, type_, info, problems)
        raise Invalid(what, problems=problems, fix=_FIX)
    try:
        value = msgspec.convert(_sized(data, info), type_)
    except msgspec.ValidationError as error:
        raise Invalid(what, problems=[_translate("", error)], fix=_FIX) from None
    if problems := list(semantic(value, "")):
        raise Invalid(what, problems=problems, fix=_FIX)
    return value


def _semantic_besides(data: Any, type_: type[Any], info: inspect.Type, found: list[Problem]) -> Iterator[Problem]:
    """What is wrong with the values of the fields that have the right type, so that everything is told at once."""
    # A list with one wrong item is left out whole: without the item, the others would be told by the wrong index.
    bad = {problem.path.partition("[")[0] for problem in found}
    try:
        value = msgspec.convert(_sized(_without(data, bad, ""), info), type_)
    except (ValueError, KeyError, AttributeError, msgspec.ValidationError):
        return
    for problem in semantic(value, ""):
        if problem.path and not any(path.startswith(problem.path) or problem.path.startswith(path) for path in bad):
            yield problem


def _without(data: Any, bad: set[str], path: str) -> Any:
    if isinstance(data, dict):
        return {
            name: _without(item, bad, _join(path, name)) for name, item in data.items() if _join(path, name) not in bad
        }
    return data


def loads(text: bytes, type_: type[T], what: str) -> T:
    """JSON `text` as a `type_`. Raises Invalid, also for text that is not JSON or nested deeper than MAX_DEPTH."""
    return decode(parse(text, what), type_, what)


def parse(text: bytes, what: str) -> Any:
    """JSON `text` as plain values. Raises Invalid."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Invalid(what, why=f"the body is not JSON: {error}", fix="send one JSON document") from None


def stored(value: bytes, type_: type[T]) -> T:
    """An object that Roost itself wrote: no second validation, unknown fields of a newer build refused by msgspec."""
    return msgspec.json.decode(value, type=type_)


def encode(value: Any) -> bytes:
    """Compact JSON."""
    return msgspec.json.encode(value)


def plain(value: Any) -> Any:
    """The object as dicts, lists and scalars."""
    return msgspec.to_builtins(value)


def pretty(value: Any) -> str:
    """Indented JSON for people."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False)


def schema(types: tuple[type[Any], ...]) -> dict[str, Any]:
    """JSON Schema components of the given types, keyed by name."""
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return components


def semantic(value: Any, path: str) -> Iterator[Problem]:
    """The problems that `value` and the structs inside it find in themselves."""
    if isinstance(value, Struct):
        check = cast("Callable[[], Iterator[Problem]] | None", getattr(value, "problems", None))
        if check is not None:
            for problem in check():
                yield Problem(".".join(part for part in (path, problem.path) if part), problem.message)
        for field in value.__struct_fields__:
            yield from semantic(getattr(value, field), _join(path, field))


def _walk(data: Any, info: inspect.Type, path: str, depth: int) -> Iterator[Problem]:
    if depth > MAX_DEPTH:
        yield Problem(path, f"is nested deeper than {MAX_DEPTH} levels")
        return
    if isinstance(info, inspect.UnionType):
        yield from _walk_union(data, info, path, depth)
    elif isinstance(info, inspect.StructType):
        yield from _walk_struct(data, info, path, depth)
    elif isinstance(info, inspect.VarTupleType | inspect.ListType) and isinstance(data, list):
        for index, item in enumerate(data):
            yield from _walk(item, info.item_type, f"{path}[{index}]", depth + 1)
    elif isinstance(info, inspect.DictType) and isinstance(data, dict):
        for key, item in data.items():
            yield from _walk(item, info.value_type, _join(path, str(key)), depth + 1)
    else:
        yield from _leaf(data, info, path)


def _walk_union(data: Any, info: inspect.UnionType, path: str, depth: int) -> Iterator[Problem]:
    """Unions in the model are "X or None": descend into X so that its fields are named."""
    if data is None and any(isinstance(kind, inspect.NoneType) for kind in info.types):
        return
    rest = [kind for kind in info.types if not isinstance(kind, inspect.NoneType)]
    if len(rest) == 1:
        yield from _walk(data, rest[0], path, depth)
    else:
        yield from _leaf(data, info, path)


def _walk_struct(data: Any, info: inspect.StructType, path: str, depth: int) -> Iterator[Problem]:
    if not isinstance(data, dict):
        yield Problem(path, f"is {_kind_of(data)}, expected an object with fields")
        return
    fields = {field.encode_name: field for field in info.fields}
    for name in data:
        if name not in fields:
            near = ", ".join(sorted(fields))
            yield Problem(_join(path, str(name)), f"is not a known field (known: {near})")
    for name, field in fields.items():
        if name in data:
            yield from _walk(data[name], field.type, _join(path, name), depth + 1)
        elif field.required:
            yield Problem(_join(path, name), "is missing")


def _leaf(data: Any, info: inspect.Type, path: str) -> Iterator[Problem]:
    try:
        msgspec.convert(_size_leaf(data, info), _annotation(info))
    except (ValueError, msgspec.ValidationError) as error:
        yield _translate(path, error)


def _annotation(info: inspect.Type) -> Any:
    """The Python annotation that `info` was read from, for the leaf types the model uses."""
    if isinstance(info, inspect.Metadata):
        return _constrained(info.type)
    return _constrained(info)


def _constrained(info: inspect.Type) -> Any:
    from typing import Annotated, Literal

    simple = {inspect.StrType: str, inspect.BoolType: bool, inspect.NoneType: None, inspect.AnyType: Any}
    if isinstance(info, inspect.LiteralType):
        return Literal[tuple(info.values)]
    if isinstance(info, inspect.IntType | inspect.FloatType):
        base = int if isinstance(info, inspect.IntType) else float
        limits = {name: getattr(info, name) for name in ("ge", "le", "gt", "lt") if getattr(info, name) is not None}
        return Annotated[base, msgspec.Meta(**limits)] if limits else base
    if isinstance(info, inspect.VarTupleType | inspect.ListType):
        return list[Any]
    if isinstance(info, inspect.DictType):
        return dict[str, Any]
    return simple.get(type(info), Any)


def _is_size(info: inspect.Type) -> bool:
    return isinstance(info, inspect.Metadata) and (info.extra or {}).get("unit") == "bytes"


def _size_leaf(data: Any, info: inspect.Type) -> Any:
    return size.parse(data) if isinstance(data, str) and _is_size(info) else data


def _sized(data: Any, info: inspect.Type) -> Any:
    """`data` with every written size ("2GiB") turned into bytes."""
    if isinstance(info, inspect.UnionType):
        rest = [kind for kind in info.types if not isinstance(kind, inspect.NoneType)]
        return _sized(data, rest[0]) if data is not None and len(rest) == 1 else data
    if isinstance(info, inspect.StructType) and isinstance(data, dict):
        types = {field.encode_name: field.type for field in info.fields}
        return {name: _sized(value, types[name]) for name, value in data.items()}
    if isinstance(info, inspect.VarTupleType | inspect.ListType) and isinstance(data, list):
        return [_sized(item, info.item_type) for item in data]
    return _size_leaf(data, info)


def _translate(path: str, error: Exception) -> Problem:
    message = str(error)
    if " - at `$" in message:
        message, _, tail = message.partition(" - at `$")
        path = _join(path, tail.rstrip("`").lstrip("."))
    return Problem(path, message[:1].lower() + message[1:])


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kind_of(data: Any) -> str:
    if data is None:
        return "null"
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(data), type(data).__name__)
