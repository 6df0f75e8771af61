"""What carries out the actions of one job: the hands of :mod:`pilot.job`."""

from __future__ import annotations

import logging
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional, TypeVar

from common.clock import Clock
from common.counters import STORAGE as COUNTERS
from common.counters import counter_did, counter_pfn
from common.errors import ErrorCode, PilotageError
from common.states import JobState
from common.wire import (
    AssignedUnit,
    Assignment,
    OutputDestination,
    OutputRecord,
    RecordRequest,
    UnitOutcome,
    UnitsAcquireRequest,
)
from pilot.accounts import Account, Accounts
from pilot.agent import Session
from pilot.client import CallRefused, JobGone, NotAccepted, ServerAway, ServerError
from pilot.config import PilotConfig
from pilot.container import ContainerSettings
from pilot.container.jobs import job_container
from pilot.copytool import Copytool
from pilot.copytool.base import safe_url
from pilot.debug import Debugger, Sight
from pilot.defining import Given, define_payload, payload_bounds
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
    PayloadRuns,
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
from pilot.logs import light_log
from pilot.payload import (
    GetFileReply,
    JobFolder,
    PayloadDefinition,
    prepare_payload,
)
from pilot.payload.transformation import Transformations
from pilot.plugins import PayloadPlugin, PluginCalls, PluginJob, make_plugin
from pilot.probing import Ground, Probing
from pilot.results import Inputs, Results
from pilot.running import Rules, Running
from pilot.sandbox import NOTHING, Unpacked, unpack
from pilot.slot import Part, beside
from pilot.spool import SpooledReport
from pilot.supervised import SupervisedProcess
from pilot.transfers import Fetched, JobCredentials, Transfers, tool_order
from pilot.watch import Watch
from pilot.watch.processes import ProcessSeen
from pilot.workdir import WorkDir

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Means:
    """What the jobs of a pilot work with. ``environ`` is the pilot's own environment; ``server_url`` goes into the spool;
    all their payloads are watched by one ``watch``, and shown to people by one ``debugger``."""

    config: PilotConfig
    server_url: str
    work_dir: WorkDir
    tools: Sequence[Copytool]
    environ: Mapping[str, str]
    clock: Clock
    watch: Watch
    debugger: Debugger
    accounts: Optional[Accounts] = None
    credentials: Optional[JobCredentials] = None


class Work:
    """The work of one job. ``perform`` and ``look`` run on lanes; the rest may be called from any thread."""

    def __init__(self, means: Means, session: Session, assignment: Assignment, post: Callable[[Event], None]) -> None:
        self._means = means
        self._session = session
        self._assignment = assignment
        self._post = post
        self._transfers = Transfers(
            means.tools, means.credentials, assignment.job_id, self._slot_left_s, tool_order(session.grant.queue)
        )
        self._folder: Optional[JobFolder] = None
        self._running: Optional[Running] = None
        self._kill: Optional[KillPayload] = None
        self._pull: Optional[SupervisedProcess] = None
        self._container: Optional[ContainerSettings] = None
        self._account: Optional[Account] = None
        self._lock = threading.Lock()
        self._paths: dict[str, Path] = {}
        self._direct: dict[str, str] = {}
        self._storages: dict[str, str] = {}
        self._payload_credentials: dict[str, str] = {}
        self._units: dict[int, AssignedUnit] = {unit.unit_id: unit for unit in assignment.units}
        self._notes: list[str] = []
        self._unpacked = NOTHING
        self._program: Optional[Path] = None
        self._plugin: Optional[PluginCalls] = None
        self._results: Optional[Results] = None
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
        self._probing: Optional[Probing] = None
        if assignment.probe is not None:
            self._does.update({StageIn: self._make_probe, StartPayload: self._probe, Collect: self._probe_over})

    def perform(self, action: Action) -> Optional[Event]:
        """Carry out an action that takes time; the event that it leads to."""
        return self._does[type(action)](action)

    def at_once(self, action: Action) -> None:
        """Kill the payload, or answer get-file."""
        with self._lock:
            running = self._running
            if isinstance(action, KillPayload):
                self._kill = action
                if self._pull is not None:
                    self._pull.kill(action.why, 0)
                if self._probing is not None:
                    self._probing.kill()
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
        """Give up transfers and pulls that are under way."""
        self._transfers.cancel()
        with self._lock:
            if self._pull is not None:
                self._pull.kill("cancelled", 0)
            if self._probing is not None:
                self._probing.kill()

    # ------------------------------------------------------------ a probe, which has no payload

    def _make_probe(self, _action: StageIn) -> Event:
        order, means = self._assignment.probe, self._means
        assert order is not None
        try:
            folder = self._folder = JobFolder.create(means.work_dir.jobs, str(self._assignment.job_id))
        except PilotageError as error:
            return StagedIn(failure=Failure(error.code, error.detail), fatal=True)
        queue = self._session.grant.queue
        ground = Ground(
            means.config,
            means.server_url,
            queue,
            means.environ,
            folder.work,
            self._assignment.job_id,
            means.tools,
            tool_order(queue),
            means.credentials,
        )
        with self._lock:
            self._probing = Probing(order, ground, self._note)
        return StagedIn()

    def _probe(self, _action: StartPayload) -> Event:
        probing = self._probing
        assert probing is not None
        self._post(PayloadRuns())
        report = probing.run()
        with self._lock:
            killed = self._kill
        if killed is not None:
            return PayloadOver(failure=Failure(ErrorCode.KILL_SIGNAL, f"the probe was killed: {killed.why}"))
        return PayloadOver(exit_code=0, probe=report)

    def _probe_over(self, _action: Collect) -> Event:
        """A probe has neither outputs nor a log archive: what it found is in its report, a log might have nowhere to go."""
        return Collected(log_tail="".join(f"{line}\n" for line in self._notes))

    # ------------------------------------------------------------ input and payload

    def _stage_in(self, _action: StageIn) -> Event:
        folder = self._folder = JobFolder.create(self._means.work_dir.jobs, str(self._assignment.job_id))
        secrets = tuple(self._assignment.secrets.values())
        self._means.debugger.show(self._assignment.job_id, Sight(folder, self._processes, secrets))
        try:
            plugin = self._plugin = self._ask_plugin(folder)
            wanted = plugin.inputs(beside(self._assignment))
            self._unpacked = self._unpack_sandbox(folder)
            self._program = self._fetch_program()
            # With the input, so that no core waits for an image.
            self._container = self._find_container(folder)
        except PilotageError as error:
            self._note(f"{error}")
            return StagedIn(failure=Failure(error.code, error.detail), fatal=True)
        units = self._copied(folder, self._assignment.units, self._assignment.remote_io)
        fetched = self._fetched(self._transfers.fetch(units, wanted, folder.work))
        return StagedIn(
            fetched.outcomes, fetched.bad_replicas, fetched.failure, fetched.fatal, fetched.seconds, fetched.size
        )

    def _ask_plugin(self, folder: JobFolder) -> PluginCalls:
        """The experiment's plug-in, which accepts this job. Raises PilotageError."""
        queue = self._session.grant.queue
        job = PluginJob(self._assignment, queue, folder.work, self._note)
        # Should the plug-in itself fail, the job's log is made without one.
        self._results = Results(job, folder, PluginCalls(job, PayloadPlugin()))
        plugin = PluginCalls(job, make_plugin(self._assignment.plugin or queue.plugin))
        self._results = Results(job, folder, plugin)
        plugin.validate()
        return plugin

    def _fetch_program(self) -> Optional[Path]:
        program = self._assignment.transformation
        if program is None:
            return None
        mark = str(self._session.grant.pilot_id)
        path = Transformations(self._means.work_dir.root / "transformations", mark).fetch(program)
        self._note(f"transformation {safe_url(program.url)} is fetched")
        return path

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

    def _copied(self, folder: JobFolder, units: Sequence[AssignedUnit], remote_io: bool) -> Sequence[AssignedUnit]:
        """Have the payload read what it may where it lies; the units that are copied for it all the same."""
        if not remote_io:
            return units
        direct = self._transfers.read_directly(units, folder.credential)
        self._direct.update(direct.places)
        self._storages.update(direct.storages)
        self._payload_credentials.update(direct.environment)
        for did, place in direct.places.items():
            self._note(f"input {did} is read from {direct.storages[did]} directly: {place}")
        if direct.problem:
            self._note(f"direct reading: {direct.problem}")
        return [unit for unit in units if unit.file is None or unit.file.did not in direct.places]

    def _place(self, did: str) -> str:
        """What the payload opens for an input."""
        return self._direct.get(did) or str(self._paths[did])

    def _slot_left_s(self) -> Optional[float]:
        """How long transfers of this job may be tried: what is kept at the slot's end is for them."""
        left_s = self._session.wall_left_s()
        return None if left_s is None else left_s + self._means.config.end_margin_s

    def _fetched(self, fetched: Fetched) -> Fetched:
        self._paths.update(fetched.paths)
        self._storages.update(fetched.storages)
        for did, path in fetched.paths.items():
            self._note(f"input {did} from {fetched.storages[did]} as {path.name}")
        if fetched.failure is not None:
            self._note(f"stage-in: {fetched.failure.code.name}: {fetched.failure.detail}")
        return fetched

    def _start_payload(self, action: StartPayload) -> Optional[Event]:
        assert self._folder is not None and self._results is not None
        try:
            definition = self._definition(action.units, action.part)
            spec = prepare_payload(self._folder, definition, self._means.environ, self._container)
            with self._lock:
                if self._kill is not None:
                    return PayloadOver(failure=Failure(ErrorCode.KILL_SIGNAL, "killed before it started"))
                running = Running(
                    self._folder,
                    replace(self._rules(action.part), credentials=self._payload_credentials or self._means.environ),
                    self._means.clock,
                    self._post,
                    self._describe,
                    self._session.wall_left_s,
                    self._means.watch,
                    self._note,
                    self._results.why,
                )
                if self._means.accounts is not None:
                    self._account = self._means.accounts.borrow(self._folder)
                    spec = replace(spec, account=self._account)
                running.start(spec)
                self._running = running
        except PilotageError as error:
            self._note(f"payload: {error}")
            return PayloadOver(failure=Failure(error.code, error.detail))
        return None

    def _find_container(self, folder: JobFolder) -> Optional[ContainerSettings]:
        """The job's image, pulled if it has to be. Raises PilotageError."""
        means, image = self._means, self._assignment.image
        if image is None:
            return None
        binds = self._session.grant.queue.container_binds
        return job_container(means.config, means.work_dir.root, means.environ, binds, image, folder, self._pulls)

    def _pulls(self, process: SupervisedProcess) -> None:
        """An image is being pulled: so that a job that is killed does not wait for it."""
        with self._lock:
            self._pull = process
            if self._kill is not None:
                process.kill(self._kill.why, 0)

    def _definition(self, units: Sequence[AssignedUnit], part: Part) -> PayloadDefinition:
        assert self._plugin is not None
        given = Given(
            part=part,
            site=self._session.grant.queue.site,
            now=self._means.clock.now(),
            place=self._place,
            paths=self._paths,
            program=self._program,
            credentials=self._payload_credentials,
        )
        return define_payload(self._assignment, units, self._plugin, given)

    def _rules(self, part: Part) -> Rules:
        assert self._plugin is not None
        limits = self._session.grant.queue.limits
        return payload_bounds(
            self._assignment.requirements, limits, self._means.config, part, self._plugin, self._session.wall_left_s()
        )

    def _describe(self, unit: AssignedUnit) -> GetFileReply:
        """What get-file answers for a unit, on one of its threads."""
        if unit.file is None:
            assert unit.counter is not None
            did = counter_did(self._assignment.workflow_id, unit.counter)
            return GetFileReply.file(did, counter_pfn(unit.counter), COUNTERS)
        did = unit.file.did
        return GetFileReply.file(did, self._place(did), self._storages[did])

    def _claim_unit(self, action: ClaimUnit) -> Event:
        assert self._folder is not None
        request = UnitsAcquireRequest(request_id=action.claim.request_id, count=1)
        job_id = self._assignment.job_id
        try:
            reply = self._session.server.acquire_units(job_id, request)
        except ServerError as error:
            return _event_of(error)
        if not reply.units:
            return UnitClaimed(action.claim)
        unit = reply.units[0]
        self._units[unit.unit_id] = unit
        if unit.file is None:
            return UnitClaimed(action.claim, unit, None if unit.counter is not None else UnitOutcome.RETURNED)
        if not self._copied(self._folder, [unit], reply.remote_io):
            return UnitClaimed(action.claim, unit)
        fetched = self._fetched(self._fetch_unit(self._folder, unit))
        outcome = fetched.outcomes.get(unit.unit_id)
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
            if self._account is not None:
                self._account.give(aside)
            aside.rename(into)
        except OSError as error:
            failure = Failure(ErrorCode.FILE_HANDLING_FAILED, f"{into}: {error.strerror or error}")
            return Fetched(outcomes={unit.unit_id: UnitOutcome.RETURNED}, failure=failure)
        return replace(fetched, paths={did: into / path.relative_to(aside) for did, path in fetched.paths.items()})

    # ------------------------------------------------------------ output

    def _collect(self, action: Collect) -> Event:
        folder, results = self._folder, self._results
        if folder is None or results is None:
            return Collected()
        names = {path.name for path in self._paths.values() if path.parent == folder.work}
        names |= self._unpacked.unchanged(folder.work)
        evidence = self._running.evidence if self._running is not None else []
        inputs = Inputs(list(self._units.values()), {**self._paths, **self._direct}, names, evidence)
        return results.collect(action.outputs, inputs, lambda: "".join(f"{line}\n" for line in self._notes))

    def _record(self, action: Record) -> Event:
        request = RecordRequest(outputs=[file.record for file in action.files])
        try:
            return Recorded(tuple(self._session.server.record(self._assignment.job_id, request).destinations))
        except ServerError as error:
            return _event_of(error)

    def _upload(self, action: Upload) -> Event:
        alternatives = self._session.grant.queue.alternative_stage_out
        return self._transfers.upload(action.files, action.destinations, self._elsewhere if alternatives else None)

    def _elsewhere(self, record: OutputRecord) -> Optional[OutputDestination]:
        """Another storage for an output that those which it avoids did not take; None: there is none."""
        self._note(f"output {record.name} was not taken by {', '.join(record.avoid)}")
        try:
            reply = self._session.server.record(self._assignment.job_id, RecordRequest(outputs=[record]))
        except ServerError as error:
            self._note(f"alternative stage-out: {error}")
            return None
        return reply.destinations[0] if reply.destinations else None

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
            self._session.server.keep_log(job_id, light_log(path).read_bytes())
        except (OSError, tarfile.TarError, ServerError) as error:
            logger.info("job %d: its log stays away from the server: %s", job_id, error)

    def _remove(self, action: Remove) -> Event:
        for error in self._transfers.remove([output.url for output in action.uploaded]):
            logger.warning("job %d: not removed: %s", self._assignment.job_id, error)
        return Removed()

    def _unspool(self, _action: Unspool) -> None:
        self._means.work_dir.spool.remove(self._session.grant.pilot_id, self._assignment.job_id)

    def _processes(self) -> list[ProcessSeen]:
        """The living ones of the payload."""
        running = self._running
        return running.processes() if running is not None else []

    def _cleanup(self, _action: Cleanup) -> None:
        self._means.debugger.hide(self._assignment.job_id)
        if self._running is not None:
            self._running.close()
            self._running.forget()
        self._transfers.forget()
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
