"""The worked configuration of the how-to page on how many workers is one that harvester takes, and does what it says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import tomllib

from common.wire import DemandReply, QueueSpec, Shape, ShapeDemand
from harvester.config import QueueConfig
from harvester.limits import Group
from harvester.provisioner import decide
from harvester.steering import limits_of

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "harvester-how-many.md"


def test_the_configuration_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    queue = msgspec.convert(tomllib.loads(text)["harvester"]["queues"]["GRID"], QueueConfig)
    limits = limits_of(queue, drained=False)
    small = Shape(cores=1, memory_mb=2000)
    asked = DemandReply(QueueSpec(name="GRID", site="s"), [ShapeDemand(small, pilots=300, running_jobs=40)])

    def new(queued: int, running: int) -> tuple[int, str]:
        (line,) = decide("GRID", asked, limits, [Group(small, queued, running)]).lines
        assert line.target == 300 + 130
        return line.new, line.bound

    assert new(0, 0) == (0, "max_backlog"), "nobody has asked the batch system"
    limits = msgspec.convert({**vars(limits), "max_backlog": None}, type(limits))
    assert new(0, 0) == (5, "queued_ratio"), "five in any case"
    assert new(0, 40) == (20, "queued_ratio"), "one that waits for two that run"
    assert new(0, 150) == (50, "per_cycle")
    assert new(100, 200) == (0, "max_queued")
