"""What a Harvester sends, and how it is answered: always 200, with a word on how it went."""

from __future__ import annotations

from typing import Any

import falcon

from common.problem import Problem
from server.api.routing import Call, Raw
from server.compat.bodies import json_of
from server.compat.face import as_json
from server.compat.panda.fields import Fields
from server.dispatch.errors import Forbidden, Invalid


def done(data: Any = None, message: str = "") -> Raw:
    """It went well."""
    return as_json({"success": True, "message": message, "data": data})


def said_no(message: str, data: Any = None) -> Raw:
    """It did not."""
    return as_json({"success": False, "message": message[:1000], "data": data})


def refused(_: falcon.Request, problem: Problem) -> Raw:
    """A refusal in its words."""
    return said_no(str(problem))


def fields_of(call: Call) -> Fields:
    """The fields of a request: of its query, or of its body. A harvester speaks for itself only.

    Raises:
        Invalid: they cannot be read.
        Forbidden: it names another harvester than its token.
    """
    fields = Fields({**call.query, **call.body.json_or_form()})
    named = fields.text("harvester_id")
    if named and named != call.caller.name:
        raise Forbidden(f"this token is harvester {call.caller.name!r}'s: name that, or mint one of that subject")
    return fields


def items_of(fields: Fields, name: str, most: int) -> list[Any]:
    """A list among the fields: as such, as JSON in a text, or separated by commas.

    Raises:
        Invalid: it is no list, or too long.
    """
    found = fields.raw(name)
    if isinstance(found, str):
        found = json_of(found.encode("utf-8", "replace")) if found.lstrip()[:1] == "[" else found.split(",")
    if not isinstance(found, list):
        raise Invalid(f"{name} is no list", [(f"$.{name}", "give a list")])
    if len(found) > most:
        raise Invalid(f"{name} has {len(found)} items", [(f"$.{name}", f"at most {most} at once")])
    return found
