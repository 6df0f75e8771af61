"""The mapping file: from an issuer's groups and scopes, and from single identities, to our people, groups and roles.

It is the only place that gives a role to somebody whom another issuer vouches for: whatever a foreign token says of roles
counts for nothing. TOML, read strictly, and read again when it has changed; a file with a mistake leaves the last good one
in force. ::

    [[grant]]
    issuer = "iam"                   # label of an issuer, or "x509"
    group = "/dune/production"       # or scope = "compute.create"; * stands for anything
    groups = ["dune"]
    roles = ["user", "production"]

    [[person]]
    name = "alice"
    identities = ["iam:8a7f0c…", "x509:/DC=org/CN=Alice"]
    groups = ["dune"]
    roles = ["user"]
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Lock
from typing import Annotated

import msgspec
import tomllib

from common.clock import Clock
from common.config import ConfigError
from common.wire import Name
from server.engine.access import GIVEN, Role

logger = logging.getLogger(__name__)

X509 = "x509"
"""The label of identities that a front end passes."""
LOOK_S = 2.0
"""How often the file is looked at."""


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What members of an issuer's group, or bearers of a scope, get."""

    issuer: Name
    group: str = ""
    scope: str = ""
    groups: list[Name] = []
    roles: list[Role] = []


class MappedPerson(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A person, or a harvester, with all identities."""

    name: Name
    identities: Annotated[list[str], msgspec.Meta(min_length=1)]
    groups: list[Name] = []
    roles: list[Role] = []


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    grant: list[Grant] = []
    person: list[MappedPerson] = []


@dataclass(frozen=True)
class Identity:
    """Somebody, as another authority says: ``label`` names it, the rest are its words."""

    label: str
    subject: str
    groups: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mapped:
    """Somebody, as we know them."""

    name: str
    roles: frozenset[Role]
    groups: frozenset[str]


@dataclass(frozen=True)
class Mapping:
    """The rules of one reading of the file."""

    grants: tuple[Grant, ...] = ()
    people: dict[str, MappedPerson] = field(default_factory=dict)

    def map(self, identity: Identity) -> Mapped:
        """Who this is for us. Somebody whom no rule names keeps a name of their own, ``label:subject``, and no role."""
        own = f"{identity.label}:{identity.subject}"
        person = self.people.get(own)
        given: list[Grant | MappedPerson] = [rule for rule in self.grants if _matches(rule, identity)]
        given += [person] if person is not None else []
        return Mapped(
            person.name if person is not None else own,
            frozenset(role for rule in given for role in rule.roles),
            frozenset(group for rule in given for group in rule.groups),
        )


def _matches(rule: Grant, identity: Identity) -> bool:
    if rule.issuer != identity.label:
        return False
    if rule.group:
        return any(fnmatchcase(group, rule.group) for group in identity.groups)
    return rule.scope in identity.scopes


def read_mapping(path: Path, labels: Iterable[str]) -> Mapping:
    """The rules in a file; ``labels`` are those of the issuers that are configured. Raises ConfigError."""
    try:
        document = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Document)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error
    known = {X509, *labels}
    for number, rule in enumerate(document.grant):
        where = f"{path}: grant[{number}]"
        if rule.issuer not in known:
            raise ConfigError(f"{where}: there is no issuer {rule.issuer!r}; known: {', '.join(sorted(known))}")
        if bool(rule.group) == bool(rule.scope):
            raise ConfigError(f"{where}: give either group or scope")
        _check_roles(rule.roles, where)
    people: dict[str, MappedPerson] = {}
    for number, person in enumerate(document.person):
        where = f"{path}: person[{number}]"
        _check_roles(person.roles, where)
        for identity in person.identities:
            if identity.partition(":")[0] not in known or not identity.partition(":")[2]:
                raise ConfigError(f"{where}: identity {identity!r}: write LABEL:SUBJECT, LABEL of an issuer or x509")
            if identity in people:
                raise ConfigError(f"{where}: identity {identity!r} is {people[identity].name}'s already")
            people[identity] = person
    return Mapping(tuple(document.grant), people)


def _check_roles(roles: Iterable[Role], where: str) -> None:
    for role in roles:
        if role not in GIVEN:
            words = ", ".join(sorted(each.value for each in GIVEN))
            raise ConfigError(f"{where}: nobody can be given the role {role.value}; give one of {words}")


class MappingFile:
    """The rules in force. ``path`` empty: there are none, and nobody of another issuer gets a role.

    Raises ConfigError for a file with a mistake, at the start only.
    """

    def __init__(self, path: str, labels: Iterable[str], clock: Clock) -> None:
        self._path = Path(path) if path else None
        self._labels = frozenset(labels)
        self._clock = clock
        self._mutex = Lock()
        self._mapping = Mapping()
        self._stamp: tuple[int, int, int] | None = None
        self._looked = clock.monotonic()
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._mapping = read_mapping(self._path, self._labels)

    def get(self) -> Mapping:
        """The rules, at most LOOK_S behind the file."""
        if self._path is None or 0 <= self._clock.monotonic() - self._looked < LOOK_S:
            return self._mapping
        with self._mutex:
            self._looked = self._clock.monotonic()
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._mapping = read_mapping(self._path, self._labels)
                    logger.info("%s: read again", self._path)
                except ConfigError as error:
                    logger.error("the mapping file has a mistake; the last good one stays in force: %s", error)
            return self._mapping


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
