"""Names of outputs. The job's id is part of both, so that a late twin can never take a winner's name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from common.wire import OutputNaming

MAX_NAME = 255
_ODD = frozenset("/:?#%")


@dataclass(frozen=True)
class OutputName:
    """What the name of an output says of where it comes from."""

    scope: str
    task_id: int
    job_id: int
    name: str


def output_did(scope: str, task_id: int, job_id: int, name: str) -> str:
    """``scope:task.job.name``: sorts by task, then by job."""
    return f"{scope}:{task_id}.{job_id}.{name}"


def parse_output_did(did: str) -> OutputName | None:
    """The parts of a DID that :func:`output_did` made; None for any other. No proof that there is such an output."""
    scope, _, rest = did.partition(":")
    task_id, _, rest = rest.partition(".")
    job_id, _, name = rest.partition(".")
    if not (scope and name and _is_id(task_id) and _is_id(job_id)):
        return None
    return OutputName(scope, int(task_id), int(job_id), name)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def output_path(scope: str, task_id: int, job_id: int, name: str) -> str:
    """Below the storage's prefix: ``scope/task/job/task.job.name``."""
    return f"{scope}/{task_id}/{job_id}/{task_id}.{job_id}.{name}"


def hashed_path(scope: str, name: str) -> str:
    """Where pilots of PanDA put ``scope:name`` below an endpoint's path: ``scope/ab/cd/name``, by the MD5 of both.

    (The layout of Rucio's deterministic storages.)
    """
    return f"{scope}/{_hashed(scope, name)}"


def output_place(naming: OutputNaming, scope: str, task_id: int, job_id: int, name: str) -> str:
    """Where an output lies below the prefix of a storage that names its files in this way."""
    if naming is OutputNaming.JOB:
        return output_path(scope, task_id, job_id, name)
    return fixed_path(naming, scope, output_did(scope, task_id, job_id, name).partition(":")[2])


def fixed_path(naming: OutputNaming, scope: str, name: str) -> str:
    """The path that follows from a DID alone, as Rucio makes it for deterministic RSEs (``rucio.rse.translation``): the
    scopes of users and groups are split at their dots, and the folders are the first digits of the MD5 sum of the DID."""
    folder = scope.replace(".", "/") if scope.startswith(("user", "group")) else scope
    if naming is OutputNaming.RUCIO_IDENTITY:
        return f"{folder}/{name}"
    return f"{folder}/{_hashed(scope, name)}"


def _hashed(scope: str, name: str) -> str:
    digits = hashlib.md5(f"{scope}:{name}".encode(), usedforsecurity=False).hexdigest()
    return f"{digits[:2]}/{digits[2:4]}/{name}"


def name_problem(task_id: int, job_id: int, name: str) -> str:
    """Why ``name`` cannot be an output's, if so: a pilot's word is not trusted."""
    if name in (".", "..") or name != name.strip() or not name.isprintable() or not _ODD.isdisjoint(name):
        return f"{name!r} is no file name: it must not hold / : ? # %, what cannot be printed, or spaces at its ends"
    if len(f"{task_id}.{job_id}.{name}".encode()) > MAX_NAME:
        return f"{name!r} is too long: with the task's and the job's id it must fit {MAX_NAME} bytes"
    return ""
