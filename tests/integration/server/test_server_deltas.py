"""Changes of counts: what their rows mean, whichever way they were written, and that none is lost when they are folded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import func, insert, select, text

from common.states import JobState, UnitState
from common.wire import FinishRequest, UnitOutcome, UnitResult
from server.store import candidates, deletions, job_counts, tasks, units
from server.store.codes import JOB_CODES, UNIT_CODES
from server.store.database import Connection, Database
from server.store.migrate import configuration
from server.store.schema import job_delta, unit_delta
from tests.integration.server.harness import Site

READY, RESERVED, DONE = (UNIT_CODES[each] for each in (UnitState.READY, UnitState.RESERVED, UnitState.DONE))
SENT, FINISHED = JOB_CODES[JobState.SENT], JOB_CODES[JobState.FINISHED]


def finished(site: Site) -> int:
    """A task of five units of which one is reserved and two are done."""
    task_id = site.counter(5)
    pilot = site.pilot()
    for _ in range(2):
        given = pilot.acquire()
        results = [UnitResult(each.unit_id, UnitOutcome.PROCESSED) for each in given.units]
        pilot.finish(given, FinishRequest(JobState.FINISHED, results))
    pilot.acquire()
    return task_id


def waiting(connection: Connection) -> int:
    return sum(
        int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for table in (unit_delta, job_delta)
    )


def told(connection: Connection, task_id: int) -> tuple[dict[UnitState, int], dict[JobState, int], list[int]]:
    ready = candidates.ready_units(connection, task_id)
    return (
        units.counts(connection, [task_id])[task_id],
        job_counts.by_task(connection, [task_id])[task_id],
        sorted(ready.values()),
    )


EXPECTED = (
    {UnitState.READY: 2, UnitState.RESERVED: 1, UnitState.DONE: 2},
    {JobState.FINISHED: 2, JobState.SENT: 1},
    [2],
)


def test_counts_are_the_same_before_amid_and_after_their_roll_up(site: Site) -> None:
    task_id = finished(site.world())
    with site.database.write() as connection:
        assert told(connection, task_id) == EXPECTED
        rows = waiting(connection)
        assert rows
        while units.roll_up(connection, limit=1) + job_counts.roll_up(connection, limit=1):
            assert told(connection, task_id) == EXPECTED
            rows -= 1
        assert waiting(connection) == 0 and rows >= 0
    site.check_counts()


def test_a_claim_and_a_confirmation_leave_one_row_each(on_postgres: Site) -> None:
    """Each row costs as much as the move that it tells of."""
    site = on_postgres
    task_id = finished(site)
    with site.database.read() as connection:
        moves = select(unit_delta.c.source, unit_delta.c.state).where(
            unit_delta.c.task_id == task_id, unit_delta.c.state != READY
        )
        jobs = select(job_delta.c.source, job_delta.c.state).where(job_delta.c.task_id == task_id)
        assert Counter(map(tuple, connection.execute(moves))) == {(READY, RESERVED): 3, (RESERVED, DONE): 2}
        assert Counter(map(tuple, connection.execute(jobs))) == {(None, SENT): 3, (SENT, FINISHED): 2}


def test_a_task_is_deleted_with_changes_of_counts_that_were_not_folded(site: Site) -> None:
    """They have no key to be deleted by."""
    task_id, other = finished(site.world()), site.counter(2)
    with site.database.write() as connection:
        while deletions.delete_slice(connection, task_id, 2):
            pass
        for table in (unit_delta, job_delta):
            left = select(func.count()).where(table.c.task_id == task_id)
            assert connection.execute(left).scalar_one() == 0, table.name
        assert units.counts(connection, [other])[other] == {UnitState.READY: 2}


@pytest.mark.parametrize(("source", "state", "drained"), [(RESERVED, DONE, 4), (READY, RESERVED, 0), (None, READY, 0)])
def test_a_task_is_looked_at_when_units_of_it_are_over(
    site: Site, source: int | None, state: int, drained: int
) -> None:
    with site.database.write() as connection:
        row = {"task_id": 7, "bucket_id": 1, "source": source, "state": state, "n": 4}
        connection.execute(insert(unit_delta).values(**row))
        found = tasks.touched(connection)
        assert (7 in found.ids, 7 in found.moved, found.drained) == (bool(drained), not drained, drained)


def test_what_was_not_folded_survives_the_migration_there_and_back(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sqlite = kind == "sqlite"
    url = f"sqlite:///{tmp_path / 'old.db'}" if sqlite else str(request.getfixturevalue("postgres").create_database())
    database = Database(url)
    sums = "SELECT task_id, {key}, state, sum(n) FROM {table} GROUP BY 1, 2, 3 HAVING sum(n) != 0 ORDER BY 1, 2, 3"

    def found(connection: Connection) -> list[list[tuple[object, ...]]]:
        wanted = (("bucket_id", "unit_delta"), ("queue", "job_delta"))
        queries = [text(sums.format(key=key, table=table)) for key, table in wanted]
        return [[tuple(row) for row in connection.execute(query)] for query in queries]

    expected = [
        [(1, 2, READY, 2), (1, 2, RESERVED, 1), (1, 2, DONE, 1)],
        [(1, "q", SENT, 1), (1, "q", FINISHED, 1)],
    ]
    with database.write() as connection:
        command.upgrade(configuration(connection), "0023")
        for state, n in ((READY, 4), (READY, -1), (RESERVED, 1)):
            values = {"state": state, "n": n}
            connection.execute(
                text("INSERT INTO unit_delta (task_id, bucket_id, state, n) VALUES (1, 2, :state, :n)"), values
            )
        connection.execute(
            text("INSERT INTO job_delta (task_id, queue, state, n, cores) VALUES (1, 'q', :state, 2, 8)"),
            {"state": SENT},
        )
    with database.write() as connection:
        command.upgrade(configuration(connection), "0024")
        connection.execute(
            text("INSERT INTO unit_delta (task_id, bucket_id, source, state, n) VALUES (1, 2, :source, :state, 1)"),
            {"source": READY, "state": DONE},
        )
        connection.execute(
            text(
                "INSERT INTO job_delta (task_id, queue, source, state, n, cores) VALUES (1, 'q', :source, :state, 1, 4)"
            ),
            {"source": SENT, "state": FINISHED},
        )
    with database.write() as connection:
        command.downgrade(configuration(connection), "0023")
        assert found(connection) == expected
        cores = connection.execute(text("SELECT state, sum(cores) FROM job_delta GROUP BY state")).all()
        assert sorted(map(tuple, cores)) == sorted([(SENT, 4), (FINISHED, 4)])
    with database.write() as connection:
        command.upgrade(configuration(connection), "0024")
        assert found(connection) == expected
    database.close()
