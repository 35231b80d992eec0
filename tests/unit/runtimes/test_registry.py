"""Which runtime is taken for a file, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from roost.errors import Invalid, NotFound, RoostError, Unavailable
from roost.runtimes import registry
from roost.runtimes.base import Command, Ending, Found, Need, Progress, Request, Runtime, silent
from roost.runtimes.policy import NAMES
from tests.unit.runtimes.samples import GOOD, detected


class Fake:
    """A runtime that scores as it is told."""

    def __init__(self, name: str = "dosbox", score: int = 0, needs: tuple[Need, ...] = ()) -> None:
        self.name, self._score, self._needs = name, score, needs

    def probe(self) -> Mapping[str, Any]:
        return {}

    def score(self, found: Found) -> int:
        return self._score

    def needs(self, found: Found) -> tuple[Need, ...]:
        return self._needs

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Any:
        return None

    def command(self, found: Found, request: Request, prepared: Any) -> Command:
        return Command(("/app/x",))

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        return ending


class Dosbox(Fake):
    """What a third party brings: it runs programs of DOS, and is very sure of itself."""

    def score(self, found: Found) -> int:
        return 90 if found.kind == "dos" else 0


class Point(EntryPoint):
    """An entry point that is not installed."""

    def load(self) -> Any:
        if self.name == "broken":
            raise ImportError("no module named y")
        return Dosbox


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        Point("broken", "x:y", registry.GROUP),
        Point("dosbox", "x:y", registry.GROUP),
        Point("wasm", "evil:Wasm", registry.GROUP),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points if group == registry.GROUP else [])


def beside(monkeypatch: pytest.MonkeyPatch, **fakes: Fake) -> None:
    monkeypatch.setattr(registry, "built_in", lambda name: fakes.get(name, Fake(name)))


def test_every_built_in_runtime_is_there_under_its_name() -> None:
    names = [registry.built_in(name).name for name in registry.BUILT_IN]
    assert names == list(registry.BUILT_IN) == list(NAMES)


@pytest.mark.parametrize(
    ("sample", "name"),
    [
        ("wasm", "wasm"), ("component", "wasm"), ("wat", "wasm"), ("class", "jvm"), ("jar", "jvm"), ("exe", "wine"), ("clr", "clr"),
        ("elf-big", "foreign"), ("script", "script"), ("pyz", "script"),
    ],
)  # fmt: skip
def test_every_kind_has_its_runtime(sample: str, name: str) -> None:
    assert registry.choose(detected(GOOD[sample])).name == name


def test_the_highest_score_wins_and_of_equals_the_one_that_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found("clr")
    beside(monkeypatch, clr=Fake("clr", 50), wine=Fake("wine", 60))
    assert registry.choose(found).name == "wine"
    beside(monkeypatch, clr=Fake("clr", 50, (Need("Mono", "x"),)), wine=Fake("wine", 50))
    assert registry.choose(found).name == "wine"
    assert [each.name for each in registry.candidates(found)] == ["wine", "clr"]


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (Found("unknown", refusal="the file is empty", fix="fetch it"), NotFound),
        (Found("cwasm", refusal="the file is native code", fix="run the .wasm"), Unavailable),
        (Found("exe", "i386", refusal="the file is a 32-bit program", fix="take 64-bit"), Unavailable),
    ],
)
def test_a_refused_file_is_refused_in_its_own_words(found: Found, kind: type[RoostError], installed: None) -> None:
    with pytest.raises(kind) as refused:
        registry.choose(found)
    assert (refused.value.why, refused.value.fix) == (found.refusal, found.fix)


def test_a_third_party_runs_what_nothing_built_in_does(installed: None) -> None:
    dos = Found("dos", "i386", refusal="the file is a program of DOS", fix="DOSBox runs it")
    assert registry.choose(dos).name == registry.choose(dos, "dosbox").name == "dosbox"
    assert isinstance(registry.choose(dos, "dosbox"), Dosbox)
    assert {"dosbox"} | set(NAMES) == {each.name for each in registry.all_runtimes()}


def test_a_third_party_that_does_not_load_is_in_nobody_s_way_but_of_those_who_ask_for_it(installed: None) -> None:
    assert registry.choose(Found("dos", refusal="the file is a program of DOS")).name == "dosbox"
    with pytest.raises(Unavailable) as refused:
        registry.choose(Found("dos"), "broken")
    assert refused.value.why == "x:y does not load: ImportError: no module named y"


def test_no_third_party_takes_a_built_in_name(installed: None) -> None:
    assert not isinstance(registry.choose(detected(GOOD["wasm"]), "wasm"), Dosbox)


def test_a_runtime_that_is_asked_for_and_does_not_fit_is_refused_with_those_that_do() -> None:
    with pytest.raises(Invalid) as refused:
        registry.choose(detected(GOOD["wasm"]), "jvm")
    assert "it is a wasm; runtimes for that: wasm" in refused.value.why
    with pytest.raises(Invalid, match="no runtime 'docker'") as refused:
        registry.choose(detected(GOOD["wasm"]), "docker")
    assert "wasm, jvm, wine, clr, foreign, native, script" in refused.value.why


def test_asking_for_a_runtime_overrides_a_refusal_that_it_does_not_share(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = Found("wasm", refusal="the file has no _start", fix="roost.Wasm")
    beside(monkeypatch, wasm=Fake("wasm", 50))
    assert registry.choose(reactor, "wasm").name == "wasm"
    with pytest.raises(Unavailable, match="can not run"):
        registry.choose(reactor, "jvm")


def test_a_kind_that_nothing_scores_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    beside(monkeypatch)
    with pytest.raises(Unavailable) as refused:
        registry.choose(Found("elf", "hexagon"))
    assert refused.value.why == "no runtime runs an elf for hexagon"


def test_the_way_to_a_wasm_run_imports_light_modules_only() -> None:
    heavy = "msgspec argparse json asyncio pathlib dataclasses subprocess importlib.metadata difflib socket zlib"
    script = (
        "import sys; from roost.runtimes import detect, registry, policy; from roost.runtimes import detect_wasm, detect_elf;"
        f"policy.parse(['--memory', '1GiB', '--net', 'a:1', 'x']); print(*[n for n in '{heavy}'.split() if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_a_fake_is_a_runtime() -> None:
    runtime: Runtime = Fake()
    assert runtime.name == "dosbox"
