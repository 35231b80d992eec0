"""Every runtime with a hostile program in its own language, and with the host's own programs started from there: nothing leads out."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from roost.runtimes import wine_prefix
from roost.runtimes.base import Ending, Grant, MiB, Peer, Result
from tests.ordinary import UID, WHO, run_as
from tests.pool import CACHE
from tests.programs import bait, managed
from tests.programs.bait import DATA, LENT, OUT, Bait
from tests.programs.build import HERE, host, program
from tests.programs.components import component
from tests.programs.running import run

pytestmark = pytest.mark.live

WALL = 120.0
OUTSIDE_TOOLS = 25
"""How many attempts at most are those of programs that a host may lack."""
MODULE = '(component (core module $m (memory 1) (func (export "run") (result i32) {body}))'
COMPONENT = (
    MODULE
    + """
 (core instance $i (instantiate $m))
 (func $run (result (result)) (canon lift (core func $i "run")))
 (instance $command (export "run" (func $run)))
 (export "wasi:cli/run@0.2.0" (instance $command)))"""
)

MEMORIES = "".join(f"(memory $m{number} 1)" for number in range(40))
FILLED = "".join(
    f"(loop $l{number} (if (i32.ne (memory.grow $m{number} (i32.const 16)) (i32.const -1)) (then (memory.fill $m{number}"
    f" (i32.sub (i32.mul (memory.size $m{number}) (i32.const 65536)) (i32.const 1048576))"
    f" (i32.const 7) (i32.const 1048576)) (br $l{number}))))"
    for number in range(40)
)
WASI = '(import "wasi_snapshot_preview1" "{}" (func $call (param {}) (result i32)))'


class Hostile(NamedTuple):
    """A program that tries to get out: its name as a file, how it is made, how many attempts it makes, and the tools that it needs to be
    tried. With `granted` allowed, those attempts must succeed; outside of every sandbox, by the words of `plain`, those of `outside`."""

    name: str
    make: Callable[[], Path]
    attempts: int
    runtime: str
    granted: str
    outside: str = ""
    plain: tuple[str, ...] = ()


HOSTILE = {
    "python": Hostile(
        "escapes.py", lambda: HERE / "escapes.py", 159, "script",
        "absolute,dotdot,root_of_self,link_made,link_found,copied_in,read_only_written,read_only_made,read_only_times,unix_socket,loopback",
        "absolute,victim_environ,every_process,abstract,loopback_datagram,port_of_the_host,tool_kill,victim_killed",
        ("/usr/bin/python3",),
    ),
    "sh": Hostile(
        "escapes.sh", lambda: HERE / "escapes.sh", 102, "script",
        "absolute,dotdot,root_of_self,link_made,link_found,copied_in,read_only_written,read_only_made,read_only_times,unix_socket,loopback",
        "absolute,victim_environ,every_process,abstract,listeners,victim_signalled,victim_killed",
        ("/bin/sh",),
    ),
    "jvm": Hostile(
        "escapes.jar", managed.escapes_jar, 115, "jvm",
        "absolute,dotdot,root_of_self,link_made,link_found,copied_in,read_only_written,read_only_made,read_only_times,unix_socket,loopback",
        "absolute,victim_environ,victim_found,every_process,loopback_datagram,port_of_the_host,victim_killed",
        ("java", "-jar"),
    ),
    "clr": Hostile(
        "escapes.exe", managed.escapes_clr, 139, "clr",
        "absolute,dotdot,root_of_self,link_made,link_found,copied_in,read_only_written,read_only_made,read_only_times,unix_socket,loopback",
        "absolute,victim_environ,victim_found,every_process,abstract,loopback_datagram,port_of_the_host,victim_killed",
        ("mono",),
    ),
    "wine": Hostile(
        "escapes.exe", lambda: program("windows_escapes", "exe"), 119, "wine",
        "absolute,dotdot,unix_name,link_found,copied_in,read_only_written,read_only_made,read_only_times,loopback,linux_secret,linux_socket",
    ),
}  # fmt: skip
NEEDS = {
    "python": ("/usr/bin/python3",),
    "sh": ("/bin/sh", "bash"),
    "jvm": ("java", "javac"),
    "clr": ("mono", "mcs"),
    "wine": ("/bin/sh",),
}
every = pytest.mark.parametrize("language", HOSTILE)
everybody = pytest.mark.parametrize("who", WHO)
with_outside = pytest.mark.parametrize("language", [name for name, hostile in HOSTILE.items() if hostile.outside])


class Tried(NamedTuple):
    """What became of the attempts of one run, and of the bait; picklable."""

    verdicts: dict[str, tuple[str, str]]
    harm: tuple[str, ...]
    ending: Ending
    runtime: str
    errors: str

    def escaped(self) -> dict[str, str]:
        return {name: why for name, (verdict, why) in self.verdicts.items() if verdict != "held"}


def tried(laid: Bait, result: Result, read: Callable[[bytes], dict[str, tuple[str, str]]] = bait.verdicts) -> Tried:
    told = result.stdout + result.stderr
    return Tried(
        read(result.stdout), laid.harm(told), result.ending, result.runtime, told.decode(errors="replace")[-900:]
    )


@pytest.fixture(scope="module", autouse=True)
def users_cache() -> Iterator[None]:
    """What an ordinary user prepares once for all tests."""
    with tempfile.TemporaryDirectory(prefix="roost-test-") as place, pytest.MonkeyPatch.context() as patch:
        if os.getuid() == 0:
            os.chown(place, UID, UID)
        patch.setitem(PLACES, "user", place)
        yield


PLACES = {"root": str(CACHE / "run")}
"""The cache for each."""


def try_as(who: str, programs: dict[str, Path], main: Callable[[Bait, Path], Any]) -> Any:
    """What `main` returns, called as `who` with the bait and the directory in which the programs are lent."""
    bait.load_all()
    contents = {name: file.read_bytes() for name, file in programs.items()}

    async def inside() -> Any:
        os.environ["ROOST_CACHE"] = PLACES[who]
        with bait.lay() as laid:
            return main(laid, laid.lend(contents))

    return run_as(who, inside)


def installed(language: str) -> Hostile:
    """The hostile program, or a skip."""
    missing = [name for name in NEEDS[language] if not shutil.which(name)]
    if missing or (language == "wine" and wine_prefix.installation() is None):
        pytest.skip(f"not installed: {' '.join(missing) or 'wine64'}")
    return HOSTILE[language]


@pytest.mark.fault(62)
@pytest.mark.fault(91)
@pytest.mark.fault(93)
@everybody
@every
def test_neither_a_language_nor_a_program_started_by_it_leads_out(language: str, who: str) -> None:
    hostile = installed(language)
    programs = {hostile.name: hostile.make(), "escape": program("escape"), "probe": program()}

    def main(laid: Bait, lent: Path) -> list[Tried]:
        file = shutil.move(lent / hostile.name, lent.parent / hostile.name)
        env = (("PROBE_PORT", str(laid.port)), ("PROBE_PID", str(laid.victim.pid)))
        return [
            tried(laid, run(file, "all", *laid.words, fs=laid.grants, wall=WALL)),
            tried(laid, run(file, "start", f"{LENT}/escape", *laid.words, fs=laid.grants, wall=WALL)),
            tried(
                laid,
                run(file, "start", f"{LENT}/probe", "attempt", "all", env=env, fs=laid.grants, wall=WALL),
                bait.attempts,
            ),
        ]

    own, escape, probe = try_as(who, programs, main)
    assert (own.escaped(), escape.escaped(), probe.escaped()) == ({}, {}, {})
    assert (own.harm, escape.harm, probe.harm) == ((), (), ())
    assert own.runtime == hostile.runtime
    assert len(own.verdicts) >= hostile.attempts - OUTSIDE_TOOLS, own.errors
    assert (len(escape.verdicts) > 90, len(probe.verdicts) > 60) == (True, True), escape.errors + probe.errors


@everybody
@every
def test_what_is_granted_is_reached_by_the_same_attempts(language: str, who: str) -> None:
    """So that it is known to be the policy that holds them."""
    hostile = installed(language)

    def main(laid: Bait, lent: Path) -> Tried:
        file = shutil.move(lent / hostile.name, lent.parent / hostile.name)
        private, out, data = (str(laid.directory / name) for name in ("private", "out", "data"))
        grants = (Grant(private, private, True), Grant(out, OUT, True), Grant(data, DATA, True))
        net = (Peer("127.0.0.1", laid.port),)
        return tried(laid, run(file, hostile.granted, *laid.words, fs=grants, net=net, wall=WALL))

    granted = try_as(who, {hostile.name: hostile.make()}, main)
    assert set(hostile.granted.split(",")) - set(granted.escaped()) == set(), granted
    assert {what.split(":")[0] for what in granted.harm} >= {
        "the secret was told",
        "a socket was reached",
        "the data was changed",
    }


@with_outside
def test_the_same_attempts_succeed_where_nothing_holds_them(language: str) -> None:
    hostile = installed(language)

    def main(laid: Bait, lent: Path) -> Tried:
        words = [*hostile.plain, lent / hostile.name, hostile.outside, *laid.words[:4]]
        done = subprocess.run(
            [*words, laid.directory / "out", laid.directory / "data"], capture_output=True, timeout=WALL, check=False
        )
        laid.victim.wait(10)
        return tried(laid, Result(Ending(done.returncode), "", stdout=done.stdout, stderr=done.stderr))

    outside = try_as(WHO[0], {hostile.name: hostile.make()}, main)
    assert set(outside.escaped()) == set(hostile.outside.split(",")), outside
    assert {"the secret was told", "the victim was ended"} <= set(outside.harm)


@pytest.mark.fault(62)
@everybody
@pytest.mark.parametrize("target", [host(), "aarch64"])
def test_neither_a_program_of_the_host_nor_one_of_another_processor_gets_out(target: str, who: str) -> None:
    if target != host() and not shutil.which(f"qemu-{target}-static"):
        pytest.skip(f"not installed: qemu-{target}-static")
    programs = {"escape": program("escape", target), "probe": program("probe", target)}

    def main(laid: Bait, lent: Path) -> list[Tried]:
        env = (("PROBE_PORT", str(laid.port)), ("PROBE_PID", str(laid.victim.pid)))
        grants = laid.grants[:2]
        return [
            tried(laid, run(lent / "escape", *laid.words, fs=grants, wall=WALL)),
            tried(laid, run(lent / "probe", "attempt", "all", env=env, fs=grants, wall=WALL), bait.attempts),
        ]

    escape, probe = try_as(who, programs, main)
    assert (escape.escaped(), probe.escaped(), escape.harm, probe.harm) == ({}, {}, (), ())
    assert (len(escape.verdicts) > 80, len(probe.verdicts) > 60) == (True, True), escape.errors + probe.errors


def wasm(kind: str) -> Path:
    return program("wasi_escapes", "wasm") if kind == "module" else component("wasi_escapes")


wasm_kinds = pytest.mark.parametrize("kind", ["module", "component"])


@pytest.mark.fault(92)
@everybody
@wasm_kinds
def test_no_call_of_wasi_leads_out(kind: str, who: str) -> None:
    def main(laid: Bait, lent: Path) -> tuple[Tried, list[Tried]]:
        file = lent / "escapes.wasm"
        first = tried(laid, run(file, "all", *laid.words, fs=laid.grants, wall=WALL))
        names = run(file, "deadly", *laid.words).stdout.decode().split()
        each = [tried(laid, run(file, name, *laid.words, fs=laid.grants, wall=WALL)) for name in names]
        return first, each

    together, alone = try_as(who, {"escapes.wasm": wasm(kind)}, main)
    assert (together.escaped(), together.harm, together.ending.code) == ({}, (), 0)
    assert [one for one in alone if one.escaped() or one.harm] == []
    # A call that is answered is refused; else the program ended by a trap, as one that does the same to its own memory.
    assert {one.ending.code for one in alone if not one.verdicts} == {134}
    assert {one.ending.code for one in alone if one.verdicts} == {0}
    assert (len(together.verdicts) > 85, len(alone) > 25) == (True, True)


@everybody
@wasm_kinds
def test_wasi_leads_to_what_is_granted(kind: str, who: str) -> None:
    """The same calls, where the policy allows them."""
    links = "link_found,link_found_in_data,link_found_made,link_found_directory,link_found_times"
    data = "data_written,data_cut,data_made,data_linked,data_symlink,data_times,data_file_times"

    def main(laid: Bait, lent: Path) -> tuple[Tried, Tried]:
        file, place = lent / "escapes.wasm", str(laid.directory)
        both = (Grant(f"{place}/out", OUT, True), Grant(f"{place}/data", DATA, True))
        changed = tried(laid, run(file, data, *laid.words, fs=both, wall=WALL))
        words = (*laid.words[:4], "/all", "/all")
        return changed, tried(laid, run(file, links, *words, fs=(Grant(place, "/all", True),), wall=WALL))

    changed, followed = try_as(who, {"escapes.wasm": wasm(kind)}, main)
    assert (set(changed.escaped()), set(followed.escaped())) == (set(data.split(",")), set(links.split(","))), followed
    assert changed.harm == ("the data was changed",)
    assert {"the secret was told", "something was made beside the secret"} <= set(followed.harm)


@pytest.mark.fault(92)
@pytest.mark.parametrize(("body", "policy", "code", "limit"), [
    ("(loop (br 0)) (unreachable)", {"fuel": 1_000_000}, 124, "fuel"),
    ("(loop (br 0)) (unreachable)", {"wall": 0.4}, 124, "wall"),
    ("(loop (br 0)) (unreachable)", {"cpu_time": 1.0}, 124, "cpu_time"),
    ("(drop (i32.load (i32.const 70000))) (i32.const 0)", {}, 134, ""),
    ("(i32.store (i32.const -4) (i32.const 1)) (i32.const 0)", {}, 134, ""),
])  # fmt: skip
def test_a_hostile_component_ends_at_its_limit(
    tmp_path: Path, body: str, policy: dict[str, Any], code: int, limit: str
) -> None:
    file = tmp_path / "hostile.wat"
    file.write_text(COMPONENT.format(body=body))
    ending = run(file, **policy).ending
    assert (ending.code, ending.limit) == (code, limit)


@pytest.mark.fault(92)
@pytest.mark.parametrize(("before", "body", "limit"), [
    (MEMORIES, FILLED, "memory"),  # the bound is that of each; the sandbox counts them together
    ("(memory i64 0x1000000)", "", "memory"),
    ("(memory 65536)", "", "memory"),
    ("(type $a (array (mut i64)))", "(loop (drop (array.new_default $a (i32.const 100000000))) (br 0))", "memory"),
    ("(func $f (return_call $f))", "(call $f)", "wall"),
    ("(func $f (loop (br 0))) (start $f)", "", "wall"),
    (WASI.format("sched_yield", "") + "(memory 1)", "(loop (drop (call $call)) (br 0))", "wall"),
    (
        WASI.format("poll_oneoff", "i32 i32 i32 i32") + "(memory 1)",
        "(i32.store (i32.const 24) (i32.const 1)) (i64.store (i32.const 32) (i64.const 0x7fffffffffffffff))"
        "(drop (call $call (i32.const 8) (i32.const 128) (i32.const 1) (i32.const 256)))",
        "wall",
    ),
    (
        WASI.format("random_get", "i32 i32") + "(memory 900)",
        "(loop (drop (call $call (i32.const 0) (i32.const 50000000))) (br 0))",
        "wall",
    ),
    (
        WASI.format("fd_write", "i32 i32 i32 i32") + "(memory 16)",
        "(i32.store (i32.const 4) (i32.const 900000))"
        "(loop (drop (call $call (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))) (br 0))",
        "output",
    ),
])  # fmt: skip
def test_a_hostile_module_ends_at_its_limit(tmp_path: Path, before: str, body: str, limit: str) -> None:
    file = tmp_path / "hostile.wat"
    memory = "" if "(memory" in before else "(memory 1)"
    file.write_text(f'(module {before} {memory} (export "memory" (memory 0)) (func (export "_start") {body}))')
    result = run(file, memory=64 * MiB, wall=0.6 if limit == "wall" else 60.0, output=1 << 20)
    assert (result.ending.code, result.ending.limit) == (124, limit), result.ending
    assert result.usage.get("memory", 0) < 512 * MiB


@pytest.mark.fault(92)
@pytest.mark.parametrize(("memory", "code"), [(64 * MiB, 0), (80 * MiB, 1)])
def test_a_component_gets_no_more_memory_than_its_limit(tmp_path: Path, memory: int, code: int) -> None:
    """It takes what it can have, and ends with 1 when that was more than 64 MiB."""
    grow = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))"
    file = tmp_path / "hostile.wat"
    file.write_text(COMPONENT.format(body=f"{grow} (i32.gt_u (memory.size) (i32.const 1024))"))
    assert run(file, memory=memory).ending.code == code
