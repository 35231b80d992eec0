"""Copying files in and out with the agent's own tar, which must not write where it should not."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.errors import CommandFailed, NotFound
from roost.hypervisor.agent import RoostAgent
from tests.guest.native import program, run

LONG = "long-" + "ü" * 100


def make_tree(root: Path) -> None:
    """Files of all kinds that a copy must keep."""
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "plain").write_bytes(os.urandom(100_001))
    (root / "empty").write_bytes(b"")
    (root / "block").write_bytes(b"x" * 1024)
    (root / "sub" / "script").write_text("#!/bin/sh\n")
    (root / "sub" / "script").chmod(0o751)
    (root / "sub" / "sticky").write_text("s")
    (root / "sub" / "sticky").chmod(0o4711)
    (root / "sub" / LONG).write_text("long")
    (root / "sub" / "deeper" / "naïve ☃ \n name").write_text("unicode")
    (root / "link").symlink_to("sub/script")
    (root / "dangling").symlink_to("/no/such/" + "x" * 150)
    os.mkfifo(root / "pipe")
    os.utime(root / "plain", ns=(1, 1_234_567_890_123_456_789))
    (root / "sub" / "deeper").chmod(0o555)
    os.utime(root / "sub", ns=(1, 1_111_111_111_000_000_000))


def describe(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """What a copy must keep of each file: mode, time (Python's tar has floats, and none for links), content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        when = 0 if path.is_symlink() else info.st_mtime_ns // 1_000_000
        found[str(path.relative_to(root))] = (info.st_mode, when, content)
    return found


async def pieces(data: bytes, size: int = 10_007) -> AsyncIterator[bytes]:
    """A stream of odd pieces."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def fetch(agent: RoostAgent, path: Path) -> bytes:
    """A whole archive from the guest."""
    return b"".join([piece async for piece in agent.receive_archive(str(path))])


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive made by Python."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """A member's header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


async def test_a_tree_comes_back_as_it_was(agent: RoostAgent, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    await agent.send_archive(str(tmp_path / "a" / "b"), agent.receive_archive(str(tmp_path / "tree")))
    assert describe(tmp_path / "a" / "b" / "tree") == describe(tmp_path / "tree")


async def test_python_reads_what_the_agent_writes(agent: RoostAgent, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    with tarfile.open(fileobj=io.BytesIO(await fetch(agent, tmp_path / "tree"))) as archive:
        archive.extractall(tmp_path / "out", filter="fully_trusted")
    assert describe(tmp_path / "out" / "tree") == describe(tmp_path / "tree")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
async def test_the_agent_reads_what_python_writes(agent: RoostAgent, tmp_path: Path, form: int) -> None:
    names = ["plain", "dir/file", "x" * 90 + "/" + "y" * 90]
    data = tar_of(*[(member(name), name.encode() * 50) for name in names], form=form)
    await agent.send_archive(str(tmp_path), pieces(data))
    assert [(tmp_path / name).read_bytes() for name in names] == [name.encode() * 50 for name in names]


async def test_a_single_file_is_named_by_its_own_name(agent: RoostAgent, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    with tarfile.open(fileobj=io.BytesIO(await fetch(agent, tmp_path / "one"))) as archive:
        assert archive.getnames() == ["one"]


async def test_a_missing_path_is_not_found(agent: RoostAgent, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await fetch(agent, tmp_path / "nothing")


async def test_a_copy_that_stops_early_leaves_the_agent_well(agent: RoostAgent, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(8 << 20))
    stream = agent.receive_archive(str(tmp_path / "big"))
    await anext(stream)
    await stream.aclose()
    assert (await run(agent, "true")).code == 0


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "..", "/../outside"])
async def test_names_that_lead_out_are_refused(agent: RoostAgent, tmp_path: Path, name: str) -> None:
    with pytest.raises(CommandFailed, match="leads out"):
        await agent.send_archive(
            str(tmp_path / "in"), pieces(tar_of((member(name), b"evil"), (member("good"), b"good")))
        )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["good", "in"]


async def test_absolute_names_stay_inside(agent: RoostAgent, tmp_path: Path) -> None:
    await agent.send_archive(str(tmp_path), pieces(tar_of((member("/inside/file"), b"x"))))
    assert (tmp_path / "inside" / "file").read_bytes() == b"x"


@pytest.mark.parametrize("target", ["..", "../outside", "/"])
async def test_a_link_in_the_archive_is_no_way_out(agent: RoostAgent, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").mkdir()
    data = tar_of((member("door", tarfile.SYMTYPE, target), b""), (member("door/file"), b"evil"))
    with pytest.raises(CommandFailed):
        await agent.send_archive(str(tmp_path / "in"), pieces(data))
    assert not list((tmp_path / "outside").iterdir()) and not (tmp_path / "file").exists()


async def test_a_link_that_is_there_is_replaced_not_followed(agent: RoostAgent, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").symlink_to(tmp_path / "secret")
    await agent.send_archive(str(tmp_path / "in"), pieces(tar_of((member("file"), b"new"))))
    assert (tmp_path / "secret").read_text() == "secret"
    assert (tmp_path / "in" / "file").read_text() == "new"


async def test_a_hard_link_to_the_outside_is_refused(agent: RoostAgent, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    data = tar_of((member("link", tarfile.LNKTYPE, "../secret"), b""))
    with pytest.raises(CommandFailed):
        await agent.send_archive(str(tmp_path / "in"), pieces(data))
    assert not (tmp_path / "in" / "link").exists()


async def test_links_inside_are_followed_and_hard_links_kept(agent: RoostAgent, tmp_path: Path) -> None:
    (tmp_path / "usr" / "bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    data = tar_of((member("bin/tool"), b"tool"), (member("bin/same", tarfile.LNKTYPE, "bin/tool"), b""))
    await agent.send_archive(str(tmp_path), pieces(data))
    assert (tmp_path / "usr" / "bin" / "same").stat().st_nlink == 2


async def test_devices_are_not_made(agent: RoostAgent, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="not supported"):
        await agent.send_archive(str(tmp_path / "in"), pieces(tar_of((member("null", tarfile.CHRTYPE), b""))))
    assert not (tmp_path / "in" / "null").exists()


async def test_a_file_takes_the_place_of_an_old_one_and_its_mode(agent: RoostAgent, tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("a longer old content")
    await agent.send_archive(str(tmp_path), pieces(tar_of((member("tool", mode=0o755), b"new"))))
    assert (tmp_path / "tool").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) == 0o755


@pytest.mark.parametrize("size", [100, 700, 1000])
async def test_an_archive_that_was_cut_is_an_error(agent: RoostAgent, tmp_path: Path, size: int) -> None:
    with pytest.raises(CommandFailed, match="ends in the middle"):
        await agent.send_archive(str(tmp_path / "in"), pieces(tar_of((member("file"), b"x" * 2000))[:size]))


async def test_what_is_no_archive_is_an_error(agent: RoostAgent, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="not a tar archive"):
        await agent.send_archive(str(tmp_path / "in"), pieces(b"hello" * 1000))


async def test_a_source_that_breaks_is_told_as_it_is(agent: RoostAgent, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        await agent.send_archive(str(tmp_path), broken())
    await asyncio.sleep(0)
    assert (await run(agent, "true")).code == 0


@pytest.mark.parametrize("seed", range(40))
def test_damaged_archives_crash_nothing_and_stay_inside(tmp_path: Path, seed: int) -> None:
    import random

    chance = random.Random(seed)
    data = bytearray(
        tar_of(
            (member("dir", tarfile.DIRTYPE, mode=0o755), b""), (member("dir/" + "n" * 200), b"x" * 3000),
            (member("link", tarfile.SYMTYPE, "t" * 300), b""), (member("hard", tarfile.LNKTYPE, "dir"), b""),
        )
    )  # fmt: skip
    for _ in range(chance.randrange(1, 30)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    for block in range(0, len(data), 512):  # most damage is found by the checksum: mend it, to get further in
        header = data[block : block + 512]
        total = sum(header[:148]) + 256 + sum(header[156:])
        if chance.random() < 0.8 and total != 256:
            data[block + 148 : block + 156] = b"%06o\0 " % total
    inside = tmp_path / "in"
    done = subprocess.run([program(), "extract", inside], input=bytes(data), capture_output=True, timeout=20)
    assert done.returncode in (0, 1), done.stderr
    assert os.listdir(tmp_path) == ["in"]  # noqa: PTH208
