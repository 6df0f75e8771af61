"""What a pilot keeps on disk: reports that wait, its token, and who it is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

from common.errors import ErrorCode, PilotageError
from common.states import JobState
from common.tokens import SecretFileError
from common.wire import FinishReply, FinishRequest, Metrics, UnitOutcome, UnitResult, UploadedOutput
from pilot.client import CallRefused, JobGone, NotAccepted, Server, ServerAway
from pilot.deliver import Courier, Delivery
from pilot.spool import Spool, SpooledReport
from pilot.workdir import WorkDir
from tests.unit.pilot_fakes import Connection, FakeServer


def entry(job_id: int = 1, pilot_id: int = 4) -> SpooledReport:
    report = FinishRequest(
        state=JobState.FINISHED,
        units=[UnitResult(1, UnitOutcome.PROCESSED)],
        outputs=[UploadedOutput("s:a", "file:///s/a")],
        metrics=Metrics(wall_s=1.5),
    )
    return SpooledReport(server="http://s", pilot_id=pilot_id, job_id=job_id, report=report, uploaded=report.outputs)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool.open(tmp_path / "spool")


def test_a_report_comes_back_as_it_was(spool: Spool) -> None:
    spool.put(entry(2))
    spool.put(entry(1))
    spool.put(entry(1))
    assert spool.reports() == [entry(1), entry(2)]
    spool.remove(4, 1)
    spool.remove(4, 1)
    assert spool.reports() == [entry(2)]


def test_what_is_spooled_is_for_its_owner_only(spool: Spool) -> None:
    spool.put(entry())
    spool.save_token(4, "secret-token")
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in spool.folder.iterdir()} == {0o600}
    assert spool.token(4) == "secret-token"


def test_half_a_report_does_not_hide_the_others(spool: Spool) -> None:
    spool.put(entry(1))
    (spool.folder / "4-2.json").write_text('{"server": "http://s"')
    assert spool.reports() == [entry(1)]
    assert (spool.folder / "4-2.json").exists()


def test_tokens_go_with_the_last_report_of_their_pilot(spool: Spool) -> None:
    spool.put(entry(1, pilot_id=4))
    spool.save_token(4, "a")
    spool.save_token(5, "b")
    spool.remove_idle_tokens()
    assert spool.token(4) == "a"
    with pytest.raises(SecretFileError):
        spool.token(5)


@pytest.mark.parametrize("kept", ["token", "report", "identity"])
def test_a_pilot_killed_while_it_wrote_once_left_a_part_with_its_token(tmp_path: Path, kept: str) -> None:
    """It is killed between the part and its name: the next pilot in the folder removes the part, and nothing else."""
    work = WorkDir(tmp_path / "work")
    work.spool.put(entry(1))
    work.spool.save_token(4, "a-token")
    work.identity("http://s", "mark")
    work.close()
    names = {path.name for path in work.root.rglob("*")}
    writes = {
        "token": "work.spool.save_token(4, 'another-token')",
        "report": "work.spool.put(SpooledReport(server='s', pilot_id=4, job_id=2, report=FinishRequest(state='failed')))",
        "identity": "work.identity('http://s', 'another mark')",
    }
    script = (
        "import os, signal, sys; from pathlib import Path; from common.wire import FinishRequest\n"
        "from pilot.spool import SpooledReport; from pilot.workdir import WorkDir\n"
        "work = WorkDir(Path(sys.argv[1]))\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n" + writes[kept]
    )
    done = subprocess.run([sys.executable, "-c", script, str(work.root)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len({path.name for path in work.root.rglob("*")} - names) == 1, "a part is there"
    following = WorkDir(work.root)
    assert {path.name for path in work.root.rglob("*")} == names
    assert (following.spool.reports(), following.spool.token(4)) == ([entry(1)], "a-token")
    following.close()


def test_a_spool_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(PilotageError) as failed:
        Spool.open(tmp_path / "spool")
    assert failed.value.code is ErrorCode.FILE_HANDLING_FAILED


# ---------------------------------------------------------------- delivery


class Answering(Connection):
    """A server that gives one answer to every final report."""

    def __init__(self, answer: Optional[Exception]) -> None:
        super().__init__(FakeServer(Path("/")))
        self._answer = answer

    def finish(self, job_id: int, request: FinishRequest) -> FinishReply:
        if self._answer is not None:
            raise self._answer
        return FinishReply(job_id, request.state)


@pytest.mark.parametrize(
    ("answer", "outcome", "kept", "removed"),
    [
        (None, Delivery.DELIVERED, False, []),
        (JobGone("lost"), Delivery.GONE, False, ["file:///s/a"]),
        (ServerAway("down"), Delivery.WAITING, True, []),
        (CallRefused(422, "no"), Delivery.REFUSED, False, []),
        (NotAccepted("401"), Delivery.REFUSED, False, []),
        (SecretFileError("no token"), Delivery.WAITING, True, []),
    ],
)
def test_delivery(spool: Spool, answer: Optional[Exception], outcome: Delivery, kept: bool, removed: list[str]) -> None:
    gone: list[str] = []

    def server_of(_entry: SpooledReport) -> Server:
        if isinstance(answer, SecretFileError):
            raise answer
        return Answering(answer)

    spool.put(entry())
    assert Courier(spool, server_of, gone.extend).deliver(entry()) is outcome
    assert (spool.reports() != [], gone) == (kept, removed)


# ---------------------------------------------------------------- the work dir


def test_two_pilots_cannot_share_a_folder(tmp_path: Path) -> None:
    first = WorkDir(tmp_path / "work")
    with pytest.raises(PilotageError, match="another pilot runs here") as failed:
        WorkDir(tmp_path / "work")
    assert failed.value.code is ErrorCode.BAD_CONFIGURATION
    first.close()
    WorkDir(tmp_path / "work").close()


def test_the_lock_is_not_inherited_by_payloads(tmp_path: Path) -> None:
    first = WorkDir(tmp_path / "work")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first.close()
    WorkDir(tmp_path / "work").close()
    child.communicate(b"\n")


def test_a_pilot_that_died_comes_back_as_itself(tmp_path: Path) -> None:
    work = WorkDir(tmp_path / "work")
    identity = work.identity("http://s", "mark")
    identity.request_id = "open-question"
    work.remember(identity)
    assert work.identity("http://s", "mark") == identity
    assert work.identity("http://s", "other").nonce != identity.nonce
    work.forget()
    again = work.identity("http://s", "mark")
    assert (again.nonce != identity.nonce, again.request_id) == (True, None)


def test_a_damaged_identity_makes_a_new_pilot(tmp_path: Path) -> None:
    work = WorkDir(tmp_path / "work")
    (tmp_path / "work" / "pilot.json").write_text("{")
    assert len(work.identity("http://s", "mark").nonce) == 32


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PilotageError, match="work_dir") as failed:
        WorkDir(tmp_path / "file" / "work")
    assert failed.value.code is ErrorCode.MKDIR_FAILED
