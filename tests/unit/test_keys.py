"""Keys of encrypted volumes: made once, kept private, told by a command, and never said in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import Invalid, Unavailable
from roost.storage.keys import KeyStore

CANARY = "canary-of-a-passphrase-that-nobody-may-read"


async def test_a_project_has_one_key_until_another_is_made(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    first = await store.current("web")
    passphrase = await store.key("web", first)
    assert await KeyStore(tmp_path / "keys").current("web") == first
    second = await store.rotate("web")
    assert await store.names("web") == [first, second]
    assert await store.current("web") == second
    assert await store.key("web", first) == passphrase
    assert len({passphrase, await store.key("web", second), await store.key("db", await store.current("db"))}) == 3
    assert len(passphrase) == 44
    assert passphrase.isascii()


async def test_only_the_owner_reads_the_keys(tmp_path: Path) -> None:
    await KeyStore(tmp_path / "keys").current("web")
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "web.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.fault(18)
async def test_a_lost_key_is_said_and_no_other_is_made_for_it(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    name = await store.current("web")
    (tmp_path / "web.json").unlink()
    with pytest.raises(Unavailable, match="is not in"):
        await store.key("web", name)
    assert list(tmp_path.iterdir()) == []


async def test_the_name_of_a_lost_key_is_not_given_to_another(tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    name = await store.current("web")
    (tmp_path / "web.json").unlink()
    assert await store.current("web") != name


@pytest.mark.fault(87)
@pytest.mark.parametrize(
    "content", [CANARY, f'{{"current": 1, "keys": {{"key-1": "{CANARY}"}}}}', f'{{"{CANARY}": 1}}']
)
async def test_a_damaged_file_is_an_error_that_says_nothing_of_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "web.json").write_text(content)
    with pytest.raises(Unavailable) as caught:
        await KeyStore(tmp_path).current("web")
    assert CANARY not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"
    assert (tmp_path / "web.json").read_text() == content, "what may be mended is not written over"


async def test_a_command_is_asked_for_the_key_by_its_name(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, ("sh", "-c", f"read name && echo {CANARY}-$name"))
    name = await store.current("web")
    assert await store.key("web", name) == f"{CANARY}-web/{name}".encode()
    assert CANARY not in (tmp_path / "web.json").read_text()


@pytest.mark.fault(87)
@pytest.mark.parametrize(
    "script", ["exit 3", "echo short", "head -c 2000 /dev/zero", "printf '\\377%s' " + CANARY, "true"]
)
async def test_a_command_that_tells_no_passphrase_is_an_error_without_what_it_said(tmp_path: Path, script: str) -> None:
    store = KeyStore(tmp_path, ("sh", "-c", f"{script}; echo {CANARY} >&2; exit $?"))
    with pytest.raises(Unavailable) as caught:
        await store.key("web", "key-1")
    assert CANARY not in str(caught.value)


async def test_a_name_that_is_no_project_reaches_no_file(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        await KeyStore(tmp_path).current("../web")
