"""The profile ``idle``: what a fleet without work costs, and how soon new work reaches it."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from server.bench import report
from server.bench.errors import BenchError
from server.bench.fill import OFFER, Size, share_tree
from server.bench.lives import CLAIM
from server.bench.messages import Go, Idle, Result
from server.bench.profiles import Bench, Options, sizes_of
from server.bench.programs import Meter, Server, go_all
from server.bench.report import Report, latencies, milliseconds
from server.config import Knobs

PILOTS = 10_000
UNITS = 20_000
"""Of the task that is submitted."""
TASKS, BUCKETS = 1000, 10_000
"""Of the others, which have nothing ready: a live job holds the last unit of each bucket."""
COMING_PER_S = 200.0
"""How fast the fleet comes."""
CONNECTIONS = 128
BUSY_SHARE = 0.9


def run_idle(run: Bench) -> Report:
    """Requests of idle pilots a second; seconds until the first and nine tenths of them have a job of a new task."""
    options = run.options
    _refuse(options)
    pilots, units = (max(1, round(full * options.scale)) for full in (PILOTS, UNITS))
    buckets = options.buckets or BUCKETS
    size = options.size(tasks=min(TASKS, buckets), buckets=buckets, units=0, live=buckets, idle=pilots)
    server = run.server("idle", size, heartbeat_s=1800.0, heartbeat_timeout_s=7200.0)
    order = _order(run, server, size, units)
    (load,) = run.loads(1)
    load.prepare(order)
    meter = Meter([server])
    with meter.measuring():
        results = go_all([load], Go(0.0))
    made = Report(profile="idle", scale=options.scale)
    _judge(made, order, results[0])
    made.p50_ms, made.p99_ms, made.max_ms = (milliseconds(latencies(results), percent) for percent in (50, 99, 100))
    times = latencies(results, CLAIM)
    made.claim_p50_ms, made.claim_p99_ms, made.claim_max_ms = (milliseconds(times, p) for p in (50, 99, 100))
    made.charge(meter, results)
    made.count(results)
    made.check(server.database, results)
    made.conditions = report.conditions(
        run.machine,
        server,
        connections=order.connections,
        coming_s=order.coming_s,
        seconds=order.seconds,
        **sizes_of(size),
        idle_pilots=pilots,
        new_units=units,
    )
    return made


def _refuse(options: Options) -> None:
    """What this profile cannot do.

    Raises:
        BenchError: it is asked for.
    """
    if options.keep or options.reuse:
        raise BenchError(
            "--keep, --reuse: the profile idle does without them: it is filled in seconds, and uses its fleet up"
        )
    if options.units is not None:
        raise BenchError("--units: the profile idle fills in no ready units; --scale says how many come later")
    if options.load_processes != 1:
        raise BenchError("--load-processes: the profile idle has one, since the fleet is as one")


def _order(run: Bench, server: Server, size: Size, units: int) -> Idle:
    options = run.options
    turn_s = size.idle / Knobs().idle_requests_per_s
    return Idle(
        target=server.target,
        name=run.mark,
        connections=min(options.connections or CONNECTIONS, size.idle),
        first_pilot=size.first_idle,
        pilots=size.idle,
        offer=OFFER,
        units=units,
        share=share_tree()[-1].name,
        coming_s=size.idle / COMING_PER_S if options.warm_up_s is None else options.warm_up_s,
        settle_s=60.0 + 6 * turn_s,
        seconds=options.seconds or 30.0,
        limit_s=60.0 + 4 * turn_s,
        busy_share=BUSY_SHARE,
    )


def _judge(made: Report, order: Idle, result: Result) -> None:
    seen = result.idle
    assert seen is not None
    asks, starts = (_moments(packed) for packed in (seen.asks, seen.starts))
    wanted = math.ceil(order.pilots * order.busy_share)
    made.details = {
        "steady": seen.steady,
        "busy": len(starts),
        "busy_wanted": wanted,
        "sent_away_after_first": seen.sent_away,
    }
    if seen.settled is None or seen.submitted is None:
        return
    settled = [each for each in asks if each >= seen.settled]
    idle = [each for each in settled if each < seen.submitted]
    made.idle_requests_per_s = round(len(idle) / (seen.submitted - seen.settled), 1)
    made.idle_requests_max_per_s = most_in_a_second(settled)
    made.details |= {
        "settled_after_s": round(seen.settled, 1),
        "max_per_s_idle": most_in_a_second(idle),
        "max_per_s_coming": most_in_a_second([each for each in asks if each < seen.settled]),
    }
    if starts:
        made.first_start_s = round(starts[0] - seen.submitted, 3)
    if len(starts) >= wanted:
        made.busy_90_s = round(starts[wanted - 1] - seen.submitted, 3)
    elif seen.refusal:
        made.details["last_refusal"] = seen.refusal


def _moments(packed: bytes) -> array[float]:
    found: array[float] = array("d")
    found.frombytes(packed)
    return found


def most_in_a_second(moments: Sequence[float]) -> int:
    """The most of some moments, in order, that lie within one second, wherever it begins."""
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most
