"""The profile ``idle`` of ``pilotage bench dispatch``: what its figures come from."""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from common.wire import AcquireRequest, CounterInput, Offer, WorkflowRequest
from server.bench import idle, idle_loop, report
from server.bench.errors import BenchError
from server.bench.idle import most_in_a_second
from server.bench.idle_loop import Course, IdleLoop
from server.bench.messages import Go, Idle, IdleSeen, Result, Target
from server.bench.profiles import Options
from server.bench.report import Report
from server.bench.requests import submission
from tests.unit.test_bench_dispatch import Answer, body_of, ok, serve, target

__all__ = ["serve"]
"""A fixture."""

Serve = Callable[[Answer], Target]


def order(at: Target, **values: float) -> Idle:
    given = {"pilots": 8, "coming_s": 0.1, "settle_s": 0.3, "seconds": 0.5, "limit_s": 60.0, "connections": 3, **values}
    return Idle(at, "i", first_pilot=1, offer=Offer(), units=16, share="default", **given)  # type: ignore[arg-type]


def nothing(retry_after_s: float) -> bytes:
    return ok(b'{"retry_after_s":%f}' % retry_after_s)


class FakeFleetServer:
    """Has nothing until a workflow comes, then a unit for each who asks. Remembers when which pilot asked."""

    def __init__(self, retry_after_s: float = 0.2) -> None:
        self.retry_after_s = retry_after_s
        self.asked: dict[str, list[float]] = {}
        self.lines: list[bytes] = []
        self.submitted: list[WorkflowRequest] = []
        self.given = 0
        self._lock = threading.Lock()

    def __call__(self, request: bytes) -> bytes:
        with self._lock:
            if request.startswith(b"POST /v1/workflows "):
                self.submitted.append(msgspec.json.decode(body_of(request), type=WorkflowRequest))
                return ok(b"{}", "201 Created")
            asked = msgspec.json.decode(body_of(request), type=AcquireRequest)
            assert (asked.max_jobs, asked.wait_s) == (1, 0.0)
            token = request.partition(b"Bearer ")[2].partition(b"\r\n")[0].decode()
            self.asked.setdefault(token, []).append(time.monotonic())
            if not self.submitted:
                return nothing(self.retry_after_s)
            self.given += 1
            return ok(b'{"jobs":[{"job_id":%d,"units":[{"unit_id":%d}]}]}' % (self.given, self.given))


def seen_of(result: Result) -> IdleSeen:
    assert result.idle is not None
    return result.idle


def moments(packed: bytes) -> array[float]:
    found: array[float] = array("d")
    found.frombytes(packed)
    return found


# --- the load ---------------------------------------------------------------------------------------------------------


def test_pilots_ask_again_when_told_and_stop_when_they_have_a_job(serve: Serve) -> None:
    server = FakeFleetServer()
    result = IdleLoop(order(serve(server), busy_share=1.0)).run(Go(0.0))
    assert (result.errors, result.examples) == (0, [])
    seen = seen_of(result)
    assert len(server.asked) == 8
    waits = [after - before for asked in server.asked.values() for before, after in zip(asked, asked[1:], strict=False)]
    assert min(waits) >= 0.19
    assert sorted(waits)[len(waits) // 2] < 5.0
    assert [each.stages[0].input for each in server.submitted] == [CounterInput(16)]
    assert server.given == len(seen.starts) // 8 == 8
    assert sorted(report.claims_of([result])) == [(number, number) for number in range(1, 9)]
    assert len(seen.asks) // 8 == sum(len(asked) for asked in server.asked.values())
    assert seen.settled is not None
    assert seen.submitted is not None
    assert seen.submitted >= seen.settled + 0.5
    assert min(moments(seen.starts)) > seen.submitted


def test_it_ends_when_enough_are_busy(serve: Serve) -> None:
    server = FakeFleetServer(retry_after_s=0.5)
    result = IdleLoop(order(serve(server), pilots=40, coming_s=0.5, busy_share=0.5)).run(Go(0.0))
    assert 20 <= len(seen_of(result).starts) // 8 < 40
    assert len(report.claims_of([result])) == server.given


def test_it_ends_when_nobody_gets_a_job(serve: Serve) -> None:
    refused = ok(b'{"retry_after_s":0.2,"refusals":[{"task_id":1,"filter":"tags","detail":"lacks x"}]}')
    result = IdleLoop(order(serve(lambda _: refused), limit_s=0.5)).run(Go(0.0))
    assert (seen_of(result).starts, seen_of(result).refusal) == (b"", "tags: lacks x")
    assert result.errors == 0
    assert result.elapsed_s < 60.0


def test_a_submission_that_is_refused_ends_the_run(serve: Serve) -> None:
    def answer(request: bytes) -> bytes:
        return ok(b"share: unknown", "422 Unprocessable") if b"/v1/workflows" in request else nothing(0.2)

    result = IdleLoop(order(serve(answer), limit_s=60.0)).run(Go(0.0))
    assert result.errors == 1
    assert "submission: 422 share: unknown" in result.examples[0]
    assert result.elapsed_s < 50.0


@pytest.mark.parametrize("body", [b"{}", b'{"drain":true}', b"<html>"])
def test_an_answer_that_leaves_a_pilot_without_a_word_is_an_error(serve: Serve, body: bytes) -> None:
    result = IdleLoop(order(serve(lambda request: ok(body)), pilots=2, limit_s=0.2)).run(Go(0.0))
    assert result.errors == 2


def test_a_job_before_there_is_work_is_an_error(serve: Serve) -> None:
    given = ok(b'{"jobs":[{"job_id":1,"units":[{"unit_id":1}]}]}')
    result = IdleLoop(order(serve(lambda _: given), pilots=2)).run(Go(0.0))
    assert result.errors == 2
    assert "before there was work" in result.examples[0]


def test_pilots_that_share_a_connection_wait_for_one_another(serve: Serve) -> None:
    under_way: Counter[str] = Counter()

    def answer(_: bytes) -> bytes:
        under_way["now"] += 1
        under_way["most"] = max(under_way["most"], under_way["now"])
        time.sleep(0.02)
        under_way["now"] -= 1
        return nothing(0.5)

    result = IdleLoop(order(serve(answer), connections=1, coming_s=0.0, limit_s=0.1)).run(Go(0.0))
    assert under_way["most"] <= 2  # the submission has a connection of its own
    assert result.errors == 0
    assert len(seen_of(result).asks) // 8 >= 8


def test_a_connection_that_the_server_closed_meanwhile_is_no_error(serve: Serve) -> None:
    """It answers once on each connection: what is asked next on it is asked again on another."""
    server = FakeFleetServer()
    answered: Counter[int] = Counter()

    def answer(request: bytes) -> bytes:
        if b"jobs:acquire" in request:
            answered[threading.get_ident()] += 1
            if answered[threading.get_ident()] > 1:
                answered.pop(threading.get_ident())
                return b""
        return server(request)

    result = IdleLoop(order(serve(answer), busy_share=1.0)).run(Go(0.0))
    assert (result.errors, result.examples) == (0, [])
    assert len(seen_of(result).starts) // 8 == 8


def test_a_server_that_is_away_is_an_error_and_no_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_loop, "AGAIN_S", 0.2)
    result = IdleLoop(order(target(tmp_path), pilots=5000, connections=1, seconds=0.1)).run(Go(0.0))
    assert 5000 <= result.errors <= 5000 * 5
    assert result.requests == 0


# --- the course -------------------------------------------------------------------------------------------------------


def course_of(tmp_path: Path, rates: list[int], **values: float) -> tuple[Course, list[float]]:
    """A course with so many requests in each second, and when it was found settled."""
    course = Course(order(target(tmp_path), coming_s=5.0, settle_s=100.0, **values))
    settled = []
    for second, rate in enumerate(rates):
        for index in range(rate):
            course.asked(index % 8, second + index / rate)
        course.settle(second + 1.0)
        if course.settled is not None:
            settled.append(course.settled)
    return course, settled


def test_a_rate_that_falls_is_not_settled(tmp_path: Path) -> None:
    course, settled = course_of(tmp_path, [1000 - 30 * each for each in range(30)] + [100] * 40)
    assert course.steady
    assert 38.0 <= settled[0] <= 52.0
    assert len(set(settled)) == 1


def test_before_all_have_asked_twice_nothing_is_settled(tmp_path: Path) -> None:
    course, settled = course_of(tmp_path, [7] * 60)
    assert not settled
    course.asked(7, 60.0)
    course.asked(7, 60.0)
    course.settle(60.0)
    assert course.settled == 60.0


def test_what_never_settles_is_measured_all_the_same(tmp_path: Path) -> None:
    course, settled = course_of(tmp_path, [int(20 * 1.05**second) for second in range(110)])
    assert settled[0] == 105.0
    assert not course.steady


# --- figures ----------------------------------------------------------------------------------------------------------


def test_the_most_in_a_second_wherever_it_begins() -> None:
    assert most_in_a_second([]) == 0
    assert most_in_a_second([0.0, 1.0, 2.0]) == 1
    assert most_in_a_second([0.6, 0.7, 0.9, 1.1, 1.59, 1.6, 5.0]) == 5


def test_times_count_from_the_submission(tmp_path: Path) -> None:
    made = Report(profile="idle", scale=1.0)
    asks = [each / 4 for each in range(400)]
    seen = IdleSeen(array("d", asks).tobytes(), array("d", [62.5, *range(70, 78)]).tobytes(), 20.0, True, 60.0, 3)
    idle._judge(made, order(target(tmp_path), pilots=10), Result(idle=seen))
    assert (made.idle_requests_per_s, made.idle_requests_max_per_s) == (4.0, 4)
    assert (made.first_start_s, made.busy_90_s) == (2.5, 17.0)
    assert made.details["busy"] == made.details["busy_wanted"] == 9


def test_too_few_that_start_are_no_figure(tmp_path: Path) -> None:
    made = Report(profile="idle", scale=1.0)
    seen = IdleSeen(array("d", [1.0]).tobytes(), array("d", [62.5]).tobytes(), 20.0, True, 60.0, 3, "tags: lacks x")
    idle._judge(made, order(target(tmp_path), pilots=10), Result(idle=seen))
    assert (made.first_start_s, made.busy_90_s) == (2.5, None)
    assert made.details["last_refusal"] == "tags: lacks x"


def test_a_submission_is_one_task_of_jobs_of_one_unit(tmp_path: Path) -> None:
    request = submission(target(tmp_path), "w", 20_000, "default")
    stage = msgspec.json.decode(body_of(request), type=WorkflowRequest).stages[0]
    assert (stage.input, stage.files_per_job, stage.scouts) == (CounterInput(20_000), 1, False)
    assert stage.image is not None  # a queue need not run anything without


@pytest.mark.parametrize("options", [{"keep": True}, {"reuse": True}, {"units": 5}, {"load_processes": 2}])
def test_what_the_profile_cannot_do_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(BenchError, match=next(iter(options)).replace("_", "-")):
        idle._refuse(Options(**options))  # type: ignore[arg-type]
