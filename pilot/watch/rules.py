"""Where the limits of payloads come from: the queue's, else the pilot's own configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from common.wire import PayloadLimits
from pilot.config import PilotConfig


@dataclass(frozen=True)
class PayloadRules:
    """See :class:`common.wire.PayloadLimits`; zero: it is not looked at."""

    memory_factor: float
    memory_grace_s: float
    stdout_mb: int
    processes: int
    looping_s: float
    wall_warning_s: float


def payload_rules(config: PilotConfig, queue: Optional[PayloadLimits]) -> PayloadRules:
    """What holds for payloads in a queue."""
    said = queue or PayloadLimits()
    return PayloadRules(
        memory_factor=config.memory_factor if said.memory_factor is None else said.memory_factor,
        memory_grace_s=config.memory_grace_s if said.memory_grace_s is None else float(said.memory_grace_s),
        stdout_mb=config.stdout_limit_mb if said.stdout_mb is None else said.stdout_mb,
        processes=config.processes_limit if said.processes is None else said.processes,
        looping_s=config.looping_s if said.looping_s is None else float(said.looping_s),
        wall_warning_s=config.wall_warning_s if said.wall_warning_s is None else float(said.wall_warning_s),
    )
