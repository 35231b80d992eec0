"""Create, read, change and delete for all kinds, written once: who may, strict decoding, admission, one compare-and-swap."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from roost.api.access import Gate, creator_becomes_owner, missing, sealed
from roost.api.commits import Change, Commits
from roost.api.services import Services
from roost.api.view import Item, View, load, stamp
from roost.api.wire import Answer, Call, document, merge
from roost.control.clones import check_snapshot
from roost.errors import Conflict, Forbidden, Invalid, NotFound, Problem
from roost.model import codec
from roost.model.access import Principal, Verb
from roost.model.kinds import BY_NAME, KINDS, Kind, Object, key_of, prefix_of
from roost.model.machine import Machine
from roost.model.meta import Meta, Struct
from roost.model.program import Program
from roost.model.project import Project
from roost.model.snapshot import Snapshot
from roost.model.volume import VOLUME_LENGTH, Volume
from roost.store.base import Write

PAGE = 500
"""Objects in a page of a list, unless the caller wants fewer."""
PERMANENT = frozenset({"default", "system"})
"""Projects that can not be deleted."""
_PROJECT = BY_NAME["project"]
_MACHINE = BY_NAME["machine"]
_SNAPSHOT = BY_NAME["snapshot"]
_PROGRAM = BY_NAME["program"]
_VOLUME = BY_NAME["volume"]
_OF_STORAGE = frozenset(BY_NAME[name] for name in ("pool", "volume", "volumesnapshot"))


class NewName(Struct, frozen=True, kw_only=True):
    """The body of a rename."""

    name: str


class Resources:
    """The verbs on objects. Every method takes a call and gives the answer, or raises one of Roost's errors."""

    def __init__(self, services: Services, view: View, gate: Gate, commits: Commits) -> None:
        self._services = services
        self._view = view
        self._gate = gate
        self._commits = commits

    async def get(self, call: Call, kind: Kind) -> Answer:
        """One object."""
        found = await self.read(call, kind, "get")
        return Answer(shown(self._gate, call.principal, found.project, kind, codec.encode(found)))

    async def page(self, call: Call, kind: Kind) -> Answer:
        """A page of objects, and the revision to watch from."""
        limit = call.number("limit", PAGE, 1, PAGE)
        prefix, after = self.range(call, kind, "list"), self._after(call, kind)
        labels = [label.partition("=") for label in call.queries("label")]
        revision = self._view.revision
        items: list[Item] = []
        more = False
        for item in self._view.below(prefix, after):
            if not self._listed(call, kind, item, labels):
                continue
            if len(items) == limit:
                more = True
                break
            items.append(item)
        token = codec.encode(items[-1].key.partition("/")[2]) if more else b"null"
        bodies = [shown(self._gate, call.principal, item.key.split("/")[1], kind, item.body) for item in items]
        parts = [part for body in bodies for part in (b",", body)][1:]
        return Answer([b'{"revision":%d,"continue":%s,"items":[' % (revision, token), *parts, b"]}"])

    def range(self, call: Call, kind: Kind, verb: Verb) -> str:
        """What the keys of a list or watch begin with: those of one project, or all. Raises NotFound."""
        project = call.query("project", "default")
        if not kind.scoped or kind.name == "node" or project == "all":
            return prefix_of(kind)
        self._gate.check(call.principal, verb, kind, project)
        return prefix_of(kind, project)

    def _after(self, call: Call, kind: Kind) -> str:
        """The key that a further page goes on after. Raises Invalid."""
        token = call.query("continue")
        if len(token) > 300:
            raise Invalid("the request is wrong", problems=[Problem("continue", "is not what a list gave")])
        return prefix_of(kind) + token if token else ""

    def _listed(self, call: Call, kind: Kind, item: Item, labels: list[tuple[str, str, str]]) -> bool:
        if not self._gate.sees(call.principal, kind, item.key.split("/")[1]):
            return False
        if not labels:
            return True
        own = codec.stored(item.body, kind.type).meta.labels
        return all(name in own and (not equals or own[name] == value) for name, equals, value in labels)

    async def create(self, call: Call, kind: Kind) -> Answer:
        """A new object."""
        body = await call.body()
        data = document(body)
        if (replayed := await self._commits.replay(call, body)) is not None:
            return replayed
        project, name = _place(data, kind)
        self._gate.check(call.principal, "create", kind, project)
        wanted = _decode(data, kind, f'{kind.name} "{name}" was not created')
        _check_untouched(wanted, None)
        meta = Meta(
            uid=str(uuid.uuid4()), created=self._services.now(), creator=call.principal.name, labels=wanted.meta.labels
        )
        new = _with(wanted, meta=meta)
        self._gate.check_reserved(call.principal, new, None)
        new = sealed(call.principal, new, None)
        if isinstance(new, Project):
            new = _with(new, spec=_with(new.spec, members=creator_becomes_owner(call.principal, new.spec.members)))

        async def decide() -> Change:
            key = key_of(kind, project, name)
            if self._view.get(key) is not None:
                raise taken(kind, project, name)
            admitted = await self.admit(new, None)
            return Change(201, admitted, (Write(key, codec.encode(admitted), expect=0),))

        with self._commits.entering(project):
            return await self._commits.carry_out(call, body, decide, project, volumes=_claims(kind, data))

    async def replace(self, call: Call, kind: Kind) -> Answer:
        """The whole object anew: spec and labels."""
        body = await call.body()
        data = {"name": call.name, "project": call.project, **document(body)}

        def apply(current: Object) -> tuple[Object, int]:
            wanted = _decode(data, kind, f'{kind.name} "{call.name}" was not changed')
            if (wanted.project, wanted.name) != (current.project, current.name):
                raise Invalid(
                    "the request is wrong", problems=[Problem("name", "is not the object that the path names")]
                )
            _check_untouched(wanted, current)
            return wanted, wanted.meta.revision

        return await self._change(call, kind, body, apply, volumes=_claims(kind, data))

    async def patch(self, call: Call, kind: Kind) -> Answer:
        """A merge patch of spec and labels."""
        body = await call.body()
        data = document(body)

        def apply(current: Object) -> tuple[Object, int]:
            revision = _check_patch(data)
            merged = merge({"spec": codec.plain(current.spec), "meta": {"labels": current.meta.labels}}, data)
            merged["meta"] = {"labels": (merged.get("meta") or {}).get("labels") or {}}
            merged |= {"kind": kind.name, "project": current.project, "name": current.name}
            return _decode(merged, kind, f'{kind.name} "{call.name}" was not changed'), revision

        return await self._change(call, kind, body, apply, volumes=_claims(kind, data))

    async def _change(
        self, call: Call, kind: Kind, body: bytes, apply: Callable[[Object], tuple[Object, int]], *, volumes: bool
    ) -> Answer:
        if (replayed := await self._commits.replay(call, body)) is not None:
            return replayed

        async def decide() -> Change:
            before = await self.read(call, kind, "update")
            wanted, revision = apply(before)
            if revision not in (0, before.meta.revision):
                raise _moved(kind, call.name, revision, before.meta.revision)
            after = _with(before, spec=wanted.spec, meta=_with(before.meta, labels=wanted.meta.labels))
            self._gate.check_reserved(call.principal, after, before)
            after = sealed(call.principal, after, before)
            if after == before:
                return Change(200, before)
            return self.changed(kind, before, await self.admit(after, before))

        project = call.project if kind.scoped else call.name
        return await self._commits.carry_out(call, body, decide, project, volumes=volumes)

    async def admit(self, after: Object, before: Object | None, besides: Sequence[Object] = ()) -> Object:
        """The object to store, `besides` others that the same commit makes. Raises what keeps it from being stored."""
        if isinstance(after, Snapshot):
            old = before if isinstance(before, Snapshot) else None
            check_snapshot(after, old, await self._machine(after.project, after.spec.machine))
        return await self._services.admit(after, before, besides)

    async def _machine(self, project: str, name: str) -> Machine | None:
        try:
            entry = await self._services.store.get(key_of(_MACHINE, project, name))
        except NotFound:
            return None
        return cast("Machine", load(_MACHINE, entry))

    def changed(self, kind: Kind, before: Object, after: Object) -> Change:
        """The write that makes `after` of `before`."""
        if after.spec != before.spec:
            after = _with(after, meta=_with(after.meta, generation=before.meta.generation + 1))
        after = stamp(after, 0)
        key = key_of(kind, after.project, after.name)
        return Change(200, after, (Write(key, codec.encode(after), expect=before.meta.revision),))

    async def delete(self, call: Call, kind: Kind) -> Answer:
        """Mark for deletion what a reconciler must clean up; remove the rest at once."""
        if (replayed := await self._commits.replay(call, b"")) is not None:
            return replayed
        if kind is _PROJECT:
            return await self._delete_project(call)
        now = call.flag("now")

        async def decide() -> Change:
            before = await self.read(call, kind, "delete")
            if before.meta.deleting is not None:
                return Change(202, before)
            await self._services.dismiss(before)
            status = before.status
            if now and isinstance(before, Volume):
                # What is in the trash already does not go there.
                status = _with(before.status, phase="trash")
            after = stamp(_with(before, meta=_with(before.meta, deleting=self._services.now()), status=status), 0)
            key = key_of(kind, call.project, call.name)
            return Change(202, after, (Write(key, codec.encode(after), expect=before.meta.revision),))

        return await self._commits.carry_out(call, b"", decide, call.project, volumes=kind in _OF_STORAGE)

    async def _delete_project(self, call: Call) -> Answer:
        await self.read(call, _PROJECT, "delete")
        if call.name in PERMANENT:
            what = f'project "{call.name}" was not deleted'
            raise Forbidden(
                what, "Roost itself needs it", "delete what is in it: roost delete --all --project " + call.name
            )

        async def decide() -> Change:
            before = await self.read(call, _PROJECT, "delete")
            inside = [
                item.key
                for kind in KINDS
                if kind.finalized and kind.scoped
                for item in self._view.below(prefix_of(kind, call.name))
            ]
            if inside:
                listed = ", ".join(inside[:20]) + (f" and {len(inside) - 20} more" if len(inside) > 20 else "")
                what = f'project "{call.name}" was not deleted'
                raise Conflict(what, f"it holds {listed}", _emptying(call.name, inside))
            return Change(200, before, (Write(key_of(_PROJECT, "", call.name), None, expect=before.meta.revision),))

        with self._commits.closing(call.name):
            return await self._commits.carry_out(call, b"", decide, call.name)

    async def rename(self, call: Call, kind: Kind) -> Answer:
        """Another name for the same object: one commit."""
        body = await call.body()
        data = document(body)
        if (replayed := await self._commits.replay(call, body)) is not None:
            return replayed
        await self.read(call, kind, "update")
        name = codec.decode(data, NewName, f'{kind.name} "{call.name}" was not renamed').name
        _check_name(kind, name, f'{kind.name} "{call.name}" was not renamed')
        old, new = key_of(kind, call.project, call.name), key_of(kind, call.project, name)

        async def decide() -> Change:
            before = await self.read(call, kind, "update")
            if name == call.name:
                return Change(200, before)
            if before.meta.deleting is not None:
                raise Conflict(f'{kind.name} "{call.name}" was not renamed', "it is being deleted")
            if self._view.get(new) is not None:
                raise taken(kind, call.project, name)
            after = stamp(_with(before, name=name), 0)
            if kind is _VOLUME:
                after = await self.admit(after, before)
            return Change(
                200, after, (Write(old, None, expect=before.meta.revision), Write(new, codec.encode(after), expect=0))
            )

        return await self._commits.carry_out(call, body, decide, call.project, volumes=kind in _OF_STORAGE)

    async def read(self, call: Call, kind: Kind, verb: Verb) -> Object:
        """The object the path names. Raises NotFound, also for what the caller may not see, and Forbidden."""
        return await self.find(call, kind, verb, call.project if kind.scoped else call.name, call.name)

    async def find(self, call: Call, kind: Kind, verb: Verb, project: str, name: str) -> Object:
        """The object of that project and name, as `read` gives it."""
        project, name = project[:200], name[:200]
        try:
            entry = await self._services.store.get(key_of(kind, project, name))
        except NotFound:
            raise missing(kind, project, name) from None
        self._gate.check(call.principal, verb, kind, project, name)
        return load(kind, entry)


def shown(gate: Gate, principal: Principal, project: str, kind: Kind, body: bytes) -> bytes:
    """An object's JSON without what only those who may change it may read."""
    if kind not in (_MACHINE, _PROGRAM, _SNAPSHOT) or gate.shows_secrets(principal, project):
        return body
    thing: Object = codec.stored(body, kind.type)
    if isinstance(thing, Snapshot) and thing.status.machine_spec is not None:
        kept = _with(thing.status.machine_spec, user_data=None)
        return codec.encode(_with(thing, status=_with(thing.status, machine_spec=kept)))
    if isinstance(thing, Program):
        policy = _with(thing.spec.policy, env=dict.fromkeys(thing.spec.policy.env, ""))
        return codec.encode(_with(thing, spec=_with(thing.spec, policy=policy)))
    return codec.encode(_with(thing, spec=_with(thing.spec, user_data=None))) if kind is _MACHINE else body


def _with(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)


def _emptying(project: str, inside: Sequence[str]) -> str:
    """The next command towards an empty project that holds these keys: its machines first, then the rest, a kind at a time."""
    plural = inside[0].partition("/")[0]
    if any(key.startswith("machines/") for key in inside):
        return f"roost delete --all --project {project}"
    names = [key.rpartition("/")[2] for key in inside if key.startswith(f"{plural}/")]
    return f"roost delete {BY_NAME[plural].name} {' '.join(names[:20])} --project {project}"


def _claims(kind: Kind, data: dict[str, Any]) -> bool:
    """Whether a write of this document has to do with volumes."""
    spec = data.get("spec")
    return kind in _OF_STORAGE or (kind is _MACHINE and isinstance(spec, dict) and bool(spec.get("volumes")))


def _place(data: dict[str, Any], kind: Kind) -> tuple[str, str]:
    """Project and name that a new object's document gives. Raises Invalid."""
    what = f"the {kind.name} was not created"
    project, name = data.get("project", "default"), data.get("name", "")
    wrong = [
        Problem(field, "is not a string")
        for field, value in (("project", project), ("name", name))
        if not isinstance(value, str)
    ]
    if data.get("kind", kind.name) != kind.name:
        wrong.append(Problem("kind", f'is not "{kind.name}"'))
    if not kind.scoped and data.get("project"):
        wrong.append(Problem("project", f"a {kind.name} is in no project"))
    if wrong:
        raise Invalid(what, problems=wrong)
    return (project if kind.scoped else name)[:200], name[:200]


def _decode(data: dict[str, Any], kind: Kind, what: str) -> Object:
    """A strict object; its name is checked with everything else, so that all problems come at once."""
    problems: list[Problem] = []
    name = data.get("name")
    if isinstance(name, str) and not kind.pattern.fullmatch(name):
        problems.append(_bad_name(kind, name))
    try:
        found = codec.decode(data, kind.type, what)
    except Invalid as error:
        raise Invalid(what, fix=error.fix, problems=[*problems, *error.problems]) from None
    problems += _label_problems(found.meta.labels)
    if problems:
        raise Invalid(what, problems=problems)
    return found


def _label_problems(labels: dict[str, str]) -> list[Problem]:
    """Labels are small: they are kept with every object and looked through by every list."""
    if len(labels) > 64:
        return [Problem("meta.labels", f"{len(labels)} are more than 64")]
    return [
        Problem(
            f"meta.labels.{name[:80]}", "is longer than 128 characters, or has '=' in its name or nothing for a name"
        )
        for name, value in labels.items()
        if not name or len(name) > 128 or len(value) > 128 or "=" in name
    ]


def _bad_name(kind: Kind, name: str) -> Problem:
    if kind.name in ("snapshot", "volumesnapshot"):
        of = "machine" if kind.name == "snapshot" else "volume"
        return Problem("name", f"{name[:80]!r} is not a name: the {of}'s, a dot, and its own, as in web.ready")
    allowed = (
        "small letters, digits, '.', ':', '_' and '-'" if kind.name == "image" else "small letters, digits and '-'"
    )
    most = f" (at most {VOLUME_LENGTH})" if kind is _VOLUME else ""
    return Problem("name", f"{name[:80]!r} is not a name: {allowed}, a letter or digit at both ends{most}")


def _check_name(kind: Kind, name: str, what: str) -> None:
    if not kind.pattern.fullmatch(name):
        raise Invalid(what, problems=[_bad_name(kind, name)])


def _check_untouched(wanted: Object, current: Object | None) -> None:
    """Clients write spec and labels; the rest may come along only as it stands. Raises Invalid with every field that differs."""
    problems = []
    default = type(wanted.status)()
    if wanted.status != default and (current is None or wanted.status != current.status):
        problems.append(Problem("status", "is written by Roost only: leave it out"))
    for field in ("uid", "generation", "created", "creator", "deleting", "revision"):
        value = getattr(wanted.meta, field)
        allowed = [getattr(Meta(), field)] + ([getattr(current.meta, field)] if current is not None else [])
        if value not in allowed and not (field == "revision" and current is not None):
            problems.append(Problem(f"meta.{field}", "is written by Roost only: leave it out"))
    if problems:
        raise Invalid(f'{wanted.kind} "{wanted.name}" was not written', problems=problems)


def _check_patch(data: dict[str, Any]) -> int:
    """The revision a patch wants to meet (0: any). Raises Invalid for what can not be patched."""
    meta = data.get("meta", {})
    problems = [
        Problem(field, "can not be patched: only spec and meta.labels")
        for field in data
        if field not in ("spec", "meta")
    ]
    problems += [
        Problem(field, "is not an object") for field in ("spec", "meta") if not isinstance(data.get(field, {}), dict)
    ]
    if isinstance(meta, dict):
        problems += [
            Problem(f"meta.{field}", "can not be patched: only meta.labels")
            for field in meta
            if field not in ("labels", "revision")
        ]
    revision = meta.get("revision", 0) if isinstance(meta, dict) else 0
    if not isinstance(revision, int) or isinstance(revision, bool):
        problems.append(Problem("meta.revision", "is not a number"))
    if problems:
        raise Invalid("the patch is wrong", problems=problems)
    return cast("int", revision)


def taken(kind: Kind, project: str, name: str) -> Conflict:
    """The error for a name that something has already."""
    where = f' in project "{project}"' if kind.scoped else ""
    return Conflict(
        f'{kind.name} "{name}" exists already{where}',
        "names are unique",
        f"choose another name, or: roost delete {name}",
    )


def _moved(kind: Kind, name: str, wanted: int, current: int) -> Conflict:
    return Conflict(
        f'{kind.name} "{name}" was not changed',
        f"it is at revision {current}, not {wanted}: somebody changed it",
        "read it again and redo",
    )
