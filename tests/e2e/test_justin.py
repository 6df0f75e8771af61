"""Jobscripts as they are written for justIN run unchanged: with and without a container, by its users' own command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.wire import OutputView
from tests.e2e.looks import QUICK_S, described, file_input
from tests.e2e.system import System
from tests.services.images import demand_fuse, require
from tests.transcripts import keep

HELLO = """#!/bin/sh
# No file: somebody else took the last one.
did_pfn_rse=`$JUSTIN_PATH/justin-get-file`
if [ "$did_pfn_rse" = "" ] ; then
  echo "Nothing to process - exit jobscript"
  exit 0
fi
did=`echo $did_pfn_rse | cut -f1 -d' '`
pfn=`echo $did_pfn_rse | cut -f2 -d' '`
rse=`echo $did_pfn_rse | cut -f3 -d' '`
set -u
env | grep '^JUSTIN_\\|^RUCIO_ACCOUNT\\|^X509_\\|^NUM_EVENTS\\|^CUDA_' | sort >environment.log
out=hello-$JUSTIN_WORKFLOW_ID-$JUSTIN_STAGE_ID-$pfn.txt
echo "Hello world $did $pfn $rse" >$out
echo '{"events": 3, "core.run_type": "hello"}' >$out.json
echo "$pfn" >justin-processed-pfns.txt
tar zcf `echo "$JUSTIN_JOBSUB_ID.logs.tgz" | sed 's/@/_/g'` *.log
exit 0
"""
PROCESS_ALL = """#!/bin/bash
while : ; do
  did_pfn_rse=$($JUSTIN_PATH/justin-get-file --seconds-needed 1)
  status=$?
  [ $status -eq 1 ] && break
  [ $status -eq 0 ] || exit 7
  read did pfn rse <<<"$did_pfn_rse"
  cat "$pfn" >>reco_${JUSTIN_JOBSUB_ID}.txt || exit 8
  echo $did >>justin-processed-dids.txt
done
$JUSTIN_PATH/justin-get-file --seconds-needed 999999 && exit 9
[ $? -eq 5 ] || exit 10
ls reco_* >/dev/null 2>&1 || exit 0
"""
MERGE = """#!/bin/sh
line=`$JUSTIN_PATH/justin-get-file` || exit 0
set -- $line
tr '[:lower:]' '[:upper:]' <"$2" >merged_$JUSTIN_JOBSUB_ID.txt
echo "$2" >justin-processed-pfns.txt
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    environment = {"RUCIO_ACCOUNT": "reader"}
    queue = {"tags": ["apptainer"], "wall_s": 3600}
    folder = tmp_path_factory.mktemp("justin")
    with System(folder, queue=queue, pilot_environment=environment, settings={"get_file_units": 20}) as system:
        system.storage("disk")
        yield system


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of repositories, as a git server has them, with the jobscript in one of them."""
    top = tmp_path_factory.mktemp("git")
    place = top / "DUNE" / "scripts"
    (place / "testing").mkdir(parents=True)
    (place / "testing" / "hello.jobscript").write_text(HELLO)
    git = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "x"], ["tag", "01.00"]):
        subprocess.run([*git, *words], check=True)
    return top


def text_of(output: OutputView) -> str:
    return Path(output.url.removeprefix("file://")).read_text()


def submitted(system: System, *words: str) -> int:
    """The task of a simple workflow, as the command that justIN's users type tells it."""
    done = system.cli("justin", "simple-workflow", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    label, number = done.stdout.strip().split(": ")
    assert label == "Workflow ID"
    return system.calls.workflow(int(number)).tasks[0].id


def hello(system: System, git: Path, *more: str) -> int:
    words = ["--monte-carlo", "3", "--jobscript-git", "DUNE/scripts/testing/hello.jobscript:01.00"]
    words += ["--git-server", git.as_uri(), "--scope", "usertests", "--rss-mib", "100", "--env", "NUM_EVENTS=1"]
    words += ["--output-pattern", "hello-*.txt:output-w${JUSTIN_WORKFLOW_ID}-s$JUSTIN_STAGE_ID"]
    return submitted(system, *words, "--wall-seconds", "600", "--description", "Hello World!!!", *more)


def check_hello(system: System, task: int) -> None:
    workflow = system.view(task).workflow_id
    system.wait_task(task, "done")
    outputs = sorted(system.outputs(task), key=text_of)
    said = [f"Hello world monte-carlo-{workflow:06d}-00000{n} 00000{n} MONTECARLO\n" for n in (1, 2, 3)]
    assert [text_of(each) for each in outputs] == said
    assert all(each.attributes["core.run_type"] == "hello" and each.events == 3 for each in outputs)
    assert all(each.did.startswith("usertests:") and f"hello-{workflow}-1-" in each.did for each in outputs)

    def in_datasets() -> bool:
        return (
            f"usertests:output-w{workflow}-s1" in system.cli("datasets", "list", "--task", str(task), "--json").stdout
        )

    system.wait(in_datasets, "outputs turn up in their datasets", QUICK_S)


def test_the_tutorials_first_jobscript_out_of_git(grid: System, repository: Path) -> None:
    task = hello(grid, repository)
    check_hello(grid, task)


def test_real_apptainer_the_same_jobscript_in_an_image(grid: System, repository: Path, busybox_image: Path) -> None:
    require(demand_fuse)
    check_hello(grid, hello(grid, repository, "--image", str(busybox_image)))


def test_all_of_justins_variables_are_there(grid: System) -> None:
    script = "#!/bin/sh\nenv | grep '^JUSTIN_\\|^RUCIO_ACCOUNT\\|^X509_' >variables.txt\n"
    task = grid.task(
        input={"kind": "counter", "count": 4},
        jobscript=script,
        outputs=[{"pattern": "variables.txt", "storage": "disk"}],
        requirements={"cores": 1, "memory_mb": 150, "wall_s": 500},
        files_per_job=4,
    )
    grid.wait_task(task, "done", QUICK_S)
    (output,) = grid.outputs(task)
    said = dict(line.split("=", 1) for line in text_of(output).splitlines())
    view = grid.view(task)
    assert said.pop("JUSTIN_PATH").endswith("/bin") and said.pop("JUSTIN_TIMESTAMP").endswith("Z")
    assert said == {
        "JUSTIN_SITE_NAME": "here", "JUSTIN_WORKFLOW_ID": str(view.workflow_id), "JUSTIN_STAGE_ID": view.stage,
        "JUSTIN_SCOPE": output.did.partition(":")[0], "JUSTIN_MQL": "monte-carlo 4", "JUSTIN_PROCESSORS": "1",
        "JUSTIN_RSS_MIB": "150", "JUSTIN_WALL_SECONDS": "500", "JUSTIN_JOBSUB_ID": str(output.job_id),
        "RUCIO_ACCOUNT": "reader",
    }  # fmt: skip


def test_the_events_come_by_justins_names_in_its_order(grid: System, repository: Path) -> None:
    task = hello(grid, repository)
    grid.wait_task(task, "done")
    workflow = str(grid.view(task).workflow_id)
    table = grid.cli("justin", "show-events", "--workflow-id", workflow)
    keep("justin-show-events", table.stdout)
    assert "FILE_ALLOCATED" in table.stdout, table.stderr
    for job in grid.jobs(task):
        rows = json.loads(grid.cli("justin", "show-events", "--jobsub-id", str(job.id), "--json").stdout)
        names = [row["event"] for row in rows]
        whole = [
            "JOB_SUBMITTED", "JOB_STARTED", "FILE_ALLOCATED", "JOB_PROCESSING", "FILE_PROCESSED", "JOB_OUTPUTTING",
            "FILE_CREATED", "JOB_FINISHED",
        ]  # fmt: skip
        assert names == whole or job.n_units > 1 and list(dict.fromkeys(names)) == whole
        assert {row["site_name"] for row in rows[1:]} == {"here"} and rows[-2]["rse_name"] == "disk"
        files = {row["file_did"] for row in rows if row["event"] in ("FILE_ALLOCATED", "FILE_PROCESSED")}
        assert all(did.startswith(f"monte-carlo-{int(workflow):06d}-00000") for did in files)
        assert {row["jobsub_id"] for row in rows} == {str(job.id)}


def test_two_stages_take_files_one_at_a_time_and_no_more_than_twenty(grid: System, tmp_path: Path) -> None:
    folder = grid.storage("raw")
    files = []
    for number in range(23):
        content = f"event {number:02d}\n".encode()
        (folder / f"e{number:02d}").write_bytes(content)
        files.append(described(f"e{number:02d}", content, "raw"))
    (tmp_path / "reco.jobscript").write_text(PROCESS_ALL)
    (tmp_path / "merge.jobscript").write_text(MERGE)
    needs = {"memory_mb": 100, "wall_s": 600}
    stages = [
        {
            "name": "1", "input": file_input(*files), "jobscript_file": "reco.jobscript", "max_attempts": 6,
            "requirements": needs, "outputs": [{"pattern": "reco_*.txt", "optional": True}],
        },
        {
            "name": "2", "input": {"stage": "1"}, "jobscript_file": "merge.jobscript",
            "requirements": needs, "outputs": [{"pattern": "merged_*.txt", "optional": True}],
        },
    ]  # fmt: skip
    (tmp_path / "w.json").write_text(json.dumps({"name": "two-stages", "scope": "usertests", "stage": stages}))
    done = grid.cli("submit", str(tmp_path / "w.json"), "--json")
    assert done.returncode == 0, done.stderr
    first, second = (each["id"] for each in json.loads(done.stdout)["tasks"])
    grid.wait_task(first, "done")
    grid.wait_task(second, "done")
    jobs = grid.jobs(first)
    assert max(job.n_units for job in jobs) <= 20 and len(jobs) >= 2
    text = "".join(text_of(each) for each in grid.outputs(second))
    assert sorted(text.splitlines()) == [f"EVENT {number:02d}" for number in range(23)]
    grid.assert_sums(first, 23)
