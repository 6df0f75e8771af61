"""The profile ``reserve``: workers outside of the slots take files of projects, large and small, and give them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.states import UnitState
from server.bench import report
from server.bench.fill import Size
from server.bench.lives import RELEASE, RESERVE
from server.bench.messages import Files, Go, Result
from server.bench.profiles import Bench
from server.bench.programs import Load, Meter, Server, go_all
from server.bench.report import Report, claims_of, duplicates_in, latencies, milliseconds
from server.engine.access import Role
from server.store import bulk_projects
from server.store.database import Database

SIZES = (1_000, 50_000, 1_000_000)
"""Files of a project."""
BUCKETS = 10
"""Location sets of a project."""
ROUNDS = 10
"""How often the sizes are measured in turn."""
PAIRS = 2_000
"""Files reserved and given back in each round."""
SITE = "site-0"


@dataclass(frozen=True)
class _Side:
    """Projects of one size, and who works on them."""

    files: int
    server: Server
    load: Load
    results: list[Result]

    @property
    def pairs_per_s(self) -> float:
        """Without the first round, which is for warming up."""
        measured = self.results[1:]
        return round(sum(result.lives for result in measured) / sum(result.elapsed_s for result in measured), 1)


def run_reserve(run: Bench) -> Report:
    """Pairs of reservation and release a second, by the size of the project; the sizes take turns."""
    made = Report(profile="reserve", scale=run.options.scale)
    sizes = [min(files, max(SIZES[0], round(files * run.options.scale))) for files in SIZES]
    pairs = max(20, round(PAIRS * min(1.0, run.options.scale * 10)))
    connections = run.options.connections or (4 if run.on_sqlite else 16)
    loads = run.loads(len(sizes))
    sides = [
        _side(run, files, load, pairs * (ROUNDS + 1), connections)
        for files, load in zip(sorted(set(sizes)), loads, strict=False)
    ]
    meter = Meter([side.server for side in sides])
    for side in sides:
        side.results.extend(go_all([side.load], Go(0.0, claims=pairs)))
    with meter.measuring():
        for _ in range(ROUNDS):
            for side in sides:
                side.results.extend(go_all([side.load], Go(0.0, claims=pairs)))
    results = [result for side in sides for result in side.results]
    made.charge(meter, [result for side in sides for result in side.results[1:]])
    made.pairs_per_s = {str(side.files): side.pairs_per_s for side in sides}
    made.pairs_ratio = round(sides[-1].pairs_per_s / sides[0].pairs_per_s, 3) if sides[0].pairs_per_s else None
    made.p50_ms, made.p99_ms, made.max_ms = (milliseconds(latencies(results), percent) for percent in (50, 99, 100))
    made.details = {
        f"{kind}_{side.files}_p{percent}_ms": milliseconds(latencies(side.results[1:], kind), percent)
        for side in sides
        for kind in (RESERVE, RELEASE)
        for percent in (50, 99)
    }
    made.count(results)
    for side in sides:
        _check(made, side.server.database, side.results)
    made.conditions = report.conditions(
        run.machine, sides[0].server, connections=connections, files=sizes, pairs_each=pairs * ROUNDS
    )
    return made


def _side(run: Bench, files: int, load: Load, pairs: int, connections: int) -> _Side:
    projects = 1 + pairs * 11 // (10 * files)
    size = Size(
        sites=20, queues=1, storages=20, tasks=projects, buckets=projects * BUCKETS, units=files * projects, idle=1
    )
    server = run.server(f"reserve_{files}", size, projects=Role.OUTSIDE_WORKER.value)
    load.prepare(
        Files(
            target=server.target,
            name=f"{run.mark}-{files}",
            connections=connections,
            projects=list(range(1, projects + 1)),
            cpu_site=SITE,
        )
    )
    return _Side(files, server, load, [])


def _check(made: Report, database: Database, results: Sequence[Result]) -> None:
    """Whether a file was given twice, and whether the database has every one that was given back as done."""
    pairs = claims_of(results)
    made.duplicates += duplicates_in(pairs)
    found = bulk_projects.states(database, [unit_id for unit_id, _ in pairs])
    made.wrong_in_database += len(pairs) - found.get(UnitState.DONE, 0) - duplicates_in(pairs)
