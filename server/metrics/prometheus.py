"""The metrics in Prometheus' own words.

Numbers of the whole system come from what an agent measured and are the same whoever answers. Numbers of a process carry
its name as the label ``process``; every process answers for all, so one of them is to be scraped, not each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from common.wire import AgentView
from server.metrics.samples import BOUNDS_S, Histogram, ProcessSample, SystemSample

CONTENT_TYPE: str = CONTENT_TYPE_LATEST


@dataclass(frozen=True, eq=False)
class Everything:
    """All that there is to say."""

    version: str
    processes: Mapping[str, ProcessSample]
    system: SystemSample | None
    event_counts: Mapping[str, int]
    agents: Sequence[AgentView]
    now: float

    def collect(self) -> Iterator[Metric]:
        """As Prometheus' families."""
        info = GaugeMetricFamily("pilotage_info", "Version of the server; always 1.", labels=["version"])
        info.add_metric([self.version], 1)
        yield info
        if self.system is not None:
            yield from _system(self.system, self.now)
        yield from _agents(self.agents, self.now)
        events = CounterMetricFamily("pilotage_events", "Events since the beginning, by kind.", labels=["kind"])
        for kind, n in sorted(self.event_counts.items()):
            events.add_metric([kind], n)
        yield events
        yield from _processes(self.processes)


def exposition(everything: Everything) -> bytes:
    """The page that Prometheus scrapes."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(everything)
    return generate_latest(registry)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pilotage_{name}", words, value=value)


def _by(name: str, words: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"pilotage_{name}", words, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family


def _system(system: SystemSample, now: float) -> Iterator[Metric]:
    yield _gauge("measured_age_seconds", "Age of the numbers of the whole system.", max(0.0, now - system.time))
    yield _gauge("measuring_seconds", "What measuring them took.", system.cost_s)
    yield _by("tasks", "Tasks that are not over, by state.", "state", system.tasks)
    yield _by("units", "Units of tasks that are not over, by state.", "state", system.units)
    yield _by("jobs", "Live jobs, by state.", "state", system.jobs)
    yield _by(
        "share_target_ratio", "What its weight gives a share.", "share", {e.name: e.target for e in system.shares}
    )
    yield _by("share_cores", "Cores that a share uses.", "share", {each.name: each.cores for each in system.shares})
    yield _by("share_ready_units", "Units of a share that wait.", "share", {e.name: e.ready for e in system.shares})
    yield _gauge("oldest_ready_seconds", "How long units have been waiting at the longest.", system.oldest_ready_s)
    yield _by("queue_jobs", "Live jobs of a queue.", "queue", {each.name: each.jobs for each in system.queues})
    yield _by("queue_cores", "Cores of its live jobs.", "queue", {each.name: each.cores for each in system.queues})
    yield _by("queue_idle_pilots", "Its idle pilots.", "queue", {each.name: each.idle_pilots for each in system.queues})
    workers = GaugeMetricFamily("pilotage_queue_workers", "Workers that have not ended.", labels=["queue", "state"])
    for queue in system.queues:
        for state, n in sorted(queue.workers.items()):
            workers.add_metric([queue.name, state], n)
    yield workers
    yield _gauge("pilots", "Pilots that are not over.", system.pilots)
    yield _gauge("pilots_idle", "Pilots that ask for work and get none.", system.pilots_idle)
    yield _gauge("pilots_late", "Pilots that were not heard of for two heartbeats.", system.pilots_late)
    yield from _probes(system)
    words = "Age of the oldest event that a transaction still at work keeps from followers."
    yield _gauge("events_unsettled_seconds", words, system.events_unsettled_s)


def _probes(system: SystemSample) -> Iterator[Metric]:
    labels = ["site", "gpu", "storage", "operation"]
    ok = GaugeMetricFamily("pilotage_probe_ok", "1 where a site's last probe could do it, 0 where not.", labels=labels)
    when = GaugeMetricFamily("pilotage_probe_timestamp_seconds", "When that was tried last.", labels=labels)
    for each in system.probes:
        names = [each.site, str(each.gpu).lower(), each.storage, each.operation]
        ok.add_metric(names, float(each.ok))
        when.add_metric(names, each.time)
    yield from (ok, when)
    yield _by("probes_missed", "Probes of a site in a row that did not run.", "site", system.probes_missed)


def _agents(agents: Sequence[AgentView], now: float) -> Iterator[Metric]:
    yield _by("agent_enabled", "1 while an agent is switched on.", "agent", {e.name: float(e.enabled) for e in agents})
    yield _by("agent_failing", "1 while its last run failed.", "agent", {e.name: float(bool(e.error)) for e in agents})
    yield _by("agent_lag_seconds", "How long ago it was due.", "agent", {each.name: each.late_s for each in agents})
    yield _by("agent_run_seconds", "What its last run took.", "agent", {each.name: each.seconds for each in agents})
    started = {each.name: each.started for each in agents if each.started is not None}
    yield _by("agent_last_run_timestamp_seconds", "When its last run began.", "agent", started)
    for name, words in (
        ("runs", "Its runs."),
        ("errors", "Those that failed."),
        ("overruns", "Longer than its period."),
    ):
        family = CounterMetricFamily(f"pilotage_agent_{name}", words, labels=["agent"])
        for each in agents:
            family.add_metric([each.name], getattr(each, name))
        yield family


def _processes(processes: Mapping[str, ProcessSample]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "pilotage_http_requests", "Answered requests.", labels=["process", "method", "route", "status"]
    )
    latency = HistogramMetricFamily(
        "pilotage_http_request_seconds", "How long they took, waiting for work or events included.",
        labels=["process", "method", "route"],
    )  # fmt: skip
    claims = HistogramMetricFamily("pilotage_claim_seconds", "How long attempts to claim took.", labels=["process"])
    errors = CounterMetricFamily("pilotage_database_errors", "Requests that failed for it.", labels=["process"])
    in_use = GaugeMetricFamily("pilotage_database_connections", "Connections in use.", labels=["process"])
    most = GaugeMetricFamily("pilotage_database_connections_limit", "The most there may be.", labels=["process"])
    followers = GaugeMetricFamily("pilotage_event_followers", "Requests that wait for events.", labels=["process"])
    for process, sample in processes.items():
        for name, n in sorted(sample.requests.items()):
            requests.add_metric([process, *name.split(" ")], n)
        for name, histogram in sorted(sample.latency.items()):
            _add(latency, [process, *name.split(" ")], histogram)
        if sample.claims.counts:
            _add(claims, [process], sample.claims)
        errors.add_metric([process], sample.database_errors)
        in_use.add_metric([process], sample.connections)
        most.add_metric([process], sample.connections_limit)
        followers.add_metric([process], sample.followers)
    yield from (requests, latency, claims, errors, in_use, most, followers)


def _add(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    total, buckets = 0, []
    for bound, n in zip((*map(str, BOUNDS_S), "+Inf"), histogram.counts, strict=True):
        total += n
        buckets.append((bound, total))
    family.add_metric(labels, buckets, sum_value=histogram.sum_s)
