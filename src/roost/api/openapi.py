"""The OpenAPI 3.1 document, derived from the route table and the model: nothing in it is written twice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from roost.api.children import Children, CloneRequest, RestoreRequest
from roost.api.resources import NewName
from roost.api.routes import Query, Route
from roost.api.sessions import Control, ExecRequest
from roost.model import codec
from roost.model.kinds import KINDS

_FAILURES = {
    "400": "The request is wrong", "403": "Not allowed, or over quota", "404": "Not there, or not the caller's to know of",
    "409": "Not in that state", "503": "The host lacks something", "500": "Failed, or the outcome is unknown",
}  # fmt: skip


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        method = "get" if route.method == "WS" else route.method.lower()
        paths.setdefault(route.path, {})[method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Roost",
            "version": version,
            "description": "HTTP/1.1 over a unix socket; the caller is the socket's peer.",
        },
        "servers": [{"url": "http://localhost"}],
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _schemas() -> dict[str, Any]:
    types = (*(kind.type for kind in KINDS), NewName, CloneRequest, RestoreRequest, Children, ExecRequest, Control)
    schemas = dict(codec.schema(types))
    for kind in KINDS:
        name = kind.type.__name__
        schemas[name + "List"] = _object(
            items={"type": "array", "items": _ref(name)},
            revision={"type": "integer", "description": "watch from here"},
            **{"continue": {"type": ["string", "null"], "description": "of the next page"}},
        )
    schemas["MergePatch"] = {"type": "object", "description": "RFC 7396 over spec and meta.labels"}
    text = {"type": "string"}
    problem = _object(path=text, message=text)
    words = _object(code=text, what=text, why=text, fix=text, problems={"type": "array", "items": problem})
    schemas["Error"] = _object(error=words)
    return schemas


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(what: str) -> dict[str, Any]:
    """A body by the name of its schema or by its media type."""
    if "/" not in what:
        media = "application/merge-patch+json" if what == "MergePatch" else "application/json"
        return {media: {"schema": _ref(what)}}
    return {what: {"schema": {"type": "object"}} if what == "application/json" else {}}


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.text.splitlines()[0],
        "responses": _responses(route),
    }
    if parameters := _parameters(route):
        operation["parameters"] = parameters
    if route.method == "WS":
        operation["description"] = (
            f"WebSocket. The first message is {route.takes}." if route.takes else "WebSocket, binary both ways."
        )
    elif route.takes:
        operation["requestBody"] = {"required": True, "content": _content(route.takes)}
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    text = {"type": "string"}
    found = [
        {"name": name, "in": "path", "required": True, "schema": text} for name in re.findall(r"{(\w+)}", route.path)
    ]
    found += [_query(query) for query in route.queries]
    if route.writes:
        what = {
            "description": "makes a retry safe for 24 hours",
            "schema": {"type": "string", "minLength": 1, "maxLength": 128},
        }
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, **what})
    return found


def _query(query: Query) -> dict[str, Any]:
    return {
        "name": query.name,
        "in": "query",
        "required": query.required,
        "description": query.text,
        "schema": {"type": "string"},
    }


def _responses(route: Route) -> dict[str, Any]:
    failures = {status: {"description": text, "content": _content("Error")} for status, text in _FAILURES.items()}
    done: dict[str, Any] = {"description": {201: "Created", 202: "Accepted", 101: "Upgraded"}.get(route.status, "Done")}
    if route.gives and route.status not in (101, 204):
        done["content"] = _content(route.gives)
    return {str(route.status): done, **failures}
