"""To what of the host a bridged network can be bridged."""

from __future__ import annotations

import pytest

from roost.errors import Unavailable
from roost.host.links import LinkFacts
from roost.network.worker import bridge

CARD = LinkFacts(2, "", 1500, "52:54:00:00:00:01", True, (0, 0), (0, 0))
BRIDGE = CARD._replace(number=3, kind="bridge")


def test_a_bridge_of_the_host_is_taken() -> None:
    assert bridge({"eth0": CARD, "br0": BRIDGE}, "br0") == BRIDGE


@pytest.mark.parametrize(
    ("name", "why", "fix"),
    [
        (
            "eth0",
            "eth0 is no bridge",
            "name a bridge of this host (br0): roost network create NAME --mode bridged --interface br0",
        ),
        ("eth9", "this host has no interface eth9", "name a bridge of this host (br0)"),
    ],
)
def test_a_plain_interface_is_refused_and_the_bridges_are_named(name: str, why: str, fix: str) -> None:
    with pytest.raises(Unavailable) as refused:
        bridge({"eth0": CARD, "br0": BRIDGE}, name)
    assert why in refused.value.why
    assert refused.value.fix.startswith(fix)


def test_where_there_is_no_bridge_it_is_said_what_makes_one() -> None:
    with pytest.raises(Unavailable) as refused:
        bridge({"eth0": CARD}, "eth0")
    assert "make a bridge with eth0 as its port" in refused.value.fix
