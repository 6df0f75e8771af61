"""Open loop: requests fall due at moments fixed in advance, whether or not the server keeps up."""

from __future__ import annotations

import math
import random
import select
import time
from array import array
from collections import deque
from collections.abc import Iterator

from server.bench.lives import HEARTBEAT, Book, Life, Steps
from server.bench.messages import Go, Result, World
from server.bench.requests import heartbeat_renderer, mint_tokens
from server.bench.wire import Broken, Connection, context_of, wait_until

PATIENCE_S = 30.0
"""How long after the last moment to wait for what is still unanswered."""
IDLE_S = 20.0
"""A connection that has been idle for longer is left, as clients do: the server may be about to close it."""
SAMPLE_S = 0.1
LIFE = -1


class Beat:
    """A heartbeat under way."""

    __slots__ = ("due", "measured")

    def __init__(self, due: float, measured: bool) -> None:
        self.due = due
        self.measured = measured


class OpenLoop:
    """Heartbeats and whole lives of a grid."""

    def __init__(self, order: World) -> None:
        self._order = order
        self._context = context_of(order.target)
        self._steps = Steps(order.target, order.offer, order.name, whole=True)
        self._beat = heartbeat_renderer(order.target)
        self._times, self._what = arrivals(order)
        self._jobs = array("q", beating_order(order, sum(each != LIFE for each in self._what)))
        self._tokens = mint_tokens(order.target, self._jobs)  # pilot and job have the same number
        self._idle_tokens = mint_tokens(order.target, range(order.first_idle, order.first_idle + order.idle))
        self._lives = 0
        self._connections: dict[int, Connection] = {}
        self._free: list[Connection] = []
        self._used: dict[int, float] = {}
        """When each connection became free."""
        self._poll = select.epoll()
        for _ in range(order.connections):
            self._open()

    def _open(self) -> None:
        connection = Connection(self._order.target, self._context)
        self._connections[connection.fd] = connection
        self._release(connection)
        self._poll.register(connection.fd, select.EPOLLIN)

    def run(self, go: Go) -> Result:
        """All of it, once."""
        book = Book()
        waiting: deque[int] = deque()
        backlog: list[int] = []
        times, count, position = self._times, len(self._times), 0
        last = self._order.warm_up_s + self._order.seconds
        wait_until(go.start)
        cpu, start, next_sample = time.process_time(), time.monotonic(), self._order.warm_up_s
        while True:
            now = time.monotonic() - start
            while position < count and times[position] <= now:
                waiting.append(position)
                position += 1
            while waiting and self._free:
                self._start(waiting.popleft(), book)
            under_way = len(self._connections) - len(self._free)
            if now >= next_sample and now < last:
                backlog.append(len(waiting) + under_way)
                next_sample += SAMPLE_S
            if position == count and not waiting and not under_way:
                break
            if now > last + PATIENCE_S:
                book.error(f"unanswered {PATIENCE_S:g} s after the end", len(waiting) + under_way)
                break
            pause = max(0.0, times[position] - now) if position < count else SAMPLE_S
            for fd, _ in self._poll.poll(pause):
                self._answered(self._connections[fd], start, book)
        return book.result(time.monotonic() - start, time.process_time() - cpu, backlog)

    def _start(self, position: int, book: Book) -> None:
        due, what = self._times[position], self._what[position]
        measured = due >= self._order.warm_up_s
        connection = self._free.pop()
        if time.monotonic() - self._used[connection.fd] > IDLE_S:
            self._replace(connection)
            connection = self._free.pop()
        if what == LIFE:
            connection.work = life = Life(self._idle_tokens[self._lives % len(self._idle_tokens)], due, measured)
            self._lives += 1
            request = self._steps.begin(life)
        else:
            connection.work = Beat(due, measured)
            index = what % len(self._jobs)
            request = self._beat(self._tokens[index], self._jobs[index])
        self._send(connection, request, book)

    def _send(self, connection: Connection, request: bytes, book: Book) -> None:
        try:
            connection.send(request)
        except Broken as error:
            self._broken(connection, error, book)

    def _broken(self, connection: Connection, error: Broken, book: Book) -> None:
        if connection.work is None:
            # A server may close a connection that has been idle for long, as clients know.
            self._free.remove(connection)
        else:
            book.error(f"{type(connection.work).__name__}: {error}")
        self._replace(connection)

    def _replace(self, connection: Connection) -> None:
        del self._connections[connection.fd], self._used[connection.fd]
        connection.close()
        self._open()

    def _answered(self, connection: Connection, start: float, book: Book) -> None:
        try:
            answer = connection.receive()
        except Broken as error:
            self._broken(connection, error, book)
            return
        if answer is None:
            return
        now = time.monotonic() - start
        work = connection.work
        if type(work) is Beat:
            self._beat_answered(work, *answer, now, book)
            self._release(connection)
            return
        following = self._steps.go_on(work, *answer, now, book)
        if following is None:
            self._release(connection)
        else:
            self._send(connection, following, book)

    def _release(self, connection: Connection) -> None:
        connection.work = None
        self._used[connection.fd] = time.monotonic()
        self._free.append(connection)

    @staticmethod
    def _beat_answered(work: Beat, status: int, body: bytes, now: float, book: Book) -> None:
        book.requests += 1
        # "Go on" is left out of an answer; any other instruction means that the server has forgotten a live job.
        if status != 200 or b'"instruction"' in body:
            book.error(f"heartbeat: {status} {body.decode(errors='replace')}")
        elif work.measured:
            book.latencies[HEARTBEAT].append(now - work.due)


def arrivals(order: World) -> tuple[array[float], array[int]]:
    """When what falls due, seconds after the start: two Poisson streams. The k-th heartbeat is k, a life is LIFE."""
    draw = random.Random(f"{order.seed} {order.part}")
    end = order.warm_up_s + order.seconds
    beats = [(due, index) for index, due in enumerate(_poisson(draw, order.heartbeats_per_s, end))]
    lives = [(due, LIFE) for due in _poisson(draw, order.lives_per_s, end)]
    merged = sorted(beats + lives)
    return array("d", [due for due, _ in merged]), array("q", [what for _, what in merged])


def _poisson(draw: random.Random, rate: float, end: float) -> Iterator[float]:
    if rate <= 0:
        return
    due = draw.expovariate(rate)
    while due < end:
        yield due
        due += draw.expovariate(rate)


def beating_order(order: World, wanted: int) -> Iterator[int]:
    """The first ``wanted`` pilots of this process's part, each once, strewn over the whole table."""
    stride = max(1, int(order.beating * 0.618))
    while math.gcd(stride, order.beating) != 1:
        stride += 1
    for k in range(order.part, min(order.beating, wanted * order.parts + order.part), order.parts):
        yield order.first_beating + k * stride % order.beating
