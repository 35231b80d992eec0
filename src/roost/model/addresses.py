"""IP addresses that mean the computer which uses them, its link, or the service that tells a computer of a cloud its secrets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

_METADATA = {ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")}
"""Those of AWS, Alibaba and Azure that are no link-local ones, as 169.254.169.254 is."""


def is_own(address: IPv4Address | IPv6Address) -> bool:
    """Whether what answers there is no service of the network. An IPv4 address in an IPv6 one is what it is."""
    plain = getattr(address, "ipv4_mapped", None) or address
    special = plain.is_loopback or plain.is_unspecified or plain.is_link_local or plain.is_multicast
    return bool(special) or plain in _METADATA
