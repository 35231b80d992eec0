"""How long a network's rules take with 10, 100 and 1,000 ports: to plan, to apply whole, and to change by one port.

    scripts/bench rules            as root, in a network namespace of its own
    python bench/rules.py 7        7 rounds instead of 5

A third of the ports names a second rule set; every port has an address of each version of IP. The floor beside each figure is an empty
transaction of the same `nft`, so that what the program takes to start can be told from what the rules take. "engine" is a change of one port as the
daemon makes it: plan, worker and kernel, until the network is ready again; "whole table" is its peer, the same change by the same `nft` as
one transaction that tells the table anew.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.figures import median, promise
from roost.host import kernel
from roost.host.paths import Paths
from roost.model.network import Subnet
from roost.model.ruleset import Rule, RuleSetSpec
from roost.network import names, nft, plan
from roost.network.base import Attachment, Wanted
from roost.network.fabric import NetworkFabric

SIZES = (10, 100, 1000)
ROUNDS = 5
RULES = RuleSetSpec(
    rules=(
        Rule(direction="in", protocol="tcp", ports=("80", "443", "8000-8100")),
        Rule(direction="in", protocol="udp", cidr="192.0.2.0/24"),
        Rule(direction="out", cidr="0.0.0.0/0"),
        Rule(direction="in", protocol="icmp", ruleset="web"),
    )
)


def network(ports: int) -> Wanted:
    """A nat network with so many ports."""
    return Wanted(
        uid="bench", project="default", name="lan", mode="nat", mtu=1500, domain="default.internal", door="pasta",
        subnets=(Subnet(cidr="10.20.0.0/16", gateway="10.20.0.1"), Subnet(cidr="fd12::/64", gateway="fd12::1")),
        ports=tuple(map(port, range(ports))), rulesets={"web": RULES}, underlay=("192.0.2.7", "2001:db8::7"),
    )  # fmt: skip


def port(number: int) -> Attachment:
    """One of them."""
    uid = f"machine-{number}"
    addresses = (f"10.20.{number // 250}.{number % 250 + 2}", f"fd12::{number + 2:x}")
    rulesets = ("default",) if number % 3 else ("default", "web")
    return Attachment(
        f"m{number}", uid, "default", "lan", names.mac(uid, "lan"), addresses, names.tap(uid, "lan"), rulesets=rulesets
    )


def timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    begin = time.perf_counter()
    act()
    return (time.perf_counter() - begin) * 1e3


def apply(text: str) -> None:
    """One transaction."""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)


def measure(size: int, rounds: int) -> dict[str, float]:
    """The median of every figure with so many ports."""
    made = [once(network(size), network(size + 1)) for _ in range(rounds)]
    return {name: median([figures[name] for figures in made]) for name in made[0]}


def once(wanted: Wanted, more: Wanted) -> dict[str, float]:
    """Every figure, in milliseconds."""
    before = plan.fabric(wanted)
    step = plan.change(before, plan.fabric(more)).rules
    figures = {
        "plan": timed(lambda: plan.fabric(wanted)),
        "apply": timed(lambda: apply(nft.replacing(before.tables))),
        "nothing": timed(lambda: apply("")),
        "plan of a port": timed(lambda: plan.change(before, plan.fabric(more))),
        "apply of a port": timed(lambda: apply(step)),
        "whole table": timed(lambda: apply(nft.replacing(plan.fabric(more).tables))),
    }
    return {**figures, "change of a port": figures["plan of a port"] + figures["apply of a port"]}


async def engine(sizes: Sequence[int], rounds: int) -> dict[int, float]:
    """The median of a change of one port by the engine, in milliseconds."""
    found: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as home:
        fabrics = NetworkFabric(Paths(Path(home) / "state", Path(home) / "run"), None)
        for size in sizes:
            wishes = [network(count)._replace(door="none", mode="isolated") for count in (size, size + 1)]
            await fabrics.ensure(wishes[0])
            made = []
            for turn in range(2 * rounds):
                begin = time.perf_counter()
                await fabrics.ensure(wishes[(turn + 1) % 2])
                made.append((time.perf_counter() - begin) * 1e3)
            found[size] = median(made)
            await fabrics.remove("bench")
        await fabrics.close()
    return found


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    kernel.unshare(kernel.NEWNET)
    measure(10, 1)
    found = {size: measure(size, rounds) for size in SIZES}
    for size, figure in asyncio.run(engine(SIZES, rounds)).items():
        found[size]["engine"] = figure
    for size, figures in found.items():
        print(f"{size:>5} ports  " + "  ".join(f"{name} {value:.1f} ms" for name, value in figures.items()))
    most = found[SIZES[-1]]
    for name, limit in (("plan", 100), ("apply", 500), ("change of a port", 50), ("engine", 50)):
        print(promise(f"1,000 ports: {name}", most[name], limit, "ms"))


if __name__ == "__main__":
    main()
