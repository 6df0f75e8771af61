"""A changed configuration takes effect while harvester runs.

What is in force changes only as a whole, and never loses a worker:

* a file that can't be used changes nothing, and is a problem until it is mended;
* a queue that was removed stays, without new workers, until those that it has have ended, also over a restart
  (``<state_dir>/leaving.json``);
* a queue whose workers the new backend options would lose sight of keeps its old options, without new workers, until they
  have ended.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.errors import PilotageError
from common.states import WorkerState
from harvester.backends.base import Backend, BackendError, close_all
from harvester.config import HarvesterConfig, QueueConfig, backend_key
from harvester.store import Store

log = logging.getLogger(__name__)

FIXED = ("name", "state_dir", "relay", "metrics")
"""Settings that need a restart."""
SENT = frozenset({WorkerState.SUBMITTED, WorkerState.RUNNING, WorkerState.HELD, WorkerState.MISSING})
"""States in which a batch system has a worker."""
LEAVING = "leaving.json"
AGAIN_S = 30.0
"""How often it is looked whether what waits may take effect."""

Load = Callable[[], HarvesterConfig]


class Fingerprint(NamedTuple):
    """What tells whether a file has changed: a cheap look first, and what is in it."""

    look: tuple[int, int, int]
    digest: bytes


class Watch:
    """Notices that what is in the files has changed; ``files`` says which there are by now."""

    def __init__(self, files: Callable[[], Sequence[Path]]) -> None:
        self._files = files
        self._seen = self._fingerprints({})

    def changed(self) -> bool:
        """Whether anything is different from the last time that it was. Raises PilotageError, or OSError."""
        before, self._seen = self._seen, self._fingerprints(self._seen)
        return {path: seen.digest for path, seen in before.items()} != {
            path: seen.digest for path, seen in self._seen.items()
        }

    def _fingerprints(self, before: Mapping[Path, Fingerprint]) -> dict[Path, Fingerprint]:
        return {path: _fingerprint(path, before.get(path)) for path in self._files()}


def _fingerprint(path: Path, before: Fingerprint | None) -> Fingerprint:
    status = path.stat()
    look = (status.st_mtime_ns, status.st_size, status.st_ino)
    if before is not None and before.look == look:
        return before
    return Fingerprint(look, hashlib.sha256(path.read_bytes()).digest())


class Reloader:
    """Says when another configuration is to take effect. ``wanted`` is what the files said at the start, ``in_force`` that
    with the queues that are leaving.

    ``problems`` are what an admin must act on, or wait for.
    """

    def __init__(
        self,
        wanted: HarvesterConfig,
        in_force: HarvesterConfig,
        load: Load,
        watch: Watch,
        store: Store,
        state_dir: Path,
        clock: Clock,
    ) -> None:
        self._in_force = in_force
        self._good = self._wanted = wanted
        self._clock = clock
        self._looked = clock.monotonic()
        self._load = load
        self._watch = watch
        self._store = store
        self._state_dir = state_dir
        self._unusable = ""
        self._unread = False
        self._waiting: list[str] = []

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files, and what waits."""
        return [*([self._unusable] if self._unusable else []), *self._waiting]

    def look(self, forced: bool, make: Callable[[QueueConfig], Backend]) -> HarvesterConfig | None:
        """The configuration to put in force now, if it is another one than that in force.

        ``forced`` has the files read whether or not they have changed; ``make`` makes a queue's backend.
        """
        if self._read(forced):
            log.info("the configuration has changed")
        elif self._in_force == self._wanted or self._clock.monotonic() - self._looked < AGAIN_S:
            return None
        self._looked = self._clock.monotonic()
        try:
            merged, waiting = self._merged(make)
        except OSError as error:
            self._unusable = f"the configuration can't be put in force: {error}"
            return None
        for problem in waiting:
            if problem not in self._waiting:
                log.warning("%s", problem)
        self._waiting = waiting
        return None if merged == self._in_force else merged

    def validate(self) -> None:
        """Whether the files, as they are now, can be used. Raises PilotageError."""
        _refuse_fixed(self._in_force, self._load())

    def accept(self, config: HarvesterConfig) -> None:
        """What :meth:`look` gave is in force now."""
        self._in_force, self._good = config, self._wanted

    def refuse(self, error: PilotageError) -> None:
        """What :meth:`look` gave can't be put in force: what was, stays, until the files change again."""
        self._wanted = self._good
        self._cannot(error)

    def _read(self, forced: bool) -> bool:
        """Read the files again if there is a reason to; whether they say something else."""
        try:
            # What could not be read may be there again by the next look, just as it was.
            if not (self._watch.changed() or forced or self._unread):
                return False
            wanted = self._load()
            _refuse_fixed(self._in_force, wanted)
        except (PilotageError, OSError) as error:
            self._unread = True
            self._cannot(error)
            return False
        self._unread, self._unusable = False, ""
        different = wanted != self._wanted
        self._wanted = wanted
        return different

    def _cannot(self, error: Exception) -> None:
        words = f"the changed configuration can't be used, the old one stays in force: {error}"
        if words != self._unusable:
            log.error("%s", words)
        self._unusable = words

    def _merged(self, make: Callable[[QueueConfig], Backend]) -> tuple[HarvesterConfig, list[str]]:
        """What is wanted, with what must stay for the workers' sake."""
        queues = dict(self._wanted.queues)
        waiting = []
        before = self._in_force.queues
        for name in sorted(before):
            wanted = queues.get(name)
            if wanted is None:
                if self._store.live(queue=name):
                    queues[name] = closed(before[name])
            elif backend_key(wanted) != backend_key(before[name]):
                why = self._loses(name, wanted, make)
                if why:
                    queues[name] = closed(before[name])
                    waiting.append(f"queue {name}: its new backend options wait, without new workers: {why}")
        save_leaving(
            self._state_dir, {name: queue for name, queue in queues.items() if name not in self._wanted.queues}
        )
        return msgspec.structs.replace(self._wanted, queues=queues), waiting

    def _loses(self, name: str, queue: QueueConfig, make: Callable[[QueueConfig], Backend]) -> str:
        """Why the workers that a queue has would be lost sight of by its new backend; empty if they would not."""
        live = self._store.live(queue=name)
        unsettled = [worker for worker in live if worker.state is WorkerState.SUBMITTING]
        if unsettled:
            return f"{len(unsettled)} submissions are not answered yet"
        marks = [worker.mark for worker in live if worker.state in SENT]
        if not marks:
            return ""
        try:
            backend = make(queue)
            try:
                found = backend.find_by_marks(marks)
            finally:
                close_all([backend])
        except (BackendError, PilotageError) as error:
            return f"whether it knows the {len(marks)} workers there are can't be told: {error}"
        unknown = len(set(marks) - found.keys())
        return (
            f"it does not know {unknown} of the {len(marks)} workers there are, which must end first" if unknown else ""
        )


def closed(queue: QueueConfig) -> QueueConfig:
    """A queue that gets no new workers."""
    return msgspec.structs.replace(queue, max_workers=0)


def _refuse_fixed(before: HarvesterConfig, after: HarvesterConfig) -> None:
    for key in FIXED:
        if getattr(before, key) != getattr(after, key):
            raise ConfigError(f"[harvester] {key}: it can't be changed while harvester runs; restart it")


def with_leaving(config: HarvesterConfig, state_dir: Path, queues_with_workers: Collection[str]) -> HarvesterConfig:
    """A configuration with the queues that an earlier one had, as long as they have workers. Raises ConfigError."""
    path = state_dir / LEAVING
    if not path.exists():
        return config
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, QueueConfig])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path}: it can't be read: {error}; once all workers have ended it may be removed"
        ) from error
    added = {name: queue for name, queue in kept.items() if name not in config.queues and name in queues_with_workers}
    return msgspec.structs.replace(config, queues={**config.queues, **added})


def save_leaving(state_dir: Path, queues: Mapping[str, QueueConfig]) -> None:
    """Remember queues that are configured no more and have workers still. Raises OSError."""
    path = state_dir / LEAVING
    if not queues:
        path.unlink(missing_ok=True)
        return
    content = msgspec.json.encode(queues, order="deterministic")
    if path.exists() and path.read_bytes() == content:
        return
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.chmod(0o600)
    temporary.replace(path)
