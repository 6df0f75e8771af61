"""Whatever is sent to the face of PanDA's users: an answer in its form, no fault of ours, no traceback."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from falcon.testing import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.application import create_application
from server.compat.panda_client.face import FACE, ROUTES
from server.compat.panda_client.job_line import OPTIONS
from server.compat.panda_client.parameters import PARAMETERS
from server.compat.settings import Compat, PandaClient
from server.config import ServerConfig
from server.store.migrate import upgrade
from tests.integration.server.harness import Site
from tests.integration.server.test_compat_panda_client import archive, constant, form, line, parameters, primary


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    config = ServerConfig(compat=Compat(panda_client=PandaClient(on=True, catalog="made-up")))
    config.catalogs["made-up"] = {"plugin": "fake", "datasets": {"four": 4}}
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('fuzz') / 'pilotage.db'}", config=config)
    upgrade(made.database)
    made.say_up()
    made.world()
    made.client = TestClient(create_application(made.dispatcher, (), (FACE,)))
    yield made
    made.database.close()


ODD_TEXT = st.text(max_size=40) | st.sampled_from(
    ["\0", "\ud800", "${IN}", "%RNDM:", "'", '"', "../x", "-1", "9" * 40, "ä"]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | ODD_TEXT | st.sampled_from([10**30, -(2**63), 2**31])
)
JSON = st.recursive(
    SCALARS, lambda deeper: st.lists(deeper, max_size=4) | st.dictionaries(ODD_TEXT, deeper, max_size=4), max_leaves=12
)
FIELDS = ("task_id", "job_ids", "job_id", "filters", "since", "n_tasks", "soft", "new_parameters", "increase", "priority",
          "task_parameters", "file_size", "checksum", "key", "value", "dataset_types", "include_parameters", "mode")  # fmt: skip
PIECES = st.sampled_from([constant(f"{name} x") for name in OPTIONS] + [primary(), *line("run %IN ${SEQNUMBER}")])
PIECE = st.builds(lambda piece, more: {**piece, **more}, PIECES, st.dictionaries(
    st.sampled_from(["type", "value", "param_type", "dataset", "include", "exclude", "offset", "files", "nFilesPerJob", "hidden"]),
    JSON, max_size=2,
))  # fmt: skip
TASK = st.builds(
    lambda changes, pieces: parameters(**{**changes, **({"jobParameters": pieces} if pieces is not None else {})}),
    st.dictionaries(st.sampled_from([*PARAMETERS, "unknown"]), JSON, max_size=4),
    st.none() | st.lists(PIECE, max_size=8),
)


def _sent(value: Any) -> bytes:
    return json.dumps(value).encode()


FIELDS_BODY = st.dictionaries(st.sampled_from(FIELDS) | ODD_TEXT, JSON | st.integers(0, 5), max_size=5).map(_sent)
TASK_BODY = st.builds(lambda task: _sent({"task_parameters": task, "parent_tid": None}), TASK)
PLAIN = FIELDS_BODY | TASK_BODY | JSON.map(_sent) | st.binary(max_size=60) | st.just(form(archive(), "a.tgz")[0])
BODY = PLAIN | PLAIN.map(gzip.compress) | PLAIN.map(lambda body: gzip.compress(body)[:-5])
QUERY = st.dictionaries(st.sampled_from(FIELDS), ODD_TEXT.filter(lambda text: "\ud800" not in text), max_size=3)
KIND = st.sampled_from(["application/json", "multipart/form-data; boundary=edge", "multipart/form-data", "text/plain"])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(ROUTES), body=BODY, query=QUERY, kind=KIND)
def test_anything_is_answered_in_the_clients_form(
    site: Site, route: Any, body: bytes, query: dict[str, str], kind: str
) -> None:
    path = re.sub(r"{\w+}", "x", route.path)
    headers = {"Authorization": f"Bearer {site.token('user', 'ann')}", "Content-Type": kind}
    _check(site.client.simulate_request(route.method, path, body=body, params=query, headers=headers))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(task=TASK)
def test_any_task_parameters_are_taken_or_refused_with_words(site: Site, task: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {site.token('user', 'ann')}"}
    answer = site.client.simulate_post("/api/v1/task/submit", body=_sent({"task_parameters": task}), headers=headers)
    _check(answer)
    assert answer.json["success"] or answer.json["message"]


def _check(answer: Any) -> None:
    assert answer.status_code == 200, answer.text
    assert {"success", "message", "data"} == set(answer.json), answer.text
    assert "Traceback" not in answer.text and "mistake inside" not in answer.text
