"""What pilots report of their jobs, as the server keeps it."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from common.states import JobState
from common.wire import JobReport, Metrics
from server.store.reports import metrics_in, report_text

METRICS = st.builds(
    Metrics,
    **{
        field.name: st.integers(0, 2**60) if field.type is int else st.floats(0, 1e15)
        for field in msgspec.structs.fields(Metrics)
    },
)
REPORTS = st.dictionaries(st.integers(1, 2**62), st.none() | METRICS, min_size=1, max_size=20)


@given(REPORTS)
def test_what_is_kept_is_what_was_reported(reports: dict[int, Metrics | None]) -> None:
    text = report_text([JobReport(number, JobState.RUNNING, metrics) for number, metrics in reports.items()])
    assert text is not None
    assert {number: metrics_in(text, number) for number in reports} == reports
    assert metrics_in(text, 2**62 + 1) is None


def test_a_pilot_without_jobs_says_nothing_new() -> None:
    assert report_text([]) is None


def test_what_a_server_of_another_version_kept_can_be_read() -> None:
    assert metrics_in("[[7,[3.5,2.0]]]", 7) == Metrics(wall_s=3.5, cpu_s=2.0)
    longer = msgspec.json.encode([[7, [*msgspec.structs.astuple(Metrics(wall_s=3.5)), "new", [1]]]]).decode()
    assert metrics_in(longer, 7) == Metrics(wall_s=3.5)
    assert metrics_in('{"jobs":[{"job_id":7,"state":"running","metrics":{"wall_s":3.5}}]}', 7) is None


def test_it_is_short() -> None:
    metrics = Metrics(**{field.name: 1234 for field in msgspec.structs.fields(Metrics)})
    report = JobReport(1, JobState.RUNNING, metrics)
    assert len(report_text([report]) or "") < len(msgspec.json.encode(report)) / 3
