"""A job's files on the wire and on disk: between the protocol's messages and the staging API."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from common.wire import (
    AssignedFile,
    AssignedUnit,
    BadReplica,
    OutputDestination,
    OutputRecord,
    OutputRole,
    UnitOutcome,
    UploadedOutput,
)
from pilot.copytool import Copytool
from pilot.jobstate import Failure, ProducedFile, Uploaded
from pilot.outputs import CollectedFile
from pilot.staging import Destination, InputFile, OutputFile, Replica, StageInClient, StageInResult, StageOutClient
from pilot.staging_rounds import BAD_REPLICA


@dataclass(frozen=True)
class Fetched:
    """What stage-in brought: paths by DID, why units and common input are missing, and what it cost."""

    paths: dict[str, Path] = field(default_factory=dict)
    storages: dict[str, str] = field(default_factory=dict)
    outcomes: dict[int, UnitOutcome] = field(default_factory=dict)
    bad_replicas: tuple[BadReplica, ...] = ()
    failure: Optional[Failure] = None
    fatal: bool = False
    seconds: float = 0.0
    size: int = 0


class Transfers:
    """The transfers of one job. :meth:`cancel` ends what is under way and what comes later."""

    def __init__(self, tools: Sequence[Copytool]) -> None:
        self._tools = list(tools)
        self._cancel = threading.Event()

    def cancel(self) -> None:
        """Give up what is under way. What begins after this call is not affected."""
        self._cancel.set()
        self._cancel = threading.Event()

    def fetch(self, units: Sequence[AssignedUnit], common: Sequence[AssignedFile], into: Path) -> Fetched:
        """Stage in the files of ``units`` and the ``common`` input, each once: units may be ranges of one file."""
        every = [unit.file for unit in units if unit.file is not None] + list(common)
        wanted = list({file.did: file for file in reversed(every)}.values())[::-1]
        if not wanted:
            return Fetched()
        begun = time.monotonic()
        client = StageInClient(self._tools, cancel=self._cancel)
        results = {result.file.did: result for result in client.stage_in([_input(file) for file in wanted], into)}
        failures = [_failure(result.error) for result in results.values() if result.error is not None]
        missing_common = [results[file.did].error for file in common if not results[file.did].ok]
        fatal = next((_failure(error) for error in missing_common if error is not None), None)
        return Fetched(
            paths={did: result.path for did, result in results.items() if result.path is not None},
            storages={did: result.storage or "" for did, result in results.items()},
            outcomes={
                unit.unit_id: _outcome(results[unit.file.did])
                for unit in units
                if unit.file is not None and not results[unit.file.did].ok
            },
            bad_replicas=tuple(
                BadReplica(did, bad.storage, int(bad.code), bad.detail)
                for did, result in results.items()
                for bad in result.bad_replicas
            ),
            failure=fatal or (failures[-1] if failures else None),
            fatal=fatal is not None,
            seconds=round(time.monotonic() - begun, 3),
            size=sum(result.bytes for result in results.values()),
        )

    def upload(self, files: Sequence[ProducedFile], destinations: Sequence[OutputDestination]) -> Uploaded:
        """Upload each file to the first of its destinations that takes it."""
        begun = time.monotonic()
        by_name = {destination.name: destination for destination in destinations}
        outputs = [_output(file, by_name.get(file.record.name)) for file in files]
        results = StageOutClient(self._tools, cancel=self._cancel).stage_out(outputs)
        uploaded = []
        failure: Optional[Failure] = None
        for file, result in zip(files, results):
            if result.ok and result.url is not None:
                uploaded.append(UploadedOutput(by_name[file.record.name].did, result.url))
            elif not file.is_log and failure is None:
                failure = _failure(result.error or PilotageError(ErrorCode.STAGE_OUT_FAILED, file.record.name))
        size = sum(result.size or 0 for result in results if result.ok)
        return Uploaded(tuple(uploaded), failure, round(time.monotonic() - begun, 3), size)

    def remove(self, urls: Sequence[str]) -> list[PilotageError]:
        """Remove uploaded files; answers what went wrong."""
        client = StageOutClient(self._tools, cancel=self._cancel)
        return [error for error in client.remove(urls) if error is not None]


def output_record(file: CollectedFile) -> OutputRecord:
    """What the server is told about an output. Raises PilotageError (FILE_HANDLING_FAILED)."""
    events = file.attributes.get("events")
    return OutputRecord(
        name=file.name,
        size=file.size,
        checksum=_checksum(file.path),
        pattern=file.pattern.pattern,
        events=events if isinstance(events, int) and not isinstance(events, bool) and events >= 0 else None,
        attributes=file.attributes,
    )


def log_record(path: Path) -> OutputRecord:
    """The same of a log archive."""
    return OutputRecord(name=path.name, size=path.stat().st_size, checksum=_checksum(path), role=OutputRole.LOG)


def _checksum(path: Path) -> str:
    try:
        return str(file_checksum(path))
    except OSError as error:
        raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{path}: {error.strerror or error}") from error


def _input(file: AssignedFile) -> InputFile:
    replicas = [Replica(replica.storage, replica.url, replica.distance) for replica in file.replicas]
    return InputFile(file.did, file.size, file.checksum, replicas)


def _output(file: ProducedFile, destination: Optional[OutputDestination]) -> OutputFile:
    places = [] if destination is None else [Destination(destination.storage, url) for url in destination.urls]
    record = file.record
    return OutputFile(record.name, Path(file.path), record.size, record.checksum, places)


def _outcome(result: StageInResult) -> UnitOutcome:
    """Lost when every replica is missing or damaged; after any other failure another slot may have more luck."""
    lost = result.error is not None and result.error.code in BAD_REPLICA
    return UnitOutcome.LOST if lost else UnitOutcome.RETURNED


def _failure(error: PilotageError) -> Failure:
    return Failure(error.code, error.detail)
