"""A real Slurm cluster on loopback: accounting, REST and several small nodes, all of this machine.

Everything is of the test run's own, in a folder and on ports of its own: munge's socket, the accounting's database, the
controller, the nodes. Commands find it by ``SLURM_CONF``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.base import (
    Service,
    ServiceFailed,
    ServiceUnavailable,
    free_port,
    give_to,
    require,
    run,
    switch_to,
    wait_until,
)
from tests.services.install import install_packages, missing, state_of
from tests.services.xrootd import compile_shim

COMMANDS = ("slurmctld", "slurmd", "slurmdbd", "slurmrestd", "sbatch", "munged", "mariadbd", "gcc")
PACKAGES = (
    *("slurm-wlm", "slurm-client", "slurmrestd", "slurm-wlm-basic-plugins", "slurm-wlm-jwt-plugin", "slurmdbd"),
    *("munge", "mariadb-server", "gcc", "libc6-dev"),
)
NODES = 3
CPUS = 16
"""Of each node, as Slurm is told: more than there are, so that many workers run at a time."""
MEMORY_MB = 4000
REST_USER = "nobody"
"""Slurm's REST daemon refuses to run as root or as Slurm's own user."""


def status() -> str:
    """For the header of a test run: installed, to be installed, or unavailable with the reason."""
    return state_of(not missing(COMMANDS))


def install() -> None:
    """Install Slurm, munge and MariaDB when missing; raises ServiceUnavailable."""
    if os.geteuid() != 0:
        raise ServiceUnavailable("a Slurm cluster needs root")
    if missing(COMMANDS):
        install_packages("slurm", PACKAGES)
        if missing(COMMANDS):
            raise ServiceFailed(f"packages {' '.join(PACKAGES)} brought no {' '.join(missing(COMMANDS))}")


class SlurmCluster:
    """Controller, accounting and nodes. ``environment`` is for Slurm's commands; ``rest_url`` is the REST daemon's."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._ports = dict.fromkeys(("ctld", "dbd", "sql", "rest", *self.node_names), 0)
        for name in self._ports:
            self._ports[name] = free_port()
        for name in ("state", "log", "munge", "sql", *(f"spool-{node}" for node in self.node_names)):
            (folder / name).mkdir()
        self._shim = {**self.environment, "LD_PRELOAD": str(compile_shim(folder))}
        key = folder / "state" / "jwt_hs256.key"
        key.write_bytes(secrets.token_bytes(32))
        key.chmod(0o600)
        self.conf.write_text(self._slurm_conf())
        dbd = folder / "slurmdbd.conf"
        dbd.write_text(self._dbd_conf())
        dbd.chmod(0o600)
        self.munge = self._make_munge()
        self.database = self._make_database()
        self.accounting = self._daemon(
            "slurmdbd", ["slurmdbd", "-D"], lambda: self._listens("sacctmgr", "-n", "show", "cluster")
        )
        self.controller = self._daemon("slurmctld", ["slurmctld", "-D"], lambda: self._listens("scontrol", "ping"))
        self.nodes = {
            node: self._daemon(
                node, ["slurmd", "-D", "-N", node], lambda node=node: self.node_state(node) in ("idle", "mixed")
            )
            for node in self.node_names
        }
        self.rest = self._make_rest()

    @property
    def node_names(self) -> list[str]:
        """The nodes' names."""
        return [f"node{number}" for number in range(1, NODES + 1)]

    @property
    def rest_url(self) -> str:
        """The address of the REST daemon."""
        return f"http://127.0.0.1:{self._ports['rest']}"

    def start(self) -> None:
        """Start everything; returns when all nodes are idle."""
        self.munge.start()
        self.database.start()
        self._make_accounts_database()
        self.accounting.start()
        self.call("sacctmgr", "-i", "add", "cluster", "test")
        self.controller.start()
        for node in self.nodes.values():
            node.start()
        self.rest.start()

    def stop(self) -> None:
        """Stop everything, jobs first: their processes belong to the nodes' daemons no more once these have ended."""
        if self.controller.running:
            with contextlib.suppress(ServiceFailed):
                self.cancel_all()
        for service in (self.rest, *self.nodes.values(), self.controller, self.accounting, self.database, self.munge):
            service.stop()

    def cancel_all(self) -> None:
        """End every job; returns when none is left."""
        self.call("scancel", "--state=PENDING", "--partition=main")
        self.call("scancel", "--signal=KILL", "--full", "--partition=main")
        self.call("scancel", "--partition=main")
        wait_until(lambda: not self.call("squeue", "--noheader").strip(), "all jobs have ended")

    def call(self, *command: str) -> str:
        """What one of Slurm's commands says, as root. Raises ServiceFailed."""
        return run(command, env=self.environment)

    def allow(self, user: str, *limits: str) -> None:
        """Have the accounting know a user, with limits such as ``MaxSubmitJobs=2``, or -1 for none."""
        with contextlib.suppress(ServiceFailed):  # as when it knows them already
            self.call("sacctmgr", "-i", "add", "account", "test")
            self.call("sacctmgr", "-i", "add", "user", user, "account=test")
        if limits:
            self.call("sacctmgr", "-i", "modify", "user", user, "set", *limits)

    def token(self, user: str) -> str:
        """A token for the REST daemon, good for an hour."""
        return self.call("scontrol", "token", f"username={user}", "lifespan=3600").strip().partition("=")[2]

    def node_state(self, node: str) -> str:
        """In Slurm's word; empty while the controller can't be asked."""
        try:
            return self.call("sinfo", "--noheader", "--nodes", node, "--format=%T").strip()
        except ServiceFailed:
            return ""

    def resume(self, node: str) -> None:
        """Have a node that is down take jobs again; returns when it does.

        A node that registers anew comes back by itself, at any moment: then the controller refuses to resume it.
        """

        def serves() -> bool:
            state = self.node_state(node)
            if state.startswith(("down", "drain")):
                with contextlib.suppress(ServiceFailed):
                    self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return state in ("idle", "mixed", "allocated", "completing")

        wait_until(serves, f"{node} takes jobs again")

    def _listens(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240)
        return done.returncode == 0 and "DOWN" not in done.stdout

    def _daemon(self, name: str, command: list[str], answers: object) -> Service:
        log = self.folder / "log" / f"{name}.out"
        return Service(name, ["setpriv", "--pdeathsig", "TERM", *command], log, answers, env=self._shim)  # type: ignore[arg-type]

    def _make_munge(self) -> Service:
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        give_to("munge", folder, key)
        files = {name: f"--{name}-file={folder / name}" for name in ("pid", "log", "seed", "key")}
        command = ["munged", "--foreground", f"--socket={self._munge_socket}", *files.values()]
        probe = ["munge", f"--socket={self._munge_socket}", "--no-input"]
        return Service(
            "munged",
            [*switch_to("munge"), *command],
            self.folder / "log" / "munged.out",
            lambda: subprocess.run(probe, capture_output=True).returncode == 0,
        )

    @property
    def _munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    def _make_database(self) -> Service:
        folder = self.folder / "sql"
        give_to("mysql", folder)
        data = [f"--datadir={folder}/data", "--user=mysql"]
        run(
            ["mariadb-install-db", "--no-defaults", *data, "--auth-root-authentication-method=socket", "--skip-test-db"]
        )
        settings = [
            *(f"--socket={folder}/socket", f"--port={self._ports['sql']}", "--bind-address=127.0.0.1"),
            *(f"--pid-file={folder}/pid", "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"),
        ]
        return Service(
            "mariadb",
            [*switch_to("mysql"), "mariadbd", "--no-defaults", *data[:1], *settings],
            self.folder / "log" / "mariadb.out",
            lambda: self._sql("select 1"),
        )

    def _sql(self, statement: str) -> bool:
        command = ["mariadb", "--no-defaults", f"--socket={self.folder}/sql/socket", "--execute", statement]
        return subprocess.run(command, capture_output=True).returncode == 0

    def _make_accounts_database(self) -> None:
        made = self._sql(
            "create database if not exists slurm_acct_db; create user if not exists slurm@localhost identified by 'slurm';"
            "create user if not exists slurm@127.0.0.1 identified by 'slurm';"
            "grant all on slurm_acct_db.* to slurm@localhost; grant all on slurm_acct_db.* to slurm@127.0.0.1"
        )
        if not made:
            raise ServiceFailed("the accounting's database can't be made")

    def _make_rest(self) -> Service:
        address = f"127.0.0.1:{self._ports['rest']}"
        plugins = "openapi/v0.0.38,openapi/dbv0.0.38"
        # Without SLURM_JWT it would use munge as whoever it runs as.
        variables = ["env", "SLURM_JWT=daemon", f"HOME={self.folder}"]
        command = [*switch_to(REST_USER), *variables, "slurmrestd", "-a", "rest_auth/jwt", "-s", plugins, address]
        return Service(
            "slurmrestd",
            command,
            self.folder / "log" / "slurmrestd.out",
            lambda: subprocess.run(["curl", "-s", f"{self.rest_url}/openapi/v3"], capture_output=True).returncode == 0,
            env=self.environment,
        )

    def _common_conf(self) -> list[str]:
        return [
            "AuthType=auth/munge",
            f"AuthInfo=socket={self._munge_socket}",
            "AuthAltTypes=auth/jwt",
            f"AuthAltParameters=jwt_key={self.folder}/state/jwt_hs256.key",
            "SlurmUser=root",
        ]

    def _slurm_conf(self) -> str:
        host = run(["hostname", "-s"]).strip()
        folder = self.folder
        lines = [
            *self._common_conf(),
            "ClusterName=test",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={self._ports['ctld']}",
            "SlurmdUser=root",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={folder}/log/slurmctld.log",
            f"SlurmdLogFile={folder}/log/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "CredType=cred/munge",
            "MpiDefault=none",
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=2,sched_min_interval=100000,defer_batch=no",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core_Memory",
            "SlurmdParameters=config_overrides",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            "ReturnToService=2",
            # A node of a machine that is busy answers late, and is not lost.
            "SlurmdTimeout=300",
            "KillWait=3",
            "OverTimeLimit=0",
            "InactiveLimit=0",
            "MessageTimeout=10",
            "MinJobAge=10",
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={self._ports['dbd']}",
            # For munge this is the place of its socket.
            f"AccountingStoragePass={self._munge_socket}",
            "AccountingStorageEnforce=associations,limits,qos",
            "JobAcctGatherType=jobacct_gather/linux",
            *(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={self._ports[node]} "
                f"CPUs={CPUS} RealMemory={MEMORY_MB} State=UNKNOWN"
                for node in self.node_names
            ),
            "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=10 State=UP",
            "PartitionName=short Nodes=ALL MaxTime=1 DefMemPerCPU=10 State=UP",
        ]
        return "\n".join([*lines, ""])

    def _dbd_conf(self) -> str:
        lines = [
            *self._common_conf(),
            "DbdHost=localhost",
            "DbdAddr=127.0.0.1",
            f"DbdPort={self._ports['dbd']}",
            f"LogFile={self.folder}/log/slurmdbd.log",
            f"PidFile={self.folder}/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=127.0.0.1",
            f"StoragePort={self._ports['sql']}",
            "StorageUser=slurm",
            "StoragePass=slurm",
            "StorageLoc=slurm_acct_db",
        ]
        return "\n".join([*lines, ""])


@pytest.fixture(scope="session")
def slurm(services_folder: Path) -> Iterator[SlurmCluster]:
    """A running cluster for the whole session."""
    require(install)
    cluster = require(lambda: SlurmCluster(services_folder / "slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)
