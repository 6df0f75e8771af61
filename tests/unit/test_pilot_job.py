"""The life of a job, every phase with every event."""

from __future__ import annotations

import random
import typing
from collections.abc import Iterator
from dataclasses import replace

import pytest
from msgspec import structs

from common.errors import ErrorCode
from common.states import JobState
from common.wire import (
    AssignedFile,
    AssignedUnit,
    Assignment,
    BadReplica,
    FinishReply,
    Metrics,
    OutputDestination,
    OutputRecord,
    OutputRole,
    Requirements,
    UnitOutcome,
    UploadedOutput,
)
from pilot import jobstate as js
from pilot.job import step
from pilot.jobstate import Action, Claim, Event, Failure, Job, Phase, ProducedFile, new_job
from pilot.slot import Part

CHECKSUM = "adler32:00000001"
OUTPUT = ProducedFile("/w/out.root", OutputRecord("out.root", 10, CHECKSUM))
LOG = ProducedFile("/w/log.tgz", OutputRecord("log.tgz", 5, CHECKSUM, OutputRole.LOG))
DESTINATIONS = tuple(
    OutputDestination(file.record.name, f"s:{file.record.name}", "RSE", [f"file:///s/{file.record.name}"])
    for file in (OUTPUT, LOG)
)
UPLOADED = tuple(UploadedOutput(place.did, place.urls[0]) for place in DESTINATIONS)
PART = Part(1, 1000, 0, ())
BROKEN = Failure(ErrorCode.PAYLOAD_FAILED, "exit code 3")


def unit(number: int, with_file: bool = True) -> AssignedUnit:
    return AssignedUnit(number, number, AssignedFile(f"s:f{number}") if with_file else None)


def assignment(units: int = 2, with_files: bool = True) -> Assignment:
    return Assignment(
        job_id=7,
        task_id=1,
        workflow_id=1,
        stage="one",
        scope="s",
        units=[unit(number, with_files) for number in range(1, units + 1)],
        requirements=Requirements(),
    )


def walk(job: Job, *events: Event) -> tuple[Job, list[Action]]:
    actions: list[Action] = []
    for event in events:
        job, more = step(job, event)
        actions += more
    return job, actions


COLLECTED = js.Collected((OUTPUT, LOG))
TO_PHASE: dict[Phase, tuple[Event, ...]] = {
    Phase.ACQUIRED: (),
    Phase.STAGING_IN: (js.Start(),),
    Phase.STAGED: (js.Start(), js.StagedIn()),
    Phase.RUNNING: (js.Start(), js.StagedIn(), js.PayloadRuns()),
    Phase.COLLECTING: (js.Start(), js.StagedIn(), js.PayloadRuns(), js.PayloadOver(0)),
    Phase.RECORDING: (js.Start(), js.StagedIn(), js.PayloadRuns(), js.PayloadOver(0), COLLECTED),
}
TO_PHASE[Phase.UPLOADING] = (*TO_PHASE[Phase.RECORDING], js.Recorded(DESTINATIONS))
TO_PHASE[Phase.CONFIRMING] = (*TO_PHASE[Phase.UPLOADING], js.Uploaded(UPLOADED))
TO_PHASE[Phase.REMOVING] = (*TO_PHASE[Phase.CONFIRMING], js.Gone())
TO_PHASE[Phase.DONE] = (*TO_PHASE[Phase.CONFIRMING], js.Confirmed(FinishReply(7, JobState.FINISHED)))

EVENTS: dict[type, Event] = {
    js.Start: js.Start(),
    js.StagedIn: js.StagedIn(),
    js.PartGiven: js.PartGiven(PART),
    js.GiveBack: js.GiveBack("too late"),
    js.PayloadRuns: js.PayloadRuns(),
    js.PayloadOver: js.PayloadOver(0),
    js.Measured: js.Measured(Metrics(wall_s=1.0)),
    js.Breach: js.Breach(Failure(ErrorCode.MEMORY_EXCEEDED, "too much")),
    js.FileAsked: js.FileAsked("1.1"),
    js.UnitClaimed: js.UnitClaimed(Claim("1.1", "job-7-claim-0"), unit(9)),
    js.KillRequested: js.KillRequested("no more"),
    js.Forget: js.Forget(),
    js.SlotTaken: js.SlotTaken(),
    js.TimeIsUp: js.TimeIsUp(),
    js.Collected: COLLECTED,
    js.Recorded: js.Recorded(DESTINATIONS),
    js.Uploaded: js.Uploaded(UPLOADED),
    js.Confirmed: js.Confirmed(FinishReply(7, JobState.FINISHED)),
    js.Gone: js.Gone(),
    js.Refused: js.Refused(Failure(ErrorCode.INTERNAL_PILOT_PROBLEM, "no")),
    js.ServerUnreachable: js.ServerUnreachable(),
    js.Again: js.Again(),
    js.Removed: js.Removed(),
    js.Crashed: js.Crashed(Failure(ErrorCode.INTERNAL_PILOT_PROBLEM, "oops")),
}

P = Phase
#: The phase after an event; what is not here leaves the job where it is.
MOVES: dict[Phase, dict[type, Phase]] = {
    P.ACQUIRED: {
        js.Start: P.STAGING_IN,
        js.KillRequested: P.COLLECTING,
        js.SlotTaken: P.COLLECTING,
        js.Forget: P.DONE,
        js.Gone: P.DONE,
        js.TimeIsUp: P.CONFIRMING,
    },
    P.STAGING_IN: {
        js.StagedIn: P.RUNNING,
        js.KillRequested: P.COLLECTING,
        js.SlotTaken: P.COLLECTING,
        js.Crashed: P.COLLECTING,
        js.Forget: P.DONE,
        js.Gone: P.DONE,
        js.TimeIsUp: P.CONFIRMING,
    },
    P.STAGED: {
        js.PartGiven: P.RUNNING,
        js.GiveBack: P.CONFIRMING,
        js.KillRequested: P.COLLECTING,
        js.SlotTaken: P.CONFIRMING,
        js.Forget: P.DONE,
        js.Gone: P.DONE,
        js.TimeIsUp: P.CONFIRMING,
    },
    P.RUNNING: {js.PayloadOver: P.COLLECTING, js.TimeIsUp: P.CONFIRMING},
    P.COLLECTING: {
        js.Collected: P.RECORDING,
        js.Crashed: P.CONFIRMING,
        js.Forget: P.DONE,
        js.Gone: P.DONE,
        js.TimeIsUp: P.CONFIRMING,
    },
    P.RECORDING: {
        js.Recorded: P.UPLOADING,
        js.Crashed: P.CONFIRMING,
        js.Forget: P.DONE,
        js.Gone: P.DONE,
        js.TimeIsUp: P.CONFIRMING,
    },
    P.UPLOADING: {js.Uploaded: P.CONFIRMING, js.Crashed: P.CONFIRMING, js.TimeIsUp: P.CONFIRMING},
    P.CONFIRMING: {js.Confirmed: P.DONE, js.Gone: P.REMOVING},
    P.REMOVING: {js.Removed: P.DONE, js.Crashed: P.DONE, js.TimeIsUp: P.DONE},
    P.DONE: {},
}
#: What a job that enters a phase must do there, or it would wait for ever.
WORK_OF: dict[Phase, type] = {
    P.STAGING_IN: js.StageIn,
    P.RUNNING: js.StartPayload,
    P.COLLECTING: js.Collect,
    P.RECORDING: js.Record,
    P.UPLOADING: js.Upload,
    P.CONFIRMING: js.Confirm,
    P.REMOVING: js.Remove,
    P.DONE: js.Cleanup,
}


def test_every_event_is_in_these_tests() -> None:
    assert set(EVENTS) == set(typing.get_args(Event))


def job_in(phase: Phase) -> Job:
    """A job that has come there; only one that was claimed ahead waits."""
    return walk(new_job(assignment(), None if phase is Phase.STAGED else PART), *TO_PHASE[phase])[0]


@pytest.mark.parametrize("phase", list(Phase))
def test_the_events_lead_to_each_phase(phase: Phase) -> None:
    assert job_in(phase).phase is phase


@pytest.mark.parametrize("kind", list(EVENTS), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.value)
def test_every_phase_with_every_event(phase: Phase, kind: type) -> None:
    before = job_in(phase)
    after, actions = step(before, EVENTS[kind])
    assert after.phase is MOVES[phase].get(kind, phase)
    if after.phase is not phase:
        assert WORK_OF[after.phase] in [type(action) for action in actions]
    if phase is Phase.DONE:
        assert (after, actions) == (before, ())
    if after.phase is Phase.CONFIRMING and phase is not Phase.CONFIRMING:
        kinds = [type(action) for action in actions]
        assert kinds.index(js.Spool) < kinds.index(js.Confirm)


def test_a_good_job() -> None:
    job, actions = walk(new_job(assignment(), PART), *TO_PHASE[Phase.DONE])
    assert [type(action) for action in actions] == [
        js.StageIn,
        js.StartPayload,
        js.Collect,
        js.Record,
        js.Upload,
        js.Spool,
        js.Confirm,
        js.Unspool,
        js.Cleanup,
    ]
    assert job.report is not None
    assert job.report.state is JobState.FINISHED
    assert {result.outcome for result in job.report.units} == {UnitOutcome.PROCESSED}
    assert job.report.outputs == list(UPLOADED)


def test_a_failed_payload_uploads_only_its_log() -> None:
    job, actions = walk(
        new_job(assignment(), PART),
        *TO_PHASE[Phase.RUNNING],
        js.PayloadOver(3, BROKEN),
        COLLECTED,
        js.Recorded(DESTINATIONS),
    )
    assert js.Collect(outputs=False) in actions
    assert js.Record((LOG,)) in actions
    job, _ = step(job, js.Uploaded(UPLOADED[1:]))
    assert job.report is not None
    assert (job.report.state, job.report.error_code, job.report.exit_code) == (JobState.FAILED, 1305, 3)
    assert {result.outcome for result in job.report.units} == {UnitOutcome.FAILED}
    assert job.report.outputs == [UPLOADED[1]]


def test_a_lost_log_does_not_fail_a_job() -> None:
    job, _ = walk(new_job(assignment(), PART), *TO_PHASE[Phase.UPLOADING], js.Uploaded(UPLOADED[:1]))
    assert job.report is not None
    assert job.report.state is JobState.FINISHED


def test_a_failed_upload_gives_the_units_back() -> None:
    failure = Failure(ErrorCode.STAGE_OUT_FAILED, "full")
    job, _ = walk(new_job(assignment(), PART), *TO_PHASE[Phase.UPLOADING], js.Uploaded(UPLOADED, failure))
    assert job.report is not None
    assert (job.report.state, job.report.error_code) == (JobState.FAILED, 1137)
    assert {result.outcome for result in job.report.units} == {UnitOutcome.RETURNED}
    assert job.report.outputs == [UPLOADED[1]]


def test_units_that_cannot_be_staged_in_do_not_stop_the_others() -> None:
    bad = BadReplica("s:f1", "RSE", 1103)
    failure = Failure(ErrorCode.NO_SUCH_FILE, "gone")
    staged = js.StagedIn({1: UnitOutcome.LOST}, (bad,), failure)
    job, actions = walk(new_job(assignment(), PART), js.Start(), staged)
    assert actions[-1] == js.StartPayload((unit(2),), PART)
    job, _ = walk(job, js.PayloadRuns(), js.PayloadOver(0), COLLECTED, js.Recorded(DESTINATIONS), js.Uploaded(UPLOADED))
    assert job.report is not None
    assert job.report.state is JobState.FINISHED
    outcomes = {result.unit_id: result.outcome for result in job.report.units}
    assert outcomes == {1: UnitOutcome.LOST, 2: UnitOutcome.PROCESSED}
    assert job.report.bad_replicas == [bad]


@pytest.mark.parametrize(("outcomes", "fatal"), [({1: UnitOutcome.LOST, 2: UnitOutcome.RETURNED}, False), ({}, True)])
def test_no_input_no_payload(outcomes: dict[int, UnitOutcome], fatal: bool) -> None:
    failure = Failure(ErrorCode.STAGE_IN_FAILED, "storage is down")
    job, actions = walk(new_job(assignment(), PART), js.Start(), js.StagedIn(outcomes, (), failure, fatal))
    assert actions[-1] == js.Collect(outputs=False)
    job, _ = step(job, js.Collected())
    assert job.report is not None
    assert (job.report.state, job.report.error_code) == (JobState.FAILED, 1099)
    expected = {1: UnitOutcome.RETURNED, 2: UnitOutcome.RETURNED, **outcomes}
    assert {result.unit_id: result.outcome for result in job.report.units} == expected


def test_the_first_failure_is_the_jobs() -> None:
    job, actions = walk(
        new_job(assignment(), PART),
        *TO_PHASE[Phase.RUNNING],
        js.Breach(Failure(ErrorCode.MEMORY_EXCEEDED, "too much")),
        js.KillRequested("late"),
        js.SlotTaken(),
        js.PayloadOver(None, Failure(ErrorCode.KILL_SIGNAL, "killed")),
    )
    assert [type(action) for action in actions].count(js.KillPayload) == 1
    assert job.failure == Failure(ErrorCode.MEMORY_EXCEEDED, "too much")


def test_a_killed_job_is_cancelled_with_its_log() -> None:
    job, actions = walk(new_job(assignment(), PART), *TO_PHASE[Phase.RUNNING], js.KillRequested("task killed"))
    assert actions[-1] == js.KillPayload("KILLED_BY_SERVER", 5.0)
    job, actions = walk(job, js.PayloadOver(None, BROKEN), COLLECTED)
    assert actions[-1] == js.Record((LOG,))
    job, _ = walk(job, js.Recorded(DESTINATIONS[1:]), js.Uploaded(UPLOADED[1:]))
    assert job.report is not None
    assert (job.report.state, job.report.error_code) == (JobState.CANCELLED, 1144)
    assert {result.outcome for result in job.report.units} == {UnitOutcome.RETURNED}


@pytest.mark.parametrize("phase", [Phase.COLLECTING, Phase.RECORDING, Phase.UPLOADING])
def test_a_kill_after_the_payload_keeps_the_outputs_from_counting(phase: Phase) -> None:
    events = TO_PHASE[Phase.CONFIRMING]
    at = len(TO_PHASE[phase])
    job, _ = walk(new_job(assignment(), PART), *events[:at], js.KillRequested("no"), *events[at:])
    assert job.report is not None
    assert job.report.state is JobState.CANCELLED
    assert UPLOADED[0] not in job.report.outputs


def test_a_job_that_the_server_forgot_is_killed_without_a_report() -> None:
    job, actions = walk(
        new_job(assignment(), PART), *TO_PHASE[Phase.RUNNING], js.Forget(), js.PayloadOver(None, BROKEN)
    )
    assert job.phase is Phase.DONE
    assert not any(isinstance(action, (js.Confirm, js.Record)) for action in actions)


def test_uploads_of_a_forgotten_job_are_removed() -> None:
    job, actions = walk(new_job(assignment(), PART), *TO_PHASE[Phase.UPLOADING], js.Forget(), js.Uploaded(UPLOADED))
    assert actions[-1] == js.Remove(UPLOADED)


def test_a_heartbeat_that_crosses_the_confirmation_removes_nothing() -> None:
    before, _ = walk(new_job(assignment(), PART), *TO_PHASE[Phase.CONFIRMING])
    assert step(before, js.Forget()) == (before, ())


def test_a_refused_success_is_reported_as_a_failure_once() -> None:
    refused = js.Refused(Failure(ErrorCode.INTERNAL_PILOT_PROBLEM, "422"))
    job, _ = walk(new_job(assignment(), PART), *TO_PHASE[Phase.CONFIRMING], refused)
    assert job.report is not None
    assert job.report.state is JobState.FAILED
    assert step(job, refused)[1] == (js.Unspool(), js.Cleanup())


def test_outputs_that_are_refused_fail_the_job_and_its_log_is_recorded() -> None:
    refused = js.Refused(Failure(ErrorCode.NO_STORAGE, "none"))
    job, actions = walk(new_job(assignment(), PART), *TO_PHASE[Phase.RECORDING], refused)
    assert actions[-1] == js.Record((LOG,))
    job, _ = walk(job, js.Recorded(DESTINATIONS[1:]), js.Uploaded(UPLOADED[1:]))
    assert job.report is not None
    assert (job.report.state, job.report.error_code) == (JobState.FAILED, 1133)
    assert job.report.outputs == [UPLOADED[1]]


def test_a_log_that_is_refused_fails_no_job() -> None:
    refused = js.Refused(Failure(ErrorCode.NO_STORAGE, "none"))
    job, _ = walk(new_job(assignment(), PART), *TO_PHASE[Phase.COLLECTING], js.Collected((LOG,)), refused)
    assert job.report is not None
    assert job.report.state is JobState.FINISHED


def test_an_unreachable_server_is_asked_again_with_the_same_report() -> None:
    job, _ = walk(new_job(assignment(), PART), *TO_PHASE[Phase.CONFIRMING])
    first = job.report
    for attempt in (1, 2, 3):
        job, actions = step(job, js.ServerUnreachable())
        assert actions == (js.RetryLater(attempt),)
    job, actions = step(job, js.Again())
    assert first is not None
    assert actions == (js.Confirm(first),)


# ---------------------------------------------------------------- get-file


def test_get_file_hands_out_the_claimed_units_first_and_then_claims_more() -> None:
    job, actions = walk(new_job(assignment(), PART), *TO_PHASE[Phase.RUNNING])
    job, actions = walk(job, js.FileAsked("a"), js.FileAsked("b"), js.FileAsked("c"))
    claim = Claim("c", "job-7-claim-0")
    assert actions == [js.HandOut("a", unit(1)), js.HandOut("b", unit(2)), js.ClaimUnit(claim)]
    job, actions = walk(job, js.UnitClaimed(claim, unit(3)), js.FileAsked("d"))
    second = Claim("d", "job-7-claim-1")
    assert actions == [js.HandOut("c", unit(3)), js.ClaimUnit(second)]
    job, actions = walk(job, js.UnitClaimed(second))
    assert actions == [js.HandOut("d", None)]
    job, _ = walk(job, js.PayloadOver(0), replace(COLLECTED, processed=frozenset({1, 3})))
    job, _ = walk(job, js.Recorded(DESTINATIONS), js.Uploaded(UPLOADED))
    assert job.report is not None
    outcomes = {result.unit_id: result.outcome for result in job.report.units}
    assert outcomes == {1: UnitOutcome.PROCESSED, 2: UnitOutcome.RETURNED, 3: UnitOutcome.PROCESSED}


def test_get_file_without_a_processed_list_processes_nothing() -> None:
    job, _ = walk(
        new_job(assignment(), PART), *TO_PHASE[Phase.RUNNING], js.FileAsked("a"), js.PayloadOver(0), js.Collected()
    )
    assert job.report is not None
    assert {result.outcome for result in job.report.units} == {UnitOutcome.RETURNED}


def test_only_units_that_get_file_gave_out_are_blamed() -> None:
    job, _ = walk(
        new_job(assignment(), PART),
        *TO_PHASE[Phase.RUNNING],
        js.FileAsked("a"),
        js.PayloadOver(1, BROKEN),
        js.Collected(),
    )
    assert job.report is not None
    outcomes = {result.unit_id: result.outcome for result in job.report.units}
    assert outcomes == {1: UnitOutcome.FAILED, 2: UnitOutcome.RETURNED}


def test_a_claimed_unit_that_cannot_be_staged_in_is_followed_by_another_claim() -> None:
    job, _ = walk(new_job(assignment(1), PART), *TO_PHASE[Phase.RUNNING], js.FileAsked("a"), js.FileAsked("b"))
    job, actions = step(job, js.UnitClaimed(Claim("b", "job-7-claim-0"), unit(5), UnitOutcome.LOST))
    assert actions == (js.ClaimUnit(Claim("b", "job-7-claim-1")),)
    assert job.outcomes == {5: UnitOutcome.LOST}


def test_a_claim_waits_for_the_server_under_the_same_request_id() -> None:
    job, _ = walk(new_job(assignment(1), PART), *TO_PHASE[Phase.RUNNING], js.FileAsked("a"), js.FileAsked("b"))
    job, actions = walk(job, js.ServerUnreachable(), js.Again())
    assert actions == [js.RetryLater(1), js.ClaimUnit(Claim("b", "job-7-claim-0"))]


def test_a_doubled_answer_does_not_take_a_unit_back() -> None:
    job, _ = walk(new_job(assignment(1), PART), *TO_PHASE[Phase.RUNNING], js.FileAsked("a"), js.FileAsked("b"))
    answer = js.UnitClaimed(Claim("b", "job-7-claim-0"), unit(5))
    job, _ = walk(job, answer, answer)
    assert job.handed == (1, 5)
    assert job.outcomes == {}


def test_a_unit_that_arrives_after_the_payload_goes_back() -> None:
    job, actions = walk(
        new_job(assignment(1), PART), *TO_PHASE[Phase.RUNNING], js.FileAsked("a"), js.FileAsked("b"), js.PayloadOver(0)
    )
    assert js.HandOut("b", None) in actions
    job, _ = walk(job, js.UnitClaimed(Claim("b", "job-7-claim-0"), unit(5)), js.Collected())
    assert job.report is not None
    assert {result.unit_id: result.outcome for result in job.report.units}[5] is UnitOutcome.RETURNED


def test_counters_are_handed_out_one_by_one_and_more_are_claimed() -> None:
    counters = structs.replace(assignment(0), units=[AssignedUnit(n, seq=n, counter=n) for n in (1, 2)])
    job, _ = walk(new_job(counters, PART), *TO_PHASE[Phase.RUNNING])
    job, actions = walk(job, js.FileAsked("a"), js.FileAsked("b"), js.FileAsked("c"))
    claim = Claim("c", "job-7-claim-0")
    assert actions == [*(js.HandOut(name, unit) for name, unit in zip("ab", counters.units)), js.ClaimUnit(claim)]
    job, actions = walk(job, js.UnitClaimed(claim, AssignedUnit(3, seq=3, counter=3)))
    assert job.handed == (1, 2, 3)


def test_a_job_on_the_task_itself_has_no_files_to_get() -> None:
    job, _ = walk(
        new_job(structs.replace(assignment(0), units=[AssignedUnit(1, seq=0)]), PART), *TO_PHASE[Phase.RUNNING]
    )
    assert step(job, js.FileAsked("a"))[1] == (js.HandOut("a", None),)


# ---------------------------------------------------------------- claimed ahead


def test_a_job_claimed_ahead_fetches_its_input_and_waits_for_its_part() -> None:
    job, actions = walk(new_job(assignment(), None), js.Start(), js.StagedIn())
    assert (job.phase, job.waits, job.holds_slot, job.reported) == (Phase.STAGED, True, False, JobState.SENT)
    assert actions == [js.StageIn()]
    job, actions = walk(job, js.PartGiven(PART))
    assert (job.phase, job.waits, job.holds_slot) == (Phase.RUNNING, False, True)
    assert actions == [js.StartPayload(tuple(job.units), PART)]


def test_a_part_that_comes_before_the_input_is_kept_for_it() -> None:
    job, actions = walk(new_job(assignment(), None), js.Start(), js.PartGiven(PART))
    assert (job.phase, job.holds_slot, job.reported) == (Phase.STAGING_IN, True, JobState.STARTING)
    assert walk(job, js.StagedIn())[1] == [js.StartPayload(tuple(job.units), PART)]


@pytest.mark.parametrize("events", [(), (js.Start(),), (js.Start(), js.StagedIn())])
@pytest.mark.parametrize("end", [js.GiveBack("it takes too long"), js.SlotTaken("SIGTERM")])
def test_a_job_that_waits_goes_back_as_if_nothing_had_happened(events: tuple[Event, ...], end: Event) -> None:
    job, actions = walk(new_job(assignment(), None), *events, end)
    assert job.phase is Phase.CONFIRMING and job.report is not None
    assert (job.report.state, job.report.error_code) == (JobState.CLOSED, ErrorCode.GIVEN_BACK)
    assert {unit.outcome for unit in job.report.units} == {UnitOutcome.RETURNED}
    assert js.Abandon() in actions and not any(isinstance(each, js.Collect) for each in actions)


def test_a_job_that_has_its_part_is_not_given_back() -> None:
    for phase in (Phase.ACQUIRED, Phase.STAGING_IN, Phase.RUNNING):
        assert step(job_in(phase), js.GiveBack("no")) == (job_in(phase), ())


# ---------------------------------------------------------------- random lives


def answers(action: Action, rng: random.Random) -> Iterator[Event]:
    """What the world may say to an action."""
    away, gone = js.ServerUnreachable(), js.Gone()
    crashed, refused = EVENTS[js.Crashed], EVENTS[js.Refused]
    lost = js.StagedIn({1: UnitOutcome.LOST, 2: UnitOutcome.RETURNED}, (), Failure(ErrorCode.STAGE_IN_FAILED))
    possible: dict[type, list[Event]] = {
        js.StageIn: [js.StagedIn()] * 4 + [lost, crashed],
        js.StartPayload: [js.PayloadRuns()] * 9 + [js.PayloadOver(failure=Failure(ErrorCode.BAD_JOBSCRIPT)), crashed],
        js.KillPayload: [js.PayloadOver(None, Failure(ErrorCode.KILL_SIGNAL))],
        js.ClaimUnit: [away, gone, refused],
        js.Collect: [COLLECTED, js.Collected((LOG,)), js.Collected(), js.Collected((LOG,), failure=BROKEN), crashed],
        js.Record: [js.Recorded(DESTINATIONS)] * 4 + [away, away, gone, refused],
        js.Upload: [js.Uploaded(UPLOADED)] * 4
        + [js.Uploaded(UPLOADED[:1], Failure(ErrorCode.STAGE_OUT_FAILED)), crashed],
        js.Confirm: [EVENTS[js.Confirmed]] * 3 + [away, away, gone, refused, crashed],
        js.RetryLater: [js.Again()],
        js.Remove: [js.Removed(), crashed],
    }
    if type(action) in possible:
        yield rng.choice(possible[type(action)])


@pytest.mark.parametrize("seed", range(300))
def test_every_life_ends(seed: int) -> None:
    """Whatever the world answers, and whatever comes in between, a job ends once, and cleans up once."""
    rng = random.Random(seed)
    job = new_job(assignment(2), PART if seed % 2 else None)
    waiting: list[Event] = [js.Start()]
    done: list[Action] = []
    interruptions = [js.KillRequested, js.SlotTaken, js.Forget, js.TimeIsUp, js.FileAsked, js.Breach, js.Measured]
    interruptions += [js.PartGiven, js.GiveBack]
    for _ in range(2000):
        if job.phase is Phase.DONE:
            break
        if rng.random() < 0.1:
            waiting.append(EVENTS[rng.choice(interruptions)])
        if not waiting and job.phase is Phase.STAGED:
            waiting.append(js.PartGiven(PART))
        if not waiting:
            assert job.phase is Phase.RUNNING, f"stuck in {job.phase}"
            waiting.append(js.PayloadOver(0))
        before = job
        job, actions = step(job, waiting.pop(rng.randrange(len(waiting))))
        assert list(Phase).index(job.phase) >= list(Phase).index(before.phase)
        done += actions
        for action in actions:
            if isinstance(action, js.Abandon):
                waiting = [event for event in waiting if isinstance(event, js.PayloadOver)]
            waiting += answers(action, rng)
    assert job.phase is Phase.DONE
    kinds = [type(action) for action in done]
    assert kinds.count(js.Cleanup) == 1
    assert kinds.count(js.KillPayload) <= 2
    reports = {id(action.report) for action in done if isinstance(action, js.Confirm)}
    assert len(reports) <= 2
    if js.Spool in kinds:
        assert js.Unspool in kinds
