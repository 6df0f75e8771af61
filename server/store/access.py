"""People of the built-in issuer, their logins, bans and revocations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, Table, delete, insert, inspect, or_, select, update

from common.wire import BanKind, BanView, RevocationKind, RevocationView
from server.engine.access import Bans
from server.store.schema import job, setting, task, workflow
from server.store.schema_access import ban, login, login_code, person, revocation
from server.store.schema_archive import job_archive


@dataclass(frozen=True)
class PersonRow:
    """A person whom the built-in issuer knows."""

    name: str
    roles: list[str]
    groups: list[str]
    created: float


@dataclass(frozen=True)
class LoginRow:
    """A client that stays logged in; ``counter`` is how often it was renewed, ``renewed`` when it last was."""

    id: str
    person: str
    counter: int
    renewed: float
    expires: float


@dataclass(frozen=True)
class Revoked:
    """Tokens that no longer count: by id, by pilot, and those of a person up to a moment."""

    tokens: frozenset[str] = frozenset()
    pilots: frozenset[int] = frozenset()
    people: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """What somebody may see where people are kept apart: what is theirs, or their groups'."""

    owner: str
    groups: Sequence[str]

    def workflows(self) -> ColumnElement[bool]:
        """As a condition on workflows."""
        return or_(workflow.c.owner == self.owner, workflow.c.group_name.in_(self.groups))

    def tasks(self) -> Select[tuple[int]]:
        """The ids of their tasks."""
        return select(task.c.id).join(workflow, workflow.c.id == task.c.workflow_id).where(self.workflows())


def seen_tasks(connection: Connection, sight: Sight, task_ids: Iterable[int]) -> set[int]:
    """Those of some tasks that are in sight."""
    return set(connection.scalars(sight.tasks().where(task.c.id.in_(list(task_ids)))))


_OWNER = select(workflow.c.owner, workflow.c.group_name)
_OF_TASK = _OWNER.join(task, task.c.workflow_id == workflow.c.id)
OWNERS = {
    "workflow": (_OWNER, workflow.c.id),
    "task": (_OF_TASK, task.c.id),
    "job": (_OF_TASK.join(job, job.c.task_id == task.c.id), job.c.id),
}
"""How the owner of a thing is found: the query, and the column with the thing's id."""
_ARCHIVED = (_OF_TASK.join(job_archive, job_archive.c.task_id == task.c.id), job_archive.c.id)


def owner_of(connection: Connection, word: str, number: int) -> tuple[str, str | None] | None:
    """Owner and group of a ``workflow``, ``task`` or ``job``; None if there is none of that number."""
    for query, column in (OWNERS[word], *([_ARCHIVED] if word == "job" else [])):
        row = connection.execute(query.where(column == number)).one_or_none()
        if row is not None:
            return row.owner, row.group_name
    return None


def put_person(connection: Connection, name: str, roles: Sequence[str], groups: Sequence[str], now: float) -> None:
    """Make a person known, or change roles and groups."""
    values = {
        "roles": msgspec.json.encode(sorted(set(roles))).decode(),
        "groups": msgspec.json.encode(sorted(set(groups))).decode(),
    }
    if not connection.execute(update(person).where(person.c.name == name).values(**values)).rowcount:
        connection.execute(insert(person).values(name=name, created=now, **values))


def get_person(connection: Connection, name: str) -> PersonRow | None:
    """A person by name."""
    row = connection.execute(select(person).where(person.c.name == name)).one_or_none()
    return None if row is None else _person(row)


def people(connection: Connection) -> list[PersonRow]:
    """Everybody, by name."""
    return [_person(row) for row in connection.execute(select(person).order_by(person.c.name))]


def _person(row: Any) -> PersonRow:
    return PersonRow(row.name, msgspec.json.decode(row.roles), msgspec.json.decode(row.groups), row.created)


def remove_person(connection: Connection, name: str) -> bool:
    """Forget a person with codes and logins; False if nobody of that name was known."""
    connection.execute(delete(login_code).where(login_code.c.person == name))
    remove_logins(connection, name)
    return bool(connection.execute(delete(person).where(person.c.name == name)).rowcount)


def put_code(connection: Connection, code_hash: str, name: str, expires: float, now: float) -> None:
    """Keep a one-time code of a person in place of earlier ones."""
    connection.execute(delete(login_code).where(or_(login_code.c.person == name, login_code.c.expires <= now)))
    connection.execute(insert(login_code).values(hash=code_hash, person=name, expires=expires))


def use_code(connection: Connection, code_hash: str, login_id: str, now: float) -> tuple[str, bool] | None:
    """Use a code for a login: whose it is, and whether it was used for this very login before.

    None for a code that is not, or no longer, good, or that served another login.
    """
    where = (login_code.c.hash == code_hash) & (login_code.c.expires > now)
    row = connection.execute(select(login_code).where(where).with_for_update()).one_or_none()
    if row is None or row.login not in (None, login_id):
        return None
    connection.execute(update(login_code).where(login_code.c.hash == code_hash).values(login=login_id))
    return row.person, row.login is not None


def add_login(connection: Connection, login_id: str, name: str, expires: float, now: float) -> None:
    """Write down that a person logged in. What has expired goes."""
    connection.execute(delete(login).where(login.c.expires <= now))
    values = {"id": login_id, "person": name, "counter": 0, "created": now, "renewed": now, "expires": expires}
    connection.execute(insert(login).values(**values))


def get_login(connection: Connection, login_id: str) -> LoginRow | None:
    """A login, held until the transaction ends."""
    row = connection.execute(select(login).where(login.c.id == login_id).with_for_update()).one_or_none()
    return None if row is None else LoginRow(row.id, row.person, row.counter, row.renewed, row.expires)


def renew_login(connection: Connection, login_id: str, counter: int, expires: float, now: float) -> bool:
    """Count a login on from ``counter``; False if somebody else has done so meanwhile."""
    where = (login.c.id == login_id) & (login.c.counter == counter)
    values = {"counter": counter + 1, "renewed": now, "expires": expires}
    return bool(connection.execute(update(login).where(where).values(**values)).rowcount)


def remove_login(connection: Connection, login_id: str) -> bool:
    """End a login; False if there was none."""
    return bool(connection.execute(delete(login).where(login.c.id == login_id)).rowcount)


def remove_logins(connection: Connection, name: str) -> int:
    """End all logins of a person; how many."""
    return connection.execute(delete(login).where(login.c.person == name)).rowcount


def token_epoch(connection: Connection) -> int:
    """The epoch in which tokens are minted now; 0 in a database that no server has prepared yet."""
    if not inspect(connection).has_table(setting.name):
        return 0
    value = connection.execute(select(setting.c.value).where(setting.c.key == "token_epoch")).scalar()
    return int(msgspec.json.decode(value)) if value is not None else 0


def bans(connection: Connection, now: float) -> Bans:
    """Who gets nothing now. Names of hosts are in lower case; one with ``*``, ``?`` or ``[`` is a pattern."""
    found = list_bans(connection, now)
    hosts = [each.name.lower() for each in found if each.kind is BanKind.HOST]
    patterns = tuple(name for name in hosts if set(name) & set("*?["))
    users = frozenset(each.name for each in found if each.kind is BanKind.USER)
    return Bans(users, frozenset(hosts) - set(patterns), patterns)


def list_bans(connection: Connection, now: float) -> list[BanView]:
    """The bans in force, by kind and name."""
    query = select(ban).where(or_(ban.c.expires.is_(None), ban.c.expires > now)).order_by(ban.c.kind, ban.c.name)
    return [
        BanView(BanKind(row.kind), row.name, row.reason, row.author, row.time, row.expires)
        for row in connection.execute(query)
    ]


def put_ban(connection: Connection, view: BanView) -> None:
    """Ban, or change a ban. Those that have expired go."""
    connection.execute(delete(ban).where(ban.c.expires <= view.time))
    values = {"reason": view.reason, "author": view.author, "time": view.time, "expires": view.expires}
    _put(connection, ban, {"kind": view.kind, "name": view.name}, values)


def remove_ban(connection: Connection, kind: BanKind, name: str) -> bool:
    """Lift a ban; False if there was none."""
    return bool(connection.execute(delete(ban).where(ban.c.kind == kind.value, ban.c.name == name)).rowcount)


def revoked(connection: Connection, now: float) -> Revoked:
    """The tokens that no longer count."""
    found = list_revocations(connection, now)
    return Revoked(
        frozenset(each.value for each in found if each.kind is RevocationKind.TOKEN),
        frozenset(int(each.value) for each in found if each.kind is RevocationKind.PILOT),
        {each.value: each.time for each in found if each.kind is RevocationKind.PERSON},
    )


def list_revocations(connection: Connection, now: float) -> list[RevocationView]:
    """The revocations that still matter, by kind and value."""
    query = select(revocation).where(revocation.c.expires > now).order_by(revocation.c.kind, revocation.c.value)
    return [
        RevocationView(RevocationKind(row.kind), row.value, row.reason, row.author, row.time, row.expires)
        for row in connection.execute(query)
    ]


def put_revocation(connection: Connection, view: RevocationView) -> None:
    """Revoke; again for a later moment. Those that have expired go."""
    connection.execute(delete(revocation).where(revocation.c.expires <= view.time))
    values = {"reason": view.reason, "author": view.author, "time": view.time, "expires": view.expires}
    _put(connection, revocation, {"kind": view.kind, "value": view.value}, values)


def _put(connection: Connection, table: Table, key: dict[str, object], values: dict[str, object]) -> None:
    plain = {name: part.value if isinstance(part, Enum) else part for name, part in key.items()}
    where = [table.c[name] == part for name, part in plain.items()]
    if not connection.execute(update(table).where(*where).values(**values)).rowcount:
        connection.execute(insert(table).values(**plain, **values))
