"""The command line as it is documented: every verb, option and example. `scripts/golden` writes it anew."""

from __future__ import annotations

import os
from pathlib import Path

from roost.cli.reference import reference

GOLDEN = Path(__file__).parent / "command_line.md"


def test_the_command_line_is_as_recorded() -> None:
    if os.environ.get("ROOST_GOLDEN_UPDATE"):
        GOLDEN.write_text(reference())
    assert reference() == GOLDEN.read_text()
