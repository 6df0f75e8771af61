"""What harvester asks of a batch system: narrow protocols, bulk calls, an outcome per item (DESIGN 9.2).

A backend talks to one batch system and keeps no state that harvester needs: whatever it knows can be asked again after
a crash, by the *mark* that every worker carries. Three kinds of answer are kept apart everywhere:

* a fact (a state, an acceptance, a refusal);
* *denied*: the batch system answered and does not know the worker;
* *unknown*: no answer. Not knowing is not a fact (DESIGN 5.4), so it changes nothing.

A call that fails as a whole raises :class:`BackendError`; the caller treats every item of it as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.plugins import load_plugin, plugins
from common.states import WorkerState
from common.wire import Shape

GROUP = "pilotage.backends"
"""The entry point group that backends are found in."""

MARK_VARIABLE = "PILOTAGE_WORKER_MARK"
"""The environment variable that every worker carries its mark in."""

T = TypeVar("T", bound=msgspec.Struct)

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


class BackendError(Exception):
    """The batch system could not be asked, or gave no usable answer: nothing is known."""


@dataclass(frozen=True)
class WorkerSpec:
    """A worker to submit.

    ``command`` is the pilot's argument list; the backend fills ``{secret_file}`` and ``{work_dir}`` in with where it
    places them (see :func:`fill`). ``environment`` holds no secrets. ``secret`` is written by the backend as a file of
    mode 0600 and goes nowhere else. ``files`` go with the worker, by the name that they get beside it. The worker is one
    of ``nodes`` nodes with a pilot on each; ``shape`` is that of one node. ``submit`` is what the queue's configuration
    says to this backend about its workers.
    """

    mark: str
    queue: str
    shape: Shape
    command: Sequence[str]
    environment: Mapping[str, str]
    secret: str = field(repr=False)
    nodes: int = 1
    files: Mapping[str, Path] = field(default_factory=dict)
    submit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerRef:
    """How a worker is named to its batch system. ``batch_id`` is the batch system's own name for it."""

    mark: str
    batch_id: str


class SubmitResult(Enum):
    """What became of one submission."""

    ACCEPTED = "accepted"
    """The batch system has it."""
    REFUSED = "refused"
    """The batch system answered that it will not take it: it certainly isn't there."""
    UNKNOWN = "unknown"
    """No answer: it may be there; only its mark can tell."""


@dataclass(frozen=True)
class SubmitOutcome:
    """Outcome of one submission; ``batch_id`` comes with an acceptance, ``reason`` with anything else."""

    mark: str
    result: SubmitResult
    batch_id: str = ""
    reason: str = ""


class Observation(Enum):
    """What kind of answer a status is."""

    STATE = "state"
    """The batch system named a state."""
    DENIED = "denied"
    """The batch system answered and does not know the worker."""
    UNKNOWN = "unknown"
    """No answer, or one that is in no table. Never loses anything."""


@dataclass(frozen=True)
class StatusOutcome:
    """Status of one worker. ``native`` is the batch system's own word; ``exit_code`` comes with an end, if known.

    ``host`` is the node that it runs or ran on, where the batch system tells it.
    """

    observation: Observation
    state: WorkerState | None = None
    native: str = ""
    reason: str = ""
    exit_code: int | None = None
    host: str = ""

    @classmethod
    def of(
        cls, state: WorkerState, native: str, reason: str = "", exit_code: int | None = None, host: str = ""
    ) -> StatusOutcome:
        """The batch system named a state."""
        return cls(Observation.STATE, state, native, reason, exit_code, host)

    @classmethod
    def denied(cls, reason: str = "") -> StatusOutcome:
        """The batch system doesn't know the worker."""
        return cls(Observation.DENIED, reason=reason)

    @classmethod
    def unknown(cls, reason: str) -> StatusOutcome:
        """Nothing is known."""
        return cls(Observation.UNKNOWN, reason=reason)


class Backend(Protocol):
    """A batch system. All calls are bulk, blocking, and made from one thread at a time."""

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """Submit workers.

        A mark that the batch system has already is accepted as it is, where the system can tell.

        Returns:
            one outcome for each spec, in order.

        Raises:
            BackendError: nothing is known of any of them.
        """

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """Ask for the state of workers.

        Returns:
            an outcome for each mark of ``refs``.

        Raises:
            BackendError: nothing is known of any of them.
        """

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """Look workers up by their marks, alive or lately ended.

        Returns:
            those found. A mark that isn't in the answer certainly never arrived.

        Raises:
            BackendError: the batch system could not be asked, so absence means nothing.
        """


@runtime_checkable
class Killable(Protocol):
    """A backend that can end workers."""

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Ask the batch system to end workers; repeating it is harmless. Their end shows in a later status.

        Returns:
            why not, for each mark whose request was not taken; empty when all were.

        Raises:
            BackendError: the batch system could not be asked.
        """


@runtime_checkable
class Withdrawable(Protocol):
    """A backend that can end workers on condition that they have not started: a started one may hold work by now."""

    def withdraw(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Ask the batch system to end those workers that still wait; it must itself look before it does.

        Repeating it is harmless. Their end shows in a later status.

        Returns:
            why not, for each mark whose request was not taken; one that has started needn't be among them.

        Raises:
            BackendError: the batch system could not be asked.
        """


@dataclass(frozen=True)
class BatchLoad:
    """How many jobs wait and run in a batch system in all, whoever submitted them."""

    waiting: int
    running: int


@runtime_checkable
class Backlog(Protocol):
    """A backend that can tell how full its batch system is."""

    def backlog(self, submit: Mapping[str, Any]) -> BatchLoad:
        """Count the jobs where workers of a queue with these ``submit`` options would go (a partition, a CE's queue).

        Raises:
            BackendError: the batch system could not be asked.
        """


@runtime_checkable
class Settling(Protocol):
    """A backend whose submissions may still arrive after harvester was cut off in one: by a command or a request that
    outlives it."""

    @property
    def settle_s(self) -> float:
        """For how long. Until then a mark that isn't found may still turn up, and its worker isn't submitted again."""


@runtime_checkable
class Cleanable(Protocol):
    """A backend that keeps things of ended workers."""

    def clean(self, refs: Sequence[WorkerRef]) -> None:
        """Remove what is left of workers that have ended; repeating it is harmless."""


@runtime_checkable
class LogKeeper(Protocol):
    """A backend that can bring home what its ended workers wrote."""

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        """Put ``stdout`` and ``stderr`` of each worker, and what else it left of use, into its folder.

        Repeating it is harmless. A folder that exists is written into.

        Returns:
            why not, for each mark whose logs could not be had; empty when all were.

        Raises:
            BackendError: the batch system could not be asked.
        """


@runtime_checkable
class Listing(Protocol):
    """A backend that can list all workers that were submitted through it, remembered or not."""

    def list_workers(self) -> list[WorkerRef]:
        """Those that wait or run: told apart from other jobs of the same account by the mark that each carries.

        Raises:
            BackendError: the batch system could not be asked.
        """


@runtime_checkable
class Particular(Protocol):
    """A backend that takes options for the workers of a queue (``submit``), besides its own."""

    def check_submit(self, submit: Mapping[str, Any]) -> None:
        """Whether they make sense. Raises ConfigError: names the option and the remedy."""


@runtime_checkable
class Closable(Protocol):
    """A backend that keeps something open between its calls: a connection, a process."""

    def close(self) -> None:
        """Give it up; no call is under way. A later call opens it again."""


def close_all(backends: Iterable[Backend]) -> None:
    """Close those that keep something open."""
    for backend in {id(each): each for each in backends}.values():
        if isinstance(backend, Closable):
            backend.close()


class BackendFactory(Protocol):
    """What an entry point of the group names."""

    def create(self, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> Backend:
        """Make a backend from the options of a queue's configuration.

        Raises ConfigError: an option is unknown or wrong; the detail names it.
        """


def load(name: str) -> BackendFactory:
    """The backend that an entry point names.

    Raises ConfigError: there is none of that name. Raises PluginError: it can't be loaded.
    """
    found = plugins(GROUP)
    if name not in found:
        known = ", ".join(found) or "none is installed"
        raise ConfigError(f"backend: {name!r} is not known; choose one of: {known}")
    factory: BackendFactory = load_plugin(found[name])
    return factory


def read_options(options: Mapping[str, Any], kind: type[T]) -> T:
    """Options as a backend's own struct.

    Raises ConfigError: names the option and what is wrong with it.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"options: {error}") from error


def fill(command: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Fill ``{name}`` placeholders in; names that aren't given stay as they are."""
    return [_PLACEHOLDER.sub(lambda match: names.get(match[1], match[0]), argument) for argument in command]


def placeholders(command: Sequence[str]) -> set[str]:
    """The names that ``command`` has placeholders for."""
    return {match[1] for argument in command for match in _PLACEHOLDER.finditer(argument)}
