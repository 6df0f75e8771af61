"""Ids are given once: names on storages contain them, tokens carry them."""

from __future__ import annotations

from collections.abc import Callable

from server.agents.accounting import keep_books
from server.agents.duties import recount
from server.agents.housekeeping import keep_house
from server.dispatch.cloning import delete_workflows
from server.store.all_tables import metadata
from server.store.database import Database
from tests.integration.server.harness import Site

YEAR_S = 365 * 86400.0


def test_no_migration_loses_autoincrement_on_sqlite(make_url_of: Callable[[str], str]) -> None:
    """Changing a table makes it anew on SQLite, which forgets the word unless it is said again."""
    database = Database(make_url_of("sqlite"))
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
    database.close()
    have = {row[0] for row in rows if "AUTOINCREMENT" in row[1]}
    wanted = {table.name for table in metadata.tables.values() if table.dialect_options["sqlite"]["autoincrement"]}
    assert wanted <= have


def test_the_id_of_an_archived_job_is_not_given_again(site: Site) -> None:
    site.world()
    site.counter(1)
    pilot = site.pilot()
    job = pilot.acquire()
    pilot.succeed(job, "o")
    site.agents()
    site.clock.advance(YEAR_S)  # type: ignore[attr-defined]
    keep_books(site.dispatcher)
    keep_house(site.dispatcher)
    site.counter(1)
    after = site.pilot().acquire()
    assert after.job_id > job.job_id


def test_ids_of_deleted_tasks_and_forgotten_pilots_are_not_given_again(site: Site) -> None:
    site.world()
    task = site.counter(1)
    pilot = site.pilot()
    pilot.end()
    site.command(task, "kill")
    site.agents()
    token = site.token("user", "u")
    assert site.raw("DELETE", f"/v1/workflows/{site.task(task).workflow_id}", token=token).status_code < 300
    while delete_workflows(site.dispatcher):
        recount(site.dispatcher)
    site.clock.advance(YEAR_S)  # type: ignore[attr-defined]
    keep_house(site.dispatcher)
    assert site.pilot().id > pilot.id
    assert site.counter(1) > task
