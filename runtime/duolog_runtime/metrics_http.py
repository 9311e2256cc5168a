"""Metrics in Prometheus' text format, and a listener for daemons that serve nothing else.

Owns the way from rows of plain numbers to the text; it knows no metric. The daemon counts in
plain ints and hands over a callable that lists them when they are asked for. prometheus-client
writes the text and is imported with the first scrape: a daemon that nobody scrapes never loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from .http_server import HttpRequest, HttpResponse, HttpServer, Respond, Route, text_response
from .logs import Logger


class SummaryValue(NamedTuple):
    """A summary at one moment."""

    observations: int
    total: float
    quantiles: Mapping[float, float]
    """Quantile -> value; empty for a summary that keeps only count and sum."""


Sample = tuple[Mapping[str, str], "float | SummaryValue"]
"""Labels and value."""
MetricRow = tuple[str, str, str, Iterable[Sample]]
"""Name, help, type and samples.

The type is "counter" (its name ends in `_total`), "gauge", "summary", or "unknown": for a counter
whose name is fixed by others and does not end so.
"""
Collect = Callable[[], Iterable[MetricRow]]

EXPOSITION_KIND: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(rows: Iterable[MetricRow]) -> bytes:
    """The rows as text."""
    import prometheus_client
    from prometheus_client.metrics_core import Metric

    return prometheus_client.generate_latest(_Rows(rows, Metric))


class _Rows:
    """What prometheus-client takes for a registry."""

    def __init__(self, rows: Iterable[MetricRow], metric: Any) -> None:
        self._rows = rows
        self._metric = metric

    def collect(self) -> Iterator[Any]:
        """Called by prometheus-client: rows as its metric families."""
        for name, documentation, kind, samples in self._rows:
            family = self._metric(name.removesuffix("_total"), documentation, kind)
            for labels, value in samples:
                if isinstance(value, SummaryValue):
                    for quantile, each in value.quantiles.items():
                        family.add_sample(name, {**labels, "quantile": str(quantile)}, each)
                    family.add_sample(f"{name}_count", dict(labels), value.observations)
                    family.add_sample(f"{name}_sum", dict(labels), value.total)
                else:
                    family.add_sample(name, dict(labels), value)
            yield family


def metrics_route(collect: Collect) -> Route:
    """Answers with what `collect` returns at the moment of the request."""

    def answer(_request: HttpRequest, respond: Respond) -> None:
        respond(HttpResponse(exposition(collect()), kind=EXPOSITION_KIND))

    return Route(answer)


def health_route(ready: Callable[[], bool] = lambda: True) -> Route:
    """Answers 200 as long as the loop turns and `ready` says so, else 503."""

    def answer(_request: HttpRequest, respond: Respond) -> None:
        if ready():
            respond(text_response("ok"))
        else:
            respond(text_response("not ready", HTTPStatus.SERVICE_UNAVAILABLE))

    return Route(answer)


class MetricsServer(HttpServer):
    """Serves `/metrics` and `/health`."""

    def __init__(self, collect: Collect, log: Logger) -> None:
        super().__init__({"/metrics": metrics_route(collect), "/health": health_route()}, log)
