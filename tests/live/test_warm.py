"""Warm templates with real machines: booted once, forked ever after, never used when anything about them does not fit."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from roost.host import kernel
from roost.model.meta import MiB
from tests.daemon import Daemon
from tests.needs import needs_root

KSM = Path("/sys/kernel/mm/ksm/run")


@pytest.fixture
def own(new_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon of the test's own, without templates."""
    return warm(new_daemon())


@pytest.fixture(scope="module")
def with_template() -> Iterator[Daemon]:
    """A daemon that has the template of `launch`. Prefer `kept`."""
    daemon = warm(Daemon())
    try:
        launch(daemon, "a")
        yield daemon
    finally:
        left = daemon.close()
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture
def kept(with_template: Daemon) -> Iterator[Daemon]:
    """The same daemon without any machine, before and after the test."""
    with_template.delete_machines()
    yield with_template
    with_template.delete_machines()


def warm(daemon: Daemon, **environ: str) -> Daemon:
    """The daemon, started; its machines go on from templates."""
    daemon.cold = False
    return daemon.start(**environ)


def launch(daemon: Daemon, name: str, *options: str) -> dict[str, Any]:
    """The status of a new tiny machine, after it answered."""
    daemon.roost("launch", "tiny", name, "--memory", "128MiB", *options, timeout=120)
    status: dict[str, Any] = daemon.json("show", name)["status"]
    return status


def templates(daemon: Daemon) -> set[str]:
    """The templates on disk, once all are written whole."""
    place = daemon.state / "checkpoints"
    deadline = time.monotonic() + 60
    while not place.is_dir() or not all((entry / "checkpoint.json").exists() for entry in place.iterdir()):
        assert time.monotonic() < deadline, "a template is never written"
        time.sleep(0.05)
    return {entry.name for entry in place.iterdir()}


def answer(daemon: Daemon, name: str) -> list[str]:
    """What tells a machine apart, from inside."""
    return daemon.roost("exec", name, "--", "sh", "-c", "hostname; cat /etc/machine-id").stdout.split()


def test_every_launch_after_the_first_is_a_fork(own: Daemon) -> None:
    first, second, third = (launch(own, name) for name in ("a", "b", "c"))
    assert [status["timing"]["path"] for status in (first, second, third)] == ["warm"] * 3
    assert third["timing"]["total"] < first["timing"]["total"] / 2
    assert len(templates(own)) == 1
    told = [answer(own, name) for name in ("a", "b", "c")]
    assert [hostname for hostname, _ in told] == ["a", "b", "c"]
    assert len({identity for _, identity in told}) == 3


def test_launches_that_come_together_wait_for_one_template(own: Daemon) -> None:
    with ThreadPoolExecutor(3) as threads:
        paths = threads.map(lambda name: launch(own, name)["timing"]["path"], ("a", "b", "c"))
    assert list(paths) == ["warm"] * 3
    assert len(templates(own)) == 1


def test_another_shape_boots_and_another_project_has_a_template_of_its_own(own: Daemon) -> None:
    launch(own, "a")
    assert launch(own, "b", "--cpus", "2")["timing"]["path"] == "cold"
    own.roost("project", "create", "theirs")
    own.roost("launch", "tiny", "c", "--memory", "128MiB", "--project", "theirs", timeout=120)
    assert len(templates(own)) == 2


def test_a_cold_start_is_there_for_the_asking(own: Daemon) -> None:
    status = launch(own, "a", "--cold")
    assert status["timing"]["path"] == "cold"
    assert not [warning for warning in status["warnings"] if "template" in warning]
    assert templates(own) == set()


def test_templates_outlive_the_daemon(kept: Daemon) -> None:
    before = templates(kept)
    kept.stop()
    kept.start()
    assert launch(kept, "b")["timing"]["path"] == "warm"
    assert templates(kept) == before


@pytest.mark.fault(46)
@pytest.mark.parametrize("file", ["memory", "device", "checkpoint.json"])
def test_a_template_that_somebody_touched_is_never_loaded(kept: Daemon, file: str) -> None:
    (before,) = templates(kept)
    kept.stop()
    touched = kept.state / "checkpoints" / before / file
    with touched.open("r+b") as stream:
        stream.seek(-touched.stat().st_size // 2, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    kept.start()
    assert launch(kept, "b")["timing"]["path"] == "warm"
    assert before not in templates(kept)
    assert answer(kept, "b")[0] == "b"


def test_the_image_takes_its_templates_with_it(kept: Daemon) -> None:
    assert templates(kept)
    kept.roost("image", "delete", "tiny", "--yes", timeout=60)
    deadline = time.monotonic() + 60
    while templates(kept):
        assert time.monotonic() < deadline, "a template of an image that is gone stays"
        time.sleep(0.2)


@pytest.mark.parametrize("point", ["warm.started", "warm.sealed"])
def test_a_daemon_that_dies_while_it_makes_a_template_leaves_nothing_of_it(
    new_daemon: Callable[..., Daemon], point: str
) -> None:
    daemon = new_daemon()
    daemon.environ["ROOST_HOST"] = f"unix:{daemon.socket}"
    warm(daemon, ROOST_FAILPOINT=f"{point}:kill")
    daemon.roost("launch", "tiny", "a", "--memory", "128MiB", "--no-wait", check=False)
    assert daemon.process is not None
    assert daemon.process.wait(60) == -9
    hidden = [entry.name for entry in (daemon.state / "spares").iterdir()]
    assert len(hidden) == 1
    daemon.start()
    assert settled(daemon, {"a"})["a"]["timing"]["path"] == "warm"
    assert hidden[0] not in {entry.name for entry in (daemon.run / "machines").iterdir()}
    assert not (daemon.state / "spares" / hidden[0]).exists()


@pytest.mark.fault(49)
@needs_root
def test_no_page_of_a_machine_may_be_merged_with_anothers(new_daemon: Callable[..., Daemon]) -> None:
    before = KSM.read_text() if KSM.exists() else ""
    with merging_asked_for():
        daemon = warm(new_daemon())
    pids = [launch(daemon, name)["pid"] for name in ("a", "b")]
    maps = [Path(f"/proc/{pid}/smaps").read_text() for pid in pids]
    flags = [line.split()[1:] for text in maps for line in text.splitlines() if line.startswith("VmFlags:")]
    assert len(flags) > 100
    assert not [words for words in flags if "mg" in words]
    assert (KSM.read_text() if KSM.exists() else "") == before


@contextlib.contextmanager
def merging_asked_for() -> Iterator[None]:
    """What is started meanwhile asks the kernel to merge all its pages, where the kernel can (Linux 6.7)."""
    with contextlib.suppress(OSError):
        kernel.prctl(kernel.PR_SET_MEMORY_MERGE, 1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            kernel.prctl(kernel.PR_SET_MEMORY_MERGE, 0)


@pytest.fixture
def bounded(group: Path, new_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """A daemon in that group, with a machine "first"; it has ended when the group is removed."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        daemon = warm(new_daemon())
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    launch(daemon, "first")
    yield daemon
    assert daemon.process is not None
    assert daemon.process.poll() is None
    daemon.delete_machines()
    daemon.stop()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with 1 GiB of memory below our own, of whichever version."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    tops = {"": Path("/sys/fs/cgroup"), "memory": Path("/sys/fs/cgroup/memory")}
    found = [tops[kind] / name.lstrip("/") for _, kind, name in lines if kind in tops]
    limits = [(own, file) for own in found for file in ("memory.max", "memory.limit_in_bytes") if (own / file).exists()]
    if not limits:
        pytest.skip("no control group with memory that could be bounded")
    own, file = limits[0]
    made = own / f"roost-test-{os.getpid()}"
    made.mkdir()
    try:
        (made / file).write_text(str(1024 * MiB))
        yield made
    finally:
        made.rmdir()


@pytest.mark.fault(48)
@needs_root
def test_a_storm_of_forks_ends_in_refusals_and_nobody_is_killed(bounded: Daemon) -> None:
    wanted = [f"m{number}" for number in range(20)]
    spec = {"image": "tiny", "memory": 128 * MiB}
    with ThreadPoolExecutor(8) as threads:
        document = {"kind": "machine", "project": "default"}
        asked = threads.map(
            lambda name: bounded.request("POST", "/v1/machines", {**document, "name": name, "spec": spec})[0],
            wanted,
        )
        assert set(asked) == {201}
    assert 2 <= len(refused(bounded, {*wanted, "first"})) <= 18


@pytest.mark.fault(48)
@needs_root
def test_a_storm_of_clones_ends_in_refusals_and_nobody_is_killed(bounded: Daemon) -> None:
    boot = bounded.roost("exec", "first", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
    done = bounded.roost("clone", "first", "kid", "--count", "50", check=False)
    assert "MiB are left" in done.stderr
    assert 30 <= len(refused(bounded, {*(f"kid-{number}" for number in range(1, 51)), "first"})) <= 48
    assert bounded.roost("exec", "first", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout == boot
    uids = {item["meta"]["uid"] for item in bounded.machines() if item["status"]["phase"] == "failed"}
    assert not uids & {entry.name for entry in (bounded.state / "machines").iterdir()}


def refused(daemon: Daemon, names: set[str]) -> set[str]:
    """The machines that were refused for want of memory; the others run."""
    told = settled(daemon, names)
    failed = {name: status["error"] for name, status in told.items() if status["phase"] == "failed"}
    assert {error["code"] for error in failed.values()} == {"unavailable"}
    assert all("MiB are left" in error["why"] and error["fix"] for error in failed.values())
    assert {status["phase"] for name, status in told.items() if name not in failed} == {"running"}
    return set(failed)


def settled(daemon: Daemon, names: set[str]) -> dict[str, Any]:
    """The status of each machine, once it runs or has failed."""
    deadline = time.monotonic() + 120
    while True:
        told = {item["name"]: item["status"] for item in daemon.machines() if item["name"] in names}
        if all(
            status["phase"] == "failed" or (status["phase"] == "running" and status["agent"] == "roost")
            for status in told.values()
        ):
            return told
        assert time.monotonic() < deadline, {name: status["phase"] for name, status in told.items()}
        time.sleep(0.2)
