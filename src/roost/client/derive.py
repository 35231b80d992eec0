"""Makes the SDK's blocking face from its asynchronous one: `python -m roost.client.derive` writes it, `--check` says whether it is current.

The verbs are written once, as coroutines. Their blocking twins are the same text without `async` and `await`, over the other
`wait` module: readable, typed and debuggable like any module, and never written by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE, TARGET = HERE / "aio", HERE / "blocking"
BY_HAND = frozenset({"__init__.py", "wait.py"})

RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"roost\.client\.aio\b", "roost.client.blocking"),
        (r"\bconnect_async\b", "connect"),
        (r"\basync (def|for|with)\b", r"\1"),
        (r"\bawait ", ""),
        (r"\bAsync(?=[A-Z])", ""),
        (r"\basynccontextmanager\b", "contextmanager"),
        (r"\bStopAsyncIteration\b", "StopIteration"),
        (r"__a(iter|next|enter|exit)__", r"__\1__"),
    )
]
NOTE = """# Derived from {source} by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""


def derived() -> dict[Path, str]:
    """The blocking modules by path, as they should be."""
    return {
        TARGET / source.name: _blocking(source) for source in sorted(SOURCE.glob("*.py")) if source.name not in BY_HAND
    }


def stale() -> list[Path]:
    """The blocking modules that are not as they should be, missing or left over."""
    wanted = derived()
    present = {path for path in TARGET.glob("*.py") if path.name not in BY_HAND}
    different = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    return sorted({*different, *(present - set(wanted))})


def _blocking(source: Path) -> str:
    text = source.read_text()
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return NOTE.format(source=f"aio/{source.name}") + text


def main(arguments: list[str]) -> int:
    """Write what is stale; with `--check` only say so, by the exit code."""
    found = stale()
    if "--check" not in arguments:
        wanted = derived()
        for path in found:
            if path in wanted:
                path.write_text(wanted[path])
            else:
                path.unlink()
    sys.stdout.writelines(f"{path.relative_to(HERE)}\n" for path in found)
    return 1 if found and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
