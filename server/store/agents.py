"""What the agents' runner keeps: leases, last runs, and since when the server has been up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from common.wire import AgentView
from server.store.lists import Insert, put
from server.store.schema import lease, liveness
from server.store.schema_events import agent_run, agent_switch

NOTE_S = 5.0
"""How often a runner writes down what its agents did."""
FORGET_S = 7 * 86400.0
"""After so long without a run, an agent that this version does not have is forgotten."""


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


@dataclass(frozen=True)
class RunNote:
    """What a runner knows of an agent, to be written down."""

    name: str
    period_s: float
    holder: str
    started: float
    seconds: float
    handled: int
    due: float
    error: str = ""
    error_time: float | None = None
    runs: int = 0
    """Runs since the last note; likewise errors and overruns."""
    errors: int = 0
    overruns: int = 0


def note_runs(connection: Connection, notes: Sequence[RunNote]) -> None:
    """Write down what agents did; in the order of their names, so that two runners never wait for each other."""
    names = (
        "name",
        "started",
        "seconds",
        "handled",
        "error",
        "error_time",
        "holder",
        "due",
        "runs",
        "errors",
        "overruns",
    )
    rows = [
        {**{name: getattr(note, name) for name in names}, "period": note.period_s}
        for note in sorted(notes, key=lambda each: each.name)
    ]
    put(connection, agent_run, rows, _add_runs)


def _add_runs(statement: Insert) -> Insert:
    new = statement.excluded
    changes: dict[str, Any] = {
        name: new[name] for name in ("started", "seconds", "handled", "error", "period", "holder", "due")
    }
    changes["error_time"] = func.coalesce(new.error_time, agent_run.c.error_time)
    changes |= {name: agent_run.c[name] + new[name] for name in ("runs", "errors", "overruns")}
    return statement.on_conflict_do_update(index_elements=[agent_run.c.name], set_=changes)


def register(connection: Connection, periods: Mapping[str, float], now: float) -> None:
    """Make the rows of agents that have none, and forget agents of other versions that are long gone."""
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    for name, period_s in sorted(periods.items()):
        values = {"name": name, "started": 0.0, "seconds": 0.0, "handled": 0, "period": period_s, "due": now}
        connection.execute(dialect_insert(agent_run).values(**values).on_conflict_do_nothing())
    old = agent_run.c.started < now - FORGET_S
    connection.execute(delete(agent_run).where(agent_run.c.name.not_in(list(periods)), old))


def switched_off(connection: Connection) -> set[str]:
    """The agents that shall not run."""
    return set(connection.execute(select(agent_switch.c.name).where(~agent_switch.c.enabled)).scalars())


def switch(connection: Connection, name: str, enabled: bool, who: str, now: float) -> bool:
    """Switch an agent on or off; False if it was so already."""
    if (name not in switched_off(connection)) == enabled:
        return False
    dialect_insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    values = {"enabled": enabled, "changed": now, "changed_by": who}
    connection.execute(
        dialect_insert(agent_switch)
        .values(name=name, **values)
        .on_conflict_do_update(index_elements=[agent_switch.c.name], set_=values)
    )
    return True


def views(connection: Connection, now: float) -> list[AgentView]:
    """All agents, by name."""
    off = switched_off(connection)
    found = []
    for row in connection.execute(select(agent_run).order_by(agent_run.c.name)):
        enabled = row.name not in off
        late_s = max(0.0, now - row.due) if enabled and row.due is not None else 0.0
        found.append(
            AgentView(
                name=row.name,
                enabled=enabled,
                period_s=row.period,
                started=row.started or None,
                seconds=row.seconds,
                handled=row.handled,
                due=row.due if enabled else None,
                overrun=row.seconds > row.period > 0,
                # Its row is as old as the time between two notes allows, and it may be at work just now.
                late_s=round(late_s, 1) if late_s > NOTE_S + row.period else 0.0,
                runs=row.runs,
                errors=row.errors,
                overruns=row.overruns,
                error=row.error,
                error_time=row.error_time,
                holder=row.holder,
            )
        )
    return found


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
