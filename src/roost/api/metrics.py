"""Prometheus metrics: requests by route and status, objects by kind, what the daemon adds; no names, no values of users."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client import Counter as Count
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from roost.api.services import Gauge
from roost.api.view import View
from roost.model.kinds import BY_NAME, KINDS, prefix_of

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


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

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; `route` is the template, never the path."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
