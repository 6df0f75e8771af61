"""What nobody remembers: workers in batch systems, secrets and folders. ``pilotage harvester sweep`` finds and removes it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harvester.backends.base import Backend, BackendError, Killable, Listing, WorkerRef
from harvester.credentials.keeper import unused_files
from harvester.service import Parts

YOUNG_S = 3600.0
"""What is younger may belong to a worker that is just being planned."""


@dataclass
class Strays:
    """What was found. ``problems`` say where it could not be looked."""

    workers: list[tuple[Backend, str, WorkerRef]] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find(parts: Parts) -> Strays:
    """Look everywhere. Changes nothing."""
    found = Strays()
    # Batch systems and folders first: whatever is there by then has been written down before.
    listed = list(_listed(parts, found))
    secrets = _old(parts.state_dir / "secrets")
    folders = _old(parts.state_dir / "workers")
    known = {worker.mark for worker in [*parts.store.live(), *parts.store.ended(1_000_000)]}
    found.workers = [stray for stray in listed if stray[2].mark not in known]
    alive = {ref.mark for _, _, ref in listed}
    found.paths = [path for path in secrets if path.name not in known]
    found.paths += [path for path in folders if path.name not in known | alive]
    found.paths += unused_files(parts.state_dir, parts.config.credentials)
    return found


def remove(found: Strays) -> list[str]:
    """End the workers, and remove the paths. Returns what could not be done."""
    failed = []
    for backend, queue, ref in found.workers:
        if not isinstance(backend, Killable):
            failed.append(
                f"worker {ref.mark}: the backend of queue {queue} can't end workers; end it in the batch system"
            )
            continue
        try:
            failed += [f"worker {mark}: {reason}" for mark, reason in backend.kill([ref]).items()]
        except BackendError as error:
            failed.append(f"worker {ref.mark}: {error}")
    for path in found.paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            failed.append(f"{path}: {error.strerror}")
    return failed


def _listed(parts: Parts, found: Strays) -> Iterator[tuple[Backend, str, WorkerRef]]:
    seen: set[int] = set()
    for queue, backend in parts.backends.items():
        if id(backend) in seen:
            continue
        seen.add(id(backend))
        if not isinstance(backend, Listing):
            kind = parts.config.queues[queue].backend
            found.problems.append(
                f"queue {queue}: backend {kind} can't list its workers: look in the batch system itself"
            )
            continue
        try:
            refs: Sequence[WorkerRef] = backend.list_workers()
        except BackendError as error:
            found.problems.append(f"queue {queue}: {error}")
            continue
        yield from ((backend, queue, ref) for ref in refs)


def _old(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    before = time.time() - YOUNG_S  # the file system's clock, not ours
    return sorted(path for path in folder.iterdir() if path.lstat().st_mtime < before)
