"""The doctor's judgement over hosts of many kinds: what is missing, and the exact line that gets it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from roost.config import load
from roost.host import doctor
from roost.host.doctor import EMULATORS, PROGRAMS, Finding, Look, judge, lacking, look, packages

GOOD = Look(
    python=(3, 11),
    arch="x86_64",
    uid=1000,
    user="alice",
    missing_modules=(),
    programs=frozenset({*PROGRAMS, *(f"qemu-system-{arch}" for arch in EMULATORS), "newuidmap"}),
    firmware=True,
    kvm="ok",
    user_namespaces=True,
    apparmor_restricts=False,
    subuids=True,
    cgroup="v2",
    cgroup_ours=True,
    state="/var/lib/roost",
    free=100 << 30,
    deb=True,
)


def finding(seen: Look, name: str) -> Finding:
    return next(each for each in judge(seen) if each.name == name)


def test_a_good_host_lacks_nothing() -> None:
    assert {each.state for each in judge(GOOD)} == {"ok"}


def test_every_finding_that_is_not_ok_says_how_to_mend_it() -> None:
    bad = Look(
        (3, 9), "x86_64", 1000, "alice", ("h11",), frozenset(), False, "denied", False, True, False, "v1", False, "/s", 0, True
    )  # fmt: skip
    assert [each.name for each in judge(bad) if each.state != "ok" and not each.fix] == []
    assert lacking(judge(bad))


@pytest.mark.parametrize(
    ("program", "state", "package"),
    [
        ("qemu-system-x86_64", "missing", "qemu-system-x86"), ("qemu-system-aarch64", "warning", "qemu-system-arm"),
        ("qemu-img", "missing", "qemu-utils"), ("passt", "missing", "passt"), ("mmdebstrap", "warning", "mmdebstrap"),
        ("busybox", "warning", "busybox-static"), ("swtpm", "warning", "swtpm"),
    ],
)  # fmt: skip
def test_a_missing_program_comes_with_the_line_that_installs_it(program: str, state: str, package: str) -> None:
    found = finding(GOOD._replace(programs=GOOD.programs - {program}), program)
    assert found.state == state
    assert found.fix == f"sudo apt-get install --no-install-recommends {package}"


def test_all_packages_can_be_installed_at_once() -> None:
    assert packages(judge(GOOD._replace(programs=frozenset(), firmware=False))) == [
        "busybox-static", "dnsmasq-base", "mmdebstrap", "nftables", "ovmf", "passt", "qemu-system-arm", "qemu-system-misc",
        "qemu-system-x86", "qemu-utils", "swtpm", "uidmap",
    ]  # fmt: skip


@pytest.mark.parametrize(("kvm", "word"), [("denied", "usermod"), ("absent", "modprobe")])
def test_without_kvm_machines_run_but_slowly(kvm: str, word: str) -> None:
    found = finding(GOOD._replace(kvm=kvm), "kvm")
    assert found.state == "warning"
    assert word in found.fix


def test_an_ordinary_user_needs_user_namespaces_and_root_does_not() -> None:
    assert finding(GOOD._replace(user_namespaces=False), "user namespaces").state == "missing"
    assert finding(GOOD._replace(apparmor_restricts=True), "user namespaces").state == "missing"
    assert not lacking(judge(GOOD._replace(user_namespaces=False, uid=0, user="root")))


def test_a_full_disk_is_missing_and_a_small_one_a_warning() -> None:
    assert finding(GOOD._replace(free=100 << 20), "disk").state == "missing"
    assert finding(GOOD._replace(free=5 << 30), "disk").state == "warning"


def test_looking_changes_nothing_and_works_here(tmp_path: Path) -> None:
    config = load({"ROOST_STATE": str(tmp_path / "not" / "there"), "ROOST_RUN": str(tmp_path / "run")})
    assert look(config).free > 0
    assert list(tmp_path.iterdir()) == []


def test_the_modules_looked_for_are_those_that_are_depended_on() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {
        re.split(r"[<>=]", each)[0].replace("-", "_").replace("pyyaml", "yaml") for each in project["dependencies"]
    }
    assert set(doctor.MODULES) == wanted
