"""Reads the rules of a host's firewalls, as nft and iptables tell them, and says which of them keep packets from passing (pure).

It follows one packet through the chains. What a rule asks for is known to hold, known not to, or not known; a rule of which that is not known
decides nothing. So it may say too little of a firewall, or miss that it lets a part pass, but does not invent a drop.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

Applies: TypeAlias = Literal["yes", "no", "unknown"]

OURS = "roost"
"""The table of ours, which is not looked at."""
_DEEPEST, _MOST = 16, 20_000
"""nf_tables allows 16 jumps (NFT_JUMP_STACK_SIZE); and the rules that are followed for one packet."""
_ENDS = ("accept", "drop", "reject", "return", "jump", "goto")


class Packet(NamedTuple):
    """What is known of it: interfaces ("" is none), the state of its connection, the version of IP."""

    iif: str
    oif: str
    state: str
    version: Literal[4, 6]


class Rule(NamedTuple):
    """Names of interfaces may end in `*`, and begin with `!` (each but this). `states`: None where it does not matter; `known`: whether there is
    nothing else that it asks for; `versions` of IP that it is about."""

    verdict: str = ""
    target: str = ""
    iif: tuple[str, ...] = ()
    oif: tuple[str, ...] = ()
    states: frozenset[str] | None = None
    known: bool = True
    versions: tuple[int, ...] = (4, 6)


class Chain(NamedTuple):
    """`hook` is "" for one that others jump to."""

    hook: str
    policy: str
    rules: tuple[Rule, ...]


class Table(NamedTuple):
    """`tool` speaks of it: "nft", or a program of iptables."""

    tool: str
    family: str
    name: str
    chains: Mapping[str, Chain]

    def sees(self, version: int) -> bool:
        """Whether packets of this version of IP come here."""
        return version in {"ip": (4,), "ip6": (6,), "inet": (4, 6)}.get(self.family, ())


class Drop(NamedTuple):
    """Where a packet ends."""

    table: Table
    chain: str
    packet: Packet


def drops(tables: Iterable[Table], hook: str, packet: Packet) -> Iterator[Drop]:
    """Every chain at this hook that drops the packet."""
    for table in tables:
        if table.name == OURS or not table.sees(packet.version):
            continue
        for name, chain in table.chains.items():
            if chain.hook == hook and _Walk(table.chains, packet).verdict(chain) == "drop":
                yield Drop(table, name, packet)


class _Walk:
    """One packet through one base chain."""

    def __init__(self, chains: Mapping[str, Chain], packet: Packet) -> None:
        self._chains, self._packet, self._left = chains, packet, _MOST

    def verdict(self, base: Chain) -> str:
        return self._follow(base, 0) or base.policy

    def _follow(self, chain: Chain, depth: int) -> str:
        """ "accept", "drop", or "" when it comes out at the end."""
        for rule in chain.rules:
            self._left -= 1
            if self._left < 0 or depth > _DEEPEST:
                return "accept"
            if rule.verdict and applies(rule, self._packet) == "yes":
                said = self._decide(rule, depth)
                if said or rule.verdict in ("goto", "return"):
                    return said
        return ""

    def _decide(self, rule: Rule, depth: int) -> str:
        if rule.verdict in ("jump", "goto"):
            target = self._chains.get(rule.target)
            return self._follow(target, depth + 1) if target else ""
        return {"accept": "accept", "drop": "drop", "reject": "drop"}.get(rule.verdict, "")


def applies(rule: Rule, packet: Packet) -> Applies:
    """Whether the rule is about the packet."""
    fits = (
        packet.version in rule.versions
        and _one_of(rule.iif, packet.iif)
        and _one_of(rule.oif, packet.oif)
        and (rule.states is None or packet.state in rule.states)
    )
    if not fits:
        return "no"
    return "yes" if rule.known else "unknown"


def _one_of(names: tuple[str, ...], interface: str) -> bool:
    return not names or any(_matches(name, interface) for name in names)


def _matches(pattern: str, interface: str) -> bool:
    if pattern.startswith("!"):
        return not _matches(pattern[1:], interface)
    return interface.startswith(pattern[:-1]) if pattern.endswith("*") else interface == pattern


# ------------------------------------------------------------------------------------------------ iptables-save(8)


def from_iptables(tool: str, version: Literal[4, 6], text: str) -> Table:
    """The table filter out of what `iptables-save -t filter` printed; `tool` is the program that changes it."""
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    for line in text.splitlines():
        if line.startswith(":"):
            name, policy = line[1:].split()[:2]
            policies[name] = policy.lower()
        elif line.startswith("-A "):
            words = shlex.split(line)
            rules.setdefault(words[1], []).append(_iptables_rule(words[2:]))
    hooks = {"FORWARD": "forward", "INPUT": "input", "OUTPUT": "output"}
    chains = {name: Chain(hooks.get(name, ""), policy, tuple(rules.get(name, ()))) for name, policy in policies.items()}
    return Table(tool, "ip" if version == 4 else "ip6", "filter", chains)


_QUIET = ("-m", "--match", "--comment", "--reject-with")
"""Options with a value that ask nothing of a packet: naming a module does not."""
_IPTABLES_ENDS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
_HARMLESS = ("LOG", "NFLOG", "MARK", "CONNMARK", "TCPMSS", "AUDIT", "TRACE", "SET")


def _iptables_rule(words: list[str]) -> Rule:
    rule, inverted = Rule(), False
    rest = iter(words)
    for word in rest:
        if word == "!":
            inverted = True
            continue
        rule = _iptables_word(rule, word, "!" if inverted else "", rest)
        inverted = False
    return rule


def _iptables_word(rule: Rule, word: str, inverted: str, rest: Iterator[str]) -> Rule:
    if word in ("-i", "-o"):
        name = (f"{inverted}{_star(next(rest, ''))}",)
        return rule._replace(iif=name) if word == "-i" else rule._replace(oif=name)
    if word in ("--ctstate", "--state"):
        return _with_states(rule, frozenset(next(rest, "").lower().split(",")), inverted == "!")
    if word in ("-j", "-g"):
        target = next(rest, "")
        verdict = "" if target in _HARMLESS else _IPTABLES_ENDS.get(target, "jump" if word == "-j" else "goto")
        return rule._replace(verdict=verdict, target=target)
    if word in _QUIET:
        next(rest, "")
        return rule
    if word.startswith("-") and not rule.verdict:
        return rule._replace(known=False)
    return rule


def _star(name: str) -> str:
    return f"{name[:-1]}*" if name.endswith("+") else name


_STATES = frozenset(("new", "established", "related", "invalid", "untracked"))


def _with_states(rule: Rule, states: frozenset[str], inverted: bool) -> Rule:
    if not states <= _STATES:  # DNAT, SNAT: states that only iptables knows
        states, rule = states & _STATES, rule._replace(known=bool(states & _STATES))
        return rule._replace(states=states or None)
    return rule._replace(states=_STATES - states if inverted else states)


# ------------------------------------------------------------------------------------------------ libnftables-json(5)


def from_nft(text: str) -> list[Table]:
    """All tables out of what "list ruleset" answers, in JSON. What is not understood is passed over."""
    chains: dict[tuple[str, str], dict[str, Chain]] = {}
    for item in _items(text):
        if "chain" in item:
            it = item["chain"]
            chain = Chain(it.get("hook", ""), it.get("policy", "accept"), ())
            chains.setdefault((it["family"], it["table"]), {})[it["name"]] = chain
        elif "rule" in item:
            it = item["rule"]
            table = chains.get((it["family"], it["table"]), {})
            if it["chain"] in table:
                chain = table[it["chain"]]
                table[it["chain"]] = chain._replace(rules=(*chain.rules, *_understood(it.get("expr", ()))))
    return [Table("nft", family, name, found) for (family, name), found in chains.items()]


def _items(text: str) -> list[dict[str, Any]]:
    try:
        return list(json.loads(text)["nftables"])
    except (ValueError, KeyError, TypeError):
        return []


def _understood(expressions: Iterable[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """The rule, or nothing of one in words that a later nft may have."""
    try:
        return tuple(_nft_rules(expressions))
    except (AttributeError, KeyError, TypeError, ValueError):
        return ()


def _nft_rules(expressions: Iterable[Mapping[str, Any]]) -> Iterator[Rule]:
    """A rule; as many as it has entries where it ends with a verdict map."""
    rule = Rule()
    for expression in expressions:
        ((kind, value),) = expression.items()
        if kind == "match":
            rule = _asking(rule, value)
        elif kind == "vmap":
            yield from _mapped(rule, value)
        elif (ended := _ended(kind, value)) is not None:
            yield rule._replace(verdict=ended[0], target=ended[1])
            return
        elif kind == "xt" and (value or {}).get("type") != "target":
            rule = rule._replace(known=False)


def _ended(kind: str, value: Any) -> tuple[str, str] | None:
    if kind in _ENDS:
        return kind, value.get("target", "") if kind in ("jump", "goto") else ""
    if kind == "xt" and (value or {}).get("name") == "REJECT":
        return "reject", ""
    return None


def _mapped(rule: Rule, value: Mapping[str, Any]) -> Iterator[Rule]:
    data = value.get("data")
    entries = data.get("set", ()) if isinstance(data, dict) else ()
    for key, verdict in entries:
        ((kind, target),) = verdict.items()
        ended = _ended(kind, target)
        if ended is not None:
            asked = _asking(rule, {"op": "==", "left": value["key"], "right": key})
            yield asked._replace(verdict=ended[0], target=ended[1])


def _asking(rule: Rule, match: Mapping[str, Any]) -> Rule:
    """The rule with one more thing that it asks for."""
    left, right, inverted = match.get("left"), match.get("right"), match.get("op") == "!="
    what, values = _subject(left), _values(right)
    if values is None:
        return rule._replace(known=False)
    if what in ("iifname", "oifname"):
        return _of_interface(rule, what, values, inverted)
    if what == "ct state":
        return _with_states(rule, frozenset(values), inverted)
    if what == "nfproto" and not inverted:
        return rule._replace(versions=tuple(6 if value == "ipv6" else 4 for value in values))
    if what in ("ip", "ip6"):
        return rule._replace(known=False, versions=(4,) if what == "ip" else (6,))
    return rule._replace(known=False)


def _of_interface(rule: Rule, what: str, values: tuple[str, ...], inverted: bool) -> Rule:
    if inverted and len(values) > 1:
        return rule._replace(known=False)
    names = tuple(f"!{value}" if inverted else value for value in values)
    return rule._replace(iif=names) if what == "iifname" else rule._replace(oif=names)


def _subject(left: Any) -> str:
    """What a match looks at."""
    if not isinstance(left, dict):
        return ""
    if "meta" in left:
        key = left["meta"].get("key", "")
        return {"iif": "iifname", "oif": "oifname"}.get(key, str(key))
    if "ct" in left:
        return f"ct {left['ct'].get('key', '')}"
    return str(left["payload"].get("protocol", "")) if "payload" in left else ""


def _values(right: Any) -> tuple[str, ...] | None:
    """What it compares with; None for what is not known here (a named set)."""
    if isinstance(right, dict):
        right = right.get("set")
    if isinstance(right, str):
        return None if right.startswith("@") else (right,)
    if isinstance(right, int):
        return (str(right),)
    if isinstance(right, list):
        return tuple(str(value) for value in right)
    return None
