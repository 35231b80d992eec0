"""What all tests share: private directories, and the time limit of unit tests."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

from roost.config import Config
from tests import progress
from tests.ordinary import open_tun

HERE = Path(__file__).parent
UNIT_SECONDS = 0.25
"""CPU seconds a unit test may take; measured in CPU time because others may keep the host busy."""
MARGIN = 8.0
"""Over the limit a test is named in the summary, over MARGIN times the limit it fails: interpreters and hosts differ in speed."""

LONGEST = (
    "live/test_boot.py", "live/test_cycles.py",
    "live/test_snapshots.py", "live/test_clone_crash.py", "live/test_clone.py", "live/test_cloudinit.py",
    "live/test_tpm.py", "live/test_disk.py", "live/test_disk_full.py", "live/test_flatten.py", "live/test_run_programs.py",
    "live/test_warm.py", "live/test_crash.py", "live/test_identity.py", "live/test_doctor_storage.py", "live/test_templates.py",
    "live/test_volumes.py", "live/test_hypervisor_volumes.py", "live/test_run_escapes.py", "live/test_checkpoint.py",
    "live/test_hypervisor.py", "live/test_import.py", "live/test_memory.py",
    "live/test_doctor_network.py", "live/test_fabric_life.py", "live/test_networks.py", "live/test_spanning_machines.py",
    "live/test_tutorial_networks.py", "live/test_vxlan.py", "live/test_network_services.py", "live/test_fabric.py",
    "live/test_network.py", "live/test_machine.py", "live/test_run_attacks.py", "live/test_run_limits.py", "live/test_zygote.py",
)  # fmt: skip
"""The files that take half a minute and more, so that no worker is left alone with one of them at the end: about in the order of
their times, but that the second wants no Debian, which the first builds meanwhile."""
SHORT = (
    "conformance/test_store_crash.py",
    "conformance/test_images.py",
    "unit/api/test_isolation.py",
    "unit/test_memory.py",
)
"""The longest of those that are over in seconds."""

_slow: dict[str, float] = {}

# Tests set the directories they want; what the caller uses must not be found by accident.
for _name in ("ROOST_HOST", "ROOST_PROJECT", "ROOST_TOKEN", "ROOST_STATE", "ROOST_RUN", "ROOST_FAILPOINT"):
    os.environ.pop(_name, None)
os.environ["ROOST_ZYGOTE"] = "0"  # tests of the zygote bring one of their own; another would outlive its test

# A shell's "&" or "nohup" had them ignored, by all that tests start too.
for _number, _usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings with private directories, short enough for socket names."""
    directory = tmp_path_factory.mktemp("r")
    (directory / "s").mkdir(mode=0o700)
    (directory / "r").mkdir(mode=0o700)
    return Config(state=directory / "s", run=directory / "r")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, all live ones before the others: `scripts/test` gives them to its workers in this order."""
    places = {HERE / name: place for place, name in enumerate((*LONGEST, HERE / "live", *SHORT, HERE))}
    items.sort(key=lambda item: next(places[path] for path in (item.path, *item.path.parents) if path in places))


def pytest_configure(config: pytest.Config) -> None:
    """Ordinary users may make taps while tests run, whatever is usual in this container; the workers of one run share that."""
    if not hasattr(config, "workerinput"):
        config.add_cleanup(open_tun())
    progress.install(config)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let hypothesis make its tables of Unicode, which it keeps in the checkout, before any test is timed.

    What was collected stays to the end: the garbage collector need not go through it again and again.
    """
    if any(hypothesis.is_hypothesis_test(getattr(item, "obj", None)) for item in session.items):
        hypothesis.find(strategies.text(), lambda text: True)
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Hold unit tests to their time."""
    begin = time.process_time()
    result = yield
    used = time.process_time() - begin
    if "unit" in Path(str(item.path)).parts and used > UNIT_SECONDS:
        _slow[item.nodeid] = used
        if used > UNIT_SECONDS * MARGIN:
            why = f"a unit test took {used:.2f} s of CPU time; the limit is {UNIT_SECONDS} s"
            pytest.fail(f"{why}: use the virtual clock, or do less", pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the unit tests that are over their limit."""
    if _slow:
        terminalreporter.section(f"unit tests over {UNIT_SECONDS} s of CPU time")
        for name, used in sorted(_slow.items(), key=lambda entry: -entry[1]):
            terminalreporter.line(f"{used:6.2f} s  {name}")
