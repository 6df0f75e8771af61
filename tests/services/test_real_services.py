"""Smoke tests: each real service does its main job, listens on loopback only, and survives an outage."""

from __future__ import annotations

import os
import uuid
import zlib
from pathlib import Path

import psutil
import pytest

from tests.services.apptainer import Apptainer
from tests.services.base import Service, require_module
from tests.services.postgres import PostgresServer
from tests.services.xrootd import XrootdServer


def listening_addresses(server: Service) -> set[str]:
    """The addresses that the server's main process accepts TCP connections on."""
    sockets = psutil.Process(server.pid).net_connections("tcp")
    return {each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN}


def test_real_postgres_answers_a_query(postgres: PostgresServer) -> None:
    import psycopg

    url = postgres.create_database()
    assert url.startswith(f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/test_")
    database = url.rsplit("/", 1)[1]
    with psycopg.connect(postgres.dsn(database)) as connection:
        connection.execute("CREATE TABLE t (n integer)")
        connection.execute("INSERT INTO t SELECT generate_series(1, 100)")
        assert connection.execute("SELECT sum(n), current_database() FROM t").fetchone() == (5050, database)
    assert postgres.create_database() != url
    assert listening_addresses(postgres) == {"127.0.0.1"}


def test_real_postgres_keeps_its_data_over_an_outage(postgres: PostgresServer) -> None:
    import psycopg

    database = postgres.create_database().rsplit("/", 1)[1]
    with psycopg.connect(postgres.dsn(database)) as connection:  # still open when the server goes: it must not wait
        connection.execute("CREATE TABLE t (n integer)")
        connection.commit()
        with postgres.outage():
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(postgres.dsn(database), connect_timeout=5)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with psycopg.connect(postgres.dsn(database)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_real_xrootd_copies_both_ways_and_gives_adler32(xrootd: XrootdServer, tmp_path: Path) -> None:
    client = require_module("XRootD.client")
    checksum_query = require_module("XRootD.client.flags").QueryCode.CHECKSUM

    content = os.urandom(3_000_000)
    source, back, name = tmp_path / "source", tmp_path / "back", f"/smoke/{uuid.uuid4().hex}"
    source.write_bytes(content)
    url = f"{xrootd.url}{name}"
    copy = client.CopyProcess()
    copy.add_job(str(source), url, mkdir=True)
    assert copy.prepare().ok
    result, _ = copy.run()
    assert result.ok, result.message
    assert xrootd.local_path(name).read_bytes() == content
    answer, checksum = client.FileSystem(xrootd.url).query(checksum_query, name)
    assert answer.ok, answer.message
    assert checksum.rstrip(b"\0").decode().split() == ["adler32", f"{zlib.adler32(content):08x}"]
    fetch = client.CopyProcess()
    fetch.add_job(url, str(back))
    assert fetch.prepare().ok
    result, _ = fetch.run()
    assert result.ok, result.message
    assert back.read_bytes() == content
    assert listening_addresses(xrootd) == {"127.0.0.1"}


def test_real_xrootd_serves_a_file_put_on_its_disk(xrootd: XrootdServer, tmp_path: Path) -> None:
    client = require_module("XRootD.client")

    source = tmp_path / "private"
    source.write_bytes(b"placed by the test's own user")
    source.chmod(0o600)
    url = xrootd.put(source, f"/put/{uuid.uuid4().hex}/deep/file")
    with client.File() as handle:
        assert handle.open(url)[0].ok
        assert handle.read()[1] == source.read_bytes()
    with pytest.raises(ValueError, match="absolute path"):
        xrootd.put(source, "/put/../../outside")


def test_real_xrootd_is_gone_in_an_outage_and_back_after_it(xrootd: XrootdServer) -> None:
    port = xrootd.port
    with xrootd.outage():
        assert not xrootd.running
        assert not xrootd.answers()
    assert xrootd.answers()
    assert xrootd.port == port


def test_real_apptainer_runs_busybox(apptainer: Apptainer, busybox_image: Path) -> None:
    assert f"uid={os.geteuid()}" in apptainer.exec(busybox_image, "id")
    script = "mkfifo /tmp/p; cat < /tmp/p > /tmp/o & head -c 100000 /dev/zero > /tmp/p; wait; cp /tmp/o /tmp/c; mv /tmp/c /tmp/d; wc -c < /tmp/d"
    assert apptainer.exec(busybox_image, "sh", "-c", script).split() == ["100000"]
    listing = apptainer.exec(
        busybox_image, "/usr/bin/env", "sh", "-c", "sleep 0; env; ls /bin/sh", flags=("--env", "A=b")
    )
    assert "A=b" in listing.splitlines()
    assert "/bin/sh" in listing.splitlines()


def test_real_apptainer_python_image_imports_uproot(apptainer: Apptainer, python_image: Path, tmp_path: Path) -> None:
    script = """
import uproot, numpy
with uproot.recreate("/data/f.root") as f:
    f["events"] = {"x": numpy.arange(1000.0)}
print(uproot.__file__, uproot.open("/data/f.root")["events"]["x"].array(library="np").sum())
"""
    output = apptainer.exec(python_image, "python3", "-c", script, flags=("--bind", f"{tmp_path}:/data"))
    module, total = output.split()
    assert module.startswith("/usr/local/lib/python3")
    assert total == "499500.0"
    assert (tmp_path / "f.root").stat().st_size > 1000


def test_real_apptainer_runs_a_sif(apptainer: Apptainer, python_sif: Path) -> None:
    assert apptainer.exec(python_sif, "python3", "-c", "import uproot; print(6 * 7)").strip() == "42"
