"""The public staging API: bring a job's input to its folder, and its output to storages.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> (folder / "store").mkdir()
>>> _ = (folder / "store" / "hits.root").write_bytes(b"Wikipedia")
>>> client = StageInClient(["xrootd", "file"])
>>> hits = InputFile(
...     did="test:hits.root",
...     size=9,
...     checksum="adler32:11e60398",
...     replicas=[Replica("NEAR", f"{folder}/gone/hits.root", 0), Replica("FAR", f"{folder}/store/hits.root", 5)],
... )
>>> result = client.stage_in([hits], into=folder / "job")[0]
>>> result.ok, result.path.read_bytes(), result.storage
(True, b'Wikipedia', 'FAR')
>>> [(bad.storage, bad.code.name) for bad in result.bad_replicas]
[('NEAR', 'NO_SUCH_FILE')]

>>> histogram = folder / "job" / "histogram.root"
>>> _ = histogram.write_bytes(b"counts")
>>> output = OutputFile("histogram.root", histogram, None, None, [Destination("FAR", f"file://{folder}/store/h.root")])
>>> result = StageOutClient(["file"]).stage_out([output])[0]
>>> result.ok, result.size, result.checksum
(True, 6, 'adler32:08fc029d')
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Union

from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from common.quantities import format_size
from common.wire import Activity
from pilot.copytool import Copytool, TransferOutcome, TransferRequest, transfer_timeout
from pilot.copytool.base import Direction, local_error, make_local_folder, open_output, safe_url
from pilot.staging_names import local_names
from pilot.staging_rounds import LOCAL, Backoff, BadReplica, Candidate, Rounds, Toolbox, Trail

__all__ = [
    "Activity",
    "Backoff",
    "BadReplica",
    "Destination",
    "InputFile",
    "OutputFile",
    "Replica",
    "StageInClient",
    "StageInResult",
    "StageOutClient",
    "StageOutResult",
]

log = logging.getLogger(__name__)

#: Replicas farther than this are never used (distance 101 means never).
FARTHEST = 100

#: Errors of a replica that is not there, as opposed to damaged.
MISSING = frozenset({ErrorCode.NO_SUCH_FILE, ErrorCode.MISSING_INPUT})


@dataclass(frozen=True)
class Replica:
    """A copy of an input file: its storage's name, its URL and its distance (0 same site … 100 far); ``activity`` as it
    is for the order of copytools."""

    storage: str
    url: str
    distance: int = 0
    activity: Optional[Activity] = None


@dataclass(frozen=True)
class InputFile:
    """A file that a job reads: ``size`` in bytes and ``checksum`` (``adler32:0a1b2c3d``) where they are known."""

    did: str
    size: Optional[int]
    checksum: Optional[str]
    replicas: Sequence[Replica]


@dataclass(frozen=True)
class Destination:
    """A place for an output file: the storage's name and the file's URL there; ``activity`` as for a replica."""

    storage: str
    url: str
    activity: Optional[Activity] = None


@dataclass(frozen=True)
class OutputFile:
    """A file that a job wrote: ``size`` and ``checksum`` are computed when absent; destinations in order of choice."""

    name: str
    path: Path
    size: Optional[int]
    checksum: Optional[str]
    destinations: Sequence[Destination]


@dataclass(frozen=True)
class StageInResult:
    """What became of one input file.

    ``path`` is set when ``ok``; ``storage`` names the replica's; ``bytes`` are those fetched, in ``seconds`` all
    tries together. ``error`` is 1103 or 1171 (or 1145 for md5) when all replicas are missing or damaged, 1099 when
    a transfer failed otherwise, 1100 when there is no replica or no protocol for one, 1098 when the disk is full.
    """

    file: InputFile
    ok: bool
    path: Optional[Path] = None
    storage: Optional[str] = None
    error: Optional[PilotageError] = None
    seconds: float = 0.0
    bytes: int = 0
    bad_replicas: tuple[BadReplica, ...] = ()


@dataclass(frozen=True)
class StageOutResult:
    """What became of one output file: where it lies, with its size in bytes and checksum, or the error.

    ``error`` is that of the destinations when they agree, else 1137; 1133 when there is no destination, 1313 when no
    copytool speaks to one, 1165 or 1411 when the output is missing or no regular file.
    """

    file: OutputFile
    ok: bool
    storage: Optional[str] = None
    url: Optional[str] = None
    size: Optional[int] = None
    checksum: Optional[str] = None
    error: Optional[PilotageError] = None
    seconds: float = 0.0


class _Client:
    """What both directions share.

    ``copytools`` are names, or tools made with options, in order of choice; for an activity that is among the keys of
    ``order`` only those that it names, in its order. ``max_parallel`` files are transferred
    at a time. Each place is tried up to ``attempts_per_replica`` times, with ``backoff`` between the rounds, all within
    ``deadline_s`` seconds from the call. ``cancel`` ends everything within seconds. ``clock`` gives monotonic seconds.

    Raises :class:`PilotageError` ``UNKNOWN_COPYTOOL`` for a copytool that there is not.
    """

    def __init__(
        self,
        copytools: Sequence[Union[str, Copytool]],
        *,
        order: Optional[Mapping[Activity, Sequence[str]]] = None,
        max_parallel: int = 4,
        cancel: Optional[threading.Event] = None,
        attempts_per_replica: int = 2,
        backoff: Optional[Backoff] = None,
        deadline_s: float = 6 * 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_parallel < 1 or attempts_per_replica < 1:
            raise ValueError(f"max_parallel and attempts are {max_parallel}, {attempts_per_replica}: give 1 or more")
        self._tools = Toolbox(copytools)
        self._order = dict(order or {})
        self._max_parallel = max_parallel
        self._cancel = cancel or threading.Event()
        self._attempts = attempts_per_replica
        self._backoff = backoff or Backoff()
        self._deadline_s = deadline_s
        self._clock = clock

    def _rounds(self, deadline: float) -> Rounds:
        return Rounds(self._attempts, self._backoff, self._cancel, deadline, self._clock)

    def _candidates(self, places: Sequence[Union[Replica, Destination]]) -> tuple[list[Candidate], list[PilotageError]]:
        """Give every tool for every place, in order, and why places have none."""
        found: list[Candidate] = []
        problems: list[PilotageError] = []
        for place in places:
            try:
                tools = self._tools.for_url(place.url, self._order.get(place.activity) if place.activity else None)
            except PilotageError as error:
                problems.append(error)
                continue
            if not tools:
                problems.append(
                    PilotageError(
                        ErrorCode.NO_STORAGE_PROTOCOL, f"no copytool of {self._tools} speaks {safe_url(place.url)}"
                    )
                )
            found += [Candidate(tool, place.storage, place.url) for tool in tools]
        return found, problems

    def _unfinished(self, direction: Direction) -> PilotageError:
        """Give the error of a file that was not even tried to the end."""
        why = "cancelled" if self._cancel.is_set() else f"not done within the deadline of {self._deadline_s:.0f} s"
        return PilotageError(direction.failed, why)


def _log_transfer(direction: Direction, label: str, storage: str, outcome: TransferOutcome) -> None:
    size = outcome.size or 0
    rate = format_size(round(size / max(outcome.seconds, 1e-6)))
    log.info(
        "%s of %s, %s: %s in %.2f s (%s/s)", direction.value, label, storage, format_size(size), outcome.seconds, rate
    )


class StageInClient(_Client):
    """Brings input files to a job's folder."""

    def stage_in(self, files: Sequence[InputFile], into: Path) -> list[StageInResult]:
        """Fetch files into the folder ``into``, which is made when missing; a result for each, in order.

        Replicas are tried nearest first, each with every copytool that speaks its protocol. A missing or damaged one
        is reported in ``bad_replicas`` and not tried again; transient errors are tried again after a wait. A file
        lies in ``into`` under the name of its DID; when another scope's file of that name comes first in the list,
        in the sub-folder named by its scope. Nothing is fetched when the disk has no room for all.
        """
        deadline = self._clock() + self._deadline_s
        places = local_names([file.did for file in files])
        wanted: dict[str, tuple[InputFile, Path]] = {}
        results: dict[str, StageInResult] = {}
        for file, place in zip(files, places):
            if isinstance(place, PilotageError):
                results[file.did] = StageInResult(file, False, error=place)
            else:
                wanted.setdefault(file.did, (file, into / place))
        problem = self._no_room([file for file, _ in wanted.values()], into)
        if problem is not None:
            results.update({did: StageInResult(file, False, error=problem) for did, (file, _) in wanted.items()})
        else:
            with ThreadPoolExecutor(self._max_parallel, "stage-in") as pool:
                fetched = pool.map(lambda item: self._fetch(item[0], item[1], deadline), wanted.values())
                results.update(zip(wanted, fetched))
        return [replace(results[file.did], file=file) for file in files]

    def _no_room(self, files: Sequence[InputFile], into: Path) -> Optional[PilotageError]:
        """Make the folder and compare the files' sizes with the free space; give the error when either fails."""
        try:
            make_local_folder(into)
            free = shutil.disk_usage(into).free
        except PilotageError as error:
            return error
        except OSError as error:
            return local_error(error, str(into))
        needed = sum(file.size or 0 for file in files if not self._links(file))
        if needed <= free:
            return None
        return PilotageError(
            ErrorCode.NO_LOCAL_SPACE,
            f"{into}: the input needs {format_size(needed)}, but only {format_size(free)} are free",
        )

    def _links(self, file: InputFile) -> bool:
        """Say whether the first way to get a file leaves its data where it is."""
        candidates, _ = self._candidates(_nearest_first(file))
        return bool(candidates) and candidates[0].tool.links_input

    def _fetch(self, file: InputFile, path: Path, deadline: float) -> StageInResult:
        begun = self._clock()
        replicas = _nearest_first(file)
        candidates, problems = self._candidates(replicas)
        if not candidates:
            detail = "; ".join(error.detail for error in problems) or "no replica is known, or all are too far"
            missing = PilotageError(ErrorCode.REPLICA_NOT_FOUND, f"{file.did}: {detail}")
            return StageInResult(file, False, error=missing)
        rounds = self._rounds(deadline)

        def transfer(candidate: Candidate) -> TransferOutcome:
            timeout_s = min(transfer_timeout(file.size), rounds.time_left)
            request = TransferRequest(candidate.url, path, file.size, file.checksum, file.did, timeout_s)
            return candidate.tool.copy_in([request], cancel=self._cancel)[0]

        trail = rounds.run(candidates, transfer)
        seconds = self._clock() - begun
        if trail.outcome is None or trail.winner is None:
            error = self._error(file, trail)
            return StageInResult(file, False, error=error, seconds=seconds, bad_replicas=trail.bad_replicas)
        _log_transfer(Direction.IN, file.did, trail.winner.storage, trail.outcome)
        return StageInResult(
            file,
            True,
            path=path,
            storage=trail.winner.storage,
            seconds=seconds,
            bytes=trail.outcome.size or 0,
            bad_replicas=trail.bad_replicas,
        )

    def _error(self, file: InputFile, trail: Trail) -> PilotageError:
        """Give the one error of a file that could not be had."""
        if not trail.errors:
            return self._unfinished(Direction.IN)
        last = trail.errors[-1][1]
        if last.code in LOCAL:
            return last
        bad = trail.bad_replicas
        code = ErrorCode.STAGE_IN_FAILED
        if {replica.url for replica in bad} >= {replica.url for replica in file.replicas}:
            damaged = [replica.code for replica in bad if replica.code not in MISSING]
            code = damaged[0] if damaged else ErrorCode.NO_SUCH_FILE
        error = PilotageError(code, f"{file.did}: {trail.summary()}")
        error.__cause__ = last
        return error


class StageOutClient(_Client):
    """Brings a job's output files to storages."""

    def stage_out(self, files: Sequence[OutputFile]) -> list[StageOutResult]:
        """Store files, each at the first of its destinations that takes it; a result for each, in order.

        Size and adler32 are computed where absent, and verified at the destination. Another's file is never
        overwritten; the same file found there already is success. Transient errors are tried again after a wait.
        """
        deadline = self._clock() + self._deadline_s
        with ThreadPoolExecutor(self._max_parallel, "stage-out") as pool:
            return list(pool.map(lambda file: self._store(file, deadline), files))

    def remove(self, urls: Sequence[str]) -> list[Optional[PilotageError]]:
        """Remove files from storages, with the first copytool that can; ``None`` for each that is gone now."""
        return [self._remove(url) for url in urls]

    def _remove(self, url: str) -> Optional[PilotageError]:
        candidates, problems = self._candidates([Destination("", url)])
        error: Optional[PilotageError] = problems[0] if problems else None
        for candidate in candidates:
            error = candidate.tool.remove([url], cancel=self._cancel)[0]
            if error is None:
                return None
        return error

    def _store(self, file: OutputFile, deadline: float) -> StageOutResult:
        begun = self._clock()
        candidates, problems = self._candidates(file.destinations)
        if not candidates:
            error = problems[0] if problems else PilotageError(ErrorCode.NO_STORAGE, f"{file.name}: no destination")
            return StageOutResult(file, False, error=error)
        try:
            size, checksum = _measure(file)
        except PilotageError as failed:
            return StageOutResult(file, False, error=failed)
        rounds = self._rounds(deadline)

        def transfer(candidate: Candidate) -> TransferOutcome:
            timeout_s = min(transfer_timeout(size), rounds.time_left)
            request = TransferRequest(candidate.url, file.path, size, checksum, file.name, timeout_s)
            return candidate.tool.copy_out([request], cancel=self._cancel)[0]

        trail = rounds.run(candidates, transfer)
        seconds = self._clock() - begun
        if trail.outcome is None or trail.winner is None:
            return StageOutResult(file, False, error=self._error(file, trail), seconds=seconds)
        _log_transfer(Direction.OUT, file.name, trail.winner.storage, trail.outcome)
        return StageOutResult(
            file,
            True,
            storage=trail.winner.storage,
            url=trail.winner.url,
            size=trail.outcome.size,
            checksum=trail.outcome.checksum,
            seconds=seconds,
        )

    def _error(self, file: OutputFile, trail: Trail) -> PilotageError:
        """Give the one error of a file that no destination took."""
        if not trail.errors:
            return self._unfinished(Direction.OUT)
        last = trail.errors[-1][1]
        if last.code in LOCAL:
            return last
        codes = {error.code for _, error in trail.errors}
        code = last.code if len(codes) == 1 else ErrorCode.STAGE_OUT_FAILED
        error = PilotageError(code, f"{file.name}: {trail.summary()}")
        error.__cause__ = last
        return error


def _nearest_first(file: InputFile) -> list[Replica]:
    """Give the replicas that may be used at all, nearest first."""
    usable = [replica for replica in file.replicas if replica.distance <= FARTHEST]
    return sorted(usable, key=lambda replica: replica.distance)


def _measure(file: OutputFile) -> tuple[int, str]:
    """Give size in bytes and checksum of an output, computed where absent.

    Raises ``MISSING_OUTPUT``, ``OUTPUT_NOT_REGULAR`` or the error of the local disk.
    """
    descriptor = open_output(file.path)
    try:
        size = os.fstat(descriptor).st_size if file.size is None else file.size
        checksum = file.checksum or str(file_checksum(f"/proc/self/fd/{descriptor}"))
    except OSError as error:
        raise local_error(error, str(file.path)) from error
    finally:
        os.close(descriptor)
    return size, checksum
