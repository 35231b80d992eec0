"""The conformance suite of `roost.store.base.Store`: what any store must do, as checks that need no test framework."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from roost.errors import Conflict, Invalid, NotFound, RoostError
from roost.store.base import Entry, Store, Write
from roost.testing.clock import VirtualClock

PATIENCE = 10.0
"""Seconds that a check waits for an event that must come."""

Factory = Callable[[VirtualClock], AbstractAsyncContextManager[Store]]
"""Opens an empty store whose leases run on the clock, and closes it."""

Check = Callable[[Store, VirtualClock], Awaitable[None]]

T = TypeVar("T")


async def check_store(factory: Factory) -> None:
    """Run every check against a fresh store of `factory`. Raises AssertionError, or what the store raised."""
    for check in CHECKS:
        await run_check(check, factory)


async def run_check(check: Check, factory: Factory) -> None:
    """Run one of `CHECKS` against a fresh store of `factory`."""
    clock = VirtualClock()
    async with factory(clock) as store:
        await check(store, clock)


async def what_is_put_is_read(store: Store, clock: VirtualClock) -> None:
    """get gives the bytes and the revision of the last put."""
    first = await store.put("a/one", b"1")
    assert await store.get("a/one") == Entry("a/one", b"1", first)
    second = await store.put("a/one", bytes(range(256)))
    assert second == first + 1
    assert await store.get("a/one") == Entry("a/one", bytes(range(256)), second)


async def an_empty_value_is_a_value(store: Store, clock: VirtualClock) -> None:
    """b"" is not a deletion."""
    revision = await store.put("a", b"")
    assert await store.get("a") == Entry("a", b"", revision)


async def what_is_absent_is_not_found(store: Store, clock: VirtualClock) -> None:
    """Never written, or deleted."""
    await refused(NotFound, store.get("a"))
    await store.put("a", b"1")
    await store.put("a", None)
    await refused(NotFound, store.get("a"))
    assert (await store.list(""))[0] == []


async def deleting_what_is_absent_changes_nothing(store: Store, clock: VirtualClock) -> None:
    """A delete may be repeated."""
    revision = await store.put("a", b"1")
    assert await store.put("b", None) == revision
    assert await store.put("b", None, expect=0) == revision
    assert (await store.list(""))[1] == revision


async def a_list_is_in_key_order_and_below_its_prefix(store: Store, clock: VirtualClock) -> None:
    """Prefixes are of characters, not of path segments."""
    for key in ("m/b", "m/ä", "n/a", "m/a", "m", "mm"):
        revision = await store.put(key, key.encode())
    entries, at = await store.list("m/")
    assert [entry.key for entry in entries] == ["m/a", "m/b", "m/ä"]
    assert at == revision
    assert [entry.key for entry in (await store.list(""))[0]] == ["m", "m/a", "m/b", "m/ä", "mm", "n/a"]
    assert (await store.list("zz"))[0] == []


async def expect_compares_and_swaps(store: Store, clock: VirtualClock) -> None:
    """0 means absent, a number means exactly that revision, None means any."""
    first = await store.put("a", b"1", expect=0)
    error = await refused(Conflict, store.put("a", b"2", expect=0))
    assert "'a'" in error.what and str(first) in error.why
    second = await store.put("a", b"2", expect=first)
    await refused(Conflict, store.put("a", b"3", expect=first))
    await refused(Conflict, store.put("a", None, expect=first))
    assert await store.get("a") == Entry("a", b"2", second)
    await store.put("a", None, expect=second)
    await refused(Conflict, store.put("a", b"4", expect=second))
    await store.put("a", b"4", expect=0)


async def a_commit_is_all_or_nothing(store: Store, clock: VirtualClock) -> None:
    """One revision for all writes; one wrong `expect` and none of them."""
    revision = await store.commit([Write("a", b"1"), Write("b", b"2", 0)])
    assert {entry.revision for entry in (await store.list(""))[0]} == {revision}
    error = await refused(Conflict, store.commit([Write("c", b"3", 0), Write("b", b"9", 0), Write("a", b"9", 0)]))
    assert "'b'" in error.what
    assert await store.list("") == ([Entry("a", b"1", revision), Entry("b", b"2", revision)], revision)


async def of_concurrent_writers_one_wins(store: Store, clock: VirtualClock) -> None:
    """A conflict of one does not touch those that are written with it."""
    tried = await asyncio.gather(
        *(store.put("a", b"%d" % n, expect=0) for n in range(20)),
        *(store.put(f"b/{n}", b"", expect=0) for n in range(20)),
        return_exceptions=True,
    )
    assert [type(result) for result in tried[:20]].count(int) == 1
    assert [type(result) for result in tried[:20]].count(Conflict) == 19
    assert sorted(result for result in tried if isinstance(result, int)) == list(range(1, 22))


async def bad_keys_and_values_are_refused(store: Store, clock: VirtualClock) -> None:
    """And change nothing."""
    for key in ("", "a\x00b", "a\nb", "\x7f", "\ud800", "k" * 513, "ä" * 257):
        await refused(Invalid, store.put(key, b""))
    await refused(Invalid, store.put("a", bytes((1 << 20) + 1)))
    await refused(Invalid, store.commit([Write("a", b"1"), Write("a", b"2")]))
    await refused(Invalid, store.commit([]))
    await refused(Invalid, store.commit([Write(f"a{n}", b"") for n in range(1001)]))
    assert await store.list("") == ([], 0)
    await store.put("k" * 512, bytes(1 << 20))


async def a_watch_gives_every_change_in_order(store: Store, clock: VirtualClock) -> None:
    """Those since the revision, then those that come; deletions too; nothing outside the prefix."""
    since = await store.put("a/x", b"0")
    first = await store.put("a/x", b"1")
    await store.put("b/x", b"other")
    second = await store.commit([Write("a/z", b"3"), Write("a/y", b"2")])
    events = store.watch("a/", since=since)
    expected = [Entry("a/x", b"1", first), Entry("a/z", b"3", second), Entry("a/y", b"2", second)]
    assert await take(events, 3) == expected
    third = await store.put("a/x", None)
    assert await take(events, 1) == [Entry("a/x", None, third)]


async def a_watch_waits_for_what_comes(store: Store, clock: VirtualClock) -> None:
    """Two watchers of one store each get it."""
    _, since = await store.list("")
    watchers = [asyncio.ensure_future(take(store.watch("a", since=since), 2)) for _ in range(2)]
    await asyncio.sleep(0)
    one, two = await store.put("a", b"1"), await store.put("a", b"2")
    for watcher in watchers:
        assert await watcher == [Entry("a", b"1", one), Entry("a", b"2", two)]


async def a_watch_from_an_unknown_revision_is_refused(store: Store, clock: VirtualClock) -> None:
    """Forgotten, or not there yet (the store was replaced by an older copy): list again."""
    for n in range(5):
        await store.put("a", b"%d" % n)
    await store.compact(3)
    await refused(Conflict, take(store.watch("", since=2), 1))
    await refused(Conflict, take(store.watch("", since=6), 1))
    assert [entry.value for entry in await take(store.watch("", since=3), 2)] == [b"3", b"4"]


async def a_watcher_left_behind_is_told(store: Store, clock: VirtualClock) -> None:
    """It holds no memory of its own: what it did not read in time is compacted."""
    await store.put("a", b"1")
    events = store.watch("", since=0)
    assert len(await take(events, 1)) == 1
    await store.put("a", b"2")
    revision = await store.put("a", b"3")
    await store.compact(revision)
    await refused(Conflict, take(events, 1))


async def compaction_keeps_the_latest_values(store: Store, clock: VirtualClock) -> None:
    """And never goes past the last revision, nor backwards, nor gives a revision twice."""
    await store.put("a", b"1")
    await store.put("a", b"2")
    await store.put("b", b"1")
    await store.put("b", None)
    await store.compact(1000)
    await store.compact(1)
    assert await store.list("") == ([Entry("a", b"2", 2)], 4)
    assert await store.put("c", b"1") == 5
    assert await take(store.watch("", since=4), 1) == [Entry("c", b"1", 5)]


async def a_lease_deletes_what_was_written_with_it(store: Store, clock: VirtualClock) -> None:
    """When it is not renewed in time; watchers see the deletion, and nobody sees the lease itself."""
    lease = await store.grant(10)
    await store.put("a/held", b"1", lease=lease)
    await store.put("a/kept", b"1")
    _, since = await store.list("")
    await clock.advance(9)
    assert (await store.get("a/held")).value == b"1"
    await clock.advance(1.5)
    (gone,) = await take(store.watch("", since=since), 1)
    assert (gone.key, gone.value) == ("a/held", None)
    assert [entry.key for entry in (await store.list(""))[0]] == ["a/kept"]
    await refused(NotFound, store.renew(lease))
    await refused(NotFound, store.put("a/held", b"2", lease=lease))
    await refused(NotFound, store.revoke(lease))


async def a_renewed_lease_lives_on(store: Store, clock: VirtualClock) -> None:
    """For its full time again, each time."""
    lease = await store.grant(10)
    await store.put("a", b"1", lease=lease)
    for _ in range(5):
        await clock.advance(8)
        await store.renew(lease)
    assert (await store.get("a")).value == b"1"


async def a_revoked_lease_takes_its_values_at_once(store: Store, clock: VirtualClock) -> None:
    """In one commit, so that nobody sees half of it."""
    lease = await store.grant(10)
    await store.commit([Write("a", b"1", lease=lease), Write("b", b"1", lease=lease)])
    _, since = await store.list("")
    await store.revoke(lease)
    await store.grant(10)
    await store.put("c", b"1")
    *gone, after = await take(store.watch("", since=since), 3)
    assert [(entry.key, entry.value) for entry in gone] == [("a", None), ("b", None)]
    assert len({entry.revision for entry in gone}) == 1
    assert after.key == "c", "a lease itself is nothing to watch"


async def a_lease_ends_for_those_who_come_at_the_same_time(store: Store, clock: VirtualClock) -> None:
    """What is written with a lease before its end goes with it; after its end, nothing can be."""
    lease = await store.grant(10)
    tried = await asyncio.gather(
        store.put("a", b"1", lease=lease),
        store.revoke(lease),
        store.put("b", b"1", lease=lease),
        store.revoke(lease),
        return_exceptions=True,
    )
    assert [type(result) for result in tried] == [int, type(None), NotFound, NotFound]
    assert (await store.list(""))[0] == []


async def a_value_written_without_its_lease_is_free_of_it(store: Store, clock: VirtualClock) -> None:
    """The last write decides."""
    lease, other = await store.grant(10), await store.grant(1000)
    await store.commit([Write("a", b"1", lease=lease), Write("b", b"1", lease=lease)])
    await store.put("a", b"2")
    await store.put("b", b"2", lease=other)
    await store.revoke(lease)
    assert [entry.key for entry in (await store.list(""))[0]] == ["a", "b"]


async def a_lease_of_no_time_is_refused(store: Store, clock: VirtualClock) -> None:
    """Nor one that never ends."""
    for seconds in (0.0, -1.0, float("nan"), float("inf")):
        await refused(Invalid, store.grant(seconds))


async def a_closed_store_ends_its_watches_and_takes_nothing(store: Store, clock: VirtualClock) -> None:
    """What was accepted before is finished; closing again does nothing."""
    accepted = asyncio.ensure_future(store.put("a", b"1"))
    watching = asyncio.ensure_future(_all(store.watch("b", since=0)))
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.wait_for(accepted, PATIENCE) == 1
    assert await asyncio.wait_for(watching, PATIENCE) == []
    await refused(RoostError, store.put("a", b"2"))
    await store.close()


CHECKS: tuple[Check, ...] = (
    what_is_put_is_read,
    an_empty_value_is_a_value,
    what_is_absent_is_not_found,
    deleting_what_is_absent_changes_nothing,
    a_list_is_in_key_order_and_below_its_prefix,
    expect_compares_and_swaps,
    a_commit_is_all_or_nothing,
    of_concurrent_writers_one_wins,
    bad_keys_and_values_are_refused,
    a_watch_gives_every_change_in_order,
    a_watch_waits_for_what_comes,
    a_watch_from_an_unknown_revision_is_refused,
    a_watcher_left_behind_is_told,
    compaction_keeps_the_latest_values,
    a_lease_deletes_what_was_written_with_it,
    a_renewed_lease_lives_on,
    a_revoked_lease_takes_its_values_at_once,
    a_lease_ends_for_those_who_come_at_the_same_time,
    a_value_written_without_its_lease_is_free_of_it,
    a_lease_of_no_time_is_refused,
    a_closed_store_ends_its_watches_and_takes_nothing,
)
"""Every check, to be run one by one (each against a fresh store) where a test framework wants that."""


async def take(events: AsyncIterator[Entry], count: int) -> list[Entry]:
    """The next `count` entries of a watch. Raises TimeoutError after 10 s."""
    async with asyncio.timeout(PATIENCE):
        return [await anext(events) for _ in range(count)]


async def refused(kind: type[RoostError], attempt: Awaitable[object]) -> RoostError:
    """The error of this kind that an attempt raises. Raises AssertionError when it succeeds."""
    try:
        result = await attempt
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised; the result was {result!r}")


async def _all(events: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in events]
