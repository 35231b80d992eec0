"""Where the programs that run inside a guest (or the jail, or QEMU) are: built from `guest/` by `guest/build.py`, shipped in the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from roost.errors import Unavailable

_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[2] / "guest"


def binary(
    arch: str, name: Literal["agent", "init", "escape", "fence", "holder", "relay", "capget.so", "memory.so"]
) -> Path:
    """The static program `name`, or a library that is preloaded into QEMU or dnsmasq, for `arch` (x86_64, aarch64, riscv64).

    Raises Unavailable with the command that builds it.
    """
    path = _HERE / "bin" / arch / name
    if not path.is_file():
        raise Unavailable(
            f"the guest program {name} for {arch} is not there",
            f"{path} does not exist: the package was not built",
            "python guest/build.py  (in the checkout; needs ziglang), or install the wheel",
        )
    return path


def source(name: str) -> Path:
    """A file of `guest/` as shipped: `udhcpc.script`, `roost-agent.service`, the C sources. Raises Unavailable."""
    for directory in (_HERE / "source", _CHECKOUT):
        if (directory / name).is_file():
            return directory / name
    raise Unavailable(
        f"the guest file {name} is not there", f"neither in {_HERE / 'source'} nor in the checkout", "reinstall roost"
    )
