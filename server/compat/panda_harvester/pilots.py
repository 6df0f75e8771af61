"""The verbs by which a Harvester speaks for pilots: it fetches jobs for them, and reports those."""

from __future__ import annotations

from typing import Any

from server.api.routing import Call, Raw
from server.compat.panda.asking import ACQUIRE_JOBS, asking_of
from server.compat.panda.fields import Fields, id_of
from server.compat.panda.reporting import report
from server.compat.panda.verbs import fetch, status_of
from server.compat.panda_harvester.answers import done, fields_of, items_of, said_no
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Refused
from server.dispatch.foreign import Nothing

NO_JOBS = "No jobs in PanDA"
FAILED = 30
MOST_JOBS = 100
MOST_REPORTS = 1000
UPDATE_JOB = {
    "pilot_error_code": "pilotErrorCode",
    "pilot_error_diag": "pilotErrorDiag",
    "exe_error_code": "exeErrorCode",
    "exe_error_diag": "exeErrorDiag",
    "trans_exit_code": "transExitCode",
    "start_time": "startTime",
    "end_time": "endTime",
    "cpu_consumption_time": "cpuConsumptionTime",
    "cpu_consumption_unit": "cpuConsumptionUnit",
    "max_rss": "maxRSS",
    "max_pss": "maxPSS",
    "max_swap": "maxSWAP",
    "tot_rbytes": "totRBYTES",
    "tot_wbytes": "totWBYTES",
    "job_metrics": "jobMetrics",
    "pilot_timing": "pilotTiming",
    "pilot_log": "pilotLog",
    "job_output_report": "xml",
    "std_out": "stdout",
}
"""What the fields of a report are called, and what the pilot calls them. Those that are called alike are taken as well."""


def acquire_jobs(dispatcher: Dispatcher, call: Call) -> Raw:
    """``pilot/acquire_jobs``: up to ``n_jobs`` jobs, each with a pilot of its own."""
    fields = fields_of(call)
    if not dispatcher.config.compat.panda.on:
        raise Conflict("jobs need the programs of [server.compat.panda]: turn it on")
    asking = asking_of(dispatcher, fields, ACQUIRE_JOBS, call.header("User-Agent") or "")
    found: list[dict[str, Any]] = []
    words = ""
    for _ in range(min(max(1, fields.count("n_jobs")), MOST_JOBS)):
        job = fetch(dispatcher, call, asking, fields.text("prod_source_label"))
        if isinstance(job, Nothing):
            words = job.words
            break
        found.append(job)
    if not found:
        return said_no(NO_JOBS, {"StatusCode": 20, "errorDialog": words[:1000]})
    return done({"StatusCode": 0, "jobs": found})


def update_jobs_bulk(dispatcher: Dispatcher, call: Call) -> Raw:
    """``pilot/update_jobs_bulk``: an outcome for each report; what is wrong with one is nothing to the others."""
    items = items_of(fields_of(call), "job_list", MOST_REPORTS)
    return done([_outcome(dispatcher, call, each) for each in items])


def _outcome(dispatcher: Dispatcher, call: Call, item: Any) -> dict[str, Any]:
    try:
        command = _report(dispatcher, call, Fields(item if isinstance(item, dict) else {}))
    except Refused as refused:
        return {"success": False, "message": refused.detail[:1000], "data": {"StatusCode": FAILED, "command": None}}
    return {"success": True, "message": "", "data": {"StatusCode": 0, "command": command}}


def _report(dispatcher: Dispatcher, call: Call, fields: Fields) -> str | None:
    told = Fields({**fields.all(), **{ours: fields.raw(name) for name, ours in UPDATE_JOB.items() if name in fields}})
    job_id, pilot, state = fields.id("job_id"), fields.text("pilot_id"), fields.text("job_status")
    return report(dispatcher, call.caller.name, job_id, pilot, state, told)


def update_job(dispatcher: Dispatcher, call: Call) -> Raw:
    """``pilot/update_job``."""
    return done({"StatusCode": 0, "command": _report(dispatcher, call, fields_of(call))})


def job_status(dispatcher: Dispatcher, call: Call) -> Raw:
    """``pilot/get_job_status`` and ``job/get_status``: the states of jobs that the caller fetched."""
    fields = fields_of(call)
    name = next((each for each in ("job_ids", "job_id", "ids") if each in fields), "job_ids")
    one = fields.raw(name)
    asked = [one] if isinstance(one, int) else items_of(fields, name, MOST_REPORTS)
    return done(
        [
            {"job_id": id_of(each) or 0, "status": status_of(dispatcher, call.caller.name, each), "attempt_nr": 0}
            for each in asked
        ]
    )
