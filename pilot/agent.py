"""The pilot: registers, asks for jobs, runs them, reports, and leaves.

The agent owns the loop and decides; :mod:`pilot.jobs` runs the jobs, :mod:`pilot.heart` beats, :mod:`pilot.asking` asks.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Optional

from common.clock import Clock
from common.errors import ErrorCode, PilotageError
from common.plugins import version
from common.states import JobState
from common.wire import (
    AcquireReply,
    Assignment,
    HeartbeatReply,
    Instruction,
    JobReport,
    NodeInfo,
    Offer,
    PeekOrder,
    PilotEnd,
    PilotGrant,
    PilotRegistration,
    Queue,
)
from pilot.ahead import Ahead
from pilot.asking import Asker
from pilot.calls import ask
from pilot.client import CallRefused, NotAccepted, Server, ServerError
from pilot.config import PilotConfig
from pilot.deliver import Delivery
from pilot.heart import Heart
from pilot.jobs import Jobs, JobWork, backoff_s
from pilot.jobstate import Event, Forget, GiveBack, Job, KillRequested, PartGiven, Phase, SlotTaken, TimeIsUp
from pilot.loop import Lane, Loop
from pilot.slot import Slot, clipped
from pilot.spool import SpooledReport
from pilot.workdir import Identity, WorkDir

logger = logging.getLogger(__name__)

AWAY_S = 600.0
"""An idle pilot that gets no answer for so long leaves."""
REPORT_WITHIN_S = 11.0
"""After SIGTERM: so long a job may take for its log and its outputs before it is reported as it is."""
LEAVE_WITHIN_S = 15.0
"""After SIGTERM: the pilot says farewell, whatever is still under way."""
LAST_ANSWER_S = 2.0
"""After SIGTERM: so long an answer to a question for jobs is waited for; it may still bring one to hand back."""
FAREWELL_S = 4.0
"""How long the farewell may take."""


class ExitCode(IntEnum):
    """Exit codes of ``pilotage pilot run``."""

    DONE = 0
    """It left in good order."""
    FAILED = 1
    """A mistake inside the pilot, or the slot cannot be used; the pilot log says which."""
    WRONG_USAGE = 2
    """The command line or the configuration must be corrected."""
    UNREACHABLE = 3
    """The server could not be reached for as long as the pilot lived, or not for a long time when it was idle."""
    NOT_REGISTERED = 4
    """The server refuses the worker's secret: it is unknown, used up, expired or revoked."""
    REJECTED = 5
    """The server does not accept this pilot any more: it was declared lost, or its worker was revoked."""
    STOPPED = 143
    """Ended by SIGTERM, SIGINT or the like, after reporting."""


@dataclass(frozen=True)
class Session:
    """What the jobs of a registered pilot share. ``wall_left_s`` answers the slot's wall time left (None: not limited)."""

    grant: PilotGrant
    server: Server
    wall_left_s: Callable[[], Optional[float]]


MakeWork = Callable[[Session, Assignment, Callable[[Event], None]], JobWork]
Probe = Callable[[Queue], Offer]


@dataclass(frozen=True)
class Surroundings:
    """All that an agent needs of the world.

    ``probe`` looks at the slot (its ``wall_s`` is what the batch system says is left; zero: it says nothing);
    ``node_info`` describes the machine; ``make_work`` carries out the jobs' actions; ``deliver`` delivers a spooled report;
    ``log_tail`` gives the end of the pilot's log; ``show`` answers what people want to see of a job.
    """

    server: Server
    work_dir: WorkDir
    clock: Clock
    rng: random.Random
    probe: Probe
    make_work: MakeWork
    deliver: Callable[[SpooledReport], Delivery]
    log_tail: Callable[[], str]
    show: Callable[[int, Sequence[PeekOrder]], None] = lambda _job_id, _orders: None
    node_info: Optional[NodeInfo] = None


class Agent:
    """One pilot's life, from registration to farewell. Make it, :meth:`run` it once."""

    def __init__(self, config: PilotConfig, server_url: str, worker: str, around: Surroundings) -> None:
        self._config = config
        self._around = around
        self._server = around.server
        self._loop = Loop(around.clock)
        self._identity: Identity = around.work_dir.identity(server_url, worker)
        self._control = Lane("control")
        self._began = around.clock.monotonic()
        self._jobs = Jobs(self._loop, self._work_for, self._on_change, around.rng, config.watch_s)
        self._heart = Heart(
            self._loop, self._server, self._held, self._on_beat, self._on_rejected, around.rng, around.clock
        )
        self._asker = Asker(
            self._loop,
            self._server,
            self._offer,
            self._remember_request,
            self._on_reply,
            self._heart.soon,
            self._on_unanswered,
            around.rng,
            self._identity.request_id,
        )
        self._ahead = Ahead(
            self._loop,
            self._server,
            around.clock,
            around.rng,
            may_ask=self._may_ask,
            remember=self._remember_ahead,
            on_reply=self._on_ahead,
            on_not_accepted=self._heart.soon,
            give_back=lambda job_id, reason: self._jobs.handle(job_id, GiveBack(reason)),
            request_id=self._identity.ahead_id,
        )
        self._slot: Optional[Slot] = None
        self._session: Optional[Session] = None
        self._undelivered: set[int] = set()
        self._remembering = threading.Lock()
        self._taken = 0
        self._idle_since = self._began
        self._attempts = 0
        self._leaving: Optional[tuple[str, ExitCode, Optional[ErrorCode]]] = None
        self._draining = False
        self._farewell = False
        self._exit = ExitCode.FAILED

    def run(self) -> ExitCode:
        """Live. Returns when the pilot has left; what nobody foresaw is reported to the server and becomes FAILED."""
        self._loop.post(self._register)
        try:
            self._loop.run()
        except Exception as error:
            logger.exception("the pilot failed")
            self._last_words(error)
            return ExitCode.FAILED
        return self._exit

    def stop(self, signal_name: str) -> None:
        """The slot is being taken away. From any thread, and from signal handlers."""
        self._loop.post(partial(self._on_stop, signal_name))

    # ------------------------------------------------------------ registration

    def _register(self) -> None:
        registration = PilotRegistration(
            worker=self._identity.worker,
            nonce=self._identity.nonce,
            host=socket.gethostname()[:255],
            node=self._config.node,
            version=version(),
            node_info=self._around.node_info,
        )
        if self._lifetime_left_s() == 0.0:
            self._begin_leaving("the server could not be reached in time", ExitCode.UNREACHABLE)
            return
        ask(self._loop, self._control, partial(self._server.register, registration), self._on_grant, self._not_granted)

    def _not_granted(self, error: ServerError) -> None:
        if self._leaving is not None:
            return
        if isinstance(error, (NotAccepted, CallRefused)):
            logger.error("%d %s: %s", ErrorCode.REGISTRATION_FAILED, ErrorCode.REGISTRATION_FAILED.name, error)
            self._begin_leaving(f"registration refused: {error}", ExitCode.NOT_REGISTERED)
            return
        self._attempts += 1
        delay_s = backoff_s(self._attempts, self._around.rng)
        left_s = self._lifetime_left_s()
        delay_s = delay_s if left_s is None else min(delay_s, left_s)
        logger.warning("not registered yet, again in %.1f s: %s", delay_s, error)
        self._loop.after("register", delay_s, self._register)

    def _on_grant(self, grant: PilotGrant) -> None:
        logger.info("pilot %d of worker %s in queue %s", grant.pilot_id, self._identity.worker, grant.queue.name)
        self._around.work_dir.spool.save_token(grant.pilot_id, grant.token)
        self._session = Session(grant, self._server, self._wall_left_s)
        if self._leaving is not None:
            self._leave_if_done()
            return
        wanted = self._config.queue
        if wanted and wanted != grant.queue.name:
            detail = f"this pilot was started for queue {wanted}, but its worker is of queue {grant.queue.name}"
            self._begin_leaving(detail, ExitCode.WRONG_USAGE, ErrorCode.BAD_CONFIGURATION)
            return
        self._heart.start(grant.settings.heartbeat_s)
        left_s = self._lifetime_left_s()
        if left_s is not None:
            self._loop.after("lifetime", left_s, self._leave_if_done)
        self._control.submit(partial(self._probe, grant.queue))

    def _probe(self, queue: Queue) -> None:
        """On the control lane: looking at the slot takes a moment."""
        try:
            offer = self._around.probe(queue)
        except (PilotageError, OSError) as error:
            code = error.code if isinstance(error, PilotageError) else ErrorCode.SETUP_FAILED
            reason = f"the slot cannot be used: {error}"
            self._loop.post(partial(self._begin_leaving, reason, ExitCode.FAILED, code))
            return
        self._loop.post(partial(self._on_slot, offer))

    def _on_slot(self, offer: Offer) -> None:
        session = self._session
        if self._leaving is not None or session is None:
            return
        whole = clipped(offer, session.grant.queue, session.grant.shape)
        # What the batch system says is left counts from now; the queue's limit holds for the pilot's whole life.
        limits = [self._around.clock.monotonic() + offer.wall_s] if offer.wall_s else []
        limits += [self._began + session.grant.queue.wall_s] if session.grant.queue.wall_s else []
        self._slot = Slot(whole, self._around.clock, min(limits) - self._config.end_margin_s if limits else None)
        logger.info("the slot: %s", whole)
        self._idle_since = self._around.clock.monotonic()
        self._deliver_spooled()
        self._ahead.start(self._slot)
        self._asker.ask_now()

    # ------------------------------------------------------------ jobs

    def _offer(self) -> Optional[tuple[Offer, float]]:
        """What to offer and how long the question may wait; None when no job can be taken now."""
        slot, session = self._slot, self._session
        if slot is None or session is None:
            return None
        if not self._may_ask():
            slot.answered()
            self._loop.post(self._place_waiting)
            self._loop.post(self._leave_if_done)
            return None
        offer = slot.offer()
        return None if offer is None else (offer, session.grant.settings.acquire_wait_s)

    def _may_ask(self) -> bool:
        """Whether another job may be taken at all."""
        if self._slot is None or self._leaving is not None or self._enough():
            return False
        # With so many held, uploads or the server are stuck: do not pile up work.
        return len(self._jobs.all) < 2 * self._slot.whole.cores + 2

    def _enough(self) -> str:
        """Why no more jobs are taken, for good; empty when they are."""
        config = self._config
        if config.max_jobs and self._taken >= config.max_jobs:
            return f"{self._taken} jobs taken, which is max_jobs"
        return self._time_over()

    def _time_over(self) -> str:
        """Why there is no time for another payload; empty when there is."""
        config = self._config
        if self._lifetime_left_s() == 0.0:
            return f"lifetime of {config.lifetime_s:.0f} s is over"
        left_s = self._wall_left_s()
        if left_s is not None and left_s < config.min_wall_s:
            return f"only {left_s:.0f} s of wall time are left"
        return ""

    def _lifetime_left_s(self) -> Optional[float]:
        if not self._config.lifetime_s:
            return None
        return max(0.0, self._began + self._config.lifetime_s - self._around.clock.monotonic())

    def _wall_left_s(self) -> Optional[float]:
        """Wall time that a payload may still use."""
        return self._slot.wall_left_s() if self._slot is not None else None

    def _remember_request(self, request_id: Optional[str]) -> None:
        with self._remembering:
            self._identity.request_id = request_id
            self._around.work_dir.remember(self._identity)

    def _remember_ahead(self, request_id: Optional[str]) -> None:
        with self._remembering:
            self._identity.ahead_id = request_id
            self._around.work_dir.remember(self._identity)

    def _on_reply(self, reply: AcquireReply) -> None:
        assert self._slot is not None
        self._slot.answered()
        for assignment in self._new(reply):
            self._jobs.take_up(assignment, self._slot.take(assignment))
        self._place_waiting()
        if reply.drain:
            self._drain()
        if reply.jobs:
            if self._leaving is not None and self._leaving[1] is ExitCode.STOPPED:
                self._jobs.handle_all(SlotTaken())
            self._asker.ask_now()
            return
        for refusal in reply.refusals[:10]:
            logger.debug("task %d gave nothing: %s: %s", refusal.task_id, refusal.filter, refusal.detail)
        idle_s, limit_s = self._idle_s()
        if not self._jobs.all and idle_s >= limit_s:
            self._begin_leaving(f"no job for {idle_s:.0f} s", ExitCode.DONE)
        self._leave_if_done()
        wait_s = reply.retry_after_s or 1.0
        self._asker.ask_in(wait_s if self._jobs.all else min(wait_s, max(0.1, limit_s - idle_s)))

    def _on_ahead(self, reply: AcquireReply) -> None:
        """A job was claimed ahead: its part may be free already."""
        assert self._slot is not None
        for assignment in self._new(reply):
            self._slot.expect(assignment)
            self._jobs.take_up(assignment, None)
        self._place_waiting()
        if self._leaving is not None and self._leaving[1] is ExitCode.STOPPED:
            self._jobs.handle_all(SlotTaken())
        self._leave_if_done()

    def _new(self, reply: AcquireReply) -> list[Assignment]:
        """Those of the jobs that are not held yet: an answer may be that to a question that was put before."""
        new = [assignment for assignment in reply.jobs if not self._jobs.holds(assignment.job_id)]
        self._taken += len(new)
        return new

    def _place_waiting(self) -> None:
        """Give parts that are free to jobs that were claimed ahead; what cannot begin any more goes back."""
        slot = self._slot
        if slot is None:
            return
        over = self._time_over() or ("the pilot drains" if self._draining else "")
        for job in [job for job in self._jobs.all if job.waits]:
            part = None if over else slot.fit(job.assignment)
            if over:
                self._jobs.handle(job.job_id, GiveBack(over))
            elif part is not None:
                self._jobs.handle(job.job_id, PartGiven(part))

    def _on_unanswered(self) -> None:
        """An idle pilot does not wait for ever for a server that is gone."""
        idle_s, limit_s = self._idle_s()
        if not self._jobs.all and not self._undelivered and idle_s >= max(limit_s, AWAY_S):
            self._begin_leaving(f"no answer from the server, and no job for {idle_s:.0f} s", ExitCode.UNREACHABLE)

    def _idle_s(self) -> tuple[float, float]:
        """How long there was nothing to do, and how long that may be."""
        settings_s = self._session.grant.settings.idle_exit_s if self._session is not None else 0.0
        limit_s = settings_s if self._config.idle_exit_s is None else self._config.idle_exit_s
        return self._around.clock.monotonic() - self._idle_since, limit_s

    def _work_for(self, assignment: Assignment, post: Callable[[Event], None]) -> JobWork:
        assert self._session is not None
        return self._around.make_work(self._session, assignment, post)

    def _on_change(self, before: Optional[Job], job: Job) -> None:
        """A job changed its phase, or its folder is gone."""
        assert self._slot is not None
        self._ahead.changed(before, job)
        freed = not job.holds_slot and before is not None and before.holds_slot
        if freed:
            self._slot.payload_over(job.job_id)
            self._place_waiting()
        if job.phase is Phase.DONE:
            self._slot.job_over(job.job_id)
        elif before is None or before.reported != job.reported:
            self._heart.soon()
        if not self._jobs.all:
            self._idle_since = self._around.clock.monotonic()
        if freed or job.phase is Phase.DONE:
            self._asker.ask_now()
        self._leave_if_done()

    # ------------------------------------------------------------ heartbeats

    def _held(self) -> list[JobReport]:
        jobs = [JobReport(job.job_id, job.reported, job.metrics) for job in self._jobs.all]
        return jobs + [JobReport(job_id, JobState.HOLDING) for job_id in sorted(self._undelivered)]

    def _on_beat(self, reply: HeartbeatReply) -> None:
        if reply.token and self._session is not None:
            self._around.work_dir.spool.save_token(self._session.grant.pilot_id, reply.token)
        for told in reply.jobs:
            if told.instruction is Instruction.KILL:
                self._jobs.handle(told.job_id, KillRequested(told.reason))
            elif told.instruction is Instruction.UNKNOWN:
                self._jobs.handle(told.job_id, Forget())
            elif told.peeks:
                self._around.show(told.job_id, told.peeks)
        if reply.drain:
            self._drain()

    def _drain(self) -> None:
        """End what runs, and nothing more."""
        self._draining = True
        self._begin_leaving("the server told this pilot to drain", ExitCode.DONE)
        self._place_waiting()

    def _on_rejected(self, reason: str) -> None:
        """The server does not accept this pilot any more: its jobs are others' by now."""
        logger.error("the server does not accept this pilot any more: %s", reason)
        self._heart.stop()
        self._begin_leaving(f"rejected by the server: {reason}", ExitCode.REJECTED)
        self._jobs.handle_all(Forget())
        self._leave_if_done()

    # ------------------------------------------------------------ spooled reports

    def _deliver_spooled(self, attempt: int = 1) -> None:
        session = self._session
        entries = self._around.work_dir.spool.reports()
        current = {job.job_id for job in self._jobs.all}
        mine = [entry for entry in entries if session is not None and entry.pilot_id == session.grant.pilot_id]
        waiting = [entry for entry in entries if entry not in mine or entry.job_id not in current]
        self._undelivered = {entry.job_id for entry in mine if entry.job_id not in current}
        if waiting:
            self._control.submit(partial(self._deliver, waiting, attempt))

    def _deliver(self, entries: list[SpooledReport], attempt: int) -> None:
        """On the control lane."""
        left = {entry.job_id for entry in entries if self._around.deliver(entry) is Delivery.WAITING}
        self._loop.post(partial(self._delivered, left, attempt))

    def _delivered(self, left: set[int], attempt: int) -> None:
        self._undelivered &= left
        self._leave_if_done()
        if left and self._leaving is None:
            delay_s = backoff_s(attempt, self._around.rng)
            self._loop.after("deliver", delay_s, partial(self._deliver_spooled, attempt + 1))

    # ------------------------------------------------------------ the end

    def _on_stop(self, signal_name: str) -> None:
        if self._leaving is not None and self._leaving[1] is ExitCode.STOPPED:
            return
        logger.warning("%s: ending all jobs", signal_name)
        self._leaving = None
        self._server.hurry()
        self._begin_leaving(f"ended by {signal_name}", ExitCode.STOPPED, ErrorCode.SIGTERM)
        self._loop.after("report", REPORT_WITHIN_S, partial(self._jobs.handle_all, TimeIsUp()))
        self._loop.after("leave", LEAVE_WITHIN_S, self._say_farewell)
        self._loop.after("answer", LAST_ANSWER_S, self._leave_unanswered)
        self._jobs.handle_all(SlotTaken(signal_name))
        self._leave_if_done()

    def _leave_unanswered(self) -> None:
        self._asker.give_up()
        self._ahead.give_up()
        self._leave_if_done()

    def _begin_leaving(self, reason: str, code: ExitCode, error: Optional[ErrorCode] = None) -> None:
        """Take no more jobs; leave when those at hand have ended. The first reason counts."""
        if self._leaving is None:
            logger.info("leaving: %s", reason)
            self._leaving = (reason, code, error)
            self._asker.stop()
            self._ahead.stop()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if not self._jobs.idle or self._asker.busy or self._ahead.busy:
            return
        if self._leaving is None and self._session is not None and self._enough():
            self._begin_leaving(self._enough(), ExitCode.DONE)
        elif self._leaving is not None and (self._leaving[1] is not ExitCode.DONE or not self._undelivered):
            self._say_farewell()

    def _say_farewell(self) -> None:
        if self._farewell or self._leaving is None:
            return
        self._farewell = True
        reason, self._exit, error = self._leaving
        self._heart.stop()
        logger.info("farewell: %s", reason)
        if self._session is None or self._exit is ExitCode.REJECTED or self._jobs.all or self._undelivered:
            # With a report still to be delivered the server must not hear that this pilot is over.
            self._loop.end()
            return
        end = PilotEnd(reason=reason, error_code=error, log_tail=self._around.log_tail() if error else "")
        lane = Lane("farewell")  # of its own: the others may hang
        ask(self._loop, lane, partial(self._server.end, self._session.grant.pilot_id, end), self._gone, self._gone)
        self._loop.after("farewell", FAREWELL_S, self._loop.end)

    def _gone(self, answer: Optional[ServerError]) -> None:
        if answer is None and not self._asker.open and not self._ahead.open:
            self._around.work_dir.forget()
        self._around.work_dir.spool.remove_idle_tokens()
        self._loop.end()

    def _last_words(self, error: Exception) -> None:
        """Tell the server of a mistake inside the pilot; best effort, the heartbeat's silence tells it too."""
        if self._session is None:
            return
        detail = f"{type(error).__name__}: {error}"
        end = PilotEnd(detail[:500], ErrorCode.INTERNAL_PILOT_PROBLEM, self._around.log_tail())
        self._server.hurry()
        try:
            self._server.end(self._session.grant.pilot_id, end)
        except ServerError as failed:
            logger.error("the server could not be told: %s", failed)
