"""Outputs that the server registers: nothing is visible before the catalogue knows it, and nothing is ever lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from common.errors import ErrorCode
from common.states import FINAL_JOB_STATES, JobState, TaskState, UnitState
from common.wire import (
    Assignment,
    DatasetPage,
    EventPage,
    FinishRequest,
    Instruction,
    OutputRole,
    Registration,
    RegistrationPage,
    StageInput,
)
from server.agents import registrar as agent
from server.agents.accounting import keep_books
from server.agents.registrar import NoRegistrar, carry_on, register_outputs
from server.catalogs.registration import Answer, FakeRegistrar, Outcome, OutputFile
from server.store import commits, outputs, registrations
from server.store.codes import OutputState
from server.store.schema import job as job_table
from server.store.schema import output
from tests.integration.server.harness import Pilot, Refused, Site, stage, states, uploaded

AGAIN = Answer(Outcome.AGAIN, "too busy")
NEVER = Answer(Outcome.REFUSED, "no such scope")


def step(site: Site, fake: FakeRegistrar) -> int:
    """One run of the agent."""
    with site.database.read() as connection:
        waiting = registrations.due(connection, site.clock.now(), 100)
    return carry_on(site.dispatcher, fake, waiting) if waiting else 0


def settle(site: Site, fake: FakeRegistrar) -> None:
    """Runs of the agent until nothing is due."""
    for _ in range(20):
        if not step(site, fake):
            return
    raise AssertionError("the registrar finds no end")


def output_states(site: Site) -> dict[str, OutputState]:
    with site.database.read() as connection:
        return {row.did: OutputState(row.state) for row in connection.execute(select(output))}


def visible(site: Site, task: int) -> list[str]:
    return [each.did for each in site.outputs(task)]


def waiting(site: Site) -> RegistrationPage:
    return site.user("GET", "/v1/registrations", reply=RegistrationPage)


def kinds(site: Site, job: int) -> list[str]:
    return [each.kind for each in site.user_page(f"/v1/events?job={job}", EventPage).items]


@pytest.fixture
def fake() -> FakeRegistrar:
    return FakeRegistrar()


@pytest.fixture
def registering(site: Site) -> Site:
    """A world whose storage wants its files registered by the server."""
    site.world(storages=())
    site.put_storage("disk", registration=Registration.SERVER)
    return site


def held(site: Site, *names: str, **more: Any) -> tuple[int, Pilot, Assignment]:
    """A task of one unit whose job is confirmed and waits."""
    task = site.counter(1, **more)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job, *(names or ("o",)))
    return task, pilot, job


# ---------------------------------------------------------------- the way it goes


def test_nothing_is_visible_before_the_catalogue_knows_it(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    first, second = site.submit(stage("make"), stage("merge", given=StageInput("make")))
    pilot = site.pilot()
    job = pilot.acquire()
    reply = pilot.succeed(job, "a", "b")
    assert (reply.state, set(reply.units.values())) == (JobState.FINISHED, {UnitState.OUTPUTTING})
    site.agents()
    assert site.job(job.job_id).state == JobState.HOLDING
    assert states(site.units(first)) == {"outputting": 1}
    assert visible(site, first) == []
    assert site.task(first).state == TaskState.RUNNING
    assert site.task(second).state == TaskState.PENDING
    assert [each.job_id for each in waiting(site).items] == [job.job_id]

    settle(site, fake)
    assert site.job(job.job_id).state == JobState.FINISHED
    assert states(site.units(first)) == {"done": 1}
    assert visible(site, first) == sorted(fake.files)
    assert waiting(site).items == []
    assert kinds(site, job.job_id)[-2:] == ["JOB_CONFIRMED", "JOB_FINISHED"]
    site.agents()
    assert site.task(first).state == TaskState.DONE
    assert states(site.units(second)) == {"ready": 2}
    site.check_counts()


def test_the_catalogue_is_told_all_it_needs(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task = site.submit(
        stage("reco", outputs=[{"pattern": "*", "lifetime_days": 30, "max_files_per_dataset": 10}], count=1)
    )[0]
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job, "o")
    settle(site, fake)
    found = fake.files[f"user.u:{task}.{job.job_id}.o"]
    assert (found.storage, found.path) == ("disk", f"user.u/{task}/{job.job_id}/{task}.{job.job_id}.o")
    assert (found.url, found.size, found.checksum) == (f"file:///disk/{found.path}", 1, "adler32:00000001")
    assert [(each.did, each.storage, each.lifetime_days) for each in found.datasets] == [
        ("user.u:w1.reco.p1", None, None),
        ("user.u:w1.reco.p1-disk", "disk", 30),
        ("user.u:w1.reco.p1.000001", None, None),
    ]
    assert found.datasets[1].expires == pytest.approx(site.clock.now() + 30 * 86400)


@pytest.mark.parametrize(
    ("of_storage", "of_task", "wanted"),
    [
        ("none", None, "none"),
        ("none", "server", "server"),
        ("server", "none", "none"),
        ("server", "pilot", "pilot"),
        ("pilot", None, "pilot"),
        ("pilot", "server", "server"),
    ],
)
def test_a_task_says_who_registers_else_its_storage(
    site: Site, of_storage: str, of_task: str | None, wanted: str
) -> None:
    site.world(storages=())
    site.put_storage("disk", registration=Registration(of_storage))
    task = site.counter(1, registration=Registration(of_task) if of_task else None)
    pilot = site.pilot()
    job = pilot.acquire()
    assert pilot.record(job, "o").destinations[0].registration == Registration(wanted)
    pilot.succeed(job, "o")
    holds = wanted == "server"
    assert site.job(job.job_id).state == (JobState.HOLDING if holds else JobState.FINISHED)
    assert len(visible(site, task)) == (0 if holds else 1)


def test_a_log_is_never_registered(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task = site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    log = uploaded(pilot.record(job, "log.tgz", role=OutputRole.LOG))
    pilot.finish(job, FinishRequest(JobState.FAILED, outputs=log, error_code=int(ErrorCode.PAYLOAD_FAILED)))
    assert site.job(job.job_id).state == JobState.FAILED
    assert site.job(job.job_id).log_did == log[0].did
    assert waiting(site).items == []
    job = pilot.acquire()
    request = pilot.success(job, "o")
    request.outputs += uploaded(pilot.record(job, "log.tgz", role=OutputRole.LOG))
    pilot.finish(job, request)
    assert visible(site, task) == [log[0].did, request.outputs[1].did]
    settle(site, fake)
    assert list(fake.files) == [request.outputs[0].did]


def test_a_job_that_did_some_of_its_units_holds_those(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task = site.counter(3, files_per_job=3)
    pilot = site.pilot()
    job = pilot.acquire()
    reply = pilot.succeed(job, "o", units=[job.units[0].unit_id])
    assert sorted(state.value for state in reply.units.values()) == ["outputting", "ready", "ready"]
    assert site.job(job.job_id).state == JobState.HOLDING
    settle(site, fake)
    assert states(site.units(task)) == {"done": 1, "ready": 2}
    assert site.job(job.job_id).state == JobState.FINISHED
    site.check_counts()


# ---------------------------------------------------------------- the pilot is gone


def test_a_confirmed_job_does_not_need_its_pilot(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task, pilot, job = held(site)
    reply = pilot.finish(job, request := last_request(site, pilot, job))
    assert reply.units == {str(job.units[0].unit_id): UnitState.OUTPUTTING}
    for _ in range(3):
        site.tick(2000)
        pilot.beat()  # it does not list the job any more
        site.agents()
    assert site.job(job.job_id).state == JobState.HOLDING
    assert pilot.beat(job).jobs[0].instruction == Instruction.CONTINUE
    pilot.end()
    site.tick(30_000)
    site.agents()
    assert site.job(job.job_id).state == JobState.HOLDING
    settle(site, fake)
    assert site.job(job.job_id).state == JobState.FINISHED
    assert len(visible(site, task)) == 1
    assert pilot.finish(job, request) == reply


def last_request(site: Site, pilot: Pilot, job: Assignment) -> FinishRequest:
    """The confirmation that :meth:`Pilot.succeed` sent for one output ``o``."""
    did = f"user.u:{job.task_id}.{job.job_id}.o"
    request = FinishRequest(JobState.FINISHED, exit_code=0)
    ids = [each.unit_id for each in job.units]
    from common.wire import UnitOutcome, UnitResult, UploadedOutput

    request.units = [UnitResult(each, UnitOutcome.PROCESSED) for each in ids]
    path = f"user.u/{job.task_id}/{job.job_id}/{job.task_id}.{job.job_id}.o"
    request.outputs = [UploadedOutput(did, f"file:///disk/{path}")]
    return request


def test_a_confirmed_job_takes_nothing_more(registering: Site) -> None:
    _, pilot, job = held(registering)
    unit = {"unit_id": job.units[0].unit_id, "outcome": "returned"}
    for call in (
        lambda: pilot.record(job, "more"),
        lambda: pilot.fail(job, 1305),
        lambda: pilot.post(f"/v1/jobs/{job.job_id}/units:release", {"units": [unit]}, None),
        lambda: pilot.post(f"/v1/jobs/{job.job_id}/units:acquire", {"request_id": "request-99"}, None),
    ):
        with pytest.raises(Refused) as error:
            call()
        assert error.value.status == 409  # and not 410, at which the pilot would remove its files
    assert registering.job(job.job_id).state == JobState.HOLDING


# ---------------------------------------------------------------- the catalogue is away


@pytest.mark.parametrize("how", ["away", "again", "raises", "answers for none"])
def test_a_catalogue_that_is_away_is_asked_again_ever_less_often(
    registering: Site, fake: FakeRegistrar, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site = registering
    task, _, job = held(site)
    with monkeypatch.context() as patch:
        if how == "away":
            patch.setattr(fake, "away", True)
        elif how == "again":
            patch.setattr(fake, "judge", lambda *_: AGAIN)
        elif how == "raises":
            patch.setattr(fake, "register", lambda _: 1 / 0)
        else:
            patch.setattr(fake, "register", lambda _: [])
        waits = []
        for _ in range(9):
            step(site, fake)
            told = waiting(site).items[0]
            waits.append(round(told.next_try - site.clock.now()))
            assert step(site, fake) == 0  # it is not due
            site.tick(told.next_try - site.clock.now() + 1)
        assert waits == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
        assert told.tries == 9
        assert told.error
    site.agents()
    assert site.job(job.job_id).state == JobState.HOLDING
    settle(site, fake)
    assert site.job(job.job_id).state == JobState.FINISHED
    assert len(visible(site, task)) == 1


def test_without_a_registrar_jobs_wait_and_somebody_is_told(registering: Site, fake: FakeRegistrar) -> None:
    assert register_outputs(registering.dispatcher) == 0
    _, _, job = held(registering)
    with pytest.raises(NoRegistrar, match=rf"job {job.job_id} waits .*\[server\] registrar"):
        register_outputs(registering.dispatcher)
    assert registering.job(job.job_id).state == JobState.HOLDING


# ---------------------------------------------------------------- the catalogue refuses


def test_what_the_catalogue_refuses_is_taken_back_and_tried_again(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task, pilot, job = held(site, "good", "bad")
    fake.judge = lambda call, file: NEVER if call == "register" and file.did.endswith("bad") else None
    settle(site, fake)
    view = site.job(job.job_id)
    assert (view.state, view.error_code) == (JobState.FAILED, ErrorCode.OUTPUTS_NOT_REGISTERED)
    assert (view.error_detail, view.exit_code) == ("no such scope", 0)
    assert fake.files == {}  # the good one was taken out again
    assert all(not members for members in fake.datasets.values())
    assert set(output_states(site).values()) == {OutputState.ABANDONED}
    assert all(each.files == 0 for each in site.user_page("/v1/datasets", DatasetPage).items)
    assert states(site.units(task)) == {"ready": 1}
    assert site.units(task)[0].payload_failures == 1
    again = pilot.acquire()
    assert again.job_id != job.job_id
    fake.judge = lambda *_: None
    pilot.succeed(again, "good", "bad")
    settle(site, fake)
    assert len(visible(site, task)) == 2
    site.agents()
    assert site.task(task).state == TaskState.DONE
    site.check_counts()


def test_a_unit_whose_outputs_are_always_refused_fails_in_the_end(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task = site.counter(1, max_attempts=2)
    fake.judge = lambda call, _: NEVER if call == "register" else None
    for _ in range(2):
        pilot = site.pilot()
        job = pilot.acquire()
        pilot.succeed(job, "o")
        settle(site, fake)
    site.agents()
    assert states(site.units(task)) == {"failed": 1}
    assert site.units(task)[0].error_code == ErrorCode.OUTPUTS_NOT_REGISTERED
    assert site.task(task).state == TaskState.FAILED


def test_a_pilot_that_repeats_its_confirmation_later_is_answered_as_the_first_time(
    registering: Site, fake: FakeRegistrar
) -> None:
    _, pilot, job = held(registering)
    fake.judge = lambda call, _: NEVER if call == "register" else None
    settle(registering, fake)
    # Not 410: the server sweeps the files by itself, as it may still have to take them out of the catalogue.
    assert pilot.finish(job, last_request(registering, pilot, job)).state == JobState.FINISHED


def test_a_withdrawal_is_tried_until_it_is_done(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task, _, job = held(site)
    fake.judge = lambda call, _: NEVER if call == "register" else AGAIN
    settle(site, fake)
    told = waiting(site).items[0]
    assert (told.withdrawing, told.error) == (True, "no such scope")
    assert states(site.units(task)) == {"outputting": 1}
    fake.judge = lambda *_: None
    site.tick(40)
    settle(site, fake)
    assert site.job(job.job_id).error_detail == "no such scope"
    assert states(site.units(task)) == {"ready": 1}


def test_a_catalogue_that_keeps_what_it_should_forget_holds_nobody_up(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task, _, job = held(site)
    fake.judge = lambda *_: NEVER
    settle(site, fake)
    assert states(site.units(task)) == {"ready": 1}
    event = [e for e in site.user_page(f"/v1/events?job={job.job_id}", EventPage).items if e.kind == "JOB_FAILED"][0]
    assert event.detail["left_in_catalogue"] == "no such scope"


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize("moment", ["before", "during", "after an attempt"])
def test_a_kill_takes_everything_out_again(registering: Site, fake: FakeRegistrar, moment: str) -> None:
    site = registering
    task, _, job = held(site)

    def kill_first(call: str, _: OutputFile) -> None:
        if call == "register" and site.task(task).state != TaskState.ABORTED:
            site.command(task, "kill")

    if moment == "before":
        site.command(task, "kill")
    elif moment == "during":
        fake.judge = kill_first
    else:
        fake.judge = lambda *_: AGAIN
        step(site, fake)
        fake.judge = lambda *_: None
        site.command(task, "kill")
    site.agents()
    for _ in range(3):
        site.tick(100)
        settle(site, fake)
        site.agents()
    assert site.job(job.job_id).state == JobState.CANCELLED
    assert fake.files == {}
    assert set(output_states(site).values()) == {OutputState.ABANDONED}
    assert states(site.units(task)) == {"cancelled": 1}
    assert waiting(site).items == []
    site.check_counts()


# ---------------------------------------------------------------- crashes, and two agents


CRASHES = [
    (agent, "_files"),
    (agent, "_sorted"),
    (commits, "finish_registered"),
    (outputs, "reveal"),
    (registrations, "forget"),
    (agent.events, "add"),
    (registrations, "withdraw"),
    (commits, "fail_confirmed"),
    (agent, "settle_units"),
]


@pytest.mark.parametrize(("module", "name"), CRASHES, ids=[name for _, name in CRASHES])
@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_agent_that_dies_at_any_point_is_taken_up_where_it_was(
    registering: Site, fake: FakeRegistrar, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, refused: bool,
    when: str,
) -> None:  # fmt: skip
    site = registering
    tasks = [held(site, "a", "b")[0] for _ in range(3)]
    if refused:
        fake.judge = lambda call, file: NEVER if call == "register" and file.did.endswith("b") else None
    original = getattr(module, name)
    died = []

    def die(*args: Any, **more: Any) -> Any:
        if when == "after":
            original(*args, **more)
        died.append(name)
        raise KeyboardInterrupt

    for _ in range(2):  # and its successor, once, at the same point
        with monkeypatch.context() as patch:
            patch.setattr(module, name, die)
            try:
                for _ in range(3):
                    step(site, fake)
            except KeyboardInterrupt:
                pass
        site.check_counts()
    settle(site, fake)
    keep_books(site.dispatcher)
    site.check_counts()
    for task in tasks:
        expected = {"ready": 1} if refused else {"done": 1}
        assert states(site.units(task)) == expected
        assert len(visible(site, task)) == (0 if refused else 2)
    assert sorted(fake.files) == ([] if refused else sorted(did for task in tasks for did in visible(site, task)))
    sets = site.user_page("/v1/datasets", DatasetPage).items
    assert {each.files for each in sets} == ({0} if refused else {2})


def test_two_agents_at_once_count_nothing_twice(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task, _, job = held(site)
    nested = []

    def beside(call: str, _: OutputFile) -> None:
        if not nested:
            nested.append(call)
            # Another holder of the lease does the whole turn while this one waits for the catalogue.
            fake_beside = FakeRegistrar()
            fake_beside.files = fake.files
            with site.database.read() as connection:
                due = registrations.due(connection, site.clock.now(), 100)
            assert carry_on(site.dispatcher, fake_beside, due) == 1

    fake.judge = beside
    assert step(site, fake) == 0
    assert nested == ["register"]
    assert states(site.units(task)) == {"done": 1}
    assert kinds(site, job.job_id).count("JOB_FINISHED") == 1
    keep_books(site.dispatcher)
    site.check_counts()


def test_many_jobs_are_registered_in_one_call(registering: Site, fake: FakeRegistrar) -> None:
    site = registering
    task = site.counter(30)
    pilot = site.pilot()
    for _ in range(30):
        pilot.succeed(pilot.acquire(), "o")
    assert step(site, fake) == 30
    assert fake.calls == [("register", 30)]
    assert states(site.units(task)) == {"done": 30}
    site.check_counts()


# ---------------------------------------------------------------- whatever happens


ACTIONS = st.lists(
    st.sampled_from(
        ["job", "job", "step", "step", "away", "busy", "refuse", "well", "time", "kill", "books", "agents"]
    ),
    max_size=25,
)


@pytest.fixture
def fresh(sqlite_template: Path) -> Iterator[Callable[[], Site]]:
    made: list[Site] = []

    def make() -> Site:
        folder = Path(tempfile.mkdtemp())
        shutil.copy(sqlite_template, folder / "p.db")
        site = Site(f"sqlite:///{folder / 'p.db'}")
        site.say_up()
        made.append(site)
        return site

    yield make
    for site in made:
        site.database.close()
        shutil.rmtree(Path(str(site.database.url.database)).parent)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_no_output_is_visible_without_its_units_and_its_entry(
    fresh: Callable[[], Site], actions: Sequence[str]
) -> None:
    site, fake = fresh(), FakeRegistrar()
    site.world(storages=())
    site.put_storage("disk", registration=Registration.SERVER)
    tasks = [site.counter(4), site.counter(4)]
    count = iter(range(10**6))

    def act(action: str) -> None:
        if action == "job":
            pilot = site.pilot()
            for job in pilot.ask().jobs:
                pilot.succeed(job, *(f"o{n}" for n in range(next(count) % 3)))
        elif action == "step":
            step(site, fake)
        elif action == "kill":
            try:
                site.command(tasks[1], "kill")
            except Refused as refused:
                assert refused.status == 409
        elif action == "time":
            site.clock.advance(700)
            site.say_up()
        elif action == "books":
            keep_books(site.dispatcher)
        elif action == "agents":
            site.agents()
        else:
            fake.away = action == "away"
            answers = {"busy": AGAIN, "refuse": NEVER}
            fake.judge = lambda call, _: answers.get(action) if call == "register" else None
        check()

    def check() -> None:
        with site.database.read() as connection:
            rows = connection.execute(
                select(output.c.did, output.c.state, job_table.c.state.label("job_state")).join(
                    job_table, job_table.c.id == output.c.job_id
                )
            ).all()
        for row in rows:
            if row.state == OutputState.CONFIRMED:
                assert row.did in fake.files
                assert row.job_state == 10
        for task in tasks:
            done = {each.job_id for each in site.units(task) if each.state == UnitState.DONE}
            assert {each.job_id for each in site.outputs(task)} <= done
        site.check_counts()

    for action in actions:
        act(action)
    act("well")
    for _ in range(60):
        for action in ("agents", "job", "time", "time", "step", "step", "books"):
            act(action)
        if all(site.task(task).state.value in ("done", "finished", "failed", "aborted") for task in tasks):
            break
    settle(site, fake)
    assert site.task(tasks[0]).state in (TaskState.DONE, TaskState.FINISHED, TaskState.FAILED)
    assert waiting(site).items == []
    with site.database.read() as connection:
        finals = connection.execute(select(job_table.c.state)).scalars().all()
    assert all(code >= 10 for code in finals), FINAL_JOB_STATES
    shown = {did for task in tasks for did in visible(site, task)}
    assert shown == set(fake.files)
