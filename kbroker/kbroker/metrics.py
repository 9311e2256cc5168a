"""The broker's metrics, with the originals' names where they have one.

Owns names and help texts; values are plain ints that others count, read when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duolog_runtime.metrics_http import MetricRow

    from .server.broker import Broker


def collect(broker: Broker) -> Iterator[MetricRow]:
    """All metrics at this moment."""
    connections, control = broker.connections, broker.control
    assert connections is not None and control is not None

    def gauge(name: str, text: str, value: float) -> MetricRow:
        return (name, text, "gauge", [({}, value)])

    def counter(name: str, text: str, value: float) -> MetricRow:
        return (name, text, "counter", [({}, value)])

    yield gauge("leader_count", "Partitions led here", broker.replicas.led_count)
    yield gauge("partition_count", "Partitions held here", broker.replicas.count)
    yield gauge("delayed_operations", "Requests that wait", broker.delayed_count)
    yield gauge("connection_count", "Open connections", connections.count)
    yield gauge("requests_in_flight", "Requests not answered yet", connections.in_flight_count)
    yield gauge("registered", "1 while registered in zkserver", control.registered.is_set())
    yield gauge("active_controller_count", "1 on the controller", control.is_controller)
    yield counter("requests_total", "Requests received", connections.requests_count)
    yield counter("connections_refused_total", "Refused for a limit", connections.refused_count)
