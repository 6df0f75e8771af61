"""Workers as jobs of an ARC CE, through its REST interface.

The mark is the job's name. A worker's folder holds, besides what it starts from (:mod:`harvester.worker_folder`):

==============  ==============================================================================================
``sent``        the names of the files that its job needs; written before the CE hears of it
``abandoned``   ids of jobs of its name that never got their files and were ended: they are not the worker
==============  ==============================================================================================

A CE makes jobs first and gets their files afterwards. A job whose files didn't come, because harvester was killed between
the two, gets them when it is looked up by its mark.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.endpoint import certificate_authorities, checked_url
from common.errors import PilotageError
from harvester.backends.arc_delegation import Delegation
from harvester.backends.arc_jobs import Jobs
from harvester.backends.arc_options import ArcOptions, check_submit, describe, in_bulk, inputs_of, submit_options
from harvester.backends.arc_rest import Action, ArcFault, ArcRest, ArcUnreachable, Item
from harvester.backends.arc_states import STATES, ArcState, ended_as, exit_code_of, merged, reason_of, state_of
from harvester.backends.base import (
    BackendError,
    BatchLoad,
    StatusOutcome,
    SubmitOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
    read_options,
)
from harvester.backends.side_by_side import side_by_side
from harvester.worker_folder import WorkerFolders

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

PER_REQUEST = 100
"""Jobs in one submission: what a CE makes in a second or two."""
LOGS = ("stdout", "stderr")
DIAGNOSES = ("failed", "errors", "diag", "local")
"""What a CE keeps of a job that failed: why, what its scripts said, what the node said, what the CE knew of it."""
SILENT = "the CE stopped answering before its turn came"
UNREADABLE = "parsing error"
"""In a CE's words on descriptions that it can't read: it reads all of a request before it makes the first job."""
SCRATCH = "${ARC_LOCAL_SCRATCH:-${TMPDIR:-/tmp}}"


class ArcBackend:
    """Harvester's side of one CE."""

    def __init__(
        self, rest: ArcRest, delegation: Delegation | None, folders: WorkerFolders, settle_s: float, uploads: int
    ) -> None:
        self._rest = rest
        self._delegation = delegation
        self._folders = folders
        self._jobs = Jobs(rest, folders, uploads)
        self._settle_s = settle_s
        self._uploads = uploads

    @classmethod
    def create(cls, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> ArcBackend:
        """Make one from its options."""
        read = read_options(options, ArcOptions)
        credential = read.credential()
        try:
            url, verify = checked_url(read.url), certificate_authorities(read.ca_file)
        except PilotageError as error:
            raise ConfigError(f"options: {error.detail}") from error
        if not url.startswith("https:"):
            raise ConfigError(f"options.url: {read.url!r}: a CE is spoken to over https; write it so")
        rest = ArcRest(url, credential, verify, read.timeout_s, clock)
        delegation = None
        if credential.certificate is not None:
            name = sha256(f"{url} {credential.certificate}".encode()).hexdigest()[:16]
            file = state_dir / "arc" / f"{name}.delegation"
            delegation = Delegation(rest, credential, file, clock, read.delegation_s, read.renew_before_s)
        folders = WorkerFolders(Path(read.workers_dir or state_dir / "workers"))
        return cls(rest, delegation, folders, read.settle_s, read.uploads)

    @property
    def settle_s(self) -> float:
        """For how long a submission may still arrive after harvester was cut off in it."""
        return self._settle_s

    def check_submit(self, submit: Mapping[str, Any]) -> None:
        """Whether a description can be made with a queue's ``submit``."""
        check_submit(submit)

    # ------------------------------------------------------------ submission

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """Make jobs in bulk, then upload their files, several at a time."""
        outcomes: dict[str, SubmitOutcome] = {}
        before = [spec.mark for spec in specs if self._jobs.was_sent(spec.mark)]
        for mark, ref in (self.find_by_marks(before) if before else {}).items():
            outcomes[mark] = SubmitOutcome(mark, SubmitResult.ACCEPTED, ref.batch_id)
        fresh = [spec for spec in specs if spec.mark not in outcomes]
        delegation = self._delegation.current().id if self._delegation is not None and fresh else ""
        described: dict[str, list[tuple[WorkerSpec, str]]] = {"&": [], "<": []}
        for spec in fresh:
            try:
                text = describe(spec, self._folders.prepare(spec, SCRATCH), delegation)
            except (OSError, ConfigError) as error:
                outcomes[spec.mark] = SubmitOutcome(spec.mark, SubmitResult.REFUSED, reason=str(error))
            else:
                described[text[0]].append((spec, text))
        silent = threading.Event()
        for same in described.values():
            for start in range(0, len(same), PER_REQUEST):
                part = same[start : start + PER_REQUEST]
                outcomes.update({one.mark: one for one in self._submit_part(part, silent)})
        return [outcomes[spec.mark] for spec in specs]

    def _submit_part(self, part: Sequence[tuple[WorkerSpec, str]], silent: threading.Event) -> list[SubmitOutcome]:
        """One request for many jobs, and their files. ``silent`` is set once the CE did not answer: then it is left alone."""
        specs = [spec for spec, _ in part]
        if silent.is_set():
            return [SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=SILENT) for spec in specs]
        try:
            for spec in specs:
                self._jobs.note_sent(spec.mark, inputs_of(spec))
        except OSError as error:
            return [SubmitOutcome(spec.mark, SubmitResult.REFUSED, reason=str(error)) for spec in specs]
        try:
            items = self._rest.create(*in_bulk([text for _, text in part]))
        except ArcFault as fault:
            # What it forbids or can't read it refuses before it makes a job; of anything else only the marks can tell.
            refused = 400 <= fault.status < 500 or UNREADABLE in str(fault)
            result = SubmitResult.REFUSED if refused else SubmitResult.UNKNOWN
            return [SubmitOutcome(spec.mark, result, reason=str(fault)) for spec in specs]
        except BackendError as error:
            silent.set()
            return [SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=str(error)) for spec in specs]
        if len(items) != len(specs):
            reason = f"the CE answered for {len(items)} of {len(specs)} jobs"
            return [SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=reason) for spec in specs]
        return self._in_threads(lambda made: self._settle_one(*made, silent), list(zip(specs, items)))

    def _settle_one(self, spec: WorkerSpec, item: Item, silent: threading.Event) -> SubmitOutcome:
        """What became of one job of a bulk submission; its files are uploaded."""
        if not item.ok or not item.job:
            result = SubmitResult.UNKNOWN if item.ok or not item.status else SubmitResult.REFUSED
            return SubmitOutcome(spec.mark, result, reason=item.words)
        if silent.is_set():
            return SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=SILENT)
        try:
            self._jobs.upload(spec.mark, item.job, inputs_of(spec))
        except ArcUnreachable as error:
            silent.set()
            return SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=str(error))
        except (ArcFault, OSError) as error:
            try:
                self._jobs.abandon(spec.mark, [item.job])
            except BackendError as again:
                return SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=f"{error}; {again}")
            return SubmitOutcome(spec.mark, SubmitResult.REFUSED, reason=f"its files can't be stored there: {error}")
        return SubmitOutcome(spec.mark, SubmitResult.ACCEPTED, item.job)

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """Look workers up by the names of our jobs; those whose files are missing get them."""
        if not marks:
            return {}
        found = self._jobs.find(marks)
        completed = self._in_threads(self._jobs.complete, list(found.values()))
        return {one.mark: WorkerRef(one.mark, one.job) for one, whole in zip(found.values(), completed) if whole}

    # ------------------------------------------------------------ status and end

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """One question for the states of all our jobs; a second for details of those that the batch system has."""
        if not refs:
            return {}
        self._renew()
        fresh = self._rest.list_jobs(list(ArcState))
        asked = [ref.batch_id for ref in refs if self._wants_detail(fresh.get(ref.batch_id))]
        detailed = self._rest.ask(Action.STATUS, asked) if asked else {}
        outcomes = {ref.mark: _status(fresh.get(ref.batch_id), detailed.get(ref.batch_id)) for ref in refs}
        failed = [ref for ref in refs if outcomes[ref.mark].native == ArcState.FAILED.value]
        outcomes.update(zip((ref.mark for ref in failed), self._in_threads(self._failure, failed)))
        return outcomes

    @staticmethod
    def _wants_detail(word: str | None) -> bool:
        return word is None or state_of(word) in (None, ArcState.RUNNING)

    def _failure(self, ref: WorkerRef) -> StatusOutcome:
        """The status of a worker that failed: why, with which exit code, and where."""
        try:
            why = self._rest.read(ref.batch_id, "diagnose", "failed") or b""
            node = self._rest.read(ref.batch_id, "diagnose", "diag") or b""
        except ArcFault as error:
            # Its end is final: it waits until what is to be said of it can be had.
            return StatusOutcome.unknown(f"it failed, and the CE doesn't say why: {error}")
        failure = why.decode("utf-8", "replace")
        state = ended_as(failure)
        return StatusOutcome.of(
            STATES[state], state.value, reason_of(state, failure), exit_code_of(failure), _variable(node, b"nodename")
        )

    def _renew(self) -> None:
        """Have the CE's credential renewed when that is due. A failure costs no status: it is due again next time."""
        if self._delegation is None:
            return
        try:
            self._delegation.current()
        except BackendError as error:
            log.warning("%s: what the CE holds of our certificate can't be renewed: %s", self._rest.url, error)

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Ask the CE to end jobs; one that it doesn't have any more has ended."""
        answers = self._rest.ask(Action.KILL, [ref.batch_id for ref in refs]) if refs else {}
        missing = Item(0, "the CE left it out of its answer")
        items = {ref.mark: answers.get(ref.batch_id, missing) for ref in refs}
        return {mark: item.words for mark, item in items.items() if not item.ok and item.status != 404}

    def clean(self, refs: Sequence[WorkerRef]) -> None:
        """Have the CE remove what it keeps of workers that have ended, and remove their folders here."""
        try:
            answers = self._rest.ask(Action.CLEAN, [ref.batch_id for ref in refs]) if refs else {}
        except BackendError as error:
            log.warning("%s: ended jobs stay until the CE removes them by itself: %s", self._rest.url, error)
        else:
            for job, item in answers.items():
                if not item.ok and item.status != 404:
                    log.warning(
                        "%s: job %s stays until the CE removes it by itself: %s", self._rest.url, job, item.words
                    )
        try:
            self._folders.remove(ref.mark for ref in refs)
        except OSError as error:
            log.warning("%s: a worker's folder can't be removed: %s", self._folders.root, error)

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        """Bring home what workers wrote, and what the CE kept of those that failed."""
        reasons = self._in_threads(self._fetch_one, list(folders.items()))
        return {ref.mark: reason for ref, reason in zip(folders, reasons) if reason}

    def _fetch_one(self, what: tuple[WorkerRef, Path]) -> str:
        ref, folder = what
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            came = [self._rest.download(ref.batch_id, ("session", name), folder / name) for name in LOGS]
            came.append(self._rest.download(ref.batch_id, ("diagnose", "failed"), folder / "failed"))
            if came[-1]:
                came += [self._rest.download(ref.batch_id, ("diagnose", name), folder / name) for name in DIAGNOSES[1:]]
        except ArcUnreachable:
            raise
        except (BackendError, OSError) as error:
            return str(error)
        return "" if any(came) else "the CE has nothing of it"

    def backlog(self, submit: Mapping[str, Any]) -> BatchLoad:
        """What the CE publishes of the queue behind it; without a queue, of all."""
        queue = submit_options(submit).queue
        waiting = running = 0
        for share in _shares(self._rest.info()):
            if queue is None or queue in (share.get("MappingQueue"), share.get("Name")):
                waiting += _count(share.get("WaitingJobs")) + _count(share.get("PreLRMSWaitingJobs"))
                running += _count(share.get("RunningJobs"))
        return BatchLoad(waiting, running)

    def _in_threads(self, call: Callable[[T], R], things: Iterable[T]) -> list[R]:
        return side_by_side(call, things, self._uploads)


def _status(fresh: str | None, detail: Item | None) -> StatusOutcome:
    """The status of a worker by what the CE says of its job at once, and in detail."""
    if fresh is None and (detail is None or not detail.ok):
        if detail is not None and detail.status == 404:
            return StatusOutcome.denied(detail.reason or "the CE has no such job")
        return StatusOutcome.unknown(detail.words if detail is not None else "the CE left it out of its answer")
    more = state_of(detail.state) if detail is not None and detail.ok else None
    state = more if fresh is None else state_of(fresh) or more
    if state is None:
        return StatusOutcome.unknown(
            f"the CE says {fresh or (detail.state if detail else '')!r}, which means nothing here"
        )
    state = merged(state, more)
    exit_code = 0 if state is ArcState.FINISHED else None
    return StatusOutcome.of(STATES[state], state.value, reason_of(state, ""), exit_code)


def _variable(text: bytes, name: bytes) -> str:
    """The last value of ``name=value`` in a file of a CE's."""
    values = [line.partition(b"=")[2] for line in text.splitlines() if line.startswith(name + b"=")]
    return values[-1].decode("utf-8", "replace").strip() if values else ""


def _shares(info: Any) -> list[Mapping[str, Any]]:
    """The queues in what a CE publishes (GLUE 2); whatever else it publishes."""
    if isinstance(info, list):
        return [share for each in info for share in _shares(each)]
    if not isinstance(info, Mapping):
        return []
    shares = info.get("ComputingShare")
    if shares is not None:
        return [each for each in (shares if isinstance(shares, list) else [shares]) if isinstance(each, Mapping)]
    return [share for each in info.values() for share in _shares(each)]


def _count(text: object) -> int:
    try:
        return msgspec.convert(text or 0, int, strict=False)
    except msgspec.ValidationError:
        return 0
