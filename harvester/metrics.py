"""Figures of a running harvester for Prometheus, made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from common.config import ConfigError
from common.states import WorkerState
from harvester.credentials.keeper import CredentialState
from harvester.runner import PartState, Totals
from harvester.store import Store

if TYPE_CHECKING:
    from prometheus_client import Metric


class Figures:
    """Where the figures come from: functions, since what they read is replaced when the configuration changes."""

    def __init__(
        self,
        store: Store,
        queues: Callable[[], Sequence[str]],
        parts: Callable[[], Sequence[PartState]],
        totals: Callable[[], Totals],
        credentials: Callable[[], Sequence[CredentialState]],
        problems: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._queues = queues
        self._parts = parts
        self._totals = totals
        self._credentials = credentials
        self._problems = problems

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client wants it of a collector."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        counts = self._store.counts()
        workers = GaugeMetricFamily("pilotage_harvester_workers", "Workers remembered.", labels=["queue", "state"])
        for queue in sorted({*self._queues(), *(queue for queue, _ in counts)}):
            for state in WorkerState:
                workers.add_metric([queue, state.value], counts.get((queue, state), 0))
        yield workers
        seconds = GaugeMetricFamily(
            "pilotage_harvester_cycle_seconds", "How long the last round of a part of the cycle took.", labels=["part"]
        )
        started = GaugeMetricFamily(
            "pilotage_harvester_cycle_start_seconds", "When it began, since the epoch.", labels=["part"]
        )
        for part in self._parts():
            seconds.add_metric([part.name], part.duration_s)
            started.add_metric([part.name], part.started)
        yield seconds
        yield started
        yield GaugeMetricFamily(
            "pilotage_harvester_problems", "Problems that a person must look at.", value=len(self._problems())
        )
        totals = self._totals()
        submissions = CounterMetricFamily(
            "pilotage_harvester_submissions", "Workers that batch systems took or refused.", labels=["outcome"]
        )
        submissions.add_metric(["accepted"], totals.submitted)
        submissions.add_metric(["refused"], totals.refused)
        yield submissions
        yield CounterMetricFamily("pilotage_harvester_planned", "Workers planned.", value=totals.planned)
        ends = GaugeMetricFamily(
            "pilotage_harvester_credential_end_seconds",
            "When a credential ends, since the epoch.",
            labels=["credential"],
        )
        bad = GaugeMetricFamily(
            "pilotage_harvester_credential_failures", "Renewals in a row that failed.", labels=["credential"]
        )
        for one in self._credentials():
            if one.expires is not None:
                ends.add_metric([one.name], one.expires)
            bad.add_metric([one.name], one.failures)
        yield ends
        yield bad


class MetricsServer:
    """Serves the figures at ``HOST:PORT``. Raises ConfigError when it can't."""

    def __init__(self, listen: str, figures: Figures) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ModuleNotFoundError as error:
            raise ConfigError(
                "[harvester.metrics] it needs prometheus-client; run: pip install 'pilotage[harvester]'"
            ) from error
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise ConfigError(f"[harvester.metrics] listen: {listen!r} must be HOST:PORT, such as 127.0.0.1:9464")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(figures)
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except OSError as error:
            raise ConfigError(f"[harvester.metrics] listen: {listen}: {error.strerror or error}") from error
        self.port: int = self._server.server_address[1]

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
