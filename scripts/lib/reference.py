"""Writes the reference of the API: the OpenAPI document as served, a table of its routes, and the JSON Schema of the kinds.

python scripts/lib/reference.py docs/reference
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import roost
from roost.api.app import Api
from roost.api.openapi import document
from roost.api.routes import Route
from roost.api.services import Services
from roost.model import codec
from roost.model.kinds import KINDS
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock


def routes() -> list[Route]:
    """The routes of the API; nothing behind them is asked."""
    absent = cast("Any", None)
    services = Services(
        store=MemoryStore(VirtualClock()),
        guests=absent,
        uploads=absent,
        programs=absent,
        networks=absent,
        now=lambda: "",
        owner=0,
        node="",
        build=roost.__version__,
    )
    return Api(services).routes


def table(listed: list[Route]) -> str:
    """The routes for people."""
    lines = [
        "# API",
        "",
        "HTTP/1.1 over the daemon's unix socket; who calls is the uid of the socket's peer. The whole document is",
        "",
    ]
    lines[2] += (
        " [openapi.json](openapi.json), which the daemon serves at `/openapi.json`; the kinds are in [kinds.json](kinds.json)."
    )
    lines += ["| method | path | what it does |", "| --- | --- | --- |"]
    lines += [f"| {route.method} | `{route.path}` | {route.text} |" for route in listed]
    return "\n".join(lines) + "\n"


def write(directory: Path) -> None:
    """Write the three files."""
    directory.mkdir(parents=True, exist_ok=True)
    listed = routes()
    (directory / "openapi.json").write_text(json.dumps(document(listed, roost.__version__), indent=1) + "\n")
    (directory / "kinds.json").write_text(json.dumps(codec.schema(tuple(kind.type for kind in KINDS)), indent=1) + "\n")
    (directory / "api.md").write_text(table(listed))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
