"""The state machine of random histories: people, pilots, harvester, catalogue and agents do what they may do.

Every call that changes something may be made twice, as after a lost reply, and the repeat may reach another web process;
the second answer is the first one again. After each step the whole database is read and judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Optional
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from sqlalchemy import delete, update

from common.states import FINAL_JOB_STATES, FINAL_TASK_STATES, TaskState, WorkerState
from common.wire import Registration, TaskView
from server.agents import duties, sweep
from server.agents.accounting import keep_books
from server.agents.duties import DUTIES, LIVENESS_GAP_S
from server.agents.registrar import carry_on
from server.agents.sweep import Removal
from server.agents.tasks import advance_all
from server.catalogs.registration import Answer, Outcome
from server.store import registrations
from server.store.codes import OutputState, PilotState
from server.store.schema import liveness, pilot_beat, pilot_report
from tests.integration.server import histories_books as books
from tests.integration.server.histories_model import Held
from tests.integration.server.histories_people import RULES, People
from tests.integration.server.histories_pilots import Pilots
from tests.integration.server.histories_push import QUEUE, Pushing

AWAY = {"sweep-unconfirmed", "register-outputs"}
"""Agents that need a storage or a catalogue: they have rules of their own."""
PATIENT = 60
UNSETTLED = (OutputState.RECORDED, OutputState.ABANDONED)
DAY_S = 86400.0
KNOBS: dict[str, object] = {
    "probe_interval_s": 0,  # the books are of people's work
    "lost_pilots": 4,
    "preemptions": 6,
    "site_failures": 4,
    "scout_count": 2,
    "scout_small_jobs": 0,
    "jobs_keep_s": DAY_S,
    "pilots_keep_s": DAY_S,
}
SLICES = {
    "server.dispatch.commands.SLICE": 2,
    "server.dispatch.commands.SLICES_AT_ONCE": 1,
    "server.agents.tasks.SLICE": 2,
    "server.agents.resolve.SLICE": 3,
    "server.agents.feed.SLICE": 2,
    "server.agents.sweep.BATCH": 2,
    "server.dispatch.cloning.DELETE_SLICE": 5,
    "server.agents.housekeeping.SLICE": 3,
}
"""So that a history of a few units is done in as many slices as one of a million."""


class Histories(People, Pilots, Pushing):
    """All who do something, time, agents and accidents."""

    def teardown(self) -> None:
        try:
            if self.tasks:
                self.everything_ends()
        finally:
            for each in self.patches:
                each.stop()
            self.site.database.close()
            self.other.database.close()

    @initialize(
        small=st.booleans(),
        count=st.integers(4, 9),
        per_job=st.integers(1, 3),
        shape=st.sampled_from(["one", "merge", "chain", "both", "beside"]),
        booked=st.sampled_from([None, Registration.SERVER]),
    )
    def begin(self, small: bool, count: int, per_job: int, shape: str, booked: Optional[Registration]) -> None:
        """The world, a pilot, and a workflow that can be run: whatever happens, happens to something."""
        self.small = small
        for name, most in SLICES.items() if small else ():
            self.patches.append(patch(name, most))
            self.patches[-1].start()
        self.up()
        self.site.world(queues=("q", "r"), storages=("disk", "tape"))
        self.site.put_queue(QUEUE, mode="push")
        self.site.put_storage("booked", registration=Registration.SERVER, status="test")
        for knob, value in KNOBS.items():
            self.site.turn(knob, value)
        self.pilots.append(self.registered("q", 2))
        self.new_task(count=count, per_job=per_job, attempts=3, shape=shape, booked=booked, scouts=False)
        self.site.agents()
        self.jobs += [Held(self.pilots[0], each) for each in self.pilots[0].ask(2).jobs]
        assert self.jobs

    # ------------------------------------------------------------ time, agents, accidents

    def up(self) -> None:
        self.site.say_up()

    def later(self, seconds: float) -> None:
        """Time goes by; the web side is up all the while, and writes what it heard."""
        self.write_heard()
        self.clock.advance(seconds)
        with self.site.database.write() as connection:
            connection.execute(update(liveness).values(seen=self.clock.now()))

    @rule(seconds=st.sampled_from([1, 30, 700, 700, 4000, 4000, 2 * DAY_S]))
    def time_passes(self, seconds: float) -> None:
        self.later(seconds)

    @rule(restart=st.booleans())
    def another_process_answers(self, restart: bool) -> None:
        """The next calls reach the other web process, or one that has just begun."""
        if restart:
            self.restart()
        else:
            self.swap()

    @rule(
        what=st.sampled_from(["down", "set back", "forgotten"]),
        seconds=st.sampled_from([5, 20, 5000]),
        reap=st.booleans(),
    )
    def accident(self, what: str, seconds: int, reap: bool) -> None:
        """The server is down for a while, its clock is set back, or a crash empties the tables that are not logged."""
        self.write_heard()
        if what == "down":
            self.clock.advance(seconds)
            self.up()
            if seconds > LIVENESS_GAP_S:
                self.up_since = self.clock.now()
        elif what == "set back":
            self.clock.set_back(seconds)
            self.up()
            self.up_since = min(self.up_since, self.clock.now())
            self.heard = {pilot: min(heard, self.clock.now()) for pilot, heard in self.heard.items()}
        else:
            with self.site.database.write() as connection:
                connection.execute(delete(pilot_beat))
                connection.execute(delete(pilot_report))
            self.heard = dict.fromkeys(self.heard, self.clock.now())
        if reap:
            duties.reap(self.site.dispatcher)

    @rule(data=st.data(), whole=st.booleans())
    def agents(self, data: st.DataObject, whole: bool) -> None:
        chosen = [each for each in DUTIES if each.name not in AWAY]
        if not whole:
            chosen = data.draw(st.lists(st.sampled_from(chosen), min_size=1, max_size=4))
        self.write_heard()
        for duty in chosen:
            duty.work(self.site.dispatcher)
        if whole:
            self.rest()
        if not self.pilots:
            self.pilots.append(self.registered("q", 2))

    def rest(self) -> None:
        """The agents work on until none finds anything to do; then all that is over must be said to be over."""
        self.site.agents()
        advance_all(self.site.dispatcher)
        keep_books(self.site.dispatcher)
        now = books.read(self.site.database)
        books.check_rest(now, self.deleted)
        for job_id, job in now.jobs.items():
            alive = job.state not in FINAL_JOB_STATES and job.confirmed is None
            active = now.pilots.get(job.pilot) in (PilotState.ACTIVE, PilotState.EXPECTED)
            assert not alive or active, f"job {job_id} lives without a pilot"

    # ------------------------------------------------------------ catalogue and storage

    @precondition(lambda self: self.before.registering)
    @rule(answer=st.sampled_from([None, None, Outcome.AGAIN, Outcome.REFUSED, "away"]))
    def registrar(self, answer: Any) -> None:
        self.fake.away = answer == "away"
        self.fake.judge = lambda call, _: Answer(answer, "so") if isinstance(answer, Outcome) else None
        self.register_outputs()

    def register_outputs(self) -> int:
        with self.site.database.read() as connection:
            waiting = registrations.due(connection, self.clock.now(), 100)
        return carry_on(self.site.dispatcher, self.fake, waiting) if waiting else 0

    @precondition(lambda self: any(each.state in UNSETTLED for each in self.before.outputs.values()))
    @rule(works=st.booleans())
    def sweep(self, works: bool) -> None:
        """What was never confirmed is removed, when the storage works; nothing else is."""

        def remove(urls: Sequence[str]) -> list[Removal]:
            places = {
                f"{each.place[0]}/{each.place[1]}": each for each in books.read(self.site.database).outputs.values()
            }
            for url in urls:
                output = places[url.removeprefix("file:///")]
                assert output.state == OutputState.ABANDONED, f"{url} is {output.state.name}, and removed"
            return [Removal(url, works, "" if works else "out of order") for url in urls]

        with patch.object(sweep, "_remove", lambda urls, _credentials: remove(urls)):
            sweep.sweep_unconfirmed(self.site.dispatcher)

    # ------------------------------------------------------------ what always holds

    @invariant()
    def the_books_are_right(self) -> None:
        self.look_at_the_books()

    def everything_ends(self) -> None:
        """From any state on: with patient pilots every task comes to its end."""
        self.registrar(None)
        for name in RULES:
            self.site.raw("DELETE", f"/v1/retry-rules/{name}", token=self.site.token("admin"))
        for name in "qr":
            self.site.put_queue(name)
        for mark in sorted(self.expected):
            self.end_worker(mark, WorkerState.FAILED)
        for task in sorted(self.opened.intersection(self.tasks)):
            self.conflicts(partial(self.close, task))
        for _ in range(PATIENT):
            self.later(3700)
            self.write_heard()
            self.site.agents()
            for task in self.tasks:
                if self.site.task(task).state in (TaskState.PAUSED, TaskState.EXHAUSTED):
                    self.site.command(task, "resume")
            self.one_patient_pilot()
            self.register_outputs()
            if all(self.site.task(task).state in FINAL_TASK_STATES for task in self.tasks):
                break
        self.the_books_are_right()
        self.rest()
        for task in self.tasks:
            view = self.site.task(task)
            assert view.state in FINAL_TASK_STATES, view
            if view.state == TaskState.DONE and task in self.inputs:
                assert view.units == {"done": self.inputs[task]}, (
                    f"task {task} has an input of {self.inputs[task]}: {view}"
                )
        books.check_fed(books.read(self.site.database), self.parents, self.cut | self.deleted)

    def close(self, task: int) -> TaskView:
        return self.site.user("POST", f"/v1/tasks/{task}/inputs:close", None, TaskView)

    def one_patient_pilot(self) -> None:
        patient = self.registered("q", 4)
        for _ in range(50):
            reply = patient.ask(4)
            if not reply.jobs:
                return
            for job in reply.jobs:
                held = Held(patient, job)
                self.jobs.append(held)
                self.confirm(held, patient.success(held.job, "last"), 0)
