"""How one file gets its chances: copytools for a URL, and rounds over the places with back-off between them."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Union

from common.errors import ErrorCode, PilotageError
from pilot.copytool import Copytool, TransferOutcome, copytool_class, load_copytool
from pilot.copytool.base import safe_url, url_scheme

log = logging.getLogger(__name__)

#: Errors that mean that a replica itself is missing or damaged.
BAD_REPLICA = frozenset(
    {
        ErrorCode.NO_SUCH_FILE,
        ErrorCode.MISSING_INPUT,
        ErrorCode.GET_ADLER32_MISMATCH,
        ErrorCode.GET_MD5_MISMATCH,
    }
)

#: Errors of the local side: no other place can help.
LOCAL = frozenset(
    {
        ErrorCode.NO_LOCAL_SPACE,
        ErrorCode.FILE_HANDLING_FAILED,
        ErrorCode.NAME_TOO_LONG,
        ErrorCode.MKDIR_FAILED,
        ErrorCode.MISSING_OUTPUT,
        ErrorCode.OUTPUT_NOT_REGULAR,
        ErrorCode.UNKNOWN_CHECKSUM_TYPE,
    }
)

#: Errors that may be gone in a moment; after any other one the place is not tried again.
TRANSIENT = frozenset(
    {
        ErrorCode.STAGE_IN_FAILED,
        ErrorCode.STAGE_OUT_FAILED,
        ErrorCode.STAGE_IN_TIMEOUT,
        ErrorCode.STAGE_OUT_TIMEOUT,
        ErrorCode.SERVICE_UNAVAILABLE,
        ErrorCode.NETWORK_UNREACHABLE,
        ErrorCode.COMMUNICATION_FAILED,  # with our own server, which gives credentials
        ErrorCode.PUT_ADLER32_MISMATCH,
        ErrorCode.PUT_MD5_MISMATCH,
    }
)


@dataclass(frozen=True)
class Backoff:
    """Waits between rounds: ``first_s`` seconds, then ``factor`` times as long each, ``longest_s`` at the most.

    Each is shortened by up to half at random, so that many pilots don't come back together.
    """

    first_s: float = 2.0
    factor: float = 2.0
    longest_s: float = 60.0

    def wait_s(self, number: int) -> float:
        """Give the wait after round ``number`` (from 0), in seconds."""
        longest: float = min(self.first_s * self.factor**number, self.longest_s)
        return longest * random.uniform(0.5, 1.0)


class Toolbox:
    """The copytools of a client in their order; each is loaded when a URL first needs it."""

    def __init__(self, copytools: Sequence[Union[str, Copytool]]) -> None:
        if not copytools or isinstance(copytools, str):
            raise PilotageError(
                ErrorCode.UNKNOWN_COPYTOOL, f"copytools is {copytools!r}: give a list such as ['xrootd', 'file']"
            )
        self._tools: list[Union[type[Copytool], Copytool]] = []
        self._names: dict[type[Copytool], str] = {}
        self._loaded: dict[str, Union[Copytool, PilotageError]] = {}
        self._lock = threading.Lock()
        for tool in copytools:
            if isinstance(tool, str):
                kind = copytool_class(tool)
                self._names[kind] = tool
                self._tools.append(kind)
            else:
                self._tools.append(tool)

    def __str__(self) -> str:
        return ", ".join(tool.name for tool in self._tools)

    def for_url(self, url: str, names: Optional[Sequence[str]] = None) -> list[Copytool]:
        """Give the tools that speak a URL's scheme, none when there is none; of ``names`` only, in their order.

        Raises ``MIDDLEWARE_IMPORT_FAILED`` when there are some, but none can be loaded.
        """
        scheme = url_scheme(url)
        found: list[Copytool] = []
        broken: Optional[PilotageError] = None
        tools = self._tools if names is None else [each for name in names for each in self._tools if each.name == name]
        for tool in tools:
            if scheme not in tool.schemes:
                continue
            ready = tool if isinstance(tool, Copytool) else self._load(self._names[tool])
            if isinstance(ready, PilotageError):
                broken = ready
            else:
                found.append(ready)
        if broken is not None and not found:
            raise broken
        return found

    def _load(self, name: str) -> Union[Copytool, PilotageError]:
        """Load a tool once; give its error when that failed."""
        with self._lock:
            if name not in self._loaded:
                try:
                    self._loaded[name] = load_copytool(name)
                except PilotageError as error:
                    log.warning("copytool %s: %s", name, error)
                    self._loaded[name] = error
            return self._loaded[name]


class Candidate(NamedTuple):
    """One way to move a file: a tool and a place at a storage."""

    tool: Copytool
    storage: str
    url: str


class BadReplica(NamedTuple):
    """A replica that is missing or damaged, with the error's number and what was found."""

    storage: str
    url: str
    code: ErrorCode
    detail: str


@dataclass
class Trail:
    """What happened to one file: its successful outcome and where, or all errors in order."""

    outcome: Optional[TransferOutcome] = None
    winner: Optional[Candidate] = None
    errors: list[tuple[Candidate, PilotageError]] = field(default_factory=list)

    @property
    def bad_replicas(self) -> tuple[BadReplica, ...]:
        """The replicas that turned out to be missing or damaged."""
        return tuple(
            BadReplica(candidate.storage, candidate.url, error.code, error.detail)
            for candidate, error in self.errors
            if error.code in BAD_REPLICA
        )

    def summary(self) -> str:
        """All errors in one line."""
        return "; ".join(
            f"{candidate.storage} ({candidate.tool.name}): {int(error.code)} {error.code.name} {error.detail}"
            for candidate, error in self.errors
        )


class Rounds:
    """Tries the places of a file in order, and again after a wait, until one round too many or the deadline.

    ``attempts`` is the number of rounds; ``clock`` gives monotonic seconds. A place whose error no retry can mend is
    left out of the next rounds, a bad replica with all tools.
    """

    def __init__(
        self, attempts: int, backoff: Backoff, cancel: threading.Event, deadline: float, clock: Callable[[], float]
    ) -> None:
        self._attempts = attempts
        self._backoff = backoff
        self._cancel = cancel
        self._deadline = deadline
        self._clock = clock

    @property
    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - self._clock()

    def run(self, candidates: Sequence[Candidate], transfer: Callable[[Candidate], TransferOutcome]) -> Trail:
        """Transfer one file; ``transfer`` tries one candidate."""
        trail, left = Trail(), list(candidates)
        for number in range(self._attempts):
            if number and self._cancel.wait(min(self._backoff.wait_s(number - 1), max(self.time_left, 0))):
                break
            for candidate in list(left):
                if candidate not in left:
                    continue
                if self._cancel.is_set() or self.time_left <= 0:
                    return trail
                outcome = transfer(candidate)
                if outcome.error is None:
                    trail.outcome, trail.winner = outcome, candidate
                    return trail
                self._note(trail, candidate, outcome.error)
                if outcome.error.code in LOCAL:
                    return trail
                left = self._still_worth_trying(left, candidate, outcome.error)
            if not left:
                break
        return trail

    @staticmethod
    def _note(trail: Trail, candidate: Candidate, error: PilotageError) -> None:
        trail.errors.append((candidate, error))
        log.warning("%s with %s failed: %s", safe_url(candidate.url), candidate.tool.name, error)

    @staticmethod
    def _still_worth_trying(left: list[Candidate], failed: Candidate, error: PilotageError) -> list[Candidate]:
        if error.code in BAD_REPLICA:
            return [candidate for candidate in left if candidate.url != failed.url]
        if error.code not in TRANSIENT:
            return [candidate for candidate in left if candidate != failed]
        return left
