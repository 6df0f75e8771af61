"""One job's life as a pure function: ``step(job, event) -> (job, actions)``.

No clock, no thread, no I/O: whoever calls it carries the actions out and comes back with events. An event that does
not belong to the job's phase is ignored: it is late news of something that no longer counts.

The rules, in short:

* The first failure is the job's; whatever happens later cannot change it.
* A failed job uploads its log and nothing else; a log that cannot be uploaded fails no job.
* A job that was claimed ahead fetches its input and then waits for its part of the slot; until it has one, it can be given
  back as if nothing had happened.
* The final report is spooled before it is delivered, and kept until the server has answered.
* Only the server's word that the job is gone removes what was uploaded. While the report is on its way, nothing that
  a heartbeat says about the job counts: it may be older than the confirmation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Optional

from msgspec import structs

from common.errors import SIGNAL_ERRORS, ErrorCode
from common.states import JobState
from common.wire import AssignedUnit, Metrics, UnitOutcome
from pilot.jobstate import (
    Abandon,
    Action,
    Again,
    Breach,
    Claim,
    ClaimUnit,
    Cleanup,
    Collect,
    Collected,
    Confirm,
    Confirmed,
    Crashed,
    Event,
    Failure,
    FileAsked,
    Forget,
    GiveBack,
    Gone,
    HandOut,
    Job,
    KillPayload,
    KillRequested,
    Measured,
    PartGiven,
    PayloadOver,
    PayloadRuns,
    Phase,
    ProducedFile,
    Record,
    Recorded,
    Refused,
    Remove,
    Removed,
    RetryLater,
    ServerUnreachable,
    SlotTaken,
    Spool,
    StagedIn,
    StageIn,
    Start,
    StartPayload,
    Step,
    TimeIsUp,
    UnitClaimed,
    Unspool,
    Upload,
    Uploaded,
)
from pilot.report import final_report

KILL_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL to a payload that has to go."""
BREACH_GRACE_S = 2.0
"""The same for one that takes more than it may."""


def step(job: Job, event: Event) -> Step:
    """The job after ``event``, and what to do now."""
    handler = _TABLE.get((job.phase, type(event)))
    return handler(job, event) if handler is not None else (job, ())


def _merged(job: Job, failure: Optional[Failure]) -> Job:
    """The first failure stays."""
    return job if job.failure is not None or failure is None else replace(job, failure=failure)


# ---------------------------------------------------------------- before the payload


def _start(job: Job, _event: Start) -> Step:
    return replace(job, phase=Phase.STAGING_IN), (StageIn(),)


def _staged_in(job: Job, event: StagedIn) -> Step:
    job = replace(
        job,
        outcomes={**job.outcomes, **event.outcomes},
        bad_replicas=job.bad_replicas + event.bad_replicas,
        metrics=_with_stage_in(job, event.seconds, event.size),
    )
    if event.fatal or not job.usable_units:
        failure = event.failure or Failure(ErrorCode.STAGE_IN_FAILED, "no unit of this job could be staged in")
        return _collect(_merged(job, failure))
    return _begin(replace(job, phase=Phase.STAGED))


def _begin(job: Job) -> Step:
    """Start the payload as soon as both are there: its input, and its part of the slot."""
    if job.part is None:
        return job, ()
    return replace(job, phase=Phase.RUNNING), (StartPayload(job.usable_units, job.part),)


def _part_given(job: Job, event: PartGiven) -> Step:
    job = replace(job, part=event.part)
    return _begin(job) if job.phase is Phase.STAGED else (job, ())


def _give_back(job: Job, event: GiveBack) -> Step:
    """Nothing was done with it but fetching its input: it ends without a log, and its units are ready again."""
    if job.part is not None:
        return job, ()
    job, actions = _confirm(_merged(job, Failure(ErrorCode.GIVEN_BACK, event.reason, JobState.CLOSED)))
    return job, (Abandon(), *actions)


def _with_stage_in(job: Job, seconds: float, size: int) -> Metrics:
    old = job.metrics
    return structs.replace(old, stage_in_s=old.stage_in_s + seconds, stage_in_bytes=old.stage_in_bytes + size)


def _stop_early(job: Job, event: Event) -> Step:
    """A stop before the payload runs: nothing to kill, and stage-in is not waited for."""
    if job.part is None and isinstance(event, SlotTaken):
        return _give_back(job, GiveBack(f"the pilot got {event.signal}"))
    job, actions = _collect(_merged(replace(job, hurry=isinstance(event, SlotTaken)), _stop_reason(event)))
    return job, (Abandon(), *actions)


def _stop_reason(event: Event) -> Failure:
    """Why a payload is stopped, in the words of the report."""
    if isinstance(event, KillRequested):
        return Failure(ErrorCode.KILLED_BY_SERVER, event.reason, JobState.CANCELLED)
    if isinstance(event, (Breach, Crashed, Refused)):
        return event.failure
    signal = event.signal if isinstance(event, SlotTaken) else "SIGTERM"
    code = SIGNAL_ERRORS.get(signal, ErrorCode.SIGTERM)
    return Failure(code, f"the pilot got {signal}: its slot is being taken away")


def _drop(job: Job, _event: Event) -> Step:
    """The server does not want this job, and nothing was uploaded."""
    return _done(replace(job, forget=True), Abandon())


# ---------------------------------------------------------------- the payload


def _payload_runs(job: Job, _event: PayloadRuns) -> Step:
    return replace(job, started=True), ()


def _measured(job: Job, event: Measured) -> Step:
    return replace(job, metrics=_merge_metrics(job.metrics, event.metrics)), ()


def _merge_metrics(old: Metrics, measured: Metrics) -> Metrics:
    """What was measured of the payload now and before, beside the transfers that only the job knows of."""
    return structs.replace(
        old,
        wall_s=max(old.wall_s, measured.wall_s),
        cpu_s=max(old.cpu_s, measured.cpu_s),
        max_rss_mb=max(old.max_rss_mb, measured.max_rss_mb),
        max_pss_mb=max(old.max_pss_mb, measured.max_pss_mb),
        max_swap_mb=max(old.max_swap_mb, measured.max_swap_mb),
        read_bytes=max(old.read_bytes, measured.read_bytes),
        written_bytes=max(old.written_bytes, measured.written_bytes),
        work_dir_mb=max(old.work_dir_mb, measured.work_dir_mb),
        processes=max(old.processes, measured.processes),
        leak_kb_s=measured.leak_kb_s or old.leak_kb_s,
        events=max(old.events, measured.events),
        energy_j=max(old.energy_j, measured.energy_j),
        gpu_percent=measured.gpu_percent or old.gpu_percent,
        gpu_memory_mb=max(old.gpu_memory_mb, measured.gpu_memory_mb),
    )


def _stop_payload(job: Job, event: Event) -> Step:
    """A stop while the payload runs: kill it, once, and wait for its end."""
    job = _merged(replace(job, hurry=job.hurry or isinstance(event, SlotTaken)), _stop_reason(event))
    return _kill(job, BREACH_GRACE_S if isinstance(event, Breach) else KILL_GRACE_S)


def _payload_crashed(job: Job, event: Crashed) -> Step:
    """Something went wrong around the payload. One that never ran has no end to wait for."""
    if job.started:
        return _stop_payload(job, event)
    job, actions = _collect(_merged(job, event.failure))
    return job, (KillPayload(event.failure.code.name, 0.0), *actions)


def _forget_payload(job: Job, _event: Event) -> Step:
    """The server does not want the running job: kill the payload, report nothing."""
    return _kill(replace(job, forget=True), KILL_GRACE_S)


def _breach(job: Job, event: Breach) -> Step:
    """A limit was passed: what was measured then is what the report has to show."""
    metrics = job.metrics if event.metrics is None else _merge_metrics(job.metrics, event.metrics)
    return _stop_payload(replace(job, metrics=metrics), event)


def _kill(job: Job, grace_s: float) -> Step:
    if job.killing:
        return job, ()
    why = job.failure.code.name if job.failure is not None else "unknown to the server"
    return replace(job, killing=True), (KillPayload(why, grace_s),)


def _payload_over(job: Job, event: PayloadOver) -> Step:
    unanswered = tuple(HandOut(claim.request, None) for claim in job.claims)
    job = _merged(replace(job, exit_code=event.exit_code, probe=event.probe, claims=()), event.failure)
    if job.forget:
        return _done(job, *unanswered)
    job, actions = _collect(job)
    return job, (*unanswered, *actions)


def _file_asked(job: Job, event: FileAsked) -> Step:
    given_out = [unit for unit in job.usable_units if _can_be_handed(unit)]
    left = next((unit for unit in given_out if unit.unit_id not in job.handed), None)
    if left is not None and not job.killing:
        return replace(job, handed=(*job.handed, left.unit_id)), (HandOut(event.request, left),)
    if job.killing or not any(_can_be_handed(unit) for unit in job.units):
        return job, (HandOut(event.request, None),)
    return _claim(job, event.request)


def _can_be_handed(unit: AssignedUnit) -> bool:
    """Whether get-file has something to say of a unit; of the task itself it has not."""
    return unit.file is not None or unit.counter is not None


def _claim(job: Job, request: str) -> Step:
    claim = Claim(request, f"job-{job.job_id}-claim-{job.claims_made}")
    return replace(job, claims=(*job.claims, claim), claims_made=job.claims_made + 1), (ClaimUnit(claim),)


def _unit_claimed(job: Job, event: UnitClaimed) -> Step:
    if event.claim not in job.claims:
        return _late_unit(job, event)
    request = event.claim.request
    job = replace(job, claims=tuple(claim for claim in job.claims if claim != event.claim), attempt=0)
    if event.unit is None:
        return job, (HandOut(request, None),)
    job = _with_unit(job, event.unit, event.outcome)
    job = replace(
        job,
        bad_replicas=job.bad_replicas + event.bad_replicas,
        metrics=_with_stage_in(job, event.seconds, event.size),
    )
    if event.outcome is not None:
        return _claim(job, request)
    return replace(job, handed=(*job.handed, event.unit.unit_id)), (HandOut(request, event.unit),)


def _late_unit(job: Job, event: UnitClaimed) -> Step:
    """A unit that came when the payload was over goes back; one that came twice is known already."""
    if event.unit is None or any(unit.unit_id == event.unit.unit_id for unit in job.units):
        return job, ()
    return _with_unit(job, event.unit, event.outcome or UnitOutcome.RETURNED), ()


def _with_unit(job: Job, unit: AssignedUnit, outcome: Optional[UnitOutcome]) -> Job:
    outcomes = job.outcomes if outcome is None else {**job.outcomes, unit.unit_id: outcome}
    units = tuple(known for known in job.units if known.unit_id != unit.unit_id)
    return replace(job, units=(*units, unit), outcomes=outcomes)


def _claim_unreachable(job: Job, _event: ServerUnreachable) -> Step:
    if not job.claims:
        return job, ()
    return replace(job, attempt=job.attempt + 1), (RetryLater(job.attempt + 1),)


def _claim_again(job: Job, _event: Again) -> Step:
    return job, tuple(ClaimUnit(claim) for claim in job.claims)


def _claim_refused(job: Job, event: Refused) -> Step:
    """The server refuses get-file's claim for good: the jobscript goes on with what it has."""
    unanswered = tuple(HandOut(claim.request, None) for claim in job.claims)
    return (replace(job, claims=()), unanswered) if job.claims else _stop_payload(job, event)


# ---------------------------------------------------------------- after the payload


def _collect(job: Job) -> Step:
    return replace(job, phase=Phase.COLLECTING, attempt=0), (Collect(outputs=job.failure is None),)


def _collected(job: Job, event: Collected) -> Step:
    metrics = job.metrics if event.metrics is None else _merge_metrics(job.metrics, event.metrics)
    job = _merged(replace(job, processed=event.processed, log_tail=event.log_tail, metrics=metrics), event.failure)
    files = _wanted(job, event.files)
    if not files:
        return _confirm(job)
    return replace(job, phase=Phase.RECORDING, files=files, attempt=0), (Record(files),)


def _wanted(job: Job, files: tuple[ProducedFile, ...]) -> tuple[ProducedFile, ...]:
    return files if job.failure is None else tuple(file for file in files if file.is_log)


def _recorded(job: Job, event: Recorded) -> Step:
    files = _wanted(job, job.files)
    job = replace(job, destinations=event.destinations, files=files)
    if not files:
        return _confirm(job)
    return replace(job, phase=Phase.UPLOADING, attempt=0), (Upload(files, event.destinations),)


def _record_again(job: Job, _event: Again) -> Step:
    files = _wanted(job, job.files)
    return (replace(job, files=files), (Record(files),)) if files else _confirm(job)


def _record_refused(job: Job, event: Refused) -> Step:
    """The outputs cannot be recorded: the log may still be. A log that cannot be recorded fails no job."""
    if all(file.is_log for file in job.files):
        return _confirm(replace(job, files=()))
    job = _merged(job, event.failure)
    return _record_again(replace(job, attempt=0), Again())


def _without_uploads(job: Job, event: Event) -> Step:
    """Recording or collecting cannot go on: report what there is."""
    return _confirm(_merged(job, _stop_reason(event)))


def _uploaded(job: Job, event: Uploaded) -> Step:
    if job.forget:
        return _remove(replace(job, uploaded=event.uploaded))
    metrics = structs.replace(job.metrics, stage_out_s=event.seconds, stage_out_bytes=event.size)
    return _confirm(_merged(replace(job, uploaded=event.uploaded, metrics=metrics), event.failure))


def _fail_later(job: Job, event: Event) -> Step:
    """The payload is over when the stop comes: what is under way ends, and then only the log counts."""
    return _merged(job, _stop_reason(event)), ()


def _hurry(job: Job, _event: SlotTaken) -> Step:
    """The slot goes while results are being uploaded: they may still make it."""
    return replace(job, hurry=True), ()


def _forget_later(job: Job, _event: Event) -> Step:
    """What is being uploaded has to be known before it can be removed."""
    return replace(job, forget=True), ()


def _time_is_up(job: Job, event: TimeIsUp) -> Step:
    """The slot goes now: the report says what happened so far; the log and all outputs stay behind."""
    if job.forget:
        return _done(job, Abandon())
    running = (KillPayload("the slot goes now", 0.0),) if job.phase is Phase.RUNNING else ()
    job, actions = _confirm(_merged(job, _stop_reason(event)))
    return job, (*running, Abandon(), *actions)


def _later(job: Job, _event: ServerUnreachable) -> Step:
    return replace(job, attempt=job.attempt + 1), (RetryLater(job.attempt + 1),)


# ---------------------------------------------------------------- the final report


def _confirm(job: Job) -> Step:
    report = final_report(job)
    job = replace(job, phase=Phase.CONFIRMING, report=report, attempt=0)
    return job, (Spool(report, job.uploaded), Confirm(report))


def _confirm_again(job: Job, _event: Again) -> Step:
    return job, (Confirm(job.report),) if job.report is not None else ()


def _confirmed(job: Job, _event: Confirmed) -> Step:
    return _done(job, Unspool())


def _report_refused(job: Job, event: Refused) -> Step:
    """The server cannot take the report as it is. A success becomes a failure; a refused failure is given up."""
    if job.failure is not None:
        return _done(job, Unspool())
    return _confirm(replace(job, failure=event.failure))


def _gone(job: Job, _event: Gone) -> Step:
    return _remove(job)


def _remove(job: Job) -> Step:
    if not job.uploaded:
        return _done(job, Unspool())
    return replace(job, phase=Phase.REMOVING), (Remove(job.uploaded),)


def _removed(job: Job, _event: Removed) -> Step:
    return _done(job, Unspool())


def _give_up_removing(job: Job, _event: Event) -> Step:
    """The server sweeps what was recorded and never confirmed."""
    return _done(job, Abandon(), Unspool())


def _done(job: Job, *before: Action) -> Step:
    return replace(job, phase=Phase.DONE), (*before, Cleanup())


_P = Phase
_EARLY = (_P.ACQUIRED, _P.STAGING_IN, _P.STAGED)
_Handler = Callable[[Job, Any], Step]
_TABLE: Mapping[tuple[Phase, type], _Handler] = {
    (_P.ACQUIRED, Start): _start,
    **{(phase, kind): _stop_early for phase in _EARLY for kind in (KillRequested, SlotTaken)},
    **{(phase, kind): _drop for phase in (*_EARLY, _P.COLLECTING, _P.RECORDING) for kind in (Forget, Gone)},
    **{(phase, TimeIsUp): _time_is_up for phase in (*_EARLY, _P.RUNNING, _P.COLLECTING, _P.RECORDING, _P.UPLOADING)},
    **{(phase, PartGiven): _part_given for phase in _EARLY},
    **{(phase, GiveBack): _give_back for phase in _EARLY},
    (_P.STAGING_IN, StagedIn): _staged_in,
    (_P.STAGING_IN, Crashed): _stop_early,
    (_P.RUNNING, PayloadRuns): _payload_runs,
    (_P.RUNNING, Measured): _measured,
    (_P.RUNNING, PayloadOver): _payload_over,
    (_P.RUNNING, FileAsked): _file_asked,
    (_P.RUNNING, UnitClaimed): _unit_claimed,
    (_P.RUNNING, ServerUnreachable): _claim_unreachable,
    (_P.RUNNING, Again): _claim_again,
    (_P.RUNNING, Refused): _claim_refused,
    (_P.RUNNING, Breach): _breach,
    **{(_P.RUNNING, kind): _stop_payload for kind in (KillRequested, SlotTaken)},
    (_P.RUNNING, Crashed): _payload_crashed,
    **{(_P.RUNNING, kind): _forget_payload for kind in (Forget, Gone)},
    **{(phase, UnitClaimed): _late_unit for phase in (_P.COLLECTING, _P.RECORDING, _P.UPLOADING)},
    **{(phase, KillRequested): _fail_later for phase in (_P.COLLECTING, _P.RECORDING, _P.UPLOADING)},
    **{(phase, SlotTaken): _hurry for phase in (_P.COLLECTING, _P.RECORDING, _P.UPLOADING, _P.CONFIRMING)},
    (_P.COLLECTING, Collected): _collected,
    (_P.COLLECTING, Crashed): _without_uploads,
    (_P.RECORDING, Recorded): _recorded,
    (_P.RECORDING, ServerUnreachable): _later,
    (_P.RECORDING, Again): _record_again,
    (_P.RECORDING, Refused): _record_refused,
    (_P.RECORDING, Crashed): _without_uploads,
    (_P.UPLOADING, Uploaded): _uploaded,
    (_P.UPLOADING, Crashed): _without_uploads,
    **{(_P.UPLOADING, kind): _forget_later for kind in (Forget, Gone)},
    (_P.CONFIRMING, Confirmed): _confirmed,
    (_P.CONFIRMING, ServerUnreachable): _later,
    (_P.CONFIRMING, Again): _confirm_again,
    (_P.CONFIRMING, Refused): _report_refused,
    (_P.CONFIRMING, Crashed): _later,
    (_P.CONFIRMING, Gone): _gone,
    (_P.REMOVING, Removed): _removed,
    **{(_P.REMOVING, kind): _give_up_removing for kind in (Crashed, TimeIsUp)},
}  # fmt: skip
