"""The programs that a benchmark starts: real servers and load processes; and what their CPUs did."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.cli.demo_processes import Processes
from common.cli.demo_world import pilotage
from server.agents.duties import DUTIES
from server.bench.errors import BenchError
from server.bench.messages import Claims, Files, Go, Idle, Ready, Result, Target, World, receive, send
from server.config import ServerConfig
from server.store import agents, places
from server.store.database import Database

LISTENING = re.compile(rb"listening on (https?://\S+)")
AGENTS_RUN = re.compile(rb"(agents run)")
ADDRESS = "127.0.0.1"
LEAD_S = 0.3
"""Load processes are told this long ahead when to start, so that all start together."""
STOP_S = 10.0
SETTLE_S = 300.0
SETTLE_LOOK_S = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A running server over one place: web side and agents are programs of their own, so that each can be measured."""

    name: str
    target: Target
    database: Database
    pids: dict[str, int]


def start_server(processes: Processes, folder: Path, name: str, config: ServerConfig) -> Server:
    """Start the web side and then the agents of a server that listens on a free port of the loopback."""
    config_file = folder / f"{name}.toml"
    config_file.touch(mode=0o600)  # the database's URL may hold a password
    config_file.write_text(toml_of(config), encoding="utf-8")
    pids = {}
    url = processes.start(f"{name}-web", pilotage("--config", str(config_file), "server", "--web-only"), LISTENING)
    pids["server"] = processes.pid(f"{name}-web")
    begun = time.time()
    command = pilotage("--config", str(config_file), "server", "--agents-only")
    processes.start(f"{name}-agents", command, AGENTS_RUN)
    pids["agents"] = processes.pid(f"{name}-agents")
    database = Database(config.database, pool_size=2)
    _settle(database, begun)
    backend = places.backend_pid(database)
    if backend is not None:
        pids["database"] = psutil.Process(backend).ppid()
    port = urlsplit(url).port
    assert port is not None
    return Server(name, Target(ADDRESS, port, config, config.tls_cert), database, pids)


def _settle(database: Database, begun: float) -> None:
    """Wait until every agent has run once: after a start some look at everything, and what is measured is not that."""
    deadline, pause = time.monotonic() + SETTLE_S, threading.Event()
    while True:
        with database.read() as connection:
            ran = {each.name for each in agents.views(connection, begun) if (each.started or 0.0) >= begun}
        late = sorted({each.name for each in DUTIES} - ran)
        if not late:
            return
        if time.monotonic() > deadline:
            raise BenchError(f"agents did not end their first run in {SETTLE_S:.0f} s: {', '.join(late)}")
        pause.wait(SETTLE_LOOK_S)


def toml_of(config: ServerConfig) -> str:
    """Section ``[server]`` with every plain value, so that those of this machine's own configuration do not count."""
    values = msgspec.to_builtins(config)
    plain = {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool))}
    return "\n".join(["[server]", *(f"{name} = {json.dumps(value)}" for name, value in plain.items()), ""])


class Load:
    """One load process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    def prepare(self, order: Claims | Files | Idle | World) -> None:
        """Have it render its requests and connect."""
        self.tell(order)
        self._answer(Ready)

    def tell(self, order: Claims | Files | Idle | World | Go) -> None:
        """Give an order; each :class:`Go` is to be followed by :meth:`result`."""
        send(self._pipe(self._process.stdin), order)

    def result(self) -> Result:
        """Wait for the end of a run."""
        return self._answer(Result)

    def ready(self) -> None:
        """Wait until it has prepared what it was told."""
        self._answer(Ready)

    def _answer(self, kind: type[T]) -> T:
        answer: T | None = receive(self._pipe(self._process.stdout), kind)
        if answer is None:
            raise BenchError("a load process ended; its words are above")
        return answer

    @staticmethod
    def _pipe(stream: IO[bytes] | None) -> BinaryIO:
        return cast(BinaryIO, stream)


def run_all(loads: Sequence[Load], orders: Sequence[Claims | World], go: Go) -> list[Result]:
    """Prepare each order in a load process, start all at the same moment; their results."""
    for load, order in zip(loads, orders, strict=True):
        load.tell(order)
    for load in loads:
        load.ready()
    return go_all(loads, go)


def go_all(loads: Sequence[Load], go: Go) -> list[Result]:
    """Start what was prepared, all at the same moment; their results."""
    go = msgspec.structs.replace(go, start=time.monotonic() + LEAD_S)
    for load in loads:
        load.tell(go)
    return [load.result() for load in loads]


@dataclass
class Meter:
    """CPU seconds by kind of program, from one moment to another."""

    servers: Sequence[Server]
    cpu_s: dict[str, float] = field(default_factory=dict)
    wall_s: float = 0.0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count what is used inside."""
        before, start = self._used(), time.monotonic()
        yield
        self.wall_s += time.monotonic() - start
        for kind, used in self._used().items():
            self.cpu_s[kind] = self.cpu_s.get(kind, 0.0) + used - before[kind]

    def _used(self) -> dict[str, float]:
        used: dict[str, float] = {}
        seen: set[int] = set()
        for server in self.servers:
            for kind, pid in server.pids.items():
                if pid not in seen:  # two servers may share a database
                    used[kind] = used.get(kind, 0.0) + cpu_of(pid)
                    seen.add(pid)
        return used


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and all its descendants, ended ones included."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess as error:
        raise BenchError("a program ended while it was measured") from error
    total = 0.0
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it ended just now: its parent has its time
        total += times.user + times.system + times.children_user + times.children_system
    return total


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for the loopback, and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pilotage bench")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.touch(mode=0o600)
    encoding, no = serialization.Encoding.PEM, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no))
    return cert_file, key_file


def environment() -> dict[str, str]:
    """What the programs get of our environment: nothing that could change their configuration."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
