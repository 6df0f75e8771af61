"""What this slot has."""

from __future__ import annotations

from pilot.probe.batch import Figure
from pilot.probe.slot import SlotLimits, SlotProbe, probe_slot

__all__ = ["Figure", "SlotLimits", "SlotProbe", "probe_slot"]
