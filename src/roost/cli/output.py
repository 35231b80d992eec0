"""What a verb has at hand that talks to nobody but the user: the global options, and where to print and ask."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import Any

from roost.cli import render
from roost.errors import Invalid


class Output:
    """The command's surroundings. `goes_on` is what a Ctrl-C leaves behind, in words."""

    def __init__(self, options: Namespace) -> None:
        self.output: str | None = options.output
        self.quiet: bool = options.quiet
        self.yes: bool = options.yes
        self.project: str = options.project or os.environ.get("ROOST_PROJECT") or "default"
        self.host: str | None = options.host
        self.goes_on = ""

    def say(self, text: str) -> None:
        """Tell people, on standard output, unless they want quiet or something for programs."""
        if not self.quiet and self.output in (None, "table"):
            print(render.clean(text))

    def warn(self, text: str) -> None:
        """Tell people, on standard error."""
        print(f"warning: {render.clean(text)}", file=sys.stderr)

    def show(self, value: Any, table: render.Table) -> None:
        """Print objects: as `-o` says, else as the table."""
        render.show(value, self.output or "table", table)

    def confirm(self, question: str) -> None:
        """Ask before something that can not be undone. Raises Invalid when nobody can be asked, or the answer is not yes."""
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise Invalid(question, "nobody is there to be asked", "add --yes")
        print(f"{render.clean(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Invalid("nothing was done", "the answer was not yes")

    def close(self) -> None:
        """Let go of what was opened."""
