"""Why a payload failed: each row of the table of messages, signals, memory, cores, and what a payload reports itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Optional

import pytest

from common.errors import ErrorCode, PilotageError
from pilot.payload.diagnosis import Ending, core_dumps, diagnose, is_core_dump
from pilot.payload.jobreport import MAX_SIZE, NAME, PayloadReport, read_job_report
from pilot.payload.messages import KNOWN, KnownMessage, Stream, known_message
from pilot.payload.oom import OutOfMemoryKills
from pilot.supervised import PayloadEnd, SideEnd


def failed(code: Optional[int] = 1, signal: Optional[str] = None, **more: Any) -> PayloadEnd:
    error = ErrorCode.KILL_SIGNAL if signal else ErrorCode.PAYLOAD_FAILED
    words = f"the payload was ended by {signal}" if signal else f"the payload ended with exit code {code}"
    return PayloadEnd(exit_code=None if signal else code, signal=signal, **{"error": error, "detail": words, **more})


def why(end: PayloadEnd, **more: Any) -> PilotageError:
    found = diagnose(Ending(end, **more))
    assert found is not None
    return found


# ---------------------------------------------------------------- known messages


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: f"{row.code.name} {row.example[:30]}")
def test_each_row_finds_its_example_first(row: KnownMessage) -> None:
    text = f"some line\n{row.example}\nanother line\n"
    streams = {"stdout": "", "stderr": text} if row.stream is not Stream.STDOUT else {"stdout": text, "stderr": ""}
    assert known_message(**streams) == (row.code, row.example)


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.example[:30])
def test_a_payload_that_ended_well_may_say_anything(row: KnownMessage) -> None:
    assert diagnose(Ending(PayloadEnd(exit_code=0), stdout=row.example, stderr=row.example)) is None


@pytest.mark.parametrize(
    "line",
    [
        "file not found in catalogue, trying the next",
        "INFO: memory is fine",
        "processed 10 events",
        "error: could not converge",
        "Found 3 muons",
    ],
)
def test_ordinary_lines_mean_nothing(line: str) -> None:
    assert known_message(line, line) is None


def test_the_error_names_the_line_and_the_exit_code_stays() -> None:
    found = why(failed(7), stderr="x\nterminate called after throwing an instance of 'std::bad_alloc'\n")
    assert found.code is ErrorCode.OUT_OF_MEMORY
    assert found.detail.startswith("the payload ended with exit code 7: terminate called")


def test_rows_of_a_plug_in_come_first_and_a_row_that_misses_its_example_is_refused() -> None:
    row = KnownMessage(r"conditions .* timed out", ErrorCode.SERVICE_UNAVAILABLE, "conditions DB timed out")
    ending = Ending(failed(), stderr="conditions DB timed out\nMemoryError\n")
    found = diagnose(ending, [row])
    assert found is not None and found.code is ErrorCode.SERVICE_UNAVAILABLE
    with pytest.raises(ValueError, match="does not find its own example"):
        KnownMessage(r"abc", ErrorCode.GENERAL_ERROR, "xyz")
    with pytest.raises(ValueError, match="no regular expression"):
        KnownMessage(r"(", ErrorCode.GENERAL_ERROR, "xyz")


def test_a_line_of_a_megabyte_is_searched_in_no_time() -> None:
    assert known_message("", "fork" * 250_000) is None


# ---------------------------------------------------------------- signals, memory, cores


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (139, ErrorCode.SIGSEGV),
        (135, ErrorCode.SIGBUS),
        (152, ErrorCode.SIGXCPU),
        (134, ErrorCode.KILL_SIGNAL),
        (137, ErrorCode.KILL_SIGNAL),
        (130, ErrorCode.PAYLOAD_FAILED),
        (200, ErrorCode.PAYLOAD_FAILED),
        (255, ErrorCode.PAYLOAD_FAILED),
    ],
)
def test_a_shells_exit_code_tells_of_the_signal_of_its_program(code: int, error: ErrorCode) -> None:
    found = why(failed(code))
    assert found.code is error and f"exit code {code}" in found.detail


@pytest.mark.parametrize("end", [failed(signal="SIGKILL"), failed(137)])
def test_killed_by_the_kernel_is_out_of_memory(end: PayloadEnd) -> None:
    assert why(end, oom_kills=1).code is ErrorCode.OUT_OF_MEMORY
    assert why(end).code is ErrorCode.KILL_SIGNAL


def test_an_oom_kill_of_a_neighbour_is_not_ours() -> None:
    assert why(failed(1), oom_kills=3).code is ErrorCode.PAYLOAD_FAILED
    assert why(failed(139), oom_kills=3).code is ErrorCode.SIGSEGV


def test_a_signal_that_has_no_number_of_its_own_and_dumped_core() -> None:
    found = why(failed(signal="SIGABRT", core=True), cores=["core.12"])
    assert found.code is ErrorCode.CORE_DUMP and found.detail.endswith("core dumped: core.12")
    assert why(failed(signal="SIGSEGV", core=True, error=ErrorCode.SIGSEGV)).detail.endswith("core dumped")


def test_what_failed_around_the_payload_stays_the_cause() -> None:
    end = failed(error=ErrorCode.PREPROCESS_FAILED, detail="the process before-1 ended with exit code 1")
    assert why(end, stderr="MemoryError").code is ErrorCode.PREPROCESS_FAILED


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("core", True), ("core.123", True), ("core.prog.12", True), ("core.root", False), ("hardcore", False)],
)
def test_what_a_core_dump_is_called(name: str, is_one: bool) -> None:
    assert is_core_dump(name) is is_one


def test_cores_are_regular_files_and_no_links(tmp_path: Path) -> None:
    (tmp_path / "core.1").write_bytes(b"\0")
    (tmp_path / "core.2").symlink_to("core.1")
    (tmp_path / "core").mkdir()
    assert core_dumps(tmp_path) == ["core.1"]
    assert core_dumps(tmp_path / "no") == []


@pytest.mark.parametrize(
    ("group", "mount", "counter"),
    [
        ("0::/batch/job", "sys/fs/cgroup/batch/job", "memory.events"),
        ("0::/not/seen/from/here", "sys/fs/cgroup", "memory.events"),
        ("4:cpu,memory:/job", "sys/fs/cgroup/memory/job", "memory.oom_control"),
    ],
)
def test_the_kernels_kills_are_counted_from_now_on(tmp_path: Path, group: str, mount: str, counter: str) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    (tmp_path / mount).mkdir(parents=True)
    (tmp_path / mount / counter).write_text("low 0\noom_kill 2\n")
    kills = OutOfMemoryKills(tmp_path)
    assert kills.since() == 0
    (tmp_path / mount / counter).write_text("low 0\noom_kill 3\n")
    assert kills.since() == 1


def test_a_kernel_that_does_not_say_counts_nothing(tmp_path: Path) -> None:
    assert OutOfMemoryKills(tmp_path).since() == 0


# ---------------------------------------------------------------- jobReport.json


def report(folder: Path, said: Any) -> Optional[PayloadReport]:
    (folder / NAME).write_text(said if isinstance(said, str) else json.dumps(said))
    return read_job_report(folder)


FULL = {
    "exitCode": 65,
    "exitAcronym": "TRF_EXEC_FAIL",
    "exitMsg": "Non-zero return code\nfrom step",
    "files": {
        "output": [
            {"argName": "outputHITSFile", "subFiles": [{"name": "a.root", "nentries": 100, "file_guid": "9-AB"}]},
            {"name": "sub/b.root", "nentries": "many", "file_size": 5},
            {"subFiles": [{"nentries": 3}, 7]},
        ]
    },
    "resource": {"executor": {"sim": {"nevents": 90}, "digi": {"nevents": 100}, "bad": []}},
}


def test_a_report_is_read(tmp_path: Path) -> None:
    found = report(tmp_path, FULL)
    assert found is not None
    assert (found.exit_code, found.acronym, found.events) == (65, "TRF_EXEC_FAIL", 100)
    assert found.message == "Non-zero return code from step"
    assert found.files == {"a.root": {"events": 100, "guid": "9-AB"}, "b.root": {}}
    whole = report(tmp_path, {"resource": {"transform": {"processedEvents": 7}, "executor": {"a": {"nevents": 9}}}})
    assert whole is not None and whole.events == 7


def test_there_may_be_none(tmp_path: Path) -> None:
    assert read_job_report(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"exitCode": "0", "files": 7, "resource": []}',
        '{"exitCode": 1e400}',
        "9" * 3_000_000,
    ],
)
def test_nonsense_does_no_harm(tmp_path: Path, text: str) -> None:
    found = report(tmp_path, text)
    assert found is not None and found.exit_code is None and found.files == {}


def test_a_link_or_a_monster_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(json.dumps(FULL))
    (tmp_path / NAME).symlink_to("secret")
    linked = read_job_report(tmp_path)
    assert linked is not None and linked.exit_code is None and "is a link" in linked.problems[0]
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).touch()
    os.truncate(tmp_path / NAME, MAX_SIZE + 1)
    huge = read_job_report(tmp_path)
    assert huge is not None and "longer than" in huge.problems[0]


def test_a_payload_whose_report_says_that_it_failed_has_failed(tmp_path: Path) -> None:
    found = why(PayloadEnd(exit_code=0), report=report(tmp_path, FULL))
    assert found.code is ErrorCode.PAYLOAD_FAILED
    assert "exit code 0, but its jobReport.json says 65 (TRF_EXEC_FAIL: Non-zero return code from step)" in found.detail
    assert diagnose(Ending(PayloadEnd(exit_code=0), report=report(tmp_path, {"exitCode": 0}))) is None


def test_the_reports_words_are_part_of_the_detail(tmp_path: Path) -> None:
    found = why(failed(65), report=report(tmp_path, FULL))
    assert found.detail == (
        "the payload ended with exit code 65; jobReport.json says TRF_EXEC_FAIL: Non-zero return code from step"
    )


def test_the_words_of_a_process_around_the_payload() -> None:
    assert SideEnd("a", problem="no such file").words == "could not be started: no such file"
    assert SideEnd("a", signal="SIGKILL", timed_out=True).words == "ran out of its time and was ended by SIGKILL"
