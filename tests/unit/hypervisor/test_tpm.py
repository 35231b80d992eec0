"""A TPM's arguments, and its state as files that a jail wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.errors import Invalid, Unavailable
from roost.hypervisor import tpm


def test_swtpm_speaks_to_its_machine_alone_and_ends_with_it() -> None:
    assert tpm.arguments("/usr/bin/swtpm", "/state", 3) == (
        "/usr/bin/swtpm", "socket", "--tpm2", "--terminate", "--ctrl", "type=unixio,clientfd=3",
        "--tpmstate", "backend-uri=file:///state", "--seccomp", "action=none",
    )  # fmt: skip


def test_a_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    tpm.write(tmp_path / "tpm", {tpm.STATE: b"state"})
    assert tpm.read(tmp_path / "tpm") == {tpm.STATE: b"state"}
    assert (tmp_path / "tpm").stat().st_mode & 0o777 == 0o700
    tpm.write(tmp_path / "tpm", {})
    assert tpm.read(tmp_path / "tpm") == {}


def test_a_machine_that_never_ran_has_no_state(tmp_path: Path) -> None:
    assert tpm.read(tmp_path / "tpm") == {}


def test_a_state_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / tpm.STATE).touch()
    os.truncate(tmp_path / tpm.STATE, 1 << 40)
    with pytest.raises(Invalid):
        tpm.read(tmp_path)


def test_a_new_machine_gets_an_empty_file_that_is_closed_to_others(tmp_path: Path) -> None:
    assert not tpm._make_ready(tmp_path / "tpm", os.getuid())
    assert (tmp_path / "tpm" / tpm.STATE).stat().st_mode & 0o777 == 0o600
    assert tpm.read(tmp_path / "tpm") == {}


def test_a_state_that_is_there_stays(tmp_path: Path) -> None:
    tpm.write(tmp_path, {tpm.STATE: tpm._MAGIC + b"state"})
    assert tpm._make_ready(tmp_path, os.getuid())
    assert tpm.read(tmp_path) == {tpm.STATE: tpm._MAGIC + b"state"}


def test_a_file_that_swtpm_would_take_for_none_and_replace_is_refused(tmp_path: Path) -> None:
    tpm.write(tmp_path, {tpm.STATE: b"state"})
    with pytest.raises(Unavailable, match="TPM"):
        tpm._make_ready(tmp_path, os.getuid())


def test_a_store_that_was_never_begun_is_none(tmp_path: Path) -> None:
    tpm.write(tmp_path, {tpm.STATE: bytes(192)})
    assert not tpm._make_ready(tmp_path, os.getuid())


async def test_without_swtpm_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        await tpm.connect(None, "uid", 1, tmp_path, None)  # type: ignore[arg-type]
    assert "apt-get install --no-install-recommends swtpm" in caught.value.fix
