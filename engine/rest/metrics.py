"""The metrics endpoint: the engine's own counters in the Prometheus text format.

prometheus_client is imported by the first scrape, not at start: it costs as much as a model load.
Source of the documented names: the product's Metrics tutorial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.rest.log_metrics import log_families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from engine.batching.line import Line
    from engine.dataplane import DataPlane
    from engine.metrics import Histogram, Metrics
    from engine.request import InferRequest

__all__ = ["CONTENT_TYPE", "exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Collector:
    """Turns the counters into metric families when they are scraped."""

    def __init__(
        self, plane: DataPlane, line: Line[InferRequest], metrics: Metrics, deploy_id: str
    ) -> None:
        self._plane = plane
        self._line = line
        self._metrics = metrics
        self._deploy_id = deploy_id

    def collect(self) -> Iterator[Metric]:
        """Every family, once."""
        from prometheus_client.metrics_core import (  # noqa: PLC0415 - see above
            CounterMetricFamily,
            GaugeMetricFamily,
            Metric,
        )

        pipelines = self._plane.pipelines()
        labels = {
            "pipeline_name": str(pipelines[0]["id"]) if pipelines else "",
            "deploy_id": self._deploy_id,
        }
        self._metrics.sort_samples()
        with self._metrics.lock:
            histograms = (
                ("latency_histogram_ns", "Time to answer a request, ns", self._metrics.latency_ns),
                (
                    "sagitta_queue_ns",
                    "Time a request waited for a slot, ns",
                    self._metrics.queue_ns,
                ),
                ("sagitta_run_ns", "Time of a request's model runs, ns", self._metrics.run_ns),
                ("sagitta_request_rows", "Rows of a request", self._metrics.request_rows),
                (
                    "sagitta_batch_requests",
                    "Requests of a run that several shared",
                    self._metrics.batch_requests,
                ),
                ("sagitta_batch_rows", "Rows of such a run", self._metrics.batch_rows),
            )
            for name, text, histogram in histograms:
                yield _histogram(name, text, histogram, labels)
            rows = Metric("tensor_throughput_batch_count", "Rows answered", "untyped")
            rows.add_sample(
                "tensor_throughput_batch_count", labels, self._metrics.request_rows.total
            )
            yield rows
            errors = CounterMetricFamily(
                "sagitta_errors", "Requests answered with an error", labels=["code"]
            )
            for code, count in sorted(self._metrics.errors.items()):
                errors.add_metric([code], count)
            yield errors
            shadows = CounterMetricFamily(
                "sagitta_shadow_missing",
                "Requests answered without a challenger's result",
                labels=["model", "reason"],
            )
            for (model, reason), count in sorted(self._metrics.shadows.items()):
                shadows.add_metric([model, reason], count)
            yield shadows
            yield CounterMetricFamily(
                "sagitta_cancelled",
                "Requests whose caller was gone before they were answered",
                value=self._metrics.cancelled,
            )
        waiting_requests, waiting_rows, waiting_bytes = self._line.waiting
        for name, text, value in (
            ("sagitta_ready", "Whether requests are welcome", int(self._plane.is_ready)),
            (
                "sagitta_batch_max_rows",
                "Most rows that requests are run together with; 0 = request by request",
                self._plane.batch_max_rows,
            ),
            ("sagitta_flight_calls", "Open Flight calls", self._metrics.flight_calls),
            ("sagitta_slots", "Run slots", self._line.slots),
            ("sagitta_slots_busy", "Run slots in use", self._line.busy),
            ("sagitta_queue_requests", "Requests waiting for a slot", waiting_requests),
            ("sagitta_queue_rows", "Rows waiting for a slot", waiting_rows),
            ("sagitta_queue_bytes", "Request bytes waiting for a slot", waiting_bytes),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        if self._plane.log is not None:
            yield from log_families(self._plane.log.stats())


def exposition(
    plane: DataPlane, line: Line[InferRequest], metrics: Metrics, deploy_id: str
) -> bytes:
    """All metrics as Prometheus text.

    Args:
        plane: tells the pipeline's name and readiness.
        line: tells how busy the engine is.
        metrics: the counters.
        deploy_id: the documented label: name of the edge, or of the host.
    """
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 - see above

    registry = CollectorRegistry()
    registry.register(_Collector(plane, line, metrics, deploy_id))
    return generate_latest(registry)


def _histogram(name: str, text: str, histogram: Histogram, labels: dict[str, str]) -> Metric:
    from prometheus_client.metrics_core import Metric  # noqa: PLC0415 - see above

    family = Metric(name, text, "histogram")
    buckets = histogram.cumulative()
    for bound, count in buckets:
        family.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
    family.add_sample(f"{name}_count", labels, buckets[-1][1])
    family.add_sample(f"{name}_sum", labels, histogram.total)
    return family
