"""Addresses that are no services of the network, in every form in which they may be written."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from roost.model.addresses import is_own


@pytest.mark.fault(61)
@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1", "::ffff:127.0.0.1", "224.0.0.1", "ff02::1",
     "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "::ffff:100.100.100.200"],
)  # fmt: skip
def test_this_host_its_link_and_the_services_that_know_its_secrets(text: str) -> None:
    assert is_own(ip_address(text))


@pytest.mark.parametrize("text", ["93.184.216.34", "10.0.0.1", "192.168.1.1", "2606:2800:220:1::1", "::ffff:10.0.0.1"])
def test_what_others_offer(text: str) -> None:
    assert not is_own(ip_address(text))
