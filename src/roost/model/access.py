"""Who may do what: one pure function that every route asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from roost.model.project import Role

Verb = Literal["get", "list", "watch", "create", "update", "delete", "exec", "console"]
READ: frozenset[Verb] = frozenset({"get", "list", "watch"})
USE: frozenset[Verb] = READ | {"create", "update", "delete", "exec", "console"}


OF_HOST = frozenset({"node", "pool"})
"""Kinds that belong to the host, not to a project."""


class Principal(NamedTuple):
    """Who calls: "uid:1000" from the peer of the socket. An admin is root or the uid the daemon runs as."""

    name: str
    admin: bool = False


class Answer(NamedTuple):
    """`visible` False: act as if the object did not exist. `allowed` False: it exists but this may not be done."""

    visible: bool
    allowed: bool


def may(principal: Principal, verb: Verb, kind: str, members: Mapping[str, Role]) -> Answer:
    """Whether `principal` may do `verb` to objects of `kind` in the project with these `members`.

    Admins may do everything. Owners may also change the project itself, operators everything inside it, viewers look.
    Nodes and pools are visible to everyone on the host and changed by admins only. Anyone may create a project (and owns it).
    """
    if principal.admin:
        return Answer(True, True)
    if kind in OF_HOST:
        return Answer(True, verb in READ)
    if kind == "project" and verb == "create":
        return Answer(True, True)
    role = members.get(principal.name)
    if role is None:
        return Answer(False, False)
    return Answer(True, verb in _allowed(role, kind))


def _allowed(role: Role, kind: str) -> frozenset[Verb]:
    if role == "viewer" or (kind == "project" and role != "owner"):
        return READ
    return USE
