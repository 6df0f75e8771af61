"""Closed loop: a fixed number of connections, each of which asks again as soon as it was answered."""

from __future__ import annotations

import select
import time

from server.bench.files import FileSteps, worker_tokens
from server.bench.lives import Book, Life, Steps
from server.bench.messages import Claims, Files, Go, Result
from server.bench.requests import mint_tokens
from server.bench.wire import Broken, Connection, context_of, wait_until

PATIENCE_S = 60.0
"""How long to wait for any answer."""


class ClosedLoop:
    """Claims, or whole lives; every connection acts as several pilots in turn. Or files of projects, each connection a
    worker. May run several times."""

    def __init__(self, order: Claims | Files) -> None:
        self._order = order
        self._context = context_of(order.target)
        self._steps: Steps | FileSteps
        if isinstance(order, Files):
            self._steps = FileSteps(order)
            tokens = worker_tokens(order.target, order.connections)
        else:
            self._steps = Steps(order.target, order.offer, order.name, whole=order.lives)
            tokens = mint_tokens(order.target, range(order.first_pilot, order.first_pilot + order.pilots))
        self._connections: dict[int, Connection] = {}
        self._tokens: dict[int, list[str]] = {}
        self._turns: dict[int, int] = {}
        self._poll = select.epoll()
        for index in range(order.connections):
            self._open(tokens[index :: order.connections] or tokens)

    def _open(self, tokens: list[str]) -> Connection:
        connection = Connection(self._order.target, self._context)
        self._connections[connection.fd] = connection
        self._tokens[connection.fd] = tokens
        self._turns[connection.fd] = 0
        self._poll.register(connection.fd, select.EPOLLIN)
        return connection

    def run(self, go: Go) -> Result:
        """One run: until its time is over, so many claims were made, or nothing is left to claim."""
        book = Book()
        left = go.claims or 2**62
        wait_until(go.start)
        cpu, start = time.process_time(), time.monotonic()
        end = start + go.seconds if go.seconds else float("inf")
        under_way = 0
        for connection in list(self._connections.values())[:left]:
            self._start(connection)
            under_way, left = under_way + 1, left - 1
        while under_way:
            found = self._poll.poll(PATIENCE_S)
            if not found:
                book.error(f"no answer in {PATIENCE_S:g} s", under_way)
                break
            for fd, _ in found:
                free = self._answered(self._connections[fd], book)
                if free is None:
                    continue
                if left <= 0 or book.empty or time.monotonic() >= end:
                    under_way -= 1
                else:
                    self._start(free)
                    left -= 1
        return book.result(time.monotonic() - start, time.process_time() - cpu, [])

    def _start(self, connection: Connection) -> None:
        tokens, turn = self._tokens[connection.fd], self._turns[connection.fd]
        self._turns[connection.fd] = turn + 1
        life = connection.work = Life(tokens[turn % len(tokens)], time.monotonic())
        try:
            connection.send(self._steps.begin(life))
        except Broken:
            # The server may end a connection that was idle between two runs: nothing is lost by a fresh one.
            fresh = self._replace(connection)
            fresh.work = life
            fresh.send(self._steps.begin(life))

    def _answered(self, connection: Connection, book: Book) -> Connection | None:
        """A connection whose life is over; None while its next step is on its way."""
        try:
            answer = connection.receive()
            if answer is None:
                return None
            following = self._steps.go_on(connection.work, *answer, time.monotonic(), book)
            if following is None:
                return connection
            connection.send(following)
        except Broken as error:
            book.error(f"{connection.work.step}: {error}")
            return self._replace(connection)
        return None

    def _replace(self, connection: Connection) -> Connection:
        tokens = self._tokens.pop(connection.fd)
        del self._connections[connection.fd], self._turns[connection.fd]
        connection.close()
        return self._open(tokens)
