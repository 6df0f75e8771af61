"""What a job used, and how it is told."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from common.states import JobState
from common.wire import AccountingRow, Metrics
from server.engine.accounting import (
    MOST_THREADS,
    ApelRecord,
    EndedJob,
    Usage,
    apel_message,
    day_number,
    day_words,
    key_of,
    month_days,
    sum_up,
    to_csv,
    usage_of,
)

DAY = 86400.0
JOB = EndedJob(
    id=1,
    task_id=2,
    queue="q",
    site="s",
    cores=4,
    state=JobState.FINISHED,
    claimed=100 * DAY,
    started=100 * DAY + 10,
    ended=100 * DAY + 3700,
    confirmed=None,
    metrics=Metrics(wall_s=3600, cpu_s=7200, energy_j=3.6e6),
    owner="alice",
    group="dune",
)


def test_core_hours_and_core_power() -> None:
    used = usage_of(JOB, 12.0)
    assert (used.jobs_ok, used.jobs_failed) == (1, 0)
    assert (used.wall_s, used.cpu_s) == (3600, 7200)
    assert used.wall_hs23_s == 3600 * 4 * 12
    assert used.cpu_hs23_s == 7200 * 12
    assert used.energy_j == 3.6e6


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.CLOSED])
def test_what_failed_used_the_slot_all_the_same(state: JobState) -> None:
    used = usage_of(replace(JOB, state=state), 10.0)
    assert (used.jobs_ok, used.jobs_failed, used.wall_s) == (0, 1, 3600)


def test_a_pilot_cannot_claim_more_time_than_went_by() -> None:
    boast = Metrics(wall_s=1e9, cpu_s=1e15, energy_j=1e30)
    used = usage_of(replace(JOB, metrics=boast), 10.0)
    assert used.wall_s == 3700
    assert used.cpu_s == MOST_THREADS * 3700
    assert used.energy_j == 100_000 * 3700


def test_negative_measures_are_nothing() -> None:
    used = usage_of(replace(JOB, metrics=Metrics(wall_s=-5, cpu_s=-5, energy_j=-5)), 10.0)
    assert (used.wall_s, used.cpu_s, used.energy_j) == (3690, 0, 0)


def test_without_measures_a_finished_job_used_what_it_ran_and_a_lost_one_nothing() -> None:
    assert usage_of(replace(JOB, metrics=None), 1.0).wall_s == 3690
    # It was declared lost long after the node died: the silence is nobody's use.
    assert usage_of(replace(JOB, metrics=None, state=JobState.FAILED), 1.0).wall_s == 0
    assert usage_of(replace(JOB, metrics=None, started=None), 1.0).wall_s == 0


def test_a_clock_set_back_makes_no_negative_use() -> None:
    assert usage_of(replace(JOB, ended=JOB.claimed - 100), 1.0).wall_s == 0


def test_the_day_is_that_of_the_pilots_end_and_not_of_the_registrations() -> None:
    waited = replace(JOB, confirmed=100 * DAY + 3700, ended=103 * DAY)
    assert key_of(waited).day == 100
    assert usage_of(waited, 1.0).last_end == 100 * DAY + 3700


def test_sums_by_key() -> None:
    other = replace(JOB, id=2, cores=1)
    later = replace(JOB, id=3, ended=100 * DAY + 5000)
    found = sum_up([(JOB, 10.0), (other, 10.0), (later, 10.0)])
    assert {key.cores: usage.jobs_ok for key, usage in found.items()} == {4: 2, 1: 1}
    both = found[key_of(JOB)]
    assert (both.wall_s, both.first_end, both.last_end) == (7200, 100 * DAY + 3700, 100 * DAY + 5000)


def test_days_and_months() -> None:
    assert day_words(day_number("2026-11-21")) == "2026-11-21"
    assert month_days("2026-12") == (day_number("2026-12-01"), day_number("2027-01-01"))
    for wrong in ("2026-13", "2026-1", "november", "", "2026-11-01"):
        with pytest.raises(ValueError, match=r"."):
            month_days(wrong)


def test_csv_has_a_heading_and_no_formulas() -> None:
    rows = [AccountingRow(key={"user": "=HYPERLINK(1)", "site": 'a,"b"'}, jobs_ok=1, wall_core_h=0.5)]
    assert to_csv(rows, ["user", "site"]) == (
        "user,site,jobs_ok,jobs_failed,wall_core_h,cpu_h,wall_hs23_h,cpu_hs23_h,energy_kwh\n"
        '\'=HYPERLINK(1),"a,""b""",1,0,0.5,0.0,0.0,0.0,0.0\n'
    )


def test_the_summary_for_apel() -> None:
    used = Usage(2, 1, 7200.4, 3600.0, 7200 * 4 * 10.0, 36000.0, 0.0, 1000.5, 2000.0)
    text = apel_message("2026-03", "ce.example.org", [ApelRecord("RAL\nSite: other", "alice", "", 4, used)])
    lines = text.splitlines()
    assert lines[0] == "APEL-normalised-summary-message: v0.4"
    assert lines[-1] == "%%"
    assert text.endswith("\n")
    fields = dict(line.split(": ", 1) for line in lines[1:-1])
    assert fields == {
        "Site": "RAL Site: other",
        "Month": "3",
        "Year": "2026",
        "GlobalUserName": "alice",
        "VO": "None",
        "SubmitHost": "ce.example.org",
        "InfrastructureType": "grid",
        "Processors": "4",
        "EarliestEndTime": "1000",
        "LatestEndTime": "2000",
        "WallDuration": "7200",
        "CpuDuration": "3600",
        "NormalisedWallDuration": "{HEPscore23: 72000}",
        "NormalisedCpuDuration": "{HEPscore23: 36000}",
        "NumberOfJobs": "3",
    }


def test_all_that_is_used_is_summed_up() -> None:
    """Also what a field that is new says."""
    sums = [each.name for each in fields(Usage) if each.name not in ("first_end", "last_end")]
    use, other = (Usage(**dict.fromkeys(sums, number)) for number in (2, 3))
    use.add(other)
    assert {name: getattr(use, name) for name in sums} == dict.fromkeys(sums, 5)
