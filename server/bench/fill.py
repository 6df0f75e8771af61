"""What the benchmark fills a database with: a plausible grid, tasks in buckets under nested shares, jobs and history."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.clock import SystemClock
from common.states import JobState, UnitState
from common.wire import (
    Endpoint,
    FilesInput,
    Offer,
    OutputPattern,
    QueueSpec,
    Requirements,
    Shape,
    ShareSpec,
    SiteSpec,
    StageSpec,
    StorageSpec,
    WorkflowRequest,
)
from server.bench.errors import BenchError
from server.bench.requests import kept_around_job
from server.store import bulk, bulk_load, bulk_projects, cursors, workflows, world
from server.store.bulk import NewBucket, NewJobs, Slots
from server.store.database import Database
from server.store.migrate import upgrade

QUEUE = "queue-"
CORES = 8
OFFER = Offer(cores=CORES, memory_mb=16_000, disk_mb=100_000, wall_s=172_800, tags=["apptainer"])
SLOTS_SHAPE = Shape(cores=CORES)
STAGES_EACH = 10
"""Tasks of a workflow."""
TRANSACTION = 100
"""Workflows in one transaction."""


@dataclass(frozen=True)
class Size:
    """How much. Pilots ``1 … live`` each hold the job of their number; ``idle`` more come behind them."""

    sites: int = 100
    queues: int = 200
    storages: int = 100
    tasks: int = 10_000
    buckets: int = 100_000
    units: int = 1_000_000
    live: int = 0
    idle: int = 512
    history: int = 0

    @property
    def per_bucket(self) -> int:
        """Ready units in each bucket that has any."""
        return max(1, self.units // self.buckets)

    @property
    def filled_buckets(self) -> int:
        """Buckets with ready units: all of them, unless there are fewer units than buckets."""
        return min(self.buckets, self.units)

    @property
    def first_idle(self) -> int:
        """The first pilot without a job."""
        return self.live + 1


def fill(
    url: str, size: Size, settings: dict[str, object], tags: Sequence[str] = (), projects: str | None = None
) -> None:
    """Fill an empty place. With ``tags``, task *k* wants a slot with the k-th of them, in turn.

    With ``projects`` all tasks are projects for those who have this role.

    Raises:
        Unfilled: the tables were changed and the filling was not.
    """
    database = Database(url, pool_size=2)
    now = SystemClock().now()
    try:
        upgrade(database)
        draw = random.Random(1)
        _describe(database, size, settings, draw)
        _submit(database, size, tags, draw, now)
        with bulk_load.without_indexes(database):
            _load(database, size, now)
        if projects is not None:
            bulk_projects.make_projects(database, projects, now)
        bulk_load.settle(database)
    finally:
        database.close()


def share_tree() -> list[ShareSpec]:
    """50 nested shares: 5, below each 3, below each of those 2."""
    tree = []
    for a in range(5):
        tree.append(ShareSpec(f"share-{a}", None, 1.0 + a))
        for b in range(3):
            tree.append(ShareSpec(f"share-{a}-{b}", f"share-{a}", 1.0 + b))
            tree += [ShareSpec(f"share-{a}-{b}-{c}", f"share-{a}-{b}", 1.0 + c) for c in range(2)]
    return tree


def _describe(database: Database, size: Size, settings: dict[str, object], draw: random.Random) -> None:
    storages = [f"disk-{number}" for number in range(size.storages)]
    with database.write() as connection:
        for number in range(size.sites):
            near = draw.sample(storages, min(20, len(storages)))
            distances = {name: draw.randrange(10, 90) for name in near if name != f"disk-{number}"}
            world.put(connection, SiteSpec(f"site-{number}", distances=distances))
        for number, name in enumerate(storages):
            endpoint = Endpoint(f"root://{name}.example.org:1094//data")
            world.put(connection, StorageSpec(name=name, site=f"site-{number % size.sites}", endpoints=[endpoint]))
        for number in range(size.queues):
            world.put(connection, QueueSpec(name=f"{QUEUE}{number}", site=f"site-{number % size.sites}", cores=CORES))
        for share in share_tree():
            world.put_share(connection, share)
        for key, value in settings.items():
            world.put_setting(connection, key, value)


def _submit(database: Database, size: Size, tags: Sequence[str], draw: random.Random, now: float) -> None:
    stages = [stage_of(number, tags, draw) for number in range(size.tasks)]
    flows = [stages[start : start + STAGES_EACH] for start in range(0, len(stages), STAGES_EACH)]
    for start in range(0, len(flows), TRANSACTION):
        with database.write() as connection:
            for number, flow in enumerate(flows[start : start + TRANSACTION], start):
                request = WorkflowRequest(name=f"w-{number}", stages=flow)
                workflows.add(connection, request, f"user-{number % 500}", f"user.user-{number % 500}", now)


def stage_of(number: int, tags: Sequence[str], draw: random.Random) -> StageSpec:
    """The stage of the task of this number."""
    leaves = [share.name for share in share_tree() if share.name.count("-") == 3]
    requirements = Requirements(
        cores=draw.choice((1, 1, 1, 8)),
        memory_mb=draw.choice((1000, 2000, 4000)),
        wall_s=draw.choice((0, 7200, 43_200)),
        tags=[tags[number % len(tags)]] if tags else [],
    )
    return StageSpec(
        name=f"s-{number}",
        input=FilesInput(files=[]),
        command=["/bin/sh", "-c", "reconstruct %IN"],
        image="/cvmfs/images.example.org/reco:v3",
        outputs=[OutputPattern("*.root")],
        files_per_job=1,  # also when the task was measured amid the run
        requirements=requirements,
        share=draw.choice(leaves),
        priority=draw.randrange(0, 1000),
    )


def _load(database: Database, size: Size, now: float) -> None:
    slots = Slots(QUEUE, size.queues, OFFER, SLOTS_SHAPE, kept_around_job())
    with database.write() as connection:
        task_ids = bulk.task_ids(connection)
        bulk.open_tasks(connection, task_ids, size.units // max(1, len(task_ids)))
        bulk.add_buckets(connection, _buckets(size, task_ids), size.filled_buckets, now)
        ready = bulk.add_ready_units(connection, size.filled_buckets, size.per_bucket)
    with database.write() as connection:
        if size.live:
            bulk.add_pilots(connection, slots, 1, size.live, now, reporting=True)
        bulk.add_pilots(connection, slots, size.first_idle, size.idle, now)
    with database.write() as connection:
        if size.live:
            live = NewJobs(1, size.live, 1, size.live, ready + 1, size.buckets, JobState.RUNNING, UnitState.RESERVED)
            bulk.add_jobs(connection, slots, live, now)
        if size.history:
            first = size.live + 1
            past = NewJobs(
                first, size.history, 1, size.live + size.idle, ready + first, size.buckets, JobState.FINISHED,
                UnitState.DONE,
            )  # fmt: skip
            bulk.add_jobs(connection, slots, past, now)
            bulk.add_history_events(connection, first, size.history)
    with database.write() as connection:
        bulk.describe_units(connection)
        bulk.roll_up(connection)
        # In a server that runs, what happened before has long been counted.
        cursors.place(connection, cursors.COUNTER)


def _buckets(size: Size, task_ids: Sequence[int]) -> Iterator[NewBucket]:
    """Buckets in turn over the tasks, so that every task's differ: one to three storages each."""
    draw = random.Random(2)
    each = -(-size.buckets // len(task_ids))
    if each > size.storages:
        raise BenchError(
            f"--buckets: at most {size.storages} buckets for each of {len(task_ids)} tasks, as many as storages"
        )
    number = 0
    for task_id in task_ids:
        seen: set[tuple[str, ...]] = set()
        while len(seen) < min(each, size.buckets - number):
            seen.add(
                tuple(
                    sorted(
                        f"disk-{k}" for k in draw.sample(range(size.storages), draw.randint(1, min(3, size.storages)))
                    )
                )
            )
        for locations in sorted(seen):
            number += 1
            yield NewBucket(number, task_id, locations)
