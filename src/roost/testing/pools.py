"""What every pool has in common, the fake as well: a suite that takes one that is new and empty."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable

from roost.errors import Conflict, Forbidden, Invalid, NotFound, RoostError
from roost.storage.pool import Origin, Pool

MiB = 1 << 20
SIZE = 8 * MiB
KEY, OTHER = (b"roost-canary-" + letter * 31 for letter in (b"a", b"b"))


async def check_pool(pool: Pool) -> None:
    """Make, copy, keep, use, grow, remove. Raises AssertionError for what is not as storage.pool.Pool says."""
    await pool.prepare()
    await pool.prepare()
    assert (await pool.usage(), pool.images()) == ({}, set())
    room = await pool.capacity()
    assert 0 <= room.used <= room.size
    one = await _check_volumes(pool)
    await _check_use(pool, one)
    await _check_copies(pool, one)
    if pool.abilities.covers:
        await _check_covers(pool, one)
    if pool.abilities.encryption:
        await _check_encryption(pool)
    await pool.remove(one)
    assert await pool.usage() == {}, "something is left"
    assert [line async for line in pool.verify(thorough=True)] == []
    await pool.discard()


async def _check_volumes(pool: Pool) -> str:
    one, nowhere = _uid(), _uid()
    for _ in range(2):
        await pool.create(one, SIZE)
    assert set(await pool.usage()) == {one}
    assert await refused(pool.create(_uid(), None)) is Invalid
    assert await refused(pool.hold(nowhere)) is NotFound
    assert await refused(pool.resize(one, SIZE // 2)) is Invalid
    await pool.resize(one, 2 * SIZE)
    await pool.resize(one, 2 * SIZE)
    found = (await pool.usage())[one]
    assert (found.virtual, found.shared) == (2 * SIZE, 0)
    await pool.remove(nowhere)
    await pool.remove_snapshot(nowhere)
    await pool.release(nowhere)
    return one


async def _check_use(pool: Pool, one: str) -> None:
    held = await pool.hold(one)
    assert held.format in ("qcow2", "raw") and (held.file or held.socket)
    assert await pool.hold(one) == held
    for verb in (pool.resize(one, 4 * SIZE), pool.snapshot(one, _uid()), pool.remove(one)):
        assert await refused(verb) is Conflict
    assert await refused(pool.create(_uid(), None, Origin("volume", one))) is Conflict
    await pool.release(one)
    async with pool.opened(one) as opened:
        assert opened == held
        assert await refused(pool.remove(one)) is Conflict


async def _check_copies(pool: Pool, one: str) -> None:
    snapshot, copy, twin = _uid(), _uid(), _uid()
    for _ in range(2):
        await pool.snapshot(one, snapshot)
    await pool.create(copy, 4 * SIZE, Origin("snapshot", snapshot))
    await pool.create(twin, None, Origin("volume", one))
    assert await refused(pool.create(_uid(), SIZE, Origin("volume", one))) is Invalid
    assert await refused(pool.create(_uid(), None, Origin("snapshot", _uid()))) is NotFound
    usage = await pool.usage()
    assert {uid: found.virtual // SIZE for uid, found in usage.items()} == {one: 2, snapshot: 2, copy: 4, twin: 2}
    assert usage[snapshot].own == 0, "three volumes stand on the snapshot"
    assert usage[snapshot].shared > 0
    async with pool.opened(snapshot) as opened:
        assert opened.format
    await pool.tend(one)
    filled = _uid()
    done: list[float] = []
    async with pool.opened(copy) as opened:
        for _ in range(2):
            await pool.fill(filled, opened, 4 * SIZE, None, done.append)
    assert done[-1] == 1.0
    for uid in (twin, filled, copy):
        await pool.remove(uid)
        await pool.remove(uid)
    await pool.remove_snapshot(snapshot)
    assert set(await pool.usage()) == {one}
    assert (await pool.usage())[one].shared == 0


async def _check_covers(pool: Pool, one: str) -> None:
    await pool.hold(one)
    first, second = _uid(), _uid()
    cover = await pool.cover(one, first)
    assert cover.snapshot == first
    assert cover.file.exists()
    assert await refused(pool.cover(one, second)) is Conflict
    await pool.settle(one, covered=False)
    assert set(await pool.usage()) == {one}, "nothing was covered, so there is no snapshot"
    again = await pool.cover(one, second)
    assert again.node != cover.node, "QEMU knows a node by its name"
    for _ in range(2):
        await pool.settle(one, covered=True)
    assert set(await pool.usage()) == {one, second}
    await pool.release(one)
    await pool.remove_snapshot(second)


async def _check_encryption(pool: Pool) -> None:
    plain, locked, copy, snapshot = _uid(), _uid(), _uid(), _uid()
    await pool.create(plain, SIZE)
    await pool.create(locked, SIZE, None, KEY)
    for wrong in (OTHER, None):
        assert await refused(pool.hold(locked, wrong)) is Forbidden
    assert (await pool.hold(locked, KEY)).key == KEY
    await pool.release(locked)
    assert await refused(pool.create(_uid(), None, Origin("volume", locked))) is Invalid
    assert await refused(pool.create(_uid(), None, Origin("volume", plain), KEY)) is Invalid
    await pool.snapshot(locked, snapshot)
    assert await refused(pool.create(_uid(), None, Origin("snapshot", snapshot), OTHER)) is Forbidden
    await pool.create(copy, None, Origin("snapshot", snapshot), KEY)
    for _ in range(2):
        await pool.rekey(locked, KEY, OTHER)
    assert await refused(pool.hold(locked, KEY)) is Forbidden
    for uid, key in ((locked, OTHER), (copy, KEY), (snapshot, KEY)):
        async with pool.opened(uid, key) as opened:
            assert opened.key == key
    await pool.remove_snapshot(snapshot)
    for uid in (plain, locked, copy):
        await pool.remove(uid)


async def refused(doing: Awaitable[object]) -> type[RoostError] | None:
    """What kind of error it raised."""
    try:
        await doing
    except RoostError as error:
        return type(error)
    return None


def _uid() -> str:
    return str(uuid.uuid4())
