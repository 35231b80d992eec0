"""What networks have in the host's own namespace: the outer ends of their doors, and one table that is ours whole."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress

import msgspec

from roost.errors import Conflict
from roost.host import files
from roost.host.failpoints import reach
from roost.host.paths import Paths
from roost.network import names, nft, outside, plan, ruleset
from roost.network.base import Fabric, Outside, Wanted
from roost.network.monitor import Monitor, Notice, is_address
from roost.network.requests import Answer, Outer, Request, Rules, Scene, Watch, steps

_LIMIT = 4 << 20
_SETTLE = 0.1


class Applied(msgspec.Struct, frozen=True):
    """`NetworkFiles.applied`: the ruleset's number after our last transaction, the digest of what is in it, the elements in the host's table."""

    generation: int
    digest: str
    elements: tuple[tuple[str, str], ...] = ()


class HostSide:
    """One for all networks. `ask` is asked for what is done in the host's namespace; `changed` is called when somebody else took something of ours
    away or the host's addresses changed, with the networks (uids) that have something there, and None for: all."""

    def __init__(
        self, paths: Paths, ask: Callable[[Request], Awaitable[tuple[Answer, tuple[int, ...]]]],
        is_own: Callable[[int], bool], changed: Callable[[frozenset[str] | None], None],
    ) -> None:  # fmt: skip
        self._paths, self._ask, self._is_own, self._changed = paths, ask, is_own, changed
        self._elements: dict[str, frozenset[tuple[str, str]]] | None = None
        self._known = False
        """Whether the table is there as we made it."""
        self._indexes: dict[int, str] = {}
        self._lock = asyncio.Lock()
        self._monitor: Monitor | None = None
        self._notices: list[Notice] = []

    async def watch(self) -> None:
        """Notice from now on what happens to the host's network."""
        async with self._lock:
            if self._monitor is None:
                _, sockets = await self._ask(Watch())
                self._monitor = Monitor(sockets, self._noticed)

    def close(self) -> None:
        """Notice nothing more."""
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None

    async def guard(self, uid: str, wished: Outside) -> None:
        """See that the table is there with what this network needs in it: before there is a way to the host."""
        async with self._lock:
            known = await self._all()
            before, tunnels = known.get(uid, frozenset()), outside.has_tunnels(_union(known))
            if not before and not wished.elements:
                return
            known[uid] = wished.elements
            if self._monitor is not None:
                self._monitor.drain()
            self._known = self._known and not self._is_touched(self._notices)
            self._known = self._known and tunnels == outside.has_tunnels(_union(known))
            others = _union({other: held for other, held in known.items() if other != uid})
            if wished.elements - before:
                was_known, self._known = self._known, False  # until it is told
                await self._announce(uid, before | wished.elements)
                self._known = was_known
            rules = outside.change(Outside(elements=before - others), Outside(elements=wished.elements - others))
            if self._known:
                with suppress(Conflict):  # else it is made anew
                    if rules:
                        await self._ask(Rules(rules=rules))
                    return
            self._known = False
            await self._ask(Rules(rules=nft.replacing([outside.table(_union(known))])))
            self._known = True

    async def _announce(self, uid: str, elements: frozenset[tuple[str, str]]) -> None:
        """Write down what is about to be in the table: whoever comes after a daemon that died takes it away again with the network."""
        applied = await asyncio.to_thread(read_applied, self._paths, uid) or Applied(-1, "")
        promised = msgspec.structs.replace(applied, elements=tuple(sorted(elements)))
        await asyncio.to_thread(write_applied, self._paths, uid, promised)
        await reach("network.announced")

    async def open(self, wanted: Wanted, before: Fabric | None, fabric: Fabric) -> tuple[str, ...]:
        """Addresses and routes of the outer end; what was not as it should be, in words."""
        outer = names.veth(wanted.uid)
        retired = steps(plan.change(before, fabric).outside_removed)
        scene = Scene.outside(fabric.outside)
        request = Outer(name=outer, mtu=wanted.mtu, master=wanted.interface, scene=scene, retired=retired)
        answer, _ = await self._ask(request)
        self._indexes.update({index: wanted.uid for index in answer.indexes.values()})
        return answer.differs

    async def leave(self, uid: str) -> None:
        """Take the network's link and its elements away; the last network takes the table."""
        if os.geteuid() != 0:
            return
        await self._ask(Outer(name=names.veth(uid)))
        self._indexes = {index: owner for index, owner in self._indexes.items() if owner != uid}
        async with self._lock:
            known = await self._all()
            gone = known.pop(uid, None)
            if not any(known.values()):
                await self._ask(Rules(rules=nft.removing([outside.table(())]), lenient=True))
                self._known = False
            elif gone and self._known:
                rules = outside.change(Outside(elements=gone - _union(known)), Outside())
                await self._ask(Rules(rules=rules, lenient=True))
            elif gone:
                # What an earlier daemon wrote down may be there in part, or not at all.
                await self._ask(Rules(rules=nft.replacing([outside.table(_union(known))])))
                self._known = True

    async def has_tunnel(self, uid: str) -> bool:
        """Whether the network goes on on other hosts."""
        return outside.has_tunnels((await self._all()).get(uid, frozenset()))

    async def _all(self) -> dict[str, frozenset[tuple[str, str]]]:
        if self._elements is None:
            self._elements = await asyncio.to_thread(_recorded, self._paths)
        return self._elements

    def _noticed(self, notice: Notice) -> None:
        ours = notice.table == ruleset.TABLE or notice.link in self._indexes or notice.pid < 0
        if not ours and not is_address(notice):
            return
        if not self._notices:
            asyncio.get_running_loop().call_later(_SETTLE, self._judge)
        self._notices.append(notice)

    def _judge(self) -> None:
        """By now whoever of ours was at work has told its pid, or is still at work."""
        if self._lock.locked():
            asyncio.get_running_loop().call_later(_SETTLE, self._judge)
            return
        notices, self._notices = self._notices, []
        foreign = [notice for notice in notices if not self._is_own(notice.pid)]
        if self._is_touched(foreign):
            self._known = False
            self._changed(frozenset(self._elements or ()))
        mine = {self._indexes[notice.link] for notice in foreign if notice.link in self._indexes}
        if mine:
            self._changed(frozenset(mine))
        if any(is_address(notice) and notice.link not in self._indexes for notice in foreign):
            self._changed(None)

    def _is_touched(self, notices: Iterable[Notice]) -> bool:
        """Whether somebody else has changed our table, or may have."""
        return any(
            (notice.table == ruleset.TABLE or notice.pid < 0) and not self._is_own(notice.pid) for notice in notices
        )


def _union(known: Mapping[str, frozenset[tuple[str, str]]]) -> frozenset[tuple[str, str]]:
    return frozenset[tuple[str, str]]().union(*known.values())


def read_applied(paths: Paths, uid: str) -> Applied | None:
    """What was applied last, if that is recorded."""
    try:
        return msgspec.json.decode(files.read_bounded(paths.network(uid).applied, _LIMIT), type=Applied)
    except (OSError, msgspec.MsgspecError):
        return None


def write_applied(paths: Paths, uid: str, applied: Applied) -> None:
    """Write down what is applied, or about to be."""
    files.atomic_write(paths.network(uid).applied, msgspec.json.encode(applied), durable=False)


def _recorded(paths: Paths) -> dict[str, frozenset[tuple[str, str]]]:
    """What networks of an earlier daemon have in the table."""
    found: Mapping[str, Applied | None] = {
        path.parent.name: read_applied(paths, path.parent.name) for path in paths.networks.glob("*/applied.json")
    }
    return {uid: frozenset(one.elements) for uid, one in found.items() if one is not None}
