"""What a benchmark reports: figures, what they cost, and under which conditions they came about."""

from __future__ import annotations

import platform
import statistics
from array import array
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil

from common.plugins import version
from server.bench.messages import Result
from server.bench.programs import Meter, Server
from server.store import places
from server.store.bulk import wrong_claims
from server.store.database import Database

PACKAGES = ("granian", "falcon", "msgspec", "SQLAlchemy", "psycopg")


class Cost(msgspec.Struct):
    """CPU seconds of one kind of program while it was measured, and how many cores that is."""

    cpu_s: float
    cores: float


class Report(msgspec.Struct, kw_only=True):
    """The benchmark's JSON. What a profile does not measure is null; times in milliseconds.

    ``duplicates`` counts units that were given twice, ``wrong_in_database`` claims that the database does not have as
    they were answered, ``empty`` claims that got nothing although units were ready. ``us_per_request`` is what the load
    costs itself.
    """

    profile: str
    scale: float
    heartbeats_per_s: float | None = None
    jobs_per_s: float | None = None
    claims_per_s: float | None = None
    claim_p50_ms: float | None = None
    claim_p99_ms: float | None = None
    claim_max_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    p50_ratio: float | None = None
    drain_ratio: float | None = None
    drain_ratio_snapshot: float | None = None
    pairs_per_s: dict[str, float] | None = None
    pairs_ratio: float | None = None
    idle_requests_per_s: float | None = None
    idle_requests_max_per_s: int | None = None
    first_start_s: float | None = None
    busy_90_s: float | None = None
    errors: int = 0
    duplicates: int = 0
    wrong_in_database: int = 0
    empty: int = 0
    backlog_first: float | None = None
    backlog_last: float | None = None
    backlog_max: int | None = None
    backlog_grows: bool | None = None
    cpu: dict[str, Cost] = {}
    us_per_request: float | None = None
    details: dict[str, Any] = {}
    conditions: dict[str, Any] = {}
    examples: list[str] = []

    def count(self, results: Sequence[Result]) -> None:
        """Add the errors of some runs."""
        self.errors += sum(result.errors for result in results)
        self.empty += sum(result.empty for result in results)
        self.examples += [words for result in results for words in result.examples][: 5 - len(self.examples)]

    def charge(self, meter: Meter, results: Sequence[Result]) -> None:
        """What the measured time cost."""
        used = {**meter.cpu_s, "load": sum(result.cpu_s for result in results)}
        self.cpu = {kind: Cost(round(cpu, 3), round(cpu / meter.wall_s, 3)) for kind, cpu in used.items()}
        requests = sum(result.requests for result in results)
        self.us_per_request = round(used["load"] / requests * 1e6, 1) if requests else None

    def check(self, database: Database, results: Sequence[Result]) -> None:
        """Whether a unit was given twice, as the answers have it and as the database has it."""
        pairs = claims_of(results)
        self.duplicates += duplicates_in(pairs)
        self.wrong_in_database += wrong_claims(database, pairs)


def conditions(machine: Mapping[str, float], server: Server, **more: object) -> dict[str, Any]:
    """Machine, how fast it was and what else was at work on it before the run, versions, settings."""
    return {
        "cores": psutil.cpu_count() or 1,
        "processor": _processor(),
        **machine,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "pilotage": version(),
        **{name: metadata.version(name) for name in PACKAGES if _installed(name)},
        **places.conditions(server.database),
        "web_processes": server.target.config.web_processes,
        "web_threads": server.target.config.web_threads,
        "tls": bool(server.target.ca_file),
        **more,
    }


def _processor() -> str:
    with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _installed(name: str) -> bool:
    return any(True for _ in metadata.distributions(name=name))


def latencies(results: Sequence[Result], *kinds: str) -> array[float]:
    """The latencies of some kinds of request in all results; without a kind, of all."""
    found: array[float] = array("d")
    for result in results:
        for kind in kinds or result.latencies:
            found.frombytes(result.latencies.get(kind, b""))
    return found


def claims_of(results: Sequence[Result]) -> list[tuple[int, int]]:
    """All (unit, job) pairs that were given."""
    flat: array[int] = array("q")
    for result in results:
        flat.frombytes(result.claims)
    return list(zip(flat[::2], flat[1::2], strict=True))


def duplicates_in(pairs: Sequence[tuple[int, int]]) -> int:
    """How many times a unit was given that had been given before."""
    return len(pairs) - len({unit_id for unit_id, _ in pairs})


def milliseconds(values: Sequence[float], percent: float) -> float | None:
    """A percentile (nearest rank) in milliseconds; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = min(len(ordered) - 1, int(len(ordered) * percent / 100.0))
    return round(ordered[rank] * 1000.0, 3)


def mean_of_quarter(samples: Sequence[int], which: int) -> float:
    """The mean of the first (0) … last (3) quarter of a series."""
    size = max(1, len(samples) // 4)
    quarter = samples[which * size : (which + 1) * size] or [0]
    return round(statistics.fmean(quarter), 2)


def as_lines(report: Report) -> list[str]:
    """The same for people: one figure a line."""
    values = msgspec.to_builtins(report)
    cpu, details, where = values.pop("cpu"), values.pop("details"), values.pop("conditions")
    examples = values.pop("examples")
    lines = [f"{name:<22} {value}" for name, value in values.items() if value is not None]
    lines += [f"{'cpu of ' + kind:<22} {used['cpu_s']} s, {used['cores']} cores" for kind, used in cpu.items()]
    lines += [f"{name:<22} {value}" for name, value in {**details, **where}.items()]
    return lines + [f"error: {words}" for words in examples]
