"""Prometheus metrics: requests by route and status, objects by kind, what the daemon adds, and what networks counted.

Names are in them only of networks, and of the ports and rules of these; of each family no more than `MOST`, so that whoever makes many does not
fill the collector's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client import Counter as Count
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from roost.api.services import Gauge
from roost.api.view import View
from roost.model.kinds import BY_NAME, KINDS, prefix_of

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


MOST = 2000
"""Ports that numbers are told of, and rules, and ten times the networks; `roost_network_left_out` says how many more there are."""


class _Phased(msgspec.Struct):
    phase: str = ""


class _Sketch(msgspec.Struct):
    """As much of an object as the numbers need: the rest is skipped, not built."""

    status: _Phased


class _Objects(Collector):
    """What is read from the view when somebody asks."""

    def __init__(self, view: View, gauges: Iterable[tuple[str, str, Gauge]]) -> None:
        self._view = view
        self._gauges = tuple(gauges)

    def collect(self) -> Iterator[Metric]:
        """The gauges as they are now."""
        objects = GaugeMetricFamily("roost_objects", "Objects in the store", labels=["kind"])
        for kind in KINDS:
            objects.add_metric([kind.name], self._view.count(kind))
        yield objects
        decoder = msgspec.json.Decoder(_Sketch)
        phases = Counter(
            decoder.decode(item.body).status.phase for item in self._view.below(prefix_of(BY_NAME["machine"]))
        )
        machines = GaugeMetricFamily("roost_machines", "Machines by phase", labels=["phase"])
        for phase, count in sorted(phases.items()):
            machines.add_metric([phase], count)
        yield machines
        for name, text, read in self._gauges:
            yield GaugeMetricFamily(name, text, value=read())


class _Networks(Collector):
    """What networks counted: `pictures` as control.networkview makes them."""

    def __init__(self) -> None:
        self.pictures: Sequence[Mapping[str, Any]] = ()

    def collect(self) -> Iterator[Metric]:
        """Counters by port, by rule, and by reason for a drop."""
        ports = [(it, port) for it in self.pictures for port in it["ports"] if port["plugged"]]
        rules = [(it, *rule) for it in self.pictures for rule in sorted(it["rules"].items())]
        yield from _of_ports(ports[:MOST])
        yield from _of_rules(rules[:MOST])
        drops = CounterMetricFamily(
            "roost_network_dropped_packets",
            "Packets that a network dropped, by reason",
            labels=["project", "network", "reason"],
        )
        for found in self.pictures[: MOST // 10]:
            for reason, count in sorted(found["drops"].items()):
                drops.add_metric([found["project"], found["name"], reason], count)
        yield drops
        left = GaugeMetricFamily(
            "roost_network_left_out", "Ports and rules that are too many to be told", labels=["of"]
        )
        for what, count in (("ports", len(ports)), ("rules", len(rules))):
            left.add_metric([what], max(0, count - MOST))
        left.add_metric(["networks"], max(0, len(self.pictures) - MOST // 10))
        yield left


def _of_ports(ports: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[Metric]:
    labels = ["project", "network", "machine", "port"]
    passed = {
        unit: CounterMetricFamily(
            f"roost_network_port_{unit}",
            f"{unit.capitalize()} that passed a port; in is to the machine",
            labels=[*labels, "direction"],
        )
        for unit in ("bytes", "packets")
    }
    dropped = CounterMetricFamily("roost_network_port_dropped_packets", "Packets dropped at a port", labels=labels)
    for found, port in ports:
        place = [found["project"], found["name"], port["machine"], port["port"]]
        for unit, family in passed.items():
            for direction in ("in", "out"):
                family.add_metric([*place, direction], port[f"{direction}_{unit}"])
        dropped.add_metric(place, port["dropped_packets"])
    yield from (*passed.values(), dropped)


def _of_rules(rules: Iterable[tuple[Mapping[str, Any], str, Mapping[str, int]]]) -> Iterator[Metric]:
    """The rule is "NAME/INDEX". What is counted is what it decided: the first packet of a connection, and answers that were judged anew."""
    for unit in ("bytes", "packets"):
        family = CounterMetricFamily(
            f"roost_network_rule_{unit}",
            f"{unit.capitalize()} that a rule decided",
            labels=["project", "network", "rule"],
        )
        for found, key, count in rules:
            family.add_metric([found["project"], found["name"], key.removeprefix("ruleset/")], count[unit])
        yield family


class Metrics:
    """The numbers of one daemon, in a registry of their own."""

    def __init__(self, view: View, gauges: Iterable[tuple[str, str, Gauge]]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Count(
            "roost_http_requests", "Requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "roost_http_request_seconds",
            "Time to the answer (streams: to its beginning)",
            ["route"],
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._registry.register(_Objects(view, gauges))
        self._networks = _Networks()
        self._registry.register(self._networks)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is the template, never the path."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, pictures: Sequence[Mapping[str, Any]]) -> bytes:
        """All metrics in Prometheus' text format; `pictures` are those of networks."""
        self._networks.pictures = pictures
        return generate_latest(self._registry)
