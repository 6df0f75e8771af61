"""``/jobs``: handing in, looking at, and commanding direct jobs, many in one call and an answer for each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from server.api.routing import Call, Raw
from server.compat.act import columns
from server.compat.act.descriptions import read
from server.compat.act.states import CLEANABLE, FETCHABLE, KILLABLE, RERUNNABLE, STATES, arcstate
from server.compat.act.xrsl import BadDescription
from server.compat.face import as_json
from server.dispatch import direct
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Conflict, Invalid, NotFound, Refused
from server.engine.access import Caller
from server.engine.direct import address
from server.store.direct import DirectRow

MOST_ITEMS = 10_000
"""Jobs in one call; ``act`` sends a hundred."""
MOST_IDS = 100_000
_DIGITS = 18


# ---------------------------------------------------------------- looking


def info(dispatcher: Dispatcher, _: Call) -> Raw:
    """``GET /info``."""
    clusters = [address(each) for each in direct.served(dispatcher)]
    return as_json({"clusters": clusters, "arc": list(columns.ARC), "client": list(columns.CLIENT)})


def stat(dispatcher: Dispatcher, call: Call) -> Raw:
    """``GET /jobs``."""
    client = columns.asked(call.query.get("client", ""), columns.CLIENT, "client")
    arc = columns.asked(call.query.get("arc", ""), columns.ARC, "arc")
    return as_json([columns.row(each, client, arc) for each in _chosen(dispatcher, call)])


def _chosen(dispatcher: Dispatcher, call: Call) -> list[DirectRow]:
    """The caller's jobs that the query names."""
    state = call.query.get("state", "")
    if state and state not in STATES:
        raise Invalid(f"there is no state {state[:100]!r}", [("state", f"known: {', '.join(sorted(STATES))}")])
    # An empty list of numbers is somebody's mistake, and does not stand for all jobs.
    ids = ids_of(call.query["id"]) if "id" in call.query else None
    found = direct.look(dispatcher, call.caller, ids, call.query.get("name", ""))
    return [each for each in found if not state or arcstate(each.facts) == state]


def ids_of(text: str) -> set[int]:
    """The numbers that ``1,2-5`` names. Raises Invalid."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        bounds = [first, last] if dash else [first]
        if not all(each.isascii() and each.isdigit() and len(each) <= _DIGITS for each in bounds):
            raise Invalid(f"{part[:100]!r} is no job's number, nor a range of them", [("id", "write 1,2-5")])
        begin, end = int(bounds[0]), int(bounds[-1])
        if end - begin + len(found) >= MOST_IDS:
            raise Invalid("these are too many jobs for one call", [("id", f"name at most {MOST_IDS}")])
        found.update(range(begin, end + 1))
    return found


# ---------------------------------------------------------------- handing in


def create(dispatcher: Dispatcher, call: Call) -> Raw:
    """``POST /jobs``: jobs that get their files and descriptions next."""

    def make(item: dict[str, Any]) -> dict[str, Any]:
        clusters = item.get("clusterlist")
        if not isinstance(clusters, list) or not all(isinstance(each, str) and "\0" not in each for each in clusters):
            raise Invalid("clusterlist must be a list of addresses")
        return {"id": direct.create(dispatcher, call.caller, clusters)}

    return as_json(_each(call, make))


def submit(dispatcher: Dispatcher, call: Call) -> Raw:
    """``PUT /jobs``: their descriptions."""

    def describe(item: dict[str, Any]) -> dict[str, Any]:
        number, text = item.get("id"), item.get("desc")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 10**_DIGITS:
            raise Invalid("id must be a job's number")
        if not isinstance(text, str):
            raise Invalid("desc must be a text")
        try:
            found = read(text)
        except BadDescription as error:
            raise Invalid(f"the description cannot be read: {error}") from error
        direct.describe(dispatcher, call.caller, number, found.described, found.uploaded)
        return {"id": number, "desc": text, "name": found.described.name}

    return as_json(_each(call, describe))


def _each(call: Call, do: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """An answer for each item of the body, in order: what is wrong with one does not touch the others."""
    items = call.body.json()
    if items is None:
        return []
    if not isinstance(items, list) or len(items) > MOST_ITEMS:
        raise Invalid(f"the body must be a list of at most {MOST_ITEMS} jobs", [("$", "send a list")])
    answers = []
    for item in items:
        try:
            if not isinstance(item, dict):
                raise Invalid("this is no job: send an object")
            answers.append(do(item))
        except Refused as error:
            answers.append({"msg": error.detail})
    call.audit["jobs"] = [each["id"] for each in answers if "id" in each][:100]
    return answers


def upload(dispatcher: Dispatcher, call: Call) -> None:
    """``PUT /jobs/{id}/data/{name}``."""
    direct.upload(dispatcher, call.caller, call.number("direct_id"), call.path["name"], call.body.pieces())


# ---------------------------------------------------------------- commanding


def command(dispatcher: Dispatcher, call: Call) -> Raw:
    """``PATCH /jobs``: what may be done is done, and those are told; the others are left out, as in aCT."""
    action = call.query.get("action", "")
    if action == "cancel":
        done = _obeyed(dispatcher, call, direct.kill, KILLABLE)
        return as_json([columns.row(each, ["id"], ["id", "arcstate"]) for each in done])
    if action == "fetch":
        return as_json([each.id for each in _obeyed(dispatcher, call, direct.fetch, FETCHABLE)])
    if action == "resubmit":
        return as_json([each.id for each in _obeyed(dispatcher, call, direct.resubmit, RERUNNABLE)])
    raise Invalid(f"there is no action {action[:100]!r}", [("action", "give fetch, cancel or resubmit")])


def clean(dispatcher: Dispatcher, call: Call) -> Raw:
    """``DELETE /jobs``."""
    return as_json([each.id for each in _obeyed(dispatcher, call, direct.clean, CLEANABLE)])


def _obeyed(
    dispatcher: Dispatcher,
    call: Call,
    do: Callable[[Dispatcher, Caller, int], None],
    states: Collection[str | None],
) -> list[DirectRow]:
    """The jobs that the query names, whose state allows it, and with which it was done; each as it was before.

    Raises Refused: there was something to do, and none of it could be.
    """
    done = []
    refused: Refused | None = None
    for job in _chosen(dispatcher, call):
        if arcstate(job.facts) not in states:
            continue
        try:
            do(dispatcher, call.caller, job.id)
        except (NotFound, Conflict) as error:
            # It went on meanwhile.
            refused = error
            continue
        done.append(job)
    if refused is not None and not done:
        raise refused
    call.audit["jobs"] = [each.id for each in done][:100]
    return done


# ---------------------------------------------------------------- results


def results(dispatcher: Dispatcher, call: Call) -> Raw:
    """``GET /jobs/{id}/results/…``: a folder's listing, or a file's bytes."""
    number, path = call.number("direct_id"), call.path.get("path", "")
    if path and not path.endswith("/"):
        return Raw(direct.result(dispatcher, call.caller, number, path), "application/octet-stream")
    prefix = path.lstrip("/")
    paths = [each.path.removeprefix(prefix) for each in direct.results(dispatcher, call.caller, number)
             if each.path.startswith(prefix)]  # fmt: skip
    if prefix and not paths:
        raise NotFound(f"job {number} left no folder {path[:200]}")
    folders = sorted({each.partition("/")[0] for each in paths if "/" in each})
    return as_json({"file": [each for each in paths if "/" not in each], "dir": folders})
