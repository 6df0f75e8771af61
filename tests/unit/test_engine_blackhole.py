"""A host that swallows jobs gets none; one broken task, one bad site and one lucky host don't do that to a host."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.errors import ErrorCode
from server.engine.blackhole import HostLimits, HostRecord, after_failure, forgotten, suspected, suspicious

LIMITS = HostLimits(failures=4, tasks=2, window_s=100, fast_s=60, block_s=10, most_s=1000, hosts=3)


def fail(record: HostRecord, *tasks: int, payload: bool = False, others: int = 0, now: float = 1000.0) -> HostRecord:
    for task in tasks:
        record = after_failure(record, task, payload, LIMITS, others, now)
    return record


def test_a_host_that_fails_jobs_of_several_tasks_is_blocked() -> None:
    three = fail(HostRecord(), 1, 2, 1)
    assert three.until == 0 and three.failures == 3
    assert fail(three, 1) == HostRecord(until=1010, blocks=1)


def test_one_broken_task_blocks_no_host() -> None:
    assert fail(HostRecord(), *[1] * 50).until == 0
    assert fail(HostRecord(), *[1] * 50, 2).until > 0  # its site's fault, and another task fails there as well


def test_two_broken_payloads_block_no_host() -> None:
    record = fail(HostRecord(), *[1, 2] * 50, payload=True)
    assert record.until == 0 and record.failures == 2
    assert fail(record, 3, 4, payload=True).until > 0


def test_failures_far_apart_don_t_count_together() -> None:
    record = HostRecord()
    for n in range(100):
        record = fail(record, n, now=1000.0 + 51 * n)
        assert record.until == 0
    assert record.failures <= 2


def test_each_further_block_is_twice_as_long_up_to_a_bound() -> None:
    record, now, lengths = HostRecord(), 1000.0, []
    for _ in range(12):
        record = fail(record, 1, 2, 3, 4, now=now)
        lengths.append(record.until - now)
        now = record.until + 1
    assert lengths[:4] == [10, 20, 40, 80] and lengths[-1] == 1000


def test_a_block_is_forgotten_in_the_end() -> None:
    record = fail(HostRecord(), 1, 2, 3, 4)
    assert fail(record, 1, 2, 3, 4, now=record.until + 1).blocks == 2
    assert fail(record, 1, 2, 3, 4, now=record.until + 1001).blocks == 1
    assert not forgotten(record, LIMITS, record.until + 999) and forgotten(record, LIMITS, record.until + 1001)


def test_late_failures_of_a_blocked_host_change_nothing() -> None:
    record = fail(HostRecord(), 1, 2, 3, 4)
    assert fail(record, 5, 6, 7, 8, 9) == record


def test_when_many_hosts_fail_it_is_not_the_hosts() -> None:
    assert fail(HostRecord(), 1, 2, 3, 4, 5, others=3).until == 0
    assert fail(HostRecord(), 1, 2, 3, 4, 5, others=2).until > 0


def test_what_may_be_a_hosts_fault() -> None:
    assert suspicious(ErrorCode.STAGE_IN_FAILED, 9999, LIMITS)
    assert suspicious(ErrorCode.PAYLOAD_FAILED, 59, LIMITS)
    assert not suspicious(ErrorCode.PAYLOAD_FAILED, 60, LIMITS)
    for code in (ErrorCode.HEARTBEAT_LOST, ErrorCode.PREEMPTED, ErrorCode.KILLED_BY_SERVER, None):
        assert not suspicious(code, 1, LIMITS)


def test_a_success_is_worth_noting_on_suspects_only() -> None:
    assert [suspected(HostRecord(failures=n), LIMITS) for n in range(4)] == [False, False, True, True]
    assert suspected(HostRecord(blocks=1), LIMITS)


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.floats(0, 200)), max_size=60))
def test_a_block_has_its_reasons(history: list[tuple[int, bool, float]]) -> None:
    record, now = HostRecord(), 1000.0
    for task, payload, pause in history:
        now += pause
        before = record
        record = after_failure(record, task, payload, LIMITS, 0, now)
        assert len(record.tasks) <= LIMITS.failures
        if record.until > before.until:
            assert now < record.until <= now + LIMITS.most_s and record.blocks >= 1
            assert before.failures == LIMITS.failures - 1 or len(before.tasks) < LIMITS.tasks
