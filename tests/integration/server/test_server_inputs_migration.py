"""A database from before file lists left the tasks' rows: nothing of them is lost, and what was under way goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from common.states import TaskState
from server.store.database import Database
from server.store.migrate import configuration, upgrade
from tests.integration.server.harness import Site


def spec(name: str, files: int = 0, source: str = "") -> str:
    listed = [{"did": f"s:f{n}", "replicas": [{"storage": "disk", "path": f"f{n}"}]} for n in range(files)]
    given = {"kind": "stage", "stage": source} if source else {"kind": "files", "files": listed}
    # As msgspec wrote it: without blanks.
    return json.dumps({"name": name, "input": given, "command": ["true"]}, separators=(",", ":"))


@pytest.fixture
def old(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of the migration before, with a workflow whose input is half resolved."""
    sqlite = kind == "sqlite"
    url = f"sqlite:///{tmp_path / 'old.db'}" if sqlite else str(request.getfixturevalue("postgres").create_database())
    database = Database(url)
    with database.write() as connection:
        command.upgrade(configuration(connection), "0004")
        connection.execute(
            text("INSERT INTO workflow (id, name, owner, scope, labels, created) VALUES (1, 'w', 'u', 'u', '{}', 0)")
        )
        rows = [
            (1, "half", "defined", spec("half", 2500), None, 1000, False),
            (2, "whole", "running", spec("whole", 3), None, 3, True),
            (3, "after", "pending", spec("after", source="half"), 1, 0, False),
        ]
        for number, stage, state, described, parent, resolved, closed in rows:
            connection.execute(
                text(
                    "INSERT INTO task (id, workflow_id, stage, position, state, priority, share, spec, parent_id, resolved,"
                    " input_closed, created) VALUES (:id, 1, :stage, :id, :state, 0, 'default', :spec, :parent, :resolved,"
                    " :closed, 0)"
                ),
                {
                    "id": number, "stage": stage, "state": state, "spec": described, "parent": parent,
                    "resolved": resolved, "closed": closed,
                },
            )  # fmt: skip
    database.close()
    return url


def test_lists_of_tasks_under_way_move_to_a_table_of_their_own(old: str) -> None:
    database = Database(old)
    assert upgrade(database)
    with database.read() as connection:
        specs = [row.spec for row in connection.execute(text("SELECT spec FROM task ORDER BY id"))]
        feeds = [tuple(row) for row in connection.execute(text("SELECT parent_id, child_id FROM task_feed"))]
    database.close()
    assert all("s:f" not in each for each in specs) and feeds == [(1, 3)]
    site = Site(old)
    site.say_up()
    site.world()
    site.agents()
    view = site.task(1)
    assert (view.input_closed, view.units) == (True, {"ready": 1500})
    units = site.units(1)
    assert [(units[n].seq, units[n].did) for n in (0, -1)] == [(1000, "s:f1000"), (2499, "s:f2499")]
    assert site.task(3).state == TaskState.PENDING
    site.database.close()
