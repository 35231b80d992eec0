"""The verbs of networks: network, ruleset, forward."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from roost.cli import networkport, networktext, render
from roost.cli.context import Context
from roost.cli.delete import delete
from roost.cli.launch import publish
from roost.cli.look import TABLES, in_project
from roost.cli.options import actions
from roost.cli.render import show
from roost.cli.verbs import Command
from roost.client.blocking.networks import Networks
from roost.client.protocol import path
from roost.errors import BY_CODE, Invalid, NotFound, RoostError, Unavailable
from roost.model.codec import plain
from roost.model.meta import NAME, Trouble
from roost.model.network import Network

Add: TypeAlias = Callable[[str, str], ArgumentParser]
_TOLD = 8
"""Names that are told where another one is not known."""
PROTOCOLS = ("any", "tcp", "udp", "icmp")


# ------------------------------------------------------------------ network


def _network_arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    created = add("create", "make a network")
    created.add_argument("name", metavar="NAME")
    created.add_argument(
        "--mode", choices=("nat", "isolated", "routed", "bridged"), help="its door to the world (default nat)"
    )
    created.add_argument(
        "--subnet", metavar="CIDR", action="append", help="addresses, as 10.20.0.0/24 (default: free ones)"
    )
    created.add_argument("--domain", metavar="DOMAIN", help="what names end with (default PROJECT.internal)")
    created.add_argument(
        "--resolver", metavar="ADDRESS", action="append", help="who answers other names (default: the host's)"
    )
    created.add_argument("--mtu", type=int, metavar="BYTES", help="longest packet")
    created.add_argument("--interface", metavar="NAME", help="the host's interface that a bridged network is part of")
    created.add_argument("--vlan", type=int, metavar="ID", help="802.1Q id of a bridged network")
    created.add_argument("--flow-log", action="store_true", help="log every connection")
    _listed(add("list", "list networks"))
    _plug_arguments(add)
    _look_arguments(add)


def _plug_arguments(add: Add) -> None:
    add("show", "show who is plugged in, with addresses, rules and what passed").add_argument("name", metavar="NAME")
    _deleted(add("delete", "delete networks that nobody is plugged into"))
    networkport.arguments(
        add("port", "change a port's rule sets, bandwidth, cable or address, running or not; or show it")
    )
    attached = add("attach", "plug a machine into a network, running or not")
    attached.add_argument("name", metavar="NETWORK")
    attached.add_argument("machine", metavar="MACHINE")
    attached.add_argument(
        "--address", metavar="ADDRESS", action="append", help="its address there (default: a free one)"
    )
    attached.add_argument("--name", dest="port", metavar="PORT", help="the port's name (default: the network's)")
    attached.add_argument("--mac", metavar="MAC", help="the card's MAC address")
    attached.add_argument("--ruleset", metavar="NAME", action="append", help="what may pass (default: default)")
    detached = add("detach", "unplug a machine from a network")
    detached.add_argument("name", metavar="NETWORK")
    detached.add_argument("machine", metavar="MACHINE")
    detached.add_argument("--name", dest="port", metavar="PORT", default="", help="one of several ports")


def _look_arguments(add: Add) -> None:
    traced = add("trace", "say which rule, route or link decides")
    traced.add_argument("source", metavar="FROM", help="a machine, an address, host (as by a published port), or world")
    traced.add_argument(
        "target",
        metavar="TO[:PORT]",
        nargs="?",
        default="",
        help="a machine, an address or world, and the port; without one icmp is asked for",
    )
    traced.add_argument("--network", metavar="NAME", help="when the machine has several")
    traced.add_argument("--protocol", choices=PROTOCOLS[1:], help="default tcp")
    flows = add("flows", "show the flow log: connections that were allowed or refused")
    flows.add_argument("name", metavar="NAME")
    flows.add_argument("-f", "--follow", action="store_true", help="also what comes")
    switch = flows.add_mutually_exclusive_group()
    switch.add_argument("--on", action="store_true", help="begin to keep one")
    switch.add_argument("--off", action="store_true", help="keep none")
    captured = add("capture", "write what passes a machine's port into a pcap file")
    captured.add_argument("machine", metavar="MACHINE")
    captured.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: standard output")
    captured.add_argument("--network", metavar="NAME", help="when the machine has several")
    captured.add_argument("--frames", type=int, metavar="N", help="end after so many")


def _listed(parser: ArgumentParser) -> None:
    parser.add_argument("-a", "--all-projects", action="store_true", help="in all projects that you may see")


def _deleted(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+")
    parser.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")
    parser.add_argument("--no-wait", action="store_true", help="return at once")


def _network(context: Context, given: Namespace) -> int:
    acts = {
        "create": _create_network, "list": _list, "show": _show_network, "delete": _delete, "attach": _attach,
        "detach": _detach, "trace": _trace, "flows": _flows, "capture": _capture, "port": networkport.run,
    }  # fmt: skip
    given.kind = "network"
    return acts[given.action](context, given)


def _create_network(context: Context, given: Namespace) -> int:
    spec: dict[str, Any] = {name: getattr(given, name) for name in ("mode", "domain", "mtu", "interface", "vlan")}
    spec |= {"flow_log": given.flow_log or None, "resolvers": given.resolver}
    spec["subnets"] = [{"cidr": cidr} for cidr in given.subnet or ()] or None
    wish = {field: value for field, value in spec.items() if value is not None}
    networks = Networks(context.session, context.project)
    networks.create(given.name, wish)
    context.goes_on = f"network {given.name} is made; see it: roost network show {given.name}"
    settled = _settled(networks, given.name)
    if settled.status.error is not None:
        raise _trouble(given.name, settled.status.error)
    said = f"network {given.name} is made; next: roost launch tiny --network {given.name}"
    _tell(context, "network", plain(settled), said)
    return 0


def _settled(networks: Networks, name: str) -> Network:
    """The network as soon as it is ready, or failed. Raises NotFound when somebody deletes it meanwhile."""
    for change in networks.changes():
        found = change.value
        if found is not None and found.name == name and found.status.phase in ("ready", "failed"):
            return found
        if found is None and change.name == name:
            break
    raise NotFound(f'network "{name}" was deleted meanwhile', fix=f"roost network create {name}")


def _trouble(name: str, trouble: Trouble) -> RoostError:
    kind = BY_CODE.get(trouble.code, Unavailable)
    why, _, _ = (trouble.why or trouble.what).partition("\n  fix: ")
    what = f'network "{name}" does not work (it is tried again by itself)'
    return kind(what, why.replace("\n  why: ", ": "), trouble.fix or f"roost network delete {name}")


def _show_network(context: Context, given: Namespace) -> int:
    found = Networks(context.session, context.project).picture(given.name)
    if context.output in ("json", "yaml", "name"):
        show(found, context.output, TABLES["network"])
        return 0
    for line in networktext.tree(found):
        print(render.clean(line))
    trouble = Networks(context.session, context.project).get(given.name).status.error
    if trouble is not None:
        context.warn(str(_trouble(given.name, trouble)))
    return 0


def _attach(context: Context, given: Namespace) -> int:
    networks = Networks(context.session, context.project)
    networks.attach(
        given.name, given.machine, name=given.port, addresses=given.address, mac=given.mac, rulesets=given.ruleset
    )
    context.say(f"{given.machine} is being plugged into {given.name}; see it: roost network show {given.name}")
    return 0


def _detach(context: Context, given: Namespace) -> int:
    Networks(context.session, context.project).detach(given.name, given.machine, given.port)
    context.say(f"{given.machine} is being unplugged from {given.name}")
    return 0


def _trace(context: Context, given: Namespace) -> int:
    if not given.target:
        why = "a trace says what becomes of a connection from one machine to another, or to an address, host or world"
        raise Invalid("nothing was traced", why, f"say where to: roost network trace {given.source} MACHINE:80")
    target, port = split_target(given.target)
    network = given.network or network_between(context, given.source, target)
    protocol = given.protocol or ("icmp" if port is None else "tcp")
    found = Networks(context.session, context.project).trace(network, given.source, target, port, protocol=protocol)
    if context.output in ("json", "yaml", "name"):
        show({"name": network, **found}, context.output, TABLES["network"])
    else:
        for line in networktext.verdict(f"{protocol} from {given.source} to {given.target}", found):
            print(render.clean(line))
    return 0 if found["passes"] else 1


def split_target(word: str) -> tuple[str, int | None]:
    """Machine or address, and port, of `web:80`, `10.20.0.5:80`, `[fd00::5]:80`, or without port."""
    name, colon, port = word.rpartition(":")
    if not colon or (":" in name and not name.startswith("[")):
        return word.strip("[]"), None
    if not port.isdecimal() or not 1 <= int(port) <= 65_535:
        raise Invalid(f"{word!r} can not be traced", f"{port!r} is not a port", "say machine:port, as in web:80")
    return name.strip("[]"), int(port)


def network_of(context: Context, machine: str) -> str:
    """The network that a machine is plugged into. Raises NotFound, Invalid when there are several."""
    return _the_one(machine, _networks_of(context, machine))


def network_between(context: Context, source: str, target: str) -> str:
    """The network in which `source` reaches `target`: machines, "world", addresses. Raises NotFound, Invalid when several are possible."""
    if source in ("host", "world") or not NAME.fullmatch(source):
        return network_of(context, target)
    own = _networks_of(context, source)
    if len(own) > 1 and NAME.fullmatch(target) and target not in ("host", "world"):
        beside = _networks_of(context, target)
        own = [name for name in own if name in beside] or own
    return _the_one(source, own)


def _networks_of(context: Context, machine: str) -> list[str]:
    try:
        found = context.session.call("GET", path("machines", context.project, machine))
    except NotFound:
        raise _unknown(context, machine) from None
    names = list(dict.fromkeys(str(port["network"]) for port in found["spec"]["ports"]))
    if not names:
        fix = f"roost network attach NETWORK {machine}"
        raise NotFound(f'machine "{machine}" is plugged into no network', fix=fix)
    return names


def _unknown(context: Context, name: str) -> NotFound:
    """What else has that name, and which machines there are."""
    if any(it["name"] == name for it in context.items("networks", project=context.project)):
        there = f"{name} is a network: a trace leads from one machine to another"
    else:
        machines = [str(it["name"]) for it in context.items("machines", project=context.project)]
        there = f"its machines are {', '.join(machines[:_TOLD])}" if machines else "it has no machines yet"
        there += f" and {len(machines) - _TOLD} more" if len(machines) > _TOLD else ""
    fix = "roost list; addresses, host and world are understood, too"
    return NotFound(f'there is no machine "{name}" in project "{context.project}"', there, fix)


def _the_one(machine: str, names: list[str]) -> str:
    if len(names) > 1:
        fix = f"say which: --network {names[0]}"
        raise Invalid("which network is not clear", f"{machine} is plugged into {', '.join(names)}", fix)
    return names[0]


def _flows(context: Context, given: Namespace) -> int:
    if given.on or given.off:
        context.session.call("PATCH", path("networks", context.project, given.name), {"spec": {"flow_log": given.on}})
        fix = f"; see it: roost network flows {given.name} --follow" if given.on else ""
        context.say(f"network {given.name} keeps {'a' if given.on else 'no'} flow log{fix}")
        return 0
    with suppress(KeyboardInterrupt):
        for flow in Networks(context.session, context.project).flows(given.name, follow=given.follow):
            print(
                json.dumps(flow) if context.output == "json" else render.clean(networktext.flow_line(flow)),
                flush=given.follow,
            )
    return 0


def _capture(context: Context, given: Namespace) -> int:
    network = given.network or network_of(context, given.machine)
    pieces = Networks(context.session, context.project).capture(network, given.machine, frames=given.frames)
    if given.file == "-":
        if sys.stdout.isatty():
            raise Invalid(
                "nothing was captured", "a pcap file is nothing for a terminal", "name a file, or: | tcpdump -r -"
            )
        for piece in pieces:
            os.write(sys.stdout.fileno(), piece)
        return 0
    with open(given.file, "wb", buffering=0) as target:
        try:
            for piece in pieces:
                target.write(piece)
        except KeyboardInterrupt:
            context.say(f"{given.file} is written")
    return 0


# ------------------------------------------------------------------ ruleset


def rule(text: str) -> dict[str, Any]:
    """`in|out [allow|deny] [tcp|udp|icmp[:PORTS]] [from|to CIDR|ruleset NAME]` as a Rule: "in tcp:80,443 from 10.0.0.0/8"."""
    words = text.split()
    found: dict[str, Any] = {"direction": words.pop(0) if words else ""}
    if words and words[0] in ("allow", "deny"):
        found["action"] = words.pop(0)
    if words and words[0].partition(":")[0] in PROTOCOLS:
        protocol, _, ports = words.pop(0).partition(":")
        found["protocol"] = protocol
        found |= {"ports": ports.split(",")} if ports else {}
    if words and words[0] in ("from", "to"):
        words.pop(0)
        if words and words[0] == "ruleset":
            words.pop(0)
            found["ruleset"] = words.pop(0) if words else ""
        elif words:
            found["cidr"] = words.pop(0)
    if words or found["direction"] not in ("in", "out"):
        raise ArgumentTypeError(f"{text!r} is not a rule, as in 'in tcp:80,443 from 10.0.0.0/8' or 'out deny udp'")
    return found


def _ruleset_arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    created = add("create", "make a rule set")
    created.add_argument("name", metavar="NAME")
    _rules(created)
    changed = add("set", "give a rule set other rules; traffic goes on")
    changed.add_argument("name", metavar="NAME")
    _rules(changed)
    _listed(add("list", "list rule sets"))
    add("show", "show the rules").add_argument("name", metavar="NAME")
    _deleted(add("delete", "delete rule sets that no port names"))


def _rules(parser: ArgumentParser) -> None:
    parser.add_argument(
        "rules",
        metavar="RULE",
        nargs="*",
        type=rule,
        help="'in tcp:80', 'in tcp:22 from 10.0.0.0/8', 'in udp:53 from ruleset web', 'out deny tcp:25'",
    )


def _ruleset(context: Context, given: Namespace) -> int:
    acts = {"create": _create_ruleset, "set": _set_ruleset, "list": _list, "show": _show_object, "delete": _delete}
    given.kind = "ruleset"
    return acts[given.action](context, given)


def _create_ruleset(context: Context, given: Namespace) -> int:
    return _make(
        context,
        "ruleset",
        given.name,
        {"rules": given.rules},
        "next: roost network attach NETWORK MACHINE --ruleset " + given.name,
    )


def _set_ruleset(context: Context, given: Namespace) -> int:
    body = {"spec": {"rules": given.rules}}
    changed = context.session.call("PATCH", path("rulesets", context.project, given.name), body)
    count = "1 rule" if len(given.rules) == 1 else f"{len(given.rules) or 'no'} rules"
    _tell(context, "ruleset", changed, f"ruleset {given.name} has {count}")
    return 0


# ------------------------------------------------------------------ forward


def _forward_arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    created = add("create", "lead a port of this host to a machine")
    created.add_argument("place", metavar="[IP:]HOST:GUEST[/udp]", type=publish, help="as 8080:80 or 0.0.0.0:8080:80")
    created.add_argument("machine", metavar="MACHINE")
    created.add_argument("--name", metavar="NAME", help="its name (default MACHINE-PORT)")
    created.add_argument("--port", metavar="PORT", default="", help="one of the machine's ports (default: its first)")
    _listed(add("list", "list forwards"))
    add("show", "show all about a forward").add_argument("name", metavar="NAME")
    _deleted(add("delete", "delete forwards"))


def _forward(context: Context, given: Namespace) -> int:
    given.kind = "forward"
    acts = {"create": _create_forward, "list": _list, "show": _show_object, "delete": _delete}
    return acts[given.action](context, given)


def _create_forward(context: Context, given: Namespace) -> int:
    place = given.place
    name = given.name or f"{given.machine[:50]}-{place['host_port']}"
    spec = {
        "machine": given.machine, "host_port": place["host_port"], "guest_port": place["guest_port"],
        "protocol": place["protocol"], "address": place.get("host_ip"), "port": given.port or None,
    }  # fmt: skip
    _make(context, "forward", name, spec, f"see it: roost forward list; delete it: roost forward delete {name}")
    try:
        context.session.call("GET", path("machines", context.project, given.machine))
    except NotFound:
        context.warn(
            f'there is no machine "{given.machine}" in project "{context.project}" yet: the forward waits for it'
        )
    return 0


# ------------------------------------------------------------------ shared


def _make(context: Context, kind: str, name: str, spec: dict[str, Any], after: str) -> int:
    wish = {field: value for field, value in spec.items() if value is not None}
    body = {"project": context.project, "name": name, "spec": wish}
    _tell(context, kind, context.session.call("POST", path(f"{kind}s"), body), f"{kind} {name} is made; {after}")
    return 0


def _tell(context: Context, kind: str, thing: Any, text: str) -> None:
    if context.output in ("json", "yaml", "name"):
        show(thing, context.output, TABLES[kind])
    else:
        context.say(text)


def _list(context: Context, given: Namespace) -> int:
    table = TABLES[given.kind]
    project = "all" if given.all_projects else context.project
    context.show(context.items(f"{given.kind}s", project=project), in_project(table) if given.all_projects else table)
    return 0


def _show_object(context: Context, given: Namespace) -> int:
    found = context.session.call("GET", path(f"{given.kind}s", context.project, given.name))
    show(found, context.output or "yaml", TABLES[given.kind])
    return 0


def _delete(context: Context, given: Namespace) -> int:
    return delete(context, given.kind, list(given.names), given)


COMMANDS = {
    "network": Command(
        _network_arguments,
        _network,
        "roost network create lan\nroost launch tiny web --network lan\nroost network show lan\nroost network trace web db:5432",
    ),
    "ruleset": Command(
        _ruleset_arguments,
        _ruleset,
        "roost ruleset create web 'in tcp:80,443' 'in tcp:22 from 10.0.0.0/8'\nroost ruleset set web 'in tcp:443'",
    ),
    "forward": Command(_forward_arguments, _forward, "roost forward create 8080:80 web\nroost forward list"),
}
