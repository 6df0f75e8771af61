"""A node is looked at before its first job, and one that fails is reported and left."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Optional

import msgspec
import pytest

from common.errors import ErrorCode, PilotageError
from common.http import HttpClient
from common.wire import Gpu, NodeChecks, NodeChecksSpec, Queue, QueueSpec
from pilot.agent import ExitCode
from pilot.config import PilotConfig
from pilot.container.host import Finding, Level
from pilot.probe import checks, host, validate
from pilot.probe.validate import Node, validate_node
from pilot.workdir import WorkDir
from pilot.workshop import Workshop
from tests.unit.pilot_fakes import FakeServer, make_assignment
from tests.unit.test_pilot_agent import Pilot

H200 = Gpu(vendor="nvidia", model="NVIDIA H200", memory_mb=143771, uuid="GPU-1", driver="570.124.06")


def told(finding: Finding, level: Level, *words: str) -> None:
    """A finding says all of these, and what to do when it is bad."""
    assert finding.level is level, finding
    assert bool(finding.remedy) is (level is not Level.OK), finding
    for word in words:
        assert word in f"{finding.detail} {finding.remedy}", finding


def test_a_sound_scratch_folder_is_left_as_it_was(tmp_path: Path) -> None:
    told(checks.check_scratch(tmp_path), Level.OK, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    """A real file system that is mounted noexec."""
    folder = tmp_path / "noexec"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "noexec,size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_scratch_folder_that_is_mounted_noexec_will_not_do(noexec: Path) -> None:
    told(checks.check_scratch(noexec), Level.ERROR, "Permission denied", "noexec")


def test_a_full_scratch_disk_will_not_do(noexec: Path) -> None:
    with (noexec / "full").open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, 4 * 1024 * 1024)
    told(checks.check_scratch(noexec), Level.ERROR, "No space left", "clean")
    told(checks.check_space(noexec, 1), Level.ERROR, "0 MiB are free, 1 wanted")


def test_scratch_folders_that_are_not_there_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told(checks.check_scratch(tmp_path / "none"), Level.ERROR, "No such file")
    told(checks.check_space(tmp_path / "none", 1), Level.ERROR, "No such file")

    def broken(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    told(checks.check_scratch(tmp_path), Level.ERROR, "Input/output error", "out of service")
    told(checks.check_space(tmp_path, 1), Level.OK, "MiB are free")


@pytest.mark.parametrize(
    ("ahead_s", "level", "words"),
    [
        (0.4, Level.OK, "0 s"),
        (-59.0, Level.OK, "behind"),
        (61.0, Level.ERROR, "61 s ahead of"),
        (-3600.0, Level.ERROR, "behind"),
    ],
)
def test_the_clock(ahead_s: float, level: Level, words: str) -> None:
    told(checks.check_clock(ahead_s, 60), level, words)
    told(checks.check_clock(None, 60), Level.WARNING, "not compared")


class Answering:
    """A server whose clock is wrong by ``off_s``."""

    def __init__(self, off_s: Optional[float]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200) if off_s is not None else self.send_response_only(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def date_time_string(self, timestamp: Optional[float] = None) -> str:
                return formatdate(time.time() + (off_s or 0), usegmt=True)

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize("off_s", [0.0, -3600.0, 7200.0])
def test_every_answer_of_a_server_tells_how_far_the_clocks_are_apart(off_s: float) -> None:
    server = Answering(off_s)
    client = HttpClient(server.url, retries=0)
    try:
        client.call("GET", "/", None, type(None))
        told_s = client.clock_ahead_s
        assert told_s is not None and abs(told_s + off_s) < 60.0
    finally:
        client.close()
        server.stop()


def test_an_answer_without_a_date_tells_nothing_of_the_clock() -> None:
    server = Answering(None)
    client = HttpClient(server.url, retries=0)
    try:
        client.call("GET", "/", None, type(None))
        assert client.clock_ahead_s is None
    finally:
        client.close()
        server.stop()


def test_cvmfs_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cvmfs/atlas.cern.ch/repo").mkdir(parents=True)
    told(checks.check_cvmfs("atlas.cern.ch", tmp_path), Level.OK, "/cvmfs/atlas.cern.ch")
    told(checks.check_cvmfs("atlas.cern.ch/repo", tmp_path), Level.ERROR, "is empty", "cvmfs_config probe")
    told(checks.check_cvmfs("cms.cern.ch", tmp_path), Level.ERROR, "is not there")
    hanging = tmp_path / "bin/ls"
    hanging.parent.mkdir()
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{hanging.parent}:/bin")
    monkeypatch.setattr(checks, "CVMFS_TIMEOUT_S", 0.2)
    told(checks.check_cvmfs("atlas.cern.ch", tmp_path), Level.ERROR, "does not answer")


def test_gpus_that_should_be_there() -> None:
    told(checks.check_gpus([H200], 1), Level.OK, "NVIDIA H200 (143771 MiB, 570.124.06)")
    told(checks.check_gpus([], 0), Level.OK, "none")
    told(checks.check_gpus([H200], 2), Level.ERROR, "2 wanted", "nvidia-smi")


def test_what_should_be_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told(checks.check_reachable(f"127.0.0.1:{port}"), Level.OK, f"127.0.0.1 port {port}")
        told(
            checks.check_reachable(f"root://localhost:{port}//data"), checks.check_reachable(f"localhost:{port}").level
        )
    told(checks.check_reachable(f"127.0.0.1:{port}"), Level.ERROR, "Connection refused", "firewall")
    told(checks.check_reachable("https://nowhere.invalid/x"), Level.ERROR, "nowhere.invalid", "name servers")
    told(checks.check_reachable("nonsense"), Level.ERROR, "names no host and port")
    assert checks.host_and_port("root://x.org//data") == ("x.org", 1094)
    assert checks.host_and_port("davs://[::1]:8443/x") == ("::1", 8443)


def test_only_what_the_queue_asks_for_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object) -> Finding:
        raise AssertionError("not asked for")

    for name in ("check_space", "check_clock", "check_cvmfs", "check_gpus", "check_reachable"):
        monkeypatch.setattr(checks, name, never)
    monkeypatch.setattr(validate, "check_host", never)
    validate_node(NodeChecks(), Node(tmp_path))
    validate_node(NodeChecks(clock_s=0), Node(tmp_path, clock_ahead_s=1e6))
    with pytest.raises(AssertionError):
        validate_node(NodeChecks(), Node(tmp_path, clock_ahead_s=0.0))


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (NodeChecks(scratch_mb=2**30), ErrorCode.NO_LOCAL_SPACE),
        (NodeChecks(clock_s=60), ErrorCode.CLOCK_WRONG),
        (NodeChecks(cvmfs=["atlas.cern.ch"], clock_s=0), ErrorCode.CVMFS_NOT_AVAILABLE),
        (NodeChecks(container=True, clock_s=0), ErrorCode.CONTAINER_NOT_INSTALLED),
        (NodeChecks(gpus=1, clock_s=0), ErrorCode.GPU_NOT_AVAILABLE),
        (NodeChecks(reachable=["127.0.0.1:1"], clock_s=0), ErrorCode.NETWORK_UNREACHABLE),
    ],
)  # fmt: skip
def test_a_node_that_fails_says_by_its_number_what_is_wrong(
    tmp_path: Path, wanted: NodeChecks, code: ErrorCode
) -> None:
    node = Node(tmp_path, clock_ahead_s=400.0, path=str(tmp_path), root=tmp_path)
    with pytest.raises(PilotageError) as caught:
        validate_node(wanted, node)
    assert caught.value.code is code


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    wanted = NodeChecks(cvmfs=["atlas.cern.ch"], gpus=1)
    with pytest.raises(PilotageError, match=r"cvmfs atlas\.cern\.ch: .* is not there.*; gpus: 1 wanted") as caught:
        validate_node(wanted, Node(tmp_path, root=tmp_path))
    assert caught.value.code is ErrorCode.CVMFS_NOT_AVAILABLE


def test_a_node_that_fails_is_reported_and_left_before_any_job(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    fake = FakeServer(tmp_path / "store")
    fake.queue.node_checks = NodeChecksSpec(cvmfs=["no-such.example.org"])
    fake.add(make_assignment(1, "#!/bin/sh\n"))
    pilot = Pilot(fake, tmp_path / "work")
    assert pilot.wait() is ExitCode.FAILED
    (known,) = fake.pilots.values()
    assert known.end is not None and known.end.error_code == ErrorCode.CVMFS_NOT_AVAILABLE
    assert "/cvmfs/no-such.example.org is not there" in known.end.reason and known.end.log_tail == "the log"
    assert fake.jobs[1].pilot_id is None and fake.calls["acquire"] == 0


def test_a_pilot_describes_its_node_when_it_registers(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    fake = FakeServer(tmp_path / "store")
    pilot = Pilot(fake, tmp_path / "work", benchmark="echo HS23 17.5", idle_exit_s=0.0)
    assert pilot.wait() is ExitCode.DONE
    (known,) = fake.pilots.values()
    info = known.registration.node_info
    assert info is not None and info.threads >= 1 and info.kernel == os.uname().release
    assert (info.core_power, info.power_source) == (17.5, "benchmark")


def test_the_sites_own_figure_goes_before_the_benchmark(tmp_path: Path) -> None:
    features = tmp_path / "features"
    features.mkdir()
    for key, value in (("total_cpu", "4"), ("hs23", "80")):
        (features / key).write_text(value)
    fake, work_dir = FakeServer(tmp_path), WorkDir(tmp_path / "work")
    config = PilotConfig(benchmark="/no/such/program")
    shop = Workshop(config, "http://fake", fake.connection(), work_dir, {"MACHINEFEATURES": str(features)}, str)
    info = shop.describe()
    work_dir.close()
    assert (info.core_power, info.power_source) == (20.0, "machine features hs23")


def test_what_the_kernel_forbids(tmp_path: Path) -> None:
    told(host.check_user_namespaces(tmp_path), Level.OK)
    knob = tmp_path / "proc/sys/user/max_user_namespaces"
    knob.parent.mkdir(parents=True)
    knob.write_text("0\n")
    told(host.check_user_namespaces(tmp_path), Level.WARNING, "sysctl user.max_user_namespaces=15000")


def test_the_folder_of_the_grids_certificates(tmp_path: Path) -> None:
    told(host.check_certificates({}, tmp_path), Level.OK, "is not there")
    told(host.check_certificates({"X509_CERT_DIR": str(tmp_path / "none")}), Level.ERROR, "X509_CERT_DIR")
    folder = {"X509_CERT_DIR": str(tmp_path)}
    told(host.check_certificates(folder), Level.ERROR, "holds no certificate")
    (tmp_path / "1a2b3c4d.0").touch()
    (tmp_path / "1a2b3c4d.r0").touch()
    told(host.check_certificates(folder), Level.OK, "1 authorities, 1 revocation lists")
    told(host.check_certificates(folder, now=time.time() + 8 * 86400), Level.WARNING, "fetch-crl")
    assert stat.S_ISREG((tmp_path / "1a2b3c4d.0").stat().st_mode)


def test_limits_that_make_payloads_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    known = {resource.RLIMIT_NOFILE: 256, resource.RLIMIT_AS: 4 << 30}
    monkeypatch.setattr(resource, "getrlimit", lambda number: (known.get(number, resource.RLIM_INFINITY), -1))
    found = {finding.name: finding for finding in host.check_limits()}
    told(found["limit of open files"], Level.WARNING, "256", "ulimit -n")
    told(found["limit of address space"], Level.WARNING, str(4 << 30))
    told(found["limit of processes"], Level.OK, "unlimited")
    assert "limit of file size" not in found


def test_what_a_queue_asks_of_its_nodes_is_strict_for_people_and_tolerant_for_pilots() -> None:
    described = {"name": "q", "site": "s", "node_checks": {"cvmfs": ["atlas.cern.ch"], "unheard_of": 1}}
    queue = msgspec.convert(described, Queue)
    assert queue.node_checks == NodeChecks(cvmfs=["atlas.cern.ch"])
    with pytest.raises(msgspec.ValidationError, match="unheard_of"):
        msgspec.convert(described, QueueSpec)
    for wrong in (
        {"cvmfs": ["/cvmfs/atlas.cern.ch"]},
        {"cvmfs": ["../etc"]},
        {"reachable": ["somewhere"]},
        {"clock_s": -1},
    ):
        with pytest.raises(msgspec.ValidationError, match="node_checks"):
            msgspec.convert({"name": "q", "site": "s", "node_checks": wrong}, QueueSpec)
    # An older server, which would refuse what it does not know, is told nothing of it unless somebody asked for it.
    assert b"node_checks" not in msgspec.json.encode(QueueSpec(name="q", site="s"))
