"""What a node must be able to do, one look each: what was found, and what to do about it.

The pilot makes those that its queue asks for before its first job; ``pilotage pilot doctor`` makes all of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Optional
from urllib.parse import urlsplit

from common.quantities import format_duration
from common.wire import Gpu
from pilot.container.host import Finding, Level

MB = 1024 * 1024
PROBE_BYTES = MB
SLOW_SYNC_S = 5.0
CVMFS_TIMEOUT_S = 60.0
CONNECT_S = 10.0
#: Ports of the schemes that storages are reached by.
PORTS = {
    "https": 443, "http": 80, "davs": 443, "dav": 80, "s3": 443, "root": 1094, "roots": 1094, "xroot": 1094,
    "xroots": 1094, "gsiftp": 2811, "srm": 8443,
}  # fmt: skip
REMEDIES = {
    errno.EROFS: "the file system is mounted read-only: have it looked at, disks go read-only when they fail",
    errno.EACCES: "let the pilot's user write and execute there, or mount it without noexec; or name another --work-dir",
    errno.EPERM: "let the pilot's user write and execute there, or mount it without noexec; or name another --work-dir",
    errno.ENOSPC: "clean the disk",
    errno.EDQUOT: "raise the quota of the pilot's user",
    errno.EIO: "the disk is failing: take the node out of service",
}


def check_scratch(folder: Path) -> Finding:
    """Whether a file can be written there, synced to the disk, read back, and a script executed."""
    data = os.urandom(PROBE_BYTES)
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="pilotage-check-", dir=folder) as place:
            file, script = Path(place) / "data", Path(place) / "script"
            with file.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            took_s = time.monotonic() - began
            if file.read_bytes() != data:
                return Finding(
                    "scratch", Level.ERROR, f"{folder} gives back other bytes than were written", REMEDIES[errno.EIO]
                )
            script.write_text("#!/bin/sh\nexit 0\n")
            script.chmod(0o700)
            subprocess.run([str(script)], check=True, timeout=CONNECT_S)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "have the disk looked at, or name another --work-dir")
        return Finding("scratch", Level.ERROR, f"{folder}: {error.strerror or error}", remedy)
    except subprocess.SubprocessError as error:
        return Finding("scratch", Level.ERROR, f"a script in {folder} does not run: {error}", REMEDIES[errno.EACCES])
    if took_s > SLOW_SYNC_S:
        words = f"{folder}: writing a megabyte took {format_duration(took_s)}"
        return Finding("scratch", Level.WARNING, words, "look at the load of the disk")
    return Finding("scratch", Level.OK, f"{folder} can be written, synced and executed from")


def check_space(folder: Path, wanted_mb: int) -> Finding:
    """Free space, in MiB; also whether there are inodes left."""
    try:
        free_mb, file_system = shutil.disk_usage(folder).free // MB, os.statvfs(folder)
    except OSError as error:
        return Finding("space", Level.ERROR, f"{folder}: {error.strerror}", "name a --work-dir that exists")
    if file_system.f_files and not file_system.f_favail:
        return Finding("space", Level.ERROR, f"{folder}: no inode is free", "remove small files from the disk")
    if free_mb < wanted_mb:
        words = f"{folder}: {free_mb} MiB are free, {wanted_mb} wanted"
        return Finding("space", Level.ERROR, words, "clean the disk, or ask less of it")
    return Finding("space", Level.OK, f"{folder}: {free_mb} MiB are free")


def check_clock(ahead_s: Optional[float], most_s: float) -> Finding:
    """Whether the clock is within ``most_s`` seconds of the server's. ``ahead_s`` None: nobody knows."""
    if ahead_s is None:
        return Finding("clock", Level.WARNING, "not compared: no answer of a server has told its time", "give --server")
    words = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's"
    if abs(ahead_s) > most_s:
        remedy = f"synchronise the clock (chronyd or ntpd); at most {most_s:.0f} s are allowed"
        return Finding("clock", Level.ERROR, words, remedy)
    return Finding("clock", Level.OK, words)


def check_cvmfs(repository: str, root: Path = Path("/")) -> Finding:
    """Whether a repository, or a folder in one, is there and not empty. In a process of its own: a mount may hang."""
    folder = root / "cvmfs" / repository
    name = f"cvmfs {repository}"
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(["ls", "-A", str(folder)], stdout=output, stderr=subprocess.DEVNULL)
        try:
            code = process.wait(CVMFS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may hang in the kernel: then it is left behind
                process.wait(1.0)
            words = f"{folder} does not answer within {CVMFS_TIMEOUT_S:.0f} s"
            return Finding(
                name, Level.ERROR, words, "cvmfs_config reload, or cvmfs_config wipecache; look at its proxies"
            )
        output.seek(0)
        empty = not output.read(1)
    if code != 0:
        return Finding(name, Level.ERROR, f"{folder} is not there", "install and configure cvmfs: cvmfs_config probe")
    if empty:
        words = f"{folder} is empty"
        return Finding(
            name, Level.ERROR, words, "nothing is mounted there: cvmfs_config probe; in a container, bind /cvmfs"
        )
    return Finding(name, Level.OK, f"{folder}{_revision(folder)}")


def _revision(folder: Path) -> str:
    """The catalogue's revision; empty where it is no mount of CVMFS's own (an NFS export, a copy)."""
    try:
        return f" at revision {os.getxattr(folder, 'user.revision').decode('ascii', 'replace')}"
    except OSError:
        return ""


def check_gpus(gpus: Sequence[Gpu], wanted: int) -> Finding:
    """Whether the slot has as many GPUs as it should."""
    words = ", ".join(f"{gpu.model} ({gpu.memory_mb} MiB, {gpu.driver})" for gpu in gpus) or "none"
    if len(gpus) < wanted:
        remedy = "look at the driver (nvidia-smi, rocm-smi), and at what the batch system assigns to the job"
        return Finding("gpus", Level.ERROR, f"{wanted} wanted, found: {words}", remedy)
    return Finding("gpus", Level.OK, words)


def check_reachable(target: str) -> Finding:
    """Whether something accepts connections at a URL, or at host:port; each address of the name is tried."""
    name = f"reach {target}"
    try:
        host, port = host_and_port(target)
    except ValueError as error:
        return Finding(name, Level.ERROR, str(error), "write a URL, or host:port")
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(name, Level.ERROR, f"{host}: {error.strerror or error}", "look at the node's name servers")
    troubles = []
    for family, kind, protocol, _name, address in places:
        with socket.socket(family, kind, protocol) as connection:
            connection.settimeout(CONNECT_S)
            try:
                connection.connect(address)
            except OSError as error:
                troubles.append(f"{address[0]}: {error.strerror or error}")
                continue
            words = f"{address[0]} port {port}" + (f" (but not {'; '.join(troubles)})" if troubles else "")
            return Finding(
                name, Level.WARNING if troubles else Level.OK, words, "mend the address that fails" if troubles else ""
            )
    return Finding(name, Level.ERROR, "; ".join(troubles), "let the firewall pass it, or see whether the service is up")


def host_and_port(target: str) -> tuple[str, int]:
    """Of a URL or ``host:port``. Raises ValueError."""
    parts = urlsplit(target if "://" in target else f"//{target}")
    port = parts.port or PORTS.get(parts.scheme)
    if not parts.hostname or port is None:
        raise ValueError(f"{target!r} names no host and port")
    return parts.hostname, port
