"""What a task's jobs were measured to need, in words: a part of ``pilotage show task``."""

from __future__ import annotations

from typing import Optional

from common.cli import render
from common.quantities import format_duration
from common.wire import Measured


def measured_fields(measured: Optional[Measured]) -> list[tuple[str, object]]:
    """Names and values for :func:`common.cli.render.print_fields`; none before anything was measured."""
    if measured is None:
        return []
    return [
        ("measured", f"by {measured.jobs} jobs, {_round(measured.round)}, {render.moment(measured.time)}"),
        ("  CPU time", _figure(measured.cpu_per_event, "HS23 s an event")),
        ("  memory", _figure(measured.memory_per_core_mb, "MiB a core, margin included")),
        ("  output", _figure(measured.out_kb_per_event, "KiB an event")),
        ("  work space", _figure(measured.work_mb, "MiB")),
        ("  I/O", _figure(measured.io_kb_s, "kB/s of input and output")),
        ("  disk I/O", _figure(measured.disk_io_kb_s, "kB/s")),
        ("  CPU use", None if measured.cpu_efficiency is None else f"{measured.cpu_efficiency:.0%} of its cores"),
        ("  ran for", None if measured.wall_s is None else format_duration(round(measured.wall_s, 1))),
        ("  problems", measured.problems),
    ]


def _round(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _figure(value: Optional[float], unit: str) -> Optional[str]:
    return None if value is None else f"{value:.4g} {unit}"
