"""Networks in words: who is plugged in, what decides about a connection, and the connections of the flow log, as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from roost.cli import render

_DOORS = {
    "kernel": "through the host",
    "pasta": "through sockets of the host",
    "bridge": "bridged",
    "none": "no way out",
}


def tree(found: dict[str, Any]) -> Iterator[str]:
    """A network's picture: the network, its subnets, a branch for every port, and what was counted."""
    out = _DOORS.get(found["door"], "no door yet")
    yield f"{found['name']} ({found['mode']}, {found['phase']}; {out}; names end with .{found['domain']})"
    for subnet in found["subnets"]:
        yield f"│ {subnet['cidr']}, gateway {subnet['gateway']}"
    yield from _branches(found)
    drops = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in found["drops"].items() if count)
    if drops:
        yield f"dropped: {drops}"
    for key, count in found["rules"].items():
        name, _, index = key.removeprefix("ruleset/").rpartition("/")
        yield f"rule {index} of {name}: {_counted(count)}"
    for text in (*found["differs"], *found["warnings"]):
        yield f"warning: {text}"


def _counted(count: dict[str, int]) -> str:
    packets = count["packets"]
    return f"{packets} packet{'s' * (packets != 1)}, {render.size(count['bytes'])}" if packets else "nothing yet"


def _branches(found: dict[str, Any]) -> Iterator[str]:
    """The ports, their columns one below the other, each with what it lets pass and what is published of it."""
    rows = [_columns(found, port) for port in found["ports"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    titles = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    branches = [[title, *_leaves(found, port)] for title, port in zip(titles, found["ports"], strict=True)]
    for number, branch in enumerate(branches or [["nobody is plugged in"]], 1):
        last = number >= len(branches)
        for index, text in enumerate(branch):
            yield (("└─ " if last else "├─ ") if index == 0 else ("   " if last else "│  ")) + text


def _columns(found: dict[str, Any], port: dict[str, Any]) -> tuple[str, ...]:
    state = "" if port["link"] and port["plugged"] else "link off" if not port["link"] else "not plugged in"
    name = port["machine"] if port["port"] == found["name"] else f"{port['machine']} ({port['port']})"
    return name, ", ".join(port["addresses"]) or "no address", port["mac"], state


def _leaves(found: dict[str, Any], port: dict[str, Any]) -> Iterator[str]:
    passed = f"in {render.size(port['in_bytes'])}, out {render.size(port['out_bytes'])}"
    dropped = f", dropped {port['dropped_packets']}" if port["dropped_packets"] else ""
    rules = f"rules {', '.join(port['rulesets'])}" if port["rulesets"] else "no rules: nothing passes"
    yield f"{rules}; {passed}{dropped}"
    for entry in found["published"]:
        if entry["target"] in port["addresses"]:
            trouble = f": {entry['trouble']}" if entry["trouble"] else ""
            where = _bracketed(entry["address"])
            yield f"{where}:{entry['host_port']}/{entry['protocol']} -> {entry['target_port']}{trouble}"


def verdict(way: str, found: dict[str, Any]) -> Iterator[str]:
    """What becomes of a connection, and what decided at each step of `way`; the last one is why it does not pass."""
    yield f"{way} {'passes' if found['passes'] else 'does not pass'}"
    for number, step in enumerate(found["steps"], 1):
        yield f"  {'ok' if found['passes'] or number < len(found['steps']) else 'no'}  {step}"


def flow_line(flow: dict[str, Any]) -> str:
    """A connection of the flow log."""
    if flow["verdict"] not in ("allowed", "refused"):
        return f"{flow['time']}  {flow['verdict']}: more came than could be read"
    source, target = _end(flow, "from", "source"), _end(flow, "to", "target")
    return f"{flow['time']}  {flow['verdict']:7}  {flow['protocol']:4}  {source} -> {target}"


def _end(flow: dict[str, Any], name: str, address: str) -> str:
    port = f":{flow[f'{address}_port']}" if flow[f"{address}_port"] else ""
    return f"{flow[name] or '?'} {_bracketed(flow[address])}{port}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
