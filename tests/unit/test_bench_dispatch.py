"""The parts of ``pilotage bench dispatch`` that a wrong figure could come from."""

from __future__ import annotations

import random
import socket
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from common.config import load_config
from common.wire import AcquireRequest, HeartbeatRequest, Measured, Offer, RecordRequest
from server.bench import open_loop, report
from server.bench.closed_loop import ClosedLoop
from server.bench.fill import share_tree, stage_of
from server.bench.lives import CLAIM, HEARTBEAT, Book
from server.bench.messages import Claims, Go, Result, Target, World
from server.bench.open_loop import OpenLoop, arrivals, beating_order
from server.bench.profiles import judge_backlog
from server.bench.programs import toml_of
from server.bench.report import Report, latencies, milliseconds
from server.bench.requests import METRICS_BYTES, acquire_renderer, heartbeat_renderer, record_renderer
from server.bench.wire import Broken, Connection
from server.config import Knobs, ServerConfig
from server.engine.sizing import SlotSize, job_bounds
from server.store.bulk import Unfilled, check_columns

Answer = Callable[[bytes], bytes]


class FakeServer:
    """Answers requests of one connection after another thread's connection, as ``answer`` says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        data = b""
        with connection, suppress(ConnectionResetError):  # a driver that ends reads no more
            while chunk := connection.recv(65536):
                data += chunk
                head, found, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) if found else 0
                if not found or len(body) < length:
                    continue
                data = body[length:]
                reply = self._answer(head + found + body[:length])
                if not reply:
                    return
                connection.sendall(reply)

    def close(self) -> None:
        self._socket.close()


def ok(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Answer], Target]]:
    servers = []

    def start(answer: Answer) -> Target:
        servers.append(FakeServer(answer))
        return target(tmp_path, servers[-1].port)

    yield start
    for each in servers:
        each.close()


def target(folder: Path, port: int = 1) -> Target:
    config = ServerConfig(database=f"sqlite:///{folder / 'none.db'}", state_dir=str(folder))
    return Target("127.0.0.1", port, config)


def body_of(request: bytes) -> bytes:
    """The body; its length must be what the head says."""
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}" in head.decode().lower().split("\r\n")
    return body


def world(at: Target, **values: float) -> World:
    given = {
        "heartbeats_per_s": 100.0,
        "lives_per_s": 0.0,
        "seconds": 0.5,
        "warm_up_s": 0.0,
        "connections": 1,
        **values,
    }
    return World(at, "w", first_beating=1, beating=1000, first_idle=2000, idle=10, offer=Offer(), **given)  # type: ignore[arg-type]


def claims(at: Target, connections: int = 2) -> Claims:
    return Claims(at, "c", connections, first_pilot=1, pilots=4, offer=Offer())


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", [7, 12_345_678_901])
def test_a_heartbeat_is_one_job_with_a_kilobyte_of_metrics(tmp_path: Path, job_id: int) -> None:
    request = heartbeat_renderer(target(tmp_path))("token", job_id)
    body = body_of(request)
    decoded = msgspec.json.decode(body, type=HeartbeatRequest)
    assert [each.job_id for each in decoded.jobs] == [job_id]
    assert len(msgspec.json.encode(msgspec.json.decode(body)["jobs"][0]["metrics"])) >= METRICS_BYTES
    assert b"\r\nAuthorization: Bearer token\r\n" in request


def test_no_two_claims_have_the_same_request_id(tmp_path: Path) -> None:
    render = acquire_renderer(target(tmp_path), Offer(cores=8), "c0")
    bodies = [msgspec.json.decode(body_of(render(token, n)), type=AcquireRequest) for token in "ab" for n in (1, 10**9)]
    other = msgspec.json.decode(body_of(acquire_renderer(target(tmp_path), Offer(), "c1")("a", 1)), type=AcquireRequest)
    assert len({each.request_id for each in [*bodies[:2], other]}) == 3
    assert {(each.max_jobs, each.offer.cores, each.wait_s) for each in bodies} == {(1, 8, 0.0)}


def test_a_record_names_one_output(tmp_path: Path) -> None:
    request = record_renderer(target(tmp_path))("token", 42)
    assert request.startswith(b"POST /v1/jobs/42/outputs HTTP/1.1\r\n")
    assert len(msgspec.json.decode(body_of(request), type=RecordRequest).outputs) == 1


# --- the connection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 40, 10_000])
def test_an_answer_may_come_in_pieces(size: int) -> None:
    here, there = socket.socketpair()
    connection = Connection.__new__(Connection)
    connection.adopt(here)
    answer = ok(b'{"jobs":[]}', "201 Created")
    for start in range(0, len(answer), size):
        assert connection.receive() is None
        there.sendall(answer[start : start + size])
        if start + size < len(answer):
            assert connection.receive() is None
    assert connection.receive() == (201, b'{"jobs":[]}')
    there.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert connection.receive() == (204, b"")
    there.close()
    with pytest.raises(Broken):
        connection.receive()
    connection.close()


# --- the closed loop --------------------------------------------------------------------------------------------------


def test_every_claim_is_in_the_book(serve: Callable[[Answer], Target]) -> None:
    given = iter(range(1, 1000))
    asked_for: list[str] = []
    lock = threading.Lock()

    def answer(request: bytes) -> bytes:
        asked = msgspec.json.decode(body_of(request), type=AcquireRequest)
        with lock:
            number = next(given)
            asked_for.append(asked.request_id)
        return ok(b'{"jobs":[{"job_id":%d,"units":[{"unit_id":%d}]}]}' % (number, number // 2))

    result = ClosedLoop(claims(serve(answer))).run(Go(0.0, claims=20))
    pairs = report.claims_of([result])
    assert sorted(job for _, job in pairs) == list(range(1, 21))
    assert len(latencies([result], CLAIM)) == 20
    assert (result.errors, result.empty) == (0, 0)
    assert report.duplicates_in(pairs) == 9
    assert len(set(asked_for)) == 20


def test_a_refusal_is_an_error_and_no_claim(serve: Callable[[Answer], Target]) -> None:
    result = ClosedLoop(claims(serve(lambda _: ok(b"out of order", "503 Unavailable")))).run(Go(0.0, claims=4))
    assert (result.errors, result.claims, result.latencies) == (4, b"", {})
    assert "503 out of order" in result.examples[0]


def test_a_closed_loop_ends_when_nothing_is_left(serve: Callable[[Answer], Target]) -> None:
    result = ClosedLoop(claims(serve(lambda _: ok(b"{}")))).run(Go(0.0, seconds=60.0))
    assert 1 <= result.empty <= 2
    assert result.elapsed_s < 30.0


def test_a_connection_that_breaks_is_an_error_and_made_anew(serve: Callable[[Answer], Target]) -> None:
    count = iter(range(100))
    answers = [b"", ok(b'{"jobs":[{"job_id":1,"units":[{"unit_id":1}]}]}')]
    result = ClosedLoop(claims(serve(lambda _: answers[min(1, next(count))]), 1)).run(Go(0.0, claims=3))
    assert result.errors == 1
    assert len(report.claims_of([result])) == 2


# --- the open loop ----------------------------------------------------------------------------------------------------


def test_latency_counts_from_the_moment_that_was_fixed_in_advance(serve: Callable[[Answer], Target]) -> None:
    """A server that stands still for half a second makes all wait that fell due meanwhile, not only the one under way."""
    stalled = threading.Event()

    def answer(_: bytes) -> bytes:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.5)
        return ok(b'{"jobs":[{"job_id":1}]}')

    order = world(serve(answer))
    result = OpenLoop(order).run(Go(0.0))
    times = latencies([result], HEARTBEAT)
    assert len(times) == len(arrivals(order)[0])
    assert sum(each > 0.1 for each in times) > len(times) / 2
    assert max(result.backlog) > 10


def test_an_idle_connection_that_the_server_closed_is_made_anew_and_no_error(serve: Callable[[Answer], Target]) -> None:
    order = world(serve(lambda _: ok(b'{"jobs":[{"job_id":1}]}')))
    loop, book = OpenLoop(order), Book()
    for idle in list(loop._free):
        idle.sock.shutdown(socket.SHUT_RDWR)
        loop._answered(idle, 0.0, book)
    assert book.result(0.0, 0.0, []).errors == 0
    result = loop.run(Go(0.0))
    assert (result.errors, result.examples) == (0, [])
    assert len(latencies([result], HEARTBEAT)) == len(arrivals(order)[0])
    assert len(loop._connections) == len(loop._free) == order.connections


def test_a_connection_that_was_idle_for_long_is_left_before_the_server_closes_it(
    serve: Callable[[Answer], Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that meets a server which is just closing its connection counted as an error; pilots repeat it."""
    loop, book = OpenLoop(world(serve(lambda _: ok(b'{"jobs":[{"job_id":1}]}')))), Book()
    for idle in loop._free:
        idle.sock.shutdown(socket.SHUT_RDWR)
    monkeypatch.setattr(open_loop, "IDLE_S", -1.0)
    loop._start(0, book)
    assert book.result(0.0, 0.0, []).errors == 0


def test_a_forgotten_job_is_an_error(serve: Callable[[Answer], Target]) -> None:
    forgotten = ok(b'{"jobs":[{"job_id":1,"instruction":"unknown"}]}')
    result = OpenLoop(world(serve(lambda _: forgotten), seconds=0.1)).run(Go(0.0))
    assert result.errors == result.requests > 0
    assert not result.latencies


def test_what_is_never_answered_is_an_error(serve: Callable[[Answer], Target], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "PATIENCE_S", 0.2)
    hold = threading.Event()

    def answer(_: bytes) -> bytes:
        hold.wait(120)
        return b""

    order = world(serve(answer), seconds=0.1)
    result = OpenLoop(order).run(Go(0.0))
    hold.set()
    assert result.errors == len(arrivals(order)[0])


def test_arrivals_are_the_same_each_time_and_as_many_as_asked(tmp_path: Path) -> None:
    order = world(target(tmp_path), heartbeats_per_s=1000.0, lives_per_s=20.0, seconds=10.0, warm_up_s=1.0)
    times, what = arrivals(order)
    assert (times, what) == arrivals(order)
    assert list(times) == sorted(times)
    lives = sum(each == open_loop.LIFE for each in what)
    assert abs(len(what) - lives - 11_000) < 500
    assert abs(lives - 220) < 75
    assert sorted(each for each in what if each != open_loop.LIFE) == list(range(len(what) - lives))


def test_each_pilot_beats_once_before_any_beats_twice(tmp_path: Path) -> None:
    whole = msgspec.structs.replace(world(target(tmp_path)), beating=1001, parts=3)
    parts = [list(beating_order(msgspec.structs.replace(whole, part=part), 10**6)) for part in range(3)]
    assert sorted(sum(parts, [])) == list(range(1, 1002))
    first = list(beating_order(whole, 20))
    assert first == parts[0][:20]
    assert max(first) - min(first) > 500  # strewn, not in the order of the table


# --- the server -------------------------------------------------------------------------------------------------------


def test_the_configuration_of_the_server_is_read_back_as_it_was(tmp_path: Path) -> None:
    given = ServerConfig(database='postgresql://me:a"b\\c@h/x', port=0, web_processes=3, tls_cert="/tmp/c é.pem")
    file = tmp_path / "server.toml"
    file.write_text(toml_of(given), encoding="utf-8")
    assert load_config(ServerConfig, "server", [file], {}).value == given


# --- figures ----------------------------------------------------------------------------------------------------------


def test_percentiles() -> None:
    values = array("d", [each / 1000.0 for each in range(1, 101)])
    assert [milliseconds(values, percent) for percent in (50, 99, 100)] == [51.0, 100.0, 100.0]
    assert milliseconds(array("d"), 99) is None


@pytest.mark.parametrize(
    ("samples", "grows"),
    [([5] * 40, False), ([0] * 20 + [1] * 20, False), (list(range(0, 4000, 100)), True), (list(range(4000, 0, -100)), False)],
)  # fmt: skip
def test_a_backlog_grows(samples: list[int], grows: bool) -> None:
    made = Report(profile="world", scale=1.0)
    judge_backlog(made, [Result(backlog=samples)], 3582.0)
    assert made.backlog_grows is grows
    assert made.backlog_max == max(samples)


def test_there_are_50_nested_shares() -> None:
    tree = {share.name: share.parent for share in share_tree()}
    assert len(tree) == 50
    assert all(parent is None or parent in tree for parent in tree.values())
    assert any(tree[parent] in tree for parent in tree.values() if parent is not None)


def test_a_column_that_the_filling_does_not_know_is_named() -> None:
    """Or else the first to notice would be whoever wonders about the figures."""
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("new", Integer, nullable=False))
    check_columns(table, {"id": 1, "new": 2})
    with pytest.raises(Unfilled, match="new"):
        check_columns(table, {"id": 1})
    with pytest.raises(Unfilled, match="gone"):
        check_columns(table, {"id": 1, "new": 1, "gone": 1})


def test_a_job_takes_one_unit_also_when_its_task_was_measured_amid_the_run() -> None:
    """Lives confirm the one unit that they know of: the others came back, and were counted as given twice."""
    stage = stage_of(0, [], random.Random(1))
    slot = SlotSize(disk_mb=100_000, wall_s=86_400.0, core_power=10.0, cpu_efficiency=0.9)
    measured = Measured(round=1, jobs=100, cpu_per_event=1.0, memory_per_core_mb=500.0, out_kb_per_event=1.0)
    assert [job_bounds(stage, each, slot, Knobs()).limit for each in (None, measured)] == [1, 1]
