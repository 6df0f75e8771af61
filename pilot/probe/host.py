"""Looks at a host that only people ask for: Python, limits of the process, control groups, certificates, the server."""

from __future__ import annotations

import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Optional

from common.errors import PilotageError
from common.http import HttpClient, ProblemError
from pilot.container.host import Finding, Level
from pilot.probe import cgroup
from pilot.probe.checks import CONNECT_S, check_clock, host_and_port
from pilot.probe.pci import number_in

OLDEST_PYTHON = (3, 9)
FEWEST_FILES = 1024
FEWEST_PROCESSES = 1024
CA_FOLDER = "etc/grid-security/certificates"
CRL_AGE_S = 7 * 86400
"""Lists of revoked certificates are fetched several times a day; those older than this are not fetched any more."""
#: Files of the kernel, what they must not hold, and what to write into them.
NAMESPACE_KNOBS = (
    ("user/max_user_namespaces", 0, "sysctl user.max_user_namespaces=15000"),
    ("kernel/unprivileged_userns_clone", 0, "sysctl kernel.unprivileged_userns_clone=1"),
    ("kernel/apparmor_restrict_unprivileged_userns", 1, "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
)


def check_python() -> Finding:
    """The Python that runs this."""
    words = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("python", Level.ERROR, words, f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or later")
    return Finding("python", Level.OK, words)


def check_user_namespaces(root: Path = Path("/")) -> Finding:
    """Whether the kernel lets users make namespaces, which Apptainer needs unless it is installed setuid."""
    for name, bad, remedy in NAMESPACE_KNOBS:
        if number_in(root / "proc/sys" / name) == bad:
            return Finding("user namespaces", Level.WARNING, f"{name.replace('/', '.')} is {bad}", f"as root: {remedy}")
    return Finding("user namespaces", Level.OK, "allowed")


def check_limits() -> Iterator[Finding]:
    """The limits that this process passes on to payloads (``ulimit``)."""
    for name, number, least, remedy in (
        ("open files", resource.RLIMIT_NOFILE, FEWEST_FILES, "raise it: ulimit -n, or LimitNOFILE of the batch daemon"),
        ("processes", resource.RLIMIT_NPROC, FEWEST_PROCESSES, "raise it: ulimit -u, or TasksMax of the batch daemon"),
    ):
        soft, _hard = resource.getrlimit(number)
        low = soft != resource.RLIM_INFINITY and soft < least
        level = Level.WARNING if low else Level.OK
        yield Finding(f"limit of {name}", level, _limit(soft), remedy if low else "")
    for name, number in (
        ("address space", resource.RLIMIT_AS),
        ("file size", resource.RLIMIT_FSIZE),
        ("CPU time", resource.RLIMIT_CPU),
    ):
        soft, _hard = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            words = "payloads fail at it, whatever their job asked for: lift it, and limit memory by a control group"
            yield Finding(f"limit of {name}", Level.WARNING, _limit(soft), words)


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def check_cgroups(root: Path = Path("/")) -> Finding:
    """Which control groups there are, and what they leave to this process."""
    versions = sorted({version for _folder, version in cgroup.folders(root, "memory")})
    if not versions:
        words = "none is mounted: what payloads use is seen process by process only"
        return Finding("control groups", Level.WARNING, words, "mount /sys/fs/cgroup")
    memory, cores = cgroup.memory_limit_mb(root), cgroup.cpu_quota(root)
    limits = [f"{memory} MiB of memory"] if memory is not None else []
    limits += [f"{cores:g} cores"] if cores is not None else []
    kinds = " and ".join(f"version {version}" for version in versions)
    return Finding("control groups", Level.OK, f"{kinds}, {' and '.join(limits) or 'no limits'}")


def check_certificates(environment: Mapping[str, str], root: Path = Path("/"), now: Optional[float] = None) -> Finding:
    """The folder of the grid's certificate authorities: needed for storages that are reached with a proxy."""
    folder = Path(environment.get("X509_CERT_DIR") or root / CA_FOLDER)
    name = "grid certificates"
    if not folder.is_dir():
        level = Level.ERROR if "X509_CERT_DIR" in environment else Level.OK
        remedy = "install the CA certificates, or set X509_CERT_DIR" if level is Level.ERROR else ""
        return Finding(name, level, f"{folder} is not there; only storages with X.509 need it", remedy)
    authorities = [path for path in folder.iterdir() if path.suffix == ".0"]
    if not authorities:
        return Finding(name, Level.ERROR, f"{folder} holds no certificate", "install the CA certificates there")
    oldest = (time.time() if now is None else now) - CRL_AGE_S
    lists = [path for path in folder.iterdir() if path.suffix == ".r0"]
    stale = [path for path in lists if path.stat().st_mtime < oldest]
    words = f"{folder}: {len(authorities)} authorities, {len(lists)} revocation lists"
    if stale:
        return Finding(name, Level.WARNING, f"{words}, {len(stale)} of them older than a week", "run fetch-crl")
    return Finding(name, Level.OK, words)


def check_server(url: str, ca_file: Optional[str], most_ahead_s: float) -> Iterator[Finding]:
    """Whether the server answers, its certificate holds, by which addresses, and how far its clock is from ours."""
    client = None
    try:
        client = HttpClient(url, ca_file=ca_file, timeout=(CONNECT_S, CONNECT_S), retries=0)
        client.call("GET", "/healthz", None, type(None), retry=False)
        yield Finding("server", Level.OK, f"{url} answers")
    except ProblemError as error:
        yield Finding("server", Level.WARNING, f"{url} answers, but is not well: {error.detail}", "look at the server")
    except PilotageError as error:
        yield Finding("server", Level.ERROR, error.detail, "check the URL, the firewall and the CA file (--ca-file)")
    yield from _families(url)
    if client is not None:
        if client.clock_ahead_s is not None:
            yield check_clock(client.clock_ahead_s, most_ahead_s)
        client.close()


def _families(url: str) -> Iterator[Finding]:
    """IPv4 and IPv6 one by one: a family that is announced and does not work makes every call slow."""
    try:
        host, port = host_and_port(url)
    except ValueError:
        return  # the address itself is wrong, which was said
    for name, family in (("IPv4", socket.AF_INET), ("IPv6", socket.AF_INET6)):
        try:
            places = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except OSError:
            yield Finding(f"server by {name}", Level.OK, f"{host} has no address of it")
            continue
        trouble = _connect(family, places[0][4])
        if trouble:
            remedy = f"let {name} pass, or take the address out of the name service"
            yield Finding(f"server by {name}", Level.WARNING, f"{places[0][4][0]}: {trouble}", remedy)
        else:
            yield Finding(f"server by {name}", Level.OK, f"{places[0][4][0]} port {port}")


def _connect(family: int, address: tuple[object, ...]) -> str:
    """Why it cannot be connected to; empty when it can."""
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(CONNECT_S)
        try:
            connection.connect(address)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def check_user() -> Finding:
    """Who runs this."""
    return Finding("user", Level.OK, f"uid {os.getuid()}, gid {os.getgid()} on {socket.gethostname()}")
