"""Policies from flags, keyword arguments and documents: what they become, and everything that is wrong with them at once."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.errors import Invalid
from roost.runtimes.base import Grant, Peer, Policy, Published
from roost.runtimes.policy import FLAGS, LAYERS, from_mapping, parse, to_mapping

MiB = 1 << 20


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with data/sub, out, in.txt and a link to data, where we are."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in.txt").write_text("x")
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grants(*texts: str) -> tuple[Grant, ...]:
    return parse([word for text in texts for word in ("--fs", text)] + ["app"]).policy.fs


def problems(*words: str, **environ: str) -> dict[str, str]:
    with pytest.raises(Invalid) as refused:
        parse(words, environ=environ)
    return {problem.path: problem.message for problem in refused.value.problems}


def test_nothing_is_allowed_unless_it_is_said() -> None:
    parsed = parse(["app.wasm"])
    assert (parsed.policy, parsed.file, parsed.arguments) == (Policy(), "app.wasm", ())
    assert (parsed.policy.fs, parsed.policy.env, parsed.policy.net) == ((), (), ())


def test_every_flag_is_read_in_both_ways_of_writing_it(place: Path) -> None:
    said = {
        "--env": "A=b=c", "--net": "Example.org:443", "--publish": "8080:80", "--memory": "1GiB", "--wall": "1.5s", "--cpu-time": "2m",
        "--fuel": "1000", "--processes": "8", "--files": "64", "--output": "10MiB", "--tmp": "1MiB", "--require": "seccomp", "--vm": "wasm",
        "--status-json": "3", "--format": "json", "--project": "p", "--host": "unix:/x", "--fs": "data:/data:ro",
    }  # fmt: skip
    switches = ["--gui", "--quiet", "--yes"]
    apart = parse([*switches, *(word for pair in said.items() for word in pair), "app"])
    joined = parse([*(f"{name}={value}" for name, value in said.items()), *switches, "--", "app"])
    assert apart == joined
    assert apart.policy == Policy(
        (Grant(str(place / "data"), "/data", False),), (("A", "b=c"),), (Peer("example.org", 443),), (Published("127.0.0.1", 8080, 80),),
        1024 * MiB, 120.0, 1.5, 8, 64, 10 * MiB, MiB, 1000, True, ("seccomp",),
    )  # fmt: skip
    assert apart.options | {"detach": False} == {
        "vm": "wasm", "learn": None, "detach": False, "name": None, "restart": None, "status_json": 3, "format": "json", "project": "p",
        "host": "unix:/x", "quiet": True, "yes": True, "help": False,
    }  # fmt: skip


def test_what_follows_the_file_is_the_program_s_byte_for_byte() -> None:
    own = ("--fs", "-x", "--", "", "\udcff\udc80", "--memory=1", "ünïcode", "a\nb")
    assert parse(["--wall", "5s", "app", *own]).arguments == own
    assert parse(["--", "--strange", "x"])[2:] == ("--strange", ("x",))
    assert parse(["-", "x"])[2:] == ("-", ("x",))


def test_options_of_the_daemon_belong_together() -> None:
    words = ["--detach", "--name", "api", "--restart", "always", "app"]
    assert {name: parse(words).options[name] for name in ("detach", "name", "restart")} == {
        "detach": True, "name": "api", "restart": "always",
    }  # fmt: skip
    assert problems("--name", "api", "--restart=no", "app") == {
        "--name": "goes with --detach only", "--restart": "goes with --detach only",
    }  # fmt: skip
    assert "does not go" in problems("--detach", "--status-json", "3", "app")["--status-json"]


@pytest.mark.parametrize(("word", "value"), [("--learn", ""), ("--learn=policy.yaml", "policy.yaml")])
def test_learning_may_name_a_file(word: str, value: str) -> None:
    assert parse([word, "app"]).options["learn"] == value


def test_everything_that_is_wrong_is_said_at_once(place: Path) -> None:
    found = problems(
        "--fss", "--fs", "nowhere", "--env", "GONE", "--net", "https://example.org/x", "--publish", "80", "--memory", "12XB", "--wall", "soon",
        "--fuel", "-1", "--processes", "0", "--gui=yes", "--restart=often", "--tmp=1KiB", "--output",
    )  # fmt: skip
    assert found == {
        "--fss": "there is no such flag; did you mean --fs or --files? (what is meant for the program stands after FILE)",
        "--fs": "'nowhere' can not be lent: No such file or directory",
        "--env": "GONE is not set here: write GONE=VALUE",
        "--net": "'https://example.org/x' is a URL: write example.org:443",
        "--publish": "'80' is not [IP:]HOSTPORT:PORT, as in 8080:80",
        "--memory": "'12XB' is not a size: write 256MiB or 2GiB",
        "--wall": "'soon' is not a duration: write 30s, 10m, 1h or 7d, at most 366d",
        "--fuel": "'-1' is not a number from 1 to 9223372036854775807",
        "--processes": "'0' is not a number from 1 to 4194304",
        "--gui": "takes no value",
        "--restart": "'often' is none of no, on-failure, always",
        "--tmp": "'1KiB' is not possible: it is less than 4KiB",
        "--output": "needs a value: --output SIZE",
        "FILE": "say which program to run, as in roost run app.wasm",
    }


def test_a_value_is_never_the_next_flag() -> None:
    assert problems("--fs", "--net", "a:1", "app") == {"--fs": "needs a value: --fs HOST[:GUEST][:ro|rw]"}


def test_help_needs_no_file() -> None:
    assert parse(["--help"]).options["help"]
    assert parse(["-h"]).file == ""


def test_no_limit_is_said_by_none() -> None:
    assert parse(["--memory", "none", "--wall=unlimited", "--output", "none", "app"]).policy[4:7:2] == (None, None)


def test_a_grant_is_resolved_where_it_is_said(place: Path) -> None:
    here = str(place)
    assert grants("data") == (Grant(f"{here}/data", f"{here}/data", True),)
    assert grants("./data/../data/./sub:ro") == (Grant(f"{here}/data/sub", f"{here}/data/sub", False),)
    assert grants("link:/x:rw") == (Grant(f"{here}/data", "/x", True),)
    assert grants("link") == (Grant(f"{here}/data", f"{here}/link", True),)
    assert grants("in.txt:/etc/in.txt:ro") == (Grant(f"{here}/in.txt", "/etc/in.txt", False),)
    assert grants("data:/a//b/./c/") == (Grant(f"{here}/data", "/a/b/c", True),)


def test_names_with_colons_spaces_and_bytes_are_names(place: Path) -> None:
    strange = os.fsdecode(b"b\xff d")
    for name in ("a:b", "c:ro", "ü ", strange):
        (place / name).mkdir()
    assert grants("a:b") == (Grant(f"{place}/a:b", f"{place}/a:b", True),)
    assert grants("c:ro:ro") == (Grant(f"{place}/c:ro", f"{place}/c:ro", False),)
    assert grants("ü :/ü") == (Grant(f"{place}/ü ", "/ü", True),)
    assert grants(f"{strange}:/s:ro") == (Grant(f"{place}/{strange}", "/s", False),)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("data:/", "nothing can be put at '/'"), ("data:/proc/x", "nothing can be put"), ("data:/dev", "nothing can be put"),
        ("data:/sys/fs", "nothing can be put"), ("data:/a/../proc", "without .."), ("data:x", "must be absolute"), ("", "not a path"),
        ("data\0", "not a path"), ("/dev/null:/n", "only directories and ordinary files"), ("/proc/self:/p", "only directories"),
        ("data:/" + "a/" * 2048, "at most 4095 bytes"), ("gone/..", "can not be lent"), ("/:ro", "nothing can be put at '/'"),
    ],
)  # fmt: skip
def test_what_can_not_be_lent_is_refused(place: Path, text: str, word: str) -> None:
    if text != "gone/..":
        assert word in problems("--fs=" + text, "app")["--fs"]
    else:
        assert grants(text)[0].source == str(place)


def test_one_grant_in_another_comes_after_it_and_has_a_place(place: Path) -> None:
    assert [each.target for each in grants("out:/data/sub", "data:/data:ro", "in.txt:/data-x")] == [
        "/data",
        "/data/sub",
        "/data-x",
    ]
    assert "there is no directory" in problems("--fs=data:/data", "--fs=out:/data/new", "a")["--fs"]
    assert "there is no file" in problems("--fs=data:/data", "--fs=in.txt:/data/sub", "a")["--fs"]
    (place / "data" / "trap").symlink_to("/etc")
    assert "there is no directory" in problems("--fs=data:/data", "--fs=out:/data/trap", "a")["--fs"]


def test_the_same_grant_twice_is_one_and_two_for_one_place_are_wrong(place: Path) -> None:
    assert len(grants("data:/d", "link:/d", "./data:/d")) == 1
    assert "two different things" in problems("--fs=data:/d", "--fs=out:/d", "a")["--fs"]
    assert "two different things" in problems("--fs=data:/d", "--fs=data:/d:ro", "a")["--fs"]


def test_variables_come_from_the_caller_or_the_flag() -> None:
    parsed = parse(["--env", "A", "--env", "B=", "--env", "A=2", "--env", "C=x=y", "p"], environ={"A": "1"})
    assert parsed.policy.env == (("A", "2"), ("B", ""), ("C", "x=y"))
    assert "not K or K=V" in problems("--env", "=x", "p")["--env"]
    assert "not K or K=V" in problems("--env", "A=" + "x" * (128 << 10), "p")["--env"]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("example.org:443", "example.org", 443), ("EXAMPLE.org.:1", "example.org", 1), ("10.0.0.1:65535", "10.0.0.1", 65535),
        ("[2001:DB8::0:1]:80", "2001:db8::1", 80), ("bücher.example:80", "xn--bcher-kva.example", 80), ("my_db:5432", "my_db", 5432),
    ],
)  # fmt: skip
def test_a_service_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert parse(["--net", text, "p"]).policy.net == (Peer(host, port),)


@pytest.mark.parametrize(
    "text",
    [
        "example.org", ":443", "example.org:0", "example.org:65536", "example.org:٣", "2130706433:80", "0x7f.1:80", "010.0.0.1:80",
        "1.2.3:80", "256.1.1.1:80", "*.example.org:443", "::1:80", "[::1%eth0]:80", "[x]:80", "a..b:80", "-a.org:80", "a b:80", "a" * 64 + ":80",
        "ftp://x:21", "a\0:80",
    ],
)  # fmt: skip
def test_what_is_no_service_is_refused(text: str) -> None:
    assert list(problems("--net", text, "p")) == ["--net"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", ("127.0.0.1", 8080, 80)), ("0.0.0.0:8080:80", ("0.0.0.0", 8080, 80)), ("[::1]:8080:80", ("::1", 8080, 80)),
    ],
)  # fmt: skip
def test_a_port_is_published_on_the_loopback_unless_it_is_said(text: str, expected: tuple[str, int, int]) -> None:
    assert parse(["--publish", text, "p"]).policy.publish == (Published(*expected),)


@pytest.mark.parametrize(
    "text", ["80", "a:80", "localhost:1:2", "1:2:3:4", "::1:80:80", "80:", ":80", "80:0", "[]:1:2"]
)
def test_what_is_no_port_is_refused(text: str) -> None:
    assert list(problems("--publish", text, "p")) == ["--publish"]


def test_keyword_arguments_make_the_same_policy_as_flags(place: Path) -> None:
    words = [
        "--fs=./data:/d:ro",
        "--env=A=1",
        "--env=HOME",
        "--net=a.org:1",
        "--publish=8:9",
        "--memory=256MiB",
        "--wall=10s",
        "--gui",
    ]
    flags = parse([*words, "--require=landlock", "p"], environ={"HOME": "/h"}).policy
    given: dict[str, Any] = {
        "fs": ["./data:/d:ro"], "env": {"A": 1, "HOME": None}, "net": ["a.org:1"], "publish": "8:9", "memory": 256 * MiB, "wall": 10,
        "gui": True, "require": ["landlock"], "fuel": None,
    }  # fmt: skip
    assert from_mapping(given, environ={"HOME": "/h"}) == flags
    parts = {
        **given,
        "fs": [{"source": "data", "target": "/d", "writable": False}],
        "net": [Peer("a.org", 1)],
        "env": ["A=1", "HOME"],
    }
    assert from_mapping({**parts, "publish": [("127.0.0.1", 8, 9)]}, environ={"HOME": "/h"}) == flags
    assert from_mapping({"fs": place / "out"}).fs == (Grant(f"{place}/out", f"{place}/out", True),)


def test_numbers_are_bytes_and_seconds_and_none_is_no_limit() -> None:
    found = from_mapping({"memory": None, "wall": 0.25, "cpu_time": 3, "output": 0, "tmp": None, "processes": 7})
    assert (found.memory, found.wall, found.cpu_time, found.output, found.tmp, found.processes) == (
        None,
        0.25,
        3.0,
        0,
        256 * MiB,
        7,
    )


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"memmory": 1}, "memmory"), ({"gui": "yes"}, "gui"), ({"memory": True}, "memory"), ({"memory": float("nan")}, "memory"),
        ({"wall": -1}, "wall"), ({"wall": float("inf")}, "wall"), ({"net": [443]}, "net"), ({"fs": [{"host": "x"}]}, "fs"), ({"fs": 7}, "fs"),
        ({"env": [("A",)]}, "env"), ({"publish": [{"host_ip": "", "host_port": "x", "port": 1}]}, "publish"), ({"memory": [1]}, "memory"),
        ({"require": ["\x1b[2J"]}, "require"), ({"processes": 1.5}, "processes"), ({"env": ["A=1"] * 2000}, "env"), ({3: 4}, "3"),
    ],
)  # fmt: skip
def test_wrong_fields_are_named(given: dict[Any, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        from_mapping(given)
    assert {problem.path for problem in refused.value.problems} == {field}


def test_a_mapping_has_every_field_in_order_and_can_leave_secrets_out() -> None:
    full = to_mapping(parse(["--env", "KEY=secret", "p"]).policy)
    assert tuple(full) == Policy._fields
    assert full["env"] == {"KEY": "secret"}
    assert to_mapping(Policy(env=(("KEY", "secret"),)), secrets=False)["env"] == ["KEY"]


POLICIES = st.builds(
    Policy,
    fs=st.just(()),
    env=st.dictionaries(
        st.text(string.ascii_uppercase, min_size=1), st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    ).map(lambda found: tuple(found.items())),
    net=st.lists(
        st.builds(Peer, st.sampled_from(["a.org", "::1", "10.0.0.1"]), st.integers(1, 65535)), unique=True
    ).map(tuple),
    publish=st.lists(
        st.builds(Published, st.sampled_from(["127.0.0.1", "::1"]), st.integers(1, 65535), st.integers(1, 65535)),
        unique=True,
    ).map(tuple),
    memory=st.none() | st.integers(1 << 20, 1 << 50),
    wall=st.none() | st.integers(1, 10**12).map(lambda micro: micro / 1e6),
    cpu_time=st.none() | st.integers(1, 10**6).map(float),
    output=st.none() | st.integers(0, 1 << 50),
    tmp=st.integers(4096, 1 << 50),
    processes=st.integers(1, 1 << 22),
    files=st.integers(16, 1 << 20),
    fuel=st.none() | st.integers(1, 1 << 62),
    gui=st.booleans(),
    require=st.lists(st.sampled_from(LAYERS), unique=True).map(tuple),
)


@settings(max_examples=30, deadline=None, database=None)
@given(POLICIES)
def test_a_mapping_is_read_back_as_the_same_policy(given_policy: Policy) -> None:
    assert from_mapping(to_mapping(given_policy)) == given_policy


def test_grants_are_read_back_whatever_their_names(place: Path) -> None:
    (place / "x:" / "y:ro").mkdir(parents=True)
    found = from_mapping({"fs": ["x:/y:ro:rw", "data:/d:ro"]})
    assert {each.source for each in found.fs} == {f"{place}/x:/y:ro", f"{place}/data"}
    assert from_mapping(to_mapping(found)) == found


@settings(max_examples=80, deadline=None, database=None)
@given(st.lists(st.sampled_from([flag.name for flag in FLAGS]) | st.text(max_size=20), max_size=6))
def test_no_words_make_it_raise_anything_else(words: list[str]) -> None:
    try:
        parse(words, cwd="/", environ={})
    except Invalid as refused:
        assert refused.problems


def test_every_field_of_a_policy_has_its_flag() -> None:
    assert [flag.name for flag in FLAGS if not flag.help] == []
    assert set(Policy._fields) == {flag.field for flag in FLAGS if flag.group == "policy"}
    assert len({flag.field for flag in FLAGS}) == len(FLAGS)
