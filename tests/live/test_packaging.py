"""The units that make Roost a service are units that systemd accepts."""

from __future__ import annotations

import configparser
import subprocess
from pathlib import Path

from tests.checkout import ROOT
from tests.needs import needs_program

PACKAGING = ROOT / "packaging"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(PACKAGING / "roost.service")
    return parser


@needs_program("systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    text = (PACKAGING / "roost.service").read_text().replace("/usr/local/bin/roost", "/bin/true")
    copy = tmp_path / "roost.service"
    copy.write_text(text)
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    assert "roost.service" not in checked.stderr
    assert checked.returncode == 0, checked.stderr


@needs_program("systemd-sysusers")
def test_the_group_is_one_that_systemd_makes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(PACKAGING / "roost.sysusers")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert "roost:" in (tmp_path / "etc" / "group").read_text()


@needs_program("systemd-tmpfiles")
def test_the_directories_are_ones_that_systemd_makes(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\nroost:x:900:\n")
    command = ["systemd-tmpfiles", f"--root={tmp_path}", "--create", str(PACKAGING / "roost.tmpfiles")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "var/lib/roost").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "run/roost").stat().st_mode & 0o777 == 0o750


def test_a_restart_of_the_service_leaves_machines_running() -> None:
    assert unit()["Service"]["KillMode"] == "process"
    assert unit()["Service"]["RuntimeDirectoryPreserve"] == "yes"
