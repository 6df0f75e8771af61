"""From a payload's definition to files, arguments and environment."""

from __future__ import annotations

import json
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from common.errors import ErrorCode, PilotageError
from common.wire import Gpu
from pilot.container import ContainerSettings
from pilot.payload import InputFile, JobFolder, PayloadDefinition, PayloadUnit, prepare_payload
from pilot.supervised import MARK, SupervisedProcess

HOST = {
    "PATH": "/opt/bin:/usr/bin:/bin",
    "LANG": "de_CH.UTF-8",
    "PILOTAGE_TOKEN": "secret",
    "X509_USER_PROXY": "/tmp/proxy",
    "BEARER_TOKEN": "secret",
    "LD_PRELOAD": "/evil.so",
}

H200_1 = Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid="GPU-1")
H200_2 = Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid="GPU-2", index=1)


def definition(**fields: Any) -> PayloadDefinition:
    return PayloadDefinition(**{"job_id": "17", "task_id": "4", "command": ["true"], **fields})


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder.create(tmp_path, "17")


def files(*dids: str) -> list[InputFile]:
    return [InputFile(did, f"/data/{did.split(':')[1]}") for did in dids]


def refusal(**fields: Any) -> str:
    """The words with which the definition is refused."""
    with pytest.raises(PilotageError) as caught:
        definition(**fields).check()
    assert caught.value.code is ErrorCode.BAD_JOBSCRIPT
    return caught.value.detail


def test_the_job_folder_is_private_and_never_reused(tmp_path: Path) -> None:
    folder = JobFolder.create(tmp_path, "17")
    for path in (folder.root, folder.work, folder.mailbox, folder.tmp, folder.bin):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with pytest.raises(PilotageError, match="MKDIR_FAILED"):
        JobFolder.create(tmp_path, "17")
    with pytest.raises(PilotageError, match="MKDIR_FAILED"):
        JobFolder.create(tmp_path, "../escape")
    folder.remove()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_jobscript_is_written_executable_and_runs(folder: JobFolder) -> None:
    script = "#!/bin/sh\necho $PILOTAGE_JOB_ID; cat $PILOTAGE_INPUT_FILES; pwd; command -v justin-get-file; cat $PILOTAGE_COUNTERS\n"
    spec = prepare_payload(
        folder, definition(command=None, jobscript=script, inputs=files("s:a", "s:b"), counters=[5, 9]), HOST
    )
    assert spec.argv == [str(folder.bin / "jobscript")]
    assert stat.S_IMODE((folder.bin / "jobscript").stat().st_mode) == 0o700
    assert SupervisedProcess.start(spec).wait(120).ok
    expected = ["17", "/data/a", "/data/b", str(folder.work), str(folder.bin / "justin-get-file"), "5", "9"]
    assert folder.stdout.read_text().splitlines() == expected


def test_a_missing_interpreter_is_a_bad_jobscript(folder: JobFolder) -> None:
    spec = prepare_payload(folder, definition(command=None, jobscript="#!/no/such/sh\n"), HOST)
    end = SupervisedProcess.start(spec).wait(120)
    assert end.error is ErrorCode.BAD_JOBSCRIPT and "shebang" in end.detail


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo hi\n", "must be a shebang"),
        ("", "must be a shebang"),
        (" #!/bin/sh\n", "must be a shebang"),
        ("\ufeff#!/bin/sh\n", "byte order mark"),
        ("#!/bin/sh\r\necho\r\n", "CRLF"),
        ("#!\n", "absolute path"),
        ("#!python3\n", "absolute path"),
        (f"#!/{'x' * 300}\n", "longer than 255"),
    ],
)
def test_bad_jobscripts_are_refused_with_the_reason(text: str, words: str) -> None:
    assert words in refusal(command=None, jobscript=text)


def test_bad_definitions_are_refused_with_the_field() -> None:
    assert "either" in refusal(command=None)
    assert "either" in refusal(command=[])
    assert "either" in refusal(jobscript="#!/bin/sh\n")
    assert "command[1]" in refusal(command=["a", "b\0"])
    assert "'A B'" in refusal(environment={"A B": "1"})
    assert "PILOTAGE_JOB_ID" in refusal(environment={"PILOTAGE_JOB_ID": "1"})
    assert "HOME" in refusal(environment={"HOME": "/"})
    assert "NUL" in refusal(environment={"A": "\0"})


def test_the_payload_sees_nothing_of_the_pilots_environment(folder: JobFolder) -> None:
    spec = prepare_payload(folder, definition(command=["env"], environment={"MINE": "1"}), HOST)
    assert SupervisedProcess.start(spec).wait(120).ok
    env = dict(line.split("=", 1) for line in folder.stdout.read_text().splitlines())
    assert set(env) == {
        "PATH", "LANG", "HOME", "TMPDIR", "MINE", MARK, "PILOTAGE_JOB_ID", "PILOTAGE_TASK_ID", "PILOTAGE_INPUT_FILES",
        "PILOTAGE_COUNTERS", "PILOTAGE_UNITS", "PILOTAGE_CORES", "PILOTAGE_MAILBOX", "PILOTAGE_PATH",
        "JUSTIN_PATH", "JUSTIN_JOBSUB_ID", "JUSTIN_PROCESSORS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK",
    }  # fmt: skip
    assert env["PATH"] == f"/opt/bin:/usr/bin:/bin:{folder.bin}" and env["LANG"] == "de_CH.UTF-8"
    assert env["HOME"] == str(folder.work) and env["TMPDIR"] == str(folder.tmp)


def test_what_is_known_is_told_also_by_justins_names(folder: JobFolder) -> None:
    spec = prepare_payload(
        folder,
        definition(
            cores=4, memory_mb=8000, wall_s=3600, counters=[7, 8], gpus=[H200_1, H200_2], workflow_id="3", stage="reco",
            scope="usertests", site="Site", query="files from x:y", environment={"PATH": "/my/bin", "LANG": "C"},
            started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        ),
        HOST,
    )  # fmt: skip
    expected = {
        "PILOTAGE_CORES": "4", "PILOTAGE_MEMORY_MB": "8000", "PILOTAGE_SEED": "7", "CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2",
        "JUSTIN_PROCESSORS": "4", "JUSTIN_RSS_MIB": "8000", "JUSTIN_WALL_SECONDS": "3600", "JUSTIN_WORKFLOW_ID": "3",
        "JUSTIN_STAGE_ID": "reco", "JUSTIN_SCOPE": "usertests", "JUSTIN_SITE_NAME": "Site", "JUSTIN_JOBSUB_ID": "17",
        "JUSTIN_MQL": "files from x:y", "JUSTIN_TIMESTAMP": "20260102T030405Z", "JUSTIN_PATH": str(folder.bin),
        "PATH": f"/my/bin:{folder.bin}", "LANG": "C",
    }  # fmt: skip
    assert {name: spec.env.get(name) for name in expected} == expected


def test_placeholders_are_filled_in(folder: JobFolder) -> None:
    command = ["run", "--in", "{input}", "--did={unit}", "{inputs}", "{units}", "{job_id}/{task_id}", "-j{cores}"]
    command += ["{counters}", '{"json": {cores}}', "{other}", "{print $1}", "{memory_mb}"]
    spec = prepare_payload(folder, definition(command=command, inputs=files("s:a"), cores=2), HOST)
    assert spec.argv == [
        "run", "--in", "/data/a", "--did=s:a", "/data/a", "s:a", "17/4", "-j2",
        '{"json": 2}', "{other}", "{print $1}", "0",
    ]  # fmt: skip


def test_lists_become_one_argument_per_item(folder: JobFolder) -> None:
    made = definition(command=["x", "{inputs}", "{units}"], inputs=files("s:a b", "s:{input}"))
    assert prepare_payload(folder, made, HOST).argv == ["x", "/data/a b", "/data/{input}", "s:a b", "s:{input}"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["x", "--seed={counter}"], "2: use {counters}, or one unit per job"),
        (["x", "{unit}"], "use {units}"),
        (["x", "{input}"], "0: the task's input is of another kind"),
        (["x", "--all={counters}"], "argument of its own"),
    ],
)
def test_a_placeholder_that_would_lose_units_is_refused(folder: JobFolder, command: list[str], words: str) -> None:
    with pytest.raises(PilotageError) as caught:
        prepare_payload(folder, definition(command=command, counters=[1, 2]), HOST)
    assert caught.value.code is ErrorCode.BAD_JOBSCRIPT and words in caught.value.detail
    assert list(folder.bin.iterdir()) == [], "nothing half done"


def test_an_image_without_a_container_is_an_error(folder: JobFolder) -> None:
    with pytest.raises(PilotageError, match="CONTAINER_NOT_INSTALLED"):
        prepare_payload(folder, definition(image="docker://x"), HOST)
    with pytest.raises(PilotageError, match="IMAGE_NOT_FOUND"):
        prepare_payload(folder, definition(image="/no/such.sif"), HOST, ContainerSettings("/usr/bin/apptainer"))


def test_in_an_image_the_environment_is_no_argument_and_the_hosts_stays_outside(folder: JobFolder) -> None:
    made = definition(image="docker://x", environment={"MINE": "my value"})
    spec = prepare_payload(folder, made, HOST, ContainerSettings("/usr/bin/apptainer"))
    assert spec.argv[-2:] == ["docker://x", "true"] and "my value" not in " ".join(spec.argv)
    assert spec.env["APPTAINERENV_MINE"] == "my value"
    assert spec.env["APPTAINERENV_APPEND_PATH"] == str(folder.bin)
    assert spec.env[MARK] == spec.env[f"APPTAINERENV_{MARK}"]
    assert not set(spec.env.values()) & {"secret", "/tmp/proxy", "/evil.so", "de_CH.UTF-8", HOST["PATH"]}


def test_ranges_of_events_and_secondary_input_reach_the_payload(folder: JobFolder) -> None:
    unit = PayloadUnit(7, did="s:a", path="a.root", first_event=500, events=250, attributes={"run": 3})
    command = [
        "sh",
        "-c",
        'cat $PILOTAGE_UNITS; echo; cat $PILOTAGE_SECONDARY_PILEUP; echo $PILOTAGE_FIRST_EVENT $PILOTAGE_EVENTS "$@"',
    ]
    given = definition(
        command=[*command, "x", "{first_event}", "{events}", "{secondary:pileup}"],
        inputs=[InputFile("s:a", "a.root")],
        units=[unit],
        secondary={"pileup": ["m1.root", "m2.root"]},
    )
    assert SupervisedProcess.start(prepare_payload(folder, given, HOST)).wait(120).ok
    told, *lines = folder.stdout.read_text().splitlines()
    assert json.loads(told) == [
        {"unit": 7, "did": "s:a", "path": "a.root", "first_event": 500, "events": 250, "attributes": {"run": 3}}
    ]
    assert lines == ["m1.root", "m2.root", "500 250 500 250 m1.root m2.root"]


def test_a_range_that_stands_for_one_is_refused_for_several(folder: JobFolder) -> None:
    units = [PayloadUnit(n, did="s:a", path="a", first_event=n, events=1) for n in range(2)]
    with pytest.raises(PilotageError, match="first_event.*this job has 2"):
        prepare_payload(folder, definition(command=["x", "{first_event}"], units=units), HOST)
    with pytest.raises(PilotageError, match="no secondary input 'nope'; known: none"):
        prepare_payload(folder, definition(command=["x", "{secondary:nope}"]), HOST)
