"""The parts of the HTCondor backend that need no HTCondor: what ads mean, options, the submit description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.config import ConfigError
from common.states import WorkerState, allowed
from common.wire import Shape
from harvester.backends.base import Observation, WorkerSpec
from harvester.backends.htcondor import CondorBackend
from harvester.backends.htcondor_options import CondorOptions, read_submit, settings
from harvester.backends.htcondor_states import (
    HOLDS,
    JOB_STATUS,
    STATES,
    CondorState,
    Cure,
    arrived,
    codes,
    native_state,
    outcome,
)

W = WorkerState
S = CondorState


def test_every_state_has_a_meaning_that_a_worker_can_take() -> None:
    assert set(STATES) == set(S)
    assert all(allowed(W.MISSING, state) for state in STATES.values())


def test_every_job_status_of_the_library_is_in_the_table() -> None:
    library = pytest.importorskip("htcondor2")
    assert {int(status) for status in library.JobStatus} <= set(JOB_STATUS)


@pytest.mark.parametrize(
    ("ad", "gone", "state"),
    [
        ({"JobStatus": 0}, False, S.IDLE),
        ({"JobStatus": 1}, False, S.IDLE),
        ({"JobStatus": 2}, False, S.RUNNING),
        ({"JobStatus": 3, "LastJobStatus": 2}, False, S.REMOVING),
        ({"JobStatus": 3, "LastJobStatus": 1}, False, S.REMOVED),
        ({"JobStatus": 3, "LastJobStatus": 1, "GridJobId": "arc x"}, False, S.REMOVING),
        ({"JobStatus": 3, "LastJobStatus": 2}, True, S.REMOVED),
        ({"JobStatus": 3, "LastJobStatus": 5, "RemoveReason": "PeriodicRemove was true"}, True, S.GIVEN_UP),
        ({"JobStatus": 3, "LastJobStatus": 4, "ExitCode": 0}, True, S.COMPLETED),
        ({"JobStatus": 4, "ExitCode": 0, "ExitBySignal": False}, False, S.COMPLETED),
        ({"JobStatus": 4, "ExitCode": 70, "ExitBySignal": False}, True, S.FAILED),
        ({"JobStatus": 4, "ExitBySignal": True, "ExitSignal": 15}, True, S.SIGNALLED),
        ({"JobStatus": 4}, True, S.COMPLETED),
        ({"JobStatus": 5, "HoldReasonCode": 16}, False, S.SPOOLING),
        ({"JobStatus": 5, "HoldReasonCode": 1}, False, S.HELD),
        ({"JobStatus": 6}, False, S.TRANSFERRING_OUTPUT),
        ({"JobStatus": 7}, False, S.SUSPENDED),
        ({"JobStatus": 99}, False, None),
        ({}, False, None),
    ],
)
def test_what_a_job_shows(ad: dict[str, Any], gone: bool, state: S | None) -> None:
    assert native_state(ad, gone) is state


def test_a_job_status_of_no_table_is_unknown() -> None:
    assert outcome({"JobStatus": 99}, False).observation is Observation.UNKNOWN


@pytest.mark.parametrize("code", [*HOLDS, 999])
def test_every_hold_says_what_it_means_and_what_htcondor_said(code: int) -> None:
    held = outcome({"JobStatus": 5, "HoldReasonCode": code, "HoldReason": "because\n of it"}, False)
    expected = W.SUBMITTED if code == 16 else W.HELD
    assert held.state is expected
    assert code == 16 or (f"code {code}" in held.reason and held.reason.endswith(": because of it"))


def test_each_hold_has_one_cure() -> None:
    assert sorted(code for cure in Cure for code in codes(cure)) == sorted(HOLDS)
    assert codes(Cure.PERSON) == [1, 15]


@pytest.mark.parametrize(
    ("ad", "there"),
    [
        ({"JobStatus": 5, "HoldReasonCode": 16}, False),
        ({"JobStatus": 5, "HoldReasonCode": 16, "StageInStart": 7}, True),
        ({"JobStatus": 5, "HoldReasonCode": 1}, True),
        ({"JobStatus": 3, "HoldReasonCode": 16}, False),
        ({"JobStatus": 3, "LastHoldReasonCode": 16, "StageInStart": 7}, False),
        ({"JobStatus": 3, "LastHoldReasonCode": 16, "StageInStart": 7, "StageInFinish": 8}, True),
        ({"JobStatus": 3}, True),
        ({"JobStatus": 1}, True),
    ],
)
def test_what_counts_as_arrived(ad: dict[str, Any], there: bool) -> None:
    assert arrived(ad) is there


def test_hosts_and_exit_codes_come_with_an_end() -> None:
    ad = {"JobStatus": 4, "ExitCode": 3, "LastRemoteHost": "slot1_3@node7.example.org"}
    assert (outcome(ad, True).host, outcome(ad, True).exit_code) == ("node7.example.org", 3)


@pytest.mark.parametrize(
    ("submit", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"universe": "standard"}, "universe"),
        ({"universe": "grid"}, r"submit\.grid_resource: universe grid needs it"),
        ({"grid_resource": "arc https://x"}, r"submit\.grid_resource: only universe 'grid' takes it"),
        ({"attributes": {"PilotageMark": "1"}}, r"'PilotageMark' can't be set"),
        ({"attributes": {"a b": 1}}, r"'a b' can't be set"),
        ({"requirements": "true\nqueue 1000"}, r"submit\.requirements: it must be one line"),
        ({"commands": ["queue 5"]}, r"submit\.commands: 'queue' is for harvester to say"),
        ({"template": "/no/such.j2"}, "/no/such.j2"),
    ],
)
def test_wrong_submit_options_are_named(submit: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        CondorBackend(CondorOptions(), tmp_path).check_submit(submit)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"token_dir": "tokens"}, r"options\.token_dir: 'tokens' must be an absolute path"),
        ({"token_dir": "/no/such"}, r"options\.token_dir: '/no/such' is no folder"),
        ({"token_file": "/no/such"}, r"options\.token_file: '/no/such' is no file"),
        ({"address": "<127.0.0.1:1>", "schedd": "x"}, r"options\.address"),
        ({"timeout_s": 0}, "timeout_s"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        CondorBackend.create(options, tmp_path, SystemClock())


def test_credentials_choose_how_to_authenticate(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch()
    both = settings(CondorOptions(token_dir=str(tmp_path), token_file=str(token), parameters={"A": "b"}))
    assert both.parameters == {
        "A": "b",
        "SEC_TOKEN_DIRECTORY": str(tmp_path),
        "SCITOKENS_FILE": str(token),
        "SEC_CLIENT_AUTHENTICATION_METHODS": "IDTOKENS, SCITOKENS",
    }
    assert settings(CondorOptions()).parameters == {}


def description(tmp_path: Path, submit: dict[str, Any], **changes: Any) -> dict[str, str]:
    shape = Shape(cores=8, memory_mb=16000, disk_mb=20, wall_s=3600)
    values: dict[str, Any] = {"nodes": 1, "shape": shape, **changes}
    spec = WorkerSpec("m", "q", command=[], environment={}, secret="pls_x", submit=submit, **values)
    text = CondorBackend(CondorOptions(), tmp_path)._description(spec)
    assert "pls_x" not in text
    return dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)


def test_a_description_of_a_vanilla_worker(tmp_path: Path) -> None:
    read_submit({})
    lines = description(tmp_path, {"priority": 0, "attributes": {"Flag": True}, "commands": ["nice_user = true"]})
    expected = {
        "universe": "vanilla",
        "request_cpus": "8",
        "request_memory": "16000",
        "request_disk": "20480",
        "allowed_job_duration": "4200",
        "My.PilotageMark": '"$(mark)"',
        "initialdir": "$(folder)",
        "priority": "0",
        "My.Flag": "True",
        "nice_user": "true",
    }
    assert {name: lines.get(name) for name in expected} == expected
    assert "grid_resource" not in lines and "requirements" not in lines


def test_a_description_for_an_arc_ce(tmp_path: Path) -> None:
    submit = {"universe": "grid", "grid_resource": "arc https://ce.example.org/", "token_file": "/run/t"}
    lines = description(tmp_path, submit)
    assert lines["grid_resource"] == "arc https://ce.example.org/"
    assert "<NumberOfSlots>8</NumberOfSlots>" in lines["arc_resources"]
    assert "<WallTime>3600</WallTime>" in lines["arc_resources"]
    assert lines["scitokens_file"] == "/run/t" and "allowed_job_duration" not in lines


def test_a_description_for_an_htcondor_ce(tmp_path: Path) -> None:
    lines = description(tmp_path, {"universe": "grid", "grid_resource": "condor ce ce:9619"})
    assert (lines["My.xcount"], lines["My.maxMemory"], lines["My.maxWallTime"]) == ("8", "16000", "60")


def test_a_template_of_the_queue(tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text('executable = {{ folder }}/start\nMy.PilotageMark = "{{ mark }}"\n+Queue = "{{ queue }}"\n')
    assert description(tmp_path, {"template": str(own)})["+Queue"] == '"q"'
