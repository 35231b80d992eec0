"""The words of requests that make several machines at once: one outcome for each, and all of them one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from roost.api.view import stamp
from roost.errors import Problem
from roost.model.kinds import Object
from roost.model.machine import Machine
from roost.model.meta import NAME, Struct

MOST = 100
"""Machines that one request makes at most."""


class CloneRequest(Struct, frozen=True, kw_only=True):
    """The body of a clone: the names of the machines to make. With `keep_identity` they are exact copies, without network; with `start` they
    run even if what they are copies of does not; without `memory` they boot from a copy of the disk."""

    names: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MOST)]
    keep_identity: bool = False
    start: bool = False
    memory: bool = True

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        for index, name in enumerate(self.names):
            if not NAME.fullmatch(name):
                yield Problem(f"names[{index}]", f"{name[:80]!r} is not a name: small letters, digits and '-'")
            elif name in self.names[:index]:
                yield Problem(f"names[{index}]", f"{name!r} stands twice")


class RestoreRequest(Struct, frozen=True, kw_only=True):
    """The body of a restore: the whole name of a snapshot of the machine (`web.ready`). Without `memory` only its disk is put back."""

    snapshot: str
    memory: bool = True


class Child(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one name: the machine as it was made, or the error that kept it from being made (as in every error answer)."""

    name: str
    machine: Machine | None = None
    error: dict[str, Any] | None = None


class Children(Struct, frozen=True, kw_only=True):
    """The outcomes, in the order of the names."""

    items: tuple[Child, ...]


def stamped(after: Object | Children, revision: int) -> Object | Children:
    """What a write at `revision` made, each object as it stands at its own."""
    if not isinstance(after, Children):
        return stamp(after, after.meta.revision or revision)
    items = (
        child if child.machine is None else msgspec.structs.replace(child, machine=stamp(child.machine, revision))
        for child in after.items
    )
    return Children(items=tuple(items))
