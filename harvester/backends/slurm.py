"""Slurm: workers as elements of arrays, on any cluster that this machine or one behind ssh submits to.

A call to :meth:`SlurmBackend.submit` makes one array of all workers that ask for the same. How a submission is found
again after a crash, or ruled out, is told in :mod:`harvester.backends.slurm_arrays`.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.states import WorkerState
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
from harvester.backends.slurm_arrays import Arrays, Place, with_entry, write_array
from harvester.backends.slurm_commands import Answer, Client, Commands, Request, Words
from harvester.backends.slurm_rest import RestOptions, SlurmRest, check_rest
from harvester.backends.slurm_states import JobRecord, ended, outcome
from harvester.templating import Template, names_of
from harvester.transport.base import Transport
from harvester.transport.local import LocalTransport
from harvester.transport.ssh import SshOptions, SshTransport, check_ssh
from harvester.worker_folder import WorkerFolders

TEMPLATE = "slurm.sh.j2"
LATE_S = 10.0
"""After the time that a submission may take: so long one may still arrive at the controller."""


class SlurmOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the backend.

    ``workers_dir``: the workers' folders, by a path that the submitting machine and all nodes share. ``array_size``: most
    workers of one array (less than the cluster's MaxArraySize); 0 for a cluster without arrays: every worker is a job.
    """

    workers_dir: Optional[str] = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    array_size: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 1000
    answers: Literal["auto", "json", "plain"] = "auto"
    slurm_conf: Optional[str] = None
    via: Literal["commands", "slurmrestd"] = "commands"
    rest: Optional[RestOptions] = None
    ssh: Optional[SshOptions] = None


class SlurmSubmit(msgspec.Struct, forbid_unknown_fields=True):
    """What a queue says of its workers. ``notice_s``: how long before its end a worker gets SIGTERM (one that has less
    than twice as long doesn't); 0: by Slurm's own KillWait alone. ``directives``: further ones, such as ``--exclusive``."""

    partition: Optional[str] = None
    account: Optional[str] = None
    qos: Optional[str] = None
    constraint: Optional[str] = None
    reservation: Optional[str] = None
    gpu_type: Optional[str] = None
    notice_s: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 120
    requeue: Optional[bool] = None
    directives: list[str] = []
    template: Optional[str] = None


class SlurmBackend:
    """Workers in Slurm. ``staging`` is where folders are laid out that this machine doesn't share with the cluster."""

    def __init__(self, options: SlurmOptions, transport: Transport, staging: Path, clock: Clock) -> None:
        root = options.workers_dir or str(staging.parent / "workers")
        self._options = options
        self._transport = transport
        self._arrays = Arrays(transport, root, staging.parent, options.timeout_s)
        self._client = _client(options, transport)
        self._shared = transport.local_path(root)
        self._staging = staging
        self._clock = clock
        self._doubted: dict[str, float] = {}

    @classmethod
    def create(cls, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> SlurmBackend:
        """Make one from its options; ``workers_dir`` defaults to ``<state_dir>/workers`` where there is no ``ssh``."""
        read = read_options(options, SlurmOptions)
        if read.ssh is not None:
            check_ssh(read.ssh)
        _check_options(read)
        transport = LocalTransport() if read.ssh is None else SshTransport(read.ssh, min(read.timeout_s, 15.0))
        return cls(read, transport, state_dir / "outgoing", clock)

    def close(self) -> None:
        """Give up the connection to the login node."""
        self._transport.close()

    def check_submit(self, submit: Mapping[str, Any]) -> None:
        """The options of a queue, its template tried on workers of one node and of several."""
        read = read_submit(submit)
        for name in ("partition", "account", "qos", "constraint", "reservation", "gpu_type"):
            value = getattr(read, name)
            if value is not None and (not value or any(character.isspace() for character in value)):
                raise ConfigError(f"submit.{name}: {value!r} must be one word")
        for directive in read.directives:
            if not directive.startswith("-") or "\n" in directive:
                raise ConfigError(f"submit.directives: {directive!r} must be one option of sbatch, such as --exclusive")
        if self._options.via == "slurmrestd" and read.directives:
            raise ConfigError('submit.directives: slurmrestd takes none; use the named options, or via = "commands"')
        for nodes in (1, 2):
            spec = WorkerSpec("m", "q", Shape(cores=1), [], {}, "", nodes, submit=submit)
            self._script(spec, "check")

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """One array for each kind of workers."""
        known = self._arrays.look(spec.mark for spec in specs) if specs else {}
        outcomes = {mark: told for mark, place in known.items() if (told := self._known(mark, place)) is not None}
        for part in self._parts([spec for spec in specs if spec.mark not in outcomes]):
            answer = self._submit_array(part)
            for index, spec in enumerate(part):
                batch_id = self._key(answer.job, index) if answer.job else ""
                outcomes[spec.mark] = SubmitOutcome(spec.mark, answer.result, batch_id, answer.reason)
        return [outcomes[spec.mark] for spec in specs]

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """``squeue`` for all; ``sacct`` for those that it doesn't tell the end of."""
        if not refs:
            return {}
        queue, queue_problem = self._try_queue()
        open_refs = [ref for ref in refs if not _told(queue.get(ref.batch_id))]
        history, history_problem = self._try_history(open_refs if queue_problem is None else refs)
        if queue_problem and history_problem:
            raise BackendError(f"{queue_problem}; {history_problem}")
        problem = queue_problem or history_problem
        found = {ref.mark: self._status_one(ref, queue, history, problem) for ref in refs}
        vanished = [ref for ref in refs if found[ref.mark] is _VANISHED]
        if vanished:
            found.update(self._vanished(vanished))
        return found

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """By what their folders say; where that leaves a doubt, by the names of their arrays in the queue."""
        if not marks:
            return {}
        places = self._arrays.look(marks)
        queue = self._client.queue()
        found = self._found(places, queue)
        begun = [mark for mark in places if mark not in found]
        unsent = self._arrays.close(
            {places[mark].array for mark in begun if places[mark].phase in ("none", "go")}, "go"
        )
        doubtful = {
            places[mark].array for mark in begun if places[mark].phase != "closed" and places[mark].array not in unsent
        }
        if doubtful:
            found.update(self._ruled_out(doubtful, begun))
        return found

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """``scancel``."""
        return self._cancel(refs, False)

    def withdraw(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """``scancel --state=PENDING``."""
        return self._cancel(refs, True)

    def backlog(self, submit: Mapping[str, Any]) -> BatchLoad:
        """Jobs in the partition of the queue, or in all."""
        return self._client.load(read_submit(submit).partition)

    def clean(self, refs: Sequence[WorkerRef]) -> None:
        """Remove the folders of workers that have ended."""
        if refs:
            self._arrays.clean(ref.mark for ref in refs)

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        """What the workers wrote, at most the last 4 MiB of each stream."""
        missed: dict[str, str] = {}
        for ref, folder in folders.items():
            source = f"{self._arrays.root}/{ref.mark}"
            self._transport.fetch(source, ["stdout", "stderr"], folder, self._options.timeout_s)
            if not (folder / "stdout").is_file():
                missed[ref.mark] = f"{source}/stdout is not there: it never ran, or its folder was removed"
        return missed

    def _known(self, mark: str, place: Place) -> SubmitOutcome | None:
        """What is known of a worker that was submitted before; None if it may be submitted."""
        job = place.job or place.started
        if job:
            return SubmitOutcome(mark, SubmitResult.ACCEPTED, self._key(job, place.index))
        if place.phase == "sent":
            return SubmitOutcome(mark, SubmitResult.UNKNOWN, reason="an earlier submission of it was not answered")
        return None

    def _parts(self, specs: Sequence[WorkerSpec]) -> Iterator[list[WorkerSpec]]:
        """Workers that can go in one array."""
        kinds: dict[bytes, list[WorkerSpec]] = {}
        for spec in specs:
            kind = msgspec.json.encode([spec.queue, spec.shape, spec.nodes, dict(spec.submit)], order="deterministic")
            kinds.setdefault(kind, []).append(spec)
        size = max(1, self._options.array_size)
        for kind_specs in kinds.values():
            yield from (kind_specs[start : start + size] for start in range(0, len(kind_specs), size))

    def _submit_array(self, specs: Sequence[WorkerSpec]) -> Answer:
        name = f"pilotage-{uuid.uuid4().hex[:16]}"
        try:
            script = self._script(specs[0], name)
            self._lay_out(name, specs, script)
        except (OSError, ConfigError) as error:
            # Nothing of it can have been sent.
            return Answer(SubmitResult.REFUSED, reason=f"it can't be laid out: {error}")
        except BackendError as error:
            return Answer(SubmitResult.UNKNOWN, reason=str(error))
        request = Request(name, len(specs), self._options.array_size == 0, _fields(specs[0]), script)
        return self._client.submit(self._arrays, request)

    def _lay_out(self, name: str, specs: Sequence[WorkerSpec], script: str) -> None:
        place = self._shared or self._staging / name
        folders = WorkerFolders(place)
        try:
            for spec in specs:
                folders.prepare(spec)
            names = write_array(place, name, [spec.mark for spec in specs], script)
            self._transport.put(place, names, self._arrays.root, self._options.timeout_s)
            self._arrays.remember()
        finally:
            if self._shared is None:
                shutil.rmtree(place, ignore_errors=True)

    def _script(self, spec: WorkerSpec, name: str) -> str:
        submit = read_submit(spec.submit)
        names = names_of(spec, Path())
        # The workers of an array share its script: it finds mark and folder when it starts.
        names.update(mark="$mark", folder="$folder", submit=msgspec.structs.asdict(submit))
        text = Template(TEMPLATE, submit.template).render(names)
        return with_entry(text, self._arrays.folder(name), name)

    def _key(self, job: str, index: int | str) -> str:
        return job if self._options.array_size == 0 else f"{job}_{index}"

    def _try_queue(self) -> tuple[dict[str, JobRecord], str | None]:
        try:
            return {record.key: record for record in self._client.queue()}, None
        except BackendError as error:
            return {}, str(error)

    def _try_history(self, refs: Sequence[WorkerRef]) -> tuple[dict[str, JobRecord], str | None]:
        jobs = sorted({_array(ref) for ref in refs if _array(ref).isdecimal()})
        try:
            return {record.key: record for record in self._client.history(jobs) or []} if jobs else {}, None
        except BackendError as error:
            return {}, str(error)

    def _status_one(
        self,
        ref: WorkerRef,
        queue: Mapping[str, JobRecord],
        history: Mapping[str, JobRecord],
        problem: str | None,
    ) -> StatusOutcome:
        here, then = queue.get(ref.batch_id), history.get(ref.batch_id)
        if then is not None and ended(then) and (here is None or ended(here)):
            return outcome(then)
        if here is not None:
            return outcome(here)
        if problem is not None:
            return StatusOutcome.unknown(problem)
        if then is not None:
            return StatusOutcome.denied(f"the controller does not know it; the accounting still has it as {then.state}")
        array = _array(ref)
        if any(record.array == array for records in (queue, history) for record in records.values()):
            return _VANISHED
        return StatusOutcome.denied("neither the controller nor the accounting knows it")

    def _vanished(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """Workers of which Slurm knows the array and not the element: it forgets those that are cancelled while they
        wait, at once and for good. One that started has left a trace."""
        places = self._arrays.look(ref.mark for ref in refs)
        told = {ref.mark: StatusOutcome.denied("Slurm knows its array and not itself") for ref in refs}
        for mark, place in places.items():
            if not place.started:
                told[mark] = StatusOutcome.of(WorkerState.CANCELLED, "CANCELLED", "CANCELLED: while it waited")
        return told

    def _found(self, places: Mapping[str, Place], queue: Iterable[JobRecord]) -> dict[str, WorkerRef]:
        by_name = {record.name: record.array for record in queue}
        found: dict[str, WorkerRef] = {}
        for mark, place in places.items():
            job = place.job or place.started or (by_name.get(place.array, "") if place.phase != "closed" else "")
            if job:
                found[mark] = WorkerRef(mark, self._key(job, place.index))
        return found

    def _ruled_out(self, names: set[str], marks: Sequence[str]) -> dict[str, WorkerRef]:
        """What became of submissions that were begun and not answered. Those that are not there are ruled out for good.

        Raises BackendError: it is too early for that.
        """
        now = self._clock.monotonic()
        wait_s = self._options.timeout_s + LATE_S
        left = max(self._doubted.setdefault(name, now) + wait_s - now for name in names)
        if left > 0:
            raise BackendError(f"{len(names)} submissions may still arrive; they are given {left:.0f} s more")
        closed = self._arrays.close(names, "sent")
        # Looked at again, in this order: one that started before it was closed has left its trace by now.
        queue = self._client.queue()
        arrived = closed & {record.name for record in queue}
        if arrived:
            self._arrays.reopen(arrived)
        for name in names:
            self._doubted.pop(name, None)
        return self._found(self._arrays.look(marks), queue)

    def _cancel(self, refs: Sequence[WorkerRef], waiting_only: bool) -> dict[str, str]:
        if not refs:
            return {}
        marks = {ref.batch_id: ref.mark for ref in refs}
        refused = self._client.cancel(list(marks), waiting_only)
        return {marks[key]: why for key, why in refused.items() if key in marks}


_VANISHED = StatusOutcome.unknown("Slurm knows its array and not itself")


def read_submit(submit: Mapping[str, Any]) -> SlurmSubmit:
    """A queue's options. Raises ConfigError."""
    try:
        return msgspec.convert(dict(submit), SlurmSubmit)
    except msgspec.ValidationError as error:
        raise ConfigError(f"submit: {error}") from error


def _client(options: SlurmOptions, transport: Transport) -> Client:
    if options.rest is not None:
        return SlurmRest(options.rest, options.timeout_s)
    return Commands(transport, options.timeout_s, Words(options.answers), options.slurm_conf)


def _check_options(options: SlurmOptions) -> None:
    if options.workers_dir is None and options.ssh is not None:
        raise ConfigError("options.workers_dir: name the folder for workers over there, which the nodes see too")
    if options.workers_dir is not None and not options.workers_dir.startswith("/"):
        raise ConfigError(f"options.workers_dir: {options.workers_dir!r} must be an absolute path")
    if any(character.isspace() or character == "%" for character in options.workers_dir or ""):
        raise ConfigError(f"options.workers_dir: {options.workers_dir!r} may hold neither spaces nor %")
    if (options.via == "slurmrestd") != (options.rest is not None):
        raise ConfigError('options.rest: give url and token_file there with via = "slurmrestd", and only then')
    if options.rest is not None:
        check_rest(options.rest)


def _told(record: JobRecord | None) -> bool:
    """Whether the controller says all of it: that it lives, or how it ended."""
    return record is not None and (not ended(record) or record.exit_code is not None or record.signal is not None)


def _array(ref: WorkerRef) -> str:
    return ref.batch_id.partition("_")[0]


def _fields(spec: WorkerSpec) -> dict[str, Any]:
    """What a REST daemon is told of a worker."""
    submit = read_submit(spec.submit)
    shape = spec.shape
    named = ("partition", "account", "qos", "constraint", "reservation", "requeue", "gpu_type", "notice_s")
    return {
        "cores": shape.cores,
        "memory_mb": shape.memory_mb,
        "wall_s": shape.wall_s,
        "gpus": shape.gpus,
        "nodes": spec.nodes,
        **{name: getattr(submit, name) for name in named},
    }
