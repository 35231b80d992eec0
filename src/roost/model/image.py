"""An image: an immutable disk a machine can start from, named by its digest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

from roost.errors import Problem
from roost.model.meta import Arch, GiB, Meta, Size, Struct, Trouble

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


class ImageStatus(Struct, frozen=True, kw_only=True):
    """What is. `digest` is "sha256:..." of the disk as stored (or of kernel + initramfs for a diskless template)."""

    phase: Literal["pending", "building", "ready", "failed"] = "pending"
    generation: int = 0
    digest: str = ""
    arch: Arch | None = None
    size: int = 0
    virtual_size: int = 0
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
