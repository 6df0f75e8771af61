"""``pilotage show task`` tells what was measured, in words."""

from __future__ import annotations

from common.cli.measured import measured_fields
from common.wire import Measured


def test_nothing_is_told_before_anything_was_measured() -> None:
    assert measured_fields(None) == []


def test_measured_figures_are_told_with_their_units() -> None:
    told = dict(measured_fields(Measured(1, 5, 1.0, 90.0, 550.0, 2048.0, None, 10.5, None, 0.85, 1900.0, ["memory"])))
    assert str(told["measured"]).startswith("by 5 jobs, once, ")
    assert told["  CPU time"] == "90 HS23 s an event"
    assert told["  memory"] == "550 MiB a core, margin included"
    assert told["  output"] == "2048 KiB an event"
    assert told["  work space"] is None, "what is not known is left out"
    assert told["  CPU use"] == "85% of its cores"
    assert told["  ran for"] == "31m40s"
    assert told["  problems"] == ["memory"]
