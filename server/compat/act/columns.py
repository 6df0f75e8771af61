"""The columns that clients of aCT ask for: of its table of people's jobs (``c_``) and of its table of ARC's (``a_``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from common.states import FINAL_WORKER_STATES
from server.compat.act.states import arcstate, native
from server.dispatch.errors import Invalid
from server.engine.direct import names_host
from server.store.direct import DirectRow, RunRow

Column = Callable[[DirectRow], Any]


def _moment(time: float | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _of_run(what: Callable[[RunRow], Any]) -> Column:
    return lambda job: None if job.run is None else what(job.run)


def _at_ce(what: Callable[[DirectRow, RunRow], Any]) -> Column:
    """Of a run that the computing element has, or had."""
    return lambda job: None if job.run is None or not job.run.batch_id else what(job, job.run)


def cluster(job: DirectRow) -> str | None:
    """The address, among those that its owner gave, of the computing element that a job went to."""
    if job.run is None:
        return None
    url = job.run.url
    return next((each for each in job.clusters if names_host(each, url)), url)


def _error(run: RunRow) -> str | None:
    return run.reason if run.worker_state in FINAL_WORKER_STATES and run.reason else None


CLIENT: dict[str, Column] = {
    "id": lambda job: job.id,
    "jobname": lambda job: job.name or None,
    "created": lambda job: _moment(job.created),
    "modified": lambda job: _moment(job.changed),
    "arcjobid": _of_run(lambda run: run.job_id),
    "proxyid": lambda job: job.proxy_id,
    "clusterlist": lambda job: ",".join(job.clusters),
}
ARC: dict[str, Column] = {
    "id": _of_run(lambda run: run.job_id),
    "arcstate": lambda job: arcstate(job.facts),
    "State": _of_run(lambda run: native(run.native)),
    "JobID": _at_ce(lambda _, run: f"{run.url}/{run.batch_id}"),
    "IDFromEndpoint": _at_ce(lambda _, run: run.batch_id),
    "Name": lambda job: job.name or None,
    "cluster": cluster,
    "clusterlist": lambda job: ",".join(job.clusters),
    "StdOut": _at_ce(lambda job, _: job.stdout),
    "StdErr": _at_ce(lambda job, _: job.stderr),
    "ExitCode": _of_run(lambda run: run.exit_code),
    "Error": _of_run(_error),
    "Queue": _of_run(lambda run: run.queue),
    "created": _of_run(lambda run: _moment(run.created)),
    "modified": lambda job: _moment(job.changed),
    "LocalSubmissionTime": _of_run(lambda run: _moment(run.created)),
    "EndTime": _of_run(lambda run: _moment(run.ended)),
}


def asked(text: str, known: dict[str, Column], parameter: str) -> list[str]:
    """The columns that a parameter names. Raises Invalid."""
    found = [each for each in text.split(",") if each]
    unknown = [each for each in found if each not in known]
    if unknown:
        raise Invalid(
            f"there is no column {unknown[0][:100]!r}; known: {', '.join(known)}", [(parameter, "see act info")]
        )
    return found


def row(job: DirectRow, client: Sequence[str], arc: Sequence[str]) -> dict[str, Any]:
    """A job as a client asked for it."""
    return {
        **{f"c_{name}": CLIENT[name](job) for name in client},
        **{f"a_{name}": ARC[name](job) for name in arc},
    }
