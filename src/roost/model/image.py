"""An image: an immutable disk a machine can start from, named by its digest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from roost.errors import Problem
from roost.model.meta import Arch, Firmware, GiB, Meta, Size, Struct, Trouble

DiskFormat = Literal["qcow2", "raw", "vmdk", "vhd", "vhdx", "vdi"]
"""Formats of disks that are taken and given; a VMDK that is given is a streamOptimized one, a VHD or VHDX one that grows."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ImageSpec(Struct, frozen=True, kw_only=True):
    """Where the image comes from: exactly one of a template, a URL with its sha256, or an upload by the client."""

    template: str | None = None
    url: str | None = None
    sha256: str | None = None
    upload: bool = False
    arch: Arch | None = None
    limit: Size = 64 * GiB
    published: bool = False

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if (self.template is not None) + (self.url is not None) + self.upload != 1:
            yield Problem("", "name exactly one source: template, url or upload")
        if self.url is not None:
            if urlsplit(self.url).scheme not in ("http", "https"):
                yield Problem("url", f"{self.url!r} is not an http or https address")
            if self.sha256 is None:
                yield Problem("sha256", "a URL needs the sha256 of what it must deliver")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            yield Problem("sha256", "is not 64 hexadecimal digits in small letters")


class Hardware(Struct, frozen=True, kw_only=True):
    """The machine that an imported appliance describes; 0, "" and None stand for what it does not say. `memory` is in bytes, `cards` counts its
    network cards, `notes` are sentences on what was left out of it."""

    name: str = ""
    cpus: int = 0
    memory: int = 0
    firmware: Firmware | None = None
    cards: int = 0
    os: str = ""
    notes: tuple[str, ...] = ()


class Attempt(Struct, frozen=True, kw_only=True):
    """One boot of a copy: by which firmware, what came of it and why, after how many seconds."""

    firmware: Firmware
    outcome: Literal["booted", "unclear", "failed"]
    why: str
    seconds: float


class Proof(Struct, frozen=True, kw_only=True):
    """What came of booting a copy of the disk without any network: the best of the `attempts` and what to do next. `screen` is a file on the
    daemon's host with a picture (PNG) of what that one showed last, "" where there is none; `console` the end of what it printed."""

    outcome: Literal["booted", "unclear", "failed"]
    firmware: Firmware
    why: str
    suggestion: str = ""
    screen: str = ""
    console: str = ""
    attempts: tuple[Attempt, ...] = ()


class ImageStatus(Struct, frozen=True, kw_only=True):
    """What is. `digest` is "sha256:..." of the disk as stored (or of kernel + initramfs for a diskless template). `firmwares` are what it may
    boot by, the likeliest first; `hardware` and `proof` are those of a disk that was imported."""

    phase: Literal["pending", "building", "ready", "failed"] = "pending"
    generation: int = 0
    digest: str = ""
    arch: Arch | None = None
    size: int = 0
    virtual_size: int = 0
    firmwares: tuple[Firmware, ...] = ()
    hardware: Hardware | None = None
    proof: Proof | None = None
    progress: str = ""
    fraction: float | None = None
    error: Trouble | None = None


class Image(Struct, frozen=True, kw_only=True):
    """A disk, or a kernel and initramfs, that machines start from."""

    kind: Literal["image"] = "image"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: ImageSpec
    status: ImageStatus = ImageStatus()
