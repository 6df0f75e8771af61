"""The built-in issuer: an admin invites a person, whose client logs in with a one-time code and stays logged in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from common.tokens import SESSION_BYTES, TokenError, hash_secret, new_code
from common.wire import LoginGrant
from server.config import Knobs
from server.dispatch.context import Dispatcher, read_knobs
from server.dispatch.errors import Forbidden, Invalid, Unauthenticated
from server.engine.access import GIVEN, Role
from server.store import access, events, world
from server.store.access import PersonRow
from server.store.database import Connection
from server.store.events import Event

CODE_S = 86400.0
"""How long a one-time code is good."""
REPEAT_S = 300.0
"""How long the token before the current one still gives the current one: the reply may have been lost."""


def invite(dispatcher: Dispatcher, name: str, roles: Sequence[Role], groups: Sequence[str]) -> tuple[str, float]:
    """Make a person known, or change roles and groups: a one-time code and the moment of its end.

    Raises:
        Invalid: a role that nobody can be given.
    """
    for role in roles:
        if role not in GIVEN:
            words = ", ".join(sorted(each.value for each in GIVEN))
            raise Invalid(f"nobody can be given the role {role.value}", [("$.roles", f"give some of {words}")])
    now, code = dispatcher.now(), new_code()
    with dispatcher.database.write() as connection:
        access.put_person(connection, name, [role.value for role in roles], groups, now)
        access.put_code(connection, hash_secret(code), name, now + CODE_S, now)
        detail = {"roles": sorted(role.value for role in roles), "groups": sorted(groups)}
        events.add(connection, Event(now, "PERSON_INVITED", "person", name, detail=detail))
    return code, now + CODE_S


def mint_token(
    dispatcher: Dispatcher, subject: str, roles: Sequence[str], ttl_s: float, groups: Sequence[str] = ()
) -> str:
    """A token that needs no login, for as long as it lives: for programs, and for the admin of a new server."""
    with dispatcher.database.read() as connection:
        epoch = access.token_epoch(connection)
    return dispatcher.issuer.mint(subject, list(roles), ttl_s, groups=list(groups), epoch=epoch, **_names(subject))


def _names(subject: str) -> dict[str, str]:
    """The claims in which clients of other systems look up who they are; nothing of ours reads them."""
    return {"name": subject, "preferred_username": subject}


def vouched(dispatcher: Dispatcher, name: str, roles: Sequence[Role], ttl_s: float, how: str) -> str:
    """A token for a person whom another part of the server has recognised; whoever is known here has their own roles.

    ``how`` is told to the audit.

    Raises:
        Forbidden: the person is banned.
    """
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        _check_ban(connection, name, now)
        person = access.get_person(connection, name)
        given = [role.value for role in roles] if person is None else person.roles
        groups = [] if person is None else person.groups
        events.add(connection, Event(now, "AUDIT", "person", name, detail={"did": "log in", "proof": how}))
    return mint_token(dispatcher, name, given, ttl_s, groups)


def forget(dispatcher: Dispatcher, name: str) -> bool:
    """Forget a person; tokens that are out end within ``person_token_s``. False if nobody of that name was known."""
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        found = access.remove_person(connection, name)
        if found:
            events.add(connection, Event(now, "PERSON_FORGOTTEN", "person", name))
    return found


def redeem(dispatcher: Dispatcher, code: str, nonce: str) -> LoginGrant:
    """Log in with a one-time code. The same code and nonce get the same login, until that is renewed.

    Raises:
        Unauthenticated: the code is not, or no longer, good.
        Forbidden: the person is banned.
    """
    now = dispatcher.now()
    login_id = hashlib.sha256(f"{code}\0{nonce}".encode()).hexdigest()[: 2 * SESSION_BYTES]
    with dispatcher.database.write() as connection:
        used = access.use_code(connection, hash_secret(code), login_id, now)
        person = access.get_person(connection, used[0]) if used is not None else None
        if used is None or person is None:
            raise Unauthenticated("the code is not valid, was used already, or has expired: ask an admin for a new one")
        _check_ban(connection, person.name, now)
        knobs = read_knobs(world.settings(connection))
        if used[1]:
            row = access.get_login(connection, login_id)
            if row is None or row.counter != 0:
                raise Unauthenticated("the code was used already: ask an admin for a new one")
        else:
            access.add_login(connection, login_id, person.name, now + knobs.login_s, now)
            events.add(connection, Event(now, "AUDIT", "person", person.name, detail={"did": "log in"}))
    return _grant(dispatcher, person, login_id, 0, knobs)


def renew(dispatcher: Dispatcher, refresh_token: str) -> LoginGrant:
    """New tokens for a login. Repeated within REPEAT_S after a lost reply, it gives the same refresh token again.

    A refresh token that was replaced long ago means that two have it, one of them a thief: the login ends.

    Raises:
        Unauthenticated: the login has ended.
        Forbidden: the person is banned.
    """
    now = dispatcher.now()
    login_id, counter = _opened(dispatcher, refresh_token)
    ended = Unauthenticated("this login has ended: log in again")
    with dispatcher.database.write() as connection:
        row = access.get_login(connection, login_id)
        person = access.get_person(connection, row.person) if row is not None else None
        if row is None or person is None or row.expires <= now:
            raise ended
        _check_ban(connection, person.name, now)
        knobs = read_knobs(world.settings(connection))
        following = counter + 1
        if counter == row.counter:
            access.renew_login(connection, login_id, counter, now + knobs.login_s, now)
        elif following == row.counter and now - row.renewed <= REPEAT_S:
            following = row.counter
        else:
            access.remove_login(connection, login_id)
            events.add(connection, Event(now, "LOGIN_REUSED", "person", person.name))
            following = -1
    if following < 0:
        raise ended
    return _grant(dispatcher, person, login_id, following, knobs)


def log_out(dispatcher: Dispatcher, refresh_token: str) -> None:
    """End a login; one that has ended already is fine.

    Raises:
        Unauthenticated: this is no token of ours.
    """
    login_id, _ = _opened(dispatcher, refresh_token)
    now = dispatcher.now()
    with dispatcher.database.write() as connection:
        row = access.get_login(connection, login_id)
        if row is not None:
            access.remove_login(connection, login_id)
            events.add(connection, Event(now, "AUDIT", "person", row.person, detail={"did": "log out"}))


def _opened(dispatcher: Dispatcher, refresh_token: str) -> tuple[str, int]:
    try:
        return dispatcher.issuer.verify_refresh(refresh_token)
    except TokenError as error:
        raise Unauthenticated(str(error)) from error


def _check_ban(connection: Connection, name: str, now: float) -> None:
    if name in access.bans(connection, now).users:
        raise Forbidden(f"{name} is banned")


def _grant(dispatcher: Dispatcher, person: PersonRow, login_id: str, counter: int, knobs: Knobs) -> LoginGrant:
    now = dispatcher.now()
    token = dispatcher.issuer.mint(
        person.name,
        person.roles,
        knobs.person_token_s,
        groups=person.groups,
        epoch=knobs.token_epoch,
        login=login_id,
        **_names(person.name),
    )
    refresh = dispatcher.issuer.mint_refresh(login_id, counter)
    return LoginGrant(person.name, token, now + knobs.person_token_s, refresh, now + knobs.login_s)
