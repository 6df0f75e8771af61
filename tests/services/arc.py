"""A real ARC CE (A-REX 7 with its REST interface) on loopback, in the Debian 13 tree; its batch system forks jobs.

It takes the X.509 proxies of one person and the tokens of the test run's issuer; jobs run as the tree's user ``grid``.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.services.base import Service, free_port, require, run
from tests.services.certificates import Authority, Issued, write_proxy
from tests.services.grid_root import USER, GridRoot
from tests.services.xrootd import compile_shim
from tests.services.xrootd import install as install_compiler
from tests.services.xrootd_secure import TokenIssuer

PERSON = "Grid Robot"
QUEUE = "fork"
KILL = signal.SIGKILL
"""How they are stopped: when asked politely they take ten seconds."""
# The library that checks tokens looks for its authorities in the usual place only; and the scripts that talk to the
# batch system wait for seconds, as A-REX does before it starts the one again that looks for ended jobs.
AROUND = """
mount --bind "$1" /etc/grid-security/certificates || exit 1
mkdir /run/arc && chmod 755 /run/arc || exit 1
again='sleep 0.5; export PASS=$((PASS+1)); [ $PASS -lt 50 ] \\&\\& exec "$0" --config "$ARC_CONFIG" "$@"'
for script in submit-fork-job scan-fork-job cancel-fork-job; do
    sed -e "s/^sleep 10$/$again/" -e 's/^\\( *\\)sleep [15]$/\\1sleep 0.2/' /usr/share/arc/$script >/run/arc/$script
    chmod 755 /run/arc/$script
    mount --bind /run/arc/$script /usr/share/arc/$script || exit 1
done
shift
exec "$@"
"""
CONFIG = """
[common]
hostname=localhost
x509_host_key={folder}/host.key
x509_host_cert={folder}/host.pem
x509_cert_dir={authorities}
[authgroup:person]
subject=/DC=pilotage/CN={person}
[authgroup:tokens]
authtokens=* {issuer} * * *
[mapping]
map_to_user=person {user}:{user}
map_to_user=tokens {user}:{user}
[lrms]
lrms=fork
defaultmemory=100
[arex]
controldir={folder}/control
sessiondir={folder}/session
logfile={folder}/arex.log
pidfile={folder}/run/arex.pid
tmpdir={folder}/spool
wakeupperiod=30
loglevel=3
[arex/data-staging]
loglevel=3
logfile={folder}/staging.log
statefile={folder}/spool/staging.state
[arex/ws]
wsurl={url}
logfile={folder}/ws.log
pidfile={folder}/run/ws.pid
[arex/ws/jobs]
allowaccess=person
allowaccess=tokens
[infosys]
logfile={folder}/infosys.log
loglevel=3
[infosys/glue2]
[infosys/cluster]
alias=test
[queue:{queue}]
comment=forks jobs
"""


class ArcCe:
    """A-REX and its web service. ``url`` is its address, ``person`` whose proxies it takes, ``issuer`` whose tokens."""

    def __init__(self, folder: Path, root: GridRoot, authority: Authority, issuer: TokenIssuer) -> None:
        folder.mkdir()
        for name in ("control", "session", "spool", "run"):
            (folder / name).mkdir()
        (folder / "spool").chmod(0o1777)
        self.folder = folder
        self.url = f"https://localhost:{free_port()}/arex"
        self.authorities = authority.folder
        self.person: Issued = authority.person(PERSON)
        self.issuer = issuer
        self.proxy = folder / "proxy.pem"
        write_proxy(self.person, self.proxy)
        authority.host().write(folder / "host.pem", folder / "host.key")
        (folder / "arc.conf").write_text(
            CONFIG.format(
                folder=folder,
                authorities=self.authorities,
                person=PERSON,
                issuer=issuer.url,
                user=USER,
                url=self.url,
                queue=QUEUE,
            )
        )
        # Without it the web service spends minutes of CPU on parameters that nobody needs.
        dh = run(["openssl", "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048"])
        (folder / "control/dhparam.pem").write_text(dh)
        self._root = root
        self._shim = compile_shim(folder)
        self.arex = Service(
            "A-REX", self._command("arc-arex-start"), folder / "arex.out", self._manages, stop_signal=KILL
        )
        self.web = Service(
            "A-REX WS", self._command("arc-arex-ws-start"), folder / "ws.out", self._answers, stop_signal=KILL
        )

    def start(self) -> None:
        """Start both programs; return when jobs are taken."""
        # One that was killed leaves it behind.
        (self.folder / "control/gm.fifo").unlink(missing_ok=True)
        # The program that jobs come to opens what the other one makes.
        self.arex.start()
        self.web.start()

    def stop(self) -> None:
        """End both programs. Jobs live on, as under any batch system."""
        self.web.stop()
        self.arex.stop()

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Both are down inside the block and serve again after it, whatever happens there."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def close(self) -> None:
        """End both programs and every job."""
        self.stop()
        self.end_jobs()

    def jobs(self) -> list[int]:
        """The processes of jobs, by their ids."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and self._is_job(entry):
                found.append(int(entry.name))
        return found

    def end_jobs(self) -> None:
        """End the processes of all jobs."""
        for pid in self.jobs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def session(self, job: str) -> Path:
        """A job's session folder."""
        return self.folder / "session" / job

    def _is_job(self, process: Path) -> bool:
        """Jobs work in their session folder, under this machine's names or, in the tree, under the same."""
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return any(each.startswith(f"HOME={self.folder}/session/".encode()) for each in variables)

    def _command(self, script: str) -> list[str]:
        words: list[str | Path] = ["/bin/sh", "-c", AROUND, script, self.authorities, f"/usr/share/arc/{script}", "-f"]
        variables = {
            "LD_PRELOAD": str(self._shim),
            "ARC_CONFIG": str(self.folder / "arc.conf"),
            "X509_CERT_DIR": str(self.authorities),
        }
        return self._root.command(*words, env=variables)

    def _manages(self) -> bool:
        """Whether A-REX looks after jobs: it has the named pipe that it is woken by."""
        return (self.folder / "control/gm.fifo").exists()

    def _answers(self) -> bool:
        try:
            with requests.Session() as session:
                session.trust_env = False
                session.verify = str(self.authorities / "ca.pem")
                session.cert = str(self.proxy)
                return session.get(f"{self.url}/rest/1.1/jobs", timeout=20).status_code == 200
        except requests.RequestException:
            return False


@pytest.fixture(scope="session")
def arc_ce(
    services_folder: Path, grid_root: GridRoot, authority: Authority, token_issuer: TokenIssuer
) -> Iterator[ArcCe]:
    """A running ARC CE, one for all tests."""
    require(install_compiler)
    ce = ArcCe(services_folder / "arc", grid_root, authority, token_issuer)
    try:
        ce.start()
        yield ce
    finally:
        ce.close()
