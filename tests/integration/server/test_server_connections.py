"""Connections as the real web server takes them."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

STARTED = re.compile(rb"listening on http://127.0.0.1:(\d+)")
KEPT = 2000
"""More than granian serves at once unless it is told to."""
PATIENCE_S = 15.0
"""Less than it keeps a connection on which nothing comes."""


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    config = tmp_path / "server.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}/state"\nport = 0\nweb_processes = 1\n')
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    process = subprocess.Popen(
        # As a shell starts it that allows few files, of which it may ask for more.
        ["bash", "-c", 'ulimit -Sn 1024; exec "$@"', "-", sys.executable, "-m", "common.cli.main",
         "--config", str(config), "server", "--web-only"],
        env={**own, "XDG_CONFIG_HOME": str(tmp_path / "none"), "PYTHONUNBUFFERED": "1"},
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        yield int(next(filter(None, map(STARTED.search, process.stderr)))[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Enough for our own ends of the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(KEPT + 1000, hard)) if hard > 0 else soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_pilots_that_keep_their_connections_are_in_nobodys_way(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(KEPT):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        last = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))
        last.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b" 200 " in last.recv(65536).split(b"\r\n")[0]
