"""Whether this node can run payloads in containers, and what to ask its admin for if not.

The test is a payload: a program of the host itself in an otherwise empty image folder, by the very command that jobs are
run with. No image, network or FUSE is needed for it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from common.errors import PilotageError
from pilot.container import remedies
from pilot.container.apptainer import (
    SYSTEM_PATH,
    ContainerCommand,
    ContainerSettings,
    container_command,
    diagnose_container_failure,
    find_apptainer,
)
from pilot.container.binds import check_binds

TIMEOUT_S = 30
#: What a program of the host needs to run, at the same places in the image.
HOST_FOLDERS = ("usr", "bin", "sbin", "lib", "lib32", "lib64")
#: Prints the namespaces that the probe is in.
PROBE = ("/bin/sh", "-c", "readlink /proc/self/ns/pid && readlink /proc/self/ns/ipc")


class Level(str, Enum):
    """How bad a finding is."""

    OK = "ok"
    """All is well."""
    WARNING = "warning"
    """Some payloads cannot run, or less is promised."""
    ERROR = "error"
    """No payload can run in a container."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: ``detail`` is what was found, ``remedy`` what to do about it (empty when ok)."""

    name: str
    level: Level
    detail: str
    remedy: str = ""


def check_host(
    configured: Optional[str] = None,
    path: str = SYSTEM_PATH,
    binds: Sequence[str] = (),
    private: Sequence[Path] = (),
    accounts: Sequence[str] = (),
) -> list[Finding]:
    """Looks at Apptainer, user namespaces, isolation, FUSE, spython, binds and the pilot's own user.

    ``configured``: the Apptainer to use, else the first on ``path``; ``binds`` of the queue; ``private`` folders of the
    pilot; ``accounts``: payload_users. Takes about half a second; raises nothing.
    """
    try:
        binary = find_apptainer(path, configured)
        version = _run([binary, "version"]).strip()
    except (PilotageError, OSError, subprocess.SubprocessError) as error:
        return [Finding("apptainer", Level.ERROR, str(error), remedies.INSTALL)]
    return [
        Finding("apptainer", Level.OK, f"{binary} {version}"),
        *check_isolation(binary),
        _check_fuse(binary),
        _check_spython(),
        *_check_binds(binds, private),
        *_check_user(accounts),
    ]


def check_isolation(binary: str) -> Iterator[Finding]:
    """Runs a program in a container as payloads are run, and looks whether it has namespaces of its own; raises nothing.

    A namespace that the configuration of Apptainer forbids is left out by it without a word.
    """
    with tempfile.TemporaryDirectory(prefix="pilotage-check-") as scratch:
        try:
            command = _probe(binary, Path(scratch))
            done = subprocess.run(
                command.argv, env=command.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except (PilotageError, OSError, subprocess.SubprocessError) as error:
            yield Finding("container", Level.ERROR, str(error), remedies.TRY)
            return
    words = done.stdout.split()
    if done.returncode != 0 or len(words) != 2:
        failure = diagnose_container_failure(done.returncode, done.stderr)
        detail = done.stderr.strip()[-500:] or f"exit code {done.returncode}"
        yield Finding("container", Level.ERROR, detail if failure is None else str(failure), remedies.TRY)
        return
    yield Finding("container", Level.OK, "a program runs in an image folder")
    for kind, inside in zip(("pid", "ipc"), words):
        if inside == str(Path(f"/proc/self/ns/{kind}").readlink()):
            remedy = remedies.NAMESPACES.format(kind=kind, file=_build_config(binary, "APPTAINER_CONF_FILE"))
            yield Finding(f"{kind}-namespace", Level.ERROR, f"payloads share the host's {kind} namespace", remedy)


def _probe(binary: str, scratch: Path) -> ContainerCommand:
    from pilot.payload.folder import JobFolder  # pilot.payload imports this package

    image, binds = scratch / "image", []
    for name in (*HOST_FOLDERS, "dev", "proc", "sys", "etc", "tmp", "var/tmp"):
        place, host = image / name, Path("/") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name in HOST_FOLDERS and host.is_symlink():
            place.symlink_to(host.readlink())
            continue
        place.mkdir()
        if name in HOST_FOLDERS and host.is_dir():
            binds.append(f"{host}:{host}:ro")
    folder = JobFolder.create(scratch, "check")
    return container_command(ContainerSettings(binary, tuple(binds)), str(image), folder, PROBE, {"PATH": SYSTEM_PATH})


def _check_fuse(binary: str) -> Finding:
    """Whether a SIF file, as pulled images are, can be mounted: by a setuid Apptainer, or through FUSE."""
    parts = Path(_build_config(binary, "LIBEXECDIR") or "/usr/libexec") / "apptainer" / "bin"
    if _is_setuid(parts / "starter-suid"):
        return Finding("sif", Level.OK, f"{parts / 'starter-suid'} mounts SIF files")
    missing = []
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing.append("/dev/fuse cannot be opened")
    search = f"{parts}:{SYSTEM_PATH}"
    if not any(shutil.which(name, path=search) for name in ("squashfuse_ll", "squashfuse")):
        missing.append("there is no squashfuse")
    if missing:
        return Finding(
            "sif", Level.WARNING, f"SIF files and pulled images cannot be used: {', '.join(missing)}", remedies.FUSE
        )
    return Finding("sif", Level.OK, "SIF files are mounted by squashfuse")


def _is_setuid(program: Path) -> bool:
    try:
        status = program.stat()
    except OSError:
        return False
    return status.st_uid == 0 and bool(status.st_mode & stat.S_ISUID)


def _check_spython() -> Finding:
    if find_spec("spython") is None:
        return Finding("spython", Level.WARNING, "images cannot be pulled from registries", remedies.SPYTHON)
    return Finding("spython", Level.OK, "images can be pulled from registries")


def _check_binds(binds: Sequence[str], private: Sequence[Path]) -> Iterator[Finding]:
    for bind in binds:
        try:
            check_binds([bind], private)
        except PilotageError as error:
            yield Finding(
                "binds", Level.ERROR, error.detail, "change the queue: pilotage admin queue set NAME --bind …"
            )
            continue
        source = Path(bind.split(":", 1)[0])
        if not source.exists():
            yield Finding(
                "binds", Level.ERROR, f"{source} is not on this node", "mount it, or take it off the queue's binds"
            )


def _check_user(accounts: Sequence[str]) -> Iterator[Finding]:
    if os.geteuid() == 0 and not accounts:
        detail = "the pilot is root: a payload that breaks out of its container would be root, too"
        yield Finding("user", Level.WARNING, detail, remedies.RUNS_AS_ROOT)


def _build_config(binary: str, name: str) -> str:
    """A value that Apptainer was built with; empty where it does not tell."""
    try:
        answer = _run([binary, "buildcfg"])
    except (OSError, subprocess.SubprocessError):
        return ""
    found = [line.partition("=")[2] for line in answer.splitlines() if line.startswith(f"{name}=")]
    return found[0] if found else ""


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return done.stdout
