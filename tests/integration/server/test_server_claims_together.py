"""Claims of several pilots in one batch, on PostgreSQL: who is sent to which bucket, and what becomes of a miss."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from common.wire import AcquireRequest
from server.batching import AGAIN
from server.dispatch import together
from server.dispatch.claim import AHEAD
from server.dispatch.claim_together import TRIES, Got, Wish
from tests.integration.server.harness import Pilot, Site, file, files, stage


def wish_of(pilot: Pilot, task_id: int | None = None) -> Wish:
    dispatcher = pilot.site.dispatcher
    with dispatcher.database.read() as connection:
        row = dispatcher.pilots.get(connection, pilot.grant.pilot_id)
    assert row is not None
    queue = dispatcher.looks.get().world.queues[row.queue]
    return Wish(row, queue, AcquireRequest(f"request-{pilot.requests()}", pilot.offer), task_id)


def carry_out(site: Site, wishes: list[Wish]) -> list[Any]:
    return together.carry_out(site.dispatcher, list(wishes))


def tasks_of(answers: list[Any]) -> list[int | None]:
    """The task of each answer; None for one that goes again."""
    return [None if each is AGAIN else each.found[0][0].task_id for each in answers]


def test_who_finds_a_bucket_empty_gets_a_unit_of_the_next_one(on_postgres: Site) -> None:
    first, second = on_postgres.counter(2), on_postgres.counter(9)
    wishes = [wish_of(on_postgres.pilot()) for _ in range(5)]
    answers = carry_out(on_postgres, wishes)
    assert tasks_of(answers) == [first, first, None, None, None]
    left = [wish for wish, answer in zip(wishes, answers, strict=True) if answer is AGAIN]
    assert tasks_of(carry_out(on_postgres, left)) == [second] * 3


def test_no_more_are_sent_to_a_bucket_than_it_had_left(on_postgres: Site) -> None:
    first, second = on_postgres.counter(4), on_postgres.counter(9)
    on_postgres.pilot().acquire()  # its claim has seen that three are left
    answers = carry_out(on_postgres, [wish_of(on_postgres.pilot()) for _ in range(5)])
    assert tasks_of(answers) == [first] * 3 + [second] * 2


def test_an_answer_of_a_batch_is_complete(on_postgres: Site) -> None:
    (task,) = on_postgres.submit(stage(given=files("a", "b")))
    answers = carry_out(on_postgres, [wish_of(on_postgres.pilot()) for _ in range(2)])
    made = [each.assignment for each in answers]
    assert [each.task_id for each in made] == [task] * 2
    assert {each.units[0].file.did for each in made} == {file("a").did, file("b").did}
    assert all(each.units[0].file.replicas for each in made)


def test_nothing_is_claimed_ahead_of_another_task(on_postgres: Site) -> None:
    first, second = on_postgres.counter(3), on_postgres.counter(3)
    (answer,) = carry_out(on_postgres, [wish_of(on_postgres.pilot(), second)])
    assert isinstance(answer, Got) and answer.found == []
    assert [(each.task_id, each.filter) for each in answer.refusals] == [(first, AHEAD)]
    assert tasks_of(carry_out(on_postgres, [wish_of(on_postgres.pilot(), first)])) == [first]


def test_who_was_too_late_too_often_goes_alone(on_postgres: Site) -> None:
    on_postgres.counter(3)
    wish = wish_of(on_postgres.pilot())
    wish.batches = TRIES
    (answer,) = carry_out(on_postgres, [wish])
    assert not isinstance(answer, Got) and answer is not AGAIN
    assert sum(on_postgres.real_counts().values()) == 3


def test_many_pilots_at_once_get_all_units_of_many_small_buckets(on_postgres: Site) -> None:
    tasks = [on_postgres.counter(2) for _ in range(12)]
    pilots = [on_postgres.pilot() for _ in range(24)]
    with ThreadPoolExecutor(24) as pool:
        jobs = [future.result(60) for future in [pool.submit(pilot.acquire) for pilot in pilots]]
    assert Counter(job.task_id for job in jobs) == dict.fromkeys(tasks, 2)
    assert len({job.units[0].unit_id for job in jobs}) == 24


def test_the_database_is_not_asked_for_those_who_find_nothing(
    on_postgres: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle fleet asks all the time."""
    wishes = [wish_of(on_postgres.pilot()) for _ in range(2)]

    def closed() -> None:
        raise AssertionError("it was asked")

    monkeypatch.setattr(on_postgres.dispatcher.database, "at_once", closed)
    assert [each.found for each in carry_out(on_postgres, wishes)] == [[], []]
