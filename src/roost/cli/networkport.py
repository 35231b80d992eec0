"""The verb that changes a port which a machine has: its rule sets, bandwidth, addresses and cable."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any

from roost.cli.context import Context
from roost.cli.look import TABLES
from roost.cli.render import show
from roost.client.blocking.networks import Networks
from roost.client.protocol import path
from roost.model.codec import plain
from roost.model.quantity import scaled
from roost.model.ruleset import DEFAULT

_BITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_UNITS = {
    **{prefix + rest: factor for prefix, factor in _BITS.items() for rest in ("", "bit", "bit/s", "bps")},
    **{f"{prefix}ib": 8 << shift for prefix, shift in (("k", 10), ("m", 20), ("g", 30))},
}
UNBOUND = "none"


def rate(text: str) -> int | str:
    """Bits per second of `100Mbit` or `10MiB`; "none" for no bound."""
    found = UNBOUND if text == UNBOUND else scaled(text, _UNITS)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is not a bandwidth: write 100Mbit, 10MiB (a second), or none")
    return found


def arguments(parser: ArgumentParser) -> None:
    """Its words."""
    parser.add_argument("machine", metavar="MACHINE")
    parser.add_argument("port", metavar="PORT", nargs="?", default="", help="which, when the machine has several")
    parser.add_argument(
        "--ruleset",
        "--rulesets",
        metavar="NAME",
        dest="rulesets",
        action="append",
        help="what may pass, instead of now",
    )
    parser.add_argument(
        "--down", type=rate, metavar="RATE", help="most to the machine: 100Mbit or 10MiB a second, or none"
    )
    parser.add_argument("--up", type=rate, metavar="RATE", help="most from the machine")
    parser.add_argument("--link", choices=("on", "off"), help="plug in its cable, or pull it")
    parser.add_argument("--address", metavar="ADDRESS", action="append", help="its address, instead of now")


def run(context: Context, given: Namespace) -> int:
    """Change what is given, or show the port when nothing is."""
    wish = wished(given)
    for name in wish.get("rulesets", ()):
        if name != DEFAULT:  # one that nobody made is there all the same
            context.session.call("GET", path("rulesets", context.project, name))
    networks = Networks(context.session, context.project)
    title, before = networks.port(given.machine, given.port)
    changed, after = networks.set_port(given.machine, title, **wish) if wish else (False, before)
    if context.output in ("json", "yaml", "name"):
        show({"machine": given.machine, **plain(after), "name": title}, context.output, TABLES["network"])
        return 0
    text = f"port {title} of {given.machine}"
    if wish:
        context.say(f"{text} is changed: {words(plain(after))}" if changed else f"{text} is so already")
    else:
        print(f"{text}: {words(plain(after))}")
    return 0


def wished(given: Namespace) -> dict[str, Any]:
    """The fields of PortSpec that are to be otherwise."""
    found: dict[str, Any] = {}
    if given.rulesets is not None:
        found["rulesets"] = [name for text in given.rulesets for name in text.split(",") if name]
    if given.address is not None:
        found["addresses"] = given.address
    if given.link is not None:
        found["link"] = given.link == "on"
    bounds = {"down": given.down, "up": given.up}
    bandwidth = {way: None if value == UNBOUND else value for way, value in bounds.items() if value is not None}
    return {**found, "bandwidth": bandwidth} if bandwidth else found


def words(port: dict[str, Any]) -> str:
    """A PortSpec in a line."""
    rules = f"rules {', '.join(port['rulesets'])}" if port["rulesets"] else "no rules: nothing passes"
    bounds = [f"{way} {bits(value)}" for way, value in port["bandwidth"].items() if value]
    cable = [] if port["link"] else ["link off"]
    return "; ".join((rules, ", ".join(bounds) or "no bound of bandwidth", *cable))


def bits(count: int) -> str:
    """Bits per second as `rate` reads them."""
    return next(
        (f"{count // it}{unit}bit" for unit, it in (("G", 10**9), ("M", 10**6), ("k", 10**3)) if count % it == 0),
        f"{count}bit",
    )
