"""The part of a network's ruleset that is the same for all: what no guest may do, whatever its rule sets say. Pure.

Named counters count what is dropped, by reason; the dynamic set `dropped` by port.
"""

from __future__ import annotations

from collections.abc import Mapping

from roost.network.base import Chain, Door, Set
from roost.network.names import GATEWAY_LINK_LOCAL, METADATA, TUNNEL, UPLINK

BROADCASTS = 200
"""Frames to all and to groups that a port may send each second (twice as many at once): ARP apart, a guest needs a few for DHCP and MLD."""
NEW_FLOWS = 2000
"""Connections that a port may begin each second, twice as many at once."""
QUESTIONS = 500
"""ARP packets that a port may send each second, twice as many at once."""
ASKED = 1000
"""Datagrams that a port may send each second to the gateway's DHCP and DNS, which all ports share, twice as many at once."""
LINK_LOCALS = 8
"""Link-local addresses that a port may have at once, and as many more in `_RENEWED`: the kernel remembers who they are, of all networks and of the
host itself in one table (net.ipv6.neigh.default.gc_thresh3: 1024 entries), and what is younger than 5 s leaves it for nobody."""

REASONS = (
    "spoofed_mac",
    "spoofed_ipv4",
    "spoofed_ipv6",
    "spoofed_ndp",
    "spoofed_door",
    "rogue_dhcp",
    "rogue_ra",
    "flood_broadcast",
    "flood_new",
    "flood_questions",
    "flood_neighbours",
    "bandwidth",
    "forged_tunnel",
    "underlay",
    "invalid",
    "refused",
    "unasked",
)
"""Why packets are dropped: the named counters of table inet roost. A source that is not the port's (MAC, IPv4, IPv6; ndp: a neighbour
advertisement for what is not link-local; door: one of the network's addresses from without), DHCP servers and routers that guests play, floods of
frames to all, of new connections, of questions to the gateway or of link-local addresses, more than the port's bandwidth, tunnels (VXLAN,
Geneve) to the hosts, the hosts and what is never routed, packets of no connection, what a rule set does not allow, and what the gateway has no
service for."""

ARP_REASONS = ("spoofed_arp", "flood_arp")
"""The same of table arp roost."""

_MOST_BYTES = 16 * 10**9
_METER = "type ifname; size 65535; flags dynamic,timeout; timeout 1m"
_KNOWN_FOR, _RENEWED = "10m", "minute"
_TUNNELS = "{ 4789, 8472, 6081 }"
"""VXLAN (RFC 7348), Linux's VXLAN before that had a number, Geneve (RFC 8926)."""
_NEVER4 = "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4 }"
_NEVER6 = "{ ::/96, ::ffff:0:0/96, fe80::/10, ff00::/8 }"
"""What is never forwarded: this network and this host, link-local, groups, reserved."""


def limits() -> dict[str, Set]:
    """The sets that rules fill by themselves."""
    kept = "type ifname; size 65535; flags dynamic,timeout; timeout 1d"
    known = f"type ifname . ipv6_addr; size 65535; flags dynamic,timeout; timeout {_KNOWN_FOR}"
    meters = {name: Set(_METER, {}) for name in ("broadcasts", "flows", "asked", "newcomers")}
    return {**meters, "locals": Set(known, {}), "dropped": Set(kept, {})}


_ALSO_OURS = ("rogue_dhcp", "rogue_ra")


def chains(door: Door, *, masquerade: bool, tunnel: bool) -> dict[str, Chain]:
    """The base chains and those of the guard rails, which lead to `known`, `forth`, `back` and `arrive`."""
    return {
        **{f"drop-{reason}": drop(reason) for reason in REASONS if reason != "refused"},
        **{
            f"{way}-{reason}": it
            for reason in _ALSO_OURS
            for way, it in zip(("drop", "count"), _drop_guests(reason), strict=True)
        },
        "drop-refused": refuse(),
        "port": _port(),
        "port4": _port4(),
        "port6": _port6(),
        "local": _local(),
        "bounds": _bounds(),
        "gateway": _gateway(),
        "prerouting": _prerouting(door, tunnel=tunnel),
        "flows": Chain(
            (f'iifname "tap*" ct state new add @flows {over(NEW_FLOWS)} goto drop-flood_new',),
            "type filter hook prerouting priority mangle; policy accept;",
        ),
        "input": _input(),
        "forward": _forward(),
        "output": _output(),
        **_postrouting(masquerade=masquerade),
    }


def arp_chains() -> dict[str, Chain]:
    """The chain of table arp roost. What ARP says is never believed (neighbours are permanent): this counts who lies, and bounds the work."""
    return {
        **{f"drop-{reason}": Chain((f"counter name {reason}", "drop")) for reason in ARP_REASONS},
        "input": Chain(
            (
                'iifname != "tap*" accept',
                f"add @questions {over(QUESTIONS)} goto drop-flood_arp",
                "iifname . arp saddr ether . arp saddr ip @sources accept",
                "arp saddr ip 0.0.0.0 arp operation request iifname . arp saddr ether @cards accept",
                "goto drop-spoofed_arp",
            ),
            "type filter hook input priority filter; policy accept;",
        ),
    }


def arp_limits() -> dict[str, Set]:
    """The set of table arp roost that rules fill by themselves."""
    return {"questions": Set(_METER, {})}


def over(rate: int) -> str:
    """The part of a rule that fits what a port sends beyond so many packets a second."""
    return f"{{ iifname limit rate over {rate}/second burst {2 * rate} packets }}"


def drop(reason: str) -> Chain:
    """The chain that drops and counts for this reason."""
    return Chain((f"counter name {reason}", "update @dropped { iifname counter }", "drop"))


def _drop_guests(reason: str) -> tuple[Chain, Chain]:
    """The same, but what our own dnsmasq tells all is not counted: it comes back to where it left, and has no Ethernet header."""
    ours, *rest = drop(reason).rules
    return Chain((f"iifname . ether saddr @cards jump count-{reason}", "drop")), Chain((ours, *rest[:-1]))


def refuse(log: tuple[str, ...] = ()) -> Chain:
    """Whoever is inside is told at once, instead of waiting; whoever is outside learns nothing. A TCP connection that stood heeds only a reset."""
    return Chain(
        (
            *log,
            "counter name refused",
            "update @dropped { iifname counter }",
            f'iifname {{ "{UPLINK}", "{TUNNEL}" }} drop',
            "ct state established meta l4proto tcp reject with tcp reset",
            "reject with icmpx type admin-prohibited",
        )
    )


def _prerouting(door: Door, *, tunnel: bool) -> Chain:
    rules = ['iifname "tap*" goto port']
    if door != "none":
        rules += [
            f'iifname "{UPLINK}" {family} saddr @inside{version} goto drop-spoofed_door' for family, version in _IP
        ]
    if tunnel:
        rules += [
            f'iifname "{TUNNEL}" {family} saddr != @remote{version} goto drop-spoofed_door' for family, version in _IP
        ]
    return Chain(tuple(rules), "type filter hook prerouting priority raw; policy accept;")


_IP = (("ip", 4), ("ip6", 6))


def bandwidth(rates: Mapping[str, int]) -> tuple[dict[str, Set], dict[str, Chain]]:
    """The sets and chains that hold ports (by interface) to so many bytes per second from the machine; none when none is held.

    A burst is what comes in 50 ms, and more than the largest packet, which segmentation offload makes 64 KiB. More than 16 GB/s are 16 GB/s,
    as the kernel counts in 64 bits of bytes times nanoseconds."""
    if not rates:
        return {}, {}
    held = {name: min(rate, _MOST_BYTES) for name, rate in rates.items()}
    sets = {"limited": Set("type ifname : verdict", {name: f" : jump up-{rate}" for name, rate in held.items()}, "map")}
    chains_ = {"port": _port("iifname vmap @limited")}
    for rate in sorted(set(held.values())):
        burst = min(max(rate // 20, 1 << 17), 1 << 30)
        limit = f"{{ iifname limit rate over {rate} bytes/second burst {burst} bytes }}"
        sets[f"up-{rate}"] = Set(_METER, {})
        chains_[f"up-{rate}"] = Chain((f"add @up-{rate} {limit} goto drop-bandwidth",))
    return sets, chains_


def _port(*limited: str) -> Chain:
    return Chain(
        (
            "iifname . ether saddr != @cards goto drop-spoofed_mac",
            *limited,
            f"meta pkttype {{ broadcast, multicast }} add @broadcasts {over(BROADCASTS)} goto drop-flood_broadcast",
            "meta protocol ip goto port4",
            "meta protocol ip6 goto port6",
            "drop",
        )
    )


def _port4() -> Chain:
    return Chain(
        (
            "udp sport 67 goto drop-rogue_dhcp",
            "icmp type redirect goto drop-rogue_ra",
            "iifname . ether saddr . ip saddr @sources4 accept",
            "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
            "meta l4proto igmp drop",
            "goto drop-spoofed_ipv4",
        )
    )


def _port6() -> Chain:
    """A guest's advertisement for a global address is never needed: the router knows where each is. `@th,64,16` begins its target."""
    return Chain(
        (
            "icmpv6 type { nd-router-advert, nd-redirect } goto drop-rogue_ra",
            "udp sport 547 goto drop-rogue_dhcp",
            "icmpv6 type nd-neighbor-advert @th,64,16 != 0xfe80 goto drop-spoofed_ndp",
            "icmpv6 type nd-neighbor-advert @th,64,128 0xfe800000000000000000000000000001 goto drop-spoofed_ndp",
            f"ip6 saddr {GATEWAY_LINK_LOCAL} goto drop-spoofed_ipv6",
            "iifname . ether saddr . ip6 saddr @sources6 accept",
            "ip6 saddr fe80::/10 ip6 daddr { fe80::/10, ff02::/16, fc00::/7 } goto local",
            "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report } accept",
            "goto drop-spoofed_ipv6",
        )
    )


def _local() -> Chain:
    """Whoever has a link-local address is remembered by the kernel, in a table of which nobody may fill more than a little."""
    newcomers = f"{{ iifname limit rate over {LINK_LOCALS}/{_RENEWED} burst {LINK_LOCALS} packets }}"
    return Chain(
        (
            "iifname . ip6 saddr @locals update @locals { iifname . ip6 saddr } accept",
            f"add @newcomers {newcomers} goto drop-flood_neighbours",
            "add @locals { iifname . ip6 saddr } accept",
            "goto drop-flood_neighbours",
        )
    )


def _bounds() -> Chain:
    """Said of the connection's first packet, so that it holds for answers as well."""
    tunnels = [
        f"meta l4proto udp ct original proto-dst {_TUNNELS} ct original {family} daddr @underlay{version} goto drop-forged_tunnel"
        for family, version in _IP
    ]
    hosts = [f"ct original {family} daddr @underlay{version} goto drop-underlay" for family, version in _IP]
    never = (
        f"ct original ip daddr {_NEVER4} goto drop-underlay",
        f"ct original ip6 daddr {_NEVER6} goto drop-underlay",
    )
    return Chain((*tunnels, *hosts, *never))


def _input() -> Chain:
    return Chain(
        (
            'iifname "lo" accept',
            f'iifname "tap*" udp dport {{ 53, 67, 547 }} add @asked {over(ASKED)} goto drop-flood_questions',
            "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
            "ct state established,related accept",
            'iifname "tap*" goto gateway',
            "goto drop-unasked",
        ),
        "type filter hook input priority filter; policy drop;",
    )


def _gateway() -> Chain:
    """DHCP, DNS, metadata, an echo, and what a router must hear: nothing else of the namespace. What guests tell all (mDNS, SSDP) is no offence."""
    return Chain(
        (
            "udp sport 68 udp dport 67 meta nfproto ipv4 accept",
            "udp sport 546 udp dport 547 meta nfproto ipv6 accept",
            "icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report } accept",
            "ip daddr @gateway4 icmp type echo-request accept",
            "ip6 daddr @gateway6 icmpv6 type echo-request accept",
            "ip daddr @gateway4 meta l4proto { tcp, udp } th dport 53 accept",
            "ip6 daddr @gateway6 meta l4proto { tcp, udp } th dport 53 accept",
            f"ip daddr {METADATA} tcp dport 80 accept",
            f"ip daddr {METADATA} icmp type echo-request accept",
            "meta pkttype { broadcast, multicast } drop",
            "goto drop-unasked",
        )
    )


def _forward() -> Chain:
    """A connection that was allowed by the rules as they are bears their mark; all others are judged, those that stand included."""
    return Chain(
        (
            "ct state invalid goto drop-invalid",
            "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            "ct state established,related jump known",
            "ct state related meta l4proto { icmp, icmpv6 } accept",
            "ct direction original goto forth",
            "goto back",
        ),
        "type filter hook forward priority filter; policy drop;",
    )


def _output() -> Chain:
    """From the gateway to guests: its answers, DHCP, RA, resets of what is refused (related to it), and what the relay brings to a published port."""
    return Chain(
        (
            'oifname != "tap*" accept',
            "meta l4proto { icmp, icmpv6 } accept",
            "udp sport 67 udp dport 68 accept",
            "udp sport 547 udp dport 546 accept",
            "ct direction reply accept",
            "ct state related accept",
            "ct state established jump known",
            "goto arrive",
        ),
        "type filter hook output priority filter; policy accept;",
    )


def _postrouting(*, masquerade: bool) -> dict[str, Chain]:
    hook = "type nat hook postrouting priority srcnat; policy accept;"
    return {"postrouting": Chain((f'oifname "{UPLINK}" masquerade',), hook)} if masquerade else {}
