"""A node: the computer that runs machines."""

from __future__ import annotations

from typing import Literal

import msgspec

from roost.model.meta import Arch, Meta, Struct


class NodeSpec(Struct, frozen=True, kw_only=True):
    """What an operator wants of the node: `schedulable` false keeps new machines off it."""

    schedulable: bool = True


class Verdict(Struct, frozen=True, kw_only=True):
    """Which accelerator machines of the host's own architecture get, and why: KVM only after it really booted a guest here."""

    accelerator: Literal["kvm", "tcg"] = "tcg"
    reason: str = ""
    key: str = ""
    seconds: float = 0.0


class NodeStatus(Struct, frozen=True, kw_only=True):
    """What is: sizes in bytes, versions as the programs print them."""

    cpus: int = 0
    memory: int = 0
    memory_free: int = 0
    arch: Arch | None = None
    kernel: str = ""
    qemu: dict[str, str] = msgspec.field(default_factory=dict)
    verdict: Verdict = Verdict()
    machines: int = 0
    seen: str = ""


class Node(Struct, frozen=True, kw_only=True):
    """The computer that runs machines; one daemon each."""

    kind: Literal["node"] = "node"
    project: str = "system"
    name: str
    meta: Meta = Meta()
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()
