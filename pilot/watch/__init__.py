"""What a running job uses, and its limits."""

from __future__ import annotations

from pilot.watch.files import disk_usage
from pilot.watch.limits import Breach, JobLimits, JobMetrics, check_limits
from pilot.watch.rules import payload_rules
from pilot.watch.watcher import Look, Watch, Watcher

__all__ = [
    "Breach",
    "JobLimits",
    "JobMetrics",
    "Look",
    "Watch",
    "Watcher",
    "check_limits",
    "disk_usage",
    "payload_rules",
]
