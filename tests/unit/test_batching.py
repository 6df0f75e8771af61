"""Requests of many threads carried out together: who waits for whom, and what becomes of one that goes wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from server.batching import AGAIN, CONTENT, Batcher

PATIENCE_S = 20.0
LONG_S = 60.0
"""A linger that a test would notice."""


class Work:
    """Doubles numbers; each batch stops until the test lets it go on, if it was told to hold."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.hold = False
        self.bad: set[int] = set()
        self.again: Counter[int] = Counter()
        """How often a number is to go along once more."""

    def __call__(self, batch: list[int]) -> list[Any]:
        self.batches.append(list(batch))
        if self.hold:
            self.begun.release()
            assert self.go_on.acquire(timeout=PATIENCE_S)
        if self.bad & set(batch):
            raise ValueError(f"bad: {sorted(self.bad & set(batch))}")
        return [self._reply(each) for each in batch]

    def _reply(self, number: int) -> Any:
        self.again[number] -= 1
        return 2 * number if self.again[number] < 0 else AGAIN

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=PATIENCE_S)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as found:
        yield found


def waiting(batcher: Batcher[int, int], count: int) -> None:
    """Until so many requests wait for the next batch."""
    deadline = time.monotonic() + PATIENCE_S
    while len(batcher._waiting) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def held_up(batcher: Batcher[int, int], work: Work, pool: ThreadPoolExecutor, numbers: list[int]) -> list[Future[int]]:
    """``numbers[0]`` alone in a batch that has begun, the others behind it."""
    work.hold = True
    futures = [pool.submit(batcher.do, numbers[0], work)]
    work.wait_begun()
    futures += [pool.submit(batcher.do, number, work) for number in numbers[1:]]
    waiting(batcher, len(numbers) - 1)
    return futures


def test_one_request_alone_waits_for_nobody(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(LONG_S)
    work = Work()
    for number in range(3 * CONTENT):
        assert pool.submit(batcher.do, number, work).result(PATIENCE_S) == 2 * number
    assert [len(batch) for batch in work.batches] == [1] * (3 * CONTENT)


def test_what_comes_meanwhile_is_the_next_batch(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(0.0)
    work = Work()
    futures = held_up(batcher, work, pool, [1, 2, 3, 4])
    work.go_on.release(2)
    assert [each.result(PATIENCE_S) for each in futures] == [2, 4, 6, 8]
    assert [sorted(batch) for batch in work.batches] == [[1], [2, 3, 4]]


def test_a_batch_waits_for_as_many_as_lately_came_together(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(LONG_S)
    work = Work()
    futures = held_up(batcher, work, pool, [1, 2, 3])
    work.go_on.release(2)
    assert [each.result(PATIENCE_S) for each in futures] == [2, 4, 6]
    work.hold = False
    # Two came together, so the next batch waits for two, and no longer.
    first = pool.submit(batcher.do, 10, work)
    waiting(batcher, 1)
    assert not first.done()
    second = pool.submit(batcher.do, 11, work)
    assert [first.result(PATIENCE_S), second.result(PATIENCE_S)] == [20, 22]
    assert sorted(work.batches[-1]) == [10, 11]


def test_company_that_does_not_come_is_waited_for_less_and_less(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(0.001)
    work = Work()
    futures = held_up(batcher, work, pool, [1, 2, 3, 4])
    work.go_on.release(2)
    assert [each.result(PATIENCE_S) for each in futures] == [2, 4, 6, 8]
    work.hold = False
    for number in range(3):
        assert batcher.do(number, work) == 2 * number
    batcher._linger_s = LONG_S
    assert pool.submit(batcher.do, 7, work).result(PATIENCE_S) == 14


def test_when_all_are_there_nobody_waits_for_one_more(pool: ThreadPoolExecutor) -> None:
    """Every so often a batch waited as long as it may for somebody who was nowhere."""
    batcher: Batcher[int, int] = Batcher(0.2)
    work = Work()
    futures = held_up(batcher, work, pool, [1, 2, 3])
    work.go_on.release(2)
    assert [each.result(PATIENCE_S) for each in futures] == [2, 4, 6]
    work.hold = False

    def two_at_a_time(times: int) -> None:
        for number in range(0, 2 * times, 2):
            both = [pool.submit(batcher.do, each, work) for each in (number, number + 1)]
            assert [each.result(PATIENCE_S) for each in both] == [2 * number, 2 * number + 2]

    two_at_a_time(2 * CONTENT)  # three were there once, so the third is waited for once
    batcher._linger_s = LONG_S
    work.batches.clear()
    two_at_a_time(4 * CONTENT)
    assert {len(batch) for batch in work.batches} == {2}


def test_who_always_comes_too_late_is_waited_for_in_the_end(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(LONG_S)
    batches: list[list[int]] = []
    begun = threading.Semaphore(0)
    futures: dict[int, Future[int]] = {}

    def ask(number: int) -> None:
        futures[number] = pool.submit(batcher.do, number, work)

    def work(batch: list[int]) -> list[int]:
        """Whoever is not in the batch asks while it is at work."""
        batches.append(batch)
        for number in {1, 2, 3} - set(batch):
            ask(number)
        waiting(batcher, 3 - len(batch))
        begun.release()
        return [2 * number for number in batch]

    def over(batch: list[int]) -> None:
        assert [futures[number].result(PATIENCE_S) for number in batch] == [2 * number for number in batch]

    ask(1)
    for _ in range(2):  # the first alone, then the two others, while whom it comes again
        assert begun.acquire(timeout=PATIENCE_S)
    for _ in range(2 * CONTENT):
        over(batches[-1])
        again, more = batches[-1][:2]
        if batcher._wanted == 3:
            break
        ask(again)  # with the one who came too late it is two, as many as the last time
        assert begun.acquire(timeout=PATIENCE_S)
    ask(again)
    ask(more)
    assert begun.acquire(timeout=PATIENCE_S)
    over([1, 2, 3])
    assert sorted(batches[-1]) == [1, 2, 3]


def test_two_leaders_work_at_once_and_the_third_request_waits(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(0.0, leaders=2)
    work = Work()
    work.hold = True
    first = pool.submit(batcher.do, 1, work)
    work.wait_begun()
    second = pool.submit(batcher.do, 2, work)
    work.wait_begun()
    others = [pool.submit(batcher.do, number, work) for number in (3, 4, 5)]
    waiting(batcher, 3)
    assert work.batches == [[1], [2]]
    work.go_on.release(3)
    assert [each.result(PATIENCE_S) for each in (first, second, *others)] == [2, 4, 6, 8, 10]
    assert sorted(work.batches[2]) == [3, 4, 5]


def test_what_is_wrong_with_one_harms_no_other(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(0.0)
    work = Work()
    work.bad = {3}
    futures = held_up(batcher, work, pool, [1, 2, 3, 4])
    work.go_on.release(5)
    assert [futures[index].result(PATIENCE_S) for index in (0, 1, 3)] == [2, 4, 8]
    with pytest.raises(ValueError, match=r"bad: \[3\]"):
        futures[2].result(PATIENCE_S)


def test_what_is_to_go_again_is_first_in_the_next_batch(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(0.0)
    work = Work()
    work.again.update({1: 1, 3: 2})
    futures = held_up(batcher, work, pool, [1, 2, 3])
    work.go_on.release(4)
    assert [each.result(PATIENCE_S) for each in futures] == [2, 4, 6]
    # The one that went again is behind nobody, though two others waited before it did.
    assert [work.batches[0], work.batches[1][0], *work.batches[2:]] == [[1], 1, [3], [3]]
    assert sorted(work.batches[1]) == [1, 2, 3]


def test_one_that_goes_again_alone_needs_nobody_to_wake_it(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(LONG_S)
    work = Work()
    work.again[5] = 3
    assert pool.submit(batcher.do, 5, work).result(PATIENCE_S) == 10
    assert work.batches == [[5]] * 4
    assert pool.submit(batcher.do, 6, work).result(PATIENCE_S) == 12


def test_what_goes_wrong_when_it_goes_again_is_told(pool: ThreadPoolExecutor) -> None:
    batcher: Batcher[int, int] = Batcher(0.0)
    replies = [AGAIN]

    def work(batch: list[int]) -> list[Any]:
        if not replies:
            raise ValueError("wrong")
        return [replies.pop()]

    with pytest.raises(ValueError, match="wrong"):
        pool.submit(batcher.do, 1, work).result(PATIENCE_S)


class Doorway:
    """The batcher's mutex; whoever is named in ``held`` stops just after leaving it, until it may ``go_on``."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self.held: set[str] = set()
        self.go_on = threading.Event()

    def __enter__(self) -> None:
        self._mutex.acquire()

    def __exit__(self, *_: object) -> None:
        self._mutex.release()
        if threading.current_thread().name in self.held:
            self.held.discard(threading.current_thread().name)
            assert self.go_on.wait(PATIENCE_S)


def test_who_is_appointed_before_he_waits_hangs_nobody() -> None:
    """Its turn was released once too often then: an error, and all others of the batch waited for ever."""
    batcher: Batcher[int, int] = Batcher(0.0)
    batcher._mutex = door = Doorway()  # type: ignore[assignment]
    door.held.add("second")
    work = Work()
    work.hold = True
    found: dict[str, int] = {}

    def ask(name: str, number: int) -> threading.Thread:
        def do() -> None:
            found[name] = batcher.do(number, work)

        thread = threading.Thread(target=do, name=name, daemon=True)
        thread.start()
        return thread

    first = ask("first", 1)
    work.wait_begun()
    second = ask("second", 2)
    waiting(batcher, 1)
    third = ask("third", 3)
    waiting(batcher, 2)
    work.go_on.release(2)
    first.join(PATIENCE_S)  # it has appointed the second, who does not wait yet
    door.go_on.set()
    for thread in (second, third):
        thread.join(PATIENCE_S)
    assert found == {"first": 2, "second": 4, "third": 6}


@pytest.mark.parametrize("leaders", [1, 2, 3])
def test_no_request_of_many_threads_is_lost_or_carried_out_twice(pool: ThreadPoolExecutor, leaders: int) -> None:
    batcher: Batcher[int, int] = Batcher(0.0005, leaders=leaders)
    work = Work()
    numbers = {1000 * thread + each for thread in range(16) for each in range(200)}
    again = {number: number % 3 for number in numbers if number % 7 == 0}
    work.again.update(again)

    def some(start: int) -> list[int]:
        return [batcher.do(number, work) for number in range(start, start + 200)]

    found = [pool.submit(some, 1000 * thread) for thread in range(16)]
    for thread, future in enumerate(found):
        assert future.result(PATIENCE_S) == [2 * (1000 * thread + each) for each in range(200)]
    done = Counter(number for batch in work.batches for number in batch)
    assert done == {number: 1 + again.get(number, 0) for number in numbers}
    assert batcher._leading == 0 and not batcher._waiting
