"""passt's arguments."""

from __future__ import annotations

import pytest

from roost.errors import Invalid
from roost.model.machine import Publish
from roost.network.userplan import passt


def test_nothing_is_published_that_was_not_asked_for_and_the_gateway_leads_nowhere() -> None:
    assert passt("/usr/bin/passt", (), 3) == (
        "/usr/bin/passt", "--foreground", "--quiet", "--ipv4-only", "--no-map-gw",
        "--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2", "--dns-forward", "10.0.2.3", "--fd", "3",
    )  # fmt: skip


def test_ports_are_published_on_the_loopback_unless_told_otherwise() -> None:
    ports = (
        Publish(host_port=2222, guest_port=22),
        Publish(host_port=53, guest_port=5353, host_ip="0.0.0.0", protocol="udp"),
    )
    words = passt("passt", ports, 3)
    assert words[-6:-2] == ("--tcp-ports", "127.0.0.1/2222:22", "--udp-ports", "0.0.0.0/53:5353")


@pytest.mark.fault(58)
@pytest.mark.parametrize("address", ["127.0.0.1/22,all", "all", "", "127.0.0.1 -d", "127.1", "::1", "127.0.0.1%lo"])
def test_what_is_no_plain_ipv4_address_is_refused_by_its_field(address: str) -> None:
    with pytest.raises(Invalid) as caught:
        passt("passt", (Publish(host_port=1, guest_port=1, host_ip=address),), 3)
    assert [problem.path for problem in caught.value.problems] == ["spec.publish[0].host_ip"]
