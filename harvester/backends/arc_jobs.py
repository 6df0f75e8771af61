"""Which jobs of a CE are which workers, and whether they have the files that they need."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from common.states import FINAL_WORKER_STATES
from harvester.backends.arc_rest import Action, ArcFault, ArcRest
from harvester.backends.arc_states import STATES, WAITS_FOR_INPUT, ArcState, state_of
from harvester.backends.base import BackendError
from harvester.backends.side_by_side import side_by_side
from harvester.worker_folder import WorkerFolders

log = logging.getLogger(__name__)

SENT, ABANDONED = "sent", "abandoned"
LOOKS, LOOK_AGAIN_S = 3, 0.3
"""How often, and how far apart, our jobs are looked at for one that should be among them."""


def looks() -> Iterator[None]:
    """A moment apart, as often as is worth it: a CE doesn't see a job in the moment in which it rewrites what it knows of it."""
    for number in range(LOOKS):
        if number:
            threading.Event().wait(LOOK_AGAIN_S)
        yield


@dataclass(frozen=True)
class Found:
    """A job that is a worker. ``state`` is None where the CE's word isn't known here."""

    mark: str
    job: str
    state: ArcState | None


class Jobs:
    """Our jobs on one CE, by the names that they have there. ``most``: how many requests are under way at a time."""

    def __init__(self, rest: ArcRest, folders: WorkerFolders, most: int) -> None:
        self._rest = rest
        self._most = most
        self._folders = folders
        self._names: dict[str, str] = {}

    def note_sent(self, mark: str, inputs: Sequence[str]) -> None:
        """Write down that the CE is about to hear of a worker, and which files it needs. Raises OSError."""
        (self._folders.path(mark) / SENT).write_text("".join(f"{name}\n" for name in inputs), encoding="utf-8")

    def was_sent(self, mark: str) -> bool:
        """Whether the CE may have heard of a worker."""
        return (self._folders.path(mark) / SENT).exists()

    def find(self, marks: Sequence[str]) -> dict[str, Found]:
        """The jobs that are these workers, by their marks.

        Raises BackendError: not all our jobs could be looked at, so that absence means nothing.
        """
        wanted, sent = set(marks), {mark for mark in marks if self.was_sent(mark)}
        named: dict[str, set[str]] = {}
        for _ in looks():
            # A list by states would leave out jobs in states that aren't known here.
            for job, name in self._names_of(list(self._rest.list_jobs()), wanted).items():
                if name in wanted:
                    named.setdefault(name, set()).add(job)
            if sent <= named.keys():
                break
        states = self._states(job for jobs in named.values() for job in jobs)
        found = {}
        for mark, jobs in named.items():
            left = self._less_abandoned(mark, sorted(jobs))
            if left:
                found[mark] = self._one_of(mark, left, states)
        return found

    def complete(self, found: Found) -> bool:
        """Give a job the files that it lacks; answers whether it is a worker, or had to be given up.

        Raises BackendError: the CE can't be asked.
        """
        if found.state not in WAITS_FOR_INPUT:
            return True
        try:
            needed = (self._folders.path(found.mark) / SENT).read_text(encoding="utf-8").split("\n")[:-1]
        except OSError:
            # Nothing is known of its files. It is there; if it lacks any, the CE ends it.
            return True
        there = self._rest.read(found.job, "diagnose", "input_status") or b""
        uploaded = {line.strip().lstrip("/") for line in there.decode("utf-8", "replace").splitlines()}
        missing = [name for name in needed if name not in uploaded]
        try:
            self.upload(found.mark, found.job, missing)
        except (ArcFault, OSError) as error:
            log.warning("worker %s: job %s can't get its files and is given up: %s", found.mark, found.job, error)
            self.abandon(found.mark, [found.job])
            return False
        if missing:
            log.info("worker %s: job %s got %s", found.mark, found.job, ", ".join(missing))
        return True

    def upload(self, mark: str, job: str, names: Iterable[str]) -> None:
        """Put files of a worker's folder beside its job. Raises ArcUnreachable, ArcFault or OSError."""
        for name in names:
            self._rest.upload(job, name, self._folders.path(mark) / name)

    def abandon(self, mark: str, jobs: Sequence[str]) -> None:
        """End jobs that are not to become a worker. Raises BackendError: they may live still."""
        try:
            with (self._folders.path(mark) / ABANDONED).open("a", encoding="utf-8") as file:
                file.writelines(f"{job}\n" for job in jobs)
        except OSError as error:
            raise BackendError(f"{self._folders.path(mark)}: {error.strerror}") from error
        for action in (Action.KILL, Action.CLEAN):
            answers = self._rest.ask(action, jobs)
            for job in jobs:
                item = answers.get(job)
                if item is None or not (item.ok or item.status == 404):
                    words = item.words if item is not None else "no answer"
                    raise BackendError(f"job {job} of worker {mark} should be given up, but can't be: {words}")

    def _names_of(self, jobs: Sequence[str], wanted: set[str]) -> dict[str, str]:
        """The names of jobs; each is asked for once, since it doesn't change. Of a job without one, which of ``wanted`` it is."""
        new = [job for job in jobs if job not in self._names]
        answers = self._rest.ask(Action.INFO, new) if new else {}
        self._names = {job: self._names[job] for job in jobs if job in self._names}
        nameless = []
        for job in new:
            item = answers.get(job)
            if item is None or not (item.ok or item.status == 404):
                words = item.words if item is not None else "no answer"
                raise BackendError(f"{self._rest.url}: nothing is known of job {job}: {words}")
            name = item.info.get("Name") if item.info is not None else None
            if name and isinstance(name, str):
                self._names[job] = name
            elif item.ok:
                nameless.append(job)
        described = side_by_side(lambda job: self._described_as(job, wanted), nameless, self._most)
        return {**self._names, **dict(zip(nameless, described))}

    def _described_as(self, job: str, wanted: set[str]) -> str:
        """Which worker a job is by its description: information on it lacks the name while the CE rewrites it."""
        description = (self._rest.read(job, "diagnose", "description") or b"").decode("utf-8", "replace")
        return next((mark for mark in wanted if mark in description), "")

    def _states(self, jobs: Iterable[str]) -> dict[str, ArcState | None]:
        wanted = set(jobs)
        if not wanted:
            return {}
        listed = self._rest.list_jobs(list(ArcState))
        return {job: state_of(listed.get(job, "")) for job in wanted}

    def _less_abandoned(self, mark: str, jobs: list[str]) -> list[str]:
        try:
            given_up = set((self._folders.path(mark) / ABANDONED).read_text(encoding="utf-8").split())
        except OSError:
            return jobs
        again = [job for job in jobs if job in given_up]
        if again:
            self.abandon(mark, again)
        return [job for job in jobs if job not in given_up]

    def _one_of(self, mark: str, jobs: list[str], states: dict[str, ArcState | None]) -> Found:
        """The one job that is the worker. More than one come of a request that arrived very late: the others are ended."""
        ranked = sorted(jobs, key=lambda job: (_rank(states[job]), job))
        kept, late = ranked[0], [job for job in ranked[1:] if _rank(states[job]) < _ENDED]
        if late:
            log.warning("worker %s has the jobs %s: all but %s are ended", mark, ", ".join(ranked), kept)
            self.abandon(mark, late)
        return Found(mark, kept, states[kept])


_ENDED = 2


def _rank(state: ArcState | None) -> int:
    """Those that are on their way first, then those that wait for their files, then those that have ended."""
    if state is not None and STATES[state] in FINAL_WORKER_STATES:
        return _ENDED
    return 1 if state in WAITS_FOR_INPUT else 0
