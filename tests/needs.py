"""What a test needs of the host: without it the test is skipped, and says why."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.pool import POOL

SOAK = os.environ.get("ROOST_SOAK", "") == "1"
"""Whether this run uses the full counts (`scripts/test --soak`)."""


def repetitions(reduced: int, full: int) -> int:
    """How often to repeat: `reduced` in an ordinary run, `full` in a soak."""
    return full if SOAK else reduced


def needs_program(*names: str) -> pytest.MarkDecorator:
    """Skip where one of the programs is not installed."""
    missing = [
        name for name in names if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {' '.join(missing)}")


def kvm_boots() -> bool:
    """Whether an earlier run found that KVM boots guests here: that the device opens proves nothing."""
    try:
        return json.loads((POOL / "accelerator.json").read_text())["accelerator"] == "kvm"
    except (OSError, ValueError, KeyError):
        return False


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")
needs_kvm = pytest.mark.skipif(not kvm_boots(), reason="needs a KVM that boots guests")


def skip_if_the_mirror_is_out_of_step(said: str) -> None:
    """Skip when apt says that the files of Debian's mirror do not fit together, as they do while it is being updated."""
    if "Mirror sync in progress" in said:
        pytest.skip("Debian's mirror is out of step with itself: it serves other package lists than it has signed")
