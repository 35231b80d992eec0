"""Verbs on a daemon with fake guests: what they print, and the codes they end with."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Roost
from tests.unit.client.served import Served


@pytest.fixture
def web(roost: Roost) -> str:
    return roost("launch", "tiny", "-o", "name").out.strip()


def test_launch_says_what_can_be_done_next(roost: Roost) -> None:
    result = roost("launch", "tiny", "said", "--memory", "256MiB", "--publish", "8080:80")
    assert result.code == 0
    assert "said runs after" in result.out
    assert "(tcg)" in result.out
    assert "next: roost exec said -- uname -a" in result.out


def test_launch_passes_every_option_on(roost: Roost, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA me\n")
    (tmp_path / "data").write_text("#cloud-config\n")
    sizes = ("--cpus", "2", "--memory", "1GiB", "--disk", "2GiB", "--firmware", "direct", "--accelerator", "tcg")
    reach = ("--network", "user", "--publish", "[::1]:53:53/udp", "--hostname", "other", "--user", "alice")
    words = (
        "launch",
        "tiny",
        "full",
        *sizes,
        *reach,
        "--ephemeral",
        "--label",
        "tier=front",
        "--no-wait",
        "-o",
        "json",
    )
    result = roost(*words, "--ssh-key", str(tmp_path / "key.pub"), "--user-data", str(tmp_path / "data"))
    spec = json.loads(result.out)["spec"]
    assert (spec["cpus"], spec["memory"], spec["disk"], spec["firmware"], spec["accelerator"]) == (
        2,
        1 << 30,
        2 << 30,
        "direct",
        "tcg",
    )
    assert spec["publish"] == [{"host_port": 53, "guest_port": 53, "host_ip": "::1", "protocol": "udp"}]
    assert (spec["hostname"], spec["ssh_keys"], spec["ephemeral"]) == ("other", ["ssh-ed25519 AAAA me"], True)
    assert spec["users"] == [{"name": "alice", "ssh_keys": ["ssh-ed25519 AAAA me"], "sudo": True}]
    assert "full" in roost("list", "-l", "tier=front", "-o", "name").out


def test_many_machines_are_numbered(roost: Roost) -> None:
    assert roost("launch", "tiny", "kid", "--count", "3", "-q").out.split() == ["kid-1", "kid-2", "kid-3"]


def test_a_name_that_is_taken_is_4(roost: Roost, web: str) -> None:
    assert roost("launch", "tiny", web).code == 4


def test_ten_mistakes_are_told_at_once(roost: Roost) -> None:
    result = roost(
        "launch",
        "tiny",
        "bad",
        "--cpus",
        "0",
        "--memory",
        "1MiB",
        "--hostname=-x",
        "--disk",
        "100",
        "--ssh-key",
        "ssh-x\ny",
    )
    assert result.code == 2
    assert [field for field in ("cpus", "memory", "hostname", "disk", "ssh_keys") if field not in result.err] == []


def test_list_prints_a_table_or_the_apis_own_objects(roost: Roost, web: str) -> None:
    assert re.search(rf"^{web} +running +tiny +1 +512MiB +tcg", roost("list").out, re.MULTILINE)
    found = json.loads(roost("list", "-o", "json").out)
    assert set(found[0]) == {"kind", "project", "name", "meta", "spec", "status"}


def test_global_options_may_stand_before_the_verb(roost: Roost, web: str) -> None:
    assert roost("-o", "name", "list").out == roost("list", "-o", "name").out


def test_another_project_is_empty_or_unknown(roost: Roost) -> None:
    roost("project", "create", "lab")
    assert roost("--project", "lab", "list", "-o", "json").out == "[]\n"
    assert roost("list", "--project", "nowhere").code == 3


def test_power_verbs_say_when_there_is_nothing_to_do(roost: Roost, web: str) -> None:
    assert roost("start", web).out == f"{web} already runs\n"
    assert roost("stop", web).out == f"{web} is stopped\n"
    assert roost("stop", web).out == f"{web} is already stopped\n"
    assert roost("start", web).out == f"{web} runs\n"
    assert roost("pause", web).out == f"{web} is paused\n"
    assert roost("resume", web).out == f"{web} goes on\n"
    assert roost("restart", web).out == f"{web} runs again\n"


def test_one_missing_machine_does_not_keep_the_others_waiting(roost: Roost, web: str) -> None:
    result = roost("stop", "missing", web)
    assert result.code == 3
    assert result.out == f"{web} is stopped\n"


def test_rename_gives_another_name(roost: Roost, web: str) -> None:
    assert roost("rename", web, "renamed").code == 0
    assert roost("show", "renamed", "-o", "name").out == "renamed\n"
    assert "Started" in roost("events", "renamed").out


def test_delete_is_3_for_what_is_missing_unless_that_is_fine(roost: Roost, web: str) -> None:
    assert roost("delete", web).out == f"{web} is deleted\n"
    assert roost("delete", web).code == 3
    assert roost("delete", web, "--ignore-missing").code == 0


def test_delete_all_asks_and_nobody_answers_in_a_pipe(roost: Roost, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert roost("delete", "--all").code == 2
    assert roost("delete", "--all", "--yes").code == 0
    assert roost("list", "-o", "json").out == "[]\n"


@pytest.fixture
def stdin() -> Iterator[int]:
    """A pipe as standard input; its write end."""
    ours, theirs = os.pipe()
    keep = os.dup(0)
    os.dup2(ours, 0)
    os.close(ours)
    yield theirs
    os.dup2(keep, 0)
    os.close(keep)


def test_exec_gives_the_guests_output_and_code(roost: Roost, web: str, stdin: int) -> None:
    os.close(stdin)
    assert roost("exec", web, "--", "echo", "--all", "-o").out == "--all -o\n"
    assert roost("exec", web, "exit", "7").code == 7
    assert roost("exec", web, "--", "missing").code == 127
    assert roost("exec", "nowhere", "--", "true").code == 127


def test_exec_hands_standard_input_on(roost: Roost, web: str, stdin: int) -> None:
    os.write(stdin, b"from here\n")
    os.close(stdin)
    assert roost("exec", web, "--", "cat").out == "cat\nfrom here\n"


def test_exec_hands_on_more_than_fits_into_any_buffer(roost: Roost, web: str, stdin: int, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"0123456789abcdef" * 200_000)
    os.close(stdin)
    file = os.open(tmp_path / "big", os.O_RDONLY)
    os.dup2(file, 0)
    os.close(file)
    assert len(roost("exec", web, "--", "cat").out) == len("cat\n") + 3_200_000


def test_exec_in_a_stopped_machine_is_125(roost: Roost, web: str, stdin: int) -> None:
    os.close(stdin)
    roost("stop", web)
    result = roost("exec", web, "--", "true")
    assert result.code == 125
    assert f"fix: roost start {web}" in result.err


def test_logs_are_the_consoles(roost: Roost, web: str) -> None:
    assert roost("logs", web).out == "fake guest\n"


def test_copy_carries_files_both_ways(roost: Roost, web: str, daemon: Served, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    assert roost("copy", str(tmp_path / "notes"), f"{web}:/root/").code == 0
    archives = daemon.guest(web).answering.archives
    archives["/root/notes"] = archives["/root/"]
    assert roost("copy", f"{web}:/root/notes", str(tmp_path / "back")).code == 0
    assert (tmp_path / "back").read_text() == "hello"


def test_apply_and_diff_speak_of_fields(roost: Roost, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        "kind: machine\nname: filed\nspec: {image: tiny, power: stopped}\n---\nkind: project\nname: filed-too\n"
    )
    assert roost("diff", "-f", str(file)).code == 1
    assert roost("apply", "-f", str(file)).out == "machine/filed created\nproject/filed-too created\n"
    assert roost("diff", "-f", str(file)).code == 0
    file.write_text("kind: machine\nname: filed\nspec: {image: tiny, power: stopped, memory: 1GiB}\n")
    assert "~ machine/filed spec.memory: 536870912 -> 1073741824" in roost("diff", "-f", str(file)).out
    assert roost("apply", "-f", str(file)).out == "machine/filed changed\n"


def test_what_get_prints_can_be_applied(roost: Roost, web: str, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(roost("get", "machine", web).out)
    assert roost("apply", "-f", str(tmp_path / "web.yaml")).out == f"machine/{web} unchanged\n"


@pytest.mark.parametrize("kind", ["machines", "image", "nodes", "projects", "events"])
def test_get_lists_every_kind(kind: str, roost: Roost, web: str) -> None:
    assert roost("get", kind).code == 0


def test_get_of_an_unknown_kind_is_3(roost: Roost) -> None:
    assert roost("get", "robots").code == 3


def editor(tmp_path: Path, script: str) -> str:
    (tmp_path / "editor").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "editor").chmod(0o755)
    return str(tmp_path / "editor")


def test_edit_applies_what_the_editor_left(
    roost: Roost, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, 'sed -i "s/cpus: 1/cpus: 2/" "$1"'))
    assert roost("edit", "machine", web).out == f"machine/{web} changed\n"
    assert json.loads(roost("show", web, "-o", "json").out)["spec"]["cpus"] == 2


def test_edit_of_nothing_changes_nothing(roost: Roost, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", "true")
    assert roost("edit", "machine", web).out == "nothing was changed\n"


def test_edit_into_nonsense_is_refused(roost: Roost, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, 'echo "colour: red" >> "$1"'))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert roost("edit", "machine", web).code == 2


def test_members_come_and_go(roost: Roost) -> None:
    roost("project", "create", "shared", "--machines", "3", "--memory", "1GiB")
    assert "is operator" in roost("project", "grant", "shared", "uid:1234").out
    assert "uid:1234 operator" in roost("project", "list").out
    assert roost("project", "revoke", "shared", "uid:1234").code == 0
    assert roost("project", "revoke", "shared", "uid:1234").code == 3
    assert roost("project", "delete", "shared").out == "shared is deleted\n"


def test_templates_and_images_are_listed(roost: Roost) -> None:
    assert re.search(r"^tiny +ready", roost("template", "list").out, re.MULTILINE)
    assert re.search(r"^debian:12 +not built", roost("template", "list").out, re.MULTILINE)
    assert json.loads(roost("image", "list", "-o", "json").out)[0]["kind"] == "image"


def test_a_disk_file_becomes_an_image(roost: Roost, tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(4096))
    assert (
        roost("image", "import", str(tmp_path / "disk.raw"), "--name", "mine").out
        == "mine is ready; next: roost launch mine\n"
    )
    assert roost("image", "import", str(tmp_path / "none.raw")).code == 3
    assert roost("image", "import", "https://example.org/disk.qcow2").code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("st",), {"start", "stop"}), (("image", ""), {"list", "show", "import", "delete"}), (("launch", "--arch", "a"), {"aarch64"}),
        (("launch", "--cp"), {"--cpus"}), (("get", "im"), {"image"}), (("get", "image", ""), {"tiny"}), (("-o", "json", "li"), {"list"}),
        (("exec", "x", "--", "u"), set()), (("doctor", "n"), {"network"}),
    ],
)  # fmt: skip
def test_completion_knows_what_may_come_next(words: tuple[str, ...], expected: set[str], roost: Roost) -> None:
    assert set(roost("__complete", "--", *words).out.split()) >= expected


def test_completion_of_names_asks_the_daemon(roost: Roost, web: str) -> None:
    assert web in roost("__complete", "--", "stop", "").out.split()


def test_completion_is_silent_without_a_daemon(call: Roost) -> None:
    assert call("__complete", "--", "stop", "") == (0, "", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_the_hidden_verb(shell: str, call: Roost) -> None:
    assert "roost __complete --" in call("completion", shell).out
