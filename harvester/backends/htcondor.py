"""Workers as jobs of HTCondor: in its own slots, or sent on to ARC CEs and HTCondor-CEs (universe ``grid``).

Workers that are submitted together and look alike are one cluster. Each carries its mark in the attribute
:data:`~harvester.backends.htcondor_states.MARK`. A job that has ended stays in the queue for a while, where it is found
at no further cost, and is in the schedd's history afterwards.

A schedd elsewhere gets a worker's files after it has taken the job (*spooling*), so that harvester may be cut off
between the two: such a job can never start. Looking for its mark removes it, and then the mark certainly isn't there.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.wire import Shape
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
from harvester.backends.htcondor_client import CondorClient, Refused
from harvester.backends.htcondor_options import CondorOptions, is_remote, read_submit, settings
from harvester.backends.htcondor_states import (
    ATTRIBUTES,
    COMPLETED,
    HELD,
    IDLE,
    MARK,
    REMOVED,
    RUNNING,
    SPOOLING_INPUT,
    Cure,
    arrived,
    batch_id,
    codes,
    outcome,
)
from harvester.templating import Template, names_of
from harvester.worker_folder import SECRET, WorkerFolders

log = logging.getLogger(__name__)

T = TypeVar("T")

TEMPLATE = "htcondor.sub.j2"
SCRATCH = "${_CONDOR_SCRATCH_DIR:-${TMPDIR:-/tmp}}"
LOGS = ("stdout", "stderr", "condor.log")
CHUNK = 200
"""Marks that one constraint names; the schedd compares each job with each of them."""
UPLOAD_BYTES_PER_S = 1e6
"""What an upload is given time for."""
SETTLE_S = 2.0
"""The child dies with harvester; the schedd may still be reading what it sent last."""


class CondorBackend:
    """Submits to one schedd."""

    def __init__(self, options: CondorOptions, state_dir: Path) -> None:
        self._options = options
        self._spool = is_remote(options) if options.spool is None else options.spool
        self._folders = WorkerFolders(Path(options.workers_dir or state_dir / "workers"))
        self._client = CondorClient(settings(options))

    @classmethod
    def create(cls, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> CondorBackend:
        """Make one from its options; ``workers_dir`` defaults to ``<state_dir>/workers``."""
        read = read_options(options, CondorOptions)
        if importlib.util.find_spec("htcondor2") is None:
            raise ConfigError("backend: HTCondor's Python bindings are missing; install the extra 'htcondor'")
        return cls(read, state_dir)

    def close(self) -> None:
        """End the process that talks to HTCondor; the next call starts another."""
        self._client.close()

    def check_submit(self, submit: Mapping[str, Any]) -> None:
        """Whether a queue's options make sense and its template can be filled in."""
        read_submit(submit)
        sample = WorkerSpec("mark", "queue", Shape(cores=1), [], {}, "", submit=submit)
        self._description(sample)

    @property
    def settle_s(self) -> float:
        """For how long a submission that was cut off may still arrive."""
        return SETTLE_S

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """One cluster for those that look alike."""
        outcomes = {
            mark: SubmitOutcome(mark, SubmitResult.ACCEPTED, batch_id(ad))
            for mark, ad in self._in_queue([spec.mark for spec in specs]).items()
        }
        groups: dict[bytes, list[WorkerSpec]] = {}
        for spec in specs:
            if spec.mark not in outcomes:
                reason = self._prepare(spec)
                if reason:
                    outcomes[spec.mark] = SubmitOutcome(spec.mark, SubmitResult.REFUSED, reason=reason)
                else:
                    groups.setdefault(_likeness(spec), []).append(spec)
        down = ""
        for group in groups.values():
            try:
                done = _all(group, SubmitResult.UNKNOWN, down) if down else self._submit_cluster(group)
            except BackendError as error:
                down = str(error)
                done = _all(group, SubmitResult.UNKNOWN, down)
            outcomes.update({one.mark: one for one in done})
        return [outcomes[spec.mark] for spec in specs]

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """One query to the queue, and one to the history if somebody isn't there any more."""
        if not refs:
            return {}
        answers: dict[str, StatusOutcome] = {}
        there = _by_id(self._call("query", constraint=_ours(refs), projection=list(ATTRIBUTES)))
        for ref in refs:
            if _is(ref, there.get(ref.batch_id)):
                answers[ref.mark] = outcome(there[ref.batch_id], gone=False)
        gone = [ref for ref in refs if ref.mark not in answers]
        try:
            ended = _by_id(self._history([ref.mark for ref in gone]))
        except BackendError as error:
            unread = StatusOutcome.unknown(f"it is not in the queue, and the history can't be read: {error}")
            return {**answers, **{ref.mark: unread for ref in gone}}
        for ref in gone:
            known = _is(ref, ended.get(ref.batch_id))
            answers[ref.mark] = (
                outcome(ended[ref.batch_id], gone=True)
                if known
                else StatusOutcome.denied("it is neither in the schedd's queue nor in its history")
            )
        return answers

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """In the queue and in the history.

        The queue is asked again for those in neither: by then the schedd has come round to whatever it had received
        before the first question.
        """
        found = self._in_queue(marks)
        absent = [mark for mark in marks if mark not in found]
        if absent:
            ended = [ad for ad in self._history(absent) if arrived(ad)]
            found.update({ad[MARK]: ad for ad in reversed(ended)})
            absent = [mark for mark in absent if mark not in found]
        if absent:
            found.update(self._in_queue(absent))
        return {mark: WorkerRef(mark, batch_id(ad)) for mark, ad in found.items()}

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Remove them; those that were removed long ago and are still there are forgotten by the schedd."""
        refused: dict[str, str] = {}
        for some in _chunks(refs, CHUNK):
            alive = f"JobStatus != {REMOVED} && JobStatus != {COMPLETED}"
            refused.update(self._remove(some, alive, "harvester has no use for it any more"))
            stubborn = f"JobStatus == {REMOVED} && time() - EnteredCurrentStatus > {self._options.force_remove_s:.0f}"
            self._act("RemoveX", some, stubborn, "it did not end after it was removed")
        return refused

    def withdraw(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """Remove those that have no slot; the schedd looks and removes in one step."""
        refused: dict[str, str] = {}
        for some in _chunks(refs, CHUNK):
            waits = f"(JobStatus == {IDLE} || JobStatus == {HELD})"
            refused.update(self._remove(some, waits, "harvester has no use for it any more, and it has not started"))
        return refused

    def backlog(self, submit: Mapping[str, Any]) -> BatchLoad:
        """Of the whole schedd."""
        waiting, running = self._call("totals", states=[IDLE, RUNNING])
        return BatchLoad(waiting, running)

    def clean(self, refs: Sequence[WorkerRef]) -> None:
        """Let ended workers leave the queue, and remove their folders."""
        try:
            for some in _chunks(refs, CHUNK):
                self._act("Remove", some, f"JobStatus == {COMPLETED}", "harvester is done with it")
            self._folders.remove(ref.mark for ref in refs)
        except (BackendError, OSError) as error:
            log.warning("%s: workers are not cleaned up: %s", self._folders.root, error)

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        """Their output, and HTCondor's own log of them."""
        refs = list(folders)
        if self._spool:
            for some in _chunks(refs, CHUNK):
                self._call("retrieve", constraint=f"{_named(some)} && JobStatus == {COMPLETED}")
        problems = {ref.mark: _copy_logs(self._folders.path(ref.mark), folder) for ref, folder in folders.items()}
        return {mark: problem for mark, problem in problems.items() if problem}

    def _prepare(self, spec: WorkerSpec) -> str:
        """Make its folder; why not."""
        try:
            if spec.nodes > 1 and read_submit(spec.submit).universe != "parallel":
                return f"a worker of {spec.nodes} nodes needs submit.universe = 'parallel'"
            self._folders.prepare(spec, SCRATCH)
        except OSError as error:
            return f"{self._folders.path(spec.mark)}: {error}"
        except ConfigError as error:
            return str(error)
        return ""

    def _submit_cluster(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        items = [{"mark": spec.mark, "folder": str(self._folders.path(spec.mark))} for spec in specs]
        try:
            description = self._description(specs[0])
            done = self._client.call(
                "submit", self._upload_s(specs), description=description, items=items, spool=self._spool
            )
        except (Refused, ConfigError) as error:
            return _all(specs, SubmitResult.REFUSED, " ".join(str(error).split()))
        if done["count"] != len(specs):
            return _all(specs, SubmitResult.UNKNOWN, f"HTCondor made {done['count']} jobs of {len(specs)} workers")
        return [
            SubmitOutcome(spec.mark, SubmitResult.ACCEPTED, f"{done['cluster']}.{done['first'] + number}")
            for number, spec in enumerate(specs)
        ]

    def _description(self, spec: WorkerSpec) -> str:
        submit = read_submit(spec.submit)
        names = {
            **names_of(spec, Path("$(folder)")),
            "mark": "$(mark)",
            "submit": submit,
            "grid_type": (submit.grid_resource or "").partition(" ")[0],
            "inputs": [SECRET, *spec.files],
            "log": LOGS[-1],
            "keep_s": self._options.keep_s,
            "mark_attribute": MARK,
            "cured_by_release": codes(Cure.RELEASE),
            "cured_by_person": codes(Cure.PERSON),
        }
        return Template(TEMPLATE, submit.template).render(names)

    def _upload_s(self, specs: Sequence[WorkerSpec]) -> float:
        """How much longer than other calls a submission may take."""
        if not self._spool:
            return 0.0
        files = [file for spec in specs for file in self._folders.path(spec.mark).iterdir()]
        return sum(file.stat().st_size for file in files) / UPLOAD_BYTES_PER_S

    def _in_queue(self, marks: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The jobs in the queue with these marks; those that can never start are removed and don't count."""
        found = self._query_marks(marks)
        if all(arrived(ad) for ad in found.values()):
            return found
        lame = [WorkerRef(mark, batch_id(ad)) for mark, ad in found.items() if not arrived(ad)]
        for some in _chunks(lame, CHUNK):
            half = f"JobStatus == {HELD} && HoldReasonCode == {SPOOLING_INPUT} && StageInStart is undefined"
            self._act("Remove", some, half, "its files never arrived")
        left = self._query_marks(marks)
        still = [mark for mark, ad in left.items() if not arrived(ad) and ad["JobStatus"] != REMOVED]
        if still:
            raise BackendError(f"HTCondor: {len(still)} jobs without their files can't be removed from the queue")
        return {mark: ad for mark, ad in left.items() if arrived(ad)}

    def _query_marks(self, marks: Sequence[str]) -> dict[str, dict[str, Any]]:
        if not marks:
            return {}
        # Many marks: cheaper for the schedd to name all workers than to compare each job with each mark.
        constraint = _marked(marks) if len(marks) <= CHUNK else f"{MARK} isnt undefined"
        ads = self._call("query", constraint=constraint, projection=list(ATTRIBUTES))
        wanted = set(marks)
        # The one that arrived counts, should there be an older one that didn't.
        return {ad[MARK]: ad for ad in sorted(ads, key=arrived) if ad.get(MARK) in wanted}

    def _history(self, marks: Sequence[str]) -> list[dict[str, Any]]:
        """The latest first."""
        ads: list[dict[str, Any]] = []
        for some in _chunks(marks, CHUNK):
            # Twice: a worker may have an older job that never got whole to the schedd.
            ads += self._call("history", constraint=_marked(some), projection=list(ATTRIBUTES), match=2 * len(some))
        return ads

    def _remove(self, refs: Sequence[WorkerRef], condition: str, reason: str) -> dict[str, str]:
        """Remove those of ``refs`` that meet a condition; why not, for those that weren't."""
        done = self._act("Remove", refs, condition, reason)
        if not done.get("TotalPermissionDenied") and not done.get("TotalError"):
            return {}
        constraint = f"{_named(refs)} && {condition}"
        left = self._call("query", constraint=constraint, projection=list(ATTRIBUTES))
        return {ad[MARK]: "HTCondor refuses to remove it; is it another user's?" for ad in left}

    def _act(self, action: str, refs: Sequence[WorkerRef], condition: str, reason: str) -> dict[str, Any]:
        if not refs:
            return {}
        constraint = f"{_named(refs)} && {condition}"
        done: dict[str, Any] = self._call("act", action=action, constraint=constraint, reason=reason)
        return done

    def _call(self, call: str, **arguments: Any) -> Any:
        return self._client.call(call, **arguments)


def _likeness(spec: WorkerSpec) -> bytes:
    """Workers with the same can be one cluster."""
    return msgspec.json.encode(
        [spec.queue, spec.shape, spec.nodes, spec.submit, sorted(spec.files)], order="deterministic"
    )


def _all(specs: Iterable[WorkerSpec], result: SubmitResult, reason: str) -> list[SubmitOutcome]:
    return [SubmitOutcome(spec.mark, result, reason=reason) for spec in specs]


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _list(texts: Iterable[str]) -> str:
    """A ClassAd list of strings."""
    return "{" + ", ".join(msgspec.json.encode(text).decode() for text in texts) + "}"


def _marked(marks: Iterable[str]) -> str:
    return f"{MARK} isnt undefined && member({MARK}, {_list(marks)})"


def _ours(refs: Sequence[WorkerRef]) -> str:
    """All workers among whose clusters those of ``refs`` are: cheap to decide, whatever their number."""
    clusters = [int(cluster) for ref in refs if (cluster := ref.batch_id.partition(".")[0]).isdecimal()] or [0]
    return f"ClusterId >= {min(clusters)} && ClusterId <= {max(clusters)} && {MARK} isnt undefined"


def _named(refs: Sequence[WorkerRef]) -> str:
    """Exactly the jobs of ``refs``: the same mark twice is not impossible."""
    names = 'strcat(ClusterId, ".", ProcId)'
    return f"{_ours(refs)} && member({names}, {_list(ref.batch_id for ref in refs)})"


def _by_id(ads: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {batch_id(ad): ad for ad in ads}


def _is(ref: WorkerRef, ad: Mapping[str, Any] | None) -> bool:
    return ad is not None and ad.get(MARK) == ref.mark


def _copy_logs(source: Path, target: Path) -> str:
    """Copy a worker's logs out of its folder; what went wrong."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        there = [source / name for name in LOGS if (source / name).is_file()]
        if not any(path.name != LOGS[-1] for path in there):
            return "HTCondor brought no output of it home: it never ended, or was removed"
        for path in there:
            if target != source:
                shutil.copyfile(path, target / path.name)
    except OSError as error:
        return str(error)
    return ""
