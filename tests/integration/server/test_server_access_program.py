"""Headers as the real web server hands them over: what a test client in the same process does not show."""

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

STARTED = re.compile(rb"listening on http://127.0.0.1:(\d+)")
SECRET = "f" * 40
DN = "/DC=org/CN=Alice"
MAPPING = f"""
[[person]]
name = "alice"
identities = ["x509:{DN}"]
roles = ["user"]

[[person]]
name = "root"
identities = ["x509:/CN=Root"]
roles = ["admin"]
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a server behind a front end listens."""
    folder = tmp_path_factory.mktemp("fronted")
    secret, people, config = folder / "secret", folder / "people.toml", folder / "server.toml"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    people.write_text(MAPPING)
    config.write_text(
        f'[server]\nstate_dir = "{folder}/state"\nport = 0\nmapping_file = "{people}"\n'
        f'[server.front_end]\nsecret_file = "{secret}"\n'
        "[server.limits.anybody]\nper_s = 1000.0\nburst = 1000.0\n"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("PILOTAGE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "common.cli.main", "--config", str(config), "server", "--web-only"],
        env={**own, "XDG_CONFIG_HOME": str(folder / "none"), "PYTHONUNBUFFERED": "1"},
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        yield int(next(filter(None, map(STARTED.search, process.stderr)))[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def ask(port: int, *headers: str, path: str = "/v1/whoami") -> tuple[int, str]:
    lines = [f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


def sealed(value: str) -> str:
    return f"{SECRET} {value} {SECRET}"


GOOD = (f"X-Client-Verify: {sealed('SUCCESS')}", f"X-Client-Subject: {sealed(DN)}")


def test_the_front_ends_own_headers(port: int) -> None:
    status, body = ask(port, *GOOD)
    assert (status, '"alice"' in body) == (200, True)


@pytest.mark.parametrize(
    "smuggled",
    [
        "X_Client_Subject: /CN=Root",
        "x-client_subject: /CN=Root",
        "X-Client-Subject: /CN=Root",
        "X_CLIENT_VERIFY: SUCCESS",
        "X_Client_Fqans: /dune/production",
        "X-Client-Fqans: /dune/production",
        f"X_Client_Subject: {'g' * 40} /CN=Root {'g' * 40}",
    ],
)
def test_a_header_with_underscores_once_replaced_the_front_ends(port: int, smuggled: str) -> None:
    """The web server makes one name of both; the front end strips only the one with dashes."""
    for headers in ((*GOOD, smuggled), (smuggled, *GOOD), (GOOD[0], smuggled), (smuggled,)):
        status, body = ask(port, *headers)
        # Where the front end's own comes last it is the one that counts; never the client's.
        assert status == 403 or (status == 200 and '"alice"' in body), (headers, body)
        assert "root" not in body


def test_two_authorizations_are_none(port: int) -> None:
    assert ask(port, "Authorization: Bearer a", "Authorization: Bearer b")[0] == 401
    assert ask(port, "Authorization: Bearer a", "authorization_: Bearer b")[0] == 401
    assert ask(port)[0] == 401


def test_anybody_may_ask_whether_the_server_is_well(port: int) -> None:
    assert ask(port, path="/healthz")[0] == 200
    assert ask(port, "X_Client_Subject: /CN=Root", path="/healthz")[0] == 403
