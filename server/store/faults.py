"""Sites at which a bucket's jobs keep failing by the site's fault."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, case, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from server.engine.matching import SiteFaults
from server.engine.outcomes import LONGEST_WAIT_S, site_wait
from server.store.schema import site_fault

_STEPS = next(n for n in range(1, 64) if site_wait(n) >= LONGEST_WAIT_S)


def note(connection: Connection, bucket_id: int, site: str, now: float) -> int:
    """One more in a row; how many now. The site gets no more of the bucket for a growing time.

    One statement, so that jobs of a bucket that fail at once are all counted.
    """
    dialect_insert: Any = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    waits = {n: now + site_wait(n + 1) for n in range(1, _STEPS)}
    statement = dialect_insert(site_fault).values(bucket_id=bucket_id, site=site, n=1, until=now + site_wait(1))
    statement = statement.on_conflict_do_update(
        index_elements=[site_fault.c.bucket_id, site_fault.c.site],
        set_={"n": site_fault.c.n + 1, "until": case(waits, value=site_fault.c.n, else_=now + LONGEST_WAIT_S)},
    ).returning(site_fault.c.n)
    return int(connection.execute(statement).scalar_one())


def forget(connection: Connection, bucket_id: int, site: str) -> None:
    """A job of the bucket succeeded at the site."""
    connection.execute(delete(site_fault).where(site_fault.c.bucket_id == bucket_id, site_fault.c.site == site))


def by_bucket(connection: Connection) -> dict[int, dict[str, SiteFaults]]:
    """For each bucket that fails somewhere, its sites. To be read with the look, once for all matches."""
    found: dict[int, dict[str, SiteFaults]] = {}
    for row in connection.execute(select(site_fault)):
        found.setdefault(row.bucket_id, {})[row.site] = SiteFaults(row.n, row.until)
    return found


def purge(connection: Connection, before: float) -> int:
    """Drop what ended before a moment; how many rows. What is tried again so late begins anew."""
    return int(connection.execute(delete(site_fault).where(site_fault.c.until < before)).rowcount)
