"""What must hold in the database after each step of a history, whatever happened (DESIGN section 5)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from common.states import (
    FINAL_JOB_STATES,
    FINAL_TASK_STATES,
    FINAL_UNIT_STATES,
    JobState,
    TaskState,
    UnitState,
    targets,
)
from server.engine.tasks import ending
from server.store.codes import JOB_STATES, UNIT_STATES, OutputState, PilotState
from server.store.database import Database

S = TypeVar("S", bound=Enum)
HELD = (UnitState.RESERVED, UnitState.OUTPUTTING)
WAITING = (UnitState.PENDING, UnitState.READY)


def reachable(source: S, target: S) -> bool:
    """Whether moves of the transition table lead from one state to another."""
    seen, waiting = {source}, [source]
    while waiting:
        for each in targets(waiting.pop()):
            if each not in seen:
                seen.add(each)
                waiting.append(each)
    return target in seen


@dataclass(frozen=True)
class UnitFacts:
    task: int
    bucket: int
    state: UnitState
    job: int | None
    generation: int
    did: str | None


@dataclass(frozen=True)
class JobFacts:
    task: int
    queue: str
    pilot: int
    state: JobState
    cores: int
    confirmed: float | None
    ended: float | None


@dataclass(frozen=True)
class OutputFacts:
    job: int
    task: int
    did: str
    role: str
    state: OutputState
    place: tuple[str, str]
    fed: bool


@dataclass(frozen=True)
class TaskFacts:
    state: TaskState
    resolved: int
    closed: bool


@dataclass(frozen=True)
class BucketFacts:
    task: int
    maybe_ready: bool
    min_ready: int


@dataclass
class Books:
    """All rows that matter, read in one transaction."""

    units: dict[int, UnitFacts] = field(default_factory=dict)
    jobs: dict[int, JobFacts] = field(default_factory=dict)
    tasks: dict[int, TaskState] = field(default_factory=dict)
    pilots: dict[int, PilotState] = field(default_factory=dict)
    outputs: dict[int, OutputFacts] = field(default_factory=dict)
    told_units: Counter[tuple[int, int, UnitState]] = field(default_factory=Counter)
    told_jobs: dict[tuple[int, str, JobState], tuple[int, int]] = field(default_factory=dict)
    moving: set[int] = field(default_factory=set)
    """Tasks whose units a command still moves."""
    facts: dict[int, TaskFacts] = field(default_factory=dict)
    buckets: dict[int, BucketFacts] = field(default_factory=dict)
    uncounted: set[int] = field(default_factory=set)
    """Buckets with changes that were not rolled up yet."""
    registering: set[int] = field(default_factory=set)
    """Jobs whose outputs have to be registered, or taken back."""
    archived: set[int] = field(default_factory=set)
    """Those of the jobs that are in the archive."""
    unbooked: list[int] = field(default_factory=list)
    """Ended jobs that are not in the accounts yet."""
    booked: int = 0
    """Jobs in the accounts."""


def read(database: Database) -> Books:
    """The books as they are now."""
    books = Books()
    with database.read() as connection:

        def rows(words: str) -> Any:
            return connection.exec_driver_sql(words)

        for id_, task, bucket, state, job, generation, did in rows(
            "SELECT id, task_id, bucket_id, state, job_id, generation, did"
            " FROM unit LEFT JOIN unit_detail ON unit_id = id"
        ):
            books.units[id_] = UnitFacts(task, bucket, UNIT_STATES[state], job, generation, did)
        for table in ("job", "job_archive"):
            for id_, task, queue, pilot, state, cores, confirmed, ended in rows(
                f"SELECT id, task_id, queue, pilot_id, state, cores, confirmed, ended FROM {table}"
            ):
                assert id_ not in books.jobs, f"job {id_} is in the archive, and among the others"
                books.jobs[id_] = JobFacts(task, queue, pilot, JOB_STATES[state], cores, confirmed, ended)
                if table == "job_archive":
                    books.archived.add(id_)
        for id_, state, resolved, closed in rows("SELECT id, state, resolved, input_closed FROM task"):
            books.tasks[id_] = TaskState(state)
            books.facts[id_] = TaskFacts(TaskState(state), resolved, bool(closed))
        for id_, task, maybe_ready, min_ready in rows("SELECT id, task_id, maybe_ready, min_ready FROM bucket"):
            books.buckets[id_] = BucketFacts(task, bool(maybe_ready), min_ready)
        books.uncounted = {row[0] for row in rows("SELECT DISTINCT bucket_id FROM unit_delta")}
        books.registering = {row[0] for row in rows("SELECT job_id FROM registration")}
        books.unbooked = [row[0] for row in rows("SELECT job_id FROM job_ended")]
        books.booked = int(rows("SELECT coalesce(sum(jobs_ok + jobs_failed), 0) FROM accounting_day").scalar())
        books.pilots = {id_: PilotState(state) for id_, state in rows("SELECT id, state FROM pilot")}
        for id_, job, task, did, role, state, storage, path, fed in rows(
            "SELECT id, job_id, task_id, did, role, state, storage, path, fed FROM output"
        ):
            books.outputs[id_] = OutputFacts(job, task, did, role, OutputState(state), (storage, path), bool(fed))
        for task, bucket, state, n in rows(
            "SELECT task_id, bucket_id, state, n FROM unit_count UNION ALL SELECT task_id, bucket_id, state, n FROM unit_delta"
            " UNION ALL SELECT task_id, bucket_id, source, -n FROM unit_delta WHERE source IS NOT NULL"
        ):
            books.told_units[task, bucket, UNIT_STATES[state]] += n
        jobs: Counter[tuple[int, str, JobState]] = Counter()
        cores_of: Counter[tuple[int, str, JobState]] = Counter()
        for task, queue, state, n, cores in rows(
            "SELECT task_id, queue, state, n, cores FROM job_count"
            " UNION ALL SELECT task_id, queue, state, n, cores FROM job_delta"
            " UNION ALL SELECT task_id, queue, source, -n, -cores FROM job_delta WHERE source IS NOT NULL"
        ):
            jobs[task, queue, JOB_STATES[state]] += n
            cores_of[task, queue, JOB_STATES[state]] += cores
        books.told_jobs = {key: (jobs[key], cores_of[key]) for key in jobs if jobs[key] or cores_of[key]}
        books.moving = {row[0] for row in rows("SELECT task_id FROM task_move")}
    return books


def check(now: Books, deleted: set[int]) -> None:
    """What holds at any moment. ``deleted`` are tasks of workflows that are being taken away."""
    _counts(now, deleted)
    _units(now)
    _hints(now, deleted)
    _jobs(now, deleted)
    _outputs(now, deleted)
    _stages(now, deleted)
    _tasks(now, deleted)


def _counts(now: Books, deleted: set[int]) -> None:
    real = Counter((each.task, each.bucket, each.state) for each in now.units.values() if each.task not in deleted)
    told = {key: n for key, n in now.told_units.items() if n and key[0] not in deleted}
    assert told == dict(real), "the counts of units are wrong"
    jobs: Counter[tuple[int, str, JobState]] = Counter()
    cores: Counter[tuple[int, str, JobState]] = Counter()
    for each in now.jobs.values():
        jobs[each.task, each.queue, each.state] += 1
        cores[each.task, each.queue, each.state] += each.cores
    told_jobs = {key: value for key, value in now.told_jobs.items() if key[0] not in deleted}
    real_jobs = {key: (jobs[key], cores[key]) for key in jobs if key[0] not in deleted}
    assert told_jobs == real_jobs, "the counts of jobs are wrong"


def _units(now: Books) -> None:
    for unit_id, each in now.units.items():
        job = now.jobs.get(each.job) if each.job is not None else None
        if each.state in HELD:
            assert job is not None, f"unit {unit_id} is held by nobody"
            assert job.state not in FINAL_JOB_STATES, f"unit {unit_id} is held by a job that is over"
            assert job.task == each.task
        elif each.state == UnitState.READY:
            assert each.job is None, f"unit {unit_id} is ready, and carries a job"
        elif each.state == UnitState.DONE:
            assert job is not None, f"unit {unit_id} was done by nobody"
            assert job.state == JobState.FINISHED, f"unit {unit_id} was done by a job that is {job.state}"


def _hints(now: Books, deleted: set[int]) -> None:
    """A bucket that no hint tells of is never looked at: its units would be forgotten."""
    ready = Counter(each.bucket for each in now.units.values() if each.state == UnitState.READY)
    for bucket_id, n in ready.items():
        bucket = now.buckets[bucket_id]
        told = bucket.maybe_ready or bucket_id in now.uncounted or n < bucket.min_ready
        assert told or bucket.task in deleted, f"bucket {bucket_id} has {n} ready units, and nothing tells of it"


def _jobs(now: Books, deleted: set[int]) -> None:
    for job_id, job in now.jobs.items():
        final = job.state in FINAL_JOB_STATES
        assert final == (job.ended is not None), f"job {job_id} is {job.state}, and ended at {job.ended}"
        assert final or job_id not in now.archived, f"job {job_id} lives, and is in the archive"
        if not final and job.confirmed is not None and job.task not in deleted:
            assert job_id in now.registering, f"job {job_id} is confirmed, and nobody registers its outputs"
    assert len(set(now.unbooked)) == len(now.unbooked), "a job ended twice"


def _outputs(now: Books, deleted: set[int]) -> None:
    workers = {each.job for each in now.units.values() if each.state == UnitState.DONE}
    places: set[tuple[str, str]] = set()
    for each in now.outputs.values():
        assert each.place not in places, "two outputs in one place"
        places.add(each.place)
        if each.task not in deleted:
            _output(now, each, each.job in workers)


def _output(now: Books, each: OutputFacts, worked: bool) -> None:
    job = now.jobs[each.job]
    final = job.state in FINAL_JOB_STATES
    if each.state == OutputState.RECORDED:
        assert not final and job.confirmed is None, f"{each.did} is recorded still, and its job is {job.state}"
    elif each.state == OutputState.UPLOADED:
        assert not final and job.confirmed is not None, f"{each.did} waits for a job that is {job.state}"
    elif each.state == OutputState.RETIRED:
        assert job.state == JobState.FINISHED and not worked, f"{each.did} is retired, but its units are done"
        assert not each.fed, f"{each.did} is retired, but a later stage has it"
    elif each.state == OutputState.CONFIRMED and each.role == "output":
        assert job.state == JobState.FINISHED, f"output of a job that is {job.state} is visible"
        assert worked, f"{each.did} is visible, but its job did nothing"
    elif each.state == OutputState.CONFIRMED:
        assert final or job.confirmed is not None


def _stages(now: Books, deleted: set[int]) -> None:
    """What a stage gave the next one is visible, and was given once."""
    by_did = {each.did: each for each in now.outputs.values()}
    given: set[tuple[int, str]] = set()
    for unit_id, each in now.units.items():
        output = by_did.get(each.did) if each.did else None
        if output is None or each.task in deleted:
            continue
        assert output.state == OutputState.CONFIRMED, f"unit {unit_id} is an output that is {output.state.name}"
        assert (each.task, output.did) not in given, f"{output.did} was given to task {each.task} twice"
        given.add((each.task, output.did))


def _tasks(now: Books, deleted: set[int]) -> None:
    for each in now.units.values():
        state = now.tasks.get(each.task)
        if state == TaskState.BROKEN and each.state in WAITING:
            continue  # it was never claimed from, and goes on should the stage before give output after all
        if each.task not in deleted and each.task not in now.moving and state in FINAL_TASK_STATES:
            assert each.state in FINAL_UNIT_STATES, f"task {each.task} is {state}, a unit {each.state}"
    made = Counter(each.task for each in now.units.values())
    for task_id, facts in now.facts.items():
        if task_id not in deleted:
            assert facts.resolved == made[task_id], f"task {task_id} says it has {facts.resolved} units"


def check_rest(now: Books, deleted: set[int]) -> None:
    """What holds when the agents have nothing left to do: whatever is over is said to be over."""
    states: dict[int, Counter[UnitState]] = {task_id: Counter() for task_id in now.facts}
    for each in now.units.values():
        states[each.task][each.state] += 1
    # What failed in a job that waits for its outputs to be registered is retried when that is over.
    waiting = {each.task for each in now.jobs.values() if each.state not in FINAL_JOB_STATES}
    stuck = now.moving - waiting
    assert not stuck, f"the units of tasks {stuck} are still to be moved"
    for task_id, facts in now.facts.items():
        # Nor is a task over whose failed units wait for that, though all of them look final.
        if task_id not in deleted and task_id not in now.moving:
            verdict = ending(facts.state, states[task_id], facts.closed)
            assert verdict is None, f"task {task_id} is {facts.state}, and should be {verdict}"
    ended = sum(1 for each in now.jobs.values() if each.state in FINAL_JOB_STATES)
    assert now.booked >= ended - len(now.unbooked), "a job that has ended is not in the accounts"


def check_step(before: Books, now: Books, deleted: set[int]) -> None:
    """What a step may change."""
    for unit_id, old in before.units.items():
        new = now.units.get(unit_id)
        if new is None:
            assert old.task in deleted, f"unit {unit_id} is forgotten"
            continue
        assert new.task == old.task
        assert new.generation >= old.generation
        if old.state == UnitState.DONE and new.generation == old.generation:
            assert (new.state, new.job) == (UnitState.DONE, old.job), f"unit {unit_id} was done, and is not any more"
        assert reachable(old.state, new.state)
    for job_id, was in before.jobs.items():
        job = now.jobs.get(job_id)
        if job is None:
            assert was.task in deleted, f"job {job_id} is forgotten"
            continue
        assert reachable(was.state, job.state), f"job {job_id} went from {was.state} to {job.state}"
        if was.state in FINAL_JOB_STATES:
            assert job == was, f"job {job_id} was over, and changed"
    for task_id, state in before.tasks.items():
        task = now.tasks.get(task_id)
        assert task is not None or task_id in deleted, f"task {task_id} is forgotten"
        if task is not None:
            assert reachable(state, task), f"task {task_id} went from {state} to {task}"


def check_fed(now: Books, parents: dict[int, list[int]], cut: set[int]) -> None:
    """When all is over: every visible output of a stage came to the stage behind it, unless that was told to end."""
    given = {(each.task, each.did) for each in now.units.values()}
    for task_id, stages in parents.items():
        if task_id in cut or now.tasks.get(task_id) != TaskState.DONE:
            continue
        for each in now.outputs.values():
            wanted = each.task in stages and each.role == "output" and each.state == OutputState.CONFIRMED
            if wanted:
                assert (task_id, each.did) in given, f"task {task_id} never got {each.did}"
