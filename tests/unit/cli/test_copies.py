"""The verbs clone, snapshot, snapshots and restore, and what they print, on a daemon whose reconcilers are a script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.unit.cli.conftest import Roost
from tests.unit.client.scripted import Scripted, scripted


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    """Stands in the place of the daemon with fake guests."""
    with scripted(tmp_path_factory.mktemp("d")) as running:
        yield running


@pytest.fixture
def web(roost: Roost) -> Iterator[str]:
    roost("launch", "tiny", "web", "--publish", "8080:80")
    yield "web"
    snapshots = roost("get", "snapshots", "-o", "name").out.split()
    roost("delete", "snapshot", *snapshots, "--ignore-missing")
    roost("delete", "--all", "--yes")


def test_launch_says_when_a_warm_template_had_it_running(roost: Roost) -> None:
    result = roost("launch", "tiny", "hot", "--tpm")
    assert "hot runs after 0.5 s (tcg, warm)" in result.out
    assert json.loads(roost("show", "hot", "-o", "json").out)["spec"]["tpm"] is True
    assert json.loads(roost("launch", "tiny", "booted", "--cold", "-o", "json").out)["spec"]["cold"] is True


def test_clone_says_what_was_made_and_how_long_the_parent_stood_still(roost: Roost, web: str) -> None:
    result = roost("clone", web, "kid", "--count", "2")
    assert result.code == 0
    assert "kid-1 runs after 0.25 s; next: roost exec kid-1 -- uname -a\nkid-2 runs" in result.out
    assert result.out.endswith("\nweb stood still for 21 ms\n")
    assert result.err == (
        "warning: 127.0.0.1:8080 of this host leads to the machine it is a copy of; nothing is published by a copy\n"
    )


def test_a_clone_needs_no_name(roost: Roost, web: str) -> None:
    assert re.fullmatch(r"web-\w+-\w+\n", roost("clone", web, "-q").out)


def test_the_objects_of_clones_are_an_array_in_which_errors_have_their_place(roost: Roost, web: str) -> None:
    roost("launch", "tiny", "kid-1")
    result = roost("clone", web, "kid", "--count", "2", "-o", "json")
    taken, made = json.loads(result.out)
    assert (result.code, taken["name"], taken["error"]["code"], made["kind"]) == (1, "kid-1", "conflict", "machine")
    assert 'error: machine "kid-1" exists already' in result.err
    assert roost("clone", web, "kid", "--count", "3", "-o", "name").out == "kid-3\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("missing",), 3),
        (("web", "web"), 4),
        (("web", "unlucky"), 6),
        (("web", "Bad_Name"), 2),
        (("web", "kid", "--count", "0"), 2),
    ],
)
def test_when_nothing_was_made_the_code_is_that_of_the_error(
    words: tuple[str, ...], code: int, roost: Roost, web: str
) -> None:
    assert roost("clone", *words).code == code


def test_clone_passes_every_option_on(roost: Roost, web: str) -> None:
    roost("stop", web)
    (kid,) = json.loads(roost("clone", web, "kid", "--keep-identity", "--no-memory", "--start", "-o", "json").out)
    source = kid["spec"]["source"]
    assert (source["machine"], source["keep_identity"], source["memory"]) == ("web", True, False)
    assert (kid["spec"]["power"], kid["status"]["phase"]) == ("running", "running")
    assert roost("clone", web, "off").out == "off is stopped; next: roost start off\n"


def test_snapshot_says_what_was_kept_and_how_to_go_back(roost: Roost, web: str) -> None:
    said = "web.ready is ready (memory and disk, 96MiB); web stood still for 30 ms; next: roost restore web ready\n"
    assert roost("snapshot", web, "ready").out == said
    assert "(disk, 96MiB); next" in roost("snapshot", web, "disk", "--no-memory").out
    assert re.match(r"web\.\d{8}-\d{6}(-\d)? is ready", roost("snapshot", web).out)
    assert roost("snapshot", web, "ready").code == 4
    assert roost("snapshot", web, "unlucky").code == 6
    assert roost("snapshot", "missing").code == 3


def test_snapshots_are_listed_the_oldest_first(roost: Roost, web: str) -> None:
    roost("snapshot", web, "z-first", "--expire", "7d")
    roost("snapshot", web, "a-second", "--no-memory")
    lines = roost("snapshots", web).out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "TAKEN", "MEMORY", "OWN", "SHARED", "EXPIRES"]
    assert re.match(r"web\.z-first +ready +\S+Z +yes +96MiB +- +\S+Z$", lines[1])
    assert re.match(r"web\.a-second +ready +\S+Z +no +96MiB +- +never$", lines[2])
    found = json.loads(roost("snapshots", web, "-o", "json").out)
    assert [it["name"] for it in found] == ["web.z-first", "web.a-second"]
    assert roost("snapshots", "missing").code == 3
    assert json.loads(roost("snapshots", "-o", "json").out) == found


def test_snapshots_are_taken_by_themselves_until_they_are_not(roost: Roost, web: str) -> None:
    said = "a snapshot of web is taken every 1h while it runs, the last 24 stay, each goes after 7d\n"
    assert roost("snapshot", web, "--every", "1h", "--keep", "24", "--expire", "7d").out == said
    schedule = json.loads(roost("show", web, "-o", "json").out)["spec"]["schedule"]
    assert schedule == {"every": 3600.0, "expire": 604800.0, "keep": 24, "memory": True}
    assert "no more snapshots" in roost("snapshot", web, "--every", "off").out
    assert json.loads(roost("show", web, "-o", "json").out)["spec"]["schedule"] is None


@pytest.mark.parametrize(
    "words",
    [
        ("ready", "--every", "1h"), ("--keep", "2"), ("--every", "often"), ("--every", "off", "--keep", "2"), ("--every", "5s"),
        ("a", "--expire", "now"),
    ],
)  # fmt: skip
def test_snapshot_refuses_what_makes_no_sense(words: tuple[str, ...], roost: Roost, web: str) -> None:
    assert roost("snapshot", web, *words).code == 2


def test_restore_puts_a_machine_back(roost: Roost, web: str) -> None:
    roost("snapshot", web, "ready")
    roost("stop", web)
    said = "web is back at web.ready: web runs; next: roost exec web -- uname -a\n"
    assert roost("restore", web, "ready", "--yes").out.replace(" after 0.50 s", "") == said
    assert json.loads(roost("restore", web, "web.ready", "-o", "json").out)["status"]["restored"] == 2
    assert roost("restore", web, "missing").code == 3


def test_restore_asks_where_somebody_can_answer(roost: Roost, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    roost("snapshot", web, "ready")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "no\n", raising=False)
    assert roost("restore", web, "ready").code == 2
    assert json.loads(roost("show", web, "-o", "json").out)["status"]["restored"] == 0
    assert roost("restore", web, "ready", "--yes").code == 0


def test_restore_as_leaves_the_machine_alone(roost: Roost, web: str) -> None:
    roost("snapshot", web, "ready")
    assert "web2 runs" in roost("restore", web, "ready", "--as", "web2").out
    (copy,) = json.loads(roost("restore", web, "ready", "--as", "web3", "-o", "json").out)
    assert copy["spec"]["source"]["snapshot"] == "web.ready"
    assert roost("restore", web, "ready", "--as", "web2").code == 4
    assert json.loads(roost("show", web, "-o", "json").out)["status"]["restored"] == 0


def test_a_snapshot_is_cloned_and_deleted_like_anything_else(roost: Roost, web: str) -> None:
    roost("snapshot", web, "ready")
    assert "stood still" not in roost("clone", "web.ready").out
    assert roost("clone", "web.ready", "kid", "--count", "2", "-q").out == "kid-1\nkid-2\n"
    assert roost("get", "snapshot", "web.ready", "-o", "name").out == "web.ready\n"
    assert roost("delete", "snapshot", "web.ready").out == "web.ready is deleted\n"
    assert roost("delete", "snapshot", "web.ready").code == 3


def test_completion_knows_machines_and_their_snapshots(roost: Roost, web: str) -> None:
    roost("snapshot", web, "ready")

    def after(*words: str) -> list[str]:
        return roost("__complete", "--", *words).out.split()

    assert after("clone", "w") == ["web", "web.ready"]
    assert (after("snapshot", "w"), after("snapshots", "w"), after("restore", "w")) == (["web"], ["web"], ["web"])
    assert (after("restore", "web", ""), after("delete", "snapshot", "")) == (["ready"], ["web.ready"])
    assert "--keep-identity" in after("clone", "--")


def test_doctor_storage_names_what_is_not_as_it_was_written(
    roost: Roost, daemon: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = roost("doctor", "storage")
    assert result.code == 1
    assert re.search(r"^ok +image debian:12 +its digest is right$", result.out, re.MULTILINE)
    assert re.search(r"^missing +layer 7 +its digest is wrong$", result.out, re.MULTILINE)
    assert "layer 7" in result.err
    monkeypatch.setattr(daemon, "report", daemon.report[:1])
    assert roost("doctor", "storage").out.endswith("the storage of this host is whole\n")
    assert json.loads(roost("doctor", "storage", "-o", "json").out)[0]["state"] == "ok"
