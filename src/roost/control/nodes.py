"""The node object of this host: written when the daemon starts and whenever the accelerator verdict is known."""

from __future__ import annotations

import re
import uuid

import msgspec

from roost.control.events import now
from roost.errors import NotFound
from roost.model import codec
from roost.model.facts import HostFacts
from roost.model.kinds import BY_NAME, key_of
from roost.model.meta import Meta
from roost.model.node import Node, NodeStatus, Verdict
from roost.store.base import Store

_NODE = BY_NAME["node"]


def node_name(hostname: str) -> str:
    """A host name as an object name: small letters, digits and dashes, at most 63."""
    return re.sub(r"[^a-z0-9-]+", "-", hostname.lower().split(".")[0]).strip("-")[:63] or "localhost"


async def announce(store: Store, name: str, facts: HostFacts, memory_free: int, verdict: Verdict | None = None) -> Node:
    """Write what this host is. Keeps the spec and, without a new `verdict`, the old verdict."""
    key = key_of(_NODE, "system", name)
    try:
        entry = await store.get(key)
        assert entry.value is not None
        node, revision = codec.stored(entry.value, Node), entry.revision
    except NotFound:
        node, revision = Node(name=name, meta=Meta(uid=str(uuid.uuid4()), created=now(), creator="roost")), 0
    status = NodeStatus(
        cpus=facts.cpus,
        memory=facts.memory,
        memory_free=memory_free,
        arch=facts.arch,
        kernel=facts.kernel,
        qemu={arch: binary.version for arch, binary in facts.emulators.items()},
        verdict=verdict or node.status.verdict,
        seen=now(),
    )
    node = msgspec.structs.replace(node, status=status)
    await store.put(key, codec.encode(node), expect=revision)
    return node
