"""Every runtime passes the suite that every runtime must pass."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.testing import runtimes
from roost.testing.lab import Case
from roost.testing.runtimes import CASES, reason_against
from tests.conformance.laboratory import Laboratory
from tests.live.zygotes import a_world
from tests.programs import build, managed

pytestmark = pytest.mark.live

PROGRAMS = Path(__file__).parents[1] / "programs"


class Subject(NamedTuple):
    """A runtime, where its probe program comes from, and whether it is run by a zygote, which has a sandbox ready."""

    name: str
    runtime: str
    program: Callable[[], Path]
    zygote: bool = False


SUBJECTS = (
    Subject("wasm", "wasm", lambda: build.program("probe", "wasm")),
    Subject("native", "native", lambda: build.program("probe")),
    Subject("aarch64", "foreign", lambda: build.program("probe", "aarch64")),
    Subject("s390x", "foreign", lambda: build.program("probe", "s390x")),
    Subject("jvm", "jvm", managed.jar),
    Subject("clr", "clr", managed.clr),
    Subject("wine", "wine", lambda: build.program("probe", "exe")),
    Subject("script", "script", lambda: PROGRAMS / "probe.py"),
    Subject("wasm by the zygote", "wasm", lambda: build.program("probe", "wasm"), zygote=True),
    Subject("jvm by the zygote", "jvm", managed.jar, zygote=True),
    Subject("wine by the zygote", "wine", lambda: build.program("probe", "exe"), zygote=True),
)


def missing(subject: Subject) -> str:
    """What this host lacks to run it."""
    from roost.runtimes import detect, registry

    found = detect.detect(str(subject.program()))
    needs = registry.choose(found, subject.runtime).needs(found)
    return ", ".join(f"{need.what} ({need.install})" for need in needs)


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    if why := missing(found):
        pytest.skip(f"not installed: {why}")
    return found


@pytest.fixture
def place(subject: Subject) -> Iterator[Path]:
    """Where a program is run: not below /tmp, which is private to every program. What a zygote has ready is for one directory."""
    if subject.zygote:
        made = Path(f"/var/tmp/roost-conformance-{os.getpid()}")
        made.mkdir()
    else:
        made = Path(tempfile.mkdtemp(prefix="roost-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of one."""
    with a_world(tmp_path_factory.mktemp("zygote")) as world:
        world.start()
        yield world.directory


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_runtime(request: pytest.FixtureRequest, subject: Subject, case: Case, place: Path) -> None:
    if reason := reason_against(subject.runtime, case):
        pytest.skip(reason)
    # Begun when it is wanted: one that has nothing to do ends.
    used = request.getfixturevalue("zygote") if subject.zygote else None
    case(Laboratory(subject.runtime, subject.program(), place, ("--vm", subject.runtime), used))


def test_what_can_not_be_expressed_names_cases_that_exist() -> None:
    names = {case.__name__ for case in CASES}
    assert [name for table in runtimes.INEXPRESSIBLE.values() for name in table if name not in names] == []
    assert len(names) == len(CASES) >= 60
