"""Who calls, and whether they may: the peer of the unix socket becomes a principal, and what it may not see does not exist."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from roost.api.view import View
from roost.errors import Forbidden, NotFound
from roost.model.access import OF_HOST, Principal, Verb, may
from roost.model.image import Image
from roost.model.kinds import Kind, Object
from roost.model.program import Program, privileges
from roost.model.project import Project, Quota, Role


class Peer(NamedTuple):
    """The process at the other end of the socket, as the kernel knew it when it connected (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


NOBODY = Principal("uid:4294967295")
"""A connection without peer credentials: member of nothing (-1 is no uid)."""


def principal_of(peer: Peer | None, owner: int) -> Principal:
    """Who calls. Root and the daemon's own uid (`owner`) are admins."""
    if peer is None:
        return NOBODY
    return Principal(f"uid:{peer.uid}", admin=peer.uid in (0, owner))


class Gate:
    """Asks `model.access.may` for every route, with the members of the project as they are now."""

    def __init__(self, view: View) -> None:
        self._view = view

    def check(self, principal: Principal, verb: Verb, kind: Kind, project: str, name: str | None = None) -> None:
        """Returns when `principal` may do `verb` there. Raises NotFound exactly as for what is missing, Forbidden.

        `project` is the object's project; for kind project it is its own name. `name` None: something new, or a list.
        """
        members = self._view.members(project)
        answer = may(principal, verb, kind.name, members or {})
        exists = members is not None or kind.name in OF_HOST or (kind.name == "project" and verb == "create")
        if not answer.visible or not exists:
            raise missing(kind, project, name)
        if not answer.allowed and kind.name in OF_HOST:
            what = f'{kind.name} "{name or project}" may not be changed by you'
            raise Forbidden(what, f"{principal.name} is not root and not who runs the daemon", "ask root on this host")
        if not answer.allowed:
            what = f'{kind.name} "{name}"' if name is not None else f"{kind.plural} of project"
            raise Forbidden(
                f'{what} in project "{project}" may not be changed by you'
                if kind.scoped
                else f"{what} may not be changed by you",
                f"{principal.name} lacks the role for {verb}",
                f"ask an owner: roost project grant {project} {principal.name} operator",
            )

    def sees(self, principal: Principal, kind: Kind, project: str) -> bool:
        """Whether objects of `kind` in `project` are shown in lists and watches."""
        return may(principal, "list", kind.name, self._view.members(project) or {}).visible

    def shows_secrets(self, principal: Principal, project: str) -> bool:
        """Whether user data is shown: to those who could have written it."""
        return may(principal, "update", "machine", self._view.members(project) or {}).allowed

    def check_admin(self, principal: Principal) -> None:
        """Raises Forbidden unless `principal` is an admin."""
        if not principal.admin:
            raise Forbidden(
                "only an admin may ask for this", f"{principal.name} is not root and not who runs the daemon"
            )

    def check_reserved(self, principal: Principal, after: Object, before: Object | None) -> None:
        """What an owner may not give themselves: quotas, and images that reach into other projects. Raises Forbidden."""
        if isinstance(after, Program):
            _check_program(principal, after, before if isinstance(before, Program) else None)
        if not principal.admin and _reserved(after) != (_reserved(before) if before is not None else _reserved(None)):
            raise Forbidden(
                f'{after.kind} "{after.name}" was not written',
                "only an admin sets quotas of projects and publishes images to all projects",
                "leave spec.quota and spec.published as they are, or ask root on this host",
            )


def _check_program(principal: Principal, after: Program, before: Program | None) -> None:
    """The daemon lends what the host has only to those who have it anyway: else a root's daemon would be everybody's way to root's files."""
    given = privileges(after.spec.policy)
    if principal.admin or not given or (before is not None and _same_program(after, before)):
        return
    raise Forbidden(
        f'program "{after.name}" was not written',
        f"only an admin of this daemon may lend it the host's own: {', '.join(given[:5])}",
        "leave that out; or run it without the daemon, with what is yours: roost run without --detach; or ask root on this host",
    )


def _same_program(after: Program, before: Program) -> bool:
    """Whether only the wish to run it differs."""
    wish = {name: getattr(after.spec, name) for name in ("power", "restart", "restarts", "stop_grace")}
    return msgspec.structs.replace(before.spec, **wish) == after.spec


def sealed(principal: Principal, after: Object, before: Object | None) -> Object:
    """The object with the note whether an admin wrote what it is to run, so that nobody needs to know later who did."""
    if not isinstance(after, Program) or (isinstance(before, Program) and _same_program(after, before)):
        return after
    return msgspec.structs.replace(after, status=msgspec.structs.replace(after.status, trusted=principal.admin))


def _reserved(thing: Object | None) -> tuple[Quota, bool]:
    """The part of a spec that is an admin's to set."""
    quota = thing.spec.quota if isinstance(thing, Project) else Quota()
    return quota, isinstance(thing, Image) and thing.spec.published


def missing(kind: Kind, project: str, name: str | None) -> NotFound:
    """The one answer for what is not there and for what the caller may not know of."""
    if not kind.scoped and kind.name in OF_HOST:
        return NotFound(f'{kind.name} "{name or project}" does not exist', fix=f"roost {kind.name} list")
    if name is None or not kind.scoped:
        wanted = name or project
        own = "roost project create mine && export ROOST_PROJECT=mine"
        why, fix = "or you have no part in it", own if wanted == "default" else "roost project list"
        return NotFound(f'project "{wanted}" does not exist', why, fix)
    listing = f"roost get {kind.name}" if project == "default" else f"roost get {kind.name} --project {project}"
    return NotFound(f'{kind.name} "{name}" does not exist in project "{project}"', fix=listing)


def creator_becomes_owner(principal: Principal, members: dict[str, Role]) -> dict[str, Role]:
    """The members of a new project: whoever is no admin must be able to reach what they made."""
    return members if principal.admin else {**members, principal.name: "owner"}
