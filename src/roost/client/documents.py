"""Documents for `apply` and `diff`: checked all at once, compared field by field; pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from roost.errors import Invalid, NotFound, Problem
from roost.model import codec
from roost.model.kinds import Kind, find

FIELDS = ("kind", "project", "name", "meta", "spec", "status")
"""A document may be what `roost get` printed: `status`, and of `meta` all but the labels, are left out."""


class Outcome(NamedTuple):
    """What became (or would become) of a document. `lines` are the differing fields: path, value now, value wanted."""

    document: dict[str, Any]
    action: Literal["create", "change", "same"]
    lines: tuple[tuple[str, Any, Any], ...]
    present: dict[str, Any] | None


def check(documents: Iterable[Any], project: str) -> list[dict[str, Any]]:
    """The documents with kind, project, name, spec and labels, ready to send. Raises Invalid with every problem of all of them."""
    ready: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for index, document in enumerate(documents):
        try:
            ready.append(_checked(document, project))
        except Invalid as error:
            where = _title(document, index)
            found = error.problems or (Problem("", error.why or error.what),)
            problems += [Problem(f"{where} {problem.path}".strip(), problem.message) for problem in found]
    if problems:
        raise Invalid(
            "the documents are not valid; nothing was changed", problems=problems, fix="correct the fields named above"
        )
    if not ready:
        raise Invalid(
            "there is nothing to apply", "the file holds no document", "write one kind a document: kind, name, spec"
        )
    return ready


def _checked(document: Any, project: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise Invalid("not a document", why="is not an object with kind, name and spec")
    unknown = [
        Problem(str(name), "is not a known field (known: kind, project, name, meta, spec)")
        for name in document
        if name not in FIELDS
    ]
    kind = _kind(document)
    slim: dict[str, Any] = {"kind": kind.name, "name": document.get("name"), "spec": document.get("spec", {})}
    if kind.scoped:
        slim["project"] = document.get("project") or project
    labels = (document.get("meta") or {}).get("labels") if isinstance(document.get("meta") or {}, dict) else None
    if labels:
        slim["meta"] = {"labels": labels}
    problems = [*unknown, *_name_problems(kind, slim["name"]), *_field_problems(slim, kind)]
    if problems:
        raise Invalid("a document is not valid", problems=problems)
    return slim


def _kind(document: dict[str, Any]) -> Kind:
    try:
        kind = find(str(document.get("kind", "")))
    except NotFound as error:
        raise Invalid(
            "no such kind", problems=[Problem("kind", f"{document.get('kind')!r} is not a kind; {error.fix}")]
        ) from None
    if not kind.writable:
        raise Invalid("not writable", problems=[Problem("kind", f"a {kind.name} is written by Roost only")])
    return kind


def _name_problems(kind: Kind, name: Any) -> Iterator[Problem]:
    if not isinstance(name, str) or not kind.pattern.fullmatch(name):
        yield Problem("name", f"{name!r} is not a name: small letters, digits and '-', at most 63, no '-' at the ends")


def _field_problems(document: dict[str, Any], kind: Kind) -> Iterator[Problem]:
    try:
        codec.decode({**document, "name": str(document["name"])}, kind.type, "document")
    except Invalid as error:
        yield from error.problems


def _title(document: Any, index: int) -> str:
    if isinstance(document, dict) and document.get("kind") and document.get("name"):
        return f"{document['kind']} {document['name']!s}:"
    return f"document {index + 1}:"


def difference(present: dict[str, Any], document: dict[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    """The fields that `document` names and that differ from `present`: path, now, wanted. Written sizes count as their bytes."""
    thing = codec.decode({**document, "name": present["name"]}, find(document["kind"]).type, "document")
    wanted = codec.parse(codec.encode(thing), "document")  # as the API has it: lists, no tuples
    found = [*_differences("spec", present.get("spec", {}), wanted["spec"], document["spec"])]
    labels = document.get("meta", {}).get("labels", {})
    found += _differences("meta.labels", present.get("meta", {}).get("labels", {}), labels, labels)
    return tuple(found)


def _differences(path: str, now: Any, wanted: Any, named: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(named, dict) and isinstance(wanted, dict):
        for name in named:
            yield from _differences(
                f"{path}.{name}", now.get(name) if isinstance(now, dict) else None, wanted.get(name), named[name]
            )
    elif now != wanted:
        yield path, now, wanted
