"""The parts of the ARC backend that need no CE: states, options, descriptions, the ways in which versions differ."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import responses
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from common.clock import FrozenClock, SystemClock
from common.config import ConfigError
from common.states import WorkerState, allowed
from common.wire import Shape
from harvester.backends import arc_states
from harvester.backends.arc import ArcBackend
from harvester.backends.arc_delegation import _asked_key
from harvester.backends.arc_direct import ArcDirect
from harvester.backends.arc_jobs import LOOKS
from harvester.backends.arc_options import describe, in_bulk
from harvester.backends.arc_rest import Action, ArcFault, ArcRest, ArcUnreachable
from harvester.backends.arc_states import STATES, ArcState, ended_as, exit_code_of, merged, reason_of, state_of
from harvester.backends.base import BackendError, Observation, SubmitResult, WorkerRef, WorkerSpec
from harvester.backends.side_by_side import side_by_side

CE = "https://ce.example.org/arex"
MARK = "0123456789abcdef0123456789abcdef"


# ---------------------------------------------------------------- states


def test_every_state_has_a_meaning_that_a_worker_can_take() -> None:
    assert set(STATES) == set(ArcState)
    assert all(allowed(WorkerState.MISSING, state) for state in STATES.values())


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *((state.value, state) for state in ArcState),
        *((f"arcrest:{state.value}", state) for state in ArcState),
        ("PENDING:ACCEPTED", ArcState.ACCEPTED),
        ("PENDING:PREPARING", ArcState.PREPARED),
        ("SUBMIT", ArcState.SUBMITTING),
        ("INLRMS", ArcState.RUNNING),
        ("PENDING:INLRMS", ArcState.EXECUTED),
        ("CANCELING", ArcState.KILLING),
        ("DELETED", ArcState.WIPED),
        ("None", None),
        ("UNDEFINED", None),
        ("", None),
    ],
)
def test_words_for_states(word: str, state: ArcState | None) -> None:
    assert state_of(word) is state


def test_the_words_of_rest_count_among_those_of_several_interfaces() -> None:
    words = ["nordugrid:INLRMS:Q", "emies:processing-queued", "arcrest:QUEUING", "emiesattr:app-running"]
    assert state_of(words) is ArcState.QUEUING
    assert state_of(["emies:accepted"]) is None


@pytest.mark.parametrize(
    ("fresh", "detailed", "state"),
    [
        (ArcState.RUNNING, ArcState.QUEUING, ArcState.QUEUING),
        (ArcState.RUNNING, ArcState.HELD, ArcState.HELD),
        (ArcState.RUNNING, ArcState.ACCEPTED, ArcState.RUNNING),
        (ArcState.RUNNING, None, ArcState.RUNNING),
        (ArcState.FINISHED, ArcState.RUNNING, ArcState.FINISHED),
        (ArcState.PREPARING, ArcState.FAILED, ArcState.PREPARING),
    ],
)
def test_late_details_never_undo_what_is_known_at_once(
    fresh: ArcState, detailed: ArcState | None, state: ArcState
) -> None:
    assert merged(fresh, detailed) is state


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ("LRMS error: (7) Job finished with wrong exit code - 7 != 0", 7),
        ("LRMS error: (271) job killed: wall", 271),
        ("LRMS error: (-1) Job died unexpectedly", None),
        ("Failed in files download (pre-processing)", None),
        ("", None),
    ],
)
def test_exit_codes_in_failures(failure: str, code: int | None) -> None:
    assert exit_code_of(failure) == code


def test_reasons_are_words() -> None:
    assert reason_of(ArcState.FAILED, " Failed\nto stage in\n") == "Failed to stage in"
    assert "doesn't say why" in reason_of(ArcState.FAILED, "")
    assert reason_of(ended_as("Job is canceled by external request"), "whatever") == "ended on demand"
    assert ended_as("LRMS error: (1)") is ArcState.FAILED
    assert all(reason_of(state, "") for state in (ArcState.WIPED, ArcState.HELD))
    assert set(arc_states.INTERNAL.values()) <= set(ArcState)


# ---------------------------------------------------------------- options and descriptions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proxy_file": "/p", "colour": 1}, "colour"),
        ({}, "here is none"),
        ({"proxy_file": "/p", "token_file": "/t"}, "proxy_file and token_file"),
        ({"cert_file": "/c"}, "go together"),
        ({"proxy_file": "p"}, "absolute"),
        ({"proxy_file": "/p", "url": "http://ce.example.org/arex"}, "https"),
        ({"proxy_file": "/p", "url": "ce.example.org"}, "write it like"),
        ({"proxy_file": "/p", "ca_file": "/no/such/folder"}, "ca_file"),
        ({"proxy_file": "/p", "uploads": 0}, "uploads"),
        ({"proxy_file": "/p", "timeout_s": 0}, "timeout_s"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        ArcBackend.create({"url": CE, **options}, tmp_path, FrozenClock())


def backend(tmp_path: Path, **options: Any) -> ArcBackend:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("secret-token")
    return ArcBackend.create({"url": CE, "token_file": str(token), "timeout_s": 5, **options}, tmp_path, SystemClock())


@pytest.mark.parametrize(
    ("submit", "words"),
    [
        ({"colour": "red"}, "colour"),
        ({"queue": 'a")(executable="/bin/rm'}, "quotes"),
        ({"runtime_environments": ['"']}, "quotes"),
        ({"attributes": ["project=atlas"]}, "write it like"),
        ({"template": "own.j2"}, "absolute"),
        ({"template": "/no/such/file"}, "template"),
    ],
)
def test_wrong_submit_options_are_named(submit: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        backend(tmp_path).check_submit(submit)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("&(jobname={{ nobody }})", "nobody"),
        ("&{% if %}", "line 1"),
        ("hello", "neither xRSL"),
        ("&{{ 1 / 0 }}", "zero"),
    ],
)
def test_wrong_templates_are_named(text: str, words: str, tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text(text)
    with pytest.raises(ConfigError, match=words):
        backend(tmp_path).check_submit({"template": str(own)})


def spec(**more: Any) -> WorkerSpec:
    return replace(WorkerSpec(MARK, "q1", Shape(), ["/bin/true"], {}, "pls_secret"), **more)


def test_a_description() -> None:
    submit = {"queue": "gpu", "runtime_environments": ["ENV/GPU"], "attributes": ['(project="dune")']}
    shape = Shape(cores=4, memory_mb=8001, disk_mb=100, wall_s=3601)
    text = describe(spec(shape=shape, submit=submit, files={"pilotage": Path("/b")}), Path("/w"), "d1")
    for part in (
        '(executable="start")',
        '(executables="start" "pilotage" )',
        f'(jobname="{MARK}")',
        '(inputFiles=("start" "")("secret" "")("pilotage" ""))',
        '(count="4")',
        '(memory="2001")',
        '(disk="100")',
        '(walltime="61")',
        '(queue="gpu")',
        '(runTimeEnvironment="ENV/GPU")',
        '(project="dune")',
        '(delegationid="d1")',
    ):
        assert part in text, text
    assert "pls_secret" not in text
    bare = describe(spec(), Path("/w"), "")
    assert not [name for name in ("memory", "disk", "walltime", "queue", "delegationid") if f"({name}=" in bare]


def test_many_nodes_need_a_template(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of its nodes only"):
        describe(spec(nodes=2), Path("/w"), "")
    own = tmp_path / "own.j2"
    own.write_text("&(count={{ shape.cores * nodes }})")
    assert describe(spec(nodes=2, submit={"template": str(own)}), Path("/w"), "") == "&(count=2)"


def test_descriptions_in_bulk() -> None:
    assert in_bulk(["&(a=1)", "&(a=2)"]) == (b"+(&(a=1))(&(a=2))", "application/rsl")
    body, kind = in_bulk(['<?xml version="1.0"?><A/>', "<A/>"])
    assert (body, kind) == (b"<ActivityDescriptions><A/><A/></ActivityDescriptions>", "application/xml")


# ---------------------------------------------------------------- the interface and its versions


def rest(tmp_path: Path) -> ArcRest:
    return backend(tmp_path)._rest


def versions(*offered: str, bare: bool = False) -> None:
    answer = {"version": offered[0] if bare else list(offered)}
    responses.get(f"{CE}/rest", json=answer)


@responses.activate
def test_the_best_version_that_both_speak(tmp_path: Path) -> None:
    versions("1.0", "1.1", "2.0")
    assert rest(tmp_path).version() == "1.1"
    assert "secret-token" in str(responses.calls[0].request.headers["Authorization"])


@responses.activate
def test_a_lone_version_is_no_list(tmp_path: Path) -> None:
    versions("1.0", bare=True)
    assert rest(tmp_path).version() == "1.0"


@responses.activate
def test_a_ce_of_the_future_is_told_as_such(tmp_path: Path) -> None:
    versions("9.0")
    with pytest.raises(BackendError, match=r"9\.0"):
        rest(tmp_path).version()


@responses.activate
@pytest.mark.parametrize(
    ("body", "jobs"),
    [
        ("", {}),
        ("{}", {}),
        ('{"job":""}', {}),
        ('{"job":{"id":"a","state":"RUNNING"}}', {"a": "RUNNING"}),
        ('{"job":[{"id":"a","state":"RUNNING"},{"id":"b","state":"KILLED"}]}', {"a": "RUNNING", "b": "KILLED"}),
    ],
)
def test_lists_of_any_length_as_1_0_gives_them(body: str, jobs: dict[str, str], tmp_path: Path) -> None:
    versions("1.0")
    responses.get(f"{CE}/rest/1.0/jobs", body=body)
    assert rest(tmp_path).list_jobs(list(ArcState)) == jobs


@responses.activate
def test_one_job_is_asked_for_as_no_list(tmp_path: Path) -> None:
    versions("1.0")
    answer = {"job": {"status-code": "200", "reason": "OK", "id": "a", "state": "ACCEPTED"}}
    responses.post(f"{CE}/rest/1.0/jobs", json=answer, status=201)
    assert rest(tmp_path).ask(Action.STATUS, ["a"])["a"].state == "ACCEPTED"
    assert json.loads(responses.calls[1].request.body or b"") == {"job": {"id": "a"}}


@responses.activate
@pytest.mark.parametrize("location", ["/arex/rest/1.1/delegations/d1", "/delegations?action=new/d1"])
def test_where_a_delegation_is(location: str, tmp_path: Path) -> None:
    versions("1.1")
    responses.post(f"{CE}/rest/1.1/delegations", body="csr", headers={"Location": location}, status=201)
    assert rest(tmp_path).request_delegation() == ("d1", "csr")


@responses.activate
def test_answers_that_are_none(tmp_path: Path) -> None:
    versions("1.1")
    responses.get(f"{CE}/rest/1.1/jobs", body="<html>please log in</html>")
    with pytest.raises(ArcUnreachable, match="no JSON"):
        rest(tmp_path).list_jobs()
    responses.replace(
        responses.GET, f"{CE}/rest/1.1/jobs", status=302, headers={"Location": "https://evil.example.org"}
    )
    with pytest.raises(ArcFault, match="302"):
        rest(tmp_path).list_jobs()


def request_pem(version: int) -> tuple[str, rsa.RSAPublicKey]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    der = csr.public_bytes(serialization.Encoding.DER).replace(b"\x02\x01\x00", bytes([2, 1, version]), 1)
    lines = b64encode(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n", key.public_key()


@pytest.mark.parametrize("version", [0, 2])
def test_requests_for_delegations_as_arc_6_and_7_make_them(version: int) -> None:
    pem, key = request_pem(version)
    if version:
        with pytest.raises(x509.InvalidVersion):
            x509.load_pem_x509_csr(pem.encode())
    assert _asked_key(pem) == key


def test_a_request_for_a_delegation_that_is_none() -> None:
    whole = request_pem(0)[0].splitlines()[1]
    cut = b64encode(b64decode(whole)[:100]).decode()
    for text in ("", "hello", cut, b64encode(b"\x30\x03\x02\x01\x00").decode()):
        with pytest.raises(BackendError, match="can't be read"):
            _asked_key(text)


# ---------------------------------------------------------------- half answers


@responses.activate
@pytest.mark.parametrize(
    ("status", "body", "results"),
    [
        (201, {"job": [{"status-code": "201", "id": "a"}]}, [SubmitResult.UNKNOWN, SubmitResult.UNKNOWN]),
        (403, {}, [SubmitResult.REFUSED, SubmitResult.REFUSED]),
        (500, {"detail": "nordugrid:xrsl parsing error: ')' expected"}, [SubmitResult.REFUSED, SubmitResult.REFUSED]),
        (500, {}, [SubmitResult.UNKNOWN, SubmitResult.UNKNOWN]),
        (502, {}, [SubmitResult.UNKNOWN, SubmitResult.UNKNOWN]),
        (
            201,
            {"job": [{"status-code": "500", "reason": "no queue"}, {"status-code": "201", "reason": "Created"}]},
            [SubmitResult.REFUSED, SubmitResult.UNKNOWN],
        ),
        (
            201,
            {"job": [{"status-code": "201", "id": "a"}, {"reason": "?"}]},
            [SubmitResult.ACCEPTED, SubmitResult.UNKNOWN],
        ),
    ],
)
def test_half_answers_to_a_submission(
    status: int, body: dict[str, Any], results: list[SubmitResult], tmp_path: Path
) -> None:
    versions("1.1")
    responses.post(f"{CE}/rest/1.1/jobs", json=body, status=status)
    for name in ("start", "secret"):
        responses.put(f"{CE}/rest/1.1/jobs/a/session/{name}", status=200)
    outcomes = backend(tmp_path).submit([spec(), spec(mark="f" * 32)])
    assert [outcome.result for outcome in outcomes] == results
    assert all(outcome.reason for outcome in outcomes if outcome.result is not SubmitResult.ACCEPTED)
    posts = [call for call in responses.calls if call.request.method == "POST"]
    assert len(posts) == 1, "a submission is never repeated"


@responses.activate
def test_only_a_404_of_the_ce_itself_denies_a_worker(tmp_path: Path) -> None:
    versions("1.1")
    responses.get(f"{CE}/rest/1.1/jobs", json={"job": [{"id": "odd", "state": "DANCING"}]})
    answers = [
        {"status-code": "404", "reason": "Job not found", "id": "gone", "state": "None"},
        {"status-code": "500", "reason": "disk is full", "id": "ill", "state": ""},
        {"status-code": "200", "reason": "OK", "id": "late", "state": "QUEUING"},
    ]
    responses.post(f"{CE}/rest/1.1/jobs", json={"job": answers}, status=201)
    refs = [WorkerRef(name, name) for name in ("gone", "ill", "late", "left-out", "odd")]
    found = backend(tmp_path).status(refs)
    assert {mark: outcome.observation for mark, outcome in found.items()} == {
        "gone": Observation.DENIED,
        "ill": Observation.UNKNOWN,
        "late": Observation.STATE,
        "left-out": Observation.UNKNOWN,
        "odd": Observation.UNKNOWN,
    }
    assert found["late"].state is WorkerState.SUBMITTED
    assert "disk is full" in found["ill"].reason
    assert "DANCING" in found["odd"].reason


@responses.activate
def test_absence_is_told_only_when_every_job_was_looked_at(tmp_path: Path) -> None:
    versions("1.1")
    responses.get(f"{CE}/rest/1.1/jobs", json={"job": [{"id": "a"}, {"id": "b"}]})
    named = {"status-code": "200", "id": "a", "info_document": {"ComputingActivity": {"Name": "somebody"}}}
    responses.post(f"{CE}/rest/1.1/jobs", json={"job": [named]}, status=201)
    with pytest.raises(BackendError, match="job b"):
        backend(tmp_path).find_by_marks([MARK])


@responses.activate
def test_a_ce_that_falls_silent_is_left_alone(tmp_path: Path) -> None:
    versions("1.1")
    items = [{"status-code": "201", "reason": "Created", "id": f"j{number}"} for number in range(100)]
    responses.post(f"{CE}/rest/1.1/jobs", json={"job": items}, status=201)
    marks = [f"{number:032x}" for number in range(150)]
    outcomes = backend(tmp_path, uploads=1).submit([spec(mark=mark) for mark in marks])
    assert {outcome.result for outcome in outcomes} == {SubmitResult.UNKNOWN}
    puts = [call for call in responses.calls if call.request.method == "PUT"]
    posts = [call for call in responses.calls if call.request.method == "POST"]
    assert (len(puts), len(posts)) == (1, 1), "one connection that fails says enough"


def test_calls_side_by_side() -> None:
    assert side_by_side(lambda number: number * 2, range(20), 4) == [number * 2 for number in range(20)]
    assert side_by_side(str, [], 4) == []
    begun = []

    def fails(number: int) -> int:
        begun.append(number)
        raise ValueError(number)

    with pytest.raises(ValueError, match="0"):
        side_by_side(fails, range(100), 2)
    assert len(begun) <= 2


@responses.activate
def test_a_job_that_the_ce_did_not_see_for_a_moment_is_found(tmp_path: Path) -> None:
    versions("1.1")
    made = backend(tmp_path)
    (tmp_path / "workers" / MARK).mkdir(parents=True)
    (tmp_path / "workers" / MARK / "sent").write_text("start\nsecret\n")
    responses.get(f"{CE}/rest/1.1/jobs", json={"job": []})
    responses.get(f"{CE}/rest/1.1/jobs", json={"job": [{"id": "a", "state": "RUNNING"}]})
    nameless = {"status-code": "200", "id": "a", "info_document": {"ComputingActivity": {"ID": "a"}}}
    responses.post(f"{CE}/rest/1.1/jobs", json={"job": [nameless]}, status=201)
    responses.get(f"{CE}/rest/1.1/jobs/a/diagnose/description", body=f'&( "jobname" = "{MARK}" )')
    assert made.find_by_marks([MARK, "f" * 32]) == {MARK: WorkerRef(MARK, "a")}


@responses.activate
def test_a_mark_that_was_never_sent_is_not_looked_for_twice(tmp_path: Path) -> None:
    versions("1.1")
    responses.get(f"{CE}/rest/1.1/jobs", json={"job": []})
    assert backend(tmp_path).find_by_marks([MARK]) == {}
    assert len(responses.calls) == 2


class _Forgetful:
    """A CE that does not list a job in the moment in which it is first asked."""

    def __init__(self) -> None:
        self.url = "https://ce/arex"
        self.asked = 0

    def list_jobs(self) -> dict[str, str]:
        self.asked += 1
        return {"job1": ""} if self.asked > 1 else {}

    def read(self, job: str, *path: str) -> bytes:
        return b"&(* pilotage mark-0001 *)(executable=x)"


def test_a_job_that_the_ce_omits_for_a_moment_is_found_all_the_same() -> None:
    ce: Any = _Forgetful()
    nobody: Any = None
    direct = ArcDirect(ce, nobody, nobody, 2)
    assert direct.find(["mark-0001"]) == {"mark-0001": WorkerRef("mark-0001", "job1")}
    assert direct.find(["mark-0002"]) == {} and ce.asked == 2 + LOOKS
