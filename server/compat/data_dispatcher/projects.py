"""Projects: make, copy, look, command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from common.states import UnitState
from common.wire import FileSpec
from common.wire.projects import ProjectCopy, ProjectFile, ProjectRequest, ProjectRestart, ProjectState, ProjectView
from server.api.routing import PAGE_LIMIT, Call, Raw
from server.compat.data_dispatcher import asked, words
from server.compat.data_dispatcher.asked import DEFAULT, wrong
from server.compat.data_dispatcher.catalog import located
from server.compat.data_dispatcher.search import Alternative, BadQuery, narrowed, parse
from server.compat.face import as_json
from server.dispatch import projects, reserve
from server.dispatch.context import Dispatcher
from server.dispatch.errors import Invalid
from server.engine.access import PEOPLE
from server.engine.projects import Condition, as_number
from server.store.projects import Wanted

JSON = "text/json"
"""What the client takes for JSON; anything else it hands on as text."""
MOST_TOLD = 100
VIRTUAL, RETRY_ON_TIMEOUT = "virtual", "retry_on_timeout"
"""Attributes of a project that mean something."""
RESTARTS = ("failed", "done", "reserved")


# ---------------------------------------------------------------- making


def create(dispatcher: Dispatcher, call: Call) -> Raw:
    """Make a project of a list of files, or of what a query finds."""
    body = asked.document(call)
    attributes = asked.table(body, "project_attributes")
    virtual = asked.truth(VIRTUAL, attributes.get(VIRTUAL), False)
    query = _query(body)
    files = _files(body)
    more: dict[str, Any] = {}
    if files or not query:
        more["files"] = files if virtual else _with_replicas(dispatcher, files)
    else:
        more.update(catalog=dispatcher.config.compat.data_dispatcher.catalog or None, query=query)
        if more["catalog"] is None:
            raise wrong("query", "no catalogue answers queries here: send the files")
    request = ProjectRequest(
        attributes={**attributes, words.QUERY: query} if query and files else attributes,
        worker_timeout_s=asked.timeout("worker_timeout", body.get("worker_timeout")),
        idle_timeout_s=asked.timeout("idle_timeout", body.get("idle_timeout")),
        retry_on_timeout=asked.truth(RETRY_ON_TIMEOUT, attributes.get(RETRY_ON_TIMEOUT), True),
        virtual=virtual,
        users=asked.words(body, "users"),
        roles=asked.words(body, "roles"),
        **more,
    )
    request = asked.checked(msgspec.to_builtins(request), ProjectRequest)
    view = projects.create(dispatcher, call.caller, request)
    # An agent makes handles of the files: until then they are what the request says.
    handles = (_new_handle(view.id, file) for file in files)
    return as_json({**words.project(view), "file_handles": list(handles)}, content_type=JSON)


def _new_handle(project_id: int, file: ProjectFile) -> dict[str, Any]:
    namespace, _, name = file.did.partition(":")
    return {
        "project_id": project_id,
        "namespace": namespace,
        "name": name,
        "state": words.INITIAL,
        "worker_id": None,
        "attempts": 0,
        "attributes": file.attributes,
        "reserved_since": None,
    }


def _query(body: Mapping[str, Any]) -> str:
    query = body.get("query")
    if query is None:
        return ""
    if not isinstance(query, str):
        raise wrong("query", "send text")
    return query


def _files(body: Mapping[str, Any]) -> list[ProjectFile]:
    """The list of files in a body. Raises Invalid, which names each that is wrong."""
    given = body.get("files")
    if not isinstance(given, list):
        raise wrong("files", "send a list of files")
    found, problems = [], []
    for number, each in enumerate(given):
        try:
            found.append(_file(each))
        except Invalid as error:
            problems.append((f"files[{number}]", error.detail))
            if len(problems) == MOST_TOLD:
                break
    if problems:
        raise Invalid(f"files: {problems[0][0]}: {problems[0][1]}", problems)
    return found


def _file(each: object) -> ProjectFile:
    if isinstance(each, str):
        return asked.checked({"did": each}, ProjectFile)
    if not isinstance(each, dict) or not all(isinstance(each.get(name), str) for name in ("namespace", "name")):
        raise Invalid("write namespace:name, or an object with namespace and name")
    attributes = asked.table(each, "attributes")
    return asked.checked({"did": f"{each['namespace']}:{each['name']}", "attributes": attributes}, ProjectFile)


def _with_replicas(dispatcher: Dispatcher, files: list[ProjectFile]) -> list[ProjectFile]:
    """The files with what the catalogue knows of them. Raises Invalid for those that it does not know."""
    known = {file.did: file for file in located(dispatcher, [file.did for file in files])}
    missing = [file.did for file in files if file.did not in known]
    if missing:
        remedy = "leave them out, or make the project virtual (-A virtual=true) if its workers find them otherwise"
        shown = ", ".join(missing[:10])
        raise Invalid(f"the catalogue knows no replicas of {len(missing)} of the files: {shown}: {remedy}")
    return [_merged(file, known[file.did]) for file in files]


def _merged(file: ProjectFile, known: FileSpec) -> ProjectFile:
    return ProjectFile(
        did=file.did,
        size=known.size,
        events=known.events,
        checksum=known.checksum,
        replicas=known.replicas,
        attributes=file.attributes,
    )


def copy(dispatcher: Dispatcher, call: Call) -> Raw:
    """Make a project of the same files."""
    body = asked.document(call)
    project_id = asked.number(body.get("project_id"))
    attributes = asked.table(body, "project_attributes")
    old = projects.look(dispatcher, call.caller, project_id)
    if asked.truth(VIRTUAL, attributes.get(VIRTUAL), old.virtual) != old.virtual:
        raise wrong(VIRTUAL, "a copy is as virtual as its original: make a new project")
    retry = attributes.get(RETRY_ON_TIMEOUT)
    timeouts: dict[str, Any] = {
        f"{name}_s": asked.timeout(name, body[name])
        for name in ("worker_timeout", "idle_timeout")
        if body.get(name, DEFAULT) not in (DEFAULT, None)
    }
    request = ProjectCopy(
        attributes=attributes,
        file_attributes=asked.table(body, "file_attributes"),
        retry_on_timeout=None if retry is None else asked.truth(RETRY_ON_TIMEOUT, retry, True),
        users=asked.words(body, "users") if "users" in body else None,
        roles=asked.words(body, "roles") if "roles" in body else None,
        **timeouts,
    )
    request = asked.checked(msgspec.to_builtins(request), ProjectCopy)
    view = projects.copy(dispatcher, call.caller, project_id, request)
    return as_json({**words.project(view), "file_handles": []}, content_type=JSON)


# ---------------------------------------------------------------- looking


def look(dispatcher: Dispatcher, call: Call) -> Raw:
    """A project, with its files or without."""
    project_id = asked.number(asked.text(call, "project_id"))
    if not call.caller.roles & PEOPLE:
        reserve.mine(dispatcher, call.caller, project_id)  # a program sees what it may work on
    view = projects.look(dispatcher, call.caller, project_id)
    replicas = asked.flag(call, "with_replicas", False)
    with_files = asked.flag(call, "with_files", True) or replicas
    return _answer(dispatcher, call, view, files=with_files, replicas=replicas)


def _answer(dispatcher: Dispatcher, call: Call, view: ProjectView, *, files: bool, replicas: bool) -> Raw:
    if not files:
        return as_json(words.project(view), content_type=JSON)
    return Raw(_project_text(dispatcher, call, view, replicas=replicas), JSON)


def _project_text(dispatcher: Dispatcher, call: Call, view: ProjectView, *, replicas: bool) -> Iterator[bytes]:
    """A project with all its files, a page at a time: there may be millions."""
    yield msgspec.json.encode(words.project(view))[:-1] + b', "file_handles": '
    yield from listed(handles(dispatcher, call, view.id, replicas=replicas))
    yield b"}"


def listed(elements: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    """A JSON list; each element comes in pieces, and may be several, joined by commas."""
    yield b"["
    for number, element in enumerate(elements):
        if number:
            yield b", "
        yield from element
    yield b"]"


def handles(
    dispatcher: Dispatcher, call: Call, project_id: int, *, replicas: bool, states: frozenset[UnitState] | None = None
) -> Iterator[list[bytes]]:
    """The files of a project, page by page: JSON objects, joined by commas."""
    after: int | None = 0
    while after is not None:
        page = projects.files(
            dispatcher, call.caller, project_id, state=None, did=None, cpu_site=None, after=after, limit=PAGE_LIMIT
        )
        chosen = [each for each in page.items if states is None or each.state in states]
        if chosen:
            shown = [words.handle(project_id, each, with_replicas=replicas) for each in chosen]
            yield [msgspec.json.encode(shown)[1:-1]]
        after = page.next


def list_(dispatcher: Dispatcher, call: Call) -> Raw:
    """Projects, the caller's own unless ``owner`` says otherwise."""
    owner = call.query.get("owner") or call.caller.name
    state, but = _state(call.query.get("state")), _state(call.query.get("not_state"))
    chosen = [word for word in words.PROJECT_STATES if state in (None, word) and word != but]
    conditions = tuple(_condition(name, value) for name, value in _attributes(call).items())
    wanted = Alternative(owner=None if owner == "all" else owner, conditions=conditions)
    return _found(dispatcher, call, [wanted], chosen, _flags(call.query))


def _attributes(call: Call) -> dict[str, Any]:
    text = call.query.get("attributes")
    if not text:
        return {}
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise wrong("attributes", "send a JSON object") from error
    if not isinstance(found, dict):
        raise wrong("attributes", "send a JSON object")
    return found


def _condition(name: str, value: object) -> Condition:
    if isinstance(value, bool):
        return Condition(name, "=", str(value).lower(), None)
    if not isinstance(value, (str, int, float)):
        raise wrong("attributes", f"{name}: projects are found by texts, numbers, true and false")
    return Condition(name, "=", str(value), as_number(str(value)))


def _state(word: str | None) -> str | None:
    if not word or word == "all":
        return None
    return asked.one_of("state", word, list(words.PROJECT_STATES))


def search(dispatcher: Dispatcher, call: Call) -> Raw:
    """Projects that a query finds."""
    body = asked.document(call)
    query, owner = body.get("query"), body.get("owner")
    if not isinstance(query, str):
        raise wrong("query", "send text")
    if owner is not None and not isinstance(owner, str):
        raise wrong("owner", "send text")
    state = body.get("state")
    chosen = None if state in (None, "all") else asked.one_of("state", state, list(words.PROJECT_STATES))
    try:
        found = narrowed(parse(query), None if owner == "all" else owner, chosen)
    except BadQuery as error:
        raise Invalid(f"the query cannot be answered: {error}", [("query", str(error))]) from error
    return _found(dispatcher, call, found, list(words.PROJECT_STATES), _flags(body))


def _flags(said: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether files, and their replicas, are to be shown."""
    replicas = asked.truth("with_replicas", said.get("with_replicas"), False)
    return asked.truth("with_handles", said.get("with_handles"), True) or replicas, replicas


def _found(
    dispatcher: Dispatcher, call: Call, wanted: list[Alternative], chosen: list[str], flags: tuple[bool, bool]
) -> Raw:
    seen: dict[int, ProjectView] = {}
    for each in wanted:
        states = [words.PROJECT_STATES[word] for word in chosen if each.state in (None, word)]
        ours = [state for state in states if state is not None]
        if ours:
            seen.update((view.id, view) for view in _views(dispatcher, call, each, ours))
    return Raw(listed(_shown(dispatcher, call, seen, flags)), JSON)


def _views(
    dispatcher: Dispatcher, call: Call, wanted: Alternative, states: list[ProjectState]
) -> Iterator[ProjectView]:
    terms = Wanted(wanted.owner, states, wanted.conditions)
    after: int | None = 0 if wanted.id is None else max(0, wanted.id - 1)
    while after is not None:
        limit = PAGE_LIMIT if wanted.id is None else 1
        page = projects.found_by(dispatcher, call.caller, terms, after=after, limit=limit)
        yield from (view for view in page.items if wanted.id in (None, view.id))
        after = page.next if wanted.id is None else None


def _shown(
    dispatcher: Dispatcher, call: Call, seen: Mapping[int, ProjectView], flags: tuple[bool, bool]
) -> Iterator[Iterable[bytes]]:
    files, replicas = flags
    for _, view in sorted(seen.items()):
        if files:
            yield _project_text(dispatcher, call, view, replicas=replicas)
        else:
            yield [msgspec.json.encode(words.project(view))]


# ---------------------------------------------------------------- commanding


def activate(dispatcher: Dispatcher, call: Call) -> Raw:
    """Bring an abandoned project back."""
    view = projects.activate(dispatcher, call.caller, asked.number(asked.text(call, "project_id")))
    return _answer(dispatcher, call, view, files=True, replicas=True)


def cancel(dispatcher: Dispatcher, call: Call) -> Raw:
    """End a project for good."""
    view = projects.cancel(dispatcher, call.caller, asked.number(asked.text(call, "project_id")))
    return _answer(dispatcher, call, view, files=True, replicas=True)


def delete(dispatcher: Dispatcher, call: Call) -> Raw:
    """Take a project away."""
    projects.delete(dispatcher, call.caller, asked.number(asked.text(call, "project_id")))
    return as_json(None, content_type=JSON)


def restart_project(dispatcher: Dispatcher, call: Call) -> Raw:
    """Restart files by their states: those that failed, unless ``failed_only`` says no; with ``force`` also reserved ones."""
    states = ["failed"]
    states += [] if asked.flag(call, "failed_only", True) else ["done"]
    states += ["reserved"] if asked.flag(call, "force", False) else []
    return _restarted(dispatcher, call, asked.text(call, "project_id"), {"states": states})


def restart_handles(dispatcher: Dispatcher, call: Call) -> Raw:
    """Restart files by their states, or by name."""
    body = asked.document(call)
    if body.get("handles") is not None:
        wanted: dict[str, Any] = {"dids": asked.words(body, "handles")}
    else:
        everything = asked.truth("all", body.get("all"), False)
        wanted = {"states": [word for word in RESTARTS if everything or asked.truth(word, body.get(word), False)]}
    if not any(wanted.values()):
        raise wrong("handles", "say which: handles, or failed, done, reserved, all")
    return _restarted(dispatcher, call, body.get("project_id"), wanted)


def _restarted(dispatcher: Dispatcher, call: Call, project_id: object, wanted: Mapping[str, Any]) -> Raw:
    request = asked.checked(wanted, ProjectRestart)
    view = projects.restart(dispatcher, call.caller, asked.number(project_id), request)
    return _answer(dispatcher, call, view, files=True, replicas=True)
