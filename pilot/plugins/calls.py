"""Asking a plug-in: what it raises or answers wrongly becomes a numbered error of the job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Optional, TypeVar

from msgspec import structs

from common.errors import ErrorCode, PilotageError
from common.plugins import PluginError, load_plugin, plugins
from common.wire import AssignedFile, Metrics, Queue, SideProcess
from pilot.outputs import CollectedFile
from pilot.payload.definition import environment_problem
from pilot.payload.diagnosis import Ending
from pilot.payload.messages import KnownMessage
from pilot.plugins.base import PayloadPlugin, PluginJob

logger = logging.getLogger(__name__)

GROUP = "pilotage.payloads"
HOOK_S = 300.0
"""How long a hook may take: one that hangs costs its job, not the slot."""
T = TypeVar("T")


def make_plugin(name: Optional[str]) -> PayloadPlugin:
    """A new object of the plug-in of that name; one that changes nothing for None. Raises PilotageError (PLUGIN_FAILED)."""
    if name is None:
        return PayloadPlugin()
    entry = plugins(GROUP).get(name)
    if entry is None:
        known = ", ".join(plugins(GROUP)) or "none"
        detail = f"plug-in {name!r} is not installed in this pilot; known: {known}"
        raise PilotageError(ErrorCode.PLUGIN_FAILED, detail)
    try:
        made = guarded(name, "making it", lambda: load_plugin(entry)())
    except PluginError as error:
        raise PilotageError(ErrorCode.PLUGIN_FAILED, error.detail) from error
    if not isinstance(made, PayloadPlugin):
        raise PilotageError(ErrorCode.PLUGIN_FAILED, f"plug-in {name}: {entry.value} is no PayloadPlugin")
    return made


def guarded(name: str, hook: str, call: Callable[[], T], limit_s: float = HOOK_S) -> T:
    """What ``call`` answers. Raises PilotageError whatever goes wrong in it, and when it takes more than ``limit_s``."""
    answer: Future[T] = Future()
    # Nothing can end a thread: a hook that hangs keeps this one, and the pilot goes on without it.
    threading.Thread(target=_answer, args=(call, answer), name=f"plug-in {name}: {hook}", daemon=True).start()
    try:
        return answer.result(limit_s)
    except PilotageError:
        raise
    except (Exception, SystemExit) as error:  # the boundary to code of others: it becomes the failure of their job
        if not answer.done():
            detail = f"plug-in {name}: {hook}: no answer after {limit_s:.0f} s"
            raise PilotageError(ErrorCode.PLUGIN_FAILED, detail) from error
        logger.exception("plug-in %s: %s", name, hook)
        detail = f"plug-in {name}: {hook}: {type(error).__name__}: {error}"
        raise PilotageError(ErrorCode.PLUGIN_FAILED, detail) from error


def _answer(call: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
        answer.set_exception(error)


def check_node(queue: Queue) -> None:
    """Ask the queue's plug-in whether this node will do. Raises PilotageError."""
    if queue.plugin is not None:
        plugin = make_plugin(queue.plugin)
        guarded(queue.plugin, "check_node", lambda: plugin.check_node(queue))


class PluginCalls:
    """A plug-in as one job asks it. Every method may raise PilotageError."""

    def __init__(self, job: PluginJob, plugin: PayloadPlugin, limit_s: float = HOOK_S) -> None:
        self._job = job
        self._limit_s = limit_s
        self._plugin = plugin
        self._name = job.assignment.plugin or job.queue.plugin

    def validate(self) -> None:
        """See :meth:`PayloadPlugin.validate`, as for all that follow."""
        self._ask("validate", lambda: self._plugin.validate(self._job))

    def inputs(self, files: Sequence[AssignedFile]) -> list[AssignedFile]:
        """Only files that were asked about count."""
        wanted = self._list("inputs", AssignedFile, lambda: self._plugin.inputs(self._job, list(files)))
        strange = [file.did for file in wanted if file not in files]
        if strange:
            raise self._wrong("inputs", f"it answers {strange[0]}, which is no input of this job")
        return wanted

    def environment(self) -> dict[str, str]:
        """Names and values that a payload can have."""
        found = self._mapping("environment", str, lambda: self._plugin.environment(self._job))
        problem = environment_problem(found)
        if problem:
            raise self._wrong("environment", problem)
        return found

    def setup(self) -> str:
        """Empty: none."""
        found = self._ask("setup", lambda: self._plugin.setup(self._job))
        if not isinstance(found, str):
            raise self._wrong("setup", f"it answers {type(found).__name__}, expected text")
        return found

    def command(self, argv: Sequence[str]) -> list[str]:
        """Never empty."""
        found = self._list("command", str, lambda: self._plugin.command(self._job, list(argv)))
        if not found:
            raise self._wrong("command", "it answers no command")
        return found

    def processes(self) -> list[SideProcess]:
        """The processes around the payload."""
        return self._list("processes", SideProcess, lambda: self._plugin.processes(self._job))

    def idle_files(self) -> list[str]:
        """Patterns."""
        return self._list("idle_files", str, lambda: self._plugin.idle_files(self._job))

    def messages(self) -> list[KnownMessage]:
        """More known messages."""
        return self._list("messages", KnownMessage, self._plugin.messages)

    def diagnose(self, ending: Ending) -> Optional[PilotageError]:
        """None: it does not know."""
        found = self._ask("diagnose", lambda: self._plugin.diagnose(self._job, ending))
        if found is not None and not isinstance(found, PilotageError):
            raise self._wrong("diagnose", f"it answers {type(found).__name__}, expected PilotageError or None")
        return found

    def outputs(self, files: Sequence[CollectedFile]) -> list[CollectedFile]:
        """Only files that were collected count: the pilot has looked at them."""
        wanted = self._list("outputs", CollectedFile, lambda: self._plugin.outputs(self._job, list(files)))
        known = {(file.name, file.path, file.size) for file in files}
        strange = [file.name for file in wanted if (file.name, file.path, file.size) not in known]
        if strange:
            raise self._wrong("outputs", f"it answers {strange[0]!r}, which is none of the outputs that it was given")
        return wanted

    def metrics(self) -> Metrics:
        """Only numbers under the names that the server knows."""
        found = self._mapping("metrics", (int, float), lambda: self._plugin.metrics(self._job))
        unknown = sorted(set(found) - set(Metrics.__struct_fields__))
        if unknown:
            raise self._wrong("metrics", f"{unknown[0]!r} is no metric; known: {', '.join(Metrics.__struct_fields__)}")
        return structs.replace(Metrics(), **found)

    def redundant_files(self) -> list[str]:
        """Patterns."""
        return self._list("redundant_files", str, lambda: self._plugin.redundant_files(self._job))

    def log_files(self) -> list[str]:
        """Patterns."""
        return self._list("log_files", str, lambda: self._plugin.log_files(self._job))

    def _ask(self, hook: str, call: Callable[[], T]) -> T:
        return guarded(self._name or "default", hook, call, self._limit_s)

    def _list(self, hook: str, kind: type[T], call: Callable[[], Sequence[T]]) -> list[T]:
        found: Any = self._ask(hook, lambda: list(call()))
        odd = [item for item in found if not isinstance(item, kind)]
        if odd:
            raise self._wrong(hook, f"it answers {type(odd[0]).__name__} in its list, expected {kind.__name__}")
        return list(found)

    def _mapping(self, hook: str, kind: Any, call: Callable[[], Mapping[str, T]]) -> dict[str, T]:
        found: dict[str, T] = self._ask(hook, lambda: dict(call()))
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, kind) or isinstance(value, bool):
                raise self._wrong(hook, f"it answers {name!r}: {value!r}")
        return found

    def _wrong(self, hook: str, words: str) -> PilotageError:
        return PilotageError(ErrorCode.PLUGIN_FAILED, f"plug-in {self._name}: {hook}: {words}")
