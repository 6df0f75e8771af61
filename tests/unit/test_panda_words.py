"""PanDA's words and numbers have each a counterpart here, and what is said in them is read with care."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from typing import Any

import pytest

from common.errors import ERRORS, ErrorCode
from common.states import JobState, ResourceState, WorkerState
from common.wire import Endpoint, Metrics, PeekOrder, QueueSpec, StorageSpec
from server.compat.panda.asking import mark_of, worker_of
from server.compat.panda.catalogue import COPYTOOLS, storage_data
from server.compat.panda.fields import Fields, id_of
from server.compat.panda.reporting import _files, command_of, metrics_of
from server.compat.panda.resources import RESOURCE_TYPES, cores_of, kind_of
from server.compat.panda.words import (
    JOB_STATES,
    PILOT_ERRORS,
    QUEUE_STATUS,
    STATUS_OF,
    WORKER_STATES,
    error_of,
)
from server.dispatch.errors import Invalid
from server.engine.world import World, join_url

# reference: PanDA documentation, the table of pilot error codes
PILOT_CODES = (
    *(1008, 1098, 1099, 1100, 1103, 1104, 1106, 1110, 1115, 1116, 1117, 1124, 1133, 1137, 1141, 1143, 1144, 1145, 1149),
    *(
        1150,
        1151,
        1152,
        1163,
        1165,
        1168,
        1171,
        1172,
        1177,
        1180,
        1181,
        1186,
        1187,
        1190,
        1191,
        1199,
        *range(1200, 1208),
    ),
    *(1211, 1212, 1213, 1220, 1221, 1223, 1224, 1228, 1234, 1235, 1236, 1238, 1240, 1242, 1244, 1246, 1247),
    *(*range(1300, 1304), *range(1305, 1366)),
)


@pytest.mark.parametrize("code", PILOT_CODES)
def test_every_number_of_their_pilot_has_one_of_ours(code: int) -> None:
    ours = PILOT_ERRORS[code]
    assert ours in ERRORS and error_of(code, 0) is error_of(-code, 0) is ours
    known = {int(each) for each in ErrorCode}
    if code in known:
        assert int(ours) == code


def test_a_number_that_nobody_knows_is_the_payloads_or_the_sites() -> None:
    assert error_of(4711, 0) is ErrorCode.GENERAL_ERROR and error_of(0, 0) is ErrorCode.GENERAL_ERROR
    assert error_of(4711, 1) is ErrorCode.PAYLOAD_FAILED and error_of(0, 65) is ErrorCode.PAYLOAD_FAILED


def test_every_state_of_theirs_and_ours_has_its_counterpart() -> None:
    assert set(JOB_STATES) >= {"starting", "running", "holding", "finished", "failed"}
    assert set(STATUS_OF) == set(JobState)
    assert set(QUEUE_STATUS) == set(ResourceState)
    told = {"submitted", "running", "finished", "failed", "ready", "cancelled", "idle", "missed", "pending"}
    assert set(WORKER_STATES) >= told and set(WORKER_STATES.values()) <= set(WorkerState)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("5", 5), (5, 5), (" 7 ", 7), ("05", 5), (0, None), ("0", None), (-1, None), (True, None), (1.0, None),
        ("1e3", None), ("٣", None), (2**63, None), ("9" * 19, None), (None, None), ([1], None), ("", None),
    ],
)  # fmt: skip
def test_an_id_is_a_number_of_ours_or_none(value: Any, found: int | None) -> None:
    assert id_of(value) == found


def test_fields_are_read_with_care() -> None:
    fields = Fields(
        {"a": "x\0y", "n": "NULL", "b": True, "l": [1], "f": float("inf"), "big": 10**400, "s": "1e400", "m": -3}
    )
    assert fields.text("a") == "xy" and fields.text("n") == fields.text("b") == fields.text("l") == ""
    assert fields.number("f") is None and fields.number("s") is None and fields.number("big") is None
    assert fields.count("m") == 0 and fields.count("missing") == 0 and fields.signed("m") == -3
    assert Fields({"a": 10**12}).count("a") == 2**31 - 1 and Fields({"a": 10**12}).signed("a") == 0


def test_figures_are_in_our_units() -> None:
    told = {
        "startTime": "10", "endTime": 70.0, "cpuConsumptionTime": "55", "maxRSS": 2048, "maxPSS": 1024, "maxSWAP": 512,
        "totRBYTES": 7, "totWBYTES": 8, "pilotTiming": "1|2|3|4|5", "jobMetrics": "nEvents=9 workDirSize=1048576 x=y",
    }  # fmt: skip
    assert metrics_of(Fields(told)) == Metrics(
        wall_s=60.0, cpu_s=55.0, max_rss_mb=2.0, max_pss_mb=1.0, max_swap_mb=0.5, read_bytes=7, written_bytes=8, events=9,
        work_dir_mb=1.0, stage_in_s=2.0, stage_out_s=4.0,
    )  # fmt: skip
    assert metrics_of(Fields({"pilotTiming": "x", "jobMetrics": 5, "startTime": 70, "endTime": 10})) is None


def test_files_are_read_from_a_text_or_as_they_are() -> None:
    told = {"a": {"guid": "g", "fsize": "12", "adler32": "ABC", "surl": "root://h//d/a", "endpoint": "SE"}}
    for said in (told, json.dumps(told)):
        (found,) = _files(said)
        assert (found.lfn, found.size, found.checksum) == ("a", 12, "adler32:00000abc")
        assert (found.storage, found.url) == ("SE", "root://h//d/a")
    assert _files("") == _files("NULL") == _files(None) == []
    for bad in ([], 5, {"a": 1}, {"a": {"fsize": -1, "adler32": "1"}}, {"a": {"fsize": 1, "adler32": "xyz"}}, '"x"'):
        with pytest.raises(Invalid):
            _files(bad)


@pytest.mark.parametrize(
    ("order", "command"),
    [
        (PeekOrder(peek_id=1, kind="tail", path="stderr"), "tail payload.stderr"),
        (PeekOrder(peek_id=1, kind="tail", path="-f x"), None),
        (PeekOrder(peek_id=1, kind="ls", path="-la"), None),
        (PeekOrder(peek_id=1, kind="ls", path="a b"), None),
        (PeekOrder(peek_id=1, kind="ls", path="$(x)"), None),
        (PeekOrder(peek_id=1, kind="gdb"), None),
        (PeekOrder(peek_id=1, kind="new one"), None),
    ],
)
def test_nothing_that_a_person_writes_is_shell_text(order: PeekOrder, command: str | None) -> None:
    assert command_of(order) == command


def test_the_kinds_of_jobs() -> None:
    queue = QueueSpec(name="q", site="s", cores=8)
    cores = {name: cores_of(kind, queue) for name, kind in RESOURCE_TYPES.items()}
    assert cores == {"SCORE": 1, "SCORE_HIMEM": 1, "MCORE": 8, "MCORE_HIMEM": 8}
    assert cores_of(None, queue) == 8 and cores_of(RESOURCE_TYPES["MCORE"], QueueSpec(name="q", site="s")) == 2
    assert [kind_of(1, 2000), kind_of(1, 2001), kind_of(8, 16_000), kind_of(8, 16_001)] == [
        "SCORE", "SCORE_HIMEM", "MCORE", "MCORE_HIMEM",
    ]  # fmt: skip


def test_a_worker_has_a_mark_of_its_own() -> None:
    mark = mark_of("h", "12")
    assert mark is not None and worker_of("h", mark) == "12" and worker_of("other", mark) is None
    assert mark != mark_of("other", "12") and len(mark_of("h" * 300, "9" * 32) or "") <= 64
    for odd in ("", "a b", "x" * 33, "a/b", "é"):
        assert mark_of("h", odd) is None


def test_every_copytool_of_ours_has_one_of_theirs() -> None:
    assert {each.name for each in entry_points(group="pilotage.copytools")} <= set(COPYTOOLS)


@pytest.mark.parametrize(
    "url",
    ["file:///data", "root://h:1094//data", "root://h:1094/", "root://h:1094//", "davs://h/a/b/", "https://h:8443"],
)
def test_an_endpoint_in_two_parts_is_the_same_place(url: str) -> None:
    world = World(storages={"se": StorageSpec(name="se", site="s", endpoints=[Endpoint(url)])})
    (protocol,) = storage_data(world)["se"]["arprotocols"]["write_lan"]
    assert f"{protocol['endpoint']}{protocol['path']}mc/ab/cd/x" == join_url(url, "mc/ab/cd/x")
