# Derived from aio/objects.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Objects of any kind: get, list, create, change, delete and watch, typed, written once for all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from roost.build import build_id
from roost.client.blocking.session import Session
from roost.client.protocol import dumps, loads, path
from roost.errors import Conflict, OutcomeUnknown
from roost.model.kinds import Kind, Object

T = TypeVar("T", bound=Object)
PAGE = 500
RESTARTS = 3


class Change(NamedTuple, Generic[T]):
    """What a watch tells. `value` is the object as it is now; without one the object `project`/`name` is gone, or (`synced`) all
    present objects were told and what follows is new."""

    revision: int
    value: T | None = None
    project: str = ""
    name: str | None = None
    synced: bool = False


class Objects(Generic[T]):
    """All objects of one kind in a project ("all": in every project that you may see)."""

    def __init__(self, session: Session, kind: Kind, type_: type[T], project: str) -> None:
        self._session = session
        self._kind = kind
        self._type = type_
        self._project = project

    def get(self, name: str) -> T:
        """The object called `name`. Raises NotFound."""
        return decode(self._session.call("GET", self._path(name)), self._type)

    def list(self) -> list[T]:
        """All of them, by name."""
        found: list[T] = []
        token: str | None = None
        while True:
            target = path(
                self._kind.plural, project=self._project if self._kind.scoped else None, limit=PAGE, continue_=token
            )
            page = self._session.call("GET", target)
            found += [decode(item, self._type) for item in page["items"]]
            token = page.get("continue")
            if not token:
                return found

    def create(self, name: str, spec: dict[str, Any], labels: dict[str, str] | None = None) -> T:
        """Make one. Raises Invalid with every wrong field, Conflict when the name is taken, QuotaExceeded."""
        body: dict[str, Any] = {"kind": self._kind.name, "name": name, "spec": spec}
        if self._kind.scoped:
            body["project"] = self._project
        if labels:
            body["meta"] = {"labels": labels}
        return decode(self._session.call("POST", path(self._kind.plural), body), self._type)

    def change(self, name: str, spec: dict[str, Any]) -> T:
        """Change the fields of the spec that are named, leave the others. Raises NotFound, Invalid."""
        return decode(self._session.call("PATCH", self._path(name), {"spec": spec}), self._type)

    def delete(self, name: str, *, wait: bool = True) -> None:
        """Remove it. With `wait` returns when nothing of it is left. Raises NotFound, Conflict when something needs it."""
        answer = self._session.call("DELETE", self._path(name))
        if not (wait and self._kind.finalized) or answer is None:
            return
        uid = answer["meta"]["uid"]
        present = False
        for change in self.changes():
            if change.value is not None and change.value.meta.uid == uid:
                present = True
            elif (change.synced and not present) or (change.name == name and change.value is None):
                return
            elif change.synced:
                present = False

    def watch(self, since: int | None = None) -> Iterator[Change[T]]:
        """Every change after revision `since`, for ever; without it the present objects first. Raises Conflict when history was lost."""
        target = path("watch", kind=self._kind.name, project=self._project if self._kind.scoped else None, since=since)
        for event in self._session.events(target):
            revision = int(event.id) if event.id.isdecimal() else 0
            data = loads(event.data.encode(), target)
            if event.name == "put":
                yield Change(revision, decode(data, self._type))
            elif event.name == "delete":
                yield Change(revision, project=data.get("project", ""), name=data["name"])
            elif event.name == "synced":
                yield Change(revision, synced=True)
            elif event.name == "resync":
                raise Conflict(
                    f"the watch of {self._kind.plural} has lost its place",
                    "history was compacted",
                    "list, and watch again",
                )
        raise OutcomeUnknown(f"the watch of {self._kind.plural} ended", "the daemon ended it", "try again")

    def changes(self) -> Iterator[Change[T]]:
        """The present objects, then every change, for ever: a watch that begins again when the daemon restarts or history is lost.

        Raises what a watch raises once it broke RESTARTS times without having told anything.
        """
        fruitless = 0
        while True:
            try:
                for change in self.watch():
                    fruitless = 0
                    yield change
            except (Conflict, OutcomeUnknown):
                fruitless += 1
                if fruitless > RESTARTS:
                    raise

    def _path(self, name: str) -> str:
        return path(self._kind.plural, self._project, name) if self._kind.scoped else path(self._kind.plural, name)


def decode(data: Any, type_: type[T]) -> T:
    """The object in an answer. Raises OutcomeUnknown when the daemon has words that this build has not."""
    try:
        return msgspec.json.decode(dumps(data), type=type_)
    except msgspec.ValidationError as error:
        why = f"{error}; this is build {build_id()}"
        raise OutcomeUnknown("the daemon's answer can not be read", why, "roost serve --stop, and try again") from error
