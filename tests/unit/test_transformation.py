"""Programs that the pilot fetches: what is taken, what is refused, and that one fetch does for all jobs."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Optional

import pytest

from common.errors import ErrorCode, PilotageError
from common.wire import FetchedProgram
from pilot.payload import JobFolder, PayloadDefinition, prepare_payload
from pilot.payload import transformation as module
from pilot.payload.transformation import Transformations
from pilot.supervised import SupervisedProcess

SCRIPT = b'#!/bin/sh\necho "run with $*"\n'
SUM = f"sha256:{hashlib.sha256(SCRIPT).hexdigest()}"


class Web(BaseHTTPRequestHandler):
    """``/run.sh`` is the script, ``/moved`` leads there, ``/round`` leads to itself, a number is that status."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        name = self.path.strip("/").split("/")[0]
        target = {"moved": "/run.sh", "round": "/round", "plain": "http://127.0.0.1:9/x"}.get(name)
        status = 302 if target else int(name) if name.isdigit() else 200
        body = SCRIPT if status == 200 else b""
        self.send_response(status)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(body) + (name == "short")))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        return


@pytest.fixture
def web() -> Iterator[tuple[str, list[str]]]:
    handler = type("OneWeb", (Web,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can read, as those of pytest are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def fetched(tmp_path: Path) -> Transformations:
    return Transformations(tmp_path / "cache", "pilot-1")


def refused(fetched: Transformations, url: str, checksum: Optional[str] = SUM) -> PilotageError:
    with pytest.raises(PilotageError) as caught:
        fetched.fetch(FetchedProgram(url=url, checksum=checksum))
    return caught.value


def test_one_fetch_does_for_all_jobs_of_a_pilot(web: tuple[str, list[str]], fetched: Transformations) -> None:
    program = FetchedProgram(url=f"{web[0]}/run.sh", checksum=SUM)
    path = fetched.fetch(program)
    assert path.name == "run.sh" and path.read_bytes() == SCRIPT
    assert fetched.fetch(program) == path and web[1] == ["/run.sh"]


def test_a_program_without_a_checksum_is_fetched_anew_by_the_next_pilot(tmp_path: Path, public: Path) -> None:
    source = public / "run.sh"
    program = FetchedProgram(url=source.as_uri())
    source.write_text("one")
    first = Transformations(tmp_path / "cache", "pilot-1")
    assert first.fetch(program).read_text() == "one"
    source.write_text("two")
    assert first.fetch(program).read_text() == "one"
    assert Transformations(tmp_path / "cache", "pilot-2").fetch(program).read_text() == "two"


def test_a_redirection_is_followed_and_a_circle_is_not(web: tuple[str, list[str]], fetched: Transformations) -> None:
    assert fetched.fetch(FetchedProgram(url=f"{web[0]}/moved", checksum=SUM)).read_bytes() == SCRIPT
    assert refused(fetched, f"{web[0]}/round").code is ErrorCode.TRANSFORMATION_NOT_FOUND


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("404/x", ErrorCode.TRANSFORMATION_NOT_FOUND),
        ("403/x", ErrorCode.TRANSFORMATION_NOT_FOUND),
        ("503/x", ErrorCode.TRANSFORMATION_NOT_FETCHED),
        ("short/x", ErrorCode.TRANSFORMATION_NOT_FETCHED),
    ],
)
def test_what_another_try_may_help_with_is_told_apart(
    web: tuple[str, list[str]], fetched: Transformations, tmp_path: Path, path: str, code: ErrorCode
) -> None:
    assert refused(fetched, f"{web[0]}/{path}").code is code
    assert [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()] == []


def test_a_wrong_checksum_keeps_nothing(web: tuple[str, list[str]], fetched: Transformations, tmp_path: Path) -> None:
    found = refused(fetched, f"{web[0]}/run.sh", "adler32:00000001")
    assert found.code is ErrorCode.TRANSFORMATION_NOT_FETCHED and "the task says adler32:00000001" in found.detail
    assert [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()] == []


def test_plain_http_needs_a_checksum(web: tuple[str, list[str]], fetched: Transformations) -> None:
    found = refused(fetched, f"{web[0]}/run.sh", None)
    assert found.code is ErrorCode.TRANSFORMATION_NOT_FOUND and "https" in found.detail and web[1] == []


def test_nobody_there_may_be_somebody_there_later(fetched: Transformations) -> None:
    assert refused(fetched, "http://127.0.0.1:9/run.sh").code is ErrorCode.TRANSFORMATION_NOT_FETCHED


def test_what_a_url_lets_in_with_is_told_nobody(fetched: Transformations) -> None:
    """Errors of a job are seen by others than its owner."""
    said = str(refused(fetched, "http://127.0.0.1:9/run.sh?authz=secret"))
    assert "secret" not in said and "run.sh" in said


def test_a_local_program_that_is_missing_or_too_large(
    fetched: Transformations, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(fetched, (public / "no").as_uri()).code is ErrorCode.TRANSFORMATION_NOT_FOUND
    assert "it is no file" in refused(fetched, public.as_uri()).detail
    (public / "big").write_bytes(b"x" * 100)
    monkeypatch.setattr(module, "MAX_SIZE", 99)
    assert "more than 99 bytes" in refused(fetched, (public / "big").as_uri(), None).detail


def test_nothing_that_only_the_pilot_can_read_reaches_the_payload(fetched: Transformations, public: Path) -> None:
    """Such as its token: the pilot would have copied it to where the payload is."""
    token = public / "token"
    token.write_text("secret")
    token.chmod(0o600)
    (public / "link").symlink_to(token)
    (public / "private").mkdir(mode=0o700)
    (public / "private" / "notes").write_text("secret")
    os.mkfifo(public / "pipe", 0o644)
    for path in (token, public / "link", public / "private" / "notes", public / "pipe", Path("/proc/self/environ")):
        assert refused(fetched, path.as_uri(), None).code is ErrorCode.TRANSFORMATION_NOT_FOUND, path


def test_it_runs_with_its_parameters_and_placeholders(fetched: Transformations, tmp_path: Path, public: Path) -> None:
    (public / "inputs.txt").write_bytes(SCRIPT)  # the name of a file of the pilot's own
    folder = JobFolder.create(tmp_path, "1")
    program = fetched.fetch(FetchedProgram(url=(public / "inputs.txt").as_uri()))
    definition = PayloadDefinition(
        job_id="1", task_id="2", transformation=program, command=["--seed", "{counter}", "a b"], counters=[5]
    )
    spec = prepare_payload(folder, definition, {"PATH": "/usr/bin:/bin"})
    assert stat.S_IMODE(Path(spec.argv[0]).stat().st_mode) == 0o700
    assert SupervisedProcess.start(spec).wait(120).ok
    assert folder.stdout.read_text() == "run with --seed 5 a b\n"
