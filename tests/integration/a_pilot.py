"""A process with all that a pilot must not show, which runs one payload as a pilot does: for test_real_isolation.

Its argument is a JSON object: ``root`` (its folder), ``command``, ``image``, ``apptainer``, ``users``, ``binds``. It writes
``{"pid", "supervisor", "payload"}`` to stdout when the payload runs and how it ended at the end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pilot.accounts import Accounts
from pilot.container import ContainerSettings
from pilot.payload import GetFileReply, JobFolder, Mailbox, PayloadDefinition, prepare_payload
from pilot.supervised import SupervisedProcess
from pilot.workdir import WorkDir

SECRET = "top-secret"


def furnish(work_dir: WorkDir) -> list[int]:
    """Everything that a pilot has: files, another job's folder, an open descriptor, a socket."""
    for path in (work_dir.root / "secret", work_dir.spool.folder / "7.token", work_dir.log):
        path.write_text(f"{SECRET} {path.name}\n")
        path.chmod(0o644 if path == work_dir.log else 0o600)
    other = JobFolder.create(work_dir.jobs, "other")
    for path in (other.work / "data", other.tmp / "data", other.bin / "data", other.stdout):
        path.write_text(f"{SECRET} of another job\n")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(work_dir.root / "socket"))
    listening.listen()
    return [os.open(work_dir.root / "secret", os.O_RDONLY), listening.detach()]


def main(order: dict[str, Any]) -> None:
    work_dir = WorkDir(Path(order["root"]))
    furnish(work_dir)
    os.chdir(work_dir.root)
    accounts = Accounts(order["users"], work_dir.root, work_dir.root / "locks") if order["users"] else None
    folder = JobFolder.create(work_dir.jobs, "mine")
    definition = PayloadDefinition(
        "mine",
        "2",
        command=["/bin/sh", "-c", order["command"]],
        image=order["image"],
        environment={"TARGET": str(os.getpid()), "TARGET_DIR": str(work_dir.root)},
    )
    as_root = False if accounts else None
    container = ContainerSettings(order["apptainer"], tuple(order["binds"]), as_root=as_root, private=(work_dir.root,))
    spec = prepare_payload(folder, definition, dict(os.environ), container)
    replies = iter([GetFileReply.file("s:a", "/data/a", "DISK")])
    with Mailbox(folder.mailbox, lambda _request: next(replies, GetFileReply.no_more())):
        if accounts:
            spec = replace(spec, account=accounts.borrow(folder))
        process = SupervisedProcess.start(spec)
        process.wait_started()
        say({"pid": os.getpid(), "supervisor": process.supervisor_pid, "payload": process.pid})
        end = process.wait()
    say({**asdict(end), "stdout": folder.stdout.read_text(), "stderr": folder.stderr.read_text()})


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message, default=str), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
