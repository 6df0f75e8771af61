"""The heartbeat when the server does not accept the pilot."""

from __future__ import annotations

import queue
import random
from collections.abc import Hashable
from typing import Callable

import pytest

from common.clock import FrozenClock
from common.wire import HeartbeatReply, HeartbeatRequest
from pilot.client import NotAccepted, ServerAway, ServerError
from pilot.heart import Heart
from pilot.loop import Loop

INTERVAL_S = 60.0


class Stepped(Loop):
    """A loop that the test turns: nothing happens between two steps."""

    def __init__(self, clock: FrozenClock) -> None:
        super().__init__(clock)
        self.clock = clock
        self.answers: queue.Queue[Callable[[], None]] = queue.Queue()
        self.timers: dict[Hashable, tuple[float, Callable[[], None]]] = {}

    def post(self, call: Callable[[], None]) -> None:
        self.answers.put(call)

    def after(self, key: Hashable, delay_s: float, call: Callable[[], None]) -> None:
        self.timers[key] = (delay_s, call)

    def cancel(self, key: Hashable) -> None:
        self.timers.pop(key, None)

    def is_set(self, key: Hashable) -> bool:
        return key in self.timers

    def step(self) -> float:
        """Let the time of the only timer come, and the answer to the call that it makes; how long that took."""
        ((delay_s, call),) = self.timers.values()
        self.timers.clear()
        self.clock.advance(delay_s)
        call()
        self.answers.get(timeout=120)()
        return delay_s


class Beating:
    """A heart, and a server whose next answers a test chooses."""

    def __init__(self) -> None:
        self.clock = FrozenClock()
        self.loop = Stepped(self.clock)
        self.error: ServerError | None = None
        self.rejected: list[str] = []
        rng = random.Random(1)
        self.heart = Heart(self.loop, self, list, lambda reply: None, self._on_rejected, rng, self.clock)  # type: ignore[arg-type]
        self.heart.start(INTERVAL_S)

    def heartbeat(self, request: HeartbeatRequest) -> HeartbeatReply:
        if self.error is not None:
            raise self.error
        return HeartbeatReply([], INTERVAL_S)

    def _on_rejected(self, reason: str) -> None:
        self.rejected.append(reason)
        self.heart.stop()

    def beat(self, error: ServerError | None = None) -> float:
        self.error = error
        return self.loop.step()


@pytest.fixture
def beating() -> Beating:
    return Beating()


def test_refused_heartbeats_are_repeated_for_ten_minutes_before_all_is_given_up(beating: Beating) -> None:
    """A bug: the first 401 made the pilot forget its jobs and kill their payloads."""
    for _ in range(10):
        assert beating.beat(NotAccepted("401 unknown")) == INTERVAL_S
        assert beating.rejected == []
    assert beating.clock.monotonic() == 600.0 < 600.0 + INTERVAL_S
    beating.beat(NotAccepted("401 unknown"))
    assert beating.rejected == ["401 unknown"]
    assert not beating.loop.timers


@pytest.mark.parametrize("other", [None, ServerAway("restarting")])
def test_only_refusals_in_a_row_count(beating: Beating, other: ServerError | None) -> None:
    for _ in range(10):
        beating.beat(NotAccepted("401 unknown"))
    beating.beat(other)
    for _ in range(10):
        beating.beat(NotAccepted("401 unknown"))
    assert beating.rejected == []
    beating.clock.advance(INTERVAL_S)
    beating.beat(NotAccepted("401 unknown"))
    assert beating.rejected == ["401 unknown"]
