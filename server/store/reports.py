"""What pilots reported of their jobs, as it is kept: without the names of what was measured.

With them it would be several times as long, for each of hundreds of thousands of pilots, whose rows are written in turn: so
the table stays in the database's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from common.wire import JobReport, Metrics

_DECODER = msgspec.json.Decoder(list[tuple[int, list[Any]]])


def report_text(reports: Sequence[JobReport]) -> str | None:
    """Of each job that has metrics its number and their values, in their order, as JSON; None of no job."""
    if not reports:
        return None
    lines = [(each.job_id, msgspec.structs.astuple(each.metrics)) for each in reports if each.metrics is not None]
    return msgspec.json.encode(lines).decode()


def metrics_in(text: str, job_id: int) -> Metrics | None:
    """What such a text says of a job."""
    if not text.startswith("["):
        return None  # with names, of an earlier server: it is told anew with the next heartbeat
    for number, values in _DECODER.decode(text):
        if number == job_id:
            # A server of a later version may have written more than is known here.
            return Metrics(*values[: len(Metrics.__struct_fields__)])
    return None
