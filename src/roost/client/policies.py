"""A program's policy as its document holds it; pure."""

from __future__ import annotations

from typing import Any

from roost.runtimes.base import Peer, Policy


def as_document(policy: Policy) -> dict[str, Any]:
    """The policy with the fields and types of `roost.model.program.PolicySpec`."""
    plain: dict[str, Any] = policy._asdict()
    return plain | {
        "fs": [grant._asdict() for grant in policy.fs],
        "env": dict(policy.env),
        "net": [_peer(peer) for peer in policy.net],
        "publish": [each._asdict() for each in policy.publish],
        "require": list(policy.require),
    }


def _peer(peer: Peer) -> str:
    host = f"[{peer.host}]" if ":" in peer.host else peer.host
    return f"{host}:{peer.port}"
