"""Tables of who may call: people of the built-in issuer, their logins, what was banned and revoked."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, String, Table, Text

from server.store.schema import metadata

person = Table(
    "person",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("roles", Text, nullable=False),
    Column("groups", Text, nullable=False),
    Column("created", Double, nullable=False),
)
"""A person whom the built-in issuer knows; roles and groups are JSON lists."""

login_code = Table(
    "login_code",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("person", String(255), ForeignKey("person.name"), nullable=False),
    Column("expires", Double, nullable=False),
    Column("login", String(40)),
    Index("login_code_person", "person"),
)
"""A one-time code, as its SHA-256, and the login for which it was used."""

login = Table(
    "login",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("person", String(255), ForeignKey("person.name"), nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column("created", Double, nullable=False),
    Column("renewed", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Index("login_person", "person"),
)
"""A client of a person that stays logged in; ``counter`` is how often it was renewed."""

ban = Table(
    "ban",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("author", String(255), nullable=False),
    Column("time", Double, nullable=False),
    Column("expires", Double),
)

revocation = Table(
    "revocation",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("value", String(255), primary_key=True),
    Column("reason", Text, nullable=False),
    Column("author", String(255), nullable=False),
    Column("time", Double, nullable=False),
    Column("expires", Double, nullable=False),
)
"""Tokens that no longer count; the row goes when all that it names have expired."""
