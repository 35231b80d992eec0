"""What every engine of networks has in common, the fake's as well: a suite that takes one and a network of two ports."""

from __future__ import annotations

import os

from roost.errors import Conflict, NotFound
from roost.network.base import Fabrics, Wanted

NOWHERE = "ffffffff-0000-4000-8000-000000000000"


async def check_fabric(fabrics: Fabrics, wanted: Wanted) -> None:
    """Make, plug in, change, look, remove. Raises AssertionError for what is not as base.Fabrics says."""
    one, two = (port.interface for port in wanted.ports)
    for _ in range(2):
        seen = await fabrics.ensure(wanted)
        assert seen.ready and seen.door == wanted.door and seen.mtu == wanted.mtu and "holder" in seen.alive
        assert not seen.plugged & {one, two}, "nobody has plugged anything in"
    tap = await fabrics.plug(wanted.uid, one)
    assert (await fabrics.look(wanted.uid)).plugged == {one}
    assert await _refused(fabrics, wanted.uid, one) is Conflict
    assert await _refused(fabrics, wanted.uid, "tap00000000") is NotFound
    assert await _refused(fabrics, NOWHERE, one) is NotFound
    os.close(await fabrics.capture(wanted.uid, one))
    os.close(tap)
    os.close(await fabrics.plug(wanted.uid, one))
    await fabrics.ensure(wanted._replace(ports=wanted.ports[:1]))
    assert await _refused(fabrics, wanted.uid, two) is NotFound
    for _ in range(2):
        await fabrics.remove(wanted.uid)
    try:
        await fabrics.look(wanted.uid)
    except NotFound:
        return
    raise AssertionError("a network that was removed is still there")


async def _refused(fabrics: Fabrics, uid: str, interface: str) -> type[Exception] | None:
    try:
        os.close(await fabrics.plug(uid, interface))
    except (Conflict, NotFound) as error:
        return type(error)
    return None
