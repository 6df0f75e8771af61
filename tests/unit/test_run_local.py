"""``pilotage pilot run-local``: a whole job without a server, by the pilot's own code."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Optional

import pytest

from common.cli.strict import InputError
from common.cli.workflow_file import load_workflow
from common.errors import ErrorCode
from common.wire import Assignment, Transformation
from docs import generate
from pilot.local.assignment import Choices, make_assignment, pick_stage

WORKFLOW = """
name = "try"

[[stage]]
name = "sim"
input.counter = 5
input.first = 100
files_per_job = 2
environment = { WHICH = "%RNDM:7" }
jobscript = '''#!/bin/sh
cat $PILOTAGE_COUNTERS
echo "which $WHICH" > seed.txt
cp seed.txt out.root
echo '{"events": 12}' > out.root.json
'''
outputs = ["*.root"]

[[stage]]
name = "sum"
input.stage = "sim"
command = ["sh", "-c", "cat \\"$@\\" > sum.root; cat $PILOTAGE_SECRET_KEY > /dev/null; test -f tool.sh", "sh", "{inputs}"]
outputs = ["sum.root"]
secrets = ["key"]

[[stage]]
name = "bad"
input.single = true
command = ["sh", "-c", "echo 'root: command not found' >&2; exit 7"]

[[stage]]
name = "next"
input.files = [
  { did = "u:a", size = 2, events = 10, replicas = [{ storage = "CERN", path = "x/a" }] },
  { did = "u:b", replicas = [{ storage = "CERN", path = "x/b" }] },
]
jobscript = '''#!/bin/sh
while file=$(pilotage-get-file); do
  set -- $file
  cat "$2"
  echo $1 >> pilotage-processed-dids.txt
done
'''
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "w.toml").write_text(WORKFLOW)
    return tmp_path


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    program = Path(sys.executable).with_name("pilotage")
    return subprocess.Popen(
        [str(program), "pilot", "run-local", "w.toml", "--json", *options],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    process = start(folder, *options)
    out, err = process.communicate(timeout=180)
    return process.returncode, json.loads(out) if out else {}, err


def assignment(folder: Path, stage: str, **choices: Any) -> Assignment:
    request = load_workflow(folder / "w.toml")
    return make_assignment(request, pick_stage(request, stage, "w.toml"), Choices(**choices), 1, "w.toml")


def refusal(folder: Path, stage: Optional[str], **choices: Any) -> str:
    with pytest.raises(InputError) as caught:
        request = load_workflow(folder / "w.toml")
        make_assignment(request, pick_stage(request, stage, "w.toml"), Choices(**choices), 1, "w.toml")
    return caught.value.message


# ---------------------------------------------------------------- whole jobs


def test_a_stage_runs_and_its_outputs_are_there(folder: Path) -> None:
    code, said, err = run(folder, "--stage", "sim", "--unit", "3")
    assert code == 0, err
    assert (said["state"], said["exit_code"], said["units"]) == ("finished", 0, {"processed": 2})
    [output] = said["outputs"]
    assert Path(output["path"]).read_text() == "which 10\n" and output["events"] == 12
    with tarfile.open(said["log"]) as log:
        stdout = log.extractfile("job-1/stdout")
        assert stdout is not None and stdout.read() == b"103\n104\n"
        assert {"job-1/pilot-job.log", "job-1/bin/jobscript"} <= set(log.getnames())
    assert list((folder / "pilotage-local/run-1/pilot/jobs").iterdir()) == []


ALL_OF_IT = """
name = "try"
[[stage]]
name = "s"
input.single = true
allow_no_output = %s
outputs = [{ pattern = "*.root", max_size = "1 MiB" }, "*.hist"]
log_files = ["*.cfg"]
command = ["sh", "-c", '''%s''']
[[stage.processes]]
when = "before"
command = ["sh", "-c", "echo x > run.cfg; echo from before"]
[[stage.processes]]
when = "after"
command = ["sh", "-c", "exit $((PILOTAGE_EXIT_CODE + 1))"]
on_failure = "ignore"
"""
REPORT = (
    '{"exitCode": 0, "resource": {"transform": {"processedEvents": 9}},'
    ' "files": {"output": [{"subFiles": [{"name": "a.root", "nentries": 5, "file_guid": "G-1"}]}]}}'
)


def test_processes_reports_and_logs_of_a_whole_job(folder: Path) -> None:
    (folder / "w.toml").write_text(
        ALL_OF_IT % ("false", "cp ../../../../../../report jobReport.json; touch a.root b.hist")
    )
    (folder / "report").write_text(REPORT)
    code, said, err = run(folder)
    assert code == 0, err + str(said)
    assert said["metrics"]["events"] == 9
    outputs = {output["name"]: output for output in said["outputs"]}
    assert outputs["a.root"]["events"] == 5 and outputs["a.root"]["attributes"] == {"events": 5, "guid": "G-1"}
    assert set(outputs) == {"a.root", "b.hist"}
    with tarfile.open(said["log"]) as log:
        assert {"job-1/work/run.cfg", "job-1/process-before-1.stdout", "job-1/process-after-1.stderr"} <= set(
            log.getnames()
        )
        notes = log.extractfile("job-1/pilot-job.log")
        assert notes is not None and b"the process after-1 ended with exit code 1" in notes.read()
    assert "from before" in said["log_tail"]


def test_an_output_that_is_too_large_fails_and_none_at_all_may_be_fine(folder: Path) -> None:
    (folder / "w.toml").write_text(ALL_OF_IT % ("true", "head -c 2000000 /dev/zero > big.root; touch b.hist"))
    code, said, _err = run(folder)
    assert (code, said["exit_code"], said["error_code"]) == (1, 0, ErrorCode.OUTPUT_TOO_LARGE)
    assert said["error_detail"] == "output 'big.root' has 2000000 bytes (1.9 MiB), allowed are 1 MiB"
    assert said["outputs"] == [] and said["log"]
    (folder / "w.toml").write_text(ALL_OF_IT % ("true", "true"))
    code, said, err = run(folder)
    assert (code, said["outputs"]) == (0, []), err


def test_local_files_a_sandbox_and_a_secret_stand_in_for_what_a_server_has(folder: Path) -> None:
    for name in ("a.root", "b.root"):
        (folder / name).write_text(name)
    (folder / "box").mkdir()
    (folder / "box" / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "key").write_text("k")
    files = ["--file", "a.root", "--file", "b.root"]
    code, said, err = run(folder, "--stage", "sum", *files, "--sandbox", "box", "--secret", "key=key")
    assert code == 0, err + str(said)
    assert Path(said["outputs"][0]["path"]).read_text() == "a.rootb.root"
    assert said["units"] == {"processed": 2}


def test_a_failed_payload_is_told_with_its_exit_code_and_a_number(folder: Path) -> None:
    code, said, _err = run(folder, "--stage", "bad")
    assert code == 7 and said["exit_code"] == 7 and said["state"] == "failed"
    assert said["error_code"] == ErrorCode.MISSING_INSTALLATION and said["advice"]
    assert "root: command not found" in said["error_detail"] and "root: command not found" in said["log_tail"]


def test_get_file_hands_out_the_units_that_were_chosen(folder: Path) -> None:
    (folder / "x").mkdir()
    (folder / "x" / "a").write_text("A\n")
    code, said, err = run(folder, "--stage", "next", "--storage", f"CERN={folder.as_uri()}")
    assert code == 0, err + str(said)
    assert said["units"] == {"processed": 1} and "A" in said["log_tail"]


def test_ctrl_c_stops_the_payload_and_still_reports(folder: Path) -> None:
    text = (folder / "w.toml").read_text().replace("echo 'root: command not found' >&2; exit 7", "echo up; sleep 60")
    (folder / "w.toml").write_text(text)
    process = start(folder, "--stage", "bad")
    assert process.stderr is not None
    for line in process.stderr:
        if "running" in line:
            break
    process.send_signal(signal.SIGINT)
    out, _err = process.communicate(timeout=180)
    said = json.loads(out)
    assert process.returncode == 1 and said["state"] == "failed" and said["log"]


# ---------------------------------------------------------------- what is asked for, and what is missing


def test_units_are_those_of_the_stage(folder: Path) -> None:
    made = assignment(folder, "sim", unit=4)
    assert [(unit.seq, unit.counter) for unit in made.units] == [(4, 104)]
    assert made.environment == {"WHICH": "11"}


def test_ranges_of_events_are_counted(folder: Path) -> None:
    text = (folder / "w.toml").read_text().replace("input.files = [", "input.events_per_unit = 4\ninput.files = [")
    text = text.replace('{ did = "u:b",', '{ did = "u:b", events = 3,')
    (folder / "w.toml").write_text(text)
    storages = {"CERN": "root://host//base/"}
    for unit, (did, first, events) in enumerate([("u:a", 0, 4), ("u:a", 4, 4), ("u:a", 8, 2), ("u:b", 0, 3)]):
        [found] = assignment(folder, "next", unit=unit, storages=storages).units
        assert found.file is not None
        assert (found.file.did, found.first_event, found.events) == (did, first, events)
        assert found.file.replicas[0].url == f"root://host//base/x/{did[-1]}"


@pytest.mark.parametrize(
    ("stage", "choices", "words"),
    [
        (None, {}, "--stage sim or sum or bad or next"),
        ("simm", {}, "did you mean 'sim'?"),
        ("sim", {"unit": 5}, "this stage has units 0 to 4"),
        ("sum", {}, "--file PATH"),
        ("next", {}, "--storage CERN=URL"),
    ],
)
def test_what_is_missing_is_said_with_the_option(
    folder: Path, stage: Optional[str], choices: dict[str, Any], words: str
) -> None:
    assert words in refusal(folder, stage, **choices)


def test_a_secret_and_a_sandbox_of_a_server_are_asked_for(folder: Path) -> None:
    (folder / "a").write_text("x")
    assert "--secret key=FILE" in refusal(folder, "sum", files=[folder / "a"])


def test_a_mistake_in_an_option_makes_no_folder(folder: Path) -> None:
    code, _said, err = run(folder, "--stage", "sim", "--storage", "CERN")
    assert code == 2 and "write NAME=URL" in err
    assert not (folder / "pilotage-local").exists()


# ---------------------------------------------------------------- the page


def test_the_pages_examples_are_what_they_say(tmp_path: Path) -> None:
    page = (Path(generate.__file__).parent / "how-to" / "payloads.md").read_text("utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "reco.sh").write_text("#!/bin/sh\n")
    (tmp_path / "w.toml").write_text("\n".join(blocks))
    [stage] = load_workflow(tmp_path / "w.toml").stages
    assert [(each.when.value, each.on_failure.value, each.timeout_s) for each in stage.processes] == [
        ("before", "site", 120),
        ("beside", "ignore", 0),
        ("after", "fail", 0),
    ]
    commented = re.sub(r"^# (transformation = .*)$", r"\1", blocks[0], flags=re.MULTILINE)
    commented = re.sub(r"^jobscript_file.*$", "", commented, flags=re.MULTILINE).replace(
        "sha256:…", f"sha256:{'0' * 64}"
    )
    (tmp_path / "t.toml").write_text(commented)
    program = load_workflow(tmp_path / "t.toml").stages[0].transformation
    assert program is not None and program.parameters == ["--seed", "{counter}"]


def test_outputs_and_programs_have_short_forms(tmp_path: Path) -> None:
    stage = "[[stage]]\nname = 's'\ninput.single = true\ntransformation = 'https://x.example/run.sh'\n"
    outputs = "outputs = ['*.log', { pattern = '*.root', max_size = '4 GiB', optional = true }]\n"
    (tmp_path / "w.toml").write_text(f"name = 'w'\n{stage}{outputs}")
    [found] = load_workflow(tmp_path / "w.toml").stages
    assert found.transformation == Transformation(url="https://x.example/run.sh")
    assert [(output.max_mb, output.optional) for output in found.outputs] == [(0, False), (4096, True)]
    (tmp_path / "w.toml").write_text(f"name = 'w'\n{stage}outputs = [{{ pattern = '*', maxsize = 4 }}]\n")
    with pytest.raises(InputError, match="did you mean 'max_size'"):
        load_workflow(tmp_path / "w.toml")


PARTIAL = """
name = "try"
[[stage]]
name = "s"
input.single = true
outputs = [{ pattern = "*.root", keep_partial = true }, "*.hist"]
command = ["sh", "-c", "echo half > a.root; echo half > b.hist; exit %d"]
"""


@pytest.mark.parametrize(("code", "kept"), [(3, {"job-1/work/a.root"}), (0, set())])
def test_what_a_failed_job_left_of_an_output_is_in_its_log_if_wanted(folder: Path, code: int, kept: set[str]) -> None:
    (folder / "w.toml").write_text(PARTIAL % code)
    _, said, _ = run(folder)
    assert {output["name"] for output in said["outputs"]} == (set() if code else {"a.root", "b.hist"})
    with tarfile.open(said["log"]) as log:
        assert {name for name in log.getnames() if name.endswith((".root", ".hist"))} == kept
