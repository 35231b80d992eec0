"""Volumes of a QEMU that runs in its real jail: plugged in and out, covered, moved and filled under a guest that writes, whoever dies."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from roost.errors import Conflict, Unavailable
from roost.hypervisor.base import Guest, Medium, Overlay
from roost.hypervisor.monitor import Monitor
from roost.model.meta import GiB, MiB
from roost.model.volume import Limits
from tests.live.volume_hand import nothing
from tests.live.volume_machine import (
    SECRET,
    House,
    attachment,
    disk,
    emptied,
    guest,
    house,
    image,
    nodes,
    opened,
    run,
    sh,
    traces,
    written,
)
from tests.live.world import started
from tests.needs import needs_program, needs_root, repetitions

pytestmark = needs_program("qemu-system-x86_64", "qemu-img", "qemu-io")
__all__ = ["emptied", "guest", "house"]


async def test_a_volume_comes_and_goes_and_nothing_is_left(house: House, guest: Guest) -> None:
    before, file = await traces(guest), house.file()
    times = []
    for _ in range(repetitions(10, 100)):
        begun = time.perf_counter()
        await guest.volumes.attach(attachment(3, file))
        times.append(time.perf_counter() - begun)
        name = await disk(guest, 3)
        assert await sh(guest, f"echo {name} > /dev/{name}; head -c 3 /dev/{name}") == name[:3]
        await guest.volumes.detach(3)
        assert await sh(guest, "ls /sys/bus/scsi/devices | grep -c :0:0:3") == "0"
    assert await traces(guest) == before
    assert str(file) not in opened(guest)
    assert sorted(times)[len(times) // 2] < 0.1
    assert file.read_bytes().count(b"sda\n") == 1, "what the guest wrote is in the file"


async def test_volumes_are_there_before_the_first_instruction(house: House) -> None:
    launch = house.world.launch(memory=128 * MiB)
    async with started(house.world, launch, run=False) as other:
        await other.volumes.attach(attachment(15, house.file("1T"), serial="archive"))
        await other.volumes.attach(attachment(0, house.file("8M"), read_only=True))
        assert sorted(await other.volumes.attached()) == [0, 15]
        bound = re.search(r"Max file size +(\d+)", Path(f"/proc/{other.process.pid}/limits").read_text())
        assert bound is None or int(bound[1]) > 1024 * GiB
        await other.resume()
        names = [await disk(other, 0), await disk(other, 15)]
        facts = await sh(other, f"for n in {' '.join(names)}; do cat /sys/block/$n/size /sys/block/$n/ro; done")
        assert facts.split() == ["16384", "1", "2147483648", "0"]
        assert "archive" in await sh(other, f"cat /sys/block/{names[1]}/device/vpd_pg80")
        assert other.trouble == ""


async def test_a_volume_that_is_attached_is_attached_no_more_than_once(house: House, guest: Guest) -> None:
    first = attachment(1, house.file())
    await guest.volumes.attach(first)
    before = await traces(guest)
    await guest.volumes.attach(first)
    with pytest.raises(Conflict, match="not attached"):
        await guest.volumes.attach(attachment(1, house.file()))
    assert await traces(guest) == before


@pytest.mark.fault(1)
async def test_a_volume_has_one_writer(house: House, guest: Guest) -> None:
    file = house.file()
    await guest.volumes.attach(attachment(1, file))
    before = await traces(guest)
    with pytest.raises(Conflict, match="in use"):
        await guest.volumes.attach(attachment(2, file))
    assert await traces(guest) == before
    done = run("qemu-io", "-c", "write 0 64k", str(file))
    assert done.returncode != 0
    assert "lock" in done.stderr


async def test_several_readers_are_no_writers(house: House, guest: Guest) -> None:
    file = house.file()
    await guest.volumes.attach(attachment(1, file, read_only=True))
    await guest.volumes.attach(attachment(2, file, read_only=True))
    with pytest.raises(Conflict):
        await guest.volumes.attach(attachment(4, file))


async def test_a_volume_that_the_guest_uses_is_not_taken_away(house: House, guest: Guest) -> None:
    await guest.volumes.attach(attachment(1, house.file()))
    name = await disk(guest, 1)
    await sh(guest, f"mkswap /dev/{name} && swapon /dev/{name}")
    with pytest.raises(Conflict, match="not detached") as refused:
        await guest.volumes.detach(1)
    assert "swap" in refused.value.why
    assert 1 in await guest.volumes.attached()
    await sh(guest, f"swapoff /dev/{name}")
    await guest.pause()
    with pytest.raises(Conflict, match="not detached"):
        await guest.volumes.detach(1)
    await guest.resume()
    await guest.volumes.detach(1)
    assert not await guest.volumes.attached()


async def test_what_the_guest_has_not_written_yet_is_written_before_it_lets_go(house: House, guest: Guest) -> None:
    file = house.file()
    await guest.volumes.attach(attachment(1, file))
    name = await disk(guest, 1)
    # Somebody has it open, so that closing it does not write what is in memory.
    said = await sh(guest, f"(exec 9<>/dev/{name}; sleep 60) >/dev/null 2>&1 & usleep 100000; "
                           "dd if=/dev/urandom of=/run/noise bs=1M count=4 2>/dev/null; "
        f"cat /run/noise > /dev/{name}; sha256sum < /run/noise")  # fmt: skip
    await guest.volumes.detach(1)
    await guest.volumes.attach(attachment(2, file))
    name = await disk(guest, 2)
    assert await sh(guest, f"dd if=/dev/{name} bs=1M count=4 2>/dev/null | sha256sum") == said


async def test_limits_hold_and_change_at_once(house: House, guest: Guest) -> None:
    await guest.volumes.attach(attachment(1, house.file(), limits=Limits(bandwidth=8 * MiB)))
    name = await disk(guest, 1)
    read = f"dd if=/dev/{name} of=/dev/null bs=256k iflag=direct count="

    async def seconds(count: int) -> float:
        begun = time.perf_counter()
        await sh(guest, f"{read}{count}")
        return time.perf_counter() - begun

    assert 1.2 < await seconds(64) < 3.5  # 16 MiB, of which the first tenth of a second comes at once
    await guest.volumes.limit(1, Limits())
    assert await seconds(64) < 1.0
    await guest.volumes.limit(1, Limits(iops=20, burst_iops=20))
    assert await seconds(50) > 1.0


async def test_a_volume_grows_and_the_guest_sees_it(house: House, guest: Guest) -> None:
    await guest.volumes.attach(attachment(1, house.file()))
    name = await disk(guest, 1)
    await guest.volumes.grow(1, 128 * MiB)
    await guest.volumes.grow(1, 128 * MiB)
    look = f"n=0; until [ $(cat /sys/block/{name}/size) = 262144 ] || [ $n -ge 200 ]; do n=$((n+1)); usleep 5000; done"
    assert await sh(guest, f"{look}; cat /sys/block/{name}/size") == "262144"
    assert await sh(guest, f"echo end | dd of=/dev/{name} bs=1M seek=127 conv=fsync 2>/dev/null && echo done") == "done"


async def test_what_was_written_before_a_cover_stays_below(house: House, guest: Guest) -> None:
    below = house.file()
    over = house.file("64M", "-b", str(below), "-F", "qcow2")
    await guest.volumes.attach(attachment(1, below))
    name = await disk(guest, 1)
    async with written(guest, name):
        await guest.volumes.cover(1, Overlay(over, "cover-a"))
        content = below.read_bytes()
        assert await guest.volumes.backing(1) == Medium("qcow2", over)
        await asyncio.sleep(0.2)
    assert below.read_bytes() == content
    assert opened(guest)[str(below)] == os.O_RDONLY


@pytest.mark.fault(87)
async def test_an_encrypted_volume_wants_its_key_and_nobody_tells_it(
    house: House, guest: Guest, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    key = secrets.token_hex(16).encode()
    source, over, target = (encrypted(house, tmp_path, key) for _ in range(3))
    before = await traces(guest)
    for wrong in (None, b"wrong" * 5):
        with pytest.raises(Unavailable, match="can not be opened") as refused:
            await guest.volumes.attach(attachment(1, source, medium=Medium("qcow2", source, key=wrong)))
        assert "key" in refused.value.why
        assert await traces(guest) == before
    await guest.volumes.attach(attachment(1, source, medium=Medium("qcow2", source, key=key)))
    name = await disk(guest, 1)
    async with written(guest, name):
        await guest.volumes.cover(1, Overlay(over, "cover-k"), key)
        await guest.volumes.move(1, Medium("qcow2", target, key=key), lambda done: None, nothing)
        assert await guest.volumes.backing(1) == Medium("qcow2", target)
    monitor = nodes(guest)
    assert not [name for name in await monitor.query_objects() if "key" in name]
    assert all(f" {SECRET} ".encode() not in file.read_bytes() for file in (source, over, target))
    shown = Path(f"/proc/{guest.process.pid}/cmdline").read_bytes() + repr(await monitor._call("query-block")).encode()
    shown += caplog.text.encode() + "".join(capfd.readouterr()).encode()
    assert not [word for word in (key, base64.b64encode(key)) if word in shown]


def encrypted(house: House, directory: Path, key: bytes) -> Path:
    secret = directory / "key"
    secret.write_bytes(key)
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    words = ("-f", "qcow2", "--object", f"secret,id=s,file={secret}", "-o", options)
    file = house.world.paths.state / f"{secrets.token_hex(6)}.qcow2"
    # On a busy host it can not always measure how fast that is.
    assert any(run("qemu-img", "create", *words, str(file), "64M").returncode == 0 for _ in range(10))
    return file


@contextmanager
def small(directory: Path, size: str) -> Iterator[Path]:
    """A file system with so much room."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


async def stopped(guest: Guest) -> None:
    """Returns when the guest stands still for an error of a disk."""
    changed = asyncio.Event()
    guest.on_change = changed.set
    async with asyncio.timeout(30):
        while await guest.state() != "io-error":
            await changed.wait()
            changed.clear()


@needs_root
@pytest.mark.fault(10)
async def test_a_full_pool_stops_the_guest_and_space_lets_it_go_on(house: House, guest: Guest) -> None:
    with small(house.world.paths.state / secrets.token_hex(4), "4m") as pool:
        await guest.volumes.attach(attachment(1, image(pool / "disk", "64M")))
        name = await disk(guest, 1)
        await guest.volumes.attach(attachment(2, house.file()))
        write = f"(dd if=/dev/urandom of=/run/noise bs=1M count=12; cat /run/noise > /dev/{name}; sync; echo written > /run/end)"
        await sh(guest, f"rm -f /run/end; setsid sh -c '{write}' >/dev/null 2>&1 < /dev/null &")
        await stopped(guest)
        assert guest.trouble == "No space left on device"
        await guest.resume()  # there is none still
        await stopped(guest)
        assert run("mount", "-o", "remount,size=64m", str(pool)).returncode == 0
        await guest.resume()
        wait = "n=0; until [ -e /run/end ] || [ $n -ge 1000 ]; do n=$((n+1)); usleep 10000; done"
        drop = f"{wait}; echo 3 > /proc/sys/vm/drop_caches"
        same = f"{drop}; dd if=/dev/{name} bs=1M count=12 2>/dev/null | cmp - /run/noise && cat /run/end; rm /run/noise"
        assert await sh(guest, same) == "written"
        assert (await guest.state(), guest.trouble) == ("running", "")
        await guest.volumes.detach(1)


@pytest.mark.fault(13)
async def test_an_error_of_the_disk_stops_the_guest_until_it_is_told_to_go_on(
    house: House, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Monitor.blockdev_add

    async def add_faulty(monitor: Monitor, options: Mapping[str, Any]) -> None:
        if options["driver"] == "file":
            inner = {name: value for name, value in options.items() if name != "node-name"}
            error = [{"event": "pwritev", "iotype": "write", "errno": 5, "once": True, "immediately": False}]
            options = {"driver": "blkdebug", "node-name": options["node-name"], "image": inner, "inject-error": error}
        await add(monitor, options)

    monkeypatch.setattr(Monitor, "blockdev_add", add_faulty)
    raw = house.world.paths.state / "raw"
    raw.write_bytes(bytes(8 * MiB))
    await guest.volumes.attach(attachment(1, raw, medium=Medium("raw", raw)))
    name = await disk(guest, 1)
    await sh(guest, f"rm -f /run/end; (echo block > /dev/{name}; sync; echo $? > /run/end) >/dev/null 2>&1 &")
    await stopped(guest)
    assert guest.trouble == "Input/output error"
    await guest.resume()
    wait = "n=0; until [ -e /run/end ] || [ $n -ge 400 ]; do n=$((n+1)); usleep 5000; done"
    assert await sh(guest, f"{wait}; head -c 5 /dev/{name}") == "block"
    assert raw.read_bytes()[:5] == b"block"


async def test_the_screen_of_a_machine_with_one_is_a_picture(house: House, guest: Guest) -> None:
    with pytest.raises(Conflict, match="no picture"):
        await guest.screenshot()
    async with started(house.world, house.world.launch(display=True), run=False) as other:
        for _ in range(2):
            picture = await other.screenshot()
            assert picture.startswith(b"\x89PNG")
            assert picture.endswith(b"IEND\xaeB`\x82")
