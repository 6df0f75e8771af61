"""Secrets of people, for their own payloads: sealed in the database, opened for the jobs that ask for them.

They are sealed with AES-GCM under a key derived from the server's signing key, so a copy of the database alone tells
nothing, and bound to owner and name, so that one cannot be put in another's place. Nobody is told them again but a
pilot that runs a job of a task that names them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.wire import SecretList, SecretView
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, NotFound
from server.store import secrets

logger = logging.getLogger(__name__)

PURPOSE = "user secrets"
NONCE_BYTES = 12
MOST = 100
"""Secrets of a person."""


def put(dispatcher: Dispatcher, owner: str, name: str, value: str) -> SecretView:
    """Keep a secret of a person.

    Raises:
        Conflict: there are too many.
    """
    now = dispatcher.now()
    nonce = os.urandom(NONCE_BYTES)
    sealed = nonce + _cipher(dispatcher).encrypt(nonce, value.encode(), _bound(owner, name))
    with dispatcher.database.write() as connection:
        known = [each.name for each in secrets.of_owner(connection, owner)]
        if name not in known and len(known) >= MOST:
            raise Conflict(f"{owner} has {len(known)} secrets already: remove one first")
        secrets.put(connection, owner, name, sealed, now)
    return SecretView(name, now)


def mine(dispatcher: Dispatcher, owner: str) -> SecretList:
    """The names of a person's secrets."""
    with dispatcher.database.read() as connection:
        return SecretList(secrets.of_owner(connection, owner))


def drop(dispatcher: Dispatcher, owner: str, name: str) -> None:
    """Forget a secret."""
    with dispatcher.database.write() as connection:
        if not secrets.drop(connection, owner, name):
            raise NotFound(f"{owner} has no secret {name!r}")


def open_secrets(dispatcher: Dispatcher, owner: str, names: Sequence[str]) -> dict[str, str]:
    """What these secrets of a person are; one that is not there (any more), or was sealed with another key, is left out:
    its job then fails on that, and no other does."""
    with dispatcher.database.read() as connection:
        found = secrets.sealed(connection, owner, names)
    cipher = _cipher(dispatcher)
    opened = {}
    for name, sealed in found.items():
        try:
            clear = cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound(owner, name))
        except InvalidTag:
            logger.error("secret %r of %s was sealed with another key: its owner has to set it again", name, owner)
            continue
        opened[name] = clear.decode()
    return opened


def _bound(owner: str, name: str) -> bytes:
    return f"{len(owner)}:{owner}:{name}".encode()


def _cipher(dispatcher: Dispatcher) -> AESGCM:
    return AESGCM(dispatcher.issuer.derived_key(PURPOSE))
