"""What this slot has."""

from __future__ import annotations

from pilot.probe.figure import Figure
from pilot.probe.gpu_meter import GpuMeter, GpuUse
from pilot.probe.slot import SlotLimits, SlotProbe, probe_slot

__all__ = ["Figure", "GpuMeter", "GpuUse", "SlotLimits", "SlotProbe", "probe_slot"]
