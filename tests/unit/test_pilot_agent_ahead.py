"""A pilot that claims ahead, against a fake server: real payloads, files copied for real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode
from common.states import JobState
from common.wire import AssignedUnit, FinishRequest, UnitOutcome
from pilot.agent import ExitCode
from tests.unit.pilot_fakes import FakeServer, make_assignment
from tests.unit.test_pilot_agent import Pilot, file_unit, quick_retries, running  # noqa: F401 - a fixture among them


@pytest.fixture
def fake(tmp_path: Path) -> FakeServer:
    (tmp_path / "store").mkdir()
    return FakeServer(tmp_path / "store")


class Three:
    """A first job that shows how long one takes, a second that runs until :meth:`release`, and a third behind it."""

    def __init__(self, fake: FakeServer, tmp_path: Path, **third: Any) -> None:
        self.fake = fake
        self.tmp_path = tmp_path
        self.go = tmp_path / "go"
        fake.add(make_assignment(1, "true"))
        fake.add(make_assignment(2, f"until test -e {self.go}; do sleep 0.02; done"))
        self.third = {"units": [file_unit(tmp_path, 300, b"input")], **third}

    def come_to_the_third(self) -> None:
        """Until it is claimed, while the second one runs."""
        self.fake.wait_for(lambda: JobState.RUNNING in self.fake.jobs[2].states, "the second job runs")
        self.fake.add(make_assignment(3, "cat in300.txt", **self.third))
        self.fake.wait_for(lambda: self.fake.jobs[3].pilot_id is not None, "the third job is claimed ahead")
        assert self.fake.jobs[2].report is None

    def wait_for_its_input(self) -> None:
        self.fake.wait_for(lambda: self.fetched(), "the input of the third job is here")

    def fetched(self) -> bool:
        return any((self.tmp_path / "work" / "jobs").rglob("in300.txt"))

    def release(self) -> None:
        self.go.touch()


@contextmanager
def three(fake: FakeServer, tmp_path: Path, **settings: Any) -> Iterator[tuple[Three, Pilot]]:
    """They, and a pilot that has claimed the third ahead."""
    # So slow that the third is asked for long after the second has begun, and the test can add it in between.
    jobs = Three(fake, tmp_path)
    with running(fake, tmp_path / "work", **settings) as pilot:
        jobs.come_to_the_third()
        yield jobs, pilot
        jobs.release()


@pytest.fixture(autouse=True)
def asks_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first job is over at once: without this the third would be asked for before the test has seen the second run."""
    monkeypatch.setattr("pilot.ahead.Pace.run_s", lambda pace, task_id: 1.0 if pace._ran else None)


def given_back(report: FinishRequest) -> bool:
    assert [unit.outcome for unit in report.units] == [UnitOutcome.RETURNED]
    return (report.state, report.error_code) == (JobState.CLOSED, ErrorCode.GIVEN_BACK)


def test_the_next_input_comes_while_the_payload_runs(fake: FakeServer, tmp_path: Path) -> None:
    with three(fake, tmp_path, max_jobs=3) as (jobs, pilot):
        jobs.wait_for_its_input()
        assert fake.jobs[2].report is None
        jobs.release()
        assert fake.report_of(3).state == JobState.FINISHED
        assert pilot.wait() is ExitCode.DONE
    assert set(fake.jobs[3].states) <= {JobState.SENT, JobState.RUNNING, JobState.HOLDING}


def test_a_server_that_gives_nothing_ahead_is_asked_again_when_the_payload_is_over(
    fake: FakeServer, tmp_path: Path
) -> None:
    fake.gives_ahead = False
    jobs = Three(fake, tmp_path)
    with running(fake, tmp_path / "work", max_jobs=3):
        fake.wait_for(lambda: JobState.RUNNING in fake.jobs[2].states, "the second job runs")
        asked = fake.calls["acquire"]
        fake.add(make_assignment(3, "true"))
        fake.wait_for(lambda: fake.calls["acquire"] > asked, "asked ahead")
        assert fake.jobs[3].pilot_id is None
        jobs.release()
        assert fake.report_of(3).state == JobState.FINISHED


def test_a_job_that_waits_too_long_is_given_back(
    fake: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.ahead.PATIENCE_S", 0.1)
    with three(fake, tmp_path) as (_jobs, _pilot):
        assert given_back(fake.report_of(3))
        assert "longer than expected" in fake.report_of(3).error_detail
        assert fake.jobs[2].report is None


def test_a_slot_that_is_taken_away_gives_back_what_has_not_begun(fake: FakeServer, tmp_path: Path) -> None:
    with three(fake, tmp_path) as (_jobs, pilot):
        pilot.agent.stop("SIGTERM")
        assert given_back(fake.report_of(3))
        assert fake.report_of(2).error_code == ErrorCode.SIGTERM
        assert pilot.wait() is ExitCode.STOPPED


def test_a_pilot_that_drains_ends_what_runs_and_gives_back_the_rest(fake: FakeServer, tmp_path: Path) -> None:
    with three(fake, tmp_path) as (jobs, pilot):
        fake.drain = True
        assert given_back(fake.report_of(3))
        jobs.release()
        assert fake.report_of(2).state == JobState.FINISHED
        assert pilot.wait() is ExitCode.DONE


def test_a_job_whose_input_is_missing_ends_before_its_turn(fake: FakeServer, tmp_path: Path) -> None:
    jobs = Three(fake, tmp_path)
    (tmp_path / "input" / "in300.txt").unlink()
    with running(fake, tmp_path / "work"):
        jobs.come_to_the_third()
        report = fake.report_of(3)
        assert (report.state, report.units[0].outcome) == (JobState.FAILED, UnitOutcome.LOST)
        assert fake.jobs[2].report is None
        jobs.release()
        assert fake.report_of(2).state == JobState.FINISHED


def test_what_a_pilot_that_was_killed_had_asked_ahead_is_asked_for_again(fake: FakeServer, tmp_path: Path) -> None:
    """The answer was lost with the pilot; under the same number the server gives the same job."""
    jobs = Three(fake, tmp_path)
    with running(fake, tmp_path / "work") as pilot:
        fake.wait_for(lambda: JobState.RUNNING in fake.jobs[2].states, "the second job runs")
        fake.faults["acquire"] = ["lost"] * 100
        fake.add(make_assignment(3, "true", units=[AssignedUnit(300, 0, counter=0)]))
        fake.wait_for(lambda: fake.jobs[3].pilot_id is not None, "the third job is claimed ahead")
        pilot.agent.stop("SIGTERM")
        assert pilot.wait() is ExitCode.STOPPED
    assert fake.jobs[3].report is None
    fake.faults.clear()
    jobs.release()
    with running(fake, tmp_path / "work", max_jobs=1):
        assert fake.report_of(3).state == JobState.FINISHED
