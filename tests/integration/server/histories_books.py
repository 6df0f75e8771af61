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
from server.store.codes import JOB_STATES, UNIT_STATES, OutputState, PilotState
from server.store.database import Database

S = TypeVar("S", bound=Enum)
HELD = (UnitState.RESERVED, UnitState.OUTPUTTING)


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


def read(database: Database) -> Books:
    """The books as they are now."""
    books = Books()
    with database.read() as connection:

        def rows(words: str) -> Any:
            return connection.exec_driver_sql(words)

        for id_, task, bucket, state, job, generation in rows(
            "SELECT id, task_id, bucket_id, state, job_id, generation FROM unit"
        ):
            books.units[id_] = UnitFacts(task, bucket, UNIT_STATES[state], job, generation)
        for id_, task, queue, pilot, state, cores, confirmed, ended in rows(
            "SELECT id, task_id, queue, pilot_id, state, cores, confirmed, ended FROM job"
        ):
            books.jobs[id_] = JobFacts(task, queue, pilot, JOB_STATES[state], cores, confirmed, ended)
        books.tasks = {id_: TaskState(state) for id_, state in rows("SELECT id, state FROM task")}
        books.pilots = {id_: PilotState(state) for id_, state in rows("SELECT id, state FROM pilot")}
        for id_, job, task, did, role, state, storage, path in rows(
            "SELECT id, job_id, task_id, did, role, state, storage, path FROM output"
        ):
            books.outputs[id_] = OutputFacts(job, task, did, role, OutputState(state), (storage, path))
        for table in ("unit_count", "unit_delta"):
            for task, bucket, state, n in rows(f"SELECT task_id, bucket_id, state, n FROM {table}"):
                books.told_units[task, bucket, UNIT_STATES[state]] += n
        jobs: Counter[tuple[int, str, JobState]] = Counter()
        cores_of: Counter[tuple[int, str, JobState]] = Counter()
        for table in ("job_count", "job_delta"):
            for task, queue, state, n, cores in rows(f"SELECT task_id, queue, state, n, cores FROM {table}"):
                jobs[task, queue, JOB_STATES[state]] += n
                cores_of[task, queue, JOB_STATES[state]] += cores
        books.told_jobs = {key: (jobs[key], cores_of[key]) for key in jobs if jobs[key] or cores_of[key]}
        books.moving = {row[0] for row in rows("SELECT task_id FROM task_move")}
    return books


def check(now: Books, deleted: set[int]) -> None:
    """What holds at any moment. ``deleted`` are tasks of workflows that are being taken away."""
    _counts(now, deleted)
    _units(now)
    _outputs(now, deleted)
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


def _outputs(now: Books, deleted: set[int]) -> None:
    workers = {each.job for each in now.units.values() if each.state == UnitState.DONE}
    places: set[tuple[str, str]] = set()
    for each in now.outputs.values():
        assert each.place not in places, "two outputs in one place"
        places.add(each.place)
        if each.state != OutputState.CONFIRMED or each.task in deleted:
            continue
        job = now.jobs[each.job]
        if each.role == "output":
            assert job.state == JobState.FINISHED, f"output of a job that is {job.state} is visible"
            assert each.job in workers, f"{each.did} is visible, but its job did nothing"
        else:
            assert job.state in FINAL_JOB_STATES


def _tasks(now: Books, deleted: set[int]) -> None:
    for each in now.units.values():
        state = now.tasks.get(each.task)
        if each.task not in deleted and each.task not in now.moving and state in FINAL_TASK_STATES:
            assert each.state in FINAL_UNIT_STATES, f"task {each.task} is {state}, a unit {each.state}"


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
