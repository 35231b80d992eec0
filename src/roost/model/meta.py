"""What every object has: a name, a project, an identity, and rules for all three."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""Names of machines and projects: a DNS label (RFC 1123), so that a name is a host name and safe in every file, argv and ruleset."""

IMAGE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._:-]{0,126}[a-z0-9])?")
"""Names of images: a label that may hold dots, colons and underscores (`debian:12`)."""

SNAPSHOT_NAME = re.compile(rf"{NAME.pattern}\.{NAME.pattern}")
"""Names of snapshots: the machine's or volume's, a dot, and the snapshot's own (`web.ready`)."""

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

Size = Annotated[
    int, msgspec.Meta(ge=0, le=1 << 60, extra={"unit": "bytes"}, description="bytes; may be written 256MiB, 2GiB")
]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400 * 366, description="seconds")]
Port = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Arch = Literal["x86_64", "aarch64", "riscv64"]
Firmware = Literal["direct", "bios", "uefi"]


class Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=False):
    """Base of every word: immutable, keyword-only, unknown fields refused."""


class Meta(Struct, frozen=True, kw_only=True):
    """An object's identity. `uid` is never reused and survives a rename; `generation` counts changes of `spec`."""

    uid: str = ""
    revision: int = 0
    generation: int = 1
    created: str = ""
    creator: str = ""
    deleting: str | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Trouble(Struct, frozen=True, kw_only=True):
    """An error kept in a status: what did not happen, why, the next step, and the code of roost.errors (so that a client raises that error)."""

    what: str
    why: str = ""
    fix: str = ""
    code: str = ""
