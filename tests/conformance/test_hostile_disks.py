"""Hostile disks against the real pool: refused by our judge, and harmless to the jailed tool behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.storage import conversion, formats
from tests.conformance.test_images import MiB, a_qcow2, blocks, left, needs_qemu_img, pool, qemu_img, silent
from tests.qcow2 import header

SECRET = b"the host's secret, which must not leave it".ljust(512, b".")


@needs_qemu_img
@pytest.mark.fault(50)
async def test_a_qcow2_whose_data_are_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET * 2048)
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'secret-copy'},data_file_raw=on", evil, MiB)
    forged = evil.read_bytes().replace(str(tmp_path / "secret-copy").encode(), str(secret).encode() + b"\0" * 5)
    with pytest.raises(Invalid) as caught:
        await pool(tmp_path).ensure_upload(blocks(forged), 64 * MiB, silent)
    assert "data-file" in caught.value.why
    assert left(tmp_path) == []


@needs_qemu_img
@pytest.mark.fault(51)
@pytest.mark.parametrize(
    "backing",
    [
        "{secret}",
        'json:{{"driver":"raw","file":{{"driver":"file","filename":"{secret}"}}}}',
        "nbd:127.0.0.1:1",
        "evil.qcow2",
    ],
)
async def test_a_qcow2_over_a_file_of_the_host_is_refused(tmp_path: Path, backing: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET * 2048)
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-u", "-F", "raw", "-b", backing.format(secret=secret), evil, MiB)
    with pytest.raises(Invalid) as caught:
        await pool(tmp_path).ensure_upload(blocks(evil.read_bytes()), 64 * MiB, silent)
    assert "backing file" in caught.value.why
    assert left(tmp_path) == []


@needs_qemu_img
@pytest.mark.fault(51)
async def test_even_past_our_judge_the_jailed_tool_reaches_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second lock: with the first one picked, the content of the backing file still does not get into the image."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET * 2048)
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-F", "raw", "-b", secret, evil)
    monkeypatch.setattr(formats, "inspect", lambda *_: formats.Checked("qcow2", MiB))
    there = pool(tmp_path)
    made = await there.ensure_upload(blocks(evil.read_bytes()), 64 * MiB, silent)
    assert SECRET[:40] not in there.files(made.digest).disk.read_bytes()


@needs_qemu_img
@pytest.mark.fault(52)
async def test_a_qcow2_header_inside_a_guests_disk_is_content_and_never_followed(tmp_path: Path) -> None:
    """A guest writes, as the first sector of its disk, a header that names a file of the host: the overlay over it is still read as what it is."""
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET * 2048)
    trap = header(backing=str(secret).encode(), virtual=MiB, l1_entries=1)
    raw = tmp_path / "guest.raw"
    raw.write_bytes(trap.ljust(16 * MiB, b"\0"))
    target = tmp_path / "out.qcow2"
    target.touch()
    await conversion.convert(conversion.whole(raw, "raw"), target, "qcow2", "guest", 64 * MiB)
    assert qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, target).strip() == "Images are identical."
    assert SECRET[:40] not in target.read_bytes()


@needs_qemu_img
async def test_a_qcow2_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    whole = a_qcow2(tmp_path).read_bytes()
    with pytest.raises(Invalid, match="damaged or cut off"):
        await pool(tmp_path).ensure_upload(blocks(whole[: len(whole) - 512 * 1024]), 64 * MiB, silent)
    assert left(tmp_path) == []


@needs_qemu_img
async def test_a_small_file_that_unpacks_beyond_the_limit_is_stopped(tmp_path: Path) -> None:
    raw, bomb = tmp_path / "raw", tmp_path / "bomb.qcow2"
    raw.write_bytes(b"A" * 64 * MiB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-c", raw, bomb)
    assert bomb.stat().st_size < 2 * MiB
    with pytest.raises(Invalid) as caught:
        await pool(tmp_path).ensure_upload(blocks(bomb.read_bytes()), 8 * MiB, silent)
    assert "more than" in caught.value.why
    assert left(tmp_path) == []


async def test_a_disk_of_8_eib_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        await pool(tmp_path).ensure_upload(blocks(header(virtual=1 << 63)), MiB, silent)
    assert "not between" in caught.value.why


def test_every_node_for_a_tool_names_its_drivers_and_nothing_below() -> None:
    assert json.loads(conversion.nodes(conversion.whole(Path("x"), "qcow2"))[0].removeprefix("json:")) == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "/source0"},
        "backing": None,
    }
