"""A job's transfers: the order of tools and storages, direct reading, the end of the slot."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

import pytest

from common.errors import ErrorCode, PilotageError
from common.wire import (
    Activity,
    AssignedFile,
    AssignedUnit,
    OutputDestination,
    OutputRecord,
    Queue,
    Replica,
)
from pilot.credentials import PayloadCredential
from pilot.jobstate import ProducedFile
from pilot.transfers import Transfers, payload_place, tool_order
from tests.unit.test_staging import OtherTool, ScriptedTool

ADLER32 = "adler32:11e60398"
DENIED, AWAY = ErrorCode.STAGE_OUT_AUTHENTICATION, ErrorCode.SERVICE_UNAVAILABLE


def unit(number: int, *urls: str, activity: Activity = Activity.READ_LAN) -> AssignedUnit:
    replicas = [Replica(url.split("/")[2].upper(), url, place, activity) for place, url in enumerate(urls)]
    return AssignedUnit(number, number, AssignedFile(f"t:f{number}", 9, ADLER32, replicas=replicas))


def produced(folder: Path, name: str = "out") -> ProducedFile:
    (folder / name).write_bytes(b"Wikipedia")
    return ProducedFile(str(folder / name), OutputRecord(name, 9, ADLER32))


def place(storage: str, activity: Activity = Activity.WRITE_LAN) -> OutputDestination:
    return OutputDestination("out", "t:out", storage, [f"fake://{storage}/out"], activity=activity)


class Credentials:
    """Notes what it is told, and covers what it is told to."""

    def __init__(self, covers: Iterable[str] = (), error: Optional[PilotageError] = None) -> None:
        self.covers = frozenset(covers)
        self.error = error
        self.told: list[tuple[str, list[str]]] = []

    def reads(self, job_id: int, urls: Iterable[str]) -> None:
        self.told.append(("reads", list(urls)))

    def writes(self, job_id: int, urls: Sequence[str]) -> None:
        self.told.append(("writes", list(urls)))

    def for_payload(self, job_id: int, urls: Sequence[str], path: Path) -> PayloadCredential:
        self.told.append(("payload", list(urls)))
        if self.error is not None:
            raise self.error
        return PayloadCredential({"BEARER_TOKEN_FILE": str(path)}, self.covers)

    def forget(self, job_id: int) -> None:
        self.told.append(("forget", []))


def test_the_queue_says_which_tools_for_what() -> None:
    queue = Queue(name="q", site="s", copytools=["a", "b"], copytools_for={Activity.READ_WAN: ["b"], Activity.LOGS: []})
    order = tool_order(queue)
    assert (order[Activity.READ_LAN], order[Activity.READ_WAN], order[Activity.LOGS]) == (["a", "b"], ["b"], ["a", "b"])
    assert tool_order(Queue(name="q", site="s")) == {}


@pytest.mark.parametrize(
    ("activity", "first"), [(Activity.READ_LAN, "scripted"), (Activity.READ_WAN, "other")], ids=["near", "far"]
)
def test_tools_are_tried_in_the_order_of_the_activity(tmp_path: Path, activity: Activity, first: str) -> None:
    scripts: dict[str, list[Optional[ErrorCode]]] = {"fake://a/f": [ErrorCode.STAGE_IN_AUTHENTICATION]}
    tools = [ScriptedTool(dict(scripts)), OtherTool(dict(scripts))]
    order = {Activity.READ_LAN: [tools[0].name], Activity.READ_WAN: [tools[1].name, tools[0].name]}
    fetched = Transfers(tools, order=order).fetch([unit(1, "fake://a/f", activity=activity)], [], tmp_path)
    assert fetched.failure is not None
    assert [len(tool.calls) for tool in tools] == ([1, 0] if activity is Activity.READ_LAN else [1, 1])
    assert fetched.failure.detail.startswith(f"t:f1: A ({first}): ")


def test_an_output_goes_to_the_next_storage_that_takes_it(tmp_path: Path) -> None:
    tool = ScriptedTool({"fake://a/out": [DENIED], "fake://b/out": [DENIED], "fake://c/out": [None]})
    asked: list[list[str]] = []

    def elsewhere(record: OutputRecord) -> Optional[OutputDestination]:
        asked.append(list(record.avoid))
        return place("bc"[len(asked) - 1], Activity.WRITE_WAN)

    credentials = Credentials()
    done = Transfers([tool], credentials).upload([produced(tmp_path)], [place("a")], elsewhere)
    assert asked == [["a"], ["a", "b"]]
    assert done.failure is None and [each.url for each in done.uploaded] == ["fake://c/out"]
    assert ("writes", ["fake://c/out"]) in credentials.told


def test_without_another_storage_the_first_error_stays(tmp_path: Path) -> None:
    for elsewhere in (None, lambda _: None):
        tool = ScriptedTool({"fake://a/out": [DENIED]})
        done = Transfers([tool]).upload([produced(tmp_path)], [place("a")], elsewhere)
        assert done.failure is not None and done.failure.code is DENIED and done.uploaded == ()


def test_no_storage_mends_a_missing_output(tmp_path: Path) -> None:
    file = ProducedFile(str(tmp_path / "gone"), OutputRecord("out", 9, ADLER32))
    done = Transfers([ScriptedTool({})]).upload([file], [place("a")], lambda _: pytest.fail("asked for another"))
    assert done.failure is not None and done.failure.code is ErrorCode.MISSING_OUTPUT


def test_nothing_is_tried_again_when_the_slot_is_over(tmp_path: Path) -> None:
    """A bug in the making: back-off that outlives the slot, and a job that is lost instead of failed."""
    tool = ScriptedTool({"fake://a/f": [AWAY] * 100})
    begun = time.monotonic()
    fetched = Transfers([tool], time_left_s=lambda: -100.0).fetch([unit(1, "fake://a/f")], [], tmp_path)
    assert fetched.failure is not None and time.monotonic() - begun < 60
    out = ScriptedTool({"fake://a/out": [DENIED]})
    done = Transfers([out], time_left_s=lambda: 0.0).upload(
        [produced(tmp_path)], [place("a")], lambda _: pytest.fail("there is no time for another")
    )
    assert done.failure is not None


def test_what_one_credential_covers_is_read_directly(tmp_path: Path) -> None:
    a, b, c = "root://one//f1", "root://two//f2", "root://one//f%203"
    credentials = Credentials([a, "root://one//"])
    transfers = Transfers([], credentials)
    direct = transfers.read_directly([unit(1, a), unit(2, b), unit(3, c)], tmp_path / "credential")
    assert direct.places == {"t:f1": a, "t:f3": "root://one//f 3"}
    assert direct.storages["t:f1"] == "ONE" and "1 files are copied" in direct.problem
    assert direct.environment == {"BEARER_TOKEN_FILE": str(tmp_path / "credential")}
    transfers.read_directly([unit(4, "root://one//f4")], tmp_path / "credential")
    assert credentials.told[-1] == ("payload", ["root://one//f4", a, c]), "the newest first, and those of before"


def test_what_no_credential_can_be_had_for_is_copied(tmp_path: Path) -> None:
    error = PilotageError(ErrorCode.COMMUNICATION_FAILED, "the server is away")
    direct = Transfers([], Credentials(error=error)).read_directly([unit(1, "root://one//f")], tmp_path / "x")
    assert direct.places == {} and "the server is away" in direct.problem
    assert Transfers([]).read_directly([unit(1, "root://one//f")], tmp_path / "x").places == {}


def test_places_that_payloads_open() -> None:
    assert payload_place("file:///d/a%20b") == "/d/a b"
    assert payload_place("https://h/d/a%20b") == "https://h/d/a%20b"
    assert payload_place("roots://h//d/a%20b") == "roots://h//d/a b"
