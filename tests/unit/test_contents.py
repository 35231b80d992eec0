"""The contents of programs: whole or not at all, once on disk, seen by nobody who did not bring them, gone with the last."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from roost.control import contents
from roost.control.contents import Contents
from roost.errors import Invalid, Unavailable
from roost.host.paths import Paths

DATA = b"\0asm" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path, tmp_path / "run")


async def pieces(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


def kept(paths: Paths) -> list[str]:
    return [entry.name for entry in paths.contents.iterdir()]


async def test_a_content_is_kept_once_for_all_programs(paths: Paths) -> None:
    store = Contents(paths)
    await store.store("one", DIGEST, "a.wasm", pieces())
    await store.store("two", DIGEST, "b.wasm", pieces())
    first, second = paths.program("one").content(DIGEST, "a.wasm"), paths.program("two").content(DIGEST, "b.wasm")
    assert first.samefile(second)
    assert first.read_bytes() == DATA
    assert kept(paths) == [f"sha256-{DIGEST}"]


async def test_it_goes_with_the_last_program(paths: Paths) -> None:
    store = Contents(paths)
    await store.store("one", DIGEST, "a.wasm", pieces())
    await store.store("two", DIGEST, "b.wasm", pieces())
    await store.forget("one")
    assert kept(paths) == [f"sha256-{DIGEST}"]
    await store.forget("two")
    assert kept(paths) == []


@pytest.mark.fault(19)
async def test_another_content_than_the_digest_tells_is_refused(paths: Paths) -> None:
    with pytest.raises(Invalid, match="not uploaded"):
        await Contents(paths).store("one", "0" * 64, "a.wasm", pieces())
    assert kept(paths) == []
    assert not paths.program("one").directory.exists()


@pytest.mark.fault(19)
async def test_to_know_a_digest_is_not_enough(paths: Paths) -> None:
    await Contents(paths).store("one", DIGEST, "a.wasm", pieces())
    assert not paths.program("two").content(DIGEST, "a.wasm").exists()


async def test_a_content_has_a_bound(paths: Paths) -> None:
    with pytest.raises(Invalid, match="not uploaded"):
        await Contents(paths, largest=3000).store("one", DIGEST, "a.wasm", pieces())
    assert kept(paths) == []


async def test_an_upload_leaves_the_host_some_space(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "KEPT_FREE", 1 << 62)
    with pytest.raises(Unavailable):
        await Contents(paths).store("one", DIGEST, "a.wasm", pieces())
    assert kept(paths) == []


async def test_a_new_content_takes_the_place_of_the_old_one(paths: Paths) -> None:
    store, other = Contents(paths), hashlib.sha256(b"other").hexdigest()
    await store.store("one", DIGEST, "a.wasm", pieces())
    await store.store("one", other, "a.wasm", pieces(b"other"))
    await store.keep_only("one", other)
    assert kept(paths) == [f"sha256-{other}"]


async def test_what_a_killed_daemon_left_of_an_upload_is_swept(paths: Paths) -> None:
    paths.contents.mkdir()
    (paths.contents / ".part-x").write_bytes(b"half")
    (paths.contents / f"sha256-{DIGEST}").write_bytes(DATA)
    await Contents(paths).sweep()
    assert kept(paths) == []
