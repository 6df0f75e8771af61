"""Secrets of a person, by PanDA's verbs. Nobody is told one again, its owner included."""

from __future__ import annotations

import json
import re
from contextlib import suppress

from server.api.routing import Call, Raw
from server.compat.panda_client.answers import done
from server.compat.panda_client.asked import asked
from server.dispatch import secrets
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid, NotFound

MOST_CHARACTERS = 65_536
HIDDEN = "(kept by the server, not shown)"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}\Z")
_FILE = "___file___:"


def put(dispatcher: Dispatcher, call: Call) -> Raw:
    """Set a secret; without a value forget it, without a key forget all."""
    fields = asked(call, secret=True)
    key, value = fields.text("key"), fields.text("value")
    owner = call.caller.name
    if key is None:
        for each in secrets.mine(dispatcher, owner).items:
            with suppress(NotFound):
                secrets.drop(dispatcher, owner, each.name)
        return done("all secrets are forgotten")
    if key.startswith(_FILE):
        raise Invalid("files cannot be secrets here: set their text, or what base64 makes of it, as a value")
    if not _NAME.match(key):
        raise Invalid(f"{key[:80]!r} is no name of a secret", [("key", "use up to 64 letters, digits and _")])
    if value is None:
        secrets.drop(dispatcher, owner, key)
        return done(f"secret {key} is forgotten")
    if len(value) > MOST_CHARACTERS:
        raise Invalid(
            f"the secret is longer than {MOST_CHARACTERS} characters", [("value", "keep large data elsewhere")]
        )
    secrets.put(dispatcher, owner, key, value)
    return done(f"secret {key} is set")


def names(dispatcher: Dispatcher, call: Call) -> Raw:
    """The names of one's secrets, as a JSON text."""
    return done(json.dumps({each.name: HIDDEN for each in secrets.mine(dispatcher, call.caller.name).items}))
