"""No page of a guest is ever shared with a stranger's because it happens to be equal: whoever can time his own writes would learn of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from roost.hypervisor.plan import plan
from tests.golden.test_hypervisor_plans import CASES, Case, host

MERGEABLE = 'sum(" mg" in line for line in open("/proc/self/smaps") if line.startswith("VmFlags"))'
ASK = "kernel.prctl(kernel.PR_SET_MEMORY_MERGE, 1)"


def run(*lines: str) -> str:
    """What a process prints whose parent asked the kernel to merge all its pages."""
    child = "import subprocess, sys; from roost.host import kernel, service; " + "; ".join(lines)
    shown = f"import sys; print({MERGEABLE})"
    child += f"; print(subprocess.run([sys.executable, '-c', {shown!r}], capture_output=True, text=True).stdout)"
    return subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.fault(49)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_guest_asks_for_its_pages_to_be_merged(case: Case) -> None:
    argv = plan(case.launch, host(case.host)).argv
    assert "mem-merge=off" in argv[argv.index("-machine") + 1].split(",")
    assert not [word for word in argv if '"merge":true' in word.replace(" ", "") or "merge=on" in word]


@pytest.mark.fault(49)
def test_nobody_else_can_ask_for_it_on_our_behalf() -> None:
    if run(ASK) in ("", "0"):
        pytest.skip("this kernel does not merge the pages of whole processes")
    assert run(ASK, "service.harden()") == "0"


@pytest.mark.fault(49)
def test_the_switch_of_the_host_is_not_ours() -> None:
    sources = Path(sys.modules[plan.__module__].__file__ or "").parents[1]
    assert [path for path in sources.rglob("*.py") if "mm/ksm" in path.read_text()] == []
