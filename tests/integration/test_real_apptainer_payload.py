"""Payloads in a real Apptainer, from the definition to the end of the last process."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from common.errors import ErrorCode, PilotageError
from common.wire import OutputPattern, ProcessWhen, SideProcess
from pilot.container import ContainerSettings, diagnose_container_failure
from pilot.outputs import collect_outputs
from pilot.payload import (
    GetFileReply,
    GetFileRequest,
    InputFile,
    JobFolder,
    Mailbox,
    PayloadDefinition,
    prepare_payload,
    read_processed,
)
from pilot.supervised import PayloadEnd, SupervisedProcess
from tests.services.apptainer import Apptainer

HOST = {"PATH": os.environ["PATH"], "X509_USER_PROXY": "/host/proxy", "LANG": "C.UTF-8"}


class Slot:
    """Runs jobs in the image, one folder each."""

    def __init__(self, scratch: Path, settings: ContainerSettings, image: Path) -> None:
        self.scratch = scratch
        self.settings = settings
        self.image = image

    def start(self, folder: JobFolder, **fields: Any) -> SupervisedProcess:
        definition = PayloadDefinition(**{"job_id": "1", "task_id": "2", "image": str(self.image), **fields})
        return SupervisedProcess.start(prepare_payload(folder, definition, HOST, self.settings))

    def run(self, folder: JobFolder, **fields: Any) -> PayloadEnd:
        return self.start(folder, **fields).wait(240)


@pytest.fixture
def slot(apptainer: Apptainer, busybox_image: Path, tmp_path: Path) -> Slot:
    return Slot(tmp_path, ContainerSettings(apptainer.binary), busybox_image)


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path, "1")


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        select.select([], [], [], 0.02)


def with_mark(mark: str) -> list[int]:
    """Living processes of the host that carry the payload's mark."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def diagnosis(end: PayloadEnd, folder: JobFolder) -> Optional[ErrorCode]:
    failure = diagnose_container_failure(end.exit_code, folder.stderr.read_text())
    return None if failure is None else failure.code


def test_real_apptainer_payload_sees_its_folders_and_environment_only(slot: Slot, folder: JobFolder) -> None:
    value = "a 'b' \"c\" $HOME `id` $(id) \\n, \nü"
    (folder.work / "in.dat").write_text("input")
    command = [
        "sh",
        "-c",
        'printf %s "$VALUE" > value; env | cut -d= -f1 > names; pwd; echo $HOME; cat "$1"; ls /',
        "sh",
    ]
    end = slot.run(
        folder,
        command=[*command, "{input}"],
        environment={"VALUE": value},
        inputs=[InputFile("s:in", str(folder.work / "in.dat"))],
    )
    assert end.ok, folder.stderr.read_text()
    out = folder.stdout.read_text().splitlines()
    assert out[:2] == [str(folder.work), str(folder.work)] and out[2].startswith("input")
    assert (folder.work / "value").read_text() == value
    names = (folder.work / "names").read_text().split()
    assert "X509_USER_PROXY" not in names and "PILOTAGE_JOB_ID" in names and "JUSTIN_PATH" in names


def test_real_apptainer_payload_may_write_only_where_it_should(slot: Slot, folder: JobFolder) -> None:
    script = "#!/bin/sh\nfor d in $PWD $TMPDIR $PILOTAGE_PATH ${PILOTAGE_PATH%/bin} /bin; do\n"
    script += " (echo x > $d/probe) 2>/dev/null && echo yes || echo no\ndone\n"
    slot.run(folder, jobscript=script)
    assert folder.stdout.read_text().split()[:3] == ["yes", "yes", "no"]
    assert (folder.work / "probe").exists() and (folder.tmp / "probe").exists()
    assert not (folder.root / "probe").exists() and not (folder.bin / "probe").exists()
    assert not (slot.image / "bin" / "probe").exists()


def test_real_apptainer_get_file_through_the_mailbox(slot: Slot, folder: JobFolder) -> None:
    files = iter(["s:a", "s:b", "s:c"])

    def handler(_request: GetFileRequest) -> GetFileReply:
        did = next(files, None)
        return GetFileReply.no_more() if did is None else GetFileReply.file(did, f"/data/{did}", "DISK")

    script = """#!/bin/sh
justin-get-file --seconds-needed 99999; echo "late $?"
while line=$($JUSTIN_PATH/justin-get-file --seconds-needed 5); do
  set -- $line
  echo "$1 $2 $3" >> out.txt
  echo $1 >> justin-processed-dids.txt
done
pilotage-get-file; echo "end $?"
echo '{"files": 3}' > out.txt.json
"""
    with Mailbox(folder.mailbox, handler, lambda: 3600.0):
        began = time.monotonic()
        end = slot.run(folder, jobscript=script)
        took = time.monotonic() - began
    assert end.ok, folder.stderr.read_text()
    assert folder.stdout.read_text() == "late 5\nend 1\n"
    assert (folder.work / "out.txt").read_text() == "s:a /data/s:a DISK\ns:b /data/s:b DISK\ns:c /data/s:c DISK\n"
    assert read_processed(folder.work).dids == ["s:a", "s:b", "s:c"]
    collected = collect_outputs(folder.work, [OutputPattern(pattern="out.*")])
    assert [(file.name, file.attributes) for file in collected.files] == [("out.txt", {"files": 3})]
    assert took < 60  # six calls, each of milliseconds, and a container's start


def test_real_apptainer_exit_codes_and_signals(slot: Slot, tmp_path: Path) -> None:
    for number, (script, exit_code, code) in enumerate(
        [("exit 3", 3, None), ("exit 255", 255, None), ("kill -SEGV $$", 139, ErrorCode.SIGSEGV)]
    ):
        folder = JobFolder.create(tmp_path, f"e{number}")
        end = slot.run(folder, command=["sh", "-c", script])
        assert (end.exit_code, diagnosis(end, folder)) == (exit_code, code)


def test_real_apptainer_failures_are_told_from_the_payloads(slot: Slot, tmp_path: Path) -> None:
    (tmp_path / "text.sif").write_text("no image")
    settings = slot.settings
    cases: list[tuple[dict[str, Any], tuple[str, ...], ErrorCode]] = [
        ({"command": ["no-such-program"]}, (), ErrorCode.BAD_JOBSCRIPT),
        ({"jobscript": "#!/no/interpreter\n"}, (), ErrorCode.BAD_JOBSCRIPT),
        ({"command": ["true"], "image": str(tmp_path / "text.sif")}, (), ErrorCode.CONTAINER_MOUNT_FAILED),
        ({"command": ["true"]}, ("/no/such/folder:/x",), ErrorCode.CONTAINER_BIND_FAILED),
    ]
    for number, (fields, binds, code) in enumerate(cases):
        slot.settings = ContainerSettings(settings.binary, binds=binds)
        folder = JobFolder.create(tmp_path, f"f{number}")
        end = slot.run(folder, **fields)
        assert diagnosis(end, folder) is code, folder.stderr.read_text()
    with pytest.raises(PilotageError, match="IMAGE_NOT_FOUND"):
        slot.run(JobFolder.create(tmp_path, "none"), command=["true"], image="/no/such/image")


STUBBORN = "trap '' TERM; (trap '' TERM; setsid sleep 301) & echo $PILOTAGE_MARK > mark; while :; do sleep 1; done"


@pytest.mark.parametrize("how", ["kill", "supervisor dies"])
def test_real_apptainer_payload_is_killed_with_its_whole_tree(slot: Slot, folder: JobFolder, how: str) -> None:
    process = slot.start(folder, command=["sh", "-c", STUBBORN])
    until(lambda: (folder.work / "mark").exists() and (folder.work / "mark").read_text().strip())
    mark = (folder.work / "mark").read_text().strip()
    until(lambda: len(with_mark(mark)) >= 3)
    if how == "kill":
        process.kill("test", grace_s=0.3)
        assert process.wait(120).killed == "test"
    else:
        os.kill(process.supervisor_pid, signal.SIGKILL)
        assert process.wait(120).error is ErrorCode.SUPERVISOR_DIED
    until(lambda: with_mark(mark) == [])


def test_real_apptainer_payload_gets_the_time_to_end_itself(slot: Slot, folder: JobFolder) -> None:
    process = slot.start(
        folder, command=["sh", "-c", "trap 'echo saved > saved; exit 4' TERM; echo x > up; while :; do sleep 0.1; done"]
    )
    until((folder.work / "up").exists)
    process.kill("drain", grace_s=20)
    end = process.wait(120)
    assert end.killed == "drain" and (folder.work / "saved").exists()


def test_real_apptainer_runs_processes_around_the_payload_and_its_set_up(slot: Slot, folder: JobFolder) -> None:
    """They see the image, the payload's folder and environment, the set-up's variables, and how the payload ended."""
    words = "echo {} $RELEASE $PILOTAGE_JOB_ID ${{PILOTAGE_EXIT_CODE:-none}} $(test -e /host && echo host) >> order"
    processes = [
        SideProcess(command=["sh", "-c", words.format("before")], when=ProcessWhen.BEFORE),
        SideProcess(
            command=["sh", "-c", "trap 'exit 0' TERM; touch up; while :; do sleep 0.1; done"], when=ProcessWhen.BESIDE
        ),
        SideProcess(command=["sh", "-c", words.format("after")], when=ProcessWhen.AFTER),
    ]
    payload = "while [ ! -e up ]; do sleep 0.1; done; echo payload >> order; exit 5"
    setup = "RELEASE=24; export RELEASE"
    end = slot.run(folder, command=["sh", "-c", payload], processes=processes, setup=setup)
    assert (folder.work / "order").read_text() == "before 24 1 none\npayload\nafter 24 1 5\n"
    assert end.exit_code == 5 and end.error is ErrorCode.PAYLOAD_FAILED
    assert [side.failed for side in end.sides] == [False, False, False]


def test_real_apptainer_runs_a_transformation(slot: Slot, folder: JobFolder, tmp_path: Path) -> None:
    program = tmp_path / "fit"
    program.write_text("#!/bin/sh\necho fit $*\n")
    end = slot.run(folder, transformation=program, command=["--seed", "{counter}"], counters=[3])
    assert end.ok and folder.stdout.read_text() == "fit --seed 3\n"
