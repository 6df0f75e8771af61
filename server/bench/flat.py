"""The profile ``flat``: what a claim costs must not depend on how many units are ready, or how many were."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec

from server.bench import report
from server.bench.fill import OFFER, Size
from server.bench.lives import CLAIM
from server.bench.messages import Claims, Go, Result
from server.bench.profiles import PILOTS_EACH, Bench
from server.bench.programs import Load, Meter, Server, go_all
from server.bench.report import Report, latencies, milliseconds
from server.store import places

SMALL, LARGE = 10_000, 10_000_000
TASKS, BUCKETS = 1000, 2000
"""On both sides the same, so that only the number of units differs."""
DRAINED = 100_000
"""Units of the one bucket that is drained."""
MEASURED = 4000
"""Of them so many at the end are measured, against as many at the beginning of another."""
ROUNDS = 12
"""How often the two sides of a ratio are measured in turn."""
WARM_UP = 3 * BUCKETS
"""Claims with many units before that: each bucket's rows are read from the disk once, and each page's first change after a
checkpoint writes all of it, which a few thousand claims over 2,000 buckets would hardly get beyond."""
SHARE_MEASURED = 0.25
"""Of the smaller side's units so many are claimed in all, so that it does not run dry."""
FRESH, DRAIN, SNAPSHOT, FRESH_TOO = "fresh", "drained", "drained-under-snapshot", "fresh-too"


def run_flat(run: Bench) -> Report:
    """The ratio of claims with many ready units to claims with few; of a bucket's last claims to its first."""
    made = Report(profile="flat", scale=run.options.scale)
    sizes = _compare_sizes(run, made)
    drained = _compare_drained(run, made)
    server = run.servers[0]
    made.conditions = report.conditions(
        run.machine, server, connections=_connections(run), **sizes, drained_bucket=drained
    )
    return made


def _connections(run: Bench) -> int:
    return run.options.connections or 4


def _compare_sizes(run: Bench, made: Report) -> dict[str, object]:
    small = run.options.size(tasks=TASKS, buckets=BUCKETS, units=SMALL, idle=_connections(run) * PILOTS_EACH)
    units = max(small.units, round(LARGE * run.options.scale))
    large = dataclasses.replace(small, units=units)
    servers = [run.server("small", small), run.server("large", large)]
    loads = run.loads(2)
    for load, server, size in zip(loads, servers, (small, large), strict=True):
        load.prepare(_order(run, server, size))
    each = max(_connections(run), int(small.units * SHARE_MEASURED / (ROUNDS + 1)))
    warm_up = go_all(loads[1:], Go(0.0, claims=min(WARM_UP, units // 2)))
    meter = Meter(servers)
    with meter.measuring():
        sides = _in_turn(loads, each)
    results = [result for side in sides for result in side]
    medians = [milliseconds(latencies(side[1:], CLAIM), 50) for side in sides]
    made.p50_ratio = _ratio(medians[1], medians[0])
    made.details |= {"small_p50_ms": medians[0], "large_p50_ms": medians[1], "claims_each": each * ROUNDS}
    times = latencies(sides[1][1:], CLAIM)
    made.claim_p50_ms, made.claim_p99_ms, made.claim_max_ms = (milliseconds(times, p) for p in (50, 99, 100))
    made.claims_per_s = round(len(times) / sum(result.elapsed_s for result in sides[1][1:]), 1)
    made.charge(meter, results)
    made.count([*warm_up, *results])
    for server, side in zip(servers, (sides[0], [*warm_up, *sides[1]]), strict=True):
        made.check(server.database, side)
    return {
        "tasks": small.tasks,
        "buckets": small.buckets,
        "small_units": small.filled_buckets * small.per_bucket,
        "large_units": large.filled_buckets * large.per_bucket,
    }


def _order(run: Bench, server: Server, size: Size, tag: str = "", part: int = 0, parts: int = 1) -> Claims:
    """Claims at one server, with a ``tag`` from the one task that wants it."""
    each = size.idle // parts
    return Claims(
        target=server.target,
        name=f"{run.mark}-{server.name}-{part}",
        connections=_connections(run),
        first_pilot=size.first_idle + part * each,
        pilots=each,
        offer=msgspec.structs.replace(OFFER, tags=[*OFFER.tags, tag]) if tag else OFFER,
    )


def _in_turn(loads: Sequence[Load], each: int) -> list[list[Result]]:
    """Runs of ``each`` claims, the loads taking turns; the first of each load is for warming up."""
    sides: list[list[Result]] = [[] for _ in loads]
    for _ in range(ROUNDS + 1):
        for load, side in zip(loads, sides, strict=True):
            side += go_all([load], Go(0.0, claims=each))
    return sides


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 3) if above and below else None


def _compare_drained(run: Bench, made: Report) -> int:
    """One bucket is drained to its last units; then claims from it and from a full one are measured in turn."""
    tags = (FRESH, DRAIN, FRESH_TOO, SNAPSHOT)
    length = max(400, round(DRAINED * run.options.scale))
    size = Size(
        sites=1, queues=1, storages=1, tasks=len(tags), buckets=len(tags), units=length * len(tags),
        idle=_connections(run) * PILOTS_EACH * len(tags),
    )  # fmt: skip
    server = run.server("drain", size, tags=tags)
    loads = run.loads(len(tags))
    for part, (load, tag) in enumerate(zip(loads, tags, strict=True)):
        load.prepare(_order(run, server, size, tag, part, len(tags)))
    made.drain_ratio = _drain(made, server, loads[:2], length, "drain")
    if not server.database.is_sqlite:
        with places.old_snapshot(server.database):
            made.drain_ratio_snapshot = _drain(made, server, loads[2:], length, "snapshot")
    return length


def _drain(made: Report, server: Server, loads: Sequence[Load], length: int, word: str) -> float | None:
    measured = min(MEASURED, length // 10)
    each = measured // (ROUNDS + 1)
    drained = go_all(loads[1:], Go(0.0, claims=length - each * (ROUNDS + 1)))
    fresh, last = _in_turn(loads, each)
    medians = [milliseconds(latencies(side[1:], CLAIM), 50) for side in (fresh, last)]
    whole = latencies(drained, CLAIM)
    made.details |= {
        f"{word}_first_p50_ms": medians[0],
        f"{word}_last_p50_ms": medians[1],
        f"{word}_claims_per_s": round(len(whole) / drained[0].elapsed_s, 1),
    }
    results = [*drained, *fresh, *last]
    made.count(results)
    made.check(server.database, results)
    return _ratio(medians[1], medians[0])
