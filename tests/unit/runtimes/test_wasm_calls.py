"""WebAssembly in our own process: values, memory, host functions, traps and limits."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from roost.errors import Invalid, NotFound
from roost.runtimes import wasm_program
from roost.runtimes.calls import LimitReached, Memory, Trap, Wasm

NUMBERS = """(module (memory (export "memory") 1)
 (func (export "add") (param i32 i64) (result i64) (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)))
 (func (export "two") (result i32 f64) (i32.const -1) (f64.const 2.5))
 (func (export "half") (param f32) (result f32) (f32.mul (local.get 0) (f32.const 0.5)))
 (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
 (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
 (func (export "divide") (param i32) (result i32) (i32.div_s (i32.const 1) (local.get 0)))
 (func (export "unreachable") unreachable)
 (func $deep (export "deep") (call $deep))
 (func (export "spin") (loop (br 0)))
 (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
 (func (export "table") (param funcref)))"""
HELLO = """(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
 (memory (export "memory") 2)
 (func (export "_start")
  (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1000))
  (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
  (i32.store (i32.const 4) (i32.load (i32.const 16)))
  (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
  (call $exit (i32.const 201))))"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def numbers() -> Wasm:
    return Wasm(NUMBERS)


def test_values_go_in_and_come_out(numbers: Wasm) -> None:
    assert numbers.call("add", -5, (1 << 63) - 1) == (1 << 63) - 6
    assert numbers.call("two") == (-1, 2.5)
    assert numbers.call("half", 3) == 1.5
    assert numbers.call("store", 0, 0xFFFFFFFF) is None


@pytest.mark.parametrize("values", [(1,), (1, 2, 3), (1 << 32, 0), ("1", 2), (1.5, 2), (None, None)])
def test_values_that_do_not_fit_are_refused(numbers: Wasm, values: tuple[float, ...]) -> None:
    with pytest.raises(Invalid, match="do not fit"):
        numbers.call("add", *values)


def test_a_function_that_is_not_there_is_named(numbers: Wasm) -> None:
    with pytest.raises(NotFound, match="nothing"):
        numbers.call("nothing")
    with pytest.raises(NotFound):
        numbers.call("memory")
    with pytest.raises(Invalid, match="no number"):
        numbers.call("table", 0)


@pytest.mark.fault(92)
@pytest.mark.parametrize(("name", "values", "why"), [
    ("unreachable", (), "unreachable executed"), ("divide", (0,), "division by zero"), ("load", (1 << 20,), "out of bounds"),
    ("deep", (), "stack overflow"),
])  # fmt: skip
def test_a_trap_says_which(numbers: Wasm, name: str, values: tuple[int, ...], why: str) -> None:
    with pytest.raises(Trap, match=why):
        numbers.call(name, *values)


@pytest.mark.fault(92)
def test_an_endless_loop_ends_with_its_fuel_or_its_time(numbers: Wasm) -> None:
    with pytest.raises(LimitReached) as fuel:
        numbers.call("spin", fuel=10_000, wall=2)
    with pytest.raises(LimitReached) as wall:
        numbers.call("spin", wall=0.02)
    assert (fuel.value.limit, wall.value.limit) == ("fuel", "wall")


@pytest.mark.fault(92)
def test_memory_does_not_grow_beyond_its_limit(numbers: Wasm) -> None:
    assert numbers.call("grow", 10, memory=1 << 20) == 1
    assert numbers.call("grow", 16, memory=1 << 20) == -1
    with pytest.raises(LimitReached) as caught:
        numbers.call("add", 1, 2, memory=1000)
    assert caught.value.limit == "memory"


def test_each_call_is_fresh_and_an_instance_lasts(numbers: Wasm) -> None:
    numbers.call("store", 8, 7)
    assert numbers.call("load", 8) == 0
    with numbers.instance() as instance:
        instance.call("store", 8, 7)
        instance.memory.write(9, b"\1")
        assert instance.call("load", 8) == 263
        assert instance.memory.read(8, 2) == b"\7\1"
        assert instance.memory.size == 65536
    with pytest.raises(Invalid, match="closed"):
        instance.call("load", 8)


@pytest.mark.parametrize(("offset", "size"), [(65536, 1), (-1, 1), (0, 65537), (1 << 40, 1), (0, -1)])
def test_memory_outside_is_not_reached(numbers: Wasm, offset: int, size: int) -> None:
    with numbers.instance() as instance, pytest.raises(Invalid, match="outside"):
        instance.memory.read(offset, size)


def test_the_guest_calls_the_host_which_reads_its_memory() -> None:
    heard: list[bytes] = []

    def log(memory: Memory, offset: int, size: int) -> int:
        heard.append(memory.read(offset, size))
        return size + 1

    text = """(module (import "env" "log" (func $log (param i32 i32) (result i32))) (memory (export "memory") 1)
     (data (i32.const 4) "hey") (func (export "go") (result i32) (call $log (i32.const 4) (i32.const 3))))"""
    assert Wasm(text, imports={"env.log": log}).call("go") == 4
    assert heard == [b"hey"]


def test_what_the_host_raises_ends_the_guest_and_arrives() -> None:
    def fail() -> None:
        raise KeyError("mine")

    guest = Wasm(
        '(module (import "env" "fail" (func $fail)) (func (export "go") (call $fail) unreachable))',
        imports={"env.fail": fail},
    )
    with pytest.raises(KeyError, match="mine"):
        guest.call("go")
    with pytest.raises(KeyError, match="mine"):
        guest.call("go")


def test_what_nobody_brings_is_named() -> None:
    with pytest.raises(Invalid, match="env::other"):
        Wasm('(module (import "env" "other" (func)))')


def test_a_command_runs_with_its_input_and_its_exact_code() -> None:
    command = Wasm(HELLO)
    done = command.run(stdin=b"a\0b\xff")
    assert (done.ending.code, done.stdout) == (201, b"a\0b\xff")
    assert command.run(stdin="x", output=0).ending.limit == "output"


def test_threads_call_one_module_at_once(numbers: Wasm) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(numbers.call("add", 1, n) for n in range(50))) for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(found) == sorted([*range(1, 51)] * 4)


def test_what_was_mapped_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm_program, "SMALL", 0)
    command = Wasm(HELLO.replace("(memory", '(data (i32.const 64) "first") (memory'))
    assert [command.run(stdin=word).stdout for word in (b"", b"a", b"b")] == [b"", b"a", b"b"]
