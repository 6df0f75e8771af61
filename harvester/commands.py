"""What admins have harvester do, through the server: fetched, carried out once, and told back until the server has heard.

Every command can be repeated without harm until the next one is carried out, and its outcome is written down before
that: cut off at any point, it takes effect once.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from common.clock import Clock
from common.errors import PilotageError
from common.http import ProblemError
from common.wire import HarvesterCommandKind, HarvesterCommandResult, HarvesterCommandView, Shape
from harvester.config import HarvesterConfig
from harvester.outcome import Outcome
from harvester.steering import Steering
from harvester.steering_store import SteeringStore
from harvester.store import LogRow, Store, Worker
from harvester.workers import Workers

log = logging.getLogger(__name__)

TEST_SHAPE = Shape(cores=1)
"""What a test worker asks for: it is to show whether a pilot starts, not to get much work done."""
NOT_FOUND = 404
MOST_DETAIL = 4000
_NAMES = uuid.UUID("5a4c5a7e-3c39-5c1f-9f0e-6d5b1f0a7c11")

Plan = Callable[[Sequence[tuple[str, str, Shape]]], None]


class CommandApi(Protocol):
    """The calls about commands. Both may be repeated. Each raises common.http.HttpError."""

    def commands(self) -> list[HarvesterCommandView]:
        """What this harvester is to do, oldest first."""

    def command_done(self, command_id: int, result: HarvesterCommandResult) -> None:
        """Say what came of a command."""


class Commands:
    """Carries commands out. ``plan`` writes new workers down. ``reload`` is there where harvester can read its
    configuration anew; it says in words what it did, or raises PilotageError."""

    def __init__(
        self,
        config: HarvesterConfig,
        server: CommandApi,
        store: Store,
        memory: SteeringStore,
        workers: Workers,
        steering: Steering,
        clock: Clock,
        plan: Plan,
    ) -> None:
        self._config = config
        self._server = server
        self._store = store
        self._memory = memory
        self._workers = workers
        self._steering = steering
        self._clock = clock
        self._plan = plan
        self.reload: Callable[[], str] | None = None

    def obey(self, done: Outcome) -> None:
        """Fetch the commands that wait, carry out those that are new, and say what came of all. Raises Unwritable."""
        if done.server_down:
            return
        try:
            commands = self._server.commands()
        except PilotageError as error:
            # A server from before there were commands knows no such route.
            if not (isinstance(error, ProblemError) and error.status == NOT_FOUND):
                done.note("commands can't be fetched", error)
            return
        known = self._memory.results([_key(command) for command in commands])
        for command in commands:
            result = known.get(_key(command)) or self._first_time(command)
            try:
                self._server.command_done(command.command_id, result)
            except PilotageError as error:
                done.note(f"command {command.command_id} can't be answered", error)
                return

    def _first_time(self, command: HarvesterCommandView) -> HarvesterCommandResult:
        try:
            result = HarvesterCommandResult(ok=True, detail=self._carry_out(command)[:MOST_DETAIL])
        except (_Refusal, PilotageError) as refusal:
            result = HarvesterCommandResult(ok=False, detail=str(refusal)[:MOST_DETAIL])
        self._memory.remember(_key(command), result, self._clock.now())
        what = f"{command.kind} of {command.who}"
        log.info("command %d, %s: %s", command.command_id, what, result.detail)
        return result

    def _carry_out(self, command: HarvesterCommandView) -> str:
        try:
            kind = HarvesterCommandKind(command.kind)
        except ValueError as error:
            raise _Refusal(f"this harvester does not know {command.kind!r}: it is older than the server") from error
        if command.queue is not None and command.queue not in self._config.queues:
            known = ", ".join(sorted(self._config.queues))
            raise _Refusal(f"queue {command.queue!r} is not configured here; known are {known}")
        if kind is HarvesterCommandKind.CANCEL:
            return self._cancel(command)
        if kind is HarvesterCommandKind.SUBMIT:
            return self._submit(command)
        if kind is HarvesterCommandKind.RELOAD:
            if self.reload is None:
                raise _Refusal("this harvester can't read its configuration anew while it runs: restart it")
            return self.reload()
        if kind is HarvesterCommandKind.FETCH_LOGS:
            return self._fetch_logs(command)
        return self._drain(command, drained=kind is HarvesterCommandKind.DRAIN)

    def _drain(self, command: HarvesterCommandView, *, drained: bool) -> str:
        names = sorted(self._config.queues) if command.queue is None else [command.queue]
        self._store.set_drained(names, drained)
        return f"{', '.join(names)}: {'no new workers' if drained else 'workers are submitted again'}"

    def _cancel(self, command: HarvesterCommandView) -> str:
        found = self._alive(command)
        if command.waiting_only:
            return f"{self._steering.withdraw(found)} workers that wait are withdrawn; any that starts meanwhile stays"
        n = self._memory.cancel([worker.mark for worker in found])
        return f"the end of {n} workers is asked for"

    def _alive(self, command: HarvesterCommandView) -> list[Worker]:
        if command.queue is not None:
            return self._workers.alive([command.queue])
        alive = {worker.mark: worker for worker in self._workers.alive(sorted(self._config.queues))}
        unknown = [mark for mark in command.marks if mark not in alive]
        if len(unknown) == len(command.marks):
            raise _Refusal(f"none of these workers lives here: {', '.join(unknown[:5])}")
        return [alive[mark] for mark in command.marks if mark in alive]

    def _submit(self, command: HarvesterCommandView) -> str:
        queue = command.queue
        if queue is None:
            raise _Refusal("it names no queue")
        # The same marks if it is carried out again after a crash: those that were planned then are not planned twice.
        names = [f"{self._config.name} {_key(command)} {number}" for number in range(command.workers)]
        marks = [uuid.uuid5(_NAMES, name).hex for name in names]
        planned = self._memory.planned(marks)
        self._plan([(mark, queue, TEST_SHAPE) for mark in marks if mark not in planned])
        return f"test workers for queue {queue}: {', '.join(marks)}"

    def _fetch_logs(self, command: HarvesterCommandView) -> str:
        if not self._config.logs.keep:
            raise _Refusal("[harvester.logs] keep is false here: no output is brought home")
        known = self._memory.planned(command.marks)
        found = [mark for mark in command.marks if mark in known]
        if not found:
            raise _Refusal(f"harvester {self._config.name} had none of these workers, or has forgotten them")
        self._store.note_logs([LogRow(mark, 0, 0.0, "", "", False) for mark in found])
        return f"the output of {len(found)} workers is brought home, anew if it was there: once they have ended"


class _Refusal(Exception):
    """A command that can't be carried out, and why."""


def _key(command: HarvesterCommandView) -> str:
    """What tells it from all others, those of another server that this state was used with included."""
    return f"{command.command_id}@{command.asked!r}"
