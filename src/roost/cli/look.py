"""Verbs that only look: list, show, get, events, node."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from roost.cli import render
from roost.cli.context import Context
from roost.cli.options import actions
from roost.cli.render import Table
from roost.cli.verbs import Command
from roost.client.protocol import path
from roost.errors import Invalid, NotFound, NotStarted

KINDS = {
    "machine": "machines",
    "program": "programs",
    "network": "networks",
    "ruleset": "rulesets",
    "forward": "forwards",
    "image": "images",
    "snapshot": "snapshots",
    "pool": "pools",
    "volume": "volumes",
    "volumesnapshot": "volumesnapshots",
    "node": "nodes",
    "project": "projects",
    "event": "events",
}
"""Singular to plural: what roost.model.kinds says, without the cost of importing it (a test holds the two together)."""


def _published(machine: dict[str, Any]) -> str:
    return ", ".join(
        f"{entry['host_ip']}:{entry['host_port']}->{entry['guest_port']}" for entry in machine["spec"]["publish"]
    )


def _state(thing: dict[str, Any]) -> str:
    status = thing["status"]
    if thing["meta"].get("deleting"):
        return "deleting"
    return f"{status['phase']} ({status['progress']})" if status.get("progress") else str(status["phase"])


def _exit(program: dict[str, Any]) -> str | None:
    """How the last run ended; nothing while one is under way."""
    ended = program["status"]["exit"]
    if ended is None:
        return None
    return str(ended["code"]) if ended["reason"] == "exit" else f"{ended['code']} ({ended['limit'] or ended['reason']})"


def _bytes_bound(project: dict[str, Any], what: str) -> str:
    bound = project["spec"]["quota"][what]
    return render.size(bound) if bound else "no bound"


def _level(pool: dict[str, Any]) -> str:
    """A pool that works says how full it is."""
    level = pool["status"]["level"]
    return str(level) if _state(pool) == "ready" and level != "ok" else _state(pool)


def _full(pool: dict[str, Any]) -> str:
    size = pool["status"]["size"]
    return f"{pool['status']['used'] / size:.0%}" if size else "-"


def _where(pool: dict[str, Any]) -> str:
    spec = pool["spec"]
    return str(spec["path"] or spec["thin_pool"] or ", ".join(spec["servers"]) or "the daemon's directory")


TABLES = {
    "machine": Table(
        "machines",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("IMAGE", lambda it: it["spec"]["image"]),
            ("CPUS", lambda it: it["spec"]["cpus"]),
            ("MEMORY", lambda it: render.size(it["spec"]["memory"])),
            ("ACCEL", lambda it: it["status"]["accelerator"]),
            ("ADDRESSES", lambda it: ", ".join(it["status"]["addresses"])),
            ("PUBLISHED", _published),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "program": Table(
        "programs",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("FILE", lambda it: it["spec"]["file"]),
            ("RUNTIME", lambda it: it["status"]["runtime"] or it["spec"]["vm"]),
            ("MEMORY", lambda it: render.size(it["spec"]["policy"]["memory"])),
            ("RESTART", lambda it: it["spec"]["restart"]),
            ("RESTARTED", lambda it: it["status"]["restarted"]),
            ("EXIT", _exit),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "network": Table(
        "networks",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("MODE", lambda it: it["spec"]["mode"]),
            ("SUBNETS", lambda it: ", ".join(subnet["cidr"] for subnet in it["status"]["subnets"])),
            ("DOOR", lambda it: it["status"]["door"]),
            ("PORTS", lambda it: it["status"]["ports"]),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "ruleset": Table(
        "rule sets",
        (
            ("NAME", lambda it: it["name"]),
            ("RULES", lambda it: len(it["spec"]["rules"])),
            ("PORTS", lambda it: it["status"]["ports"]),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "forward": Table(
        "forwards",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("FROM", lambda it: f"{it['spec']['address']}:{it['spec']['host_port']}/{it['spec']['protocol']}"),
            ("MACHINE", lambda it: it["spec"]["machine"]),
            ("TO", lambda it: it["status"]["target"] or f"port {it['spec']['guest_port']}"),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "image": Table(
        "images",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", lambda it: it["status"]["progress"] or it["status"]["phase"]),
            ("ARCH", lambda it: it["status"]["arch"]),
            ("SIZE", lambda it: render.size(it["status"]["size"])),
            ("DISK", lambda it: render.size(it["status"]["virtual_size"])),
            ("SOURCE", lambda it: it["spec"]["template"] or it["spec"]["url"] or "upload"),
            ("DIGEST", lambda it: it["status"]["digest"][:19]),
            ("PUBLISHED", lambda it: it["spec"]["published"]),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "snapshot": Table(
        "snapshots",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("TAKEN", lambda it: it["status"]["taken"]),
            ("MEMORY", lambda it: it["status"]["memory"]),
            ("OWN", lambda it: render.size(it["status"]["own"])),
            ("SHARED", lambda it: render.size(it["status"]["shared"])),
            ("EXPIRES", lambda it: it["spec"]["expires"] or "never"),
        ),
    ),
    "pool": Table(
        "pools",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _level),
            ("TYPE", lambda it: it["spec"]["type"]),
            ("SIZE", lambda it: render.size(it["status"]["size"])),
            ("USED", lambda it: render.size(it["status"]["used"])),
            ("FULL", _full),
            ("PROVISIONED", lambda it: render.size(it["status"]["provisioned"])),
            ("VOLUMES", lambda it: it["status"]["volumes"]),
            ("WHERE", _where),
        ),
    ),
    "volume": Table(
        "volumes",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("SIZE", lambda it: render.size(it["status"]["size"] or it["spec"]["size"])),
            ("USED", lambda it: render.size(it["status"]["used"])),
            ("SHARED", lambda it: render.size(it["status"]["shared"])),
            ("POOL", lambda it: it["status"]["pool"] or it["spec"]["pool"]),
            ("MACHINES", lambda it: ", ".join(it["status"]["machines"])),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "volumesnapshot": Table(
        "snapshots of volumes",
        (
            ("NAME", lambda it: it["name"]),
            ("STATE", _state),
            ("TAKEN", lambda it: it["status"]["taken"]),
            ("SIZE", lambda it: render.size(it["status"]["size"])),
            ("OWN", lambda it: render.size(it["status"]["own"])),
            ("SHARED", lambda it: render.size(it["status"]["shared"])),
            ("POOL", lambda it: it["status"]["pool"]),
        ),
    ),
    "node": Table(
        "nodes",
        (
            ("NAME", lambda it: it["name"]),
            ("ARCH", lambda it: it["status"]["arch"]),
            ("CPUS", lambda it: it["status"]["cpus"]),
            ("MEMORY", lambda it: render.size(it["status"]["memory"])),
            ("FREE", lambda it: render.size(it["status"]["memory_free"])),
            ("ACCEL", lambda it: it["status"]["verdict"]["accelerator"]),
            ("MACHINES", lambda it: it["status"]["machines"]),
            ("KERNEL", lambda it: it["status"]["kernel"]),
        ),
    ),
    "project": Table(
        "projects",
        (
            ("NAME", lambda it: it["name"]),
            ("MEMBERS", lambda it: ", ".join(f"{who} {role}" for who, role in it["spec"]["members"].items())),
            ("MACHINES", lambda it: it["spec"]["quota"]["machines"] or "no bound"),
            ("PROGRAMS", lambda it: it["spec"]["quota"]["programs"] or "no bound"),
            ("NETWORKS", lambda it: it["spec"]["quota"]["networks"] or "no bound"),
            ("CPUS", lambda it: it["spec"]["quota"]["cpus"] or "no bound"),
            ("MEMORY", lambda it: _bytes_bound(it, "memory")),
            ("VOLUMES", lambda it: it["spec"]["quota"]["volumes"] or "no bound"),
            ("STORAGE", lambda it: _bytes_bound(it, "storage")),
            ("AGE", lambda it: render.age(it["meta"]["created"])),
        ),
    ),
    "event": Table(
        "events",
        (
            ("TIME", lambda it: it["spec"]["time"]),
            ("LEVEL", lambda it: it["spec"]["level"]),
            ("ABOUT", lambda it: it["spec"]["about"]),
            ("REASON", lambda it: it["spec"]["reason"]),
            ("MESSAGE", lambda it: it["spec"]["message"]),
        ),
    ),
}


def in_project(table: Table) -> Table:
    """The table with a first column for the project."""
    return Table(table.kind, (("PROJECT", lambda it: it["project"]), *table.columns))


def kind_of(word: str) -> str:
    """The kind that a word names, singular or plural. Raises NotFound."""
    word = word.lower()
    kind = next((name for name, plural in KINDS.items() if word in (name, plural)), None)
    if kind is None:
        raise NotFound(f"kind {word!r} does not exist", fix="one of: " + ", ".join(KINDS))
    return kind


def place_of(context: Context, kind: str, name: str) -> tuple[str, ...]:
    """Where an object of a kind is, as the API's path has it."""
    if kind in ("project", "pool"):
        return KINDS[kind], name
    return KINDS[kind], "system" if kind == "node" else context.project, name


def project_of(context: Context, kind: str) -> str | None:
    """The project that a listing of the kind asks for."""
    return {"project": None, "pool": None, "node": "system"}.get(kind, context.project)


def _list_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("-a", "--all-projects", action="store_true", help="in all projects that you may see")
    parser.add_argument("-l", "--label", metavar="K[=V]", help="only what has this label")


def _list(context: Context, given: Namespace) -> int:
    project = "all" if given.all_projects else context.project
    machines, programs = (
        context.items(plural, project=project, label=given.label) for plural in ("machines", "programs")
    )
    table, other = (TABLES[kind] if project != "all" else in_project(TABLES[kind]) for kind in ("machine", "program"))
    if context.output not in (None, "table"):
        context.show([*machines, *programs], table)
        return 0
    if machines or not programs:
        context.show(machines, table)
    if programs:
        print("\n" if machines else "", end="")
        context.show(programs, other)
    return 0


def _show_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+")


def _show(context: Context, given: Namespace) -> int:
    from roost.cli.named import look_up

    found = [look_up(context, name) for name in given.names]
    form = context.output or "yaml"
    render.show(found if len(found) > 1 else found[0], form, TABLES["machine"])
    return 0


def _get_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "kind",
        metavar="KIND",
        help="machine, program, network, image, snapshot, volume, pool, node, project, event, ... (or the plural)",
    )
    parser.add_argument("name", metavar="NAME", nargs="?")
    parser.add_argument("-a", "--all-projects", action="store_true", help="in all projects that you may see")


def _get(context: Context, given: Namespace) -> int:
    kind = kind_of(given.kind)
    if given.name is not None:
        found = context.session.call("GET", path(*place_of(context, kind, given.name)))
        render.show(found, context.output or "yaml", TABLES[kind])
        return 0
    project = "all" if given.all_projects and kind not in ("project", "pool") else project_of(context, kind)
    table = in_project(TABLES[kind]) if project == "all" else TABLES[kind]
    context.show(context.items(KINDS[kind], project=project), table)
    return 0


def _events_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="only of this machine, program, image, snapshot or volume"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on and print what happens")
    parser.add_argument("-a", "--all-projects", action="store_true", help="in all projects that you may see")


def _events(context: Context, given: Namespace) -> int:
    project = "all" if given.all_projects else context.project
    about = _about(context, given.name)
    if not given.follow:
        found = [it for it in context.items("events", project=project) if _concerns(it, about)]
        context.show(sorted(found, key=lambda it: str(it["spec"]["time"])), TABLES["event"])
        return 0
    if context.output in ("yaml", "name"):
        raise Invalid(
            f"--follow can not print {context.output}",
            "what never ends is no document",
            "use -o json: one event a line",
        )
    for event in context.session.events(path("watch", kind="event", project=project)):
        if event.name == "put":
            _print_event(context, json.loads(event.data), about)
        elif event.name == "resync":
            break
    raise NotStarted(
        "the events can not be followed any further", "the daemon ended the watch", "roost events --follow"
    )


def _about(context: Context, name: str | None) -> frozenset[str]:
    """What the events of an object are known by: its name, and the uid that it keeps when it is renamed."""
    if name is None:
        return frozenset()
    known = {name}
    for plural in ("machines", "programs", "images", "snapshots", "volumes"):
        try:
            known.add(str(context.session.call("GET", path(plural, context.project, name))["meta"]["uid"]))
        except NotFound:
            continue
    return frozenset(known)


def _print_event(context: Context, event: dict[str, Any], about: frozenset[str]) -> None:
    if not _concerns(event, about):
        return
    if context.output == "json":
        print(json.dumps(event, ensure_ascii=False), flush=True)
    else:
        spec = event["spec"]
        print(
            render.clean(f"{spec['time']}  {spec['level']:<7}  {spec['about']}  {spec['reason']}  {spec['message']}"),
            flush=True,
        )


def _concerns(event: dict[str, Any], about: frozenset[str]) -> bool:
    spec = event["spec"]
    return not about or spec["uid"] in about or spec["about"].partition("/")[2] in about


def _node_arguments(parser: ArgumentParser) -> None:
    actions(parser)("list", "list nodes")


def _node(context: Context, given: Namespace) -> int:
    context.show(context.items("nodes", project="system"), TABLES["node"])
    return 0


COMMANDS = {
    "list": Command(_list_arguments, _list, "roost list\nroost list -o json --all-projects"),
    "show": Command(_show_arguments, _show, "roost show web\nroost show web -o json"),
    "get": Command(_get_arguments, _get, "roost get machine web -o yaml\nroost get images"),
    "events": Command(_events_arguments, _events, "roost events web\nroost events --follow"),
    "node": Command(_node_arguments, _node, "roost node list"),
}
