"""What the agents' runner keeps: leases, last runs, and since when the server has been up."""

from __future__ import annotations

from sqlalchemy import Connection, case, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from server.store.schema import agent_run, lease, liveness


def take_lease(connection: Connection, name: str, holder: str, until: float, now: float) -> bool:
    """Become or remain the holder of a lease; False while another one holds it."""
    changed = connection.execute(
        update(lease)
        .where(lease.c.name == name, or_(lease.c.holder == holder, lease.c.expires < now))
        .values(holder=holder, expires=until)
    )
    if changed.rowcount:
        return True
    if connection.execute(select(lease.c.name).where(lease.c.name == name)).first() is not None:
        return False
    try:
        with connection.begin_nested():
            connection.execute(insert(lease).values(name=name, holder=holder, expires=until))
    except IntegrityError:
        return False
    return True


def holders(connection: Connection) -> list[tuple[str, str]]:
    """The leases that were not given back, with their holders."""
    return [(row.name, row.holder) for row in connection.execute(select(lease).where(lease.c.expires > 0.0))]


def drop_lease(connection: Connection, name: str, holder: str) -> None:
    """Give a lease back, so that another process need not wait for its end."""
    connection.execute(update(lease).where(lease.c.name == name, lease.c.holder == holder).values(expires=0.0))


def note_run(connection: Connection, name: str, started: float, seconds: float, handled: int, error: str) -> None:
    """Write down an agent's last run."""
    values = {"started": started, "seconds": seconds, "handled": handled, "error": error}
    if not connection.execute(update(agent_run).where(agent_run.c.name == name).values(**values)).rowcount:
        connection.execute(insert(agent_run).values(name=name, **values))


def seen_up(connection: Connection, gap_s: float, now: float) -> None:
    """The web side is up. After a gap of more than ``gap_s``, or a clock set back, it counts as just come up."""
    up_since = case((or_(liveness.c.seen < now - gap_s, liveness.c.up_since > now), now), else_=liveness.c.up_since)
    if not connection.execute(update(liveness).where(liveness.c.id == 1).values(up_since=up_since, seen=now)).rowcount:
        dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        connection.execute(dialect_insert(liveness).values(id=1, up_since=now, seen=now).on_conflict_do_nothing())


def up_since(connection: Connection, gap_s: float, now: float) -> float | None:
    """Since when the web side has been up without a gap; None while it is down."""
    row = connection.execute(select(liveness).where(liveness.c.id == 1)).first()
    if row is None or row.seen < now - gap_s:
        return None
    return min(float(row.up_since), now)
