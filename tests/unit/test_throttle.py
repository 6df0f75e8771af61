"""A queue whose workers get no pilot, and workers that wait for nothing: pure steps."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.states import ResourceState, WorkerState
from common.wire import Shape
from harvester.limits import Limits
from harvester.provisioner import Decision
from harvester.store import Worker
from harvester.surplus import Memory, choose
from harvester.surplus import step as surplus_step
from harvester.throttle import EATEN, OPEN_AT, Rules, Throttle, Verdict, eaters, fold, step

RULES = Rules(failures=3, backoff_s=60.0, most_s=600.0)


def bad(time: float, created: float | None = None, host: str = "") -> Verdict:
    return Verdict(f"m{time}", time, time - 1 if created is None else created, False, host, "it ended without a pilot")


def good(time: float, created: float | None = None, host: str = "") -> Verdict:
    return Verdict(f"m{time}", time, time - 1 if created is None else created, True, host)


CLOSED = fold([bad(1), bad(2), bad(3)], RULES)


def test_failures_in_a_row_close_a_queue_and_others_do_not() -> None:
    assert Throttle(3, 1, since=3, until=63, allowed=1, reason="it ended without a pilot") == CLOSED
    assert (CLOSED.allowance(3), CLOSED.allowance(62.9), CLOSED.allowance(63)) == (0, 0, 1)
    assert fold([bad(1), bad(2), good(2.5), bad(3), bad(4)], RULES).open
    assert fold([], RULES).allowance(0) is None


def test_what_was_submitted_before_changes_nothing_any_more() -> None:
    """A hundred that were under way fail too: the queue is not closed a hundred times as long for that."""
    state = CLOSED
    for n in range(100):
        state = step(state, bad(4 + n, created=2), RULES)
    assert state == CLOSED


def test_it_is_closed_for_twice_as_long_each_time_up_to_the_most() -> None:
    state, waits = CLOSED, []
    for _ in range(6):
        waits.append(state.until - state.since)
        state = step(state, bad(state.until + 5, created=state.until), RULES)
    assert waits == [60, 120, 240, 480, 600, 600]


def test_one_test_worker_then_more_then_any_number() -> None:
    state, allowed = CLOSED, []
    while not state.open:
        allowed.append(state.allowance(1e6))
        state = step(state, good(1e6), RULES)
    assert allowed == list(range(1, OPEN_AT)), "each makes room for two: 1, 2, 4, 8 at a time"
    assert (state.allowance(0), state.failures) == (None, 0)


def test_a_failure_among_many_halves_and_the_last_closes_again() -> None:
    four = CLOSED
    for n in range(3):
        four = step(four, good(70 + n), RULES)
    two = step(four, bad(73), RULES)
    one = step(two, bad(74), RULES)
    assert [each.allowed for each in (four, two, one)] == [4, 2, 1]
    assert {each.level for each in (four, two, one)} == {1}
    assert (step(one, bad(80), RULES).level, step(one, bad(80), RULES).until) == (2, 200)


def test_a_clock_that_is_set_back_opens_early_and_never_closes_for_longer() -> None:
    assert CLOSED.allowance(-1e6) == 1


def test_a_host_that_swallows_workers_is_named() -> None:
    """Everyone's users complain of black-hole hosts."""
    found = [bad(1, host="a"), bad(2, host="hole"), good(3, host="a"), bad(4, host="hole"), bad(5, host="hole"), bad(6)]
    assert eaters(found) == {"hole": EATEN}
    assert eaters([*found, good(7, host="hole")]) == {}


_verdicts = st.lists(st.builds(bad, st.floats(0, 1e4)) | st.builds(good, st.floats(0, 1e4)), max_size=60)


@settings(max_examples=300)
@given(verdicts=_verdicts)
def test_a_queue_always_opens_again(verdicts: list[Verdict]) -> None:
    state = fold(sorted(verdicts, key=lambda one: one.time), RULES)
    assert state.open or state.until - state.since <= RULES.most_s + 1e-6
    assert 1 <= state.allowed < OPEN_AT
    assert state.allowance(1e5) in (None, state.allowed)
    for n in range(OPEN_AT):
        state = step(state, good(2e5 + n), RULES)
    assert state.open and not state.doubtful


@settings(max_examples=200)
@given(verdicts=_verdicts)
def test_a_queue_that_never_fails_in_a_row_is_never_closed(verdicts: list[Verdict]) -> None:
    in_a_row, worst = 0, 0
    for verdict in sorted(verdicts, key=lambda one: one.time):
        in_a_row = 0 if verdict.good else in_a_row + 1
        worst = max(worst, in_a_row)
    state = fold(sorted(verdicts, key=lambda one: one.time), RULES)
    assert worst >= RULES.failures or state.open


# ---------------------------------------------------------------- workers that wait for nothing

SMALL, LARGE = Shape(cores=1), Shape(cores=8)


def decision(*surplus: tuple[Shape, int]) -> Decision:
    return Decision("q", ResourceState.ONLINE, Limits(1, 1, 1), 0, 0, 0, [], surplus=list(surplus))


def withdrawn(numbers: list[int], after_s: float | None = 100.0, every_s: float = 50.0) -> list[int]:
    """How many are withdrawn in each cycle, when so many are too many in each."""
    memory: Memory | None = None
    found = []
    for at, n in enumerate(numbers):
        memory, number = surplus_step(memory, decision((SMALL, n)), at * every_s, after_s)
        found.append(number)
    return found


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([5, 5, 5], [0, 0, 5]),
        ([5, 0, 5, 5, 5], [0, 0, 0, 0, 5]),  # demand came back meanwhile
        ([9, 4, 7, 7, 7], [0, 0, 4, 0, 3]),  # three more have not been too many for long
        ([2, 8, 8], [0, 0, 2]),
    ],
)
def test_those_that_were_too_many_all_the_time_are_withdrawn(numbers: list[int], expected: list[int]) -> None:
    assert withdrawn(numbers) == expected
    assert withdrawn(numbers, after_s=None) == [0] * len(numbers)
    assert withdrawn(numbers, after_s=0.0) == numbers


@settings(max_examples=200)
@given(numbers=st.lists(st.integers(0, 20), max_size=20))
def test_never_more_are_withdrawn_than_are_too_many(numbers: list[int]) -> None:
    assert all(gone <= there for gone, there in zip(withdrawn(numbers), numbers))


def test_the_newest_of_each_shape_go_first_and_none_that_runs() -> None:
    def worker(mark: str, created: float, shape: Shape = SMALL, state: WorkerState = WorkerState.SUBMITTED) -> Worker:
        return Worker(mark=mark, queue="q", state=state, shape=shape, created=created, updated=created)

    there = [
        worker("old", 1),
        worker("middle", 2),
        worker("new", 3),
        worker("runs", 9, state=WorkerState.RUNNING),
        worker("going", 8, state=WorkerState.SUBMITTING),
        worker("large", 2.5, LARGE, WorkerState.HELD),
        msgspec.structs.replace(worker("flagged", 7), cancel=True),
    ]
    chosen = choose(there, [(SMALL, 2), (LARGE, 1)], 9)
    assert [one.mark for one in chosen] == ["new", "large", "middle"]
    assert [one.mark for one in choose(there, [(SMALL, 2), (LARGE, 1)], 1)] == ["new"]
