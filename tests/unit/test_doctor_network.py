"""The judgement over what is in the way of networks on hosts of many kinds, and over rules as Docker, ufw, firewalld and people write them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from roost.cli import doctor as verb
from roost.cli.options import GLOBALS
from roost.cli.output import Output
from roost.errors import Invalid, RoostError, Unavailable
from roost.host import doctor_network_facts, doctor_network_fix, system
from roost.host.doctor_firewall import Packet, Rule, Table, applies, drops, from_iptables, from_nft
from roost.host.doctor_network import DOORS, FEATURES, POOLS, TOOLS, Judged, Link, Look, Remedy, Route, judge
from roost.network import names, subnets
from roost.network.resolver import resolver
from tests.network_samples import network

RULES = Path(__file__).parents[1] / "data" / "firewalls"

GOOD = Look(
    uid=0,
    programs=frozenset(TOOLS),
    features=dict.fromkeys(FEATURES, ""),
    sysctls={"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/conf/all/rp_filter": "0"},
    tun="open",
    links=(Link("eth0", "", 1500),),
    routes=(Route("0.0.0.0/0", "eth0"), Route("::/0", "eth0"), Route("192.0.2.0/24", "eth0")),
    learned=(),
    subnets=("10.20.0.0/24", "fd00:20::/64"),
    tables=(),
    resolvers=("192.0.2.53",),
    serves_names=False,
)


def found(seen: Look, name: str) -> Judged:
    return next(each for each in judge(seen) if each.finding.name == name)


def wrong(seen: Look) -> list[Judged]:
    return [each for each in judge(seen) if each.finding.state != "ok"]


def iptables(name: str, more: str = "", tool: str = "iptables-nft") -> tuple[Table, Table]:
    """Recorded rules of both versions of IP, and more."""
    four, six = (
        (RULES / f"{name}{version}.rules").read_text().replace("COMMIT", f"{more}\nCOMMIT") for version in (4, 6)
    )
    return from_iptables(tool, 4, four), from_iptables(tool.replace("ip", "ip6", 1), 6, six)


def nft(name: str) -> tuple[Table, ...]:
    return tuple(from_nft((RULES / f"{name}.json").read_text()))


def test_nothing_is_in_the_way_on_a_good_host() -> None:
    assert wrong(GOOD) == []


def test_what_is_known_twice_is_the_same() -> None:
    assert tuple(map(str, subnets.POOLS)) == POOLS
    assert names.OUTSIDE_PREFIX == DOORS


# ------------------------------------------------------------------------------------------------ firewalls

WAYS = (("-i", "rst+"), ("-o", "rst+"))


def inserted(chain: str, tool: str = "iptables-nft") -> tuple[tuple[str, ...], ...]:
    programs = (tool, tool.replace("ip", "ip6", 1))
    return tuple((program, "-w", "-I", chain, *way, "-j", "ACCEPT") for program in programs for way in WAYS)


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy"])
def test_dockers_drop_is_opened_in_the_chain_that_docker_leaves_to_users(tool: str) -> None:
    (seen,) = wrong(GOOD._replace(tables=iptables("docker", tool=tool)))
    assert seen.finding.name == "firewall Docker"
    assert "is dropped in ip filter FORWARD, ip6 filter FORWARD" in seen.finding.detail
    assert seen.remedy is not None
    assert set(seen.remedy.commands) == set(inserted("DOCKER-USER", tool))
    assert seen.finding.fix.startswith(f"sudo {tool} -w -I DOCKER-USER -i rst+ -j ACCEPT && sudo ")


OPENED = "-A DOCKER-USER -i rst+ -j ACCEPT\n-A DOCKER-USER -o rst+ -j ACCEPT"


def test_once_opened_docker_is_in_nobodys_way() -> None:
    assert wrong(GOOD._replace(tables=iptables("docker", OPENED))) == []


def test_a_way_out_without_a_way_back_is_none() -> None:
    (seen,) = wrong(GOOD._replace(tables=iptables("docker", OPENED.splitlines()[0])))
    assert seen.finding.name == "firewall Docker"


def test_where_dockers_chain_comes_too_late_the_hooks_own_is_opened() -> None:
    four = (RULES / "docker4.rules").read_text().replace("-A FORWARD -j DOCKER-USER", "-A FORWARD -j DROP")
    table = from_iptables("iptables-nft", 4, four.replace("COMMIT", f"{OPENED}\nCOMMIT"))
    (seen,) = wrong(GOOD._replace(tables=(table,)))
    assert seen.remedy is not None
    assert set(seen.remedy.commands) == set(inserted("FORWARD")[:2])


def test_a_version_of_ip_that_leads_nowhere_is_in_nobodys_way() -> None:
    four = tuple(route for route in GOOD.routes if ":" not in route.to)
    assert wrong(GOOD._replace(routes=four, tables=iptables("docker")[1:])) == []


def test_ufw_is_told_in_its_own_words_and_only_what_lacks() -> None:
    (seen,) = wrong(GOOD._replace(tables=iptables("ufw")))
    assert seen.finding.name == "firewall ufw"
    assert seen.remedy == Remedy((("ufw", "route", "allow", "in", "on", "rst+"),))
    four, six = iptables("ufw", "-A ufw-user-forward -i rst+ -j ACCEPT")[0], iptables("ufw")[1]
    assert [each.finding.name for each in wrong(GOOD._replace(tables=(four, six)))] == ["firewall ufw"]
    assert wrong(GOOD._replace(tables=(four,))) == []


def test_with_docker_and_ufw_dockers_chain_serves_both() -> None:
    more = ":DOCKER-USER - [0:0]\n-I FORWARD -j DOCKER-USER"
    text = (RULES / "ufw4.rules").read_text().replace("-A FORWARD", "-A FORWARD -j DOCKER-USER\n-A FORWARD", 1)
    table = from_iptables("iptables-nft", 4, text.replace("COMMIT", f"{more.splitlines()[0]}\nCOMMIT"))
    (seen,) = wrong(GOOD._replace(tables=(table,)))
    assert seen.remedy is not None
    assert set(seen.remedy.commands) == set(inserted("DOCKER-USER")[:2])


def test_firewalld_gets_the_links_into_a_zone_for_now_and_for_good() -> None:
    (seen,) = wrong(GOOD._replace(tables=nft("firewalld")))
    assert seen.remedy is not None
    assert seen.finding.fix == (
        "sudo firewall-cmd --permanent --zone=trusted --add-interface=rst+ && "
        "sudo firewall-cmd --zone=trusted --add-interface=rst+"
    )
    assert wrong(GOOD._replace(tables=nft("firewalld-trusted"))) == []


def test_a_table_that_somebody_wrote_is_opened_where_it_drops() -> None:
    (seen,) = wrong(GOOD._replace(tables=nft("plain")))
    assert seen.finding.name == "firewall table inet filter"
    assert "until the host starts again" in seen.finding.detail
    assert seen.remedy is not None
    assert seen.remedy.commands[0] == (
        "nft", "insert", "rule", "inet", "filter", "forward", "iifname", '"rst*"', "accept",
    )  # fmt: skip


def test_a_name_that_nft_would_read_as_more_than_a_name_is_never_run() -> None:
    table = nft("plain")[0]._replace(name="filter; flush ruleset")
    (seen,) = wrong(GOOD._replace(tables=(table,)))
    assert seen.remedy is None
    assert seen.finding.fix


@pytest.mark.parametrize(
    ("rules", "opener"),
    [
        (iptables("ufw"), "sudo ufw allow PORT/tcp"), (nft("firewalld"), "sudo firewall-cmd --add-port=PORT/tcp"),
        (nft("plain"), "sudo nft insert rule inet filter input tcp dport PORT accept"),
    ],
)  # fmt: skip
def test_a_firewall_against_others_is_told_of_and_left_alone(rules: tuple[Table, ...], opener: str) -> None:
    said = [each for each in judge(GOOD._replace(tables=rules)) if each.finding.name.startswith("incoming ")]
    assert [each.remedy for each in said] == [None]
    assert said[0].finding.state == "ok"
    assert said[0].finding.detail.endswith(opener)


def test_what_a_rule_asks_for_and_is_not_known_decides_nothing() -> None:
    packet = Packet("rst00000000", "eth0", "new", 4)
    assert applies(Rule("drop", iif=("rst*",)), packet) == "yes"
    assert applies(Rule("drop", iif=("!rst*",)), packet) == "no"
    assert applies(Rule("drop", known=False), packet) == "unknown"
    assert applies(Rule("drop", versions=(6,)), packet) == "no"
    text = (
        "*filter\n:FORWARD ACCEPT [0:0]\n"
        "-A FORWARD -d 203.0.113.0/24 -j DROP\n-A FORWARD ! -o eth0 -j DROP\n"
        '-A FORWARD -i rst+ -m comment --comment "DROP -j DROP" -j LOG --log-prefix "-j DROP"\n'
        "-A FORWARD -m conntrack ! --ctstate NEW,ESTABLISHED -j DROP\nCOMMIT\n"
    )
    table = from_iptables("iptables-nft", 4, text)
    assert list(drops([table], "forward", packet)) == []
    assert len(list(drops([table], "forward", packet._replace(oif="eth1")))) == 1


def test_chains_that_lead_in_circles_and_answers_that_are_none_do_no_harm() -> None:
    circle = "*filter\n:FORWARD DROP [0:0]\n:A - [0:0]\n-A FORWARD -j A\n-A A -j A\nCOMMIT\n"
    assert list(drops([from_iptables("x", 4, circle)], "forward", Packet("rst0", "eth0", "new", 4))) == []
    strange = '{"chain": {"family": "ip", "table": "t", "name": "c"}}, {"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [1]}}'
    assert from_nft(f'{{"nftables": [{strange}]}}')[0].chains["c"].rules == ()
    assert from_nft("") == from_nft("[]") == from_nft('{"nftables": []}') == []


def test_an_ordinary_user_needs_neither_firewall_nor_forwarding() -> None:
    seen = GOOD._replace(uid=1000, tables=None, sysctls={"net/ipv4/ip_forward": "0"})
    assert wrong(seen) == []
    assert wrong(seen._replace(uid=0))[-1].finding.name == "firewall"


# ------------------------------------------------------------------------------------------------ the rest of the host


@pytest.mark.parametrize("program", list(TOOLS))
def test_missing_programs_come_with_their_packages(program: str) -> None:
    seen = found(GOOD._replace(programs=GOOD.programs - {program}), program)
    assert seen.finding.fix == f"sudo apt-get install --no-install-recommends {TOOLS[program][0]}"
    assert seen.finding.state == ("warning" if program == "pasta" else "missing")


@pytest.mark.parametrize(
    ("name", "state", "fix"),
    [
        ("nf_tables", "missing", "sudo modprobe nf_tables"), ("tap", "missing", "sudo modprobe tun"),
        ("veth", "warning", "sudo modprobe veth"), ("vxlan", "warning", "sudo modprobe vxlan"),
    ],
)  # fmt: skip
def test_what_the_kernel_can_not_do_is_named_with_its_module(name: str, state: str, fix: str) -> None:
    seen = found(GOOD._replace(features={**GOOD.features, name: "Operation not supported"}), name)
    assert (seen.finding.state, seen.finding.fix) == (state, fix)
    assert "Operation not supported" in seen.finding.detail


def test_user_namespaces_that_are_switched_off_are_switched_on() -> None:
    seen = GOOD._replace(
        features={"user namespace": "No space left on device"}, sysctls={"user/max_user_namespaces": "0"}
    )
    judged = found(seen, "user namespace")
    assert judged.remedy == Remedy(settings=(("user/max_user_namespaces", "10000"),))
    assert found(seen._replace(sysctls={}), "user namespace").remedy is None
    assert found(seen._replace(sysctls={}), "user namespace").finding.fix


@pytest.mark.parametrize(("uid", "state"), [(0, "warning"), (1000, "missing")])
def test_a_tun_device_that_is_roots_alone_is_opened(uid: int, state: str) -> None:
    seen = found(GOOD._replace(uid=uid, tun="closed"), "/dev/net/tun")
    assert (seen.finding.state, seen.finding.fix) == (state, "sudo chmod 0666 /dev/net/tun")
    assert found(GOOD._replace(tun="absent"), "/dev/net/tun").finding.fix == "sudo modprobe tun"


def test_forwarding_is_kept_on() -> None:
    sysctls = {**GOOD.sysctls, "net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"}
    four, six = wrong(GOOD._replace(sysctls=sysctls))
    assert four.remedy == Remedy(settings=(("net/ipv4/ip_forward", "1"),))
    assert six.remedy == Remedy(settings=(("net/ipv6/conf/all/forwarding", "1"),))
    assert four.finding.fix == (
        "printf 'net/ipv4/ip_forward = 1\\n' | sudo tee -a /etc/sysctl.d/99-roost.conf && "
        "sudo sysctl -p /etc/sysctl.d/99-roost.conf"
    )


@pytest.mark.parametrize(("accepts", "count"), [("0", 0), ("1", 1), ("2", 0)])
def test_a_host_that_forwards_does_not_lose_the_way_that_a_router_told_it(accepts: str, count: int) -> None:
    sysctls = {**GOOD.sysctls, "net/ipv6/conf/eth0/accept_ra": accepts}
    said = wrong(GOOD._replace(sysctls=sysctls, learned=("eth0",)))
    assert [each.remedy for each in said] == [Remedy(settings=(("net/ipv6/conf/eth0/accept_ra", "2"),))] * count


@pytest.mark.parametrize(("everywhere", "own", "count"), [("1", "0", 1), ("0", "1", 1), ("2", "1", 0), ("0", "0", 0)])
def test_strict_filtering_harms_where_there_are_two_ways_to_the_world(everywhere: str, own: str, count: int) -> None:
    ways = {
        "net/ipv4/conf/all/rp_filter": everywhere,
        "net/ipv4/conf/wlan0/rp_filter": own,
        "net/ipv4/conf/eth0/rp_filter": "2",
    }
    seen = GOOD._replace(sysctls={**GOOD.sysctls, **ways})
    assert wrong(seen) == []
    said = wrong(seen._replace(routes=(*GOOD.routes, Route("0.0.0.0/0", "wlan0"))))
    assert [each.remedy for each in said] == [Remedy(settings=(("net/ipv4/conf/wlan0/rp_filter", "2"),))] * count


@pytest.mark.parametrize(
    ("route", "fine"),
    [
        (Route("10.0.0.0/8", "wg0"), False), (Route("10.20.0.128/25", "eth1"), False), (Route("fd00:20::/48", "wg0"), False),
        (Route("10.21.0.0/16", "wg0"), True), (Route("0.0.0.0/1", "wg0"), True), (Route("10.20.0.0/24", "rst01234567"), True),
    ],
)  # fmt: skip
def test_a_network_that_overlaps_a_route_of_the_host_is_named(route: Route, fine: bool) -> None:
    judged = found(GOOD._replace(routes=(*GOOD.routes, route)), "subnets")
    assert (judged.finding.state == "ok") == fine
    assert fine or route.to in judged.finding.detail


def test_a_host_whose_routes_take_all_that_is_chosen_from_needs_subnets_by_name() -> None:
    halves = (Route("10.0.0.0/9", "wg0"), Route("10.128.0.0/9", "wg0"))
    seen = GOOD._replace(subnets=(), routes=(*GOOD.routes, *halves))
    assert found(seen, "subnets").finding.state == "ok"
    judged = found(seen._replace(routes=(*seen.routes, Route("172.16.0.0/12", "wg0"))), "subnets")
    assert judged.finding.fix == "roost network create NAME --subnet 192.168.240.0/24"


def test_a_vpn_with_smaller_packets_is_named_where_something_goes_through_it() -> None:
    seen = GOOD._replace(links=(*GOOD.links, Link("wg0", "wireguard", 1420), Link("idle", "", 1300)))
    assert wrong(seen) == []
    (judged,) = wrong(seen._replace(routes=(*GOOD.routes, Route("10.99.0.0/16", "wg0"))))
    assert judged.finding.name == "packet size wg0"
    assert judged.finding.fix == "roost network create NAME --mtu 1420"


@pytest.mark.parametrize(
    ("resolvers", "serves", "state"),
    [
        ((), False, "warning"), (("fe80::1%eth0",), True, "warning"), (("127.0.0.53",), False, "warning"),
        (("127.0.0.53",), True, "ok"), (("::1", "192.0.2.1"), False, "ok"),
    ],
)  # fmt: skip
def test_a_resolver_that_nobody_is_behind_is_named(resolvers: tuple[str, ...], serves: bool, state: str) -> None:
    judged = found(GOOD._replace(resolvers=resolvers, serves_names=serves), "resolver")
    assert judged.finding.state == state
    assert state == "ok" or judged.finding.fix


# ------------------------------------------------------------------------------------------------ the change


def test_settings_are_written_once_and_those_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sysctl.d" / "99-roost.conf"
    proc = "net/ipv4/ip_forward"
    monkeypatch.setattr(Path, "write_text", lambda *_: 1)
    for value in ("0", "1", "1"):
        assert next(iter(list(doctor_network_fix.apply(Remedy(settings=((proc, value),)), file)))) == f"wrote {file}"
    list(doctor_network_fix.apply(Remedy(settings=(("net/x", "2"),)), file))
    assert file.read_text().splitlines()[1:] == ["net/ipv4/ip_forward = 1", "net/x = 2"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_command_that_fails_tells_why() -> None:
    with pytest.raises(RoostError, match="the host was not changed") as failed:
        list(doctor_network_fix.apply(Remedy((("sh", "-c", "echo no zone >&2; exit 3"),))))
    assert failed.value.why.endswith("ended with code 3: no zone")


def doctor(seen: Look, monkeypatch: pytest.MonkeyPatch, *, fix: bool = False, yes: bool = False) -> int:
    monkeypatch.setattr(doctor_network_facts, "look", lambda _: seen)
    given = Namespace(**{**GLOBALS, "yes": yes}, area="network", fix=fix)
    return verb.COMMANDS["doctor"].run(Output(given), given)


def test_without_fix_nothing_is_run_and_with_it_not_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []
    monkeypatch.setattr(system, "run", lambda *words, **_: ran.append(words))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    seen = GOOD._replace(tables=iptables("docker"))
    assert doctor(seen, monkeypatch) == 0
    with pytest.raises(Invalid, match="change this host: sudo iptables-nft"):
        doctor(seen, monkeypatch, fix=True)
    assert ran == []


def test_only_root_changes_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Unavailable) as refused:
        doctor(GOOD._replace(uid=1000, tun="closed"), monkeypatch, fix=True, yes=True)
    assert refused.value.fix == "sudo roost doctor network --fix"
    assert "chmod 0666 /dev/net/tun" in refused.value.why


def test_a_change_that_fails_is_told_and_the_rest_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    done: list[Remedy] = []

    def apply(remedy: Remedy) -> list[str]:
        done.append(remedy)
        raise RoostError("the host was not changed", "no")

    monkeypatch.setattr(doctor_network_fix, "apply", apply)
    assert doctor(GOOD._replace(tun="closed", tables=iptables("ufw")), monkeypatch, fix=True, yes=True) == 0
    assert len(done) == 2
    assert "the host was not changed: no" in capsys.readouterr().err


def test_what_networks_can_not_do_without_makes_the_host_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match="this host can not run networks yet"):
        doctor(GOOD._replace(programs=frozenset()), monkeypatch)


# ------------------------------------------------------------------------------------------------ reading


def test_what_the_kernel_learned_from_routers_is_found() -> None:
    zeros = "0" * 32
    learned = f"{zeros} 00 {zeros} 00 {'f' * 32} 00000400 00000002 00000000 00450003     eth0"
    static = f"{zeros} 00 {zeros} 00 {'f' * 32} 00000400 00000002 00000000 00000003     eth1"
    assert list(doctor_network_facts._learned(f"{learned}\n{static}\nrubbish\n")) == ["eth0"]


def test_subnets_of_networks_are_read_from_what_dnsmasq_is_told(tmp_path: Path) -> None:
    told = resolver(network())
    assert told is not None
    (tmp_path / "uid" / "dnsmasq").mkdir(parents=True)
    (tmp_path / "uid" / "dnsmasq" / "dnsmasq.conf").write_text(told.config)
    assert list(doctor_network_facts._subnets(tmp_path)) == [str(subnet.cidr) for subnet in network().subnets]


def test_resolvers_and_who_serves_names_are_read() -> None:
    text = "# x\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\n"
    assert list(doctor_network_facts._resolvers(text)) == ["127.0.0.53", "fe80::1%eth0"]
    row = "  sl  local_address rem_address\n 1: 3500007F:0035 00000000:0000 07\n"
    assert doctor_network_facts._serves_names(row)
    assert not doctor_network_facts._serves_names(row.replace(":0035", ":0043"))
