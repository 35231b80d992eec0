"""The pool of images on a real disk: built once, visible only when whole, refused when hostile; tools run in their real jail."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from roost.errors import Invalid, NotFound, NotStarted, Unavailable
from roost.host.paths import MachineFiles, Paths
from roost.model.meta import Arch
from roost.storage.catalogue import Entry
from roost.storage.images import Images
from roost.storage.layers import Base, Layers
from roost.storage.manifest import Manifest
from roost.storage.template import Template, Workshop
from tests.conformance.test_fetch import HERE, head, running
from tests.needs import needs_program

MiB = 1 << 20
needs_qemu_img = needs_program("qemu-img")
Build = Callable[[Template, Workshop], Awaitable[Manifest]]


class Sketch(Template):
    """A template without guest programs."""

    def recipe(self) -> str:
        return hashlib.sha256(f"{self.name} {self.ingredients}".encode()).hexdigest()


def silent(_: str, __: float | None) -> None:
    """Nobody wants to know how far it is."""


async def quick(template: Template, workshop: Workshop) -> Manifest:
    workshop.progress("making", 0.5)
    workshop.product.kernel.write_bytes(b"kernel")
    workshop.product.initramfs.write_bytes(template.ingredients.encode())
    return Manifest(
        name=template.name,
        arch="x86_64",
        format="none",
        kernel=True,
        initramfs=True,
        firmwares=("direct",),
        agent="roost",
    )


def sketch(build: Build = quick, ingredients: str = "1", needs: int = 0, arch: Arch = "x86_64") -> Sketch:
    return Sketch("sketch", arch, "", ingredients, needs, build)


def layers(tmp_path: Path) -> Layers:
    """Disks over the images of `pool`."""
    paths = Paths(tmp_path / "s", tmp_path / "r")
    return Layers(paths, lambda digest: paths.image(digest).disk)


def pool(tmp_path: Path, *templates: Template, **options: object) -> Images:
    return Images(Paths(tmp_path / "s", tmp_path / "r"), built=templates, **options)  # type: ignore[arg-type]


def left(tmp_path: Path) -> list[str]:
    """What is in the pool's directories, by name."""
    return sorted(path.name for name in ("images", "building", "recipes") for path in (tmp_path / "s" / name).glob("*"))


async def blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MiB):
        yield data[start : start + MiB]


def qemu_img(*argv: object) -> str:
    return subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, text=True).stdout


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)


def a_qcow2(tmp_path: Path, *options: str) -> Path:
    """A small qcow2 made by qemu-img, with 1 MiB of data."""
    raw, made = tmp_path / "raw.img", tmp_path / "made.qcow2"
    raw.write_bytes(os.urandom(MiB) + bytes(15 * MiB))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, raw, made)
    return made


async def test_an_image_is_read_only_and_named_by_its_content(tmp_path: Path) -> None:
    made = await pool(tmp_path, sketch()).ensure_template("sketch", "x86_64", silent)
    files = pool(tmp_path).files(made.digest)
    assert made.digest == "sha256:" + hashlib.sha256(b"kernel1").hexdigest()
    assert [oct(path.stat().st_mode & 0o777) for path in sorted(files.directory.iterdir())] == ["0o444"] * 3
    assert pool(tmp_path).find(made.digest) == made


async def test_two_wishes_at_once_are_built_once_and_both_see_the_progress(tmp_path: Path) -> None:
    builds, seen = [], ([], [])

    async def slow(template: Template, workshop: Workshop) -> Manifest:
        builds.append(template.name)
        await asyncio.sleep(0.01)
        return await quick(template, workshop)

    both = pool(tmp_path, sketch(slow))
    made = await asyncio.gather(
        *(both.ensure_template("sketch", "x86_64", lambda text, _, i=i: seen[i].append(text)) for i in (0, 1))
    )
    assert (len(builds), made[0]) == (1, made[1])
    assert [lines[-1] for lines in seen] == ["making", "making"]


async def test_a_template_that_is_there_is_not_built_again_until_its_recipe_changes(tmp_path: Path) -> None:
    first = await pool(tmp_path, sketch()).ensure_template("sketch", "x86_64", silent)
    again = await pool(tmp_path, sketch(build=never)).ensure_template("sketch", "x86_64", silent)
    other = pool(tmp_path, sketch(ingredients="2"))
    assert again == first
    assert not other.is_current("sketch", "x86_64", first.digest)
    assert (await other.ensure_template("sketch", "x86_64", silent)).digest != first.digest


async def never(template: Template, workshop: Workshop) -> Manifest:
    raise AssertionError("built again")


async def test_a_build_that_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    async def broken(template: Template, workshop: Workshop) -> Manifest:
        workshop.product.kernel.write_bytes(b"half")
        raise Unavailable("no network")

    with pytest.raises(Unavailable, match="no network"):
        await pool(tmp_path, sketch(broken)).ensure_template("sketch", "x86_64", silent)
    assert left(tmp_path) == []
    assert await pool(tmp_path, sketch()).ensure_template("sketch", "x86_64", silent)


async def test_who_gives_up_waiting_does_not_stop_the_others(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def gated(template: Template, workshop: Workshop) -> Manifest:
        await gate.wait()
        return await quick(template, workshop)

    both = pool(tmp_path, sketch(gated))
    waits = [asyncio.ensure_future(both.ensure_template("sketch", "x86_64", silent)) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    gate.set()
    assert (await waits[1]).name == "sketch"


async def test_when_the_last_who_waits_gives_up_the_build_ends_and_leaves_nothing(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def endless(template: Template, workshop: Workshop) -> Manifest:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        raise AssertionError

    wait = asyncio.ensure_future(pool(tmp_path, sketch(endless)).ensure_template("sketch", "x86_64", silent))
    await asyncio.sleep(0.05)
    wait.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), 5)
    assert left(tmp_path) == []


async def test_a_template_nobody_knows_is_named_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        await pool(tmp_path, sketch()).ensure_template("debain:12", "x86_64", silent)
    assert "sketch" in caught.value.fix
    assert "ubuntu:24.04" in caught.value.fix


async def test_a_template_for_another_architecture_is_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await pool(tmp_path, sketch()).ensure_template("sketch", "riscv64", silent)
    assert "x86_64" in caught.value.why


async def test_a_full_disk_is_found_before_the_build_with_numbers(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await pool(tmp_path, sketch(never, needs=1 << 60)).ensure_template("sketch", "x86_64", silent)
    assert "1024PiB" in caught.value.why or "are needed" in caught.value.why
    assert "are free" in caught.value.why


async def test_a_disk_that_fills_during_the_build_is_an_ordinary_error(tmp_path: Path) -> None:
    async def full(template: Template, workshop: Workshop) -> Manifest:
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable) as caught:
        await pool(tmp_path, sketch(full)).ensure_template("sketch", "x86_64", silent)
    assert "No space left" in caught.value.why
    assert left(tmp_path) == []


async def test_sweep_removes_what_is_half_made_and_keeps_what_is_whole(tmp_path: Path) -> None:
    swept = pool(tmp_path, sketch())
    made = await swept.ensure_template("sketch", "x86_64", silent)
    before = left(tmp_path)
    (tmp_path / "s/building/abc/root/etc").mkdir(parents=True)
    (tmp_path / "s/images/sha256-half").mkdir()
    (tmp_path / "s/images/sha256-half/disk.qcow2").write_bytes(b"half")
    (tmp_path / "s/recipes/dangling").symlink_to("../images/sha256-gone")
    (tmp_path / "s/building/abc.part").write_bytes(b"to be resumed")
    await swept.sweep()
    assert left(tmp_path) == sorted([*before, "abc.part"])
    assert swept.find(made.digest) == made


async def test_partial_downloads_nobody_resumes_are_swept_after_a_week(tmp_path: Path) -> None:
    (tmp_path / "s/building").mkdir(parents=True)
    old = tmp_path / "s/building/abc.part"
    old.write_bytes(b"old")
    os.utime(old, (1, 1))
    await pool(tmp_path).sweep()
    assert not old.exists()


async def test_a_deleted_image_is_gone_and_deleting_twice_is_fine(tmp_path: Path) -> None:
    there = pool(tmp_path, sketch())
    made = await there.ensure_template("sketch", "x86_64", silent)
    await there.delete(made.digest)
    await there.delete(made.digest)
    assert (there.find(made.digest), left(tmp_path)) == (None, [])


async def test_collect_removes_what_is_old_and_has_no_owner(tmp_path: Path) -> None:
    there = pool(tmp_path, sketch(), sketch(ingredients="2", arch="aarch64"))
    kept = await there.ensure_template("sketch", "x86_64", silent)
    lost = await there.ensure_template("sketch", "aarch64", silent)
    await there.collect({kept.digest}, 3600)
    assert there.find(lost.digest) == lost
    await there.collect({kept.digest}, -1)
    assert (there.find(kept.digest), there.find(lost.digest)) == (kept, None)


KILLED = """
import asyncio, sys
from pathlib import Path
from roost.host.paths import Paths
from roost.storage import images
from tests.conformance.test_images import Sketch, quick, silent

async def build(template, workshop):
    print("building", flush=True)
    (workshop.scratch / "root").mkdir()
    (workshop.scratch / "root" / "file").write_bytes(b"x" * 1000)
    return await quick(template, workshop)

def stop(*_):
    print("reached", flush=True)
    import time, os, signal
    os.kill(os.getpid(), signal.SIGKILL)

step = sys.argv[2]
if step == "sealed":
    images.Images._publish = stop
if step == "manifest":
    images.files.atomic_write = stop
if step == "renamed":
    images.files.sync_directory = lambda path: stop() if path.name == "images" else None
pool = images.Images(Paths(Path(sys.argv[1]) / "s", Path(sys.argv[1]) / "r"), built=[Sketch("sketch", "x86_64", "", "1", 0, build)])
asyncio.run(pool.ensure_template("sketch", "x86_64", silent))
"""


@pytest.mark.parametrize(("step", "visible"), [("manifest", 0), ("sealed", 0), ("renamed", 1)])
async def test_a_daemon_killed_while_it_publishes_leaves_a_whole_image_or_none(
    tmp_path: Path, step: str, visible: int
) -> None:
    done = run(sys.executable, "-c", KILLED, tmp_path, step)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGKILL, ["building", "reached"]), done.stderr
    after = pool(tmp_path, sketch())
    assert len(after.all()) == visible
    await after.sweep()
    assert list((tmp_path / "s/building").iterdir()) == []
    assert (await after.ensure_template("sketch", "x86_64", silent)).name == "sketch"
    assert len(after.all()) == 1


@needs_qemu_img
async def test_an_uploaded_qcow2_becomes_a_clean_one_with_the_same_content(tmp_path: Path) -> None:
    source = a_qcow2(tmp_path, "-c", "-o", "cluster_size=4k")
    there = pool(tmp_path)
    made = await there.ensure_upload(blocks(source.read_bytes()), 64 * MiB, silent, name="mine")
    assert (made.format, made.virtual_size, made.name) == ("qcow2", 16 * MiB, "mine")
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", source, there.files(made.digest).disk)
    again = await there.ensure_upload(blocks(source.read_bytes()), 64 * MiB, silent)
    assert again.digest == made.digest


@needs_qemu_img
async def test_an_uploaded_raw_disk_takes_only_its_data(tmp_path: Path) -> None:
    data = os.urandom(MiB) + bytes(63 * MiB)
    made = await pool(tmp_path).ensure_upload(blocks(data), 64 * MiB, silent)
    assert made.virtual_size == 64 * MiB
    assert made.size < 3 * MiB


@needs_qemu_img
@pytest.mark.parametrize("size", [None, 32 * MiB])
async def test_a_disk_over_an_image_is_instantly_there_and_qemu_agrees_with_it(
    tmp_path: Path, size: int | None
) -> None:
    there = pool(tmp_path)
    made = await there.ensure_upload(blocks(a_qcow2(tmp_path).read_bytes()), 64 * MiB, silent)
    machine = Paths(tmp_path / "s", tmp_path / "r").machine("m")
    machine.keep.mkdir(parents=True)
    await layers(tmp_path).create_disk(Base(image=made.digest), machine, size)
    target = machine.disk
    info = json.loads(qemu_img("info", "-f", "qcow2", "--output=json", target))
    assert info["virtual-size"] == (size or 16 * MiB)
    assert Path(info["full-backing-filename"]).resolve() == there.files(made.digest).disk
    assert run("qemu-io", "-f", "qcow2", "-c", "write -P 7 2M 1M", target).returncode == 0
    assert json.loads(qemu_img("check", "-f", "qcow2", "--output=json", target))["check-errors"] == 0
    assert target.stat().st_mode & 0o777 == 0o600


@needs_qemu_img
async def test_a_disk_smaller_than_its_image_is_refused(tmp_path: Path) -> None:
    there = pool(tmp_path)
    made = await there.ensure_upload(blocks(bytes(16 * MiB)), 64 * MiB, silent)
    with pytest.raises(Invalid) as caught:
        await layers(tmp_path).create_disk(Base(image=made.digest), MachineFiles(tmp_path, tmp_path), 8 * MiB)
    assert "16MiB" in caught.value.fix


async def test_an_upload_larger_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="too large"):
        await pool(tmp_path).ensure_upload(blocks(bytes(3 * MiB)), 2 * MiB, silent)
    assert left(tmp_path) == []


@pytest.mark.fault(60)
async def test_an_upload_with_another_hash_than_it_should_have_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="not what it should be"):
        await pool(tmp_path).ensure_upload(blocks(bytes(MiB)), 2 * MiB, silent, sha256="0" * 64)
    assert left(tmp_path) == []


async def test_a_wish_right_after_a_build_was_given_up_starts_a_new_one(tmp_path: Path) -> None:
    builds: list[asyncio.Event] = []

    async def first_hangs(template: Template, workshop: Workshop) -> Manifest:
        builds.append(asyncio.Event())
        if len(builds) == 1:
            await asyncio.sleep(3600)
        return await quick(template, workshop)

    there = pool(tmp_path, sketch(first_hangs))
    wait = asyncio.ensure_future(there.ensure_template("sketch", "x86_64", silent))
    await asyncio.sleep(0.02)
    wait.cancel()
    await asyncio.wait([wait])
    assert (await there.ensure_template("sketch", "x86_64", silent)).name == "sketch"
    assert len(builds) == 2


async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(MiB)
        raise NotStarted("the client went away")

    with pytest.raises(NotStarted):
        await pool(tmp_path).ensure_upload(broken(), 64 * MiB, silent)
    assert left(tmp_path) == []


@needs_qemu_img
async def test_an_image_from_a_url_is_downloaded_once_and_needs_no_server_after(tmp_path: Path) -> None:
    content = a_qcow2(tmp_path).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    there = pool(tmp_path, allow=HERE)

    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", Content_Length=len(content)) + content)

    async with running(serve) as server:
        made = await there.ensure_url(f"{server.url}/disk.qcow2", sha256, 64 * MiB, silent)
    assert await there.ensure_url(f"{server.url}/disk.qcow2", sha256, 64 * MiB, silent) == made
    assert list((tmp_path / "s/building").iterdir()) == []


@pytest.mark.fault(60)
async def test_an_image_with_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    async def serve(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", Content_Length=MiB) + bytes(MiB))

    async with running(serve) as server:
        with pytest.raises(Invalid, match="not what was asked for"):
            await pool(tmp_path, allow=HERE).ensure_url(f"{server.url}/disk.raw", "0" * 64, 64 * MiB, silent)
    assert left(tmp_path) == []


@needs_qemu_img
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_cloud_image_is_found_verified_and_taken(tmp_path: Path, algorithm: str) -> None:
    content = a_qcow2(tmp_path).read_bytes()
    listed = f"{hashlib.new(algorithm, content).hexdigest()} *cloud-amd64.img\n".encode()

    async def mirror(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        body = {"/rel/1/SUMS": listed, "/rel/1/cloud-amd64.img": content}[path]
        writer.write(head("200 OK", Content_Length=len(body)) + body)

    async with running(mirror) as server:
        entry = Entry("cloud:1", server.url, "rel/1", "cloud-{arch}.img", "SUMS", algorithm, {"x86_64": "amd64"})
        there = pool(tmp_path, allow=HERE, cloud=[entry])
        made = await there.ensure_template("cloud:1", "x86_64", silent)
    assert (made.name, made.arch, made.virtual_size) == ("cloud:1", "x86_64", 16 * MiB)
    assert there.offers("cloud:1", "x86_64")
    assert not there.offers("cloud:1", "aarch64")


@pytest.mark.fault(60)
async def test_a_cloud_image_that_a_mirror_swapped_is_refused(tmp_path: Path) -> None:
    async def mirror(path: str, headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        body = f"{'0' * 64}  cloud-amd64.img\n".encode() if path == "/rel/SUMS" else bytes(MiB)
        writer.write(head("200 OK", Content_Length=len(body)) + body)

    async with running(mirror) as server:
        entry = Entry("cloud:1", server.url, "rel", "cloud-{arch}.img", "SUMS", "sha256", {"x86_64": "amd64"})
        there = pool(tmp_path, allow=HERE, cloud=[entry])
        with pytest.raises(Invalid, match="not what was asked for"):
            await there.ensure_template("cloud:1", "x86_64", silent)
    assert left(tmp_path) == []
