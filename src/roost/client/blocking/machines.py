# Derived from aio/machines.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Machines and their snapshots: launch, clone, change their power, keep an instant of them and go back to it, remove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import msgspec

from roost.client import names
from roost.client.blocking.inside import Inside
from roost.client.blocking.objects import Objects, Change, decode
from roost.client.blocking.session import Session
from roost.client.blocking.sources import Sources
from roost.client.durations import moment_after, seconds, stamp
from roost.client.progress import Sign, Until, as_wished, failed, paused, progress, restored, running, stopped
from roost.client.protocol import error_of, path
from roost.client.results import Progress
from roost.errors import Conflict, NotFound, RoostError
from roost.model.kinds import BY_NAME
from roost.model.machine import Machine, MachineSpec, MachineStatus, Timing
from roost.model.snapshot import Snapshot, SnapshotSpec, SnapshotStatus

Report = Callable[[str, Progress], None]
"""Told the machine's name and how far it is."""

ATTEMPTS = 5
"""Names tried for a machine that the caller gave none."""


def silent(name: str, now: Progress) -> None:
    """Tell nobody."""


class Copying(TypedDict, total=False):
    """How copies are made: with `keep_identity` exact ones, without network; with `start` they run even if what they are copies of does not;
    without `memory` they boot from a copy of the disk; without `wait` the call returns at once, not when each is as it should be."""

    keep_identity: bool
    start: bool
    memory: bool
    wait: bool
    report: Report


class MachineHandle(Inside):
    """One machine. Its fields are as they were when last seen: `refresh` looks again."""

    def __repr__(self) -> str:
        return f"<machine {self.object.project}/{self.object.name} {self.object.status.phase}>"

    @property
    def spec(self) -> MachineSpec:
        """What is wanted, as last seen."""
        return self.object.spec

    @property
    def status(self) -> MachineStatus:
        """What is, as last seen."""
        return self.object.status

    @property
    def timing(self) -> Timing:
        """How long each step of the last start took, in seconds, and by which path the machine came up."""
        return self.object.status.timing

    def refresh(self) -> Machine:
        """Look again. Raises NotFound when it is gone."""
        self.object = decode(self._session.call("GET", path("machines", *self._place)), Machine)
        return self.object

    def start(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Let it run; False when it did already. With `wait` returns when a command can run inside.

        Raises what kept it from starting: Unavailable, Conflict, ...
        """
        return self._power({"power": "running"}, running if wait else None, report)

    def stop(
        self, *, force: bool = False, timeout: float | None = None, wait: bool = True, report: Report = silent
    ) -> bool:
        """Ask the guest to shut down; after `timeout` seconds (default: its spec's stop_grace), or at once with `force`, it is ended.

        False when it was stopped already.
        """
        grace = 0.0 if force else timeout
        spec = {"power": "stopped"} if grace is None else {"power": "stopped", "stop_grace": grace}
        return self._power(spec, stopped if wait else None, report)

    def pause(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Stop its virtual CPUs; False when they are stopped already."""
        return self._power({"power": "paused"}, paused if wait else None, report)

    def resume(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Let a paused machine go on; False when it runs. Raises Conflict when it is not paused: `start` boots a stopped one."""
        if self.object.spec.power == "stopped":
            what = f'machine "{self.name}" can not be resumed'
            raise Conflict(what, f"it is {self.status.phase}, not paused", f"roost start {self.name}")
        return self.start(wait=wait, report=report)

    def restart(self, *, wait: bool = True, report: Report = silent) -> None:
        """Shut it down and start it again."""
        seen = self.refresh()
        wish = {"power": "running", "restarts": seen.spec.restarts + (seen.spec.power != "stopped")}
        self._power(wish, running if wait else None, report)

    def rename(self, name: str) -> None:
        """Give it another name; a running machine goes on, its hostname inside stays. Raises Conflict when the name is taken."""
        self.object = decode(
            self._session.call("POST", path("machines", *self._place, "rename"), {"name": name}), Machine
        )

    def clone(
        self, name: str | None = None, *, count: int = 1, **how: Unpack[Copying]
    ) -> list[MachineHandle | RoostError]:
        """Copies of it, all of this instant: of a running machine with its memory, while it goes on.

        They are called `name` (without one: its own name and a pleasant word), several NAME-1, NAME-2, ... One outcome for each, in that
        order: the machine, or the error that stopped it. Raises what keeps all of them from being made: NotFound, Forbidden, Conflict.
        """
        machines = Machines(self._session, self.project)
        return machines.copy("machines", self.name, names.numbered(name or names.after(self.name), count), how)

    def snapshot(
        self,
        name: str | None = None,
        *,
        memory: bool | None = None,
        expires: str | float | None = None,
        wait: bool = True,
        report: Report = silent,
    ) -> SnapshotHandle:
        """Keep this instant of it: disks, and memory when it runs (`memory` False: without). Its name is the machine's, a dot, and `name`
        (without one: the time). `expires`: when it may go, as a duration ("7d", seconds) or a time (RFC 3339). With `wait` returns when
        it is ready. Raises what kept it from being taken."""
        spec = _plain({"machine": self.name, "memory": memory, "expires": moment_after(expires)})
        snapshots = Snapshots(self._session, self.project)
        taken = SnapshotHandle(self._session, snapshots.create_named(self.name, name, spec))
        if wait:
            taken.wait_until_ready(report)
        return taken

    def snapshots(self) -> list[SnapshotHandle]:
        """What was kept of it, the oldest first."""
        return Snapshots(self._session, self.project).of(self.name, self.object.meta.uid)

    def restore(self, snapshot: str, *, memory: bool = True, wait: bool = True, report: Report = silent) -> None:
        """Go back to a snapshot of it ("ready" or "web.ready"): what it did since is lost. Without `memory` only the disk goes back. With
        `wait` returns when it is there and runs (or is stopped, as it was, when no memory came back). Raises NotFound, Conflict (it is a
        snapshot of another machine)."""
        wish = {"snapshot": full_name(self.name, snapshot), "memory": memory}
        answer = self._session.call("POST", path("machines", *self._place, "restore"), wish)
        self.object = decode(answer, Machine)
        if wait:
            self.wait_for(restored, report)

    def schedule(
        self,
        every: str | float | None,
        *,
        keep: int | None = None,
        expire: str | float | None = None,
        memory: bool = True,
    ) -> None:
        """Take a snapshot of it every so often ("1h", seconds) while it runs; None: no more. At most `keep` of them stay, each at most
        `expire` long."""
        wish = None
        if every is not None:
            expiry = None if expire is None else seconds(expire, "expire")
            wish = {"every": seconds(every, "every"), "keep": keep, "expire": expiry, "memory": memory}
        self.object = Machines(self._session, self.project).change(self.name, {"schedule": wish})

    def delete(self, *, wait: bool = True) -> None:
        """Remove it and its disk, running or not. With `wait` returns when nothing of it is left. Raises NotFound."""
        Machines(self._session, self.project).delete(self.name, wait=wait)

    def wait_for(self, sign: Sign, report: Report = silent) -> None:
        """Return when `sign` says so of its status. Raises what the sign raises, and NotFound when the machine is deleted meanwhile."""
        Machines(self._session, self.project).wait_for([self], sign, report)

    def _power(self, spec: dict[str, Any], sign: Sign | None, report: Report) -> bool:
        before = self.object.meta.generation, self.object.status.phase
        self.object = decode(self._session.call("PATCH", path("machines", *self._place), {"spec": spec}), Machine)
        changed = (self.object.meta.generation, self.object.status.phase) != before or (
            sign is not None and not sign.holds(self.object)
        )
        if sign is not None:
            self.wait_for(sign, report)
        return changed


class Machines(Objects[Machine]):
    """The machines of a project."""

    def __init__(self, session: Session, project: str) -> None:
        super().__init__(session, BY_NAME["machine"], Machine, project)

    def handle(self, name: str) -> MachineHandle:
        """The machine called `name`. Raises NotFound."""
        return MachineHandle(self._session, self.get(name))

    def launch(
        self, template: str, name: str | None = None, *, wait: bool = True, report: Report = silent, **spec: Any
    ) -> MachineHandle:
        """Make a machine from a template ("tiny", "debian:12"), an image, a disk file, or a URL (with `sha256`), and start it.

        `spec` holds fields of MachineSpec; sizes may be written "1GiB". Without a name it gets a pleasant one. With `wait`
        returns when a command can run inside. Raises Invalid, Conflict (name taken), what kept it from starting; a machine
        that did not start stays, to be looked at.
        """
        sha256 = spec.pop("sha256", None)
        image = Sources(self._session, self._project).image_of(template, sha256, report)
        machine = self._create_named(name, {"image": image, **_plain(spec)})
        if wait:
            machine.wait_for(running, report)
        return machine

    def wait_for(self, machines: Sequence[MachineHandle], sign: Sign, report: Report = silent) -> None:
        """Return when `sign` says so of every one of the machines; one watch for all."""
        self._follow(
            machines, Until(sign, {machine.object.meta.uid: machine.object for machine in machines}), report
        )

    def wait_for_each(
        self, machines: Sequence[MachineHandle], sign: Sign, report: Report = silent
    ) -> dict[str, RoostError]:
        """Return when `sign` says so of every machine, or never will; the errors that stopped some, by uid."""
        until = Until(sign, {machine.object.meta.uid: machine.object for machine in machines}, each=True)
        self._follow(machines, until, report)
        return until.failures

    def copy(
        self, plural: str, source: str, wanted: Sequence[str], how: Copying
    ) -> list[MachineHandle | RoostError]:
        """Machines with the `wanted` names, made of `source`: one of the "machines" or "snapshots". See `MachineHandle.clone`."""
        body = {"names": list(wanted), **{name: bool(how.get(name)) for name in ("keep_identity", "start")}}
        body["memory"] = how.get("memory", True)
        answer = self._session.call("POST", path(plural, self._project, source, "clone"), body)
        kids = [self._outcome(item) for item in answer["items"]]
        if not how.get("wait", True):
            return kids
        made = [kid for kid in kids if isinstance(kid, MachineHandle)]
        failures = self.wait_for_each(made, as_wished, how.get("report", silent))
        return [kid if isinstance(kid, RoostError) else failures.get(kid.object.meta.uid, kid) for kid in kids]

    def _outcome(self, item: Mapping[str, Any]) -> MachineHandle | RoostError:
        if "machine" in item:
            return MachineHandle(self._session, decode(item["machine"], Machine))
        return error_of(item["error"])

    def _follow(self, machines: Sequence[MachineHandle], until: Until, report: Report) -> None:
        waiting = {machine.object.meta.uid: machine for machine in machines}
        if until.done():
            return
        for change in self.changes():
            machine = waiting.get(change.value.meta.uid) if change.value is not None else None
            if machine is not None and change.value is not None:
                machine.object = change.value
                report(machine.name, progress(machine.object))
            _judge(until, change)
            if until.done():
                return

    def _create_named(self, name: str | None, spec: dict[str, Any]) -> MachineHandle:
        if name is not None:
            return MachineHandle(self._session, self.create(name, spec))
        for _ in range(ATTEMPTS):
            try:
                return MachineHandle(self._session, self.create(names.pleasant(), spec))
            except Conflict as error:
                taken = error
        raise taken


class SnapshotHandle:
    """One snapshot. Its fields are as they were when last seen: `refresh` looks again."""

    def __init__(self, session: Session, seen: Snapshot) -> None:
        self._session = session
        self.object = seen

    def __repr__(self) -> str:
        return f"<snapshot {self.object.project}/{self.object.name} {self.object.status.phase}>"

    @property
    def name(self) -> str:
        """Its whole name: the machine's, a dot, and its own."""
        return self.object.name

    @property
    def project(self) -> str:
        """The project that owns it."""
        return self.object.project

    @property
    def spec(self) -> SnapshotSpec:
        """What is wanted, as last seen."""
        return self.object.spec

    @property
    def status(self) -> SnapshotStatus:
        """What is, as last seen: when it was taken, whether with memory, how many bytes are its own and how many shared."""
        return self.object.status

    def refresh(self) -> Snapshot:
        """Look again. Raises NotFound when it is gone."""
        self.object = Snapshots(self._session, self.project).get(self.name)
        return self.object

    def clone(
        self, name: str | None = None, *, count: int = 1, **how: Unpack[Copying]
    ) -> list[MachineHandle | RoostError]:
        """Machines that go on from it (with memory), or that stand ready with its disk. Outcomes as of `MachineHandle.clone`."""
        machines = Machines(self._session, self.project)
        return machines.copy("snapshots", self.name, names.numbered(name or names.after(self.name), count), how)

    def delete(self, *, wait: bool = True) -> None:
        """Remove it; machines that were made from it go on. With `wait` returns when nothing of it is left. Raises NotFound."""
        Snapshots(self._session, self.project).delete(self.name, wait=wait)

    def wait_until_ready(self, report: Report = silent) -> None:
        """Return when it can be used. Raises what kept it from being taken, NotFound when it was deleted meanwhile."""
        present = False
        for change in Snapshots(self._session, self.project).changes():
            seen = change.value
            if seen is not None and seen.meta.uid == self.object.meta.uid:
                present, self.object = True, seen
                report(seen.name, Progress(seen.status.progress or seen.status.phase))
                if seen.status.phase == "failed":
                    raise failed(seen)
                if seen.status.phase == "ready":
                    return
            elif (change.synced and not present) or (seen is None and change.name == self.name):
                break
        raise NotFound(f'snapshot "{self.name}" is gone', "it was deleted meanwhile", "roost events")


class Snapshots(Objects[Snapshot]):
    """The snapshots of a project."""

    def __init__(self, session: Session, project: str) -> None:
        super().__init__(session, BY_NAME["snapshot"], Snapshot, project)

    def handle(self, name: str) -> SnapshotHandle:
        """The snapshot called `name` ("web.ready"). Raises NotFound."""
        return SnapshotHandle(self._session, self.get(name))

    def of(self, machine: str, uid: str) -> list[SnapshotHandle]:
        """What was kept of a machine, also under an earlier name of it, the oldest first."""
        found = [
            it
            for it in self.list()
            if uid == it.status.machine_uid or (not it.status.machine_uid and it.spec.machine == machine)
        ]
        found.sort(key=lambda it: (it.status.taken or it.meta.created, it.name))
        return [SnapshotHandle(self._session, it) for it in found]

    def create_named(self, machine: str, name: str | None, spec: dict[str, Any]) -> Snapshot:
        """A snapshot called `name`, or else by the time, whatever else was taken in the same second."""
        if name is not None:
            return self.create(full_name(machine, name), spec)
        base = f"{machine}.{stamp()}"
        for wanted in (base, *(f"{base}-{number}" for number in range(2, ATTEMPTS + 1))):
            try:
                return self.create(wanted, spec)
            except Conflict as error:
                taken = error
        raise taken


def full_name(machine: str, snapshot: str) -> str:
    """A snapshot's whole name, of its whole name or of its own."""
    return snapshot if "." in snapshot else f"{machine}.{snapshot}"


def _judge(until: Until, change: Change[Machine]) -> None:
    if change.value is not None:
        until.see(change.value)
    elif change.name is not None:
        until.gone(change.project, change.name)
    elif change.synced:
        until.all_seen()


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON; None means "as the default is"."""
    return {name: msgspec.to_builtins(value) for name, value in spec.items() if value is not None}
