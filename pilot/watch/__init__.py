"""What a running job uses, and its limits."""

from __future__ import annotations

from pilot.watch.watcher import Breach, JobLimits, JobMetrics, Watcher, check_limits, disk_usage

__all__ = ["Breach", "JobLimits", "JobMetrics", "Watcher", "check_limits", "disk_usage"]
