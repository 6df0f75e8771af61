"""The slope of a payload's memory: found where there is one, bounded in points, not fooled by the start."""

from __future__ import annotations

import random

import pytest

from pilot.watch.leak import LEAST_POINTS, MOST_POINTS, MemoryTrend


def trend(memory: list[float], step_s: float = 10.0) -> MemoryTrend:
    made = MemoryTrend()
    for n, memory_mb in enumerate(memory):
        made.add(n * step_s, memory_mb)
    return made


@pytest.mark.parametrize("n", [LEAST_POINTS, 100, 1000, 20_000])
def test_a_leak_is_found_however_long_the_payload_runs(n: int) -> None:
    noise = random.Random(n)
    leaking = trend([500.0 + k * 0.5 + noise.uniform(-0.01, 0.01) for k in range(n)])
    assert leaking.slope_kb_s() == pytest.approx(0.5 * 1024 / 10, rel=0.02)
    assert len(leaking._points) < MOST_POINTS


def test_a_payload_that_fills_its_memory_at_the_start_does_not_leak() -> None:
    assert trend([min(2000.0, 100.0 * k) for k in range(200)]).slope_kb_s() == pytest.approx(0.0)


def test_a_few_looks_tell_nothing() -> None:
    assert trend([100.0 * k for k in range(LEAST_POINTS - 1)]).slope_kb_s() == 0.0
    assert trend([100.0] * 20, step_s=0.0).slope_kb_s() == 0.0
