"""Other batch schedulers (PBS, LSF, Cobalt …) through the executors of PSI/J (psij-python).

Of PSI/J is used what knows the schedulers: submit scripts, commands, the reading of their answers. Not its polling: that
takes a job that is not listed for completed, and all jobs for failed when the scheduler doesn't answer. Commands run
through harvester's own transport instead, with time-outs; how a submission is found again, or ruled out, is told in
:mod:`harvester.backends.slurm_arrays`, of whose arrays each worker is one. PSI/J can't list jobs by their names: a
submission that was begun, not answered, and of which no worker has started in time is ruled out; should the scheduler
have it nevertheless, it leaves at once when its turn comes.
"""

from __future__ import annotations

import getpass
import io
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import msgspec

from common.clock import Clock
from common.config import ConfigError
from common.states import WorkerState
from harvester.backends.base import (
    BackendError,
    StatusOutcome,
    SubmitOutcome,
    SubmitResult,
    WorkerRef,
    WorkerSpec,
    read_options,
)
from harvester.backends.slurm import LATE_S
from harvester.backends.slurm_arrays import Arrays, Place, with_entry, write_array
from harvester.backends.slurm_commands import NO_ANSWER
from harvester.transport.base import Done, TransportError
from harvester.transport.local import LocalTransport
from harvester.worker_folder import WorkerFolders

if TYPE_CHECKING:
    from psij import JobStatus
    from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutor

STATES: dict[str, WorkerState] = {
    "NEW": WorkerState.SUBMITTED,
    "QUEUED": WorkerState.SUBMITTED,
    "ACTIVE": WorkerState.RUNNING,
    "COMPLETED": WorkerState.FINISHED,
    "FAILED": WorkerState.FAILED,
    "CANCELED": WorkerState.CANCELLED,
}
"""What each of PSI/J's states means to harvester; an exit code that the job left says more."""

JOB = "${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-${COBALT_JOBID:-unknown}}}}"
"""A job's own id, as its shell knows it."""
LAUNCH = {"slurm": ["srun", "--nodes={nodes}", "--ntasks={nodes}", "--ntasks-per-node=1"]}
"""How a process is started on each node; by default by mpiexec."""

_UNKNOWN_JOB = re.compile(r"(?i)unknown job id|is not found|invalid job id|does not exist|no matching job")
_ODD = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What PSI/J raises for an answer that it does not understand."""
# The answer in one word, as Arrays keeps it: blanks and ends of lines become controls.
_ONE_WORD = 'out=$("$@") || exit; printf "%s" "$out" | tr " \\n\\t" "\\001\\002\\003"'
_BLANKS = str.maketrans("\001\002\003", " \n\t")


class PsijOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Options of the backend. ``environment`` is for the scheduler's commands."""

    executor: Annotated[str, msgspec.Meta(min_length=1)]
    workers_dir: Optional[str] = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    environment: dict[str, str] = {}


class PsijSubmit(msgspec.Struct, forbid_unknown_fields=True):
    """What a queue says of its workers. ``wall_s`` is for workers whose own isn't known; ``attributes`` are PSI/J's
    custom ones, such as ``pbs.l = "place=pack"``; ``launch`` starts a command on each of ``{nodes}`` nodes."""

    queue_name: Optional[str] = None
    account: Optional[str] = None
    reservation_id: Optional[str] = None
    wall_s: Annotated[int, msgspec.Meta(ge=60)] = 86400
    attributes: dict[str, str] = {}
    launch: Optional[list[str]] = None


class PsijBackend:
    """Workers in the scheduler of one of PSI/J's executors."""

    def __init__(self, options: PsijOptions, state_dir: Path, clock: Clock) -> None:
        self._options = options
        self._root = Path(options.workers_dir or state_dir / "workers")
        self._executor = _executor(options.executor, self._root)
        self._transport = LocalTransport()
        self._arrays = Arrays(self._transport, str(self._root), state_dir, options.timeout_s, self._read_job)
        self._env = ["env", *(f"{name}={value}" for name, value in options.environment.items())]
        self._clock = clock
        self._doubted: dict[str, float] = {}

    @classmethod
    def create(cls, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> PsijBackend:
        """Make one from its options; ``workers_dir`` defaults to ``<state_dir>/workers``."""
        read = read_options(options, PsijOptions)
        if read.workers_dir is not None and not Path(read.workers_dir).is_absolute():
            raise ConfigError(f"options.workers_dir: {read.workers_dir!r} must be an absolute path")
        return cls(read, state_dir, clock)

    def check_submit(self, submit: Mapping[str, Any]) -> None:
        """The options of a queue."""
        _read_submit(submit)

    def submit(self, specs: Sequence[WorkerSpec]) -> list[SubmitOutcome]:
        """One job for each worker."""
        known = self._arrays.look(spec.mark for spec in specs) if specs else {}
        return [self._submit_one(spec, known.get(spec.mark)) for spec in specs]

    def status(self, refs: Sequence[WorkerRef]) -> dict[str, StatusOutcome]:
        """One question for all; what has left the scheduler is known by the exit code that it left."""
        if not refs:
            return {}
        listed = self._listed([ref.batch_id for ref in refs])
        places = self._arrays.look(ref.mark for ref in refs)
        return {ref.mark: self._status_one(ref, listed.get(ref.batch_id), places.get(ref.mark)) for ref in refs}

    def find_by_marks(self, marks: Sequence[str]) -> dict[str, WorkerRef]:
        """By what lies in their folders."""
        if not marks:
            return {}
        self._reach()
        places = self._arrays.look(marks)
        found = _found(places)
        open_names = {place.array for mark, place in places.items() if mark not in found and place.phase != "closed"}
        doubtful = open_names - self._arrays.close(open_names, "go")
        if doubtful:
            now = self._clock.monotonic()
            wait_s = self._options.timeout_s + LATE_S
            left = max(self._doubted.setdefault(name, now) + wait_s - now for name in doubtful)
            if left > 0:
                raise BackendError(f"{len(doubtful)} submissions may still arrive; they are given {left:.0f} s more")
            self._arrays.close(doubtful, "sent")
            found.update(_found(self._arrays.look(marks)))
        return found

    def kill(self, refs: Sequence[WorkerRef]) -> dict[str, str]:
        """One command for each worker that has not ended."""
        if not refs:
            return {}
        listed = self._listed([ref.batch_id for ref in refs])
        refused: dict[str, str] = {}
        for ref in refs:
            status = listed.get(ref.batch_id)
            if status is None or status.state.final:
                continue
            done = self._run(self._executor.get_cancel_command(ref.batch_id))
            if done.code and NO_ANSWER.search(done.words):
                raise BackendError(done.words)
            if done.code and not _UNKNOWN_JOB.search(done.words):
                refused[ref.mark] = done.words
        return refused

    def clean(self, refs: Sequence[WorkerRef]) -> None:
        """Remove the folders of workers that have ended."""
        if refs:
            self._arrays.clean(ref.mark for ref in refs)

    def fetch_logs(self, folders: Mapping[WorkerRef, Path]) -> dict[str, str]:
        """What the workers wrote."""
        missed: dict[str, str] = {}
        for ref, folder in folders.items():
            self._transport.fetch(str(self._root / ref.mark), ["stdout", "stderr"], folder, self._options.timeout_s)
            if not (folder / "stdout").is_file():
                missed[ref.mark] = (
                    f"{self._root / ref.mark}/stdout is not there: it never ran, or its folder was removed"
                )
        return missed

    def _submit_one(self, spec: WorkerSpec, known: Place | None) -> SubmitOutcome:
        if known is not None and (known.job or known.started):
            return SubmitOutcome(spec.mark, SubmitResult.ACCEPTED, known.job or known.started)
        if known is not None and known.phase == "sent":
            return SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason="an earlier submission of it was not answered")
        name = f"pilotage-{uuid.uuid4().hex[:16]}"
        try:
            self._lay_out(spec, name)
        except (OSError, *_ODD) as error:
            return SubmitOutcome(spec.mark, SubmitResult.REFUSED, reason=f"it can't be laid out: {error}")
        script = Path(self._arrays.folder(name)) / "submit"
        command = [*self._env, *self._executor.get_submit_command(self._job(spec, name), script)]
        words = ["sh", "-c", _ONE_WORD, "submit", *command]
        try:
            return self._answered(spec.mark, self._arrays.submit(name, words, self._options.timeout_s))
        except TransportError as error:
            return SubmitOutcome(spec.mark, SubmitResult.UNKNOWN, reason=str(error))

    def _answered(self, mark: str, done: Done) -> SubmitOutcome:
        if done.code == 0:
            job = self._read_job(done.stdout)
            if job:
                return SubmitOutcome(mark, SubmitResult.ACCEPTED, job)
            return SubmitOutcome(mark, SubmitResult.UNKNOWN, reason=f"the scheduler answered {done.stdout[:200]!r}")
        unclear = done.code > 90 or NO_ANSWER.search(done.words) or not done.stderr.strip()
        result = SubmitResult.UNKNOWN if unclear and done.code != 255 else SubmitResult.REFUSED
        return SubmitOutcome(mark, result, reason=done.words)

    def _lay_out(self, spec: WorkerSpec, name: str) -> None:
        folders = WorkerFolders(self._root)
        folders.prepare(spec)
        folder = Path(self._arrays.folder(name))
        submit = _read_submit(spec.submit)
        entry = with_entry("#!/bin/sh\n", str(folder), name, JOB)
        launch = submit.launch or LAUNCH.get(self._options.executor, ["mpiexec", "-n", "{nodes}", "-ppn", "1"])
        words = [word.replace("{nodes}", str(spec.nodes)) for word in launch] if spec.nodes > 1 else []
        start = " ".join([*words, '"$folder/start"'])
        write_array(self._root, name, [spec.mark], f"{entry}exec >>stdout 2>>stderr\nexec {start}\n")
        with (folder / "submit").open("w", encoding="utf-8") as file:
            file.write(self._script(spec, name, folder))
        self._arrays.remember()

    def _script(self, spec: WorkerSpec, name: str, folder: Path) -> str:
        """The scheduler's script: PSI/J's, which starts ours, and leaves its exit code in the folder."""
        job = self._job(spec, name)
        context = self._executor._create_script_context(job)
        psij = dict(context["psij"])  # type: ignore[call-overload]
        context["psij"] = {**psij, "launch_command": ["/bin/sh", str(folder / "script")], "script_dir": str(folder)}
        text = io.StringIO()
        self._executor.generate_submit_script(job, context, text)
        return text.getvalue()

    def _job(self, spec: WorkerSpec, name: str) -> Any:
        from psij import Job, JobAttributes, JobSpec, ResourceSpecV1

        submit = _read_submit(spec.submit)
        shape = spec.shape
        resources = ResourceSpecV1(
            node_count=spec.nodes,
            processes_per_node=1,
            cpu_cores_per_process=shape.cores,
            gpu_cores_per_process=shape.gpus or None,
            memory=(shape.memory_mb << 20) * spec.nodes or None,
        )
        attributes = JobAttributes(
            duration=timedelta(seconds=shape.wall_s or submit.wall_s),
            queue_name=submit.queue_name,
            account=submit.account,
            reservation_id=submit.reservation_id,
            custom_attributes=dict(submit.attributes),
        )
        folder = self._arrays.folder(name)
        job_spec = JobSpec(
            executable="/bin/sh",
            directory=folder,
            name=name,
            inherit_environment=False,
            resources=resources,
            attributes=attributes,
            launcher="single",
        )
        return Job(job_spec)

    def _listed(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """What the scheduler says of jobs. One that refuses a question because of a job that it doesn't know is asked
        again for each half."""
        done = self._run(self._executor.get_status_command(list(ids)))
        if done.code and _UNKNOWN_JOB.search(done.words):
            if len(ids) == 1:
                return {}
            middle = len(ids) // 2
            return {**self._listed(ids[:middle]), **self._listed(ids[middle:])}
        try:
            return self._executor.parse_status_output(done.code, done.stdout if done.code == 0 else done.words)
        except _ODD as error:
            raise BackendError(f"{self._options.executor}: {error or done.words}") from error

    def _status_one(self, ref: WorkerRef, status: JobStatus | None, place: Place | None) -> StatusOutcome:
        native = "GONE" if status is None else status.state.name
        if status is not None and not status.state.final:
            return StatusOutcome.of(STATES[native], native, status.message or "")
        code = self._exit_code(ref, place)
        if code is not None and native != "CANCELED":
            state = WorkerState.FINISHED if code == 0 else WorkerState.FAILED
            reason = "" if code == 0 else f"its pilot ended with exit code {code}"
            return StatusOutcome.of(state, native, reason, code)
        if status is None:
            return StatusOutcome.denied("the scheduler doesn't list it, and it left no exit code")
        if native == "COMPLETED":
            return StatusOutcome.of(WorkerState.FAILED, native, "it ended without leaving an exit code")
        return StatusOutcome.of(STATES[native], native, f"{native}: {status.message or 'the scheduler says no more'}")

    def _exit_code(self, ref: WorkerRef, place: Place | None) -> int | None:
        if place is None:
            return None
        try:
            return int((Path(self._arrays.folder(place.array)) / f"{ref.batch_id}.ec").read_text())
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise BackendError(str(error)) from error

    def _read_job(self, answer: str) -> str:
        try:
            return self._executor.job_id_from_submit_output(answer.translate(_BLANKS)).strip()
        except Exception as error:  # noqa: BLE001 - each executor raises what it likes for words that hold no id
            del error
            return ""

    def _reach(self) -> None:
        """Have a scheduler that is down show. Some end with an error as well when there are no jobs to list."""
        command = self._executor.get_list_command()
        done = self._run(command)
        if done.code in (126, 127) or (done.code and NO_ANSWER.search(done.words)):
            raise BackendError(f"{command[0]}: {done.words}")

    def _run(self, command: Sequence[str]) -> Done:
        return self._transport.run([*self._env, *command], None, self._options.timeout_s)


def _found(places: Mapping[str, Place]) -> dict[str, WorkerRef]:
    jobs = {mark: place.job or place.started for mark, place in places.items()}
    return {mark: WorkerRef(mark, job) for mark, job in jobs.items() if job}


def _read_submit(submit: Mapping[str, Any]) -> PsijSubmit:
    try:
        return msgspec.convert(dict(submit), PsijSubmit)
    except msgspec.ValidationError as error:
        raise ConfigError(f"submit: {error}") from error


def _executor(name: str, root: Path) -> BatchSchedulerExecutor:
    """One of PSI/J's executors. Raises ConfigError."""
    try:
        from psij import JobExecutor
        from psij.executors.batch.batch_scheduler_executor import BatchSchedulerExecutor
    except ImportError as error:
        raise ConfigError(f"backend psij: {error}; install it: pip install 'pilotage[psij]'") from error
    try:
        executor = JobExecutor.get_instance(name)
    except (ValueError, ImportError) as error:
        known = ", ".join(sorted(JobExecutor.get_executor_names()))
        raise ConfigError(f"options.executor: {name!r}: {error}; PSI/J has here: {known}") from error
    if not isinstance(executor, BatchSchedulerExecutor):
        raise ConfigError(
            f"options.executor: {name!r} is no batch scheduler's executor; choose one that is, such as pbs, lsf or slurm"
        )
    # PSI/J asks for the terminal's user, and a service has no terminal.
    executor._current_user = getpass.getuser  # type: ignore[method-assign]
    return executor
