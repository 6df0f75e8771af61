"""The profiles: what is filled, what load is put on it, and which figures come of it."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from common.cli.demo_processes import Processes, ended_by_signals
from common.tokens import load_or_create_key
from server.bench import report
from server.bench.calibration import machine_now
from server.bench.errors import BenchError
from server.bench.fill import OFFER, Size, fill
from server.bench.lives import CLAIM, CONFIRM, HEARTBEAT, RECORD
from server.bench.messages import Claims, Go, Result, World
from server.bench.programs import (
    ADDRESS,
    Load,
    Meter,
    Server,
    environment,
    go_all,
    make_certificate,
    run_all,
    start_server,
)
from server.bench.report import Report, latencies, milliseconds
from server.bench.requests import TOKEN_S
from server.config import ServerConfig
from server.store import bulk, bulk_load, places

PILOTS_EACH = 256
"""As so many pilots acts each connection of a closed loop."""
PANDA_JOBS = 600_000
PANDA_HEARTBEATS_PER_S = PANDA_JOBS / 1800.0
PANDA_LIVES_PER_S = 8.3
"""The published load of PanDA: concurrent jobs, one heartbeat in half an hour each, 5 million jobs a week."""


@dataclass(frozen=True)
class Options:
    """What the person asked for; None where the profile has a value of its own."""

    database: str | None = None
    scale: float = 1.0
    seconds: float | None = None
    warm_up_s: float | None = None
    connections: int | None = None
    load_processes: int = 1
    web_processes: int | None = None
    web_threads: int = 64
    queues: int | None = None
    tasks: int | None = None
    buckets: int | None = None
    units: int | None = None
    history: int | None = None
    tls: bool = False
    keep: bool = False
    reuse: bool = False
    beside_other_data: bool = False

    def size(self, **values: int) -> Size:
        """A profile's size, with what the person asked for put in its place."""
        asked = {name: getattr(self, name) for name in ("queues", "tasks", "buckets", "units", "history")}
        return Size(**{**values, **{name: value for name, value in asked.items() if value is not None}})


@dataclass
class Bench:
    """Servers and loads of one run, all stopped and removed at its end."""

    options: Options
    folder: Path
    processes: Processes
    before: ExitStack
    after: ExitStack
    servers: list[Server] = field(default_factory=list)
    machine: Mapping[str, float] = field(default_factory=machine_now)
    """Of the machine before the run: what else was at work, and how fast it was."""
    mark: str = field(default_factory=lambda: secrets.token_hex(6))
    """Sets this run's requests apart from those of another over the same tables."""

    @property
    def on_sqlite(self) -> bool:
        """Whether the database is SQLite."""
        return self.options.database is None or self.options.database.startswith("sqlite")

    def server(
        self, name: str, size: Size, *, tags: Sequence[str] = (), projects: str | None = None, **settings: object
    ) -> Server:
        """A real server over a place of its own, filled so."""
        place = self._place(name, size, {"pilot_token_s": TOKEN_S, **settings}, tags, projects)
        state = self.folder / f"state-{name}"
        state.mkdir(mode=0o700)
        load_or_create_key(state / "signing.key")
        certificate, key = make_certificate(state) if self.options.tls else ("", "")
        config = ServerConfig(
            database=place,
            state_dir=str(state),
            host=ADDRESS,
            port=0,
            web_processes=self.options.web_processes or (1 if self.on_sqlite else psutil.cpu_count() or 1),
            web_threads=self.options.web_threads,
            tls_cert=str(certificate),
            tls_key=str(key),
        )
        server = start_server(self.processes, self.folder, name, config)
        self.before.callback(server.database.close)
        self.servers.append(server)
        return server

    def _place(
        self, name: str, size: Size, settings: dict[str, object], tags: Sequence[str], projects: str | None
    ) -> str:
        """The URL of a filled place: what an earlier run kept, if that is asked for and fits, else a new one."""
        url = self.options.database or f"sqlite:///{self.folder / 'bench.db'}"
        content = msgspec.json.encode([dataclasses.asdict(size), settings, tags, projects]).decode()
        try:
            place = places.own_place(url, name, beside_others=self.options.beside_other_data, reuse=self.options.reuse)
        except (places.ForeignData, ValueError) as error:
            raise BenchError(f"--database: {error}") from error
        if place.content is not None and place.content != content:
            raise BenchError(f"--reuse: what was kept was filled otherwise: {place.content}; leave the option out")
        if not self.options.keep:
            self.after.callback(places.drop_place, place.url)
        if place.content is None:
            fill(place.url, size, settings, tags, projects)
            places.say_filled(place.url, content)
        return place.url

    def loads(self, count: int) -> list[Load]:
        """So many load processes."""
        return [self.before.enter_context(Load()) for _ in range(count)]


@contextmanager
def bench(options: Options, folder: Path) -> Iterator[Bench]:
    """A place for one run."""
    # Load processes end before the servers, and places are dropped when those have ended too.
    with ended_by_signals(), ExitStack() as after, Processes(environment(), folder) as processes, ExitStack() as before:
        yield Bench(options, folder, processes, before, after)


def run_claim(run: Bench) -> Report:
    """Closed loop of claims of one unit each, then of whole lives."""
    options = run.options
    connections = options.connections or (4 if run.on_sqlite else 16)
    size = options.size(idle=2 * connections * PILOTS_EACH)
    server = run.server("claim", size)
    made = Report(profile="claim", scale=options.scale)
    loads = run.loads(min(options.load_processes, connections))
    seconds = options.seconds or 30.0
    everything: list[Result] = []
    for lives in (False, True):
        orders = [
            _claims(run, server, size, connections, (part, len(loads)), lives=lives) for part in range(len(loads))
        ]
        warm_up = 3.0 if options.warm_up_s is None else options.warm_up_s
        if warm_up:
            everything += run_all(loads, orders, Go(0.0, warm_up))
        else:
            _prepare(loads, orders)
        meter = Meter([server])
        with meter.measuring():
            results = go_all(loads, Go(0.0, seconds))
        everything += results
        elapsed = max(result.elapsed_s for result in results)
        if lives:
            made.jobs_per_s = round(sum(result.lives for result in results) / elapsed, 1)
            made.p50_ms, made.p99_ms = (milliseconds(latencies(results), percent) for percent in (50, 99))
            made.max_ms = milliseconds(latencies(results), 100)
            made.details["lives_cpu_cores"] = {kind: round(cpu / meter.wall_s, 3) for kind, cpu in meter.cpu_s.items()}
            made.details |= {f"lives_{name}": value for name, value in _by_kind(results).items()}
        else:
            _fill_claims(made, results, elapsed)
            made.charge(meter, results)
    made.count(everything)
    made.check(server.database, everything)
    made.conditions = report.conditions(run.machine, server, connections=connections, seconds=seconds, **sizes_of(size))
    return made


def _claims(
    run: Bench, server: Server, size: Size, connections: int, part_of: tuple[int, int], *, lives: bool
) -> Claims:
    """The part of a closed loop that one load process does. Lives are lived by pilots that hold nothing yet."""
    part, parts = part_of
    half = size.idle // 2
    return Claims(
        target=server.target,
        name=f"{run.mark}-{'lives' if lives else 'claims'}-{part}",
        connections=connections // parts + (part < connections % parts),
        first_pilot=size.first_idle + (half if lives else 0) + part * (half // parts),
        pilots=half // parts,
        offer=OFFER,
        lives=lives,
    )


def _prepare(loads: Sequence[Load], orders: Sequence[Claims]) -> None:
    for load, order in zip(loads, orders, strict=True):
        load.prepare(order)


def _fill_claims(made: Report, results: Sequence[Result], elapsed: float) -> None:
    times = latencies(results, CLAIM)
    made.claims_per_s = round(len(times) / elapsed, 1)
    made.claim_p50_ms, made.claim_p99_ms, made.claim_max_ms = (milliseconds(times, p) for p in (50, 99, 100))


def _by_kind(results: Sequence[Result]) -> dict[str, float | None]:
    return {
        f"{kind}_p{percent}_ms": milliseconds(latencies(results, kind), percent)
        for kind in (CLAIM, RECORD, CONFIRM, HEARTBEAT)
        for percent in (50, 99)
        if latencies(results, kind)
    }


def sizes_of(size: Size) -> dict[str, object]:
    """How much was filled in, for the conditions."""
    return {
        "queues": size.queues,
        "tasks": size.tasks,
        "buckets": size.buckets,
        "ready_units": size.filled_buckets * size.per_bucket,
        "live_jobs": size.live,
        "pilots": size.live + size.idle,
        "history": size.history,
    }


def run_world(run: Bench) -> Report:
    """Open loop: the published load of PanDA, times the scale."""
    options = run.options
    seconds = options.seconds or 300.0
    warm_up = 20.0 if options.warm_up_s is None else options.warm_up_s
    lives_per_s = PANDA_LIVES_PER_S * options.scale
    idle = max(64, math.ceil(lives_per_s * (seconds + warm_up) * 1.1))
    live = max(1, round(PANDA_JOBS * options.scale))
    size = options.size(live=live, idle=idle, history=live)
    server = run.server("world", size, heartbeat_s=1800.0, heartbeat_timeout_s=7200.0)
    warmed = bulk_load.warm(server.database)
    loads = run.loads(options.load_processes)
    connections = options.connections or 256
    orders = [
        _world(run, server, size, (seconds, warm_up), connections, (part, len(loads))) for part in range(len(loads))
    ]
    for load, order in zip(loads, orders, strict=True):
        load.tell(order)
    for load in loads:
        load.ready()
    unfolded, vacuums = bulk.backlog(server.database), places.autovacuums(server.database)
    meter = Meter([server])
    with meter.measuring():
        results = go_all(loads, Go(0.0))
    made = Report(profile="world", scale=options.scale)
    made.heartbeats_per_s = round(len(latencies(results, HEARTBEAT)) / seconds, 1)
    made.jobs_per_s = round(sum(result.lives for result in results) / seconds, 2)
    _fill_claims(made, results, seconds)
    made.p50_ms, made.p99_ms, made.max_ms = (milliseconds(latencies(results), percent) for percent in (50, 99, 100))
    made.charge(meter, results)
    judge_backlog(made, results, options.scale * (PANDA_HEARTBEATS_PER_S + 3 * PANDA_LIVES_PER_S))
    made.count(results)
    made.check(server.database, results)
    made.details = {
        **_by_kind(results),
        "unfolded_counts": [unfolded, bulk.backlog(server.database)],
        "autovacuums": [vacuums, places.autovacuums(server.database)],
    }
    made.conditions = report.conditions(
        run.machine,
        server,
        connections=connections,
        seconds=seconds,
        warm_up_s=warm_up,
        warmed=warmed,
        **sizes_of(size),
    )
    return made


def _world(
    run: Bench, server: Server, size: Size, times: tuple[float, float], connections: int, part_of: tuple[int, int]
) -> World:
    """The part of the open loop that one load process does."""
    part, parts = part_of
    idle = size.idle // parts
    return World(
        target=server.target,
        name=f"{run.mark}-{part}",
        connections=max(1, connections // parts),
        heartbeats_per_s=PANDA_HEARTBEATS_PER_S * run.options.scale / parts,
        lives_per_s=PANDA_LIVES_PER_S * run.options.scale / parts,
        seconds=times[0],
        warm_up_s=times[1],
        first_beating=1,
        beating=size.live,
        first_idle=size.first_idle + part * idle,
        idle=idle,
        offer=OFFER,
        part=part,
        parts=parts,
    )


GROWTH_S = 0.05
"""A backlog grows when its last quarter is twice its first, and larger by what falls due in so many seconds."""


def judge_backlog(made: Report, results: Sequence[Result], requests_per_s: float) -> None:
    """Whether more and more requests wait."""
    backlog = [sum(samples) for samples in zip(*(result.backlog for result in results))]
    first, last = report.mean_of_quarter(backlog, 0), report.mean_of_quarter(backlog, 3)
    made.backlog_first, made.backlog_last, made.backlog_max = first, last, max(backlog, default=0)
    made.backlog_grows = last > 2 * first and last - first > GROWTH_S * requests_per_s
