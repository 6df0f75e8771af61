"""Who may do what: the roles, and the rules about other people's things.

A route says which roles may call it (``api/routing.Route``); the rules here decide about single things behind a route.
Groups are names that the installation chose (the mapping file turns an issuer's groups into them).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase


class Role(str, Enum):
    """Who calls."""

    ANYBODY = "anybody"
    """No credential needed."""
    USER = "user"
    """A person with a token."""
    PRODUCTION = "production"
    """A person who runs a group's production: also commands the group's tasks, with production shares and priorities."""
    ADMIN = "admin"
    """A person who runs the system; may do what users may."""
    HARVESTER = "harvester"
    """A harvester; its token's subject is the name that it reports."""
    PILOT = "pilot"
    """A registered pilot, with its own token."""
    WORKER = "worker"
    """A pilot about to register, with its worker's secret."""
    OUTSIDE_WORKER = "outside_worker"
    """A program that takes files of a project and processes them outside of the pilots' slots."""
    FOREIGN_PILOT = "foreign_pilot"
    """A pilot of another system, which has an identity in place of a worker's secret."""
    KEY_HOLDER = "key_holder"
    """Somebody who was given a request for a proxy, and has proved nothing yet: good for the answer alone."""


PEOPLE = frozenset({Role.USER, Role.PRODUCTION, Role.ADMIN})
"""Roles of people: what they change is audited."""
GIVEN = PEOPLE | {Role.HARVESTER, Role.OUTSIDE_WORKER, Role.FOREIGN_PILOT}
"""Roles that a token or the mapping file may give. Pilots, workers and key holders prove theirs otherwise."""

IDENTITY = "x509"
"""The claim of our own tokens for people who proved their certificate: its subject. They are mapped like any identity."""


class Isolation(str, Enum):
    """What people see of each other."""

    OFF = "off"
    """Everything."""
    GROUP = "group"
    """What is their own, or belongs to a group of theirs. Admins see everything."""


@dataclass(frozen=True)
class Caller:
    """Who calls, as proved by the credential."""

    name: str
    roles: frozenset[Role]
    pilot_id: int | None = None
    secret: str = field(default="", repr=False)
    token_expires: float = 0.0
    groups: frozenset[str] = frozenset()
    proof: str = ""
    """How the caller proved who it is: ``pilotage``, the label of an issuer, or ``x509``."""
    token_id: str = ""
    subject: str = ""
    """Who it is in the words of whoever issued the proof; empty where that is the server."""

    @property
    def is_admin(self) -> bool:
        """Whether the caller may act on other people's things."""
        return Role.ADMIN in self.roles

    @property
    def is_person(self) -> bool:
        """Whether this is one of the roles of people."""
        return bool(self.roles & PEOPLE)


def may_see(caller: Caller, owner: str, group: str | None, isolation: Isolation) -> bool:
    """Whether a person may look at what ``owner`` submitted for ``group`` (None: for nobody but the owner)."""
    return isolation is Isolation.OFF or caller.is_admin or owner == caller.name or group in caller.groups


def may_command(caller: Caller, owner: str, group: str | None) -> bool:
    """Whether a person may command it: the owner, production managers of its group, admins."""
    if caller.is_admin or owner == caller.name:
        return True
    return Role.PRODUCTION in caller.roles and group in caller.groups


def may_submit_for(caller: Caller, group: str | None, isolation: Isolation) -> bool:
    """Whether a person may submit in the name of ``group``.

    Members may, and admins. Where nothing is isolated, so may a person of whom no groups are known at all: a small
    installation has none.
    """
    if group is None or caller.is_admin or group in caller.groups:
        return True
    return isolation is Isolation.OFF and not caller.groups


def may_prioritise(caller: Caller, priority: int, production_priority: int) -> bool:
    """Whether a person may submit with this priority: from ``production_priority`` on it takes a production manager."""
    return priority < production_priority or bool(caller.roles & {Role.PRODUCTION, Role.ADMIN})


def may_probe(caller: Caller) -> bool:
    """Whether a person may submit probes: it takes a production manager."""
    return bool(caller.roles & {Role.PRODUCTION, Role.ADMIN})


def may_use_share(caller: Caller, share: str, production_shares: Collection[str]) -> bool:
    """Whether a person may submit to a share: a production share takes a production manager."""
    return share not in production_shares or bool(caller.roles & {Role.PRODUCTION, Role.ADMIN})


@dataclass(frozen=True)
class Bans:
    """Who gets nothing. Hosts are names or patterns (``node*.example.org``), compared in lower case."""

    users: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    host_patterns: tuple[str, ...] = ()

    def bans_host(self, host: str) -> bool:
        """Whether a pilot on this host gets nothing."""
        name = host.lower()
        return name in self.hosts or any(fnmatchcase(name, pattern) for pattern in self.host_patterns)
