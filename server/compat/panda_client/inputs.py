"""The datasets that a task of PanDA reads: their files, found when it is submitted, and cut down to those that are wanted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import msgspec

from common.states import FINAL_TASK_STATES
from common.wire import FileSpec
from server.catalogs.base import CatalogError
from server.compat.panda_client.job_line import InputItem, Wrong
from server.dispatch.context import Dispatcher
from server.dispatch.rights import sight_of
from server.dispatch.submit import default_scope
from server.engine.access import Caller
from server.store import datasets, panda_client
from server.store.database import Connection

MOST_FILES = 200_000
"""Of all input datasets of a task together."""
MOST_PATTERNS = 20
LONGEST_PATTERN = 500
LOGS = r"\.log\.tgz(\.\d+)*$"
"""What ``prun`` leaves out of every dataset."""
_LOG = re.compile(r"\.log\.tgz(\.[0-9]+)*\Z")
_LITERAL = re.compile(r"[A-Za-z0-9_+,:=/ -]")


def files_of(dispatcher: Dispatcher, caller: Caller, item: InputItem) -> list[FileSpec]:
    """The files of an input, in the catalogue's order. Raises Wrong."""
    found: dict[str, FileSpec] = {}
    for name in item.datasets:
        for file in _files_of_dataset(dispatcher, caller, name):
            found.setdefault(file.did, file)
            if len(found) > MOST_FILES:
                raise Wrong([(name, f"it has more than {MOST_FILES} files: submit it as a native workflow")])
    wanted = list(_chosen(found.values(), item))
    if not wanted:
        raise Wrong([(",".join(item.datasets), "no file is left of it: look at the dataset, --match and --antiMatch")])
    return wanted


def _files_of_dataset(dispatcher: Dispatcher, caller: Caller, name: str) -> Sequence[FileSpec]:
    scope, _, plain = name.rpartition(":")
    own = default_scope(caller.name)
    with dispatcher.database.read() as connection:
        if scope in ("", own):
            written = _written(connection, caller.name, plain)
            if written is not None:
                return written
        known = datasets.by_did(connection, f"{scope or own}:{plain}", sight_of(dispatcher, caller))
        if known is not None:
            if not panda_client.is_gathered(connection, known.task_id):
                raise Wrong([(name, f"outputs of task {known.task_id} are still being put into it: again in a moment")])
            return panda_client.files_of_dataset(connection, known.id, MOST_FILES + 1)
    return _catalogued(dispatcher, name)


def _written(connection: Connection, owner: str, name: str) -> list[FileSpec] | None:
    """The files of a dataset that tasks of the same person write; None if none does. Raises Wrong."""
    writers = panda_client.writers(connection, owner, name)
    for (task_id, _), state in writers.items():
        if state not in FINAL_TASK_STATES:
            raise Wrong([(name, f"task {task_id}, which writes it, is {state.value}: submit again when it is over")])
    if not writers:
        return None
    files: list[FileSpec] = []
    for task_id, pattern in writers:
        files += panda_client.files_written(connection, task_id, pattern, MOST_FILES + 1)
    return files


def _catalogued(dispatcher: Dispatcher, name: str) -> list[FileSpec]:
    """The files that the catalogue knows. Raises Wrong."""
    catalog_name = dispatcher.config.compat.panda_client.catalog
    catalog = dispatcher.plugins.catalogs.get(catalog_name)
    if catalog is None:
        words = "no task wrote such a dataset, and no catalogue is configured to ask for others"
        raise Wrong([(name, f"{words} ([server.compat.panda_client] catalog)")])
    files: list[FileSpec] = []
    after: str | None = ""
    while after is not None and len(files) <= MOST_FILES:
        try:
            page = catalog.files(name, after)
        except CatalogError as error:
            raise Wrong([(name, f"catalogue {catalog_name}: {error}")]) from error
        files += page.files
        after = page.after
    return files


def _chosen(files: Iterable[FileSpec], item: InputItem) -> Iterable[FileSpec]:
    include = _matcher(item.include, "include") if item.include else None
    patterns = [each for each in item.exclude.split(",") if each]
    if len(patterns) > MOST_PATTERNS:
        raise Wrong([("exclude", f"give at most {MOST_PATTERNS} patterns")])
    excludes = [_matcher(each, "exclude") for each in patterns]
    names = set(item.files)
    left = item.offset
    for file in files:
        name = file.did.partition(":")[2]
        if names and name not in names and file.did not in names:
            continue
        if include is not None and not include(name) or any(matches(name) for matches in excludes):
            continue
        if left:
            left -= 1
            continue
        yield file


def _matcher(pattern: str, where: str) -> Callable[[str], bool]:
    """Whether a name holds what an expression says: only those that ``prun`` makes of wildcards, which cost nothing.

    Raises Wrong: it is another one.
    """
    if pattern == LOGS:
        return lambda name: _LOG.search(name) is not None
    if len(pattern) > LONGEST_PATTERN:
        raise Wrong([(where, f"give at most {LONGEST_PATTERN} characters")])
    wildcard, rest = "*", pattern
    while rest:
        if rest.startswith(r"\."):
            wildcard, rest = wildcard + ".", rest[2:]
        elif rest.startswith(".*"):
            wildcard, rest = wildcard + "*", rest[2:]
        elif rest == "$":
            return lambda name: fnmatchcase(name, wildcard)
        elif rest[0] == ".":
            wildcard, rest = wildcard + "?", rest[1:]
        elif _LITERAL.match(rest):
            wildcard, rest = wildcard + rest[0], rest[1:]
        else:
            raise Wrong([(where, f"{pattern[:60]!r}: use names with * in --match and --antiMatch")])
    return lambda name: fnmatchcase(name, f"{wildcard}*")


def first_events(files: list[FileSpec], events: int) -> list[FileSpec]:
    """As many of the files as hold so many events. Raises Wrong: that is no whole number of files."""
    total = 0
    for number, file in enumerate(files):
        if total == events:
            return files[:number]
        if file.events is None:
            raise Wrong([("nEvents", f"the catalogue does not know the events of {file.did}: give nFiles")])
        total += file.events
    if total > events:
        raise Wrong([("nEvents", f"{events} events are no whole number of files: give nFiles")])
    return files


def with_events(files: list[FileSpec], events: int) -> list[FileSpec]:
    """The files, each with so many events, as nEventsPerFile says."""
    return [msgspec.structs.replace(file, events=events) for file in files]


def primary_of(items: Sequence[InputItem]) -> InputItem | None:
    """The input whose files are the units."""
    return next((item for item in items if item.stream == "IN"), None)
