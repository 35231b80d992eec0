"""The verb volume: disks with a life of their own."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from roost.cli.context import Context
from roost.cli.look import TABLES, in_project
from roost.cli.options import actions
from roost.cli.power import each
from roost.cli.render import show, size
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.volumes import Volumes
from roost.client.protocol import path
from roost.errors import Invalid, NotFound
from roost.model.codec import plain
from roost.model.volume import Volume

LIMITS = ("iops", "bandwidth", "burst_iops", "burst_bandwidth")


def _arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    created = add("create", "make a volume")
    created.add_argument("name", metavar="NAME", help="at most 36 small letters, digits and '-'")
    created.add_argument("--size", metavar="SIZE", help="as 10GiB (default: the image's)")
    created.add_argument("--pool", metavar="POOL", help="where its bytes live (default: default)")
    created.add_argument("--image", metavar="IMAGE", help="begin with what this image holds")
    created.add_argument("--encrypted", action="store_true", help="encrypt it (LUKS) with the project's key")
    created.add_argument("--shared", action="store_true", help="several machines may read it, and none write")
    created.add_argument("--protected", action="store_true", help="refuse to delete it")
    _limits(created)
    _no_wait(created)
    _look_arguments(add)
    _plug_arguments(add)
    _change_arguments(add)
    _copy_arguments(add)
    deleted = add("delete", "put volumes into the trash, from which restore brings them back; or delete snapshots")
    deleted.add_argument("names", metavar="NAME", nargs="+", help="volumes; or snapshots, as data.monday")
    deleted.add_argument("--now", action="store_true", help="past the trash: it can not be brought back")
    deleted.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")
    _no_wait(deleted)


def _look_arguments(add: Callable[[str, str], ArgumentParser]) -> None:
    listed = add("list", "list volumes")
    listed.add_argument("-a", "--all-projects", action="store_true", help="in all projects that you may see")
    listed.add_argument("--trash", action="store_true", help="what is in the trash, instead")
    add("show", "show all about a volume").add_argument("name", metavar="NAME")


def _plug_arguments(add: Callable[[str, str], ArgumentParser]) -> None:
    attached = add("attach", "give a machine a volume, running or not")
    attached.add_argument("name", metavar="NAME")
    attached.add_argument("machine", metavar="MACHINE")
    attached.add_argument("--read-only", action="store_true", help="the machine may not write to it")
    _no_wait(attached)
    detached = add("detach", "take a volume from a machine, running or not")
    detached.add_argument("name", metavar="NAME")
    detached.add_argument("machine", metavar="MACHINE", nargs="?", help="default: the one that has it")
    _no_wait(detached)


def _change_arguments(add: Callable[[str, str], ArgumentParser]) -> None:
    grown = add("grow", "make a volume larger, also while a machine has it")
    grown.add_argument("name", metavar="NAME")
    grown.add_argument("size", metavar="SIZE", help="the new one, as 20GiB; or what is added, as +10GiB")
    _no_wait(grown)
    moved = add("move", "bring a volume to another pool, also while a machine has it")
    moved.add_argument("name", metavar="NAME")
    moved.add_argument("pool", metavar="POOL")
    _no_wait(moved)
    renamed = add("rename", "give a volume that no machine has another name")
    renamed.add_argument("name", metavar="NAME")
    renamed.add_argument("new", metavar="NEW")
    limited = add("limit", "say how fast a volume may be; at once, also while a machine has it")
    limited.add_argument("name", metavar="NAME")
    _limits(limited)
    limited.add_argument("--none", action="store_true", help="no limits but those that are named")
    for verb, text, off in (
        ("protect", "refuse to delete a volume", "it may be deleted again"),
        ("share", "let several machines read a volume, and none write", "one machine may have it again, and write"),
    ):
        switched = add(verb, text)
        switched.add_argument("name", metavar="NAME")
        switched.add_argument("--off", action="store_true", help=off)


def _copy_arguments(add: Callable[[str, str], ArgumentParser]) -> None:
    taken = add("snapshot", "keep a volume as it is now, also while a machine has it")
    taken.add_argument("name", metavar="NAME")
    taken.add_argument("snapshot", metavar="SNAP", nargs="?", help="its name (default: the time)")
    _no_wait(taken)
    kept = add("snapshots", "list snapshots of volumes")
    kept.add_argument("name", metavar="NAME", nargs="?", help="of this volume (default: of all)")
    cloned = add("clone", "copy a volume, or a snapshot of one; what is the same is shared")
    cloned.add_argument("name", metavar="NAME", help="a volume; or a snapshot, as data.monday")
    cloned.add_argument("new", metavar="NEW")
    cloned.add_argument("--pool", metavar="POOL", help="where its bytes live (default: beside the first)")
    _no_wait(cloned)
    restored = add("restore", "bring a volume back from the trash")
    restored.add_argument("name", metavar="NAME", help="as it was called, or as it is called in the trash")
    restored.add_argument("--as", dest="new", metavar="NEW", help="another name for it")


def _no_wait(parser: ArgumentParser) -> None:
    parser.add_argument("--no-wait", action="store_true", help="return at once, not when it is done")


def _limits(parser: ArgumentParser) -> None:
    parser.add_argument("--iops", type=int, metavar="N", help="reads and writes a second; 0: no limit")
    parser.add_argument("--bandwidth", metavar="SIZE", help="bytes a second, as 50MiB; 0: no limit")
    parser.add_argument("--burst-iops", type=int, metavar="N", help="the same for up to a second at a time")
    parser.add_argument("--burst-bandwidth", metavar="SIZE", help="the same for up to a second at a time")


def _volume(context: Context, given: Namespace) -> int:
    acts = {
        "create": _create, "list": _list, "show": _show, "attach": _attach, "detach": _detach, "grow": _grow,
        "move": _move, "rename": _rename, "limit": _limit, "protect": _protect, "share": _share,
        "snapshot": _snapshot, "snapshots": _snapshots, "clone": _clone, "restore": _restore, "delete": _delete,
    }  # fmt: skip
    with Waiting(quiet=context.quiet) as waiting:
        given.report = waiting.report
        return acts[given.action](context, given)


def _volumes(context: Context) -> Volumes:
    return Volumes(context.session, context.project)


def _named_limits(given: Namespace) -> dict[str, Any]:
    return {name: value for name in LIMITS if (value := getattr(given, name)) is not None}


def _create(context: Context, given: Namespace) -> int:
    spec: dict[str, Any] = {
        "pool": given.pool, "source": {"image": given.image} if given.image else None, "encrypted": given.encrypted or None,
        "sharing": "read-only" if given.shared else None, "protected": given.protected or None,
        "limits": _named_limits(given) or None,
    }  # fmt: skip
    context.goes_on = f"volume {given.name} goes on being made; see it: roost volume show {given.name}"
    made = _volumes(context).make(given.name, given.size, wait=not given.no_wait, report=given.report, **spec)
    state = "is being made" if given.no_wait else "is made"
    return _tell(context, made, f"volume {given.name} {state}; next: roost volume attach {given.name} MACHINE")


def _list(context: Context, given: Namespace) -> int:
    project = "all" if given.all_projects else context.project
    found = [
        it for it in context.items("volumes", project=project) if (it["status"]["phase"] == "trash") == given.trash
    ]
    context.show(found, in_project(TABLES["volume"]) if given.all_projects else TABLES["volume"])
    return 0


def _show(context: Context, given: Namespace) -> int:
    kind = "volumesnapshot" if "." in given.name else "volume"
    found = context.session.call("GET", path(f"{kind}s", context.project, given.name))
    show(found, context.output or "yaml", TABLES[kind])
    return 0


def _attach(context: Context, given: Namespace) -> int:
    volumes, name = _volumes(context), given.name
    context.goes_on = f"{name} goes on being attached; see it: roost volume show {name}"
    machine = volumes.attach(name, given.machine, read_only=given.read_only, wait=not given.no_wait)
    mount = next((it for it in machine.status.volumes if it.volume == name and it.phase == "attached"), None)
    if mount is not None:
        text = f"{name} is attached to {given.machine}; inside it is the SCSI disk with the serial {name}"
    else:
        later = "is being attached" if machine.status.process is not None else "is there when it starts"
        text = f"{name} belongs to {given.machine}, and {later}"
    return _tell_machine(context, machine, text)


def _detach(context: Context, given: Namespace) -> int:
    context.goes_on = f"{given.name} goes on being detached; see it: roost volume show {given.name}"
    machine = _volumes(context).detach(given.name, given.machine, wait=not given.no_wait)
    state = "is being detached" if given.no_wait else "is detached"
    return _tell_machine(context, machine, f"{given.name} {state} from {machine.name}")


def _grow(context: Context, given: Namespace) -> int:
    context.goes_on = f"{given.name} goes on growing; see it: roost volume show {given.name}"
    grown = _volumes(context).grow(given.name, given.size, wait=not given.no_wait, report=given.report)
    text = f"{given.name} {'is to have' if given.no_wait else 'has'} {size(grown.spec.size)}"
    return _tell(context, grown, text)


def _move(context: Context, given: Namespace) -> int:
    context.goes_on = f"{given.name} goes on being moved; see it: roost volume show {given.name}"
    moved = _volumes(context).move(given.name, given.pool, wait=not given.no_wait, report=given.report)
    return _tell(context, moved, f"{given.name} {'is being moved to' if given.no_wait else 'is in'} pool {given.pool}")


def _rename(context: Context, given: Namespace) -> int:
    renamed = _volumes(context).rename(given.name, given.new)
    return _tell(context, renamed, f"{given.name} is called {given.new} now")


def _limit(context: Context, given: Namespace) -> int:
    named = _named_limits(given)
    if not named and not given.none:
        raise Invalid(
            "roost volume limit: wrong usage", "no limit is named", "say --iops 500, --bandwidth 50MiB or --none"
        )
    wish = {**(dict.fromkeys(LIMITS, 0) if given.none else {}), **named}
    limited = _volumes(context).limit(given.name, wish)
    own = limited.spec.limits
    words = [f"{own.iops} reads and writes"] if own.iops else []
    words += [size(own.bandwidth)] if own.bandwidth else []
    text = f"{given.name} may do {' and '.join(words)} a second" if words else f"{given.name} has no limits"
    return _tell(context, limited, text)


def _protect(context: Context, given: Namespace) -> int:
    changed = _volumes(context).changed(given.name, {"protected": not given.off}, wait=False)
    text = (
        "may be deleted"
        if given.off
        else f"is protected; nobody deletes it before: roost volume protect {given.name} --off"
    )
    return _tell(context, changed, f"{given.name} {text}")


def _share(context: Context, given: Namespace) -> int:
    wish = "none" if given.off else "read-only"
    changed = _volumes(context).changed(given.name, {"sharing": wish}, wait=False)
    more = f"next: roost volume attach {given.name} MACHINE --read-only"
    text = "may be had by one machine, which may write" if given.off else f"may be read by several machines; {more}"
    return _tell(context, changed, f"{given.name} {text}")


def _snapshot(context: Context, given: Namespace) -> int:
    context.goes_on = f"the snapshot goes on being taken; see it: roost volume snapshots {given.name}"
    taken = _volumes(context).snapshot(given.name, given.snapshot, wait=not given.no_wait)
    state = "is being taken" if given.no_wait else "is ready"
    if context.output in ("json", "yaml", "name"):
        show(plain(taken), context.output, TABLES["volumesnapshot"])
    elif context.quiet:
        print(taken.name)
    else:
        context.say(f"{taken.name} {state}; next: roost volume clone {taken.name} NEW")
    return 0


def _snapshots(context: Context, given: Namespace) -> int:
    found = _volumes(context).snapshots(given.name)
    if given.name is not None and not found:
        context.session.call("GET", path("volumes", context.project, given.name))
    context.show([plain(it) for it in found], TABLES["volumesnapshot"])
    return 0


def _clone(context: Context, given: Namespace) -> int:
    context.goes_on = f"volume {given.new} goes on being made; see it: roost volume show {given.new}"
    how = {"pool": given.pool, "wait": not given.no_wait, "report": given.report}
    made = _volumes(context).clone(given.name, given.new, **how)
    state = "is being made" if given.no_wait else "is made"
    return _tell(context, made, f"volume {given.new} {state}; next: roost volume attach {given.new} MACHINE")


def _restore(context: Context, given: Namespace) -> int:
    found = _volumes(context).restore(given.name, given.new)
    return _tell(context, found, f"volume {found.name} is back")


def _delete(context: Context, given: Namespace) -> int:
    volumes = _volumes(context)
    context.goes_on = f"deleting {' '.join(given.names)} goes on"

    def act(name: str) -> str:
        try:
            if "." in name:
                volumes.delete_snapshot(name, wait=not given.no_wait)
                return _gone(name, given)
            back = "" if given.now or given.no_wait else _way_back(context, volumes.get(name))
            volumes.delete(name, wait=not given.no_wait, now=given.now)
        except NotFound:
            if not given.ignore_missing:
                raise
            return f"{name} does not exist"
        return _gone(name, given) + back

    return each(context, given.names, act)


def _gone(name: str, given: Namespace) -> str:
    return f"{name} is {'being deleted' if given.no_wait else 'deleted'}"


def _way_back(context: Context, volume: Volume) -> str:
    """What is said of a volume that goes to the trash: how it comes back."""
    if volume.status.phase != "ready":
        return ""
    pool = context.session.call("GET", path("pools", volume.status.pool or volume.spec.pool))
    hours = pool["spec"]["grace"] / 3600
    return f"; for {hours:g} h it comes back by: roost volume restore {volume.name}" if hours else ""


def _tell(context: Context, volume: Volume, text: str) -> int:
    if context.output in ("json", "yaml", "name"):
        show(plain(volume), context.output, TABLES["volume"])
        return 0
    for warning in volume.status.warnings if not context.quiet else ():
        context.warn(warning)
    context.say(text)
    return 0


def _tell_machine(context: Context, machine: Any, text: str) -> int:
    if context.output in ("json", "yaml", "name"):
        show(plain(machine), context.output, TABLES["machine"])
    else:
        context.say(text)
    return 0


COMMANDS = {
    "volume": Command(
        _arguments,
        _volume,
        "roost volume create data --size 10GiB\nroost volume attach data web\nroost volume grow data +10GiB\n"
        "roost volume snapshot data monday\nroost volume clone data.monday copy\nroost volume detach data",
    )
}
