"""Networks to plan in tests: two machines and what belongs to them, in every mode."""

from __future__ import annotations

from roost.model.network import Subnet, Vxlan, VxlanPeer
from roost.model.ruleset import Rule, RuleSetSpec
from roost.network import names
from roost.network.base import Attachment, Published, Wanted

SUBNETS = (Subnet(cidr="10.20.0.0/24", gateway="10.20.0.1"), Subnet(cidr="fd12:3456::/64", gateway="fd12:3456::1"))
TRANSFER = ("172.19.4.6", "172.19.4.7", "fd99::2", "fd99::3")
WEB = RuleSetSpec(
    rules=(
        Rule(direction="in", action="deny", protocol="tcp", ports=("81",)),
        Rule(direction="in", protocol="tcp", ports=("443", "80-90", "85-100", "101")),
        Rule(direction="in", protocol="icmp", cidr="198.51.100.0/24"),
        Rule(direction="in", protocol="udp", ports=("53",), ruleset="web"),
    )
)
QUIET = RuleSetSpec(
    rules=(
        Rule(direction="out", protocol="tcp", ports=("443",), cidr="0.0.0.0/0"),
        Rule(direction="out", protocol="any", cidr="2001:db8::/32"),
    )
)


def attached(number: int, *rulesets: str, **more: object) -> Attachment:
    """A port of machine `m<number>`, whose addresses end with number + 2."""
    uid = f"00000000-0000-4000-8000-{number:012x}"
    values: dict[str, object] = {
        "machine": f"m{number}",
        "uid": uid,
        "project": "shop",
        "port": "lan",
        "mac": names.mac(uid, "lan"),
        "addresses": (f"10.20.0.{number + 2}", f"fd12:3456::{number + 2:x}"),
        "interface": names.tap(uid, "lan"),
        "rulesets": rulesets or ("default",),
    }
    return Attachment(**{**values, **more})  # type: ignore[arg-type]


def network(**more: object) -> Wanted:
    """A nat network with the kernel's door, two ports, and one of them published."""
    ports = (attached(0, "web", "default"), attached(1, "quiet"))
    values: dict[str, object] = {
        "uid": "3f2b",
        "project": "shop",
        "name": "lan",
        "mode": "nat",
        "subnets": SUBNETS,
        "mtu": 1500,
        "domain": "shop.internal",
        "door": "kernel",
        "transfer": TRANSFER,
        "ports": ports,
        "rulesets": {"web": WEB, "quiet": QUIET},
        "underlay": ("192.0.2.7", "2001:db8:7::7"),
        "published": (Published("web", "127.0.0.1", 8080, "tcp", "10.20.0.2", 8080, ports[0].interface),),
    }
    return Wanted(**{**values, **more})  # type: ignore[arg-type]


SPANNED = Vxlan(
    id=42,
    local="192.0.2.7",
    subnets=("10.20.0.0/25", "fd12:3456::/65"),
    peers=(VxlanPeer(address="192.0.2.8", subnets=("10.20.0.128/25", "fd12:3456:0:0:8000::/65")),),
)
SAMPLES = {
    "nat": network(),
    "pasta": network(door="pasta", transfer=(), resolvers=("192.0.2.53",)),
    "isolated": network(mode="isolated", door="none", transfer=(), published=(), subnets=SUBNETS[:1]),
    "routed": network(mode="routed", flow_log=True),
    "vxlan": network(vxlan=SPANNED, mtu=1450),
    "limited": network(ports=(attached(0, "gone", down=80_000_000, up=8_000_000), attached(1, link=False))),
    "bridged": network(
        mode="bridged",
        door="bridge",
        subnets=(),
        transfer=(),
        published=(),
        rulesets={},
        interface="br0",
        ports=(attached(0, addresses=(), up=8_000_000), attached(1, addresses=(), rulesets=("web",))),
    ),
    "empty": network(ports=(), published=(), rulesets={}),
}
