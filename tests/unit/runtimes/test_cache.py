"""The private cache: what is not ours alone and whole is never given out, and is replaced."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.errors import Invalid, Unavailable
from roost.runtimes.cache import Cache, place


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("ROOST_CACHE", str(tmp_path / "cache"))
    return Cache("things", 1000)


def writing(text: str) -> Callable[[str], None]:
    def write(path: str) -> None:
        Path(path).write_text(text)

    return write


def tree(path: str) -> None:
    Path(path).mkdir()
    (Path(path) / "inner").write_text("t" * 400)


def test_an_entry_is_made_once_and_found_from_then_on(cache: Cache) -> None:
    assert cache.find("a") is None
    assert Path(cache.make("a", writing("first"))).read_text() == "first"
    assert Path(cache.make("a", writing("second"))).read_text() == "first"
    assert cache.find("a") == f"{cache.directory()}/a"
    assert Path(cache.directory(), "a").stat().st_mode & 0o777 == 0o600
    assert Path(cache.directory()).stat().st_mode & 0o777 == 0o700


def test_a_tree_is_an_entry_too(cache: Cache) -> None:
    made = Path(cache.make("tree", tree))
    assert (made / "inner").is_file()
    assert made.stat().st_mode & 0o777 == 0o700


def _loosen(path: Path) -> None:
    path.chmod(0o620)


def _link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def _point(path: Path) -> None:
    path.rename(path.with_name("other"))
    path.symlink_to("other")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.fault(92)
@pytest.mark.parametrize("attack", [_loosen, _link, _point, _pipe])
def test_an_entry_that_others_may_reach_is_not_given_out_but_made_anew(
    cache: Cache, attack: Callable[[Path], None]
) -> None:
    made = Path(cache.make("a", writing("ours")))
    attack(made)
    assert cache.find("a") is None
    assert cache.open("a") is None
    assert Path(cache.make("a", writing("new"))).read_text() == "new"
    assert not made.is_symlink()


@pytest.mark.fault(92)
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_an_entry_of_somebody_else_is_not_given_out(cache: Cache) -> None:
    made = cache.make("a", writing("ours"))
    os.chown(made, 12345, 12345)
    assert cache.find("a") is None


def test_a_directory_that_others_may_write_is_refused(cache: Cache) -> None:
    cache.make("a", writing("ours"))
    Path(cache.directory()).chmod(0o777)
    assert cache.find("a") is None
    with pytest.raises(Unavailable, match="others may write"):
        cache.directory()


def test_a_link_in_place_of_the_directory_is_refused(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    Path(place()).mkdir(mode=0o700)
    Path(place(), "things").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="not a directory"):
        cache.make("a", writing("ours"))


def test_what_can_not_be_made_leaves_nothing(cache: Cache) -> None:
    def fail(path: str) -> None:
        tree(path)
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        cache.make("a", fail)
    assert [path.name for path in Path(cache.directory()).iterdir() if not path.name.startswith(".lock")] == []


def test_the_rest_of_a_maker_that_was_killed_is_swept_away(cache: Cache) -> None:
    tree(f"{cache.directory()}/.new-a")
    assert Path(cache.make("a", writing("whole"))).read_text() == "whole"
    assert not Path(cache.directory(), ".new-a").exists()


def test_of_many_makers_one_makes_it(cache: Cache) -> None:
    made: list[int] = []

    def write(path: str) -> None:
        made.append(1)
        Path(path).write_text("x")

    makers = [threading.Thread(target=cache.make, args=("a", write)) for _ in range(8)]
    [maker.start() for maker in makers]
    [maker.join() for maker in makers]
    assert made == [1]


def test_the_bound_takes_what_was_not_used_for_longest_and_spares_what_is_open(cache: Cache) -> None:
    for number, key in enumerate("ab"):
        os.utime(cache.make(key, tree), (number, number))
    held = cache.open("a")
    assert held is not None
    os.utime(f"{cache.directory()}/a", (0, 0))
    cache.make("d", tree)
    os.close(held)
    assert [key for key in "abd" if cache.find(key)] == ["a", "d"]


@pytest.mark.parametrize("key", ["", "../a", ".a", "a/b", "x" * 161, "a\0"])
def test_a_key_is_no_path(cache: Cache, key: str) -> None:
    with pytest.raises(Invalid):
        cache.find(key)


def test_the_place_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/me/cache")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert place() == "/home/me/cache/roost"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert place() == "/var/cache/roost"
