"""The relay's mailbox and its two ends, with a server that the tests write themselves."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import msgspec
import pytest

from common import relay
from common.endpoint import checked_url, is_private
from common.errors import ErrorCode, PilotageError
from common.http import HttpClient, ProblemError, Unreachable
from common.relay import Damaged, ReplyHead, RequestHead, check_folder, get, mailbox_folder, put
from harvester.relay import mailbox
from harvester.relay.agent import Relay, RelayConfig
from harvester.relay.forward import Call, Reply, problem
from harvester.relay.mailbox import MailboxRelay
from pilot.client import HttpServer, ServerAway

Serve = Callable[[Call], Reply]


def echo(call: Call) -> Reply:
    return Reply(200, "OK", {"Content-Type": "application/json"}, call.body or b'"nothing"')


class Box:
    """A mailbox in a folder, and what its server was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[Call] = []
        self.serve: Serve = echo
        self.relay: Optional[MailboxRelay] = None

    @property
    def url(self) -> str:
        return f"mailbox://{self.folder}"

    def start(self) -> MailboxRelay:
        self.relay = MailboxRelay(self.folder, self._forward)
        self.relay.start()
        return self.relay

    def stop(self) -> None:
        if self.relay is not None:
            self.relay.stop()
            self.relay = None

    def _forward(self, call: Call) -> Reply:
        self.calls.append(call)
        return self.serve(call)

    @contextlib.contextmanager
    def client(self, token: str = "tok") -> Iterator[HttpClient]:
        client = HttpClient(self.url, token=lambda: token, retries=0)
        try:
            yield client
        finally:
            client.close()

    def files(self) -> list[str]:
        """What lies in the mailbox, but for the relay's own file and empty folders."""
        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return sorted(name for name in found if name not in ("relay", "requests/.relay"))

    def boxes(self) -> list[str]:
        return [path.name for path in (self.folder / "replies").iterdir()]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "box")
    yield made
    made.stop()


def test_a_call_reaches_the_server_and_its_answer_the_pilot(box: Box) -> None:
    box.start()
    with box.client() as client:
        assert client.call("POST", "/v1/jobs:acquire", {"a": 1}, dict[str, int]) == {"a": 1}
        call = box.calls[0]
        assert (call.method, call.path, call.body) == ("POST", "/v1/jobs:acquire", b'{"a":1}')
        assert call.headers["Authorization"] == "Bearer tok" and call.headers["Content-Type"] == "application/json"
    assert box.files() == box.boxes() == []


def test_an_error_of_the_server_comes_through_with_its_words(box: Box) -> None:
    told = {"Content-Type": "application/problem+json", "Retry-After": "7"}
    words = b'{"type":"pilotage:gone","title":"Gone","status":410,"detail":"job 7 is over"}'
    box.serve = lambda _call: Reply(410, "Gone", told, words)
    box.start()
    with box.client() as client, pytest.raises(ProblemError, match="job 7 is over") as caught:
        client.call("POST", "/v1/jobs/7:finish", {}, dict[str, int])
    assert caught.value.status == 410 and caught.value.retry_after_s == 7.0


def test_a_large_body_passes_both_ways(box: Box) -> None:
    content = os.urandom(20_000_000)
    box.start()
    with box.client() as client:
        assert client.transfer("PUT", "/v1/jobs/1/log", content) == content
    assert box.files() == []


def test_calls_side_by_side_get_their_own_answers(box: Box) -> None:
    box.start()
    found: dict[int, int] = {}
    with box.client() as client:

        def ask(number: int) -> None:
            found[number] = client.call("POST", "/v1/x", number, int)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {number: number for number in range(100)}
    assert box.files() == []


def test_an_answer_takes_a_fraction_of_a_second_even_after_a_pause(box: Box) -> None:
    box.start()
    took = []
    with box.client() as client:
        for pause_s in (0.0, 0.0, 1.0, 0.0, 1.0):
            threading.Event().wait(pause_s)
            began = time.monotonic()
            client.call("POST", "/v1/x", 1, int)
            took.append(time.monotonic() - began)
    assert min(took[2], took[4]) < 0.9, took  # those after a pause


def test_without_a_relay_the_call_is_given_up_in_its_time(box: Box) -> None:
    box.start()
    box.stop()
    with box.client() as client, pytest.raises(Unreachable, match="no reply from the relay in 0 s: does it run"):
        client.call("POST", "/v1/x", 1, int, timeout=0.3)
    assert box.files() == []


def test_a_folder_that_no_relay_has_used_is_told(box: Box) -> None:
    with box.client() as client, pytest.raises(Unreachable, match="mailbox cannot be used.*No such file"):
        client.call("POST", "/v1/x", 1, int)


def test_a_client_that_is_closed_waits_no_longer(box: Box) -> None:
    box.start()
    box.stop()
    began = time.monotonic()
    with box.client() as client:
        threading.Timer(0.2, client.close).start()
        with pytest.raises(Unreachable, match="closed"):
            client.call("POST", "/v1/x", 1, int, timeout=30.0)
    assert time.monotonic() - began < 25.0


def test_a_request_of_a_relay_that_stopped_is_served_by_the_next(box: Box) -> None:
    box.start()
    box.stop()
    answers: list[int] = []
    with box.client() as client:
        asking = threading.Thread(target=lambda: answers.append(client.call("POST", "/v1/x", 1, int, timeout=20.0)))
        asking.start()
        while not box.files():
            threading.Event().wait(0.01)
        box.start()
        asking.join()
    assert answers == [1] and box.files() == []


def test_the_server_away_is_told_as_such_and_the_pilot_asks_again_later(box: Box) -> None:
    box.serve = lambda _call: problem(503, "The relay cannot reach the server", "ConnectTimeout")
    box.start()
    server = HttpServer(box.url, token="t")
    with pytest.raises(ServerAway, match="cannot reach the server") as caught:
        server.sandbox("0" * 64)
    assert caught.value.retry_after_s == 5.0
    server.close()


# ---------------------------------------------------------------- what crashes leave


def left_request(box: Box, age_s: float = 0.0, wait_s: float = 60.0) -> Path:
    """A request as a pilot that was killed leaves it."""
    folder = box.folder / "requests"
    name = f"{relay.new_name()}.{relay.new_name()}"
    (box.folder / "replies" / name.split(".")[0]).mkdir(mode=0o700, exist_ok=True)
    put(folder, name, RequestHead(method="POST", path="/v1/x", wait_s=wait_s), b"1")
    then = time.time() - age_s
    os.utime(folder / name, (then, then))
    return folder / name


def wait_gone(path: Path) -> None:
    end = time.monotonic() + 10
    while path.exists():
        assert time.monotonic() < end, f"{path} is still there"
        threading.Event().wait(0.01)


def test_a_request_that_nobody_waits_for_any_more_is_not_served(box: Box) -> None:
    box.start()
    box.stop()
    old, young = left_request(box, age_s=100.0), left_request(box)
    box.start()
    wait_gone(old)
    wait_gone(young)
    assert len(box.calls) == 1
    assert len(box.files()) == 1, "the reply to the young one"


def test_a_request_that_was_answered_before_the_crash_is_not_served_again(box: Box) -> None:
    box.start()
    box.stop()
    request = left_request(box)
    folder, call = request.name.split(".")
    put(box.folder / "replies" / folder, call, ReplyHead(status=200), b"first")
    box.start()
    wait_gone(request)
    assert box.calls == []
    assert get(box.folder / "replies" / folder / call, ReplyHead)[1] == b"first"


def test_a_reply_to_a_pilot_that_is_gone_is_dropped(box: Box) -> None:
    box.start()
    box.stop()
    request = left_request(box)
    (box.folder / "replies" / request.name.split(".")[0]).rmdir()
    box.start()
    wait_gone(request)
    assert box.files() == []


def test_half_files_and_strangers_harm_nobody(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "ALIVE_S", 0.05)
    box.start()
    box.stop()
    whole = left_request(box).read_bytes()
    bad = {
        "half body": whole[:-1],
        "half head": whole[:20],
        "more": whole + b"x",
        "another body": whole[:-1] + b"2",
        "nothing": b"",
        "not ours": b'["POST"]\n',
        "binary": os.urandom(100_000),
        "huge": msgspec.json.encode({"method": "POST", "path": "/", "size": 10**12}) + b"\n",
    }
    paths = []
    for content in bad.values():
        path = left_request(box)
        path.write_bytes(content)
        paths.append(path)
    link = left_request(box)
    link.unlink()
    link.symlink_to("/etc/passwd")
    (box.folder / "requests" / "README").write_text("a stranger")
    (box.folder / "requests" / f"{relay.new_name()}.{relay.new_name()}").mkdir()
    box.start()
    with box.client() as client:
        assert client.call("POST", "/v1/x", 1, int) == 1
    assert all(path.exists() for path in paths), "they may become whole"
    long_ago = time.time() - 2 * mailbox.DAMAGED_S
    for path in paths:
        os.utime(path, (long_ago, long_ago))
    for path in paths:
        wait_gone(path)
        folder, call = path.name.split(".")
        assert get(box.folder / "replies" / folder / call, ReplyHead)[0].status == 400
    assert {call.path for call in box.calls} == {"/v1/x"}


def test_a_request_that_becomes_whole_late_is_served(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "ALIVE_S", 0.05)
    box.start()
    box.stop()
    path = left_request(box)
    whole = path.read_bytes()
    path.write_bytes(whole[:5])
    box.start()
    threading.Event().wait(0.2)
    assert box.calls == []
    path.write_bytes(whole)
    wait_gone(path)
    assert len(box.calls) == 1


def test_what_killed_pilots_left_goes_by_age(box: Box) -> None:
    made = box.start()
    box.stop()
    keep = left_request(box, age_s=10.0, wait_s=1e6)
    old_box, used_box = (box.folder / "replies" / relay.new_name() for _ in range(2))
    for path in (old_box, used_box):
        path.mkdir()
    replies = box.folder / "replies" / keep.name.split(".")[0]
    files = [replies / "unfetched", box.folder / "requests" / ".half"]
    for path in files:
        path.write_bytes(b"x")
    for path in (*files, old_box, replies):
        os.utime(path, (time.time() - 2 * mailbox.KEEP_S,) * 2)
    (box.folder / "relay").touch()
    made.sweep()
    assert box.files() == [f"requests/{keep.name}"]
    assert sorted(box.boxes()) == sorted([replies.name, used_box.name])


def test_a_box_that_was_swept_while_its_pilot_slept_is_made_again(box: Box) -> None:
    box.start()
    with box.client() as client:
        client.call("POST", "/v1/x", 1, int)
        (used,) = (box.folder / "replies").iterdir()
        used.rmdir()
        assert client.call("POST", "/v1/x", 2, int) == 2
        os.utime(used, (0, 0))
        assert client.call("POST", "/v1/x", 3, int) == 3
        assert time.time() - used.stat().st_mtime < 60


def test_more_requests_than_threads_are_served_in_turns(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "THREADS", 3)
    box.start()
    box.stop()
    waiting = [left_request(box) for _ in range(20)]
    most, now, lock = [0], [0], threading.Lock()

    def slow(call: Call) -> Reply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.02)
        with lock:
            now[0] -= 1
        return echo(call)

    box.serve = slow
    box.start()
    for path in waiting:
        wait_gone(path)
    assert len(box.calls) == 20 and most[0] == 3


# ---------------------------------------------------------------- who may read it


def test_everything_in_the_mailbox_is_its_users_alone(box: Box) -> None:
    modes: dict[str, int] = {}

    def look(call: Call) -> Reply:
        modes.update({path.name: path.stat().st_mode & 0o777 for path in box.folder.rglob("*")})
        return echo(call)

    box.serve = look
    old = os.umask(0)
    try:
        box.start()
        with box.client() as client:
            client.call("POST", "/v1/x", 1, int)
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600, 0o700}
    assert box.folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_read_is_refused_on_both_sides(box: Box) -> None:
    box.start()
    box.stop()
    box.folder.chmod(0o750)
    with pytest.raises(PilotageError, match="closed to all others: chmod 700") as caught:
        MailboxRelay(box.folder, echo)
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION
    with box.client() as client, pytest.raises(Unreachable, match="closed to all others"):
        client.call("POST", "/v1/x", 1, int)
    assert box.files() == []
    link = box.folder.with_name("link")
    link.symlink_to(box.folder)
    with pytest.raises(PilotageError):
        check_folder(link)


def test_a_token_shows_in_no_log_and_no_repr(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    box.start()
    with caplog.at_level("DEBUG"), box.client("very-secret-token") as client:
        client.call("POST", "/v1/x", 1, int)
    assert "very-secret-token" not in caplog.text + repr(box.calls)


# ---------------------------------------------------------------- addresses and configuration


def test_the_address_of_a_mailbox() -> None:
    assert mailbox_folder("mailbox:///shared/dir/") == Path("/shared/dir")
    assert checked_url("mailbox:///shared/dir/") == "mailbox:///shared/dir"
    assert is_private("mailbox:///shared/dir")


@pytest.mark.parametrize("url", ["mailbox:", "mailbox://", "mailbox:///", "mailbox://host/dir", "mailbox:/dir"])
def test_an_address_that_is_no_mailbox_is_refused(url: str) -> None:
    with pytest.raises(PilotageError, match="write a mailbox like mailbox:///shared/folder"):
        checked_url(url)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RelayConfig(), "give folder, listen, or both"),
        (RelayConfig(folder="relative"), "must be an absolute path"),
        (RelayConfig(listen="8445"), "write HOST:PORT"),
        (RelayConfig(listen="localhost:high"), "write HOST:PORT"),
        (RelayConfig(listen="127.0.0.1:0", certificate="/no/file"), "relay certificate /no/file"),
        (RelayConfig(folder="/proc/none"), "relay folder /proc/none"),
    ],
)
def test_a_relay_that_cannot_be_is_refused_with_the_key(config: RelayConfig, words: str) -> None:
    with pytest.raises(PilotageError, match=words) as caught:
        Relay(config, "http://127.0.0.1:1", None)
    assert caught.value.code is ErrorCode.BAD_CONFIGURATION


def test_a_relay_to_a_mailbox_is_refused() -> None:
    with pytest.raises(PilotageError, match="not to another relay's mailbox"):
        Relay(RelayConfig(listen="127.0.0.1:0"), "mailbox:///shared/dir", None)


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            put(tmp_path, "a", ReplyHead(status=200), b"x")
    assert list(tmp_path.iterdir()) == []
    put(tmp_path, "a", ReplyHead(status=200), b"x")
    assert get(tmp_path / "a", ReplyHead) == (ReplyHead(status=200, size=1, crc32=2363233923), b"x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Damaged, match="no regular file"):
        get(tmp_path / "fifo", ReplyHead)
