"""Harvester's direct jobs over a CE in memory: whatever is cut off, each job is there once, and not knowing changes nothing."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.clock import FrozenClock
from common.http import ProblemError, Unreachable
from common.problem import Problem
from common.proxies import sign_proxy
from common.states import WorkerState
from common.wire.direct import (
    DirectFile,
    DirectInstruction,
    DirectOrder,
    DirectOutcome,
    DirectPlace,
    DirectReport,
    Language,
    ProxySigned,
)
from harvester.backends.arc_rest import TooMuch
from harvester.backends.base import BackendError, StatusOutcome, SubmitOutcome, SubmitResult, WorkerRef
from harvester.config import HarvesterConfig, QueueConfig
from harvester.direct.book import Book
from harvester.direct.lane import DirectLane
from harvester.direct.proxies import PART_S
from harvester.outcome import Outcome
from harvester.store import Store
from tests.services.certificates import Authority

W, D = WorkerState, DirectInstruction
MARKS = [f"mark-{n:04d}" for n in range(3)]


class Killed(BaseException):
    """What ``kill -9`` is here: nothing goes on behind it."""


class Server:
    """A server that hands the orders out until they are reported as submitted, and says what is to be done."""

    def __init__(self, authority: Authority, clock: FrozenClock) -> None:
        self.person = authority.person("Alice")
        self.clock = clock
        self.orders = [
            DirectOrder(
                mark, n, n, "q", "&(executable=x)", Language.XRSL, 1, [DirectFile("a/run.sh", 4, "")] if n == 0 else []
            )
            for n, mark in enumerate(MARKS)
        ]
        self.reports: dict[str, DirectReport] = {}
        self.todo: dict[str, DirectInstruction] = {}
        self.results: dict[tuple[str, str], bytes] = {}
        self.refuses_results = 0
        self.lost_inputs = False
        self.down = False
        self.no_proxy = ""
        self.signed = 0
        self.places: Sequence[DirectPlace] = ()

    def direct_acquire(self, places: Sequence[DirectPlace], most: int) -> list[DirectOrder]:
        self._check()
        self.places = places
        planned = (W.PLANNED, W.SUBMITTING)
        return [each for each in self.orders if self._state(each.mark) in planned]

    def _state(self, mark: str) -> WorkerState:
        return self.reports[mark].state if mark in self.reports else W.PLANNED

    def direct_report(self, reports: Sequence[DirectReport]) -> list[DirectOutcome]:
        self._check()
        self.reports.update({each.mark: each for each in reports})
        outcomes = []
        for each in reports:
            todo = self.todo.get(each.mark, D.NONE)
            if todo is D.CLEAN and each.cleaned:
                todo = D.FORGET
            if todo is D.FETCH and (each.results or each.left_out):
                todo = D.NONE
            outcomes.append(DirectOutcome(each.mark, True, instruction=todo))
        return outcomes

    def direct_proxy(self, proxy_id: int, csr: str) -> ProxySigned:
        self._check()
        if self.no_proxy:
            return ProxySigned(proxy_id, reason=self.no_proxy)
        self.signed += 1
        credential = (self.person.certificate_pem + self.person.key_pem).decode()
        made = sign_proxy(csr, credential, 1000, self.clock.now())
        return ProxySigned(proxy_id, made.chain, made.life_s, "s")

    def direct_input(self, mark: str, path: str, target: Path) -> None:
        self._check()
        if self.lost_inputs:
            raise ProblemError(404, Problem("gone", 404))
        target.write_bytes(f"{mark} {path}".encode())

    def direct_result(self, mark: str, path: str, source: Path) -> None:
        self._check()
        if self.refuses_results:
            raise ProblemError(self.refuses_results, Problem("no", self.refuses_results, detail="there is no room"))
        self.results[mark, path] = source.read_bytes()

    def _check(self) -> None:
        if self.down:
            raise Unreachable("down")


class Ce:
    """A CE that remembers; ``fails`` makes it unreachable, ``answers`` are states by mark."""

    settle_s = 5.0

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.uploads: dict[tuple[str, str], bytes] = {}
        self.answers: dict[str, StatusOutcome] = {}
        self.killed: list[str] = []
        self.cleaned: list[str] = []
        self.left: dict[str, bytes] = {}
        self.fails = False
        self.silent_after_submission = False
        self.refuses = ""
        self.proxies: list[Path] = []

    def prepare(self) -> None:
        self._check()

    def submit(self, mark: str, text: str, language: Language, queue: str) -> SubmitOutcome:
        self._check()
        assert (text, queue) == ("&(executable=x)", "batch")
        if self.refuses:
            return SubmitOutcome(mark, SubmitResult.REFUSED, reason=self.refuses)
        job = f"job{len(self.jobs)}"
        self.jobs[job] = mark
        if self.silent_after_submission:
            return SubmitOutcome(mark, SubmitResult.UNKNOWN, reason="silence")
        return SubmitOutcome(mark, SubmitResult.ACCEPTED, job)

    def find(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        self._check()
        return {mark: WorkerRef(mark, job) for job, mark in self.jobs.items() if mark in marks}

    def waits_for_input(self, job: str) -> bool:
        return True

    def upload(self, job: str, path: str, source: Path) -> None:
        self._check()
        self.uploads[job, path] = source.read_bytes()

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        self._check()
        return {ref.mark: self.answers.get(ref.mark, StatusOutcome.of(W.RUNNING, "RUNNING")) for ref in refs}

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        self._check()
        self.killed += [ref.mark for ref in refs]
        return {}

    def clean(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        self._check()
        self.cleaned += [ref.mark for ref in refs]
        return {}

    def files(self, job: str) -> Iterator[tuple[str, ...]] | None:
        self._check()
        return iter([tuple(path.split("/")) for path in self.left]) if job in self.jobs else None

    def save(self, job: str, path: Sequence[str], target: Path, most: int) -> bool:
        content = self.left["/".join(path)]
        if content == b"huge":
            raise TooMuch("huge: it has more than is taken")
        target.write_bytes(content)
        return True

    def _check(self) -> None:
        if self.fails:
            raise BackendError("the CE does not answer")


class Rig:
    """A lane that can be killed and started again over the same files."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.clock = FrozenClock(time.time())
        self.server = Server(authority, self.clock)
        self.ce = Ce()
        queue = QueueConfig(backend="arc", direct=True, submit={"queue": "batch"}, options={"url": "https://ce/arex"})
        self.config = HarvesterConfig(
            server_url="http://127.0.0.1:1",
            token_file=str(folder / "token"),
            state_dir=str(folder),
            queues={"q": queue},
            lost_after_s=100.0,
            denials=2,
        )
        self.point: Callable[[str], None] = lambda _: None
        self.start()

    def start(self) -> None:
        """A new process on the same files."""
        self.store = Store(self.folder / "harvester.db", self.clock)
        book = Book(self.store)
        write, forget = book.write, book.forget

        def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*given: Any) -> Any:
                self.point(f"before {name}")
                result = call(*given)
                self.point(f"after {name}")
                return result

            return run

        book.write = watched("write", write)  # type: ignore[method-assign]
        book.forget = watched("forget", forget)  # type: ignore[method-assign]
        person = Watched(self.ce, {"submit": watched("submit", self.ce.submit)})

        def make(_: int, proxy: Path) -> Any:
            self.ce.proxies.append(proxy)
            return person

        place = DirectPlace("q", "https://ce/arex", "batch")
        self.lane = DirectLane(["q"], [place], self.config, self.folder, book, self.server, self.clock, make)  # type: ignore[arg-type]
        self.book = book

    def restart(self) -> None:
        self.store.close()
        self.start()

    def round(self) -> Outcome:
        done = Outcome()
        for step in self.lane.steps():
            step(done)
        return done

    def states(self) -> dict[str, WorkerState]:
        return {run.mark: run.state for run in self.book.all(["q"])}


class Watched:
    """A CE, some of whose calls are watched."""

    def __init__(self, ce: Ce, calls: dict[str, Callable[..., Any]]) -> None:
        self._ce = ce
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return self._calls.get(name) or getattr(self._ce, name)


@pytest.fixture
def rig(tmp_path: Path, authority: Authority) -> Iterator[Rig]:
    made = Rig(tmp_path, authority)
    yield made
    made.store.close()


def test_jobs_are_submitted_with_their_files_and_reported(rig: Rig) -> None:
    done = rig.round()
    assert done.problems == [] and done.submitted == 3
    assert sorted(rig.ce.jobs.values()) == MARKS
    assert list(rig.ce.uploads.values()) == [b"mark-0000 a/run.sh"]
    assert {report.state for report in rig.server.reports.values()} == {W.RUNNING}
    (proxy,) = set(rig.ce.proxies)
    assert stat.S_IMODE(proxy.stat().st_mode) == 0o600 and stat.S_IMODE(proxy.parent.stat().st_mode) == 0o700
    assert "PRIVATE KEY" in proxy.read_text()
    assert not list((rig.folder / "direct/spool").iterdir()), "no copy of a person's file stays"


@pytest.mark.parametrize("nth", range(1, 24))
def test_killed_anywhere_each_job_is_there_once(rig: Rig, nth: int) -> None:
    passed = 0

    def point(_: str) -> None:
        nonlocal passed
        passed += 1
        if passed == nth:
            raise Killed

    rig.point = point
    try:
        rig.round()
    except Killed:
        pass
    rig.point = lambda _: None
    rig.restart()
    for _ in range(4):
        rig.round()
        rig.clock.advance(Ce.settle_s + 1)
    assert sorted(rig.ce.jobs.values()) == MARKS
    assert set(rig.states().values()) == {W.RUNNING}
    first = next(job for job, mark in rig.ce.jobs.items() if mark == MARKS[0])
    assert (first, "a/run.sh") in rig.ce.uploads


def test_a_submission_that_was_not_answered_is_not_repeated(rig: Rig) -> None:
    rig.ce.silent_after_submission = True
    done = rig.round()
    assert any("silence" in problem for problem in done.problems)
    assert list(rig.states().values()).count(W.SUBMITTING) == 1, "the others wait"
    rig.ce.silent_after_submission = False
    rig.round()
    assert sorted(rig.ce.jobs.values()) == MARKS


def test_a_job_that_never_reached_the_ce_once_waited_for_ever(rig: Rig) -> None:
    """Each round began the wait anew: with rounds closer together than what a CE takes to settle, it never ended."""

    def point(name: str) -> None:
        if name == "before submit":
            raise Killed

    rig.point = point
    with pytest.raises(Killed):
        rig.round()
    rig.point = lambda _: None
    rig.restart()
    for _ in range(4):
        rig.clock.advance(Ce.settle_s / 3)
        rig.round()
    assert sorted(rig.ce.jobs.values()) == MARKS


def test_a_look_that_began_before_all_had_settled_once_had_a_job_submitted_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CE that is slow: what it showed was older than the time at which it had been read."""
    rig.ce.silent_after_submission = True
    rig.round()
    rig.ce.silent_after_submission = False

    def slow(_: Sequence[str]) -> dict[str, WorkerRef]:
        rig.clock.advance(Ce.settle_s + 1)
        return {}

    with monkeypatch.context() as patch:
        patch.setattr(rig.ce, "find", slow)
        rig.round()
    rig.round()
    assert sorted(rig.ce.jobs.values()) == MARKS


def test_a_job_whose_files_are_gone_can_still_be_ended(rig: Rig) -> None:
    rig.server.lost_inputs = True
    rig.round()
    rig.round()
    assert rig.states()[MARKS[0]] is W.SUBMITTING
    rig.server.todo = {MARKS[0]: D.KILL}
    rig.round()
    rig.round()
    assert rig.ce.killed == [MARKS[0]]


def test_a_ce_or_a_server_that_is_down_changes_nothing(rig: Rig) -> None:
    rig.round()
    before = rig.states()
    rig.ce.fails = True
    for _ in range(5):
        assert any("no status" in problem for problem in rig.round().problems)
        rig.clock.advance(500)
    assert rig.states() == before
    rig.ce.fails = False
    rig.server.down = True
    assert rig.round().server_down
    rig.ce.answers = {mark: StatusOutcome.unknown("no idea") for mark in MARKS}
    rig.server.down = False
    rig.round()
    assert rig.states() == before


def test_a_job_that_the_ce_denies_is_missing_then_lost_and_comes_back_before(rig: Rig) -> None:
    rig.round()
    rig.ce.answers = {mark: StatusOutcome.denied("no such job") for mark in MARKS[:2]}
    rig.round()
    assert rig.states()[MARKS[0]] is W.RUNNING
    rig.round()
    assert rig.states()[MARKS[0]] is W.MISSING
    del rig.ce.answers[MARKS[1]]
    rig.round()
    assert rig.states()[MARKS[1]] is W.RUNNING
    rig.clock.advance(200)
    rig.round()
    assert rig.states()[MARKS[0]] is W.FAILED
    assert rig.server.reports[MARKS[0]].reason.startswith("lost:")


def test_a_refused_description_fails_alone(rig: Rig) -> None:
    rig.ce.refuses = "500 parsing error"
    rig.round()
    assert set(rig.states().values()) == {W.FAILED}
    assert rig.server.reports[MARKS[0]].reason == "500 parsing error"


def test_kill_fetch_clean_and_forget(rig: Rig) -> None:
    rig.round()
    rig.server.todo = {MARKS[0]: D.KILL}
    rig.round()
    assert rig.ce.killed == [MARKS[0]] and rig.server.reports[MARKS[0]].killed
    rig.round()
    assert rig.ce.killed == [MARKS[0]], "once"
    rig.ce.answers = {
        MARKS[0]: StatusOutcome.of(W.FAILED, "FAILED", "killed"),
        MARKS[1]: StatusOutcome.of(W.FINISHED, "FINISHED"),
    }
    rig.ce.left = {"out.txt": b"out", "a/b/c": b"deep"}
    rig.server.todo = {MARKS[0]: D.NONE, MARKS[1]: D.FETCH}
    rig.round()
    assert rig.states()[MARKS[0]] is W.CANCELLED, "its end was asked for"
    assert rig.server.results == {(MARKS[1], "out.txt"): b"out", (MARKS[1], "a/b/c"): b"deep"}
    assert rig.server.reports[MARKS[1]].results
    rig.server.todo = {MARKS[0]: D.CLEAN, MARKS[1]: D.CLEAN}
    rig.round()
    assert sorted(rig.ce.cleaned) == MARKS[:2]
    assert set(rig.states()) == {MARKS[2]}
    (proxy,) = set(rig.ce.proxies)
    assert proxy.exists()
    rig.ce.answers[MARKS[2]] = StatusOutcome.of(W.FINISHED, "FINISHED")
    rig.server.todo[MARKS[2]] = D.CLEAN
    rig.round()
    assert not rig.states() and not proxy.exists(), "a proxy under which nothing runs is not kept"
    assert not list((rig.folder / "direct/spool").iterdir())


def test_results_that_the_server_does_not_take_are_told(rig: Rig) -> None:
    rig.round()
    rig.ce.answers = {mark: StatusOutcome.of(W.FINISHED, "FINISHED") for mark in MARKS}
    rig.ce.left = {"big": b"big"}
    rig.server.todo = dict.fromkeys(MARKS, D.FETCH)
    rig.server.refuses_results = 503
    assert any("can't be fetched" in problem for problem in rig.round().problems)
    assert not rig.server.reports[MARKS[0]].left_out, "it is tried again"
    rig.server.refuses_results = 422
    rig.round()
    assert rig.server.reports[MARKS[0]].left_out == "big: there is no room"
    assert not rig.server.reports[MARKS[0]].results


def test_a_result_that_is_too_large_is_told(rig: Rig) -> None:
    rig.round()
    rig.ce.answers = {mark: StatusOutcome.of(W.FINISHED, "FINISHED") for mark in MARKS}
    rig.ce.left = {"first": b"x", "big": b"huge"}
    rig.server.todo = dict.fromkeys(MARKS, D.FETCH)
    rig.round()
    assert "huge" in rig.server.reports[MARKS[0]].left_out


def test_what_is_gone_from_the_ce_is_told(rig: Rig) -> None:
    rig.round()
    rig.ce.answers = {mark: StatusOutcome.of(W.FINISHED, "FINISHED") for mark in MARKS}
    rig.server.todo = dict.fromkeys(MARKS, D.FETCH)
    rig.ce.jobs.clear()
    rig.round()
    assert rig.server.reports[MARKS[0]].cleaned and not rig.server.reports[MARKS[0]].results


def test_a_drained_queue_gets_nothing_new(rig: Rig) -> None:
    rig.store.set_drained(["q"], True)
    rig.round()
    assert rig.server.places == []
    rig.store.set_drained(["q"], False)
    rig.round()
    assert [place.queue for place in rig.server.places] == ["q"]


def test_a_harvester_killed_while_it_wrote_a_proxy_once_left_a_persons_key_for_ever(rig: Rig) -> None:
    rig.round()
    folder = rig.folder / "direct/proxies"
    (left, being_written) = (folder / ".7.pem.abcdefgh", folder / ".8.pem.abcdefgh")
    for part in (left, being_written):
        part.write_text("PRIVATE KEY")
    before = rig.clock.now() - 2 * PART_S
    os.utime(left, (before, before))
    rig.round()
    assert not left.exists()
    assert being_written.exists(), "another CE's jobs share the folder"


def test_without_a_proxy_jobs_wait(rig: Rig) -> None:
    rig.server.no_proxy = "the proxy of Alice has ended"
    assert any("wait for a proxy: the proxy of Alice" in problem for problem in rig.round().problems)
    assert set(rig.states().values()) == {W.PLANNED} and not rig.ce.jobs
    rig.server.todo = {MARKS[0]: D.KILL}
    rig.round()
    assert rig.states()[MARKS[0]] is W.CANCELLED
    rig.server.no_proxy = ""
    rig.round()
    assert sorted(rig.ce.jobs.values()) == MARKS[1:]


def test_proxies_are_renewed_ahead_of_their_end_and_kept_through_a_restart(rig: Rig) -> None:
    rig.round()
    rig.restart()
    rig.round()
    assert rig.server.signed == 1
    rig.clock.advance(600)
    rig.round()
    assert rig.server.signed == 2
    rig.server.no_proxy = "ended"
    rig.clock.advance(600)
    rig.round()
    assert rig.server.signed == 2 and rig.lane._proxies.get(1).exists(), "the old one is good for a while"
    rig.clock.advance(600)
    assert any("ended" in problem for problem in rig.round().problems)
