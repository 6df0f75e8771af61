"""One job's life as its pilot sees it, step by step, and the book in which a load process writes what it saw."""

from __future__ import annotations

from array import array

import msgspec

from common.wire import Offer
from server.bench.messages import Result, Target
from server.bench.requests import acquire_renderer, finish_renderer, record_renderer
from server.bench.wire import ClaimAnswer, RecordAnswer

MAX_EXAMPLES = 5
CLAIM, RECORD, CONFIRM, HEARTBEAT = "claim", "record", "confirm", "heartbeat"
RESERVE, RELEASE = "reserve", "release"
ASK = "ask"
"""A claim of an idle pilot that brought nothing."""
KINDS = (CLAIM, RECORD, CONFIRM, HEARTBEAT, RESERVE, RELEASE, ASK)


class Life:
    """Where one life has got to. ``due`` is when its present step was to begin; only measured ones are timed."""

    __slots__ = ("due", "job_id", "measured", "step", "token", "unit_id", "worker")

    def __init__(self, token: str, due: float, measured: bool = True) -> None:
        self.token = token
        self.due = due
        self.measured = measured
        self.step = CLAIM
        self.job_id = 0
        self.unit_id = 0
        self.worker = ""


class Book:
    """Latencies by kind, claims, lives and errors of one run."""

    def __init__(self) -> None:
        self.latencies = {kind: array("d") for kind in KINDS}
        self.claims = array("q")
        self.requests = 0
        self.lives = 0
        self.empty = 0
        self.errors = 0
        self.examples: list[str] = []

    def error(self, words: str, count: int = 1) -> None:
        """Something failed; the first few are kept in words."""
        self.errors += count
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(words[:500])

    def result(self, elapsed_s: float, cpu_s: float, backlog: list[int]) -> Result:
        """All of it, for the benchmark's main process."""
        return Result(
            elapsed_s=elapsed_s,
            cpu_s=cpu_s,
            requests=self.requests,
            lives=self.lives,
            empty=self.empty,
            errors=self.errors,
            examples=self.examples,
            latencies={kind: found.tobytes() for kind, found in self.latencies.items() if found},
            claims=self.claims.tobytes(),
            backlog=backlog,
        )


class Steps:
    """Renders a life's requests, and reads as much of the answers as the next one needs."""

    def __init__(self, target: Target, offer: Offer, name: str, *, whole: bool) -> None:
        self._acquire = acquire_renderer(target, offer, name)
        self._record = record_renderer(target)
        self._finish = finish_renderer(target)
        self._claimed = msgspec.json.Decoder(ClaimAnswer)
        self._recorded = msgspec.json.Decoder(RecordAnswer)
        self._whole = whole
        self._number = 0

    def begin(self, life: Life) -> bytes:
        """The claim."""
        self._number += 1
        return self._acquire(life.token, self._number)

    def go_on(self, life: Life, status: int, body: bytes, now: float, book: Book) -> bytes | None:
        """Write the answer to the present step down; the next request, None when the life is over."""
        book.requests += 1
        if not 200 <= status < 300:
            book.error(f"{life.step}: {status} {body.decode(errors='replace')}")
            return None
        if life.measured:
            book.latencies[life.step].append(now - life.due)
        life.due = now
        try:
            if life.step == CLAIM:
                return self._claim_answered(life, body, book)
            if life.step == RECORD:
                place = self._recorded.decode(body).destinations[0]
                life.step = CONFIRM
                return self._finish(life.token, life.job_id, life.unit_id, place)
        except msgspec.DecodeError as error:
            book.error(f"{life.step}: {status}, but not as expected: {error}")
            return None
        book.lives += life.measured
        return None

    def _claim_answered(self, life: Life, body: bytes, book: Book) -> bytes | None:
        jobs = self._claimed.decode(body).jobs
        if not jobs:
            book.empty += 1
            return None
        for job in jobs:
            for unit in job.units:
                book.claims.extend((unit.unit_id, job.job_id))
        if not self._whole:
            return None
        life.step, life.job_id, life.unit_id = RECORD, jobs[0].job_id, jobs[0].units[0].unit_id
        return self._record(life.token, life.job_id)
