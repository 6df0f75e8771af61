"""``pilotage server`` as a program: how it starts, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.certificates import Authority

STARTED = re.compile(rb"listening on (http://\S+)")
PILOTAGE = [sys.executable, "-m", "common.cli.main"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    return {**own, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONUNBUFFERED": "1"}


def server(environment: dict[str, str], folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*PILOTAGE, "server", "--state-dir", str(folder / "state"), *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def refused(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """What a server that does not start says."""
    process = server(environment, folder, *arguments)
    _, words = process.communicate(timeout=180)
    assert process.returncode == 2
    return words.decode()


@pytest.fixture
def agents(environment: dict[str, str], tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = server(environment, tmp_path, "--agents-only")
    yield process
    process.kill()
    process.communicate()


def test_agents_that_are_told_to_end_many_times_end(agents: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """A second signal inside the handler of the first once left them waiting for a lock for ever."""
    assert agents.stderr is not None
    assert b"agents run" in agents.stderr.readline()
    for _ in range(50):
        agents.send_signal(signal.SIGTERM)
    assert agents.wait(180) == 0


def test_a_port_in_use_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    """A second server once shared the port with the first, and the kernel split the requests between them."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "[server] host, port" in refused(environment, tmp_path, "--port", port)


def test_two_servers_cannot_share_a_port(environment: dict[str, str], tmp_path: Path) -> None:
    first = server(environment, tmp_path / "first", "--port", "0")
    try:
        assert first.stderr is not None
        found = next(filter(None, map(STARTED.search, first.stderr)))
        port = found[1].decode().rpartition(":")[2]
        assert "choose another" in refused(environment, tmp_path / "second", "--port", port)
    finally:
        first.terminate()
        first.communicate(timeout=180)


def test_a_state_folder_that_is_a_file_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert "[server] state_dir" in refused(environment, tmp_path, "--port", "0")


def test_a_certificate_that_cannot_be_read_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    given = {
        "PILOTAGE_SERVER_TLS_CERT": str(tmp_path / "none.pem"),
        "PILOTAGE_SERVER_TLS_KEY": str(tmp_path / "none.key"),
    }
    assert "[server] tls_cert" in refused({**environment, **given}, tmp_path, "--port", "0")


def test_a_face_that_could_serve_nobody_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    """It began all the same, and each ``act proxy`` was a mistake of ours."""
    config = tmp_path / "server.toml"
    config.write_text(f'[server.compat.act]\non = true\nauthorities = "{tmp_path}/none"\n')
    words = refused({**environment, "PILOTAGE_CONFIG": str(config)}, tmp_path, "--port", "0")
    assert "[server.compat.act] authorities" in words and "none" in words


def test_a_server_whose_certificate_is_for_another_name_says_that_it_listens(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """It said that it does not answer, as its own call did not trust the certificate."""
    Authority(tmp_path / "ca").host().write(tmp_path / "host.pem", tmp_path / "host.key")
    given = {
        "PILOTAGE_SERVER_TLS_CERT": str(tmp_path / "host.pem"),
        "PILOTAGE_SERVER_TLS_KEY": str(tmp_path / "host.key"),
    }
    process = server({**environment, **given}, tmp_path, "--port", "0", "--web-only")
    try:
        assert process.stderr is not None
        said = next(line for line in process.stderr if b"listening" in line or b"does not answer" in line)
        assert said.startswith(b"listening on https://127.0.0.1:")
    finally:
        process.terminate()
        process.communicate(timeout=60)
