"""Keeps credentials fresh: obtains them, writes each to its file, and does so again ahead of its end.

Each lies in ``<state_dir>/credentials/NAME`` (mode 0600), replaced in one step, so that whoever reads it finds a whole one.
A credential that can't be renewed stays as it is: it may be good for a while yet. ``<state_dir>/credentials.json`` says for
other processes how they stand; it holds no secret.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.quantities import format_about
from common.tokens import SecretFileError, read_secret_file, write_secret_file
from common.wire import Name
from harvester.credentials.base import CommonKeys, CredentialError, Source, common_keys, load
from harvester.credentials.ends import Ends, ends_of

log = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 15.0, 600.0
"""The pause after a failure, doubled each time up to the second."""
LEAST_PAUSE_S = 1.0
STATUS_FILE = "credentials.json"


class CredentialState(msgspec.Struct, kw_only=True):
    """How a credential stands. Times are in seconds since the epoch; ``expires`` is none where it isn't known.

    ``problem`` says what an admin must act on; ``failures`` counts renewals in a row that failed.
    """

    name: str
    kind: str
    file: str
    expires: float | None = None
    voms_expires: float | None = None
    attributes: list[str] = []
    obtained: float | None = None
    next: float = 0.0
    failures: int = 0
    problem: str = ""


class _Held:
    """A credential with the way to renew it."""

    def __init__(self, keys: CommonKeys, table: Mapping[str, Any], source: Source, state: CredentialState) -> None:
        self.keys = keys
        self.table = table
        self.source = source
        self.state = state


class Keeper:
    """The credentials of a configuration, ``tables`` by name. Raises PilotageError (BAD_CONFIGURATION)."""

    def __init__(self, tables: Mapping[str, Mapping[str, Any]], state_dir: Path, clock: Clock) -> None:
        self._folder = state_dir / "credentials"
        self._status = state_dir / STATUS_FILE
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned: dict[str, tuple[bool, str] | None] = {}
        self._held = [self._hold(name, table) for name, table in tables.items()]

    def _hold(self, name: str, table: Mapping[str, Any]) -> _Held:
        where = f"[harvester.credentials.{name}]"
        try:
            msgspec.convert(name, Name)
            memory = self._folder / f".{name}.memory"
            source = load(table.get("kind")).create(table, memory, self._clock)
            keys = common_keys(table)
        except ConfigError as error:
            raise ConfigError(f"{where} {error.detail}") from error
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {name!r} is no name: {error}") from error
        return _Held(keys, table, source, CredentialState(name=name, kind=keys.kind, file=str(self._folder / name)))

    def states(self) -> list[CredentialState]:
        """How they stand now, with what there is to act on."""
        with self._lock:
            return [self._judged(held) for held in self._held]

    def problems(self) -> list[str]:
        """What an admin must act on."""
        return [f"credential {state.name}: {state.problem}" for state in self.states() if state.problem]

    def renew_due(self) -> None:
        """Renew those whose time has come. A failure is noted and tried again later."""
        now = self._clock.now()
        for held in [held for held in self._held if held.state.next <= now]:
            self._renew(held)
        if self._held:
            self._warn()
            self._tell()

    def obtain_missing(self) -> None:
        """Get those that there are no files of yet: backends may look for them when they are made."""
        for held in [held for held in self._held if not Path(held.state.file).exists()]:
            self._renew(held)

    def next_in_s(self) -> float | None:
        """How long until the next is due; none without any."""
        with self._lock:
            due = min((held.state.next for held in self._held), default=None)
        return None if due is None else max(0.0, due - self._clock.now())

    def start(self) -> None:
        """Obtain all that there are, and go on renewing them in a thread."""
        if not self._held:
            self._status.unlink(missing_ok=True)
            return
        self.renew_due()
        self._thread = threading.Thread(target=self._run, name="credentials", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, unless it waits for an answer: then it ends with the program."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stop.wait(self.next_in_s()):
            self.renew_due()

    def _renew(self, held: _Held) -> None:
        name = held.state.name
        try:
            # Before anything is got: what replaces a refresh token must have a place to be kept.
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = held.source.obtain()
            ends = ends_of(text)
            now = self._clock.now()
            if ends.expires is not None and ends.expires <= now:
                raise CredentialError(f"what was got has expired {format_about(now - ends.expires)} ago")
            self._write(name, text)
        except (CredentialError, ValueError, OSError) as error:
            self._note_failure(held, str(error))
            return
        with self._lock:
            held.state = self._fresh(held, ends, now)
        log.info("credential %s: renewed%s", name, _until(ends, now))

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        if not (path.exists() and path.read_text(encoding="ascii") == f"{text}\n"):
            write_secret_file(path, text)

    def _fresh(self, held: _Held, ends: Ends, now: float) -> CredentialState:
        unchanged = held.state.expires == ends.expires and held.state.obtained is not None
        obtained = held.state.obtained if unchanged else now
        return msgspec.structs.replace(
            held.state,
            expires=ends.expires,
            voms_expires=ends.voms_expires,
            attributes=ends.attributes,
            obtained=obtained,
            next=_next(held.keys, ends.expires, now),
            failures=0,
            problem="",
        )

    def _note_failure(self, held: _Held, words: str) -> None:
        now = self._clock.now()
        with self._lock:
            before = held.state
            kept = self._kept(before.name) if before.obtained is None else Ends(before.expires)
            pause = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(before.failures, 10))
            held.state = msgspec.structs.replace(
                before, expires=kept.expires, next=now + pause, failures=before.failures + 1, problem=words
            )

    def _kept(self, name: str) -> Ends:
        """The ends of what an earlier run has left."""
        try:
            return ends_of(read_secret_file(self._folder / name))
        except (SecretFileError, ValueError):
            return Ends()

    def _judged(self, held: _Held) -> CredentialState:
        state, now = held.state, self._clock.now()
        if state.expires is None:
            return (
                state
                if not state.problem
                else msgspec.structs.replace(state, problem=f"not to be had; {state.problem}")
            )
        left = state.expires - now
        life = state.expires - (state.obtained if state.obtained is not None else now)
        warn_s = held.keys.warn_before_s if held.keys.warn_before_s is not None else life / 6
        if left > warn_s:
            # A renewal that failed is worth a problem only once it matters, or goes on.
            problem = f"it could not be renewed; {state.problem}" if state.failures else ""
        else:
            ends = f"it ends in {format_about(left)}" if left > 0 else f"it has ended {format_about(-left)} ago"
            problem = f"{ends}; {state.problem or 'whoever renews it has not done so'}"
        return msgspec.structs.replace(state, problem=problem)

    def _warn(self) -> None:
        """Log what there is to act on, once until it is something else."""
        for state in self.states():
            ended = state.expires is not None and state.expires <= self._clock.now()
            # How long it is good for yet is another at each look.
            words = (ended, state.problem.rpartition("; ")[2]) if state.problem else None
            if words is not None and words != self._warned.get(state.name):
                log.warning("credential %s: %s", state.name, state.problem)
            self._warned[state.name] = words

    def _tell(self) -> None:
        temporary = self._status.with_suffix(".new")
        try:
            temporary.write_bytes(msgspec.json.encode(self.states()))
            temporary.replace(self._status)
        except OSError as error:
            log.warning("%s: cannot be written: %s", self._status, error.strerror)


def told_states(state_dir: Path) -> list[CredentialState]:
    """What a running harvester last said of its credentials. Raises OSError or msgspec.DecodeError."""
    path = state_dir / STATUS_FILE
    return msgspec.json.decode(path.read_bytes(), type=list[CredentialState]) if path.exists() else []


def unused_files(state_dir: Path, names: Iterable[str]) -> list[Path]:
    """Files of credentials that the configuration doesn't have."""
    folder = state_dir / "credentials"
    keep = {part for name in names for part in (name, f".{name}.memory")}
    return sorted(path for path in folder.iterdir() if path.name not in keep) if folder.is_dir() else []


def _next(keys: CommonKeys, expires: float | None, now: float) -> float:
    """When to renew: ahead of the end; a credential that came late in its life, again soon."""
    if expires is None:
        return now + keys.every_s
    ahead = keys.renew_before_s if keys.renew_before_s is not None else (expires - now) / 3
    return max(expires - ahead, now + max(LEAST_PAUSE_S, min(FIRST_RETRY_S, (expires - now) / 2)))


def _until(ends: Ends, now: float) -> str:
    return "" if ends.expires is None else f", good for {format_about(ends.expires - now)}"
