"""Verbs for programs on a daemon with fake keepers: what they print, and the codes they end with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Roost
from tests.unit.client.served import Served

Make = Callable[..., None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "app.wasm"
    path.write_bytes(b"\0asm\1\0\0\0printed\n")
    return path


@pytest.fixture
def make(roost: Roost, file: Path) -> Iterator[Make]:
    """Makes programs that are gone after the test."""
    made: list[str] = []

    def detach(name: str, *flags: str) -> None:
        made.append(name)
        assert roost("run", "--detach", "--name", name, *flags, str(file)).code == 0

    yield detach
    roost("program", "delete", *made, "--ignore-missing") if made else None


def test_detach_says_what_runs_and_what_is_next(roost: Roost, file: Path) -> None:
    result = roost("run", "--detach", "--name", "told", str(file), "an", "--argument")
    assert (result.code, result.out) == (0, "told runs; next: roost logs told\n")
    found = json.loads(roost("show", "told", "-o", "json").out)
    assert found["spec"]["arguments"] == ["an", "--argument"]
    roost("delete", "told")


def test_detach_passes_the_policy_on(roost: Roost, make: Make, tmp_path: Path) -> None:
    lent, env, limits = ("--fs", f"{tmp_path}:/data:ro"), ("--env", "A=b"), ("--memory", "64MiB", "--wall", "5m")
    make("full", *lent, *env, *limits, "--net", "example.org:443", "--publish", "8080:80", "--restart", "on-failure")
    spec = json.loads(roost("get", "program", "full", "-o", "json").out)["spec"]
    policy = spec["policy"]
    assert spec["restart"] == "on-failure"
    assert policy["fs"] == [{"source": str(tmp_path), "target": "/data", "writable": False}]
    assert (policy["env"], policy["net"]) == ({"A": "b"}, ["example.org:443"])
    assert policy["publish"] == [{"host_ip": "127.0.0.1", "host_port": 8080, "port": 80}]
    assert (policy["memory"], policy["wall"]) == (64 << 20, 300.0)


def test_restart_no_is_never(roost: Roost, make: Make) -> None:
    make("once", "--restart", "no")
    assert json.loads(roost("show", "once", "-o", "json").out)["spec"]["restart"] == "never"


def test_a_program_without_a_name_gets_a_pleasant_one(roost: Roost, file: Path) -> None:
    name = roost("run", "--detach", "-o", "name", str(file)).out.strip()
    assert "-" in name
    assert roost("delete", name).out == f"{name} is deleted\n"


def test_a_file_that_is_not_there_makes_no_program(roost: Roost, tmp_path: Path) -> None:
    result = roost("run", "--detach", "--name", "none", str(tmp_path / "none"))
    assert result.code == 3
    assert "does not exist" in result.err
    assert roost("program", "show", "none").code == 3


def test_a_name_that_is_taken_is_a_conflict(roost: Roost, make: Make, file: Path) -> None:
    make("taken")
    assert roost("run", "--detach", "--name", "taken", str(file)).code == 4


def test_list_shows_programs_beside_machines(roost: Roost, make: Make) -> None:
    make("beside")
    roost("launch", "tiny", "machine-beside")
    listed = {it["name"]: it["kind"] for it in json.loads(roost("list", "-o", "json").out)}
    assert (listed["beside"], listed["machine-beside"]) == ("program", "machine")
    table = roost("list").out
    assert "IMAGE" in table
    assert "RESTARTED" in table


def test_program_list_shows_programs_only(roost: Roost, make: Make) -> None:
    make("only")
    assert {it["kind"] for it in json.loads(roost("program", "list", "-o", "json").out)} == {"program"}


@pytest.mark.parametrize(
    "words", [("logs", "logged"), ("program", "logs", "logged"), ("logs", "logged", "--follow")], ids=str
)
def test_logs_print_what_it_printed(roost: Roost, make: Make, words: tuple[str, ...]) -> None:
    make("logged")
    assert "printed" in roost(*words).out


@pytest.mark.parametrize("verb", [(), ("program",)], ids=["plain", "program"])
def test_programs_are_stopped_started_and_restarted_by_name(roost: Roost, make: Make, verb: tuple[str, ...]) -> None:
    make("power")
    assert roost(*verb, "stop", "power").out == "power is stopped\n"
    assert roost(*verb, "stop", "power").out == "power is already stopped\n"
    assert roost(*verb, "start", "power").code == 0
    assert roost(*verb, "restart", "power").code == 0
    assert json.loads(roost("show", "power", "-o", "json").out)["status"]["phase"] == "running"


def test_a_name_of_both_is_asked_about(roost: Roost, make: Make) -> None:
    make("both")
    roost("launch", "tiny", "both")
    for verb in ("stop", "logs", "show", "delete"):
        result = roost(verb, "both")
        assert (result.code, "a machine and a program have this name" in result.err) == (4, True)
    assert roost("program", "stop", "both").out == "both is stopped\n"


def test_what_has_no_name_is_not_found(roost: Roost) -> None:
    result = roost("stop", "nobody")
    assert result.code == 3
    assert "no program has that name either" in result.err


def test_pause_is_for_machines(roost: Roost, make: Make) -> None:
    make("paused")
    assert roost("pause", "paused").code == 3


def test_delete_all_means_programs_too(roost: Roost, make: Make) -> None:
    make("one")
    asked = roost("delete", "--all")
    assert (asked.code, "program" in asked.err) == (2, True)
    assert "one is deleted" in roost("delete", "--all", "--yes").out.splitlines()
    assert (again := roost("delete", "--all", "--yes")).code == 0 and again.out == ""


def test_completion_knows_programs(roost: Roost, make: Make) -> None:
    make("completed")
    assert "completed" in roost("__complete", "--", "logs", "").out.split()
    assert "completed" in roost("__complete", "--", "program", "stop", "").out.split()
    assert "upload" in roost("__complete", "--", "program", "").out.split()


def test_apply_makes_a_program_that_waits_for_its_file(roost: Roost, file: Path, tmp_path: Path) -> None:
    import hashlib

    document = tmp_path / "program.yaml"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    document.write_text(
        f"kind: program\nname: applied\nspec: {{file: app.wasm, sha256: {digest}, policy: {{memory: 64MiB}}}}\n"
    )
    assert roost("apply", "-f", str(document)).out == "program/applied created\n"
    assert json.loads(roost("show", "applied", "-o", "json").out)["status"]["phase"] == "pending"
    assert roost("program", "upload", "applied", str(file)).out == "applied has its file\n"
    assert roost("diff", "-f", str(document)).code == 0
    assert roost("program", "delete", "applied").code == 0


def test_quotas_of_programs_are_set(roost: Roost, daemon: Served) -> None:
    assert roost("project", "create", "few", "--programs", "1").code == 0
    assert json.loads(roost("get", "project", "few", "-o", "json").out)["spec"]["quota"]["programs"] == 1
