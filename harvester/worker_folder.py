"""The folder that a worker starts from: what its batch system ships to the node, or the node sees by a shared file system.

====================  =====================================================================================
``start``             the script that the batch system runs; POSIX sh, mode 0700
``secret``            the worker's secret, mode 0600
other names           the files of :attr:`WorkerSpec.files` (the pilot's bundle)
``stdout, stderr``    where the batch system puts what the worker writes, or where it is brought home to
====================  =====================================================================================

``start`` finds the rest in the folder that :data:`FOLDER_VARIABLE` names, else in the directory that it is started in; it
makes the pilot's work dir in the node's scratch and becomes the pilot, so that the batch system's signals reach it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.tokens import write_secret_file
from harvester.backends.base import MARK_VARIABLE, WorkerSpec

FOLDER_VARIABLE = "PILOTAGE_WORKER_FOLDER"
"""Names the folder to the start script where it isn't the directory that it is started in."""
SCRATCH = "${TMPDIR:-/tmp}"
"""The node's scratch, as sh says it."""
START, SECRET = "start", "secret"

RANKS = ("SLURM_NODEID", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PALS_RANKID", "_CONDOR_PROCNO")
"""Where starters of parallel programs (srun, mpiexec, HTCondor's parallel universe) put the number of a node, or of the one
process on it, as it is with us."""

_SHELL = {"folder": '"$folder"', "secret_file": f'"$folder"/{SECRET}', "work_dir": '"$work_dir"'}
_PLACEHOLDER = re.compile(r"\{(folder|secret_file|work_dir)\}")


class WorkerFolders:
    """The folders of workers in ``root``, each named by its mark; made with mode 0700."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, mark: str) -> Path:
        """Where a worker's folder is, or would be."""
        return self.root / mark

    def prepare(self, spec: WorkerSpec, scratch: str = SCRATCH) -> Path:
        """Make the folder of a worker, or what is missing in it.

        ``scratch`` is a shell word for the node's scratch, such as ``${_CONDOR_SCRATCH_DIR}``. Raises OSError.
        """
        folder = self.path(spec.mark)
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_secret_file(folder / SECRET, spec.secret)
        for name, source in spec.files.items():
            _place(source, folder / name)
        start = folder / START
        start.write_text(start_script(spec, scratch), encoding="utf-8")
        start.chmod(0o700)
        return folder

    def remove(self, marks: Iterable[str]) -> None:
        """Remove folders; those that aren't there don't matter. Raises OSError."""
        for mark in marks:
            if self.path(mark).exists():
                shutil.rmtree(self.path(mark))


def start_script(spec: WorkerSpec, scratch: str = SCRATCH) -> str:
    """The script that starts a worker's pilot. It holds no secret."""
    variables = {**spec.environment, MARK_VARIABLE: spec.mark}
    return "\n".join(
        [
            "#!/bin/sh",
            f"# Starts the pilot of worker {spec.mark} of queue {spec.queue}.",
            "umask 077",
            f"folder=${{{FOLDER_VARIABLE}:-$PWD}}",
            f'chmod 600 "$folder/{SECRET}" || exit 70',
            f'work_dir=$(mktemp -d "{scratch}/pilotage-XXXXXXXX") || exit 70',
            "export PILOTAGE_PILOT_REMOVE_WORK_DIR=true",
            *([f"export PILOTAGE_PILOT_NODE={_rank()}"] if spec.nodes > 1 else []),
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            "exec " + " ".join(_words(spec.command)),
            "",
        ]
    )


def _rank() -> str:
    """The number of this node as a word of sh: pilots of one worker are told apart by it."""
    found = "0"
    for name in reversed(RANKS):
        found = f"${{{name}:-{found}}}"
    return found


def _words(command: Sequence[str]) -> list[str]:
    """A command as words of sh, with what only the node knows filled in there."""
    return ["".join(_word(argument)) or "''" for argument in command]


def _word(argument: str) -> Iterable[str]:
    for index, part in enumerate(_PLACEHOLDER.split(argument)):
        if index % 2:
            yield _SHELL[part]
        elif part:
            yield shlex.quote(part)


def _place(source: Path, target: Path) -> None:
    """Have a file in a folder without a copy of its bytes where one file system holds both."""
    temporary = target.with_name(f"{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # a link replaced by another to the same file leaves both
