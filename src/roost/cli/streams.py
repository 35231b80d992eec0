"""Printing what a guest or a program printed."""

from __future__ import annotations

import sys

from roost.cli import render, terminal
from roost.cli.context import Context
from roost.client.protocol import Request


def print_log(context: Context, target: str) -> int:
    """Print a log of the API: byte for byte into a pipe, without anything that a terminal obeys on a terminal."""
    answer = context.session.open(Request("GET", target))
    safe = sys.stdout.isatty()
    sys.stdout.flush()
    try:
        for piece in answer.pieces():
            terminal.write(sys.stdout.fileno(), render.clean_stream(piece) if safe else piece)
    finally:
        answer.close()
    return 0
