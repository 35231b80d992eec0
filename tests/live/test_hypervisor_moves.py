"""Volumes that move under a guest that writes, and what is left when a daemon or QEMU is killed at any point of what is done with them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from roost.errors import Conflict, RoostError
from roost.host import failpoints
from roost.hypervisor.base import Command, Guest, Medium, Overlay
from roost.model.meta import GiB, MiB
from tests.checkout import ROOT
from tests.live.volume_hand import nothing
from tests.live.volume_machine import (
    COUNT,
    SECRET,
    House,
    attachment,
    begin,
    disk,
    emptied,
    furnish,
    guest,
    house,
    last_of,
    opened,
    sh,
    taken_over,
    traces,
    whole,
    written,
)
from tests.live.world import answering, started
from tests.needs import needs_program, repetitions

pytestmark = needs_program("qemu-system-x86_64", "qemu-img", "qemu-io")
__all__ = ["emptied", "guest", "house"]


@pytest.mark.fault(8)
async def test_a_volume_moves_under_a_writer_and_no_block_is_lost(house: House, guest: Guest) -> None:
    source, target = house.file("256M"), house.file("256M")
    await guest.volumes.attach(attachment(1, source))
    name = await disk(guest, 1)
    await sh(guest, f"dd if=/dev/urandom of=/dev/{name} bs=1M seek=16 count=8 conv=fsync")
    sums = f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/{name} bs=1M skip=16 count=8 2>/dev/null | sha256sum"
    before, told = await sh(guest, sums), list[str]()

    async def ready() -> None:
        told.append(str((await guest.volumes.backing(1) or Medium("raw")).file))

    async with written(guest, name):
        with pytest.raises(Conflict, match="in use"):
            await guest.volumes.move(1, Medium("qcow2", source), lambda done: None, ready)
        await guest.volumes.move(1, Medium("qcow2", target), lambda done: None, ready)
        assert await guest.volumes.backing(1) == Medium("qcow2", target)
    assert told == [str(target)]
    assert await sh(guest, sums) == before
    assert str(source) not in opened(guest)


async def test_a_move_that_is_given_up_leaves_the_volume_where_it_was(
    house: House, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = house.file(), house.file()
    await guest.volumes.attach(attachment(1, source))
    name, before, reached = await disk(guest, 1), await traces(guest), asyncio.Event()

    async def reach(point: str) -> None:
        if point == "move.ready":
            reached.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(failpoints, "reach", reach)
    async with written(guest, name):
        moving = asyncio.ensure_future(guest.volumes.move(1, Medium("qcow2", target), lambda done: None, nothing))
        await asyncio.wait_for(reached.wait(), 20)
        others = guest.volumes.detach(1), guest.volumes.grow(1, GiB), guest.volumes.cover(1, Overlay(target, "c"))
        answers = await asyncio.gather(*others, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Conflict] * 3
        moving.cancel()
        await asyncio.wait([moving])
        assert await guest.volumes.backing(1) == Medium("qcow2", source)
    assert await traces(guest) == before


@pytest.mark.parametrize(
    ("action", "point"),
    [
        ("attach", "volume.opened"),
        ("attach", "volume.attached"),
        ("detach", "volume.released"),
        ("cover", "volume.overlay"),
        ("cover", "volume.covered"),
        ("move", "move.opened"),
        ("move", "move.started"),
        ("move", "move.ready"),
        ("move", "move.completing"),
        ("move", "move.concluded"),
    ],
)
@pytest.mark.usefixtures("emptied")
async def test_a_daemon_that_dies_leaves_the_old_or_the_new(house: House, action: str, point: str) -> None:
    old, uid = house.file(), str(uuid.uuid4())
    new = house.file("64M", "-b", str(old), "-F", "qcow2") if action == "cover" else house.file()
    async with taken_over(house) as guest:
        await guest.volumes.attach(attachment(1, old))
        name, before = await disk(guest, 1), await traces(guest)
        await begin(guest, name)
    _die(house, point, action, 2 if action == "attach" else 1, new, uid)
    async with taken_over(house) as guest:
        if action != "detach":
            assert await last_of(guest) > 0
            assert await whole(guest, name) == "whole"
        await _settled(guest, point, old, new)
        _, _, objects, jobs, attached = await traces(guest)
        assert (objects, jobs) == (before[2], before[3])
        assert len(attached) == (2 if point == "volume.attached" else 1)
        for lun in attached:
            await guest.volumes.detach(lun)
        after = await traces(guest)
        assert not after[4]
        assert len(after[0]) == len(before[0]) - 2


def _die(house: House, point: str, *words: object) -> None:
    command = [sys.executable, "-m", "tests.live.volume_hand", house.world.paths.state, house.launch.uid, *words]
    environ = {**os.environ, "ROOST_FAILPOINT": f"{point}:kill"}
    done = subprocess.run([*map(str, command)], cwd=ROOT, env=environ, timeout=60, capture_output=True, check=False)
    assert done.returncode == -9, done.stderr


async def _settled(guest: Guest, point: str, old: Path, new: Path) -> None:
    """A move or cover came to be, or did not; and nothing is in between."""
    where = await guest.volumes.backing(1)
    became = {"volume.covered": {new}, "move.concluded": {new}, "move.completing": {old, new}}
    assert where is not None
    assert where.file in became.get(point, {old})
    unused = {old, new} - {where.file} if not point.startswith("volume") else set()
    assert not unused & {*map(Path, opened(guest))}


@pytest.mark.fault(8)
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3][: repetitions(2, 3)])
async def test_a_qemu_that_is_killed_in_a_move_loses_no_block(house: House, seconds: float) -> None:
    source, target, switched = house.file(), house.file(), list[bool]()
    async with started(house.world, house.world.launch(memory=128 * MiB)) as other:
        agent = await answering(other)
        await furnish(agent)
        await other.volumes.attach(attachment(1, source))
        name, said = await disk(other, 1), bytearray()
        session = await agent.execute(Command(["blocks", "write", f"/dev/{name}", "0", str(COUNT), SECRET]))

        async def ready() -> None:
            switched.append(True)

        async def listen() -> None:
            with contextlib.suppress(RoostError, OSError):
                async for chunk in session.output():
                    said.extend(chunk.data)

        listening = asyncio.ensure_future(listen())
        await asyncio.sleep(0.3)
        moving = asyncio.ensure_future(other.volumes.move(1, Medium("qcow2", target), lambda done: None, ready))
        await asyncio.sleep(seconds)
        os.kill(other.process.pid, 9)
        await asyncio.wait([moving, listening], timeout=60)
        moving.exception()
        await other.wait()
    last = int(said[: said.rindex(b"\n")].split()[-1])
    content = await _read(target if switched else source)
    assert [n for n in range(max(0, last - COUNT + 2), last + 1) if not _is_block(content, n)] == []


async def _read(file: Path) -> bytes:
    raw = file.with_suffix(".raw")
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(file), str(raw)]
    done = await asyncio.to_thread(subprocess.run, convert, check=False, timeout=60)
    assert done.returncode == 0
    with raw.open("rb") as whole_file:
        return whole_file.read(COUNT * 4096)


def _is_block(content: bytes, number: int) -> bool:
    at = number % COUNT * 4096
    return content[at : at + 4096] == (f"{number} {SECRET} ".encode() * 4096)[:4096]
