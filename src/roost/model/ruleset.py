"""A rule set: what may pass the ports that name it (a security group)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, TypeAlias

from roost.errors import Problem
from roost.model.meta import NAME, Meta, Struct
from roost.model.network import parse

_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
Transport: TypeAlias = Literal["tcp", "udp", "icmp"]
MOST_RULES = 256
DEFAULT = "default"
"""The rule set that every project has without making it: one rule, that lets in what comes from a port of it. Hence (see RuleSetSpec) out
everything, and in what is published besides. A project's own rule set of that name takes its place."""


class Rule(Struct, frozen=True, kw_only=True):
    """Lets through (or holds back: rules are read in order, and the first that fits decides) what begins a connection; answers come back by
    themselves. The other end is whoever has an address in `cidr`, or a port of rule set `ruleset`, or anybody. `ports` are those that are
    connected to: "443" or "8000-8100", none: all."""

    direction: Literal["in", "out"]
    action: Literal["allow", "deny"] = "allow"
    protocol: Literal["any", "tcp", "udp", "icmp"] = "any"
    ports: tuple[str, ...] = ()
    cidr: str = ""
    ruleset: str = ""

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if self.ports and self.protocol not in ("tcp", "udp"):
            yield Problem("ports", "only tcp and udp have ports: say which in protocol")
        for index, text in enumerate(self.ports):
            if span(text) is None:
                yield Problem(f"ports[{index}]", f"{text[:80]!r} is not a port (443) or a range of ports (8000-8100)")
        if self.cidr and self.ruleset:
            yield Problem("ruleset", "name one: cidr or ruleset")
        if self.cidr and parse(self.cidr) is None:
            yield Problem("cidr", f"{self.cidr[:80]!r} is not a network such as 192.0.2.0/24")
        if self.ruleset and not NAME.fullmatch(self.ruleset):
            yield Problem("ruleset", f"{self.ruleset[:80]!r} is not the name of a rule set")


class RuleSetSpec(Struct, frozen=True, kw_only=True):
    """The rules, in order. A port that names several rule sets has the rules of all, in the order in which it names them, as if they were one:
    the first rule that fits decides. What no rule decides goes out when none of them is about "out", comes in through the gateway where it is
    published (a Forward, `publish`), and else does not come in. A rule about `ruleset` fits the addresses of the ports of this network that
    name it (a VXLAN's other hosts count as ports of "default"). A rule set that is not there lets nothing pass that those before it leave
    open. Between two ports both must allow it: the one's "out", the other's "in". Connections that stand are judged anew when rules change."""

    rules: tuple[Rule, ...] = ()

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if len(self.rules) > MOST_RULES:
            yield Problem("rules", f"are more than {MOST_RULES}")
        for index, rule in enumerate(self.rules):
            for problem in rule.problems():
                yield Problem(f"rules[{index}].{problem.path}", problem.message)


class RuleSetStatus(Struct, frozen=True, kw_only=True):
    """What is: how many ports name it."""

    generation: int = 0
    ports: int = 0


class RuleSet(Struct, frozen=True, kw_only=True):
    """A security group."""

    kind: Literal["ruleset"] = "ruleset"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: RuleSetSpec = RuleSetSpec()
    status: RuleSetStatus = RuleSetStatus()


def span(text: str) -> tuple[int, int] | None:
    """First and last port of "443" or "8000-8100"; None for what is neither."""
    match = _PORTS.fullmatch(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return (first, last) if 1 <= first <= last <= 65_535 else None
