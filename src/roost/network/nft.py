"""Tables of nftables as text: a whole one that replaces what is there in one transaction, and what leads from one to another. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from roost.network.base import Chain, Set, Table

LAST = ("known", "settle")
"""The chains that let connections pass: their rules are told last."""
_IN_A_LINE = 100
_PORTION = 60_000
"""Characters, of which each is some 4 bytes of message."""


def replacing(tables: Sequence[Table]) -> str:
    """A transaction after which the tables are as given, whatever was in them; counters begin at 0. Other tables are not touched."""
    return "".join(f"{line}\n" for table in tables for line in _whole(table))


def transaction(before: Sequence[Table], after: Sequence[Table]) -> str:
    """A transaction that leads from `before` to `after` and touches nothing else, so that counters go on; "" when nothing differs."""
    if [_frame(table) for table in before] != [_frame(table) for table in after]:
        kept = {(table.family, table.name) for table in after}
        return removing([table for table in before if (table.family, table.name) not in kept]) + replacing(after)
    pairs = zip(before, after, strict=True)
    return "".join(f"{line}\n" for old, new in pairs if old != new for line in _steps(old, new))


def removing(tables: Sequence[Table]) -> str:
    """A transaction after which the tables are not there, whether they were or not."""
    return "".join(f"table {table.family} {table.name}\ndelete table {table.family} {table.name}\n" for table in tables)


def portions(text: str) -> tuple[str, ...]:
    """A transaction in several, for who may not make the socket's buffer as large as it takes (an ordinary user's namespace: the kernel refuses
    what is longer than some 400 kB as a message). Applied in order they lead to the same; until the last has been, too little passes, never
    too much."""
    found, size = [""], 0
    for line in text.splitlines(keepends=True):
        if size + len(line) > _PORTION and line.startswith(("add element", "delete element")):
            found.append("")
            size = 0
        found[-1] += line
        size += len(line)
    return tuple(found)


def elements(verb: str, table: Table, changes: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lines that "add" or "delete" elements, by set, none of them long."""
    for name, keys in changes.items():
        for start in range(0, len(keys), _IN_A_LINE):
            told = ", ".join(keys[start : start + _IN_A_LINE])
            yield f"{verb} element {table.family} {table.name} {name} {{ {told} }}"


def is_interval(held: Set) -> bool:
    """Whether the elements are ranges: these are told anew whole, as a range may be part of another."""
    return "interval" in held.head


def _frame(table: Table) -> tuple[object, ...]:
    """What can not be changed in place."""
    hooks = {name: chain.hook for name, chain in table.chains.items() if chain.hook}
    return table.family, table.name, table.counters, hooks


def _whole(table: Table) -> Iterator[str]:
    name = f"{table.family} {table.name}"
    yield f"table {name}"
    yield f"delete table {name}"
    yield f"table {name} {{"
    for counter in table.counters:
        yield f"\tcounter {counter} {{ }}"
    yield from (f"\t{held.kind} {title} {{ {held.head}; }}" for title, held in table.sets.items())
    for title, chain in table.chains.items():
        yield f"\tchain {title} {{"
        yield from (f"\t\t{line}" for line in (chain.hook, *chain.rules) if line and title not in LAST)
        yield "\t}"
    yield "}"
    yield from elements("add", table, {title: _pairs(held.elements) for title, held in table.sets.items()})
    for title in LAST:
        yield from (f"add rule {name} {title} {rule}" for rule in table.chains.get(title, Chain(())).rules)


def _pairs(held: Mapping[str, str]) -> list[str]:
    return [key + value for key, value in held.items()]


def _steps(old: Table, new: Table) -> Iterator[str]:
    """In an order in which nothing is named before it is there, and nothing goes that something still leads to."""
    name = f"{new.family} {new.name}"
    remade = {
        title for title, held in new.sets.items() if title in old.sets and _shape(old.sets[title]) != _shape(held)
    }
    lost = [title for title in old.sets if title not in new.sets or title in remade]
    chains = [title for title in old.chains if old.chains[title] != new.chains.get(title)]
    fresh = [title for title in new.chains if title not in old.chains]
    yield from elements("delete", new, _less(old, new, set(lost)))
    yield from (f"flush set {name} {title}" for title in _told_anew(old, new, remade))
    yield from (f"flush chain {name} {title}" for title in chains)
    yield from (f"delete set {name} {title}" for title in lost)
    yield from (f"add {held.kind} {name} {title} {{ {held.head}; }}" for title, held in _made(old, new, remade))
    yield from (f"add chain {name} {title}" for title in fresh)
    told = [
        *(title for title in (*chains, *fresh) if title not in LAST),
        *(title for title in LAST if title in (*chains, *fresh)),
    ]
    lines = {
        title: [f"add rule {name} {title} {rule}" for rule in new.chains.get(title, Chain(())).rules] for title in told
    }
    yield from (line for title in told if title not in LAST for line in lines[title])
    yield from elements("add", new, _more(old, new, remade))
    yield from (line for title in told if title in LAST for line in lines[title])
    yield from (f"delete chain {name} {title}" for title in chains if title not in new.chains)


def _shape(held: Set) -> tuple[str, str]:
    return held.head, held.kind


def _made(old: Table, new: Table, remade: set[str]) -> Iterator[tuple[str, Set]]:
    return ((title, held) for title, held in new.sets.items() if title not in old.sets or title in remade)


def _told_anew(old: Table, new: Table, remade: set[str]) -> list[str]:
    return [
        title
        for title, held in new.sets.items()
        if title in old.sets and title not in remade and is_interval(held) and old.sets[title].elements != held.elements
    ]


def _less(old: Table, new: Table, lost: set[str]) -> dict[str, list[str]]:
    kept = ((title, held) for title, held in old.sets.items() if title not in lost and not is_interval(held))
    return {title: _difference(held.elements, new.sets[title].elements) for title, held in kept}


def _more(old: Table, new: Table, remade: set[str]) -> dict[str, list[str]]:
    known = {title: {} if title in remade or is_interval(held) else held.elements for title, held in old.sets.items()}
    same = {title for title, held in new.sets.items() if title in old.sets and old.sets[title] == held}
    return {
        title: _difference(held.elements, known.get(title, {})) for title, held in new.sets.items() if title not in same
    }


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The elements of the one that the other has not, or has otherwise."""
    return [key + value for key, value in one.items() if other.get(key) != value]
