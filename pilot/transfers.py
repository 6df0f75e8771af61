"""A job's files on the wire and on disk: between the protocol's messages and the staging API."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional, Protocol
from urllib.parse import unquote, urlsplit

from msgspec import structs

from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from common.wire import (
    Activity,
    AssignedFile,
    AssignedUnit,
    BadReplica,
    OutputDestination,
    OutputRecord,
    OutputRole,
    Queue,
    UnitOutcome,
    UploadedOutput,
)
from common.wire import (
    Replica as AssignedReplica,
)
from pilot.copytool import Copytool
from pilot.credentials import PayloadCredential
from pilot.jobstate import Failure, ProducedFile, Uploaded
from pilot.outputs import CollectedFile
from pilot.staging import (
    Destination,
    InputFile,
    OutputFile,
    Replica,
    StageInClient,
    StageInResult,
    StageOutClient,
    StageOutResult,
)
from pilot.staging_rounds import BAD_REPLICA, LOCAL

logger = logging.getLogger(__name__)

LONGEST_S = 6 * 3600.0
"""The longest that all transfers of one step may take."""
LEAST_S = 5.0
"""What they may take even when the slot is about to end: one try."""


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


@dataclass(frozen=True)
class Direct:
    """Input that the payload reads where it lies: URL (or path, of a mounted storage) and storage by DID; ``environment``
    names what it shows to the storage. ``problem`` says why there is less than there could be."""

    places: dict[str, str] = field(default_factory=dict)
    storages: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    problem: str = ""


class JobCredentials(Protocol):
    """What :class:`pilot.credentials.ServerCredentials` does for a job's transfers."""

    def reads(self, job_id: int, urls: Iterable[str]) -> None:
        """The job is going to read these."""

    def writes(self, job_id: int, urls: Sequence[str]) -> None:
        """The job is going to write these."""

    def for_payload(self, job_id: int, urls: Sequence[str], path: Path) -> PayloadCredential:
        """What the payload shows for these. Raises PilotageError."""

    def forget(self, job_id: int) -> None:
        """The job is over."""


class Transfers:
    """The transfers of one job. :meth:`cancel` ends what is under way and what comes later.

    ``credentials`` are told what ``job_id`` reads and writes. ``time_left_s`` answers how long the slot lasts (None: not
    limited): no transfer is tried again after that. ``order`` names the tools for an activity.
    """

    def __init__(
        self,
        tools: Sequence[Copytool],
        credentials: Optional[JobCredentials] = None,
        job_id: int = 0,
        time_left_s: Callable[[], Optional[float]] = lambda: None,
        order: Optional[Mapping[Activity, Sequence[str]]] = None,
    ) -> None:
        self._order = dict(order or {})
        self._tools = list(tools)
        self._credentials = credentials
        self._job_id = job_id
        self._time_left_s = time_left_s
        self._direct: dict[str, AssignedReplica] = {}
        self._cancel = threading.Event()

    def cancel(self) -> None:
        """Give up what is under way. What begins after this call is not affected."""
        self._cancel.set()
        self._cancel = threading.Event()

    def forget(self) -> None:
        """The job is over: nothing is shown for it any more."""
        if self._credentials is not None:
            self._credentials.forget(self._job_id)

    def _deadline_s(self) -> float:
        left_s = self._time_left_s()
        return LONGEST_S if left_s is None else min(max(left_s, LEAST_S), LONGEST_S)

    def read_directly(self, units: Sequence[AssignedUnit], credential: Path) -> Direct:
        """Let the payload read the files of ``units`` where they lie: those to which one credential, or none, gives way.

        ``credential`` is its file. Asked again for more units, those of before stay covered as far as they fit.
        """
        files = {unit.file.did: unit.file for unit in units if unit.file is not None and unit.file.replicas}
        wanted = {did: min(file.replicas, key=lambda replica: replica.distance) for did, file in files.items()}
        if self._credentials is None or not wanted:
            return Direct()
        urls = [each.url for each in (*wanted.values(), *self._direct.values())]
        try:
            given = self._credentials.for_payload(self._job_id, urls, credential)
        except PilotageError as error:
            return Direct(problem=f"{error}")
        found = {did: replica for did, replica in wanted.items() if _covered(replica.url, given.covers)}
        self._direct.update(found)
        rest = f"{len(wanted) - len(found)} files are copied: no credential for the payload covers them"
        return Direct(
            {did: payload_place(replica.url) for did, replica in found.items()},
            {did: replica.storage for did, replica in found.items()},
            given.environment,
            "" if len(found) == len(wanted) else rest,
        )

    def fetch(self, units: Sequence[AssignedUnit], common: Sequence[AssignedFile], into: Path) -> Fetched:
        """Stage in the files of ``units`` and the ``common`` input, each once: units may be ranges of one file."""
        every = [unit.file for unit in units if unit.file is not None] + list(common)
        wanted = list({file.did: file for file in reversed(every)}.values())[::-1]
        if not wanted:
            return Fetched()
        if self._credentials is not None:
            self._credentials.reads(self._job_id, (each.url for file in wanted for each in file.replicas))
        begun = time.monotonic()
        client = StageInClient(self._tools, order=self._order, cancel=self._cancel, deadline_s=self._deadline_s())
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

    def upload(
        self,
        files: Sequence[ProducedFile],
        destinations: Sequence[OutputDestination],
        elsewhere: Optional[Callable[[OutputRecord], Optional[OutputDestination]]] = None,
    ) -> Uploaded:
        """Upload each file to the first of its destinations that takes it.

        ``elsewhere`` names another storage for an output whose ``avoid`` lists those that did not take it, as long as there
        is one.
        """
        begun = time.monotonic()
        by_name = {destination.name: destination for destination in destinations}
        results = self._store(files, by_name)
        avoid: dict[str, list[str]] = {}
        left = self._worth_another(files, results) if elsewhere is not None else []
        while left and elsewhere is not None:
            moved = []
            for file in left:
                name = file.record.name
                avoid.setdefault(name, []).append(by_name[name].storage)
                self._take_back(by_name[name])
                place = elsewhere(structs.replace(file.record, avoid=avoid[name]))
                if place is not None:
                    by_name[name] = place
                    moved.append(file)
            again = self._store(moved, by_name)
            results.update(again)
            left = self._worth_another(moved, again)
        return _uploaded(files, results, by_name, round(time.monotonic() - begun, 3))

    def _store(
        self, files: Sequence[ProducedFile], by_name: Mapping[str, OutputDestination]
    ) -> dict[str, StageOutResult]:
        """Store files where they are to go; a result for each name."""
        outputs = [_output(file, by_name.get(file.record.name)) for file in files]
        if self._credentials is not None:
            self._credentials.writes(self._job_id, [place.url for output in outputs for place in output.destinations])
        client = StageOutClient(self._tools, order=self._order, cancel=self._cancel, deadline_s=self._deadline_s())
        return {file.record.name: result for file, result in zip(files, client.stage_out(outputs))}

    def _worth_another(
        self, files: Sequence[ProducedFile], results: Mapping[str, StageOutResult]
    ) -> list[ProducedFile]:
        """What another storage may take: the file itself is in order, and there is time."""
        if self._cancel.is_set() or (left_s := self._time_left_s()) is not None and left_s <= 0:
            return []
        found = []
        for file in files:
            result = results[file.record.name]
            if not result.ok and result.error is not None and result.error.code not in LOCAL:
                found.append(file)
        return found

    def _take_back(self, place: OutputDestination) -> None:
        """Remove what a storage may have all the same: nobody will look for it there."""
        for error in self.remove(place.urls[:1]):
            logger.warning("%s may be left on %s: %s", place.name, place.storage, error)

    def remove(self, urls: Sequence[str]) -> list[PilotageError]:
        """Remove uploaded files; answers what went wrong."""
        if self._credentials is not None:
            self._credentials.writes(self._job_id, urls)
        client = StageOutClient(self._tools, cancel=self._cancel)
        return [error for error in client.remove(urls) if error is not None]


def _uploaded(
    files: Sequence[ProducedFile],
    results: Mapping[str, StageOutResult],
    by_name: Mapping[str, OutputDestination],
    seconds: float,
) -> Uploaded:
    uploaded = []
    failure: Optional[Failure] = None
    for file in files:
        result = results[file.record.name]
        if result.ok and result.url is not None:
            uploaded.append(UploadedOutput(by_name[file.record.name].did, result.url))
        elif not file.is_log and failure is None:
            failure = _failure(result.error or PilotageError(ErrorCode.STAGE_OUT_FAILED, file.record.name))
    size = sum(result.size or 0 for result in results.values() if result.ok)
    return Uploaded(tuple(uploaded), failure, seconds, size)


def tool_order(queue: Queue) -> dict[Activity, Sequence[str]]:
    """The copytools of a queue for each activity, in their order; what is not named takes any that there is."""
    order = {activity: queue.copytools_for.get(activity) or queue.copytools for activity in Activity}
    return {activity: names for activity, names in order.items() if names}


def payload_place(url: str) -> str:
    """What a payload opens to read directly: a URL, or the path of a file on a mounted disk.

    XRootD's clients send a path as it stands, so theirs is decoded.

    >>> payload_place("file:///data/a%20b"), payload_place("root://host//data/a%20b")
    ('/data/a b', 'root://host//data/a b')
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return unquote(parts.path)
    return unquote(url) if parts.scheme in ("root", "roots", "xroot", "xroots") else url


def _covered(url: str, covers: Collection[str]) -> bool:
    return url in covers or any(each.endswith("/") and url.startswith(each) for each in covers)


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
    replicas = [Replica(each.storage, each.url, each.distance, each.activity) for each in file.replicas]
    return InputFile(file.did, file.size, file.checksum, replicas)


def _output(file: ProducedFile, destination: Optional[OutputDestination]) -> OutputFile:
    of = destination
    places = [] if of is None else [Destination(of.storage, url, of.activity) for url in of.urls]
    record = file.record
    return OutputFile(record.name, Path(file.path), record.size, record.checksum, places)


def _outcome(result: StageInResult) -> UnitOutcome:
    """Lost when every replica is missing or damaged; after any other failure another slot may have more luck."""
    lost = result.error is not None and result.error.code in BAD_REPLICA
    return UnitOutcome.LOST if lost else UnitOutcome.RETURNED


def _failure(error: PilotageError) -> Failure:
    return Failure(error.code, error.detail)
