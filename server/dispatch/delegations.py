"""People delegate to the server: a proxy for a key that the server made, which never leaves it in clear.

Key and chain are sealed as secrets of people are, see :mod:`server.dispatch.secrets`. A request for a proxy comes with a
token that is worth nothing but to answer it.
"""

from __future__ import annotations

import logging
import os
import secrets as random

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.proxies import BadIssuer, BadRequest, sign_proxy
from common.tokens import LEEWAY_S
from common.wire import RevocationKind, RevocationView
from common.wire.direct import DirectProxiesReply, DirectProxiesRequest, ProxySigned, ProxyWanted
from common.x509 import new_request
from server.access.chains import Proved
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid, NotFound
from server.engine.access import IDENTITY, Caller, Role
from server.store import access, delegations
from server.store.delegations import ProxyRow

logger = logging.getLogger(__name__)

PURPOSE = "delegated proxies"
NONCE_BYTES = 12
ANSWER_S = 600.0
"""How long a request may be answered."""
MOST_UNANSWERED = 1000
"""Requests that wait for an answer at a time."""
KEPT_S = 7 * 86400.0
"""How long a proxy that has ended is kept: its number stays its person's if that delegates anew."""
LONGEST_S = 24 * 3600.0
"""The longest life of a proxy that harvester gets; it asks for another one ahead of its end."""
HOLDER = "proxy:"
"""How the name of the bearer of a request's token begins."""


class _Kept(msgspec.Struct):
    """What is sealed."""

    key: str
    chain: str = ""
    subject: str = ""


def begin(dispatcher: Dispatcher, shown: Proved) -> tuple[str, str]:
    """Make a key and a request for a proxy; the token that is good for the answer, and the request (PEM).

    ``shown`` is the chain that the caller has shown, which proves nothing: anybody may know it.

    Raises:
        Conflict: too many wait.
    """
    now = dispatcher.now()
    with dispatcher.database.read() as connection:
        if delegations.unanswered(connection, now) >= MOST_UNANSWERED:
            raise Conflict("too many requests for proxies wait for an answer: try again in a few minutes")
    key, request = new_request()
    with dispatcher.database.write() as connection:
        proxy_id = delegations.add(connection, random.token_hex(16), now + ANSWER_S, now)
        delegations.seal(connection, proxy_id, _seal(dispatcher, proxy_id, _Kept(key, subject=shown.subject)))
    epoch = dispatcher.looks.get().knobs.token_epoch
    token = dispatcher.issuer.mint(f"{HOLDER}{proxy_id}", [Role.KEY_HOLDER.value], ANSWER_S, epoch=epoch)
    return token, request


def prove(dispatcher: Dispatcher, caller: Caller, proved: Proved) -> str:
    """Take the chain that answers the caller's request; a token of the person whom it proves.

    Raises:
        NotFound: there is no request (any more) that this could answer.
        Invalid: the chain is not for the request's key, or the person is another one than was said.
    """
    proxy_id = _request_of(caller)
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        row = delegations.get(connection, proxy_id, lock=True)
        if row is None or row.subject is not None or row.expires <= now:
            raise NotFound("this request was answered already, or too late: begin anew with act proxy")
        kept = _open(dispatcher, row)
        _check_key(proved, kept)
        earlier = delegations.of_subject(connection, proved.subject)
        # A person keeps the number, so that jobs which run under it go on with the new one.
        target = proxy_id if earlier is None else earlier.id
        sealed = _seal(dispatcher, target, _Kept(kept.key, proved.pem(), proved.subject))
        if earlier is not None:
            delegations.drop(connection, [proxy_id])
        delegations.prove(connection, ProxyRow(target, proved.subject, sealed, random.token_hex(16), proved.expires))
    knobs = dispatcher.looks.get().knobs
    more = {IDENTITY: proved.subject, "epoch": knobs.token_epoch}
    return dispatcher.issuer.mint(proved.subject, [], max(1.0, proved.expires - now), **more)


def _request_of(caller: Caller) -> int:
    number = caller.name.removeprefix(HOLDER)
    if Role.KEY_HOLDER not in caller.roles or not (number.isascii() and number.isdigit() and len(number) < 19):
        raise NotFound("this token answers no request for a proxy")
    return int(number)


def _check_key(proved: Proved, kept: _Kept) -> None:
    key = serialization.load_pem_private_key(kept.key.encode(), None)
    if proved.chain[0].public_key() != key.public_key():
        raise Invalid(
            "this proxy is for another key than the one that was asked for: sign the request", [("$.cert", "")]
        )
    if not proved.proxies:
        raise Invalid("this is no proxy: sign the request with a proxy or a certificate", [("$.cert", "")])
    if proved.subject != kept.subject:
        raise Invalid(f"the request was made for {kept.subject}, not for {proved.subject}", [("$.chain", "")])


def withdraw(dispatcher: Dispatcher, caller: Caller) -> None:
    """Forget what the caller delegated, or was asked to; the token is worth nothing any more. A repeat changes nothing."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        if Role.KEY_HOLDER in caller.roles:
            row = delegations.get(connection, _request_of(caller), lock=True)
            if row is not None and row.subject is None:
                delegations.drop(connection, [row.id])
        elif caller.subject:
            delegations.empty(connection, caller.subject, now)
        if caller.token_id:
            words = "its proxy was withdrawn"
            view = RevocationView(
                RevocationKind.TOKEN,
                caller.token_id,
                words,
                caller.name,
                now,
                max(now, caller.token_expires) + LEEWAY_S,
            )
            access.put_revocation(connection, view)


def sign(dispatcher: Dispatcher, request: DirectProxiesRequest) -> DirectProxiesReply:
    """Proxies for keys of harvester's own, for people whose direct jobs it holds; a reason where there is none."""
    asked = [each.proxy_id for each in request.proxies]
    with dispatcher.database.read() as connection:
        used = delegations.used_by(connection, request.harvester, asked)
        rows = {proxy_id: delegations.get(connection, proxy_id) for proxy_id in used}
    return DirectProxiesReply([_signed(dispatcher, each, rows.get(each.proxy_id)) for each in request.proxies])


def _signed(dispatcher: Dispatcher, wanted: ProxyWanted, row: ProxyRow | None) -> ProxySigned:
    now = dispatcher.now()
    if row is None or row.subject is None:
        return ProxySigned(
            wanted.proxy_id, reason="no job of this harvester runs under such a proxy, or it was withdrawn"
        )
    if row.expires <= now:
        return ProxySigned(
            wanted.proxy_id, reason=f"the proxy of {row.subject} has ended: its owner has to delegate anew"
        )
    try:
        kept = _open(dispatcher, row)
        made = sign_proxy(wanted.csr, f"{kept.chain}\n{kept.key}", LONGEST_S, now)
    except (BadIssuer, BadRequest, NotFound) as error:
        return ProxySigned(wanted.proxy_id, reason=f"the proxy of {row.subject}: {error}")
    return ProxySigned(wanted.proxy_id, made.chain, made.life_s, row.stamp)


def drop_old(dispatcher: Dispatcher) -> int:
    """Take away requests that nobody answered, and proxies that ended long ago; how many."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        return delegations.drop_old(connection, now, now - KEPT_S)


def _seal(dispatcher: Dispatcher, proxy_id: int, kept: _Kept) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(dispatcher).encrypt(nonce, msgspec.json.encode(kept), str(proxy_id).encode())


def _open(dispatcher: Dispatcher, row: ProxyRow) -> _Kept:
    try:
        clear = _cipher(dispatcher).decrypt(row.sealed[:NONCE_BYTES], row.sealed[NONCE_BYTES:], str(row.id).encode())
    except InvalidTag as error:
        logger.error("proxy %d was sealed with another key: its owner has to delegate anew", row.id)
        raise NotFound("what was delegated cannot be opened any more: delegate anew") from error
    return msgspec.json.decode(clear, type=_Kept)


def _cipher(dispatcher: Dispatcher) -> AESGCM:
    return AESGCM(dispatcher.issuer.derived_key(PURPOSE))
