"""What a worker of a queue in push mode is taken for before it runs, and what it must ask for to hold its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.wire import Gpu, Needs, Offer, QueueSpec, Requirements, Shape
from server.engine.demand_queues import PROBED_TAGS
from server.engine.matching import gpu_fits, missing_tags

BEGIN_S = 300
"""Wall time that a pilot may take for itself, before its jobs and after them."""
ARCHITECTURES = frozenset({"x86_64", "aarch64"})


@dataclass(frozen=True)
class Demanded:
    """What a slot must have for a job: ``input_mb`` of disk beside what it needs, Apptainer if it names an image."""

    needs: Requirements
    input_mb: int = 0
    container: bool = False


def expected_offer(shape: Shape, queue: QueueSpec, last: Offer | None) -> Offer:
    """What the pilot of a worker will offer, as far as can be known: its shape, within what its queue allows.

    Of GPUs and tags it is taken to have what a pilot of the queue offered ``last``; while none has, what pilots find out
    about their nodes by themselves, as demand does, and GPUs of which nothing is known.
    """
    kinds = last.gpus if last is not None and last.gpus else [Gpu("", "", 0)]
    return Offer(
        cores=_least(max(1, shape.cores), queue.cores),
        memory_mb=_least(shape.memory_mb, queue.memory_mb),
        disk_mb=_least(shape.disk_mb, queue.disk_mb),
        wall_s=for_jobs(_least(shape.wall_s, queue.wall_s)),
        gpus=(kinds * shape.gpus)[: shape.gpus],
        tags=sorted({*queue.tags, *(last.tags if last is not None else _unseen(queue))}),
    )


def _unseen(queue: QueueSpec) -> list[str]:
    """Tags that a node is taken to have; of architectures the one that the queue names, if it does."""
    named = ARCHITECTURES.intersection(queue.tags)
    return [tag for tag in PROBED_TAGS if not named or tag not in ARCHITECTURES or tag in named]


def for_jobs(wall_s: int) -> int:
    """What of a worker's wall time is left for jobs (zero: not limited)."""
    return max(1, wall_s - min(BEGIN_S, wall_s // 2)) if wall_s else 0


def shape_for(shape: Shape, nodes: Sequence[Sequence[tuple[Needs, int]]]) -> Shape:
    """What a worker must ask for on each node so that each holds its jobs, given with their input in MiB.

    Nothing is asked for beyond ``shape``, the one that was planned. Where a job's wall time is not known, that one's stays.
    """
    every = [needs for jobs in nodes for needs, _ in jobs]
    if not every:
        return shape
    wall_s = max(each.wall_s for each in every) + BEGIN_S if all(each.wall_s for each in every) else shape.wall_s
    return Shape(
        cores=_least(max(sum(each.cores for each, _ in jobs) for jobs in nodes), shape.cores),
        memory_mb=_least(max(sum(each.memory_mb for each, _ in jobs) for jobs in nodes), shape.memory_mb),
        disk_mb=_least(max(sum(each.disk_mb + input_mb for each, input_mb in jobs) for jobs in nodes), shape.disk_mb),
        wall_s=_least(wall_s, shape.wall_s),
        gpus=max(sum(each.gpus.count if each.gpus else 0 for each, _ in jobs) for jobs in nodes),
    )


def misfit(demanded: Demanded, offer: Offer) -> str:
    """Why a job does not fit what a pilot offers; empty if it does. An offer of zero means that the slot does not know."""
    needs = demanded.needs
    for wanted, there, words in (
        (needs.cores, offer.cores, "cores"),
        (needs.memory_mb, offer.memory_mb, "MB of memory"),
        (needs.disk_mb + demanded.input_mb, offer.disk_mb, "MB of disk, input included"),
        (needs.wall_s, offer.wall_s, "s of wall time"),
    ):
        if there and wanted > there:
            return f"the job needs {wanted} {words}, the slot has {there}"
    missing = missing_tags(needs.tags, offer.tags)
    if demanded.container and "apptainer" not in offer.tags:
        missing.append("apptainer")
    if missing:
        return f"the slot lacks {', '.join(missing)}"
    gpus = needs.gpus
    if gpus is not None and sum(gpu_fits(gpu, gpus) for gpu in offer.gpus) < gpus.count:
        return f"the job needs {gpus.count} GPUs, the slot has not so many such"
    return ""


def rest_of(offer: Offer, demanded: Demanded) -> Offer | None:
    """What an offer has left beside a job that fits; None when not even a core."""
    needs = demanded.needs
    if offer.cores <= needs.cores:
        return None
    gpus = list(offer.gpus)
    for _ in range(needs.gpus.count if needs.gpus is not None else 0):
        gpus.remove(next(gpu for gpu in gpus if needs.gpus is not None and gpu_fits(gpu, needs.gpus)))
    return Offer(
        cores=offer.cores - needs.cores,
        memory_mb=max(1, offer.memory_mb - needs.memory_mb) if offer.memory_mb else 0,
        disk_mb=max(1, offer.disk_mb - needs.disk_mb - demanded.input_mb) if offer.disk_mb else 0,
        wall_s=offer.wall_s,
        gpus=gpus,
        tags=offer.tags,
    )


def _least(*values: int) -> int:
    known = [value for value in values if value]
    return min(known) if known else 0
