"""An idle fleet costs a bounded rate of requests, and new work reaches it at once: simulated, with no clock of its own."""

from __future__ import annotations

import heapq
import random
from collections import Counter

import pytest

from server.config import Knobs
from server.dispatch.idle import IdlePilots

FLEET = 10_000
UNITS = 20_000


class Fleet:
    """Idle pilots that each ask again when they were told to; those that find work ask no more."""

    def __init__(self, n: int, rate: float, processes: int = 1) -> None:
        self.now = 0.0
        self.rate = rate / processes
        self.processes = [IdlePilots() for _ in range(processes)]
        self.due = [(random.uniform(0, n / rate), pilot) for pilot in range(n)]
        heapq.heapify(self.due)
        self.requests: Counter[int] = Counter()
        self.starts: list[float] = []
        self.work = 0

    def run(self, until: float) -> None:
        while self.due and self.due[0][0] <= until:
            self.now, pilot = heapq.heappop(self.due)
            self.requests[int(self.now)] += 1
            idle = self.processes[pilot % len(self.processes)]
            if self.work:
                self.work -= 1
                idle.busy(pilot)
                self.starts.append(self.now)
                continue
            wait = idle.wait_of(pilot, "q", self.rate, self.now)
            heapq.heappush(self.due, (self.now + wait, pilot))
        self.now = until


@pytest.mark.parametrize("processes", [1, 4])
def test_ten_thousand_idle_pilots_cost_few_requests_and_start_at_once(processes: int) -> None:
    random.seed(7)
    fleet = Fleet(FLEET, Knobs().idle_requests_per_s, processes)
    fleet.run(300.0)
    settled = [fleet.requests[second] for second in range(100, 300)]
    assert max(settled) <= 500
    assert sum(settled) / len(settled) <= Knobs().idle_requests_per_s * 1.05
    fleet.work = UNITS
    fleet.run(400.0)
    assert fleet.starts[0] - 300.0 < 5.0
    busy = sum(start <= 345.0 for start in fleet.starts)
    assert busy >= 0.9 * FLEET
    assert max(fleet.requests[second] for second in range(300, 400)) <= 500


def test_a_fleet_that_comes_at_once_is_spread_out() -> None:
    random.seed(7)
    fleet = Fleet(FLEET, Knobs().idle_requests_per_s)
    fleet.due = [(0.0, pilot) for pilot in range(FLEET)]  # after an outage
    fleet.run(600.0)
    assert max(fleet.requests[second] for second in range(200, 600)) <= 500
