"""A node is looked at before its pilot asks for the first job: a bad one would swallow one job after another."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from common.errors import ErrorCode, PilotageError
from common.wire import Gpu, NodeChecks
from pilot.container.apptainer import SYSTEM_PATH
from pilot.container.host import Finding, Level, check_host
from pilot.probe import checks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """What is to be looked at. ``scratch`` is where jobs run; ``clock_ahead_s`` how far the clock is ahead of the server's
    (None: not known); ``gpus`` those of the slot; ``apptainer`` a configured one, else the first on ``path``; ``binds`` are
    those of the queue. ``root`` is ``/`` but for tests."""

    scratch: Path
    gpus: Sequence[Gpu] = ()
    clock_ahead_s: Optional[float] = None
    apptainer: Optional[str] = None
    path: str = SYSTEM_PATH
    binds: Sequence[str] = ()
    root: Path = Path("/")


def validate_node(wanted: NodeChecks, node: Node) -> None:
    """Make the looks that a queue asks for. Raises PilotageError with the number of the first that fails and the words of
    all; what is merely odd is logged."""
    failed: list[tuple[ErrorCode, Finding]] = []
    for code, finding in _looks(wanted, node):
        if finding.level is Level.ERROR:
            failed.append((code, finding))
        elif finding.level is Level.WARNING:
            logger.warning("%s: %s: %s", finding.name, finding.detail, finding.remedy)
        else:
            logger.debug("%s: %s", finding.name, finding.detail)
    if failed:
        words = "; ".join(f"{finding.name}: {finding.detail}: {finding.remedy}" for _code, finding in failed)
        raise PilotageError(failed[0][0], words)


def _looks(wanted: NodeChecks, node: Node) -> Iterator[tuple[ErrorCode, Finding]]:
    yield ErrorCode.SCRATCH_UNUSABLE, checks.check_scratch(node.scratch)
    if wanted.scratch_mb:
        yield ErrorCode.NO_LOCAL_SPACE, checks.check_space(node.scratch, wanted.scratch_mb)
    if wanted.clock_s and node.clock_ahead_s is not None:
        yield ErrorCode.CLOCK_WRONG, checks.check_clock(node.clock_ahead_s, wanted.clock_s)
    for repository in wanted.cvmfs:
        yield ErrorCode.CVMFS_NOT_AVAILABLE, checks.check_cvmfs(repository, node.root)
    if wanted.container:
        for finding in check_host(node.apptainer, node.path, node.binds):
            missing = finding.name == "apptainer"
            yield ErrorCode.CONTAINER_NOT_INSTALLED if missing else ErrorCode.CONTAINER_FAILED, finding
    if wanted.gpus:
        yield ErrorCode.GPU_NOT_AVAILABLE, checks.check_gpus(node.gpus, wanted.gpus)
    for target in wanted.reachable:
        yield ErrorCode.NETWORK_UNREACHABLE, checks.check_reachable(target)
