"""What carries out the actions of one job: the hands of :mod:`pilot.job`."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional, TypeVar

from common.clock import Clock
from common.errors import ErrorCode, PilotageError
from common.states import JobState
from common.wire import AssignedUnit, Assignment, RecordRequest, UnitOutcome, UnitsAcquireRequest
from pilot.agent import Session
from pilot.client import CallRefused, JobGone, NotAccepted, ServerAway, ServerError
from pilot.config import PilotConfig
from pilot.container import ContainerSettings, find_apptainer
from pilot.copytool import Copytool
from pilot.jobstate import (
    Action,
    ClaimUnit,
    Cleanup,
    Collect,
    Collected,
    Confirm,
    Confirmed,
    Event,
    Failure,
    Gone,
    HandOut,
    KillPayload,
    PayloadOver,
    ProducedFile,
    Record,
    Recorded,
    Refused,
    Remove,
    Removed,
    ServerUnreachable,
    Spool,
    StagedIn,
    StageIn,
    StartPayload,
    UnitClaimed,
    Unspool,
    Upload,
)
from pilot.logs import make_log_archive
from pilot.outputs import collect_outputs
from pilot.payload import (
    GetFileReply,
    InputFile,
    JobFolder,
    PayloadDefinition,
    PayloadUnit,
    prepare_payload,
    read_processed,
)
from pilot.payload.processed import DID_LISTS, PFN_LISTS
from pilot.running import Rules, Running
from pilot.sandbox import NOTHING, Unpacked, unpack
from pilot.slot import Part, beside
from pilot.spool import SpooledReport
from pilot.tails import file_tail
from pilot.transfers import Fetched, Transfers, log_record, output_record
from pilot.watch import JobLimits
from pilot.workdir import WorkDir

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Means:
    """What the jobs of a pilot work with. ``environ`` is the pilot's own environment; ``server_url`` goes into the spool."""

    config: PilotConfig
    server_url: str
    work_dir: WorkDir
    tools: Sequence[Copytool]
    environ: Mapping[str, str]
    clock: Clock


class Work:
    """The work of one job. ``perform`` and ``look`` run on lanes; the rest may be called from any thread."""

    def __init__(
        self, means: Means, session: Session, assignment: Assignment, part: Part, post: Callable[[Event], None]
    ) -> None:
        self._means = means
        self._session = session
        self._assignment = assignment
        self._part = part
        self._post = post
        self._transfers = Transfers(means.tools)
        self._folder: Optional[JobFolder] = None
        self._running: Optional[Running] = None
        self._kill: Optional[KillPayload] = None
        self._lock = threading.Lock()
        self._paths: dict[str, Path] = {}
        self._storages: dict[str, str] = {}
        self._units: dict[int, AssignedUnit] = {unit.unit_id: unit for unit in assignment.units}
        self._notes: list[str] = []
        self._unpacked = NOTHING
        self._does: dict[type, Callable[[Any], Optional[Event]]] = {
            StageIn: self._stage_in,
            StartPayload: self._start_payload,
            ClaimUnit: self._claim_unit,
            Collect: self._collect,
            Record: self._record,
            Upload: self._upload,
            Spool: self._spool,
            Confirm: self._confirm,
            Remove: self._remove,
            Unspool: self._unspool,
            Cleanup: self._cleanup,
        }

    def perform(self, action: Action) -> Optional[Event]:
        """Carry out an action that takes time; the event that it leads to."""
        return self._does[type(action)](action)

    def at_once(self, action: Action) -> None:
        """Kill the payload, or answer get-file."""
        with self._lock:
            running = self._running
            if isinstance(action, KillPayload):
                self._kill = action
        if running is None:
            return
        if isinstance(action, KillPayload):
            running.kill(action.why, action.grace_s)
        elif isinstance(action, HandOut):
            running.hand_out(action.request, action.unit)

    def look(self) -> Optional[Event]:
        """Measure the payload."""
        running = self._running
        return running.look() if running is not None else None

    def cancel(self) -> None:
        """Give up transfers that are under way."""
        self._transfers.cancel()

    # ------------------------------------------------------------ input and payload

    def _stage_in(self, _action: StageIn) -> Event:
        self._folder = JobFolder.create(self._means.work_dir.jobs, str(self._assignment.job_id))
        try:
            self._unpacked = self._unpack_sandbox(self._folder)
        except PilotageError as error:
            self._note(f"sandbox: {error}")
            return StagedIn(failure=Failure(error.code, error.detail), fatal=True)
        fetched = self._fetched(
            self._transfers.fetch(self._assignment.units, beside(self._assignment), self._folder.work)
        )
        return StagedIn(
            fetched.outcomes, fetched.bad_replicas, fetched.failure, fetched.fatal, fetched.seconds, fetched.size
        )

    def _unpack_sandbox(self, folder: JobFolder) -> Unpacked:
        """Before any input comes, so that no name in the archive takes an input's place. Raises PilotageError."""
        wanted = self._assignment.sandbox
        if wanted is None:
            return NOTHING
        try:
            content = self._session.server.sandbox(wanted.sha256)
        except ServerError as error:
            raise PilotageError(ErrorCode.STAGE_IN_FAILED, f"the sandbox cannot be fetched: {error}") from error
        unpacked = unpack(content, wanted, folder.work)
        self._note(f"sandbox {wanted.sha256[:12]} of {wanted.size} bytes is unpacked")
        return unpacked

    def _fetched(self, fetched: Fetched) -> Fetched:
        self._paths.update(fetched.paths)
        self._storages.update(fetched.storages)
        for did, path in fetched.paths.items():
            self._note(f"input {did} from {fetched.storages[did]} as {path.name}")
        if fetched.failure is not None:
            self._note(f"stage-in: {fetched.failure.code.name}: {fetched.failure.detail}")
        return fetched

    def _start_payload(self, action: StartPayload) -> Optional[Event]:
        assert self._folder is not None
        assignment = self._assignment
        try:
            container = self._container() if assignment.image is not None else None
            spec = prepare_payload(self._folder, self._definition(action.units), self._means.environ, container)
            with self._lock:
                if self._kill is not None:
                    return PayloadOver(failure=Failure(ErrorCode.KILL_SIGNAL, "killed before it started"))
                running = Running(
                    self._folder,
                    Rules(self._limits(), self._means.config.memory_grace_s, assignment.image is not None),
                    self._means.clock,
                    self._post,
                    self._describe,
                    self._session.wall_left_s,
                )
                running.start(spec)
                self._running = running
        except PilotageError as error:
            self._note(f"payload: {error}")
            return PayloadOver(failure=Failure(error.code, error.detail))
        return None

    def _container(self) -> ContainerSettings:
        config, environ = self._means.config, self._means.environ
        return ContainerSettings(
            binary=find_apptainer(
                configured=config.apptainer, **({"path": environ["PATH"]} if "PATH" in environ else {})
            ),
            binds=tuple(self._session.grant.queue.container_binds),
            cache_dir=Path(config.image_cache) if config.image_cache else None,
        )

    def _definition(self, units: Sequence[AssignedUnit]) -> PayloadDefinition:
        assignment, requirements = self._assignment, self._assignment.requirements
        files = {unit.file.did: unit.file for unit in units if unit.file is not None}.values()
        return PayloadDefinition(
            job_id=str(assignment.job_id),
            task_id=str(assignment.task_id),
            jobscript=assignment.jobscript,
            command=assignment.command,
            image=assignment.image,
            environment=assignment.environment,
            inputs=[InputFile(file.did, str(self._paths[file.did])) for file in files],
            counters=[unit.counter for unit in units if unit.counter is not None],
            units=[self._payload_unit(unit) for unit in units],
            secondary={
                name: [str(self._paths[file.did]) for file in files] for name, files in assignment.secondary.items()
            },
            cores=requirements.cores,
            memory_mb=requirements.memory_mb,
            wall_s=requirements.wall_s,
            gpus=[gpu.uuid for gpu in self._part.gpus if gpu.uuid],
            gpu_vendor=self._part.gpus[0].vendor if self._part.gpus else None,
            workflow_id=str(assignment.workflow_id),
            stage=assignment.stage,
            scope=assignment.scope,
            site=self._session.grant.queue.site,
            started_at=datetime.fromtimestamp(self._means.clock.now(), timezone.utc),
            secrets=assignment.secrets,
        )

    def _payload_unit(self, unit: AssignedUnit) -> PayloadUnit:
        file = unit.file
        return PayloadUnit(
            unit.unit_id,
            did=None if file is None else file.did,
            path=None if file is None else str(self._paths[file.did]),
            first_event=unit.first_event,
            events=unit.events,
            counter=unit.counter,
            attributes={} if file is None else file.attributes,
        )

    def _limits(self) -> JobLimits:
        config, requirements = self._means.config, self._assignment.requirements
        memory_mb = int(requirements.memory_mb * config.memory_factor)
        return JobLimits(
            memory_mb=memory_mb or None,
            disk_mb=self._part.disk_mb if requirements.disk_mb else None,
            stdout_mb=config.stdout_limit_mb or None,
            wall_s=self._session.wall_left_s(),
        )

    def _describe(self, unit: AssignedUnit) -> GetFileReply:
        """What get-file answers for a unit, on one of its threads."""
        assert unit.file is not None
        did = unit.file.did
        return GetFileReply.file(did, str(self._paths[did]), self._storages[did])

    def _claim_unit(self, action: ClaimUnit) -> Event:
        assert self._folder is not None
        request = UnitsAcquireRequest(request_id=action.claim.request_id, count=1)
        job_id = self._assignment.job_id
        try:
            units = self._session.server.acquire_units(job_id, request).units
        except ServerError as error:
            return _event_of(error)
        if not units:
            return UnitClaimed(action.claim)
        unit = units[0]
        self._units[unit.unit_id] = unit
        fetched = self._fetched(self._fetch_unit(self._folder, unit))
        outcome = fetched.outcomes.get(unit.unit_id)
        if unit.file is None:
            outcome = UnitOutcome.RETURNED
        return UnitClaimed(action.claim, unit, outcome, fetched.bad_replicas, fetched.seconds, fetched.size)

    def _fetch_unit(self, folder: JobFolder, unit: AssignedUnit) -> Fetched:
        """Fetch into a folder of the unit's own: the names in it are those of files not known when the job began.

        The payload runs already and could put a link where the pilot is about to write: so the folder is filled where
        a payload does not look, and moved to its place as a whole.
        """
        into = folder.work / f"unit-{unit.unit_id}"
        try:
            aside = Path(tempfile.mkdtemp(prefix="unit-", dir=folder.root))
            fetched = self._transfers.fetch([unit], [], aside)
            if not fetched.paths:
                return fetched
            aside.rename(into)
        except OSError as error:
            failure = Failure(ErrorCode.FILE_HANDLING_FAILED, f"{into}: {error.strerror or error}")
            return Fetched(outcomes={unit.unit_id: UnitOutcome.RETURNED}, failure=failure)
        return replace(fetched, paths={did: into / path.relative_to(aside) for did, path in fetched.paths.items()})

    # ------------------------------------------------------------ output

    def _collect(self, action: Collect) -> Event:
        folder = self._folder
        if folder is None:
            return Collected()
        processed = self._processed(folder)
        files: list[ProducedFile] = []
        failure: Optional[Failure] = None
        if action.outputs:
            try:
                files, failure = self._outputs(folder)
            except PilotageError as error:
                failure = Failure(error.code, error.detail)
        if failure is not None:
            files = []
            self._note(f"outputs: {failure.code.name}: {failure.detail}")
        tail = "".join(
            f"--- {path.name} ---\n{text}\n" for path in (folder.stdout, folder.stderr) if (text := file_tail(path))
        )
        return Collected((*files, *self._log(folder)), processed, failure, tail)

    def _outputs(self, folder: JobFolder) -> tuple[list[ProducedFile], Optional[Failure]]:
        inputs = {path.name for path in self._paths.values() if path.parent == folder.work}
        inputs |= self._unpacked.unchanged(folder.work)
        try:
            collected = collect_outputs(folder.work, self._assignment.outputs, inputs)
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{folder.work}: {error.strerror}") from error
        for warning in collected.warnings:
            self._note(warning)
        if collected.error is not None:
            return [], Failure(*collected.error)
        return [ProducedFile(str(file.path), output_record(file)) for file in collected.files], None

    def _processed(self, folder: JobFolder) -> Optional[frozenset[int]]:
        """The units that the jobscript lists as processed; None when it left no list."""
        said = read_processed(folder.work)
        for problem in said.problems:
            self._note(f"processed list: {problem}")
        if not any((folder.work / name).exists() for name in (*DID_LISTS, *PFN_LISTS)):
            return None
        dids, pfns = set(said.dids), set(said.pfns)
        return frozenset(
            unit.unit_id
            for unit in self._units.values()
            if unit.file is not None
            and (unit.file.did in dids or str(self._paths.get(unit.file.did)) in pfns)
            or unit.counter is not None
            and str(unit.counter) in dids
        )

    def _log(self, folder: JobFolder) -> list[ProducedFile]:
        """The log archive; a job without one is no failure."""
        notes = "".join(f"{line}\n" for line in self._notes)
        destination = folder.root / f"job-{self._assignment.job_id}.log.tgz"
        try:
            make_log_archive(folder.root, destination, {"pilot-job.log": notes})
            return [ProducedFile(str(destination), log_record(destination))]
        except (PilotageError, OSError) as error:
            logger.error("job %d: no log archive: %s", self._assignment.job_id, error)
            return []

    def _record(self, action: Record) -> Event:
        request = RecordRequest(outputs=[file.record for file in action.files])
        try:
            return Recorded(tuple(self._session.server.record(self._assignment.job_id, request).destinations))
        except ServerError as error:
            return _event_of(error)

    def _upload(self, action: Upload) -> Event:
        return self._transfers.upload(action.files, action.destinations)

    def _spool(self, action: Spool) -> None:
        """A report that cannot be kept is delivered all the same."""
        entry = SpooledReport(
            server=self._means.server_url,
            pilot_id=self._session.grant.pilot_id,
            job_id=self._assignment.job_id,
            report=action.report,
            uploaded=list(action.uploaded),
        )
        try:
            self._means.work_dir.spool.put(entry)
        except PilotageError as error:
            logger.error("job %d: its report cannot be kept on disk: %s", self._assignment.job_id, error)

    def _confirm(self, action: Confirm) -> Event:
        try:
            reply = self._session.server.finish(self._assignment.job_id, action.report)
        except ServerError as error:
            return _event_of(error)
        if action.report.state is JobState.FAILED:
            self._leave_log()
        return Confirmed(reply)

    def _leave_log(self) -> None:
        """Leave the log of a failed job with the server, for people who cannot read the storage; one try, after the report."""
        if self._folder is None:
            return
        job_id = self._assignment.job_id
        path = self._folder.root / f"job-{job_id}.log.tgz"
        try:
            self._session.server.keep_log(job_id, path.read_bytes())
        except (OSError, ServerError) as error:
            logger.info("job %d: its log stays away from the server: %s", job_id, error)

    def _remove(self, action: Remove) -> Event:
        for error in self._transfers.remove([output.url for output in action.uploaded]):
            logger.warning("job %d: not removed: %s", self._assignment.job_id, error)
        return Removed()

    def _unspool(self, _action: Unspool) -> None:
        self._means.work_dir.spool.remove(self._session.grant.pilot_id, self._assignment.job_id)

    def _cleanup(self, _action: Cleanup) -> None:
        if self._running is not None:
            self._running.close()
        if self._folder is not None and not self._means.config.keep:
            try:
                self._folder.remove()
            except PilotageError as error:
                logger.warning("job %d: %s", self._assignment.job_id, error)

    def _note(self, text: str) -> None:
        """A line for the job's own log."""
        logger.info("job %d: note: %s", self._assignment.job_id, text)
        stamp = datetime.fromtimestamp(self._means.clock.now(), timezone.utc)
        self._notes.append(f"{stamp:%Y-%m-%dT%H:%M:%SZ} {text}")


def _event_of(error: ServerError) -> Event:
    """What a failed call about a job means for it."""
    if isinstance(error, (ServerAway, NotAccepted)):  # whether this pilot is accepted at all, the heartbeat finds out
        return ServerUnreachable(str(error))
    if isinstance(error, JobGone):
        return Gone(str(error))
    code = error.code if isinstance(error, CallRefused) else None
    return Refused(Failure(code or ErrorCode.INTERNAL_PILOT_PROBLEM, f"the server refuses: {error}"))
