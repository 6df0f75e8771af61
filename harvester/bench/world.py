"""A harvester with simulated batch systems full of workers, and a stand-in for the server."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.clock import FrozenClock, SystemClock
from common.tokens import write_secret_file
from harvester.backends.fake import FakeOptions
from harvester.bench import stand_in
from harvester.config import HarvesterConfig, QueueConfig
from harvester.cycle import run_steps
from harvester.outcome import Outcome
from harvester.service import Parts, assemble

BATCH_SYSTEMS = 10
"""Queues share so many batch systems."""
GENERATIONS = 60
"""In each cycle one of so many parts of the workers ends, and as many begin."""
CYCLE_S = 60.0
"""From one cycle to the next, by the clock of the simulation."""

_LIFE = FakeOptions(start_delay_s=CYCLE_S, run_s=(GENERATIONS - 1) * CYCLE_S)


class World:
    """A harvester in ``folder``. Its clock is the simulation's; what is measured is the machine's time."""

    def __init__(self, folder: Path, server_url: str, workers: int, queues: int) -> None:
        self.config = _config(folder, server_url, workers, queues)
        self._clock = FrozenClock()
        self._watch = SystemClock()
        self.parts: Parts = assemble(self.config, self._clock)

    def fill(self) -> float:
        """Plan, announce and submit all workers, in as many generations as there are; seconds."""
        cycle = self.parts.cycle
        began = self._watch.monotonic()
        for _ in range(GENERATIONS):
            self._clock.advance(CYCLE_S)
            run_steps([cycle.provision, cycle.announce, cycle.submit], threading.Event(), Outcome())
        return self._watch.monotonic() - began

    def cycle(self) -> tuple[float, Outcome]:
        """One whole cycle: seconds, and what it did."""
        self._clock.advance(CYCLE_S)
        began = self._watch.monotonic()
        done = self.parts.cycle.run(threading.Event())
        return self._watch.monotonic() - began, done

    def restart(self) -> float:
        """Read all that is written down, as a harvester that starts does; seconds."""
        began = self._watch.monotonic()
        self.parts.cycle.sweep()
        return self._watch.monotonic() - began

    def live(self) -> int:
        """How many workers live."""
        return len(self.parts.cycle.workers.alive(self.config.queues))


@contextmanager
def world(folder: Path, workers: int, queues: int) -> Iterator[World]:
    """A harvester with its server; both end with it."""
    pilots = str(math.ceil(workers / queues))
    program = [sys.executable, "-m", stand_in.__name__, pilots]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            made = World(folder, f"http://127.0.0.1:{int(server.stdout.readline())}", workers, queues)
            try:
                yield made
            finally:
                made.parts.close()
        finally:
            server.terminate()


def _config(folder: Path, server_url: str, workers: int, queues: int) -> HarvesterConfig:
    write_secret_file(folder / "token", "a-token-of-the-benchmark")
    share = math.ceil(workers / queues)
    return HarvesterConfig(
        name="bench",
        server_url=server_url,
        token_file=str(folder / "token"),
        state_dir=str(folder / "state"),
        queues={
            f"q{number:04}": QueueConfig(
                backend="fake",
                # Queues with equal options share a batch system: one that never fails is told apart by how rarely.
                options={
                    "start_delay_s": _LIFE.start_delay_s,
                    "run_s": _LIFE.run_s,
                    "refusal_rate": (number % BATCH_SYSTEMS) * 1e-12,
                },
                max_workers=share,
                max_queued=share,
                per_cycle=math.ceil(share / GENERATIONS),
            )
            for number in range(queues)
        },
    )
