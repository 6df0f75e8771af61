"""Direct jobs on an ARC CE: a person's own description, under the person's own proxy.

The description goes as it is, but for the mark: a comment in it, which the CE keeps with the job and which says nothing
to it. Where the CE speaks version 1.0 of the interface only, queue and delegation have to stand in the description, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from common.clock import Clock
from common.endpoint import certificate_authorities
from common.wire.direct import Language
from harvester.backends.arc import UNREADABLE, ArcBackend
from harvester.backends.arc_delegation import Delegation
from harvester.backends.arc_jobs import looks
from harvester.backends.arc_options import ArcOptions
from harvester.backends.arc_rest import Action, ArcFault, ArcRest, Credential
from harvester.backends.arc_states import WAITS_FOR_INPUT, ArcState, state_of
from harvester.backends.base import (
    BackendError,
    StatusOutcome,
    SubmitOutcome,
    SubmitResult,
    WorkerRef,
    read_options,
)
from harvester.backends.side_by_side import side_by_side
from harvester.worker_folder import WorkerFolders

MOST_FILES = 10_000
MOST_DEPTH = 20
"""Folders within folders of what a job left."""
_ROOT = re.compile(r"<(?![?!])[^\s/>]+(?:\s[^>]*?)?>", re.DOTALL)
_KINDS = {Language.XRSL: "application/rsl", Language.ADL: "application/xml"}
_MARK = re.compile(r"pilotage ([0-9a-zA-Z_-]{8,64})\b")


class Unfit(Exception):
    """A description that can't be handed to this CE; the words say why."""


def marked(text: str, language: Language, mark: str) -> str:
    """A description with its mark. Raises Unfit."""
    if language is Language.XRSL:
        return f"&(* pilotage {mark} *){text.strip().removeprefix('&')}"
    root = _ROOT.search(text)
    if root is None or root[0].endswith("/>"):
        raise Unfit("the description has no place for a mark")
    return f"{text[: root.end()]}<!-- pilotage {mark} -->{text[root.end() :]}"


class ArcDirect:
    """One person's jobs on one CE."""

    def __init__(self, rest: ArcRest, delegation: Delegation, backend: ArcBackend, most: int) -> None:
        self._rest = rest
        self._delegation = delegation
        self._backend = backend
        self._most = most
        self._marks: dict[str, str] = {}

    @classmethod
    def create(cls, options: Mapping[str, Any], proxy: Path, state_dir: Path, clock: Clock) -> ArcDirect:
        """Make one from the options of a queue, and a person's proxy in place of the credential there."""
        read = read_options(options, ArcOptions)
        credential = Credential(proxy, proxy)
        rest = ArcRest(read.url, credential, certificate_authorities(read.ca_file), read.timeout_s, clock)
        name = sha256(f"{read.url} {proxy}".encode()).hexdigest()[:16]
        file = state_dir / "direct" / "delegations" / name
        delegation = Delegation(rest, credential, file, clock, read.delegation_s, read.renew_before_s)
        folders = WorkerFolders(state_dir / "direct" / "workers")
        return cls(rest, delegation, ArcBackend(rest, delegation, folders, read.settle_s, read.uploads), read.uploads)

    # ------------------------------------------------------------ submission

    @property
    def settle_s(self) -> float:
        """For how long a submission may still arrive after harvester was cut off in it."""
        return self._backend.settle_s

    def prepare(self) -> None:
        """Have what a submission needs: the CE's delegation. Raises BackendError."""
        self._delegation.current()

    def submit(self, mark: str, text: str, language: Language, queue: str) -> SubmitOutcome:
        """Hand one description in. Never repeated here: only the mark can tell whether it arrived.

        Raises BackendError: nothing was handed in, as there is no delegation, or the CE can't be asked.
        """
        delegation = self._delegation.current().id
        try:
            described = marked(text, language, mark)
            if self._rest.version() == "1.0":
                described = _for_old(described, language, queue, delegation)
            items = self._rest.create(described.encode(), _KINDS[language], queue, delegation)
        except (Unfit, UnicodeEncodeError) as error:
            return SubmitOutcome(mark, SubmitResult.REFUSED, reason=str(error))
        except ArcFault as fault:
            refused = 400 <= fault.status < 500 or UNREADABLE in str(fault) or "not recognized" in str(fault)
            result = SubmitResult.REFUSED if refused else SubmitResult.UNKNOWN
            return SubmitOutcome(mark, result, reason=str(fault))
        except BackendError as error:
            return SubmitOutcome(mark, SubmitResult.UNKNOWN, reason=str(error))
        if len(items) != 1:
            return SubmitOutcome(mark, SubmitResult.UNKNOWN, reason=f"the CE made {len(items)} jobs of one description")
        (item,) = items
        if item.ok and item.job:
            return SubmitOutcome(mark, SubmitResult.ACCEPTED, item.job)
        result = SubmitResult.UNKNOWN if item.ok or not item.status else SubmitResult.REFUSED
        return SubmitOutcome(mark, result, reason=item.words)

    def find(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """Look jobs up by their marks; one that isn't in the answer is not there.

        Raises BackendError: not all of the person's jobs could be looked at, so that absence means nothing.
        """
        found: dict[str, str] = {}
        for _ in looks():
            found.update({mark: job for job, mark in sorted(self._all_marks().items())})
            if found.keys() >= set(marks):
                break
        return {mark: WorkerRef(mark, found[mark]) for mark in marks if mark in found}

    def _all_marks(self) -> dict[str, str]:
        """The marks of the person's jobs that the CE lists now; each is read once. Raises BackendError."""
        jobs = list(self._rest.list_jobs())
        new = [job for job in jobs if job not in self._marks]
        read = dict(zip(new, side_by_side(self._mark_of, new, self._most)))
        self._marks = {job: read[job] if job in read else self._marks[job] for job in jobs}
        return self._marks

    def _mark_of(self, job: str) -> str:
        text = self._rest.read(job, "diagnose", "description")
        if text is None:
            raise BackendError(f"{self._rest.url}: it lists job {job} and doesn't show its description")
        found = _MARK.search(text.decode("utf-8", "replace"))
        return found[1] if found else ""

    def waits_for_input(self, job: str) -> bool:
        """Whether a job still takes files, or that can't be told: for a moment now and then the CE doesn't list a job.

        Raises BackendError.
        """
        state = state_of(self._rest.list_jobs(list(ArcState)).get(job, ""))
        return state is None or state in WAITS_FOR_INPUT

    def upload(self, job: str, path: str, source: Path) -> None:
        """Put a file beside a job; repeating it is harmless. Raises BackendError or OSError."""
        self._rest.upload(job, path, source)

    # ------------------------------------------------------------ states and ends

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """As :meth:`ArcBackend.status`, which it is."""
        return self._backend.status(refs)

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """As :meth:`ArcBackend.kill`, which it is."""
        return self._backend.kill(refs)

    def clean(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Have the CE remove jobs that have ended; why not, for each mark of one that is there still.

        Raises BackendError.
        """
        answers = self._rest.ask(Action.CLEAN, [ref.batch_id for ref in refs]) if refs else {}
        left = {}
        for ref in refs:
            item = answers.get(ref.batch_id)
            if item is None or not (item.ok or item.status == 404):
                left[ref.mark] = item.words if item is not None else "the CE left it out of its answer"
        return left

    # ------------------------------------------------------------ results

    def files(self, job: str) -> Iterator[tuple[str, ...]] | None:
        """The paths of what a job left, folder by folder; None when nothing is left of the job. Raises BackendError."""
        top = self._rest.listing(job, ())
        return None if top is None else self._walk(job, (), top)

    def _walk(self, job: str, folder: tuple[str, ...], here: tuple[list[str], list[str]]) -> Iterator[tuple[str, ...]]:
        yield from ((*folder, name) for name in sorted(here[0]) if _is_name(name))
        for name in sorted(here[1]):
            below = (*folder, name)
            if not _is_name(name) or len(below) > MOST_DEPTH:
                continue
            found = self._rest.listing(job, below)
            if found is not None:
                yield from self._walk(job, below, found)

    def save(self, job: str, path: Sequence[str], target: Path, most: int) -> bool:
        """Bring one of them home; answers whether it was there. Raises TooMuch, BackendError or OSError."""
        return self._rest.save(job, path, target, most)


def _is_name(name: str) -> bool:
    """Whether a name is one of a file or folder, and leads nowhere else."""
    return name not in ("", ".", "..") and "/" not in name and name.isprintable()


def _for_old(text: str, language: Language, queue: str, delegation: str) -> str:
    """A description for version 1.0 of the interface. Raises Unfit."""
    if language is not Language.XRSL:
        raise Unfit("this CE speaks an old version of its interface, which takes descriptions in xRSL only")
    more = f'(queue="{queue}")' if queue and not re.search(r"\(\s*queue\s*=", text, re.IGNORECASE) else ""
    return f'{text}{more}(delegationid="{delegation}")'
