"""What an image is, as its manifest says (no I/O)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from roost.model.image import Hardware
from roost.model.meta import Arch, Firmware, Struct

Progress = Callable[[str, float | None], None]
"""Told what is being done, and how far (0 to 1, None when unknown); called from the event loop."""

AgentKind = Literal["roost", "qemu-ga", "ssh", "none"]


class Manifest(Struct, frozen=True, kw_only=True):
    """An image. The manifest is written last: an image without one does not exist.

    `digest` is "sha256:..." of the disk as stored (diskless: of kernel and initramfs). `name` tells people what it was made from.
    `arch` is None when an upload did not say. `format` "none" means diskless. `size` is bytes on the host, `virtual_size` bytes the
    guest sees. `firmwares` is in order of preference. `os` is "debian:12", "tiny" or "" when unknown. `hardware` is
    the machine of the appliance that it came in.
    """

    digest: str = ""
    name: str
    arch: Arch | None
    format: Literal["qcow2", "none"]
    size: int = 0
    virtual_size: int = 0
    kernel: bool = False
    initramfs: bool = False
    command_line: str = ""
    firmwares: tuple[Firmware, ...]
    agent: AgentKind
    os: str = ""
    hardware: Hardware | None = None
