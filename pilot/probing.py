"""What a probe job does in place of a payload: it tries the node's software and every storage, and says what works.

Nothing here is a user's: the pilot itself copies, with the copytools, the order and the credentials that jobs get. A
storage that fails or hangs costs the others nothing.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from msgspec import structs

from common.checksums import file_checksum
from common.errors import ErrorCode, PilotageError
from common.wire import (
    Activity,
    KnownReplica,
    ProbeFinding,
    ProbeLevel,
    ProbeOrder,
    ProbeOutcome,
    ProbeReport,
    ProbeTarget,
    Queue,
    StorageProbe,
)
from pilot.config import PilotConfig
from pilot.container.host import Finding
from pilot.copytool import Copytool
from pilot.doctor import Patient, examine
from pilot.probe.checks import check_gpus
from pilot.staging import Destination, InputFile, OutputFile, Replica, StageInClient, StageOutClient
from pilot.staging_rounds import BAD_REPLICA
from pilot.transfers import JobCredentials

logger = logging.getLogger(__name__)

AT_A_TIME = 4
"""Storages that are tried side by side."""
GRACE_S = 10.0
"""How long after its time a storage may take to give up; then it is left behind."""
START_S = 1.0
"""The first storages are begun in this time, however little there is for all."""
MOST_WORDS = 1000
MB = 1e6
NOT_LOOKED_AT = ProbeFinding(
    "node", ProbeLevel.ERROR, "no look at the node came back in time", "run pilotage pilot doctor there"
)


@dataclass(frozen=True)
class Ground:
    """Where a probe works. ``folder`` is the job's own, ``environ`` the pilot's."""

    config: PilotConfig
    server_url: str
    queue: Queue
    environ: Mapping[str, str]
    folder: Path
    job_id: int
    tools: Sequence[Copytool]
    tool_order: Mapping[Activity, Sequence[str]]
    credentials: Optional[JobCredentials] = None


@dataclass
class _Try:
    """One storage at work. ``late``: its time was over. Both outcomes are filled in by its own thread."""

    target: ProbeTarget
    ends: float
    cancel: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    late: bool = False
    read: Optional[ProbeOutcome] = None
    write: Optional[ProbeOutcome] = None

    @property
    def left_s(self) -> float:
        """Until its time is over."""
        return max(0.0, self.ends - time.monotonic())

    def told(self) -> StorageProbe:
        """What is known of it now; what hangs has failed."""
        read, write = self.read, self.write
        if not self.over.is_set():
            hung = "nothing came back, and it did not even give up"
            if write is None and self.target.write:
                write = ProbeOutcome(False, int(ErrorCode.STAGE_OUT_TIMEOUT), hung)
            elif read is None:
                read = ProbeOutcome(False, int(ErrorCode.STAGE_IN_TIMEOUT), hung)
        return StorageProbe(storage=self.target.storage, read=read, write=write)


class Probing:
    """One probe. :meth:`run` it once; :meth:`kill` may be called from any thread."""

    def __init__(self, order: ProbeOrder, ground: Ground, note: Callable[[str], None]) -> None:
        self._order = order
        self._ground = ground
        self._note = note
        self._lock = threading.Lock()
        self._waiting = deque(order.storages)
        self._tries: list[_Try] = []
        self._killed = threading.Event()
        self._looked = threading.Event()
        self._environment: list[ProbeFinding] = []

    def kill(self) -> None:
        """Give up within seconds: :meth:`run` answers what is known by then."""
        with self._lock:
            self._killed.set()
            self._looked.set()
            self._waiting.clear()
            for each in self._tries:
                each.cancel.set()

    def run(self) -> ProbeReport:
        """Try everything, each storage in its time and all in theirs; what there was no time for is not in the report."""
        order = self._order
        # Each has all of its time, or is not begun: what is cut short is not the storage's fault.
        latest = time.monotonic() + max(START_S, order.total_s - order.storage_s)
        self._tell_credentials()
        looking = threading.Thread(target=self._look, name="probe-environment", daemon=True)
        looking.start()
        lanes = [
            threading.Thread(target=self._lane, args=(latest,), name=f"probe-{number}", daemon=True)
            for number in range(min(AT_A_TIME, len(self._order.storages)))
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        self._looked.wait(max(GRACE_S, latest + order.storage_s - time.monotonic()))
        with self._lock:
            found = [each.told() for each in self._tries]
            left = [each.storage for each in self._waiting]
            environment = list(self._environment) or [NOT_LOOKED_AT]
        for storage in left:
            self._note(f"probe: there was no time for storage {storage}")
        for told in found:
            self._note(f"probe: {told.storage}: {_words('write', told.write)}, {_words('read', told.read)}")
        return ProbeReport(sorted(found, key=lambda each: each.storage), environment)

    def _tell_credentials(self) -> None:
        credentials, job_id = self._ground.credentials, self._ground.job_id
        if credentials is None:
            return
        for target in self._order.storages:
            if target.write:
                credentials.writes(job_id, [*target.write, *target.read, *target.leftovers])
            if target.test is not None:
                credentials.reads(job_id, target.test.urls)

    # ------------------------------------------------------------ the node

    def _look(self) -> None:
        try:
            self._examine()
        finally:
            self._looked.set()

    def _examine(self) -> None:
        """The looks that ``pilotage pilot doctor`` takes, with the queue's own demands."""
        ground, order = self._ground, self._order
        address = ground.server_url if ground.server_url.startswith(("http://", "https://")) else None
        config = structs.replace(ground.config, server_url=address)
        try:
            found = examine(Patient(config, ground.environ, ground.queue, order.cvmfs))
        except (OSError, PilotageError) as error:
            self._note(f"probe: the node cannot be looked at: {error}")
            self._found([ProbeFinding("node", ProbeLevel.ERROR, f"{error}"[:MOST_WORDS])])
            return
        findings = found.findings
        if order.gpus:
            gpus = check_gpus(found.slot.gpus, order.gpus)
            findings = [each for each in findings if each.name != gpus.name] + [gpus]
        self._found([_finding(each) for each in findings])

    def _found(self, findings: Sequence[ProbeFinding]) -> None:
        with self._lock:
            self._environment = [*findings][:200]

    # ------------------------------------------------------------ the storages

    def _lane(self, latest: float) -> None:
        """One storage after another, none begun after ``latest``."""
        while True:
            with self._lock:
                if not self._waiting or time.monotonic() > latest:
                    return
                target = self._waiting.popleft()
                attempt = _Try(target, time.monotonic() + self._order.storage_s)
                self._tries.append(attempt)
            name = f"probe-{target.storage}"
            threading.Thread(target=self._try, args=(attempt,), name=name, daemon=True).start()
            if not attempt.over.wait(attempt.left_s):
                attempt.late = True
                attempt.cancel.set()
                attempt.over.wait(GRACE_S)

    def _try(self, attempt: _Try) -> None:
        """Write, read back, compare, remove; then read the storage's own file."""
        try:
            _Storage(self._ground, attempt, self._order.file_bytes).try_all()
        except PilotageError as error:
            self._note(f"probe: {attempt.target.storage}: {error}")
        finally:
            attempt.over.set()


class _Storage:
    """The tries at one storage."""

    def __init__(self, ground: Ground, attempt: _Try, file_bytes: int) -> None:
        self._attempt = attempt
        self._target = attempt.target
        self._bytes = file_bytes
        self._ground = ground
        self._folder = ground.folder / f"probe-{secrets.token_hex(4)}"

    def try_all(self) -> None:
        """Everything that the order names. Raises PilotageError when the node's own disk is at fault."""
        target, attempt = self._target, self._attempt
        if target.write:
            source = self._make_file()
            attempt.write = self._write(source)
            if target.read:
                attempt.read = self._read_back(source, attempt.write)
            self._remove_all()
        if target.test is not None and (attempt.read is None or attempt.read.ok):
            tested = self._read_test(target.test)
            # What was read back is larger than most test files, and says more of the speed.
            attempt.read = attempt.read if attempt.read is not None and tested.ok else tested

    def _make_file(self) -> Path:
        path = self._folder / "written"
        try:
            self._folder.mkdir()
            path.write_bytes(os.urandom(self._bytes))
        except OSError as error:
            raise PilotageError(ErrorCode.FILE_HANDLING_FAILED, f"{path}: {error.strerror or error}") from error
        return path

    def _out(self) -> StageOutClient:
        return StageOutClient(
            self._ground.tools,
            order=self._ground.tool_order,
            cancel=self._attempt.cancel,
            attempts_per_replica=1,
            deadline_s=self._attempt.left_s,
        )

    def _write(self, source: Path) -> ProbeOutcome:
        target = self._target
        places = [Destination(target.storage, url, target.write_activity) for url in target.write]
        result = self._out().stage_out([OutputFile(source.name, source, None, None, places)])[0]
        return self._outcome(result.error, result.seconds, result.size or 0, ErrorCode.STAGE_OUT_TIMEOUT)

    def _read_back(self, source: Path, written: ProbeOutcome) -> Optional[ProbeOutcome]:
        """What was written, as it was written. Where nothing was, a file that is merely not there says nothing of reading."""
        size, checksum = source.stat().st_size, str(file_checksum(source))
        outcome, code = self._read(KnownReplica(self._target.read, size, checksum), "written")
        return None if not written.ok and code in BAD_REPLICA else outcome

    def _read_test(self, known: KnownReplica) -> ProbeOutcome:
        return self._read(known, "known")[0]

    def _read(self, known: KnownReplica, name: str) -> tuple[ProbeOutcome, Optional[ErrorCode]]:
        target = self._target
        replicas = [Replica(target.storage, url, 0, target.read_activity) for url in known.urls]
        client = StageInClient(
            self._ground.tools,
            order=self._ground.tool_order,
            cancel=self._attempt.cancel,
            attempts_per_replica=1,
            deadline_s=self._attempt.left_s,
        )
        file = InputFile(f"probe:{name}", known.size, known.checksum, replicas)
        result = client.stage_in([file], self._folder / f"read-{name}")[0]
        outcome = self._outcome(result.error, result.seconds, result.bytes, ErrorCode.STAGE_IN_TIMEOUT)
        return outcome, None if result.error is None else result.error.code

    def _remove_all(self) -> None:
        """The file, and what earlier probes left. What cannot be removed again fills the storage: that is a failure."""
        attempt, target = self._attempt, self._target
        errors = self._out().remove([*target.write[:1], *target.leftovers])
        if errors[0] is not None and attempt.write is not None and attempt.write.ok:
            detail = f"written, but it cannot be removed: {errors[0].detail}"[:MOST_WORDS]
            attempt.write = structs.replace(
                attempt.write, ok=False, error_code=int(errors[0].code), error_detail=detail
            )

    def _outcome(self, error: Optional[PilotageError], seconds: float, size: int, late: ErrorCode) -> ProbeOutcome:
        if error is None:
            return ProbeOutcome(True, None, "", round(seconds, 3), round(size / MB / max(seconds, 1e-6), 6))
        code, detail = error.code, error.detail
        if self._attempt.late or self._attempt.left_s <= 0:
            code, detail = late, f"not done in the time that a probe has for a storage: {detail}"
        return ProbeOutcome(False, int(code), detail[:MOST_WORDS], round(seconds, 3))


def _finding(found: Finding) -> ProbeFinding:
    level = ProbeLevel(found.level.value)
    return ProbeFinding(found.name[:600], level, found.detail[:MOST_WORDS], found.remedy[:MOST_WORDS])


def _words(what: str, outcome: Optional[ProbeOutcome]) -> str:
    if outcome is None:
        return f"{what} not tried"
    if outcome.ok:
        return f"{what} ok in {outcome.seconds:.2f} s"
    return f"{what} failed: {outcome.error_code} {outcome.error_detail}"
