"""Claiming ahead: the input of the next job comes while the present one still runs, so that no core waits for it.

A pilot asks for the next job only when the time that is left of the running one is less than what the next one's input
is going to need, as both went lately in this pilot; and gives it back when its part of the slot does not become free.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Optional

from common.clock import Clock
from common.wire import AcquireReply, Offer
from pilot.asking import Asker
from pilot.client import Server
from pilot.jobstate import Job, Phase
from pilot.loop import Loop
from pilot.slot import Slot

KEPT = 8
"""So many of the last jobs of a task say how long the next one takes."""
MARGIN = 1.25
"""Input may take so much longer than it did lately."""
MARGIN_S = 0.1
PATIENCE_S = 30.0
"""A job whose input is here waits so long for a payload that takes longer than the ones before, or three times as long
as its input took; then others may have it."""


class Pace:
    """How long payloads of each task and their input took lately, and the server's answers; in seconds."""

    def __init__(self) -> None:
        self._ran: dict[int, deque[float]] = {}
        self._fetched: dict[int, deque[float]] = {}
        self._answers: deque[float] = deque(maxlen=KEPT)

    def ran(self, task_id: int, seconds: float) -> None:
        """A payload ended well."""
        self._ran.setdefault(task_id, deque(maxlen=KEPT)).append(seconds)

    def fetched(self, task_id: int, seconds: float) -> None:
        """The input of a job is here."""
        self._fetched.setdefault(task_id, deque(maxlen=KEPT)).append(seconds)

    def answered(self, seconds: float) -> None:
        """The server has answered a question for jobs."""
        self._answers.append(seconds)

    def run_s(self, task_id: int) -> Optional[float]:
        """How long a payload of a task runs: the lower quartile, as one that ends early leaves its cores idle."""
        lately = sorted(self._ran.get(task_id, ()))
        return lately[len(lately) // 4] if lately else None

    def lead_s(self, task_id: int) -> float:
        """How long before its start a job has to be asked for."""
        return MARGIN * (self.input_s(task_id) + max(self._answers, default=0.0)) + MARGIN_S

    def input_s(self, task_id: int) -> float:
        """How long the input of a job takes at the most."""
        return max(self._fetched.get(task_id, ()), default=0.0)


class Ahead:
    """Asks for jobs that begin later. All methods and callbacks are for the loop's thread, but ``remember``.

    ``may_ask`` answers whether more jobs may be taken at all; ``on_reply`` takes what the server gave; ``give_back`` is
    told of a job that has waited too long. ``request_id`` is a question that an earlier pilot here put, and that is not
    answered yet.
    """

    def __init__(
        self,
        loop: Loop,
        server: Server,
        clock: Clock,
        rng: random.Random,
        *,
        may_ask: Callable[[], bool],
        remember: Callable[[Optional[str]], None],
        on_reply: Callable[[AcquireReply], None],
        on_not_accepted: Callable[[], None],
        give_back: Callable[[int, str], None],
        request_id: Optional[str],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._may_ask = may_ask
        self._on_reply = on_reply
        self._give_back = give_back
        self._pace = Pace()
        self._slot: Optional[Slot] = None
        self._since: dict[int, float] = {}
        """When each job came to the phase that it is in."""
        self._running: dict[int, int] = {}
        """The tasks of the running jobs."""
        self._due: deque[int] = deque()
        """Running jobs behind which another one should be claimed."""
        self._asked = 0.0
        self._asker = Asker(
            loop,
            server,
            self._offer,
            remember,
            self._answered,
            on_not_accepted,
            lambda: None,
            rng,
            request_id,
            key="ahead",
            ahead=True,
        )

    @property
    def busy(self) -> bool:
        """Whether a question is on its way."""
        return self._asker.busy

    @property
    def open(self) -> bool:
        """Whether a question was put and not answered yet: there may be a job behind it."""
        return self._asker.open

    def start(self, slot: Slot) -> None:
        """The slot is known; what an earlier pilot here asked for and never heard of is asked for again."""
        self._slot = slot
        if self._asker.open:
            self._asker.ask_now()

    def stop(self) -> None:
        """Ask no more."""
        self._due.clear()
        self._asker.stop()

    def give_up(self) -> None:
        """Do not wait for the answer that is on its way any more."""
        self._asker.give_up()

    def changed(self, before: Optional[Job], job: Job) -> None:
        """A job has come to another phase."""
        now, job_id, task_id = self._clock.monotonic(), job.job_id, job.assignment.task_id
        lasted_s = now - self._since.get(job_id, now)
        self._since[job_id] = now
        self._loop.cancel(("waits", job_id))
        if before is not None and before.phase is Phase.STAGING_IN and job.phase in (Phase.STAGED, Phase.RUNNING):
            self._pace.fetched(task_id, lasted_s)
        if before is not None and before.phase is Phase.RUNNING and job.failure is None:
            self._pace.ran(task_id, lasted_s)
        if job.phase is Phase.STAGED:
            patience_s = max(PATIENCE_S, 3 * self._pace.input_s(task_id))
            reason = f"the job before it runs longer than expected: waited {patience_s:.0f} s for its part of the slot"
            self._loop.after(("waits", job_id), patience_s, partial(self._give_back, job_id, reason))
        if job.phase is Phase.RUNNING:
            self._running[job_id] = task_id
            self._plan(job_id, task_id)
        else:
            self._running.pop(job_id, None)
            self._loop.cancel(("ahead", job_id))
        if job.phase is Phase.DONE:
            self._since.pop(job_id, None)

    def _plan(self, job_id: int, task_id: int) -> None:
        run_s = self._pace.run_s(task_id)
        if run_s is not None:
            self._loop.after(("ahead", job_id), run_s - self._pace.lead_s(task_id), partial(self._ask, job_id))

    def _ask(self, job_id: int) -> None:
        self._due.append(job_id)
        self._asker.ask_now()

    def _offer(self) -> Optional[tuple[Offer, float]]:
        slot = self._slot
        if slot is None or not self._may_ask():
            return None
        self._asked = self._clock.monotonic()
        while self._due:
            offer = self._behind(slot, self._due[0])
            if offer is not None:
                return offer, 0.0
            self._due.popleft()
        free = slot.free() if self._asker.open else None
        return None if free is None else (free, 0.0)

    def _behind(self, slot: Slot, job_id: int) -> Optional[Offer]:
        task_id = self._running.get(job_id)
        if task_id is None:
            return None
        ran_s = self._asked - self._since[job_id]
        return slot.offer_behind(job_id, max(0.0, (self._pace.run_s(task_id) or 0.0) - ran_s))

    def _answered(self, reply: AcquireReply) -> None:
        self._pace.answered(self._clock.monotonic() - self._asked)
        if self._due:
            self._due.popleft()
        self._on_reply(reply)
        if self._due:
            self._asker.ask_now()
