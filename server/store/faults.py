"""Sites at which a bucket's jobs keep failing by the site's fault."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from server.engine.matching import SiteFaults
from server.engine.outcomes import site_wait
from server.store.schema import site_fault


def note(connection: Connection, bucket_id: int, site: str, now: float) -> int:
    """One more in a row; how many now. The site gets no more of the bucket for a growing time."""
    where = (site_fault.c.bucket_id == bucket_id) & (site_fault.c.site == site)
    n = int(connection.execute(select(site_fault.c.n).where(where).with_for_update()).scalar() or 0) + 1
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"n": n, "until": now + site_wait(n)}
    connection.execute(
        dialect_insert(site_fault)
        .values(bucket_id=bucket_id, site=site, **values)
        .on_conflict_do_update(index_elements=[site_fault.c.bucket_id, site_fault.c.site], set_=values)
    )
    return n


def forget(connection: Connection, bucket_id: int, site: str) -> None:
    """A job of the bucket succeeded at the site."""
    connection.execute(delete(site_fault).where(site_fault.c.bucket_id == bucket_id, site_fault.c.site == site))


def by_bucket(connection: Connection) -> dict[int, dict[str, SiteFaults]]:
    """For each bucket that fails somewhere, its sites."""
    found: dict[int, dict[str, SiteFaults]] = {}
    for row in connection.execute(select(site_fault)):
        found.setdefault(row.bucket_id, {})[row.site] = SiteFaults(row.n, row.until)
    return found
