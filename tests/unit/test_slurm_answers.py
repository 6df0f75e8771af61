"""What Slurm's states and answers mean: every state, every form that versions give an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.clock import FrozenClock
from common.config import ConfigError
from common.states import WorkerState, allowed
from common.wire import Shape
from harvester.backends import psij
from harvester.backends.base import BackendError, Observation, SubmitResult, WorkerSpec
from harvester.backends.slurm import SlurmBackend
from harvester.backends.slurm_answers import collapse, expand_tasks, read_json, read_sacct, read_squeue
from harvester.backends.slurm_arrays import with_entry
from harvester.backends.slurm_commands import Request, read_submission, version
from harvester.backends.slurm_rest import job_fields
from harvester.backends.slurm_states import STATES, JobRecord, SlurmState, outcome, read_state
from harvester.transport.base import Done

W = WorkerState


def test_every_state_has_a_meaning_by_its_long_and_its_short_name() -> None:
    assert set(STATES) == set(SlurmState)
    assert all(allowed(W.MISSING, target) for target in STATES.values())
    for state in SlurmState:
        assert read_state([state.name]) is read_state([state.value]) is state
    assert len({state.value for state in SlurmState}) == len(SlurmState)


def test_every_state_of_psij_has_a_meaning() -> None:
    job_state = pytest.importorskip("psij").JobState
    assert set(psij.STATES) == {state.name for state in job_state}
    assert all(allowed(W.MISSING, target) for target in psij.STATES.values())


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("COMPLETED COMPLETING", SlurmState.COMPLETING),
        ("PENDING REQUEUED", SlurmState.REQUEUED),
        ("PENDING SPECIAL_EXIT", SlurmState.SPECIAL_EXIT),
        ("RUNNING CONFIGURING", SlurmState.CONFIGURING),
        ("FAILED COMPLETING REQUEUE_HOLD", SlurmState.REQUEUE_HOLD),
        ("CANCELLED+", SlurmState.CANCELLED),
        ("NOVEL", None),
        ("RUNNING NOVEL", None),
    ],
)
def test_flags_say_more_than_the_state(words: str, state: SlurmState | None) -> None:
    assert read_state(words.split()) is state


def test_state_in_no_table_is_unknown() -> None:
    told = outcome(JobRecord("1", "NOVEL"))
    assert (told.observation, told.state) == (Observation.UNKNOWN, None)
    assert "NOVEL" in told.reason


@pytest.mark.parametrize(
    ("record", "state", "code", "words"),
    [
        (JobRecord("1", "OUT_OF_MEMORY", signal=9), W.FAILED, -9, "used more memory than it may; ended by SIGKILL"),
        (JobRecord("1", "FAILED", exit_code=7, reason="NonZeroExitCode"), W.FAILED, 7, "exit code 7"),
        (JobRecord("1", "FAILED", exit_code=0, reason="RaisedSignal:53(x)"), W.FAILED, None, "RaisedSignal"),
        (JobRecord("1", "CANCELLED", detail="by 1000"), W.CANCELLED, None, "it was cancelled by 1000"),
        (JobRecord("1", "TIMEOUT", reason="TimeLimit"), W.FAILED, None, "it reached its time limit"),
        (JobRecord("1", "PENDING", reason="job requeued in held state"), W.HELD, None, "held"),
        (JobRecord("1", "PENDING", reason="JobHeldAdmin"), W.HELD, None, "JobHeldAdmin"),
        (JobRecord("1", "PENDING", reason="Resources"), W.SUBMITTED, None, "Resources"),
        (JobRecord("1", "COMPLETED", exit_code=0), W.FINISHED, 0, ""),
    ],
)
def test_ends_are_told_in_words(record: JobRecord, state: WorkerState, code: int | None, words: str) -> None:
    told = outcome(record)
    assert (told.state, told.exit_code) == (state, code)
    assert words in told.reason


def test_plain_answers() -> None:
    queue = read_squeue(
        "12_3                |RUNNING   |0     |None     |node[07-09]  |pilotage-a|\n"
        "12_[4-5]            |PENDING   |0     |Priority |n/a          |pilotage-a|\n"
        "13                  |FAILED    |256   |NonZeroExitCode|node1  |a name|with bars|\n"
        "14+0                |RUNNING   |0     |None     |node1        |heterogeneous|\n"
    )
    assert [record.key for record in queue] == ["12_3", "12_4", "12_5", "13"]
    assert [record.host for record in queue] == ["node07", "", "", "node1"]
    assert (queue[3].exit_code, queue[3].name) == (1, "a name|with bars")
    history = read_sacct(
        "12_3|CANCELLED by 1000|0:15|None|node1|pilotage-a\n12_[4,6]|PENDING|0:0|None|None assigned|p\n"
    )
    assert [(one.key, one.state, one.detail, one.signal) for one in history] == [
        ("12_3", "CANCELLED", "by 1000", 15),
        ("12_4", "PENDING", "", None),
        ("12_6", "PENDING", "", None),
    ]


@pytest.mark.parametrize("text", ["slurm_load_jobs error", "12_[0-9,...]|PENDING|0|None|n/a|x|", "1|2|3"])
def test_answer_that_makes_no_sense_is_no_answer(text: str) -> None:
    with pytest.raises(BackendError):
        read_squeue(text)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"jobs": [{}]}', b'{"jobs": null}', b'{"jobs":[{"job_id":"x"}]}']
)
def test_json_that_makes_no_sense_is_no_answer(content: bytes) -> None:
    with pytest.raises(BackendError):
        read_json(content)


def test_json_of_old_and_new_versions() -> None:
    old = {
        "job_id": 7,
        "array_job_id": 5,
        "array_task_id": 2,
        "array_task_string": "",
        "job_state": "FAILED",
        "exit_code": 256,
        "batch_host": "n1",
        "name": "p",
    }
    number = {"set": True, "infinite": False, "number": 2}
    new = {
        **old,
        "array_job_id": {**number, "number": 5},
        "array_task_id": number,
        "job_state": ["FAILED"],
        "exit_code": {"status": ["ERROR"], "return_code": {**number, "number": 1}, "signal": {"id": {"set": False}}},
    }
    accounting = {
        "job_id": 7,
        "array": {"job_id": 5, "task_id": 2, "task": None},
        "state": {"current": "FAILED", "reason": "None"},
        "exit_code": {"status": "ERROR", "return_code": 1},
        "nodes": "n1",
        "name": "p",
    }
    told = [read_json(json.dumps({"jobs": [job]})) for job in (old, new, accounting)]
    assert [(one.key, one.state, one.exit_code, one.host) for (one,) in told] == [("5_2", "FAILED", 1, "n1")] * 3
    waiting = {**new, "array_task_id": {"set": False}, "array_task_string": "0-2", "job_state": ["PENDING"]}
    masked = {**accounting, "array": {"job_id": 5, "task_id": None, "task": "0x5"}}
    single = {**new, "array_job_id": {"set": True, "number": 0}, "array_task_id": {"set": False}}
    keys = [record.key for record in read_json(json.dumps({"jobs": [waiting, masked, single]}))]
    assert keys == ["5_0", "5_1", "5_2", "5_0", "5_2", "7"]


def test_tasks() -> None:
    assert list(expand_tasks("0-3,7,9-13:2%4")) == [0, 1, 2, 3, 7, 9, 11, 13]
    assert collapse(["5_1", "6", "5_3"]) == ["5_[1,3]", "6"]
    with pytest.raises(ValueError, match="task"):
        list(expand_tasks("0-99999999999"))


@pytest.mark.parametrize(
    ("code", "stderr", "result"),
    [
        (1, "sbatch: error: Batch job submission failed: Invalid partition name specified", "refused"),
        (
            1,
            "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates x",
            "refused",
        ),
        (255, "sbatch: unrecognized option '--foo'", "refused"),
        (
            1,
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "unknown",
        ),
        (1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", "unknown"),
        (1, "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", "unknown"),
        (1, "something else", "unknown"),
        (124, "", "unknown"),
        (137, "", "unknown"),
        (127, "env: 'sbatch': No such file or directory", "unknown"),
    ],
)
def test_only_clear_words_are_a_refusal(code: int, stderr: str, result: str) -> None:
    told = read_submission(Done(code, "", stderr))
    assert told.result is SubmitResult(result)
    assert told.reason


def test_answers_of_sbatch() -> None:
    assert read_submission(Done(0, "12;cluster\n", "")).job == "12"
    assert read_submission(Done(0, "Submitted batch job", "")).result is SubmitResult.UNKNOWN
    assert version("slurm-wlm 22.05.8") < version("slurm 23.11.1") == (23, 11)


def test_entry_comes_after_the_directives() -> None:
    script = with_entry("#!/bin/sh\n#SBATCH --mem=1M\n\n#SBATCH --time=1\nmodule load x\nexec it\n", "/w/arrays/a", "a")
    lines = script.splitlines()
    assert lines[3] == "#SBATCH --time=1"
    assert lines[4].startswith("cd -P /w/arrays/a/")
    assert lines[-2:] == ["module load x", "exec it"]


def _backend(folder: Path, **options: object) -> SlurmBackend:
    return SlurmBackend.create({"workers_dir": str(folder), **options}, folder, FrozenClock())


def test_template_asks_for_what_the_worker_is(tmp_path: Path) -> None:
    shape = Shape(cores=8, memory_mb=16000, wall_s=3601, gpus=2)
    submit = {"partition": "gpu", "account": "a", "gpu_type": "a100", "requeue": False, "directives": ["--exclusive"]}
    spec = WorkerSpec("m", "q", shape, [], {}, "", 2, submit=submit)
    lines = _backend(tmp_path)._script(spec, "n").splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert asked == {
        *("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=16000M", "--time=61", "--gres=gpu:a100:2"),
        *("--partition=gpu", "--account=a", "--signal=TERM@120", "--no-requeue", "--exclusive"),
    }
    assert lines[-1].startswith("exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1")


@pytest.mark.parametrize(
    ("submit", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"partition": "two words"}, "submit.partition"),
        ({"directives": ["exclusive"]}, "submit.directives"),
        ({"directives": ["--x\nrm -rf /"]}, "submit.directives"),
        ({"template": "/no/such"}, "template"),
    ],
)
def test_wrong_submit_options_are_named(submit: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        _backend(tmp_path).check_submit(submit)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": 1}, "colour"),
        ({"workers_dir": "relative"}, "options.workers_dir"),
        ({"workers_dir": "/with space"}, "options.workers_dir"),
        ({"via": "slurmrestd"}, "options.rest"),
        ({"via": "slurmrestd", "rest": {"url": "ftp://x", "user": "u", "token_file": "t"}}, "options.rest.url"),
        ({"ssh": {"host": "-oProxyCommand=x"}}, "options.ssh.host"),
        ({"ssh": {"host": "h", "key_file": "/no/such"}}, "options.ssh.key_file"),
        ({"ssh": {"host": "h", "options": ["ProxyJump gate"]}}, "options.ssh.options"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        _backend(tmp_path, **options)


def test_own_template_with_a_name_that_there_is_not(tmp_path: Path) -> None:
    template = tmp_path / "own.j2"
    template.write_text("#!/bin/sh\n#SBATCH --time={{ walltime }}\n")
    with pytest.raises(ConfigError, match="walltime"):
        _backend(tmp_path).check_submit({"template": str(template)})


def test_rest_fields_of_old_and_new_versions() -> None:
    fields = {"cores": 4, "memory_mb": 100, "wall_s": 61, "gpus": 1, "nodes": 1, "gpu_type": None}
    named = dict.fromkeys(("partition", "account", "qos", "constraint", "reservation", "requeue", "notice_s"))
    request = Request("p", 10, False, {**fields, **named, "partition": "main"}, "")
    old, new = job_fields("/w", request, "v0.0.38"), job_fields("/w", request, "v0.0.41")
    assert (old["time_limit"], new["time_limit"]) == (2, {"set": True, "number": 2})
    assert (old["array"], old["partition"], old["gres"], new["tres_per_node"]) == ("0-9", "main", "gpu:1", "gres/gpu:1")
    assert isinstance(old["environment"], dict)
    assert isinstance(new["environment"], list)


class _Scheduler:
    """Stands for PSI/J's executor of a scheduler that refuses a question because of one job that it doesn't know."""

    def get_status_command(self, ids: list[str]) -> list[str]:
        script = 'for id; do [ "$id" != 3 ] || { echo "qstat: Unknown Job Id 3" >&2; exit 153; }; done; echo "$@"'
        return ["sh", "-c", script, "qstat", *ids]

    def parse_status_output(self, code: int, text: str) -> dict[str, str]:
        if code:
            raise RuntimeError(text)
        return dict.fromkeys(text.split(), "listed")


def test_psij_one_job_that_pbs_has_forgotten_hides_no_other(tmp_path: Path) -> None:
    pytest.importorskip("psij")
    backend = psij.PsijBackend.create({"executor": "pbs"}, tmp_path, FrozenClock())
    assert "{" not in backend._executor.get_list_command()[-1], "a user's name, without a terminal"
    backend._executor = _Scheduler()  # type: ignore[assignment]
    assert set(backend._listed(["1", "2", "3", "4", "5"])) == {"1", "2", "4", "5"}
    assert backend._listed(["3"]) == {}


@pytest.mark.parametrize("executor", ["pbs", "pbs_classic", "lsf", "cobalt", "slurm"])
def test_psij_lays_a_script_out_for_each_scheduler(executor: str, tmp_path: Path) -> None:
    pytest.importorskip("psij")
    backend = psij.PsijBackend.create({"executor": executor}, tmp_path, FrozenClock())
    submit = {"queue_name": "main", "account": "acc"}
    spec = WorkerSpec(
        "m" * 32, "q", Shape(cores=4, memory_mb=100, wall_s=600), ["x"], {}, "secret-value", submit=submit
    )
    backend._lay_out(spec, "pilotage-a")
    script = (tmp_path / "workers/arrays/pilotage-a/submit").read_text()
    assert f"/bin/sh {tmp_path}/workers/arrays/pilotage-a/script" in script
    assert {"main", "acc"} <= set(script.replace('"', " ").replace("=", " ").split())
    assert "secret-value" not in script
    entry = (tmp_path / "workers/arrays/pilotage-a/script").read_text()
    assert entry.rstrip().endswith('exec "$folder/start"')


@pytest.mark.parametrize("executor", ["local", "no-such"])
def test_psij_executor_that_is_no_batch_scheduler_is_refused(executor: str, tmp_path: Path) -> None:
    pytest.importorskip("psij")
    with pytest.raises(ConfigError, match="options.executor"):
        psij.PsijBackend.create({"executor": executor}, tmp_path, FrozenClock())
