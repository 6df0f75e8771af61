"""From a request for a job to what our own dispatcher is asked."""

from __future__ import annotations

import hashlib
import re

from common.wire import ForeignTerms, Offer, QueueSpec
from server.compat.panda.fields import Fields
from server.compat.panda.resources import RESOURCE_TYPES, cores_of
from server.dispatch.context import Dispatcher
from server.dispatch.errors import NotFound
from server.dispatch.foreign import Asking

GETJOB = {
    "queue": "siteName",
    "label": "prodSourceLabel",
    "memory": "mem",
    "disk": "diskSpace",
    "resource": "resourceType",
    "wall": "remaining_time",
}
"""What the fields of ``getJob`` are called. Its ``cpu`` is the clock of a core in MHz, and says nothing of how many there
are: that the queue says."""
ACQUIRE_JOBS = {
    "queue": "site_name",
    "label": "prod_source_label",
    "memory": "memory",
    "disk": "disk_space",
    "resource": "resource_type",
    "wall": "remaining_time",
}
"""The same of Harvester's ``acquire_jobs``."""


_WORKER = re.compile(r"[A-Za-z0-9_.-]{1,32}")


def mark_beginning(harvester: str) -> str:
    """What the marks of a PanDA Harvester's workers begin with: nobody else makes such."""
    return f"panda.{hashlib.sha256(harvester.encode()).hexdigest()[:16]}."


def mark_of(harvester: str, worker: str) -> str | None:
    """The mark of a worker that a PanDA Harvester numbers so; None if that is no number of one."""
    return f"{mark_beginning(harvester)}{worker}" if _WORKER.fullmatch(worker) else None


def worker_of(harvester: str, mark: str) -> str | None:
    """The number of a worker with this mark; None if it is not this Harvester's."""
    beginning = mark_beginning(harvester)
    return mark.removeprefix(beginning) if mark.startswith(beginning) else None


def queue_of(dispatcher: Dispatcher, name: str) -> QueueSpec:
    """The queue that is called so there.

    Raises:
        NotFound: there is none.
    """
    ours = dispatcher.config.compat.panda.queues.get(name, name)
    found = dispatcher.looks.get().world.queues.get(ours)
    if found is None:
        raise NotFound(f"there is no queue {name!r}")
    return found


def name_of(dispatcher: Dispatcher, queue: str) -> str:
    """What a queue of ours is called there."""
    theirs = {ours: name for name, ours in dispatcher.config.compat.panda.queues.items()}
    return theirs.get(queue, queue)


def asking_of(dispatcher: Dispatcher, fields: Fields, names: dict[str, str], version: str) -> Asking:
    """What a pilot, or Harvester for it, asks for. Raises NotFound."""
    queue = queue_of(dispatcher, fields.text(names["queue"]))
    kind = RESOURCE_TYPES.get(fields.text(names["resource"]))
    shares = dispatcher.config.compat.panda.labels.get(fields.text(names["label"]), [])
    terms = ForeignTerms(shares=sorted(shares))
    if kind is not None:
        terms = ForeignTerms(kind.min_cores, kind.max_cores, kind.min_core_mb, kind.max_core_mb, sorted(shares))
    offer = Offer(
        cores=cores_of(kind, queue),
        memory_mb=fields.count(names["memory"]),
        disk_mb=fields.count(names["disk"]),
        wall_s=fields.count(names["wall"]),
        foreign=terms,
    )
    harvester, worker = fields.text("harvester_id"), fields.text("worker_id")
    return Asking(
        queue=queue.name,
        offer=offer,
        host=fields.text("node").rpartition("@")[2],
        version=version,
        worker=(mark_of(harvester, worker) if harvester else None) or "",
    )
