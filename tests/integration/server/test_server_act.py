"""The face of aCT as its clients meet it: tokens that prove nothing, files, listings, and everything that is refused."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import ConfigError
from common.proxies import sign_proxy
from common.states import WorkerState
from server.compat.act.face import FACE
from server.compat.faces import check_faces
from server.compat.settings import ActSettings, Compat
from tests.integration.server.act_tools import CLUSTER, XRSL, ActSite, credential_of
from tests.integration.server.conftest import KINDS
from tests.services.certificates import Authority

W = WorkerState
LEFT_OUT = {"event", "event_attribute", "revocation"}


@pytest.fixture
def kind() -> str:
    """These are about the protocol, not about the database."""
    return "sqlite"


@pytest.fixture
def act(url: str, tmp_path: Path, authority: Authority) -> Iterator[ActSite]:
    made = ActSite(url, tmp_path, authority)
    made.serve()
    yield made
    made.database.close()


def books(act: ActSite) -> dict[str, int]:
    return {name: n for name, n in act.row_counts().items() if name not in LEFT_OUT}


# ---------------------------------------------------------------- who one is


def test_a_token_is_worth_nothing_before_its_key_is_proved(act: ActSite) -> None:
    begun = act.begin("Alice")
    before = books(act)
    for route in FACE.routes:
        if route.path == "/proxies":
            continue
        path = re.sub(r"{.*?}", "1", route.path)
        answer = act.act(route.method, path, [], begun["token"])
        assert answer.status_code == 403 and set(answer.json) == {"msg"}, route.path
        assert act.act(route.method, path, []).status_code == 401
    assert act.raw("GET", "/v1/whoami", None, begun["token"]).status_code == 403
    assert act.raw("GET", "/v1/tasks", None, begun["token"]).status_code == 403
    assert books(act) == before


def test_the_answer_must_be_the_persons_and_for_the_key_that_was_asked_for(act: ActSite) -> None:
    begun, other = act.begin("Alice"), act.begin("Alice")
    now = act.dispatcher.now()
    before = books(act)

    def put(cert: Any, token: str = begun["token"]) -> tuple[int, str]:
        answer = act.act("PUT", "/proxies", {"cert": cert, "chain": ""}, token)
        assert set(answer.json) == {"msg"}, answer.text
        return answer.status_code, answer.json["msg"]

    another_key = sign_proxy(other["csr"], credential_of(act.person("Alice")), 3600, now).chain
    assert "another key" in put(another_key)[1]
    bobs = sign_proxy(begun["csr"], credential_of(act.person("Bob")), 3600, now).chain
    assert "not for /DC=pilotage/CN=Bob" in put(bobs)[1]
    ended = sign_proxy(begun["csr"], credential_of(act.person("Alice")), 1, now).chain
    act.clock.advance(5)  # type: ignore[attr-defined]
    assert "has expired" in put(ended)[1]
    for odd in (None, 5, "", "nonsense", act.person("Alice").certificate_pem.decode(), "\0"):
        assert put(odd)[0] == 400
    good = sign_proxy(begun["csr"], credential_of(act.person("Alice")), 3600, act.dispatcher.now()).chain
    assert put(good, act.token("user"))[0] == 403
    assert books(act) == before
    assert act.act("PUT", "/proxies", {"cert": good, "chain": ""}, begun["token"]).status_code == 200
    assert put(good)[0] == 404, "once"
    act.clock.advance(700)  # type: ignore[attr-defined]
    assert put(another_key, other["token"])[0] == 401, "too late"


def test_strangers_get_no_request(act: ActSite) -> None:
    before = books(act)
    stranger = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for body in ({}, {"cert": stranger}, {"cert": 1, "chain": []}, [], None, {"cert": "x", "chain": "y"}):
        answer = act.act("POST", "/proxies", body)
        assert answer.status_code == 400 and set(answer.json) == {"msg"}
    assert books(act) == before


def test_somebody_whom_nobody_has_mapped_is_told_so(act: ActSite) -> None:
    token = act.delegate("Carol")
    answer = act.act("GET", "/jobs", token=token)
    assert answer.status_code == 403 and "has none (an admin gives roles)" in answer.json["msg"]


def test_a_token_ends_with_its_proxy_and_with_its_withdrawal(act: ActSite) -> None:
    token = act.delegate("Alice", 100)
    assert act.act("GET", "/jobs", token=token).json == []
    act.clock.advance(200)  # type: ignore[attr-defined]
    answer = act.act("GET", "/jobs", token=token)
    assert answer.status_code == 401 and "expired" in answer.json["msg"]
    token = act.delegate("Alice")
    (number,) = act.hand_in(token, "job")
    assert act.act("DELETE", "/proxies", token=token).status_code == 204
    assert act.act("GET", "/jobs", token=token).status_code == 401
    again = act.delegate("Alice")
    assert act.state(again, number) == "tosubmit", "her jobs are hers still"
    begun = act.begin("Bob")
    assert act.act("DELETE", "/proxies", token=begun["token"]).status_code == 204
    assert act.act("DELETE", "/proxies", token="nonsense").status_code == 401


def test_without_a_proxy_nothing_is_submitted(act: ActSite) -> None:
    token = act.token("user", "dora")
    (made,) = act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}], token).json
    (answer,) = act.act("PUT", "/jobs", [{"id": made["id"], "desc": XRSL.format("job")}], token).json
    assert "run act proxy" in answer["msg"]


def test_too_many_requests_for_proxies(act: ActSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.dispatch.delegations.MOST_UNANSWERED", 1)
    act.begin("Alice")
    answer = act.act("POST", "/proxies", {"cert": act.person("Alice").certificate_pem.decode()})
    assert answer.status_code == 409 and "try again" in answer.json["msg"]


# ---------------------------------------------------------------- handing in


def test_answers_come_in_the_order_of_the_requests_and_one_mistake_costs_one_job(act: ActSite) -> None:
    token = act.known("Alice")
    good = {"clusterlist": [CLUSTER]}
    bad: list[Any] = [{}, {"clusterlist": "x"}, {"clusterlist": []}, {"clusterlist": ["https://nowhere/x"]}, 5, None]
    answers = act.act("POST", "/jobs", [good, *bad, good], token).json
    assert [set(each) for each in answers] == [{"id"}, *[{"msg"}] * len(bad), {"id"}]
    first, last = answers[0]["id"], answers[-1]["id"]
    bodies: list[Any] = [
        {"id": first, "desc": XRSL.format("a")},
        {"id": last, "desc": "&(executable="},
        {"id": 10**17, "desc": XRSL.format("b")},
        {"id": True, "desc": XRSL.format("b")},
        {"id": last, "desc": '&(executable="x")(inputfiles=("missing" ""))'},
        {"id": last},
        [],
        {"id": last, "desc": XRSL.format("c")},
    ]
    answers = act.act("PUT", "/jobs", bodies, token).json
    assert answers[0] == {"id": first, "desc": XRSL.format("a"), "name": "a"}
    assert "cannot be read" in answers[1]["msg"] and "no job" in answers[2]["msg"]
    assert answers[4]["msg"] == "input file missing was not uploaded"
    assert all(set(each) == {"msg"} for each in answers[1:-1])
    assert answers[-1]["name"] == "c"
    again = act.act("PUT", "/jobs", [bodies[0], {"id": first, "desc": XRSL.format("z")}], token).json
    assert again[0] == answers[0], "a repeat changes nothing"
    assert "already" in again[1]["msg"]
    assert act.act("POST", "/jobs", None, token).json == []


def test_files_are_uploaded_in_pieces_without_a_length(act: ActSite) -> None:
    token = act.known("Alice")
    (made,) = act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}], token).json
    path = f"/jobs/{made['id']}/data"
    for name, content in (("run.sh", b"echo"), ("sub/dir/big", b"x" * 2_500_000), ("empty", b""), ("run.sh", b"again")):
        answer = act.act("PUT", f"{path}/{name}", content, token)
        assert answer.status_code == 204 and answer.content == b""
    before = books(act)
    for name in ("../x", "a/../../b", "%2e%2e/x", "a//b", "x" * 1500):
        assert act.act("PUT", f"{path}/{name}", b"x", token).status_code in (400, 404)
    other = act.known("Bob")
    assert act.act("PUT", f"{path}/x", b"x", other).status_code == 404
    assert act.act("PUT", "/jobs/99999/data/x", b"x", token).status_code == 404
    assert act.act("PUT", "/jobs/none/data/x", b"x", token).status_code == 404
    assert {**books(act), "delegated_proxy": 0} == {**before, "delegated_proxy": 0}
    act.act("PUT", "/jobs", [{"id": made["id"], "desc": XRSL.format("job")}], token)
    late = act.act("PUT", f"{path}/late", b"x", token)
    assert late.status_code == 409 and "submitted already" in late.json["msg"]
    act.agents()
    (order,) = act.acquire()
    assert {(each.path, each.size) for each in order.files} == {("run.sh", 5), ("sub/dir/big", 2_500_000), ("empty", 0)}
    harvester = act.token("harvester")
    given = {
        each.path: act.raw("GET", f"/v1/direct/{order.mark}/inputs", None, harvester, params={"path": each.path})
        for each in order.files
    }
    assert given["run.sh"].content == b"again" and given["sub/dir/big"].content == b"x" * 2_500_000


def test_a_person_has_not_any_room(act: ActSite) -> None:
    token = act.known("Alice")
    (made,) = act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}], token).json
    act.turn("direct_file_mb", 1)
    act.turn("direct_quota_mb", 1)
    path = f"/jobs/{made['id']}/data"
    too_large = act.act("PUT", f"{path}/a", b"x" * 1_100_000, token)
    assert too_large.status_code == 413 and set(too_large.json) == {"msg"}
    assert act.act("PUT", f"{path}/a", b"x" * 600_000, token).status_code == 204
    before = books(act)
    over = act.act("PUT", f"{path}/b", b"x" * 600_000, token)
    assert over.status_code == 422 and "are allowed" in over.json["msg"]
    assert books(act) == before
    act.turn("direct_jobs", 1)
    (refused,) = act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}], token).json
    assert "already" in refused["msg"]


# ---------------------------------------------------------------- looking and commanding


def test_people_see_and_command_their_own_jobs_only(act: ActSite) -> None:
    alice, bob = act.known("Alice"), act.known("Bob")
    number, order = act.run(alice)
    act.say(order.mark, W.FAILED)
    before = books(act)
    assert act.act("GET", "/jobs", token=bob, params={"id": str(number)}).json == []
    for action in ("cancel", "fetch", "resubmit"):
        answer = act.act("PATCH", "/jobs", token=bob, params={"action": action, "id": str(number)})
        assert answer.json == []
    assert act.act("DELETE", "/jobs", token=bob, params={"id": str(number)}).json == []
    assert act.act("GET", f"/jobs/{number}/results/", token=bob).status_code == 404
    assert act.act("GET", f"/jobs/{number}/results/x", token=bob).status_code == 404
    assert books(act) == before


def test_jobs_are_chosen_by_numbers_names_and_states(act: ActSite) -> None:
    token = act.known("Alice")
    ids = act.hand_in(token, "one", "two", "twenty_%", "three")

    def chosen(**query: str) -> list[str]:
        answer = act.act("GET", "/jobs", token=token, params={"client": "jobname", "arc": "", **query})
        return [each["c_jobname"] for each in answer.json]

    assert chosen() == ["one", "two", "twenty_%", "three"]
    assert chosen(id=f"{ids[0]},{ids[2]}-{ids[3]}") == ["one", "twenty_%", "three"]
    assert chosen(name="tw") == ["two", "twenty_%"]
    assert chosen(name="_%") == ["twenty_%"]
    assert chosen(state="tosubmit", id=str(ids[0])) == ["one"]
    assert chosen(state="running") == []
    for query in (
        {"id": "x"},
        {"id": "1-"},
        {"id": "-1"},
        {"id": "1-99999999999"},
        {"state": "odd"},
        {"client": "odd"},
    ):
        answer = act.act("GET", "/jobs", token=token, params=query)
        assert answer.status_code == 400 and set(answer.json) == {"msg"}
    columns = act.act("GET", "/info", token=token).json
    everything = {"client": ",".join(columns["client"]), "arc": ",".join(columns["arc"])}
    rows = act.act("GET", "/jobs", token=token, params=everything).json
    assert set(rows[0]) == {f"c_{name}" for name in columns["client"]} | {f"a_{name}" for name in columns["arc"]}


def test_a_job_without_a_description_is_forgotten_when_it_is_killed(act: ActSite) -> None:
    token = act.known("Alice")
    (made,) = act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}], token).json
    assert act.state(token, made["id"]) is None
    (told,) = act.act("PATCH", "/jobs", token=token, params={"action": "cancel", "id": str(made["id"])}).json
    assert told == {"c_id": made["id"], "a_id": None, "a_arcstate": None}
    assert act.act("GET", "/jobs", token=token).json == []


def test_what_a_state_does_not_allow_is_not_done(act: ActSite) -> None:
    token = act.known("Alice")
    number, order = act.run(token)
    assert act.act("DELETE", "/jobs", token=token).json == []
    assert act.act("PATCH", "/jobs", token=token, params={"action": "resubmit"}).json == []
    assert act.act("PATCH", "/jobs", token=token, params={"action": "fetch"}).json == []
    assert act.act("PATCH", "/jobs", token=token, params={"action": "explode"}).status_code == 400
    act.say(order.mark, W.FINISHED)
    act.say(order.mark, W.FINISHED, results=True)
    assert act.act("PATCH", "/jobs", token=token, params={"action": "cancel"}).json == []
    assert act.state(token, number) == "done"


def test_what_is_not_there_is_told_as_act_understands_it(act: ActSite) -> None:
    """The client looks for ``msg`` in whatever is not 200, and showed its user the name of the missing key."""
    token = act.known("Alice")
    for method, path, status in (
        ("GET", "/jobs/1", 404),
        ("GET", "/jobs/1/results", 404),
        ("POST", "/info", 405),
        ("GET", "/proxies", 405),
    ):
        answer = act.act(method, path, token=token)
        assert (answer.status_code, set(answer.json)) == (status, {"msg"}) and path in answer.json["msg"]


def test_no_numbers_are_not_all_jobs(act: ActSite) -> None:
    """A script whose list of numbers was empty commanded all jobs of its owner."""
    token = act.known("Alice")
    number, *_ = act.hand_in(token, "one")
    for method, more in (("DELETE", {}), ("PATCH", {"action": "cancel"}), ("GET", {})):
        answer = act.act(method, "/jobs", token=token, params={"id": "", **more})
        assert answer.status_code == 400, answer.text
    assert act.state(token, number) == "tosubmit"


@pytest.mark.parametrize("kind", KINDS)
def test_a_range_of_numbers_may_be_long(act: ActSite) -> None:
    """PostgreSQL takes 65,535 parameters in a statement: beyond that it was a mistake of ours."""
    token = act.known("Alice")
    first, *_ = act.hand_in(token, "one", "two")
    answer = act.act("GET", "/jobs", token=token, params={"id": f"{first}-{first + 99_999}", "client": "jobname"})
    assert [each["c_jobname"] for each in answer.json] == ["one", "two"]


def test_a_token_that_counts_no_more_is_told_with_what_gives_another(act: ActSite) -> None:
    assert "act proxy" in act.act("GET", "/jobs", token="nonsense").json["msg"]


def test_without_authorities_no_proxy_is_verified_and_an_admin_is_told(
    act: ActSite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was a mistake of ours to the client (500), with a traceback in the log."""
    config = act.dispatcher.config
    nowhere = ActSettings(on=True, authorities=str(tmp_path / "nowhere"))
    act.dispatcher.config = msgspec.structs.replace(config, compat=Compat(act=nowhere))
    answer = act.act("POST", "/proxies", {"cert": act.person("Alice").certificate_pem.decode(), "chain": ""})
    assert (answer.status_code, set(answer.json)) == (503, {"msg"})
    assert "nowhere" not in answer.text and str(tmp_path / "nowhere") in caplog.text
    with pytest.raises(ConfigError, match="nowhere"):
        check_faces(act.dispatcher.config.compat)
    check_faces(config.compat)


# ---------------------------------------------------------------- fuzz

ODD: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**18, 10**40)
    | st.floats()
    | st.text()
    | st.sampled_from(["\0", "\ud800", CLUSTER, XRSL.format("x"), "&(a=b)", "../..", "<a", "1-5"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "desc", "clusterlist", "cert", "chain", "\0"]) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
BODIES = (
    ODD.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | st.lists(ODD, max_size=4).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    | st.binary(max_size=50)
    | st.binary(max_size=30).map(lambda tail: b"\x1f\x8b\x08\x00" + tail)
    | st.just(b"")
)
WORDS = st.sampled_from(
    ["1", "0", "99999", "-1", "9" * 30, "a", "é", "%00", "%ff", "..", "a/b", "x" * 300, "%2e%2e"]
) | st.text(string.ascii_letters + string.digits + "-_.%", min_size=1, max_size=8)
QUERIES = st.dictionaries(
    st.sampled_from(["id", "name", "state", "client", "arc", "action", "odd"]),
    st.text(max_size=8) | st.sampled_from(["1", "1-5", "cancel", "fetch", "resubmit", "id,jobname", "done", "\0", "%"]),
    max_size=4,
)


def test_nothing_makes_the_face_stumble(act: ActSite) -> None:
    token = act.delegate("Alice")
    pending = act.begin("Alice")["token"]
    act.run(token)
    act.act("POST", "/jobs", [{"clusterlist": [CLUSTER]}] * 3, token)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.sampled_from(FACE.routes), st.data())
    def fuzz(route: Any, data: Any) -> None:
        path = re.sub(r"{.*?}", lambda _: data.draw(WORDS), route.path)
        bearer = data.draw(st.sampled_from([token, pending, None, "nonsense"]))
        answer = act.act(route.method, path, data.draw(BODIES), bearer, params=data.draw(QUERIES))
        assert answer.status_code < 500, (route, path, answer.text)
        assert "Traceback" not in answer.text and "mistake inside" not in answer.text
        if answer.status_code >= 400:
            assert set(answer.json) == {"msg"} and answer.json["msg"]

    fuzz()
