"""What Slurm's commands and its REST daemon answer, read into records: plain text of any version, and JSON of any.

JSON changed much between versions: a state became a list, a number became ``{"set", "infinite", "number"}``, an exit
code a table. An array's tasks that wait may come as one record; here each task is a record of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from harvester.backends.base import BackendError
from harvester.backends.slurm_states import JobRecord

SQUEUE_FORMAT = "JobArrayID:60|,State:24|,exit_code:12|,Reason:64|,BatchHost:64|,Name:128|"
SACCT_FORMAT = "JobID,State,ExitCode,Reason,NodeList,JobName"
MOST_TASKS = 1_000_000
"""Of an array: what Slurm's MaxArraySize can't exceed by far; a bound on what an answer makes us build."""

_KEY = re.compile(r"^(\d+)(?:_(\d+|\[[^\]]*\]))?$")


def read_squeue(text: str) -> list[JobRecord]:
    """``squeue --noheader --array --Format=SQUEUE_FORMAT``. Raises BackendError for what is not that."""
    records: list[JobRecord] = []
    for line in filter(str.strip, text.splitlines()):
        key, state, status, reason, host, name = _fields(line.rstrip().removesuffix("|"), 6)
        code, number = _wait_status(status)
        records += _expanded(key, JobRecord("", state, name, reason, "", code, number, _host(host)))
    return records


def read_sacct(text: str) -> list[JobRecord]:
    """``sacct -X --noheader --parsable2 --format=SACCT_FORMAT``. Raises BackendError for what is not that."""
    records: list[JobRecord] = []
    for line in filter(str.strip, text.splitlines()):
        key, state, status, reason, host, name = _fields(line, 6)
        state, _, detail = state.partition(" ")
        code, number = _wait_status(status)
        records += _expanded(key, JobRecord("", state, name, reason, detail, code, number, _host(host)))
    return records


def read_json(content: str | bytes) -> list[JobRecord]:
    """``squeue --json``, ``sacct --json`` and the daemon's ``/jobs``. Raises BackendError for what is not that."""
    try:
        answer = msgspec.json.decode(content)
        problems = answer.get("errors") or []
        jobs = answer["jobs"]
        if problems and not jobs:
            raise BackendError(f"Slurm says: {problems[0]}")
        return [record for job in jobs for record in _of_json(job)]
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise BackendError(f"Slurm's JSON makes no sense: {error!r}") from error


def expand_tasks(text: str) -> Iterator[int]:
    """The tasks that ``0-3,7%2`` or a mask ``0x8F`` means. Raises ValueError."""
    text = text.partition("%")[0]
    if text.lower().startswith("0x"):
        mask = int(text, 16)
        yield from (bit for bit in range(mask.bit_length()) if mask >> bit & 1)
        return
    for part in filter(None, text.split(",")):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        end = int(last or first)
        if end > MOST_TASKS:
            raise ValueError(f"task {end}")
        yield from range(int(first), end + 1, int(step or 1))


def collapse(keys: list[str]) -> list[str]:
    """Keys of jobs as few words for ``scancel``: tasks of one array in one."""
    arrays: dict[str, list[str]] = {}
    for key in keys:
        array, _, task = key.partition("_")
        arrays.setdefault(array, []).extend([task] if task else [])
    return [array if not tasks else f"{array}_[{','.join(tasks)}]" for array, tasks in arrays.items()]


def _fields(line: str, count: int) -> list[str]:
    fields = [field.strip() for field in line.split("|", count - 1)]
    if len(fields) != count:
        raise BackendError(f"Slurm's answer makes no sense: {line[:200]!r}")
    return fields


def _expanded(key: str, record: JobRecord) -> Iterator[JobRecord]:
    """A record for each of the tasks that ``key`` names."""
    found = _KEY.match(key)
    if found is None:
        # Steps, components of heterogeneous jobs: none of ours.
        return
    job, task = found.groups()
    try:
        keys = [job] if task is None else [f"{job}_{number}" for number in expand_tasks(task.strip("[]"))]
    except ValueError as error:
        hint = "; set SLURM_BITSTR_LEN=0 for whoever answers" if "..." in key else ""
        raise BackendError(f"Slurm names tasks {key[:200]!r}, which makes no sense{hint}") from error
    yield from (replace(record, key=one) for one in keys)


def _host(text: str) -> str:
    """The node that a worker is on; the first of several, which Slurm writes as ``node[1-3,7]``."""
    if text in ("", "n/a", "(null)", "None assigned"):
        return ""
    name, bracket, rest = text.partition("[")
    if "," in name or not bracket:
        return name.partition(",")[0]
    return name + re.split(r"[-,\]]", rest, maxsplit=1)[0]


def _wait_status(text: str) -> tuple[int | None, int | None]:
    """Exit code and signal of ``1:0`` (sacct, and squeue since 23) or of a wait status (squeue before)."""
    code, colon, number = text.partition(":")
    try:
        if colon:
            return int(code), int(number) or None
        status = int(code)
    except ValueError:
        return None, None
    return _of_status(status)


def _of_status(status: int) -> tuple[int | None, int | None]:
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def _of_json(job: Mapping[str, Any]) -> Iterator[JobRecord]:
    array = job.get("array") or {}
    array_id = _number(job.get("array_job_id", array.get("job_id")))
    task = _number(job.get("array_task_id", array.get("task_id")))
    tasks = job.get("array_task_string") or array.get("task") or ""
    state = job.get("job_state", job.get("state"))
    reason = job.get("state_reason", "")
    if isinstance(state, Mapping):
        state, reason = state["current"], state.get("reason") or ""
    code, number = _json_exit(job.get("exit_code"))
    killer = job.get("kill_request_user")
    record = JobRecord(
        "",
        " ".join(state) if isinstance(state, list) else str(state),
        str(job.get("name") or ""),
        str(reason or ""),
        f"by {killer}" if killer else "",
        code,
        number,
        _host(str(job.get("batch_host") or job.get("nodes") or "")),
    )
    key = str(_number(job["job_id"]))
    if array_id:
        waits = task is None and tasks
        key = f"{array_id}_[{tasks}]" if waits else f"{array_id}_{task}" if task is not None else key
    yield from _expanded(key, record)


def _number(value: Any) -> int | None:
    """A number, as versions since 23 wrap it or bare; None for one that isn't set."""
    if isinstance(value, Mapping):
        return int(value["number"]) if value.get("set", True) and not value.get("infinite") else None
    return None if value is None else int(value)


def _json_exit(value: Any) -> tuple[int | None, int | None]:
    if not isinstance(value, Mapping):
        return (None, None) if value is None else _of_status(int(value))
    given = value.get("signal")
    number = None
    if isinstance(given, Mapping):
        number = _number(given.get("signal_id", given.get("id")))
    return _number(value.get("return_code")), number or None
