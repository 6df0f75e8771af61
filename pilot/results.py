"""What a payload leaves behind when it has ended: why it failed, its outputs, what it processed, its log archive."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional, Union

from msgspec import structs

from common.counters import counter_did, counter_pfn
from common.errors import ErrorCode, PilotageError
from common.wire import AssignedUnit, Metrics
from pilot.jobstate import Collected, Failure, ProducedFile
from pilot.logs import LogContent, end_of_logs, make_log_archive
from pilot.outputs import OutputPolicy, collect_outputs
from pilot.payload import JobFolder, read_processed
from pilot.payload.diagnosis import Ending, core_dumps, diagnose
from pilot.payload.jobreport import PayloadReport, read_job_report
from pilot.payload.oom import OutOfMemoryKills
from pilot.payload.processed import DID_LISTS, PFN_LISTS
from pilot.plugins import PluginCalls, PluginJob
from pilot.supervised import PayloadEnd
from pilot.tails import file_tail
from pilot.transfers import log_record, output_record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """What the pilot put into the payload's folder: the units with their paths (or URLs) by DID, and the ``names`` of files there
    that are no outputs. ``evidence`` are files that the pilot itself made for the log archive."""

    units: Collection[AssignedUnit] = ()
    paths: Mapping[str, Union[Path, str]] = field(default_factory=dict)
    names: Collection[str] = ()
    evidence: Sequence[Path] = ()


class Results:
    """Looks at one job's folder. Made before the payload starts."""

    def __init__(self, job: PluginJob, folder: JobFolder, plugin: PluginCalls) -> None:
        self._folder = folder
        self._assignment = job.assignment
        self._queue = job.queue
        self._plugin = plugin
        self._note = job.note
        self._oom = OutOfMemoryKills()
        self._report: Optional[PayloadReport] = None

    def why(self, end: PayloadEnd) -> Optional[Failure]:
        """Why the payload failed; None when it did not. Called once, when no process of it is left."""
        self._report = read_job_report(self._folder.work)
        for problem in self._report.problems if self._report is not None else ():
            self._note(problem)
        for side in end.sides:
            if side.failed:
                self._note(f"the process {side.label} {side.words}")
        ending = Ending(
            end,
            stdout=file_tail(self._folder.stdout),
            stderr=file_tail(self._folder.stderr),
            in_container=self._assignment.image is not None,
            oom_kills=self._oom.since(),
            report=self._report,
            cores=core_dumps(self._folder.work),
        )
        try:
            found = diagnose(ending, self._plugin.messages())
            found = found and (self._plugin.diagnose(ending) or found)
        except PilotageError as error:  # the payload's failure is worth more than the plug-in's
            self._note(f"{error}")
            found = diagnose(ending)
        return None if found is None else Failure(found.code, found.detail)

    def collect(self, outputs: bool, inputs: Inputs, notes: Callable[[], str]) -> Collected:
        """Everything for the report; outputs only if they are wanted. ``notes`` answers the pilot's log of the job."""
        processed = self._processed(inputs)
        files: list[ProducedFile] = []
        failure: Optional[Failure] = None
        if outputs:
            try:
                files = self._outputs(inputs)
            except PilotageError as error:
                failure = Failure(error.code, error.detail)
                self._note(f"outputs: {error.code.name}: {error.detail}")
        metrics = self._metrics()
        log = self._log(inputs, bool(files), notes)
        return Collected((*files, *log), processed, failure, end_of_logs(self._folder), metrics)

    def _outputs(self, inputs: Inputs) -> list[ProducedFile]:
        """The files to upload. Raises PilotageError."""
        told = {} if self._report is None else self._report.files
        policy = OutputPolicy(self._queue.max_output_mb, self._assignment.allow_no_output, told)
        try:
            collected = collect_outputs(self._folder.work, self._assignment.outputs, inputs.names, policy)
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{self._folder.work}: {error.strerror}") from error
        for warning in collected.warnings:
            self._note(warning)
        if collected.error is not None:
            raise PilotageError(*collected.error)
        return [ProducedFile(str(file.path), output_record(file)) for file in self._plugin.outputs(collected.files)]

    def _metrics(self) -> Optional[Metrics]:
        """What the payload says of itself; what it says wrongly is noted and costs nothing."""
        events = self._report.events if self._report is not None else None
        try:
            metrics = self._plugin.metrics()
        except PilotageError as error:
            self._note(f"{error}")
            metrics = Metrics()
        if events is not None and not metrics.events:
            metrics = structs.replace(metrics, events=events)
        return metrics if metrics != Metrics() else None

    def _processed(self, inputs: Inputs) -> Optional[frozenset[int]]:
        """The units that the jobscript lists as processed; None when it left no list."""
        work = self._folder.work
        said = read_processed(work)
        for problem in said.problems:
            self._note(f"processed list: {problem}")
        if not any((work / name).exists() for name in (*DID_LISTS, *PFN_LISTS)):
            return None
        dids, pfns = set(said.dids), set(said.pfns)
        return frozenset(
            unit.unit_id
            for unit in inputs.units
            if unit.file is not None
            and (unit.file.did in dids or str(inputs.paths.get(unit.file.did)) in pfns)
            or unit.counter is not None
            and (
                not dids.isdisjoint((str(unit.counter), counter_did(self._assignment.workflow_id, unit.counter)))
                or counter_pfn(unit.counter) in pfns
            )
        )

    def _log(self, inputs: Inputs, uploaded: bool, notes: Callable[[], str]) -> list[ProducedFile]:
        """The log archive; a job without one is no failure."""
        job_id = self._assignment.job_id
        destination = self._folder.root / f"job-{job_id}.log.tgz"
        content = LogContent(patterns=self._assignment.log_files, files=inputs.evidence)
        try:
            content = replace(content, patterns=self._plugin.log_files(), without=self._plugin.redundant_files())
        except PilotageError as error:
            self._note(f"{error}")
        if not uploaded:
            partial = [rule.pattern for rule in self._assignment.outputs if rule.keep_partial]
            inputs_too = [glob.escape(name) for name in inputs.names] if partial else []
            content = replace(content, patterns=[*content.patterns, *partial], without=[*content.without, *inputs_too])
        try:
            make_log_archive(self._folder.root, destination, replace(content, texts={"pilot-job.log": notes()}))
            return [ProducedFile(str(destination), log_record(destination))]
        except (PilotageError, OSError) as error:
            logger.error("job %d: no log archive: %s", job_id, error)
            return []
