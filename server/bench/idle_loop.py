"""An idle fleet: pilots that ask again exactly when they were told to, until there is work for them."""

from __future__ import annotations

import heapq
import math
import select
import time
from array import array
from bisect import bisect_left
from collections import deque

import msgspec

from server.bench.lives import ASK, CLAIM, Book
from server.bench.messages import Go, Idle, IdleSeen, Result
from server.bench.requests import acquire_renderer, mint_tokens, submission
from server.bench.wire import Broken, Connection, IdleAnswer, context_of, wait_until

PATIENCE_S = 30.0
"""How long after the end to wait for what is still unanswered."""
TICK_S = 0.1
"""How often it is looked how far the run is."""
STEADY_S = 10.0
"""A rate is steady when so many seconds had as many requests as those before."""
STEADY_PART = 0.1
"""As many, but for this part, or what chance makes of them."""
AGAIN_S = 5.0
"""When a pilot asks again whose request failed."""
SUBMISSION = -1
"""In place of a pilot."""


class Line:
    """A connection and the pilots that share it; it is made when one of them asks, and again when the server closed it."""

    __slots__ = ("connection", "due", "pilot", "request", "used", "waiting")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.waiting: deque[tuple[float, int]] = deque()
        self.pilot: int | None = None
        self.due = 0.0
        self.request = b""
        self.used = False
        """Whether anything was answered since it was made."""


class Course:
    """How far a run is: the fleet comes, its rate settles, is measured; then there is work. Seconds from the start."""

    def __init__(self, order: Idle) -> None:
        self._order = order
        self._turns = bytearray(order.pilots)
        self._to_turn = order.pilots
        """Pilots that have not asked twice."""
        self._wanted = math.ceil(order.pilots * order.busy_share)
        self.asks: array[float] = array("d")
        self.starts: array[float] = array("d")
        self.settled: float | None = None
        self.steady = False
        self.submitted: float | None = None
        self.sent_away = 0
        self.refusal = ""

    def asked(self, pilot: int, now: float) -> None:
        """A pilot asks."""
        self.asks.append(now)
        if self._turns[pilot] < 2:
            self._turns[pilot] += 1
            self._to_turn -= self._turns[pilot] == 2

    def settle(self, now: float) -> None:
        """Begin to measure when the rate is steady, or has not become so in time."""
        if self.settled is not None:
            return
        steady = not self._to_turn and now >= self._order.coming_s + 2 * STEADY_S and self._is_steady(now)
        if steady or now >= self._order.coming_s + self._order.settle_s:
            self.settled, self.steady = now, steady

    def _is_steady(self, now: float) -> bool:
        before, between, after = (bisect_left(self.asks, now - back * STEADY_S) for back in (2, 1, 0))
        first, second = between - before, after - between
        return abs(second - first) <= max(STEADY_PART * first, 3 * math.sqrt(first + second))

    def is_measured(self, now: float) -> bool:
        """Whether the time has come for the submission."""
        return self.submitted is None and self.settled is not None and now >= self.settled + self._order.seconds

    def is_over(self, now: float) -> bool:
        """Whether enough pilots are busy, or it has taken too long."""
        if self.submitted is None:
            return False
        return len(self.starts) >= self._wanted or now >= self.submitted + self._order.limit_s

    def seen(self) -> IdleSeen:
        """All of it."""
        return IdleSeen(
            asks=self.asks.tobytes(),
            starts=self.starts.tobytes(),
            settled=self.settled,
            steady=self.steady,
            submitted=self.submitted,
            sent_away=self.sent_away,
            refusal=self.refusal,
        )


class IdleLoop:
    """The pilots of an idle fleet, and the person who submits. Runs once."""

    def __init__(self, order: Idle) -> None:
        self._order = order
        self._context = context_of(order.target)
        self._tokens = mint_tokens(order.target, range(order.first_pilot, order.first_pilot + order.pilots))
        self._acquire = acquire_renderer(order.target, order.offer, order.name)
        self._submission = submission(order.target, order.name, order.units, order.share)
        self._answer = msgspec.json.Decoder(IdleAnswer)
        self._lines = [Line() for _ in range(order.connections)]
        self._by_fd: dict[int, Line] = {}
        self._poll = select.epoll()
        self._number = 0
        self._refused = False
        self._free: deque[Line] = deque()
        """Lines on which somebody waits and nothing is under way."""
        self._person = Line()
        # Evenly over the time in which they come: already a heap.
        self._due = [(order.coming_s * pilot / order.pilots, pilot) for pilot in range(order.pilots)]
        self._book = Book()
        self._course = Course(order)
        self._begun = 0.0

    def run(self, go: Go) -> Result:
        """All of it, once."""
        wait_until(go.start)
        cpu, self._begun = time.process_time(), time.monotonic()
        course = self._course
        next_look = 0.0
        while True:
            now = self._now()
            if self._refused or course.is_over(now):
                break
            if now >= next_look:
                next_look = now + TICK_S
                course.settle(now)
            if course.is_measured(now):
                self._submit()
            self._ask_due(now)
            self._receive(now if self._free else min(self._due[0][0], next_look) if self._due else next_look)
        self._await_rest()
        result = self._book.result(self._now(), time.process_time() - cpu, [])
        return msgspec.structs.replace(result, idle=course.seen())

    def _now(self) -> float:
        return time.monotonic() - self._begun

    def _submit(self) -> None:
        line = self._person
        line.pilot, line.request = SUBMISSION, self._submission
        try:
            self._connect(line)
        except OSError as error:
            self._fail(line, f"submission: {error}")
            return
        line.due = self._course.submitted = self._now()
        self._send(line)

    def _ask_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            due, pilot = heapq.heappop(self._due)
            line = self._lines[pilot % len(self._lines)]
            if line.pilot is None and not line.waiting:
                self._ask(line, due, pilot)
            else:
                line.waiting.append((due, pilot))
        for _ in range(len(self._free)):
            line = self._free.popleft()
            if line.pilot is None and line.waiting:
                self._ask(line, *line.waiting.popleft())

    def _ask(self, line: Line, due: float, pilot: int) -> None:
        self._number += 1
        line.pilot, line.due = pilot, due
        line.request = self._acquire(self._tokens[pilot], self._number)
        self._course.asked(pilot, self._now())
        self._send(line)

    def _connect(self, line: Line) -> Connection:
        connection = line.connection = Connection(self._order.target, self._context)
        line.used = False
        self._by_fd[connection.fd] = line
        self._poll.register(connection.fd, select.EPOLLIN)
        return connection

    def _send(self, line: Line) -> None:
        try:
            (line.connection or self._connect(line)).send(line.request)
        except (Broken, OSError) as error:
            self._broken(line, error)

    def _broken(self, line: Line, error: Exception) -> None:
        used = line.used
        line.used = False
        if line.connection is not None:
            del self._by_fd[line.connection.fd]
            line.connection.close()
            line.connection = None
        if line.pilot is None:
            return  # a server may close a connection that has been idle for long, as clients know
        if used:
            self._send(line)  # and it may do so while the next request is on its way: sent again it is the same request
        else:
            self._fail(line, f"{_what(line)}: {error}")

    def _receive(self, until: float) -> None:
        for fd, _ in self._poll.poll(max(0.0, until - self._now())):
            line = self._by_fd.get(fd)
            if line is None or line.connection is None:
                continue
            try:
                answer = line.connection.receive()
            except Broken as error:
                self._broken(line, error)
                continue
            if answer is not None:
                line.used = True
                self._answered(line, *answer)

    def _answered(self, line: Line, status: int, body: bytes) -> None:
        self._book.requests += 1
        if not 200 <= status < 300:
            self._fail(line, f"{_what(line)}: {status} {body.decode(errors='replace')}")
            return
        if line.pilot == SUBMISSION:
            self._end(line)
            return
        try:
            answer = self._answer.decode(body)
        except msgspec.DecodeError as error:
            self._fail(line, f"{ASK}: {status}, but not as expected: {error}")
            return
        now, pilot = self._now(), line.pilot
        assert pilot is not None
        if answer.jobs:
            if self._course.submitted is None:
                self._book.error(f"{CLAIM}: a job before there was work")
            self._book.latencies[CLAIM].append(now - line.due)
            self._course.starts.append(now)
            for job in answer.jobs:
                for unit in job.units:
                    self._book.claims.extend((unit.unit_id, job.job_id))
        elif answer.drain or answer.retry_after_s <= 0:
            self._fail(line, f"{ASK}: neither a job nor when to ask again: {body.decode(errors='replace')}")
            return
        else:
            self._book.latencies[ASK].append(now - line.due)
            self._course.sent_away += bool(self._course.starts)
            if self._course.submitted is not None and answer.refusals:
                self._course.refusal = f"{answer.refusals[0].filter}: {answer.refusals[0].detail}"[:500]
            heapq.heappush(self._due, (now + answer.retry_after_s, pilot))
        self._end(line)

    def _fail(self, line: Line, words: str) -> None:
        """A pilot asks again later; a submission that failed ends the run."""
        self._book.error(words)
        if line.pilot == SUBMISSION:
            self._refused = True
        elif line.pilot is not None:
            heapq.heappush(self._due, (self._now() + AGAIN_S, line.pilot))
        self._end(line)

    def _end(self, line: Line) -> None:
        line.pilot = None
        if line.waiting:
            self._free.append(line)

    def _await_rest(self) -> None:
        """What is under way at the end is answered; nobody asks any more."""
        for line in self._lines:
            line.waiting.clear()
        lines = [*self._lines, self._person]
        end = self._now() + PATIENCE_S
        while (under_way := sum(line.pilot is not None for line in lines)) and self._now() < end:
            self._receive(self._now() + TICK_S)
        if under_way:
            self._book.error(f"unanswered {PATIENCE_S:g} s after the end", under_way)


def _what(line: Line) -> str:
    return "submission" if line.pilot == SUBMISSION else ASK
