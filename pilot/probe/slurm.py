"""What Slurm says of a job, in its variables and, for the time left, by ``squeue``.

The variables are those of the manual pages of sbatch and srun; which of them are set where was looked up in jobs of
Slurm 22.05, of which the tests hold the environments.
"""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from typing import Optional

from pilot.probe.figure import Figure

logger = logging.getLogger(__name__)

SQUEUE_TIMEOUT_S = 20


def slurm_figures(environment: Mapping[str, str], now: float) -> Iterator[Figure]:
    """``now``: seconds since the epoch. In a batch script the pilot has the node's whole part of the job; in a step it
    shares that with the step's other tasks on the node."""
    if "SLURM_JOB_ID" not in environment:
        return
    on_node = _number(environment, "SLURM_CPUS_ON_NODE")
    cores, share = on_node, 1.0
    if on_node:
        yield Figure("cores", "SLURM_CPUS_ON_NODE", on_node)
    tasks = _tasks_here(environment)
    if tasks > 1:
        each = _number(environment, "SLURM_CPUS_PER_TASK")
        cores = each or (on_node // tasks if on_node else 0)
        source = "SLURM_CPUS_PER_TASK" if each else f"SLURM_CPUS_ON_NODE for {tasks} tasks of the step"
        if cores:
            yield Figure("cores", source, cores)
        share = cores / on_node if cores and on_node else 1 / tasks
    yield from _memory(environment, cores, share)
    gpus = _number(environment, "SLURM_GPUS_ON_NODE")
    if "SLURM_GPUS_ON_NODE" in environment:
        yield Figure("gpus", "SLURM_GPUS_ON_NODE", gpus)
    yield from _end(environment, now)


def _memory(environment: Mapping[str, str], cores: int, share: float) -> Iterator[Figure]:
    per_node = _number(environment, "SLURM_MEM_PER_NODE")
    per_core = _number(environment, "SLURM_MEM_PER_CPU")
    per_gpu = _number(environment, "SLURM_MEM_PER_GPU")
    if per_node:
        yield Figure("memory_mb", "SLURM_MEM_PER_NODE" + _of(share), int(per_node * share))
    if per_core and cores:
        yield Figure("memory_mb", "SLURM_MEM_PER_CPU", per_core * cores)
    if per_gpu and _number(environment, "SLURM_GPUS_ON_NODE"):
        whole = per_gpu * _number(environment, "SLURM_GPUS_ON_NODE")
        yield Figure("memory_mb", "SLURM_MEM_PER_GPU" + _of(share), int(whole * share))


def _of(share: float) -> str:
    return "" if share == 1.0 else f", {share:.0%} of it"


def _end(environment: Mapping[str, str], now: float) -> Iterator[Figure]:
    """Newer versions have a variable; the others are asked, once."""
    ends = _number(environment, "SLURM_JOB_END_TIME")
    if ends:
        yield Figure("wall_s", "SLURM_JOB_END_TIME", int(ends - now))
        return
    binary = shutil.which("squeue", path=environment.get("PATH"))
    if binary is None:
        return
    words = [binary, "--noheader", "--job", environment["SLURM_JOB_ID"], "--format", "%L"]
    try:
        answer = subprocess.run(
            words, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_S, check=True, env=dict(environment)
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("squeue does not say how much time is left: %s", error)
        return
    left_s = parse_left(answer.stdout)
    if left_s is not None:
        yield Figure("wall_s", "squeue", left_s)


def parse_left(text: str) -> Optional[int]:
    """Seconds of ``1-02:03:04``, ``02:03:04``, ``3:04``; None for what is no time (``UNLIMITED``, ``NOT_SET``)."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Tasks of this step on this node; 1 in a batch script, which is no step and has no such variable."""
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    node = _number(environment, "SLURM_NODEID")
    each: list[int] = []
    for count, times in re.findall(r"(\d{1,5})(?:\(x(\d{1,5})\))?", counts):  # "2(x3),1": nodes of the same in one word
        each += [int(count)] * int(times or 1)
    return each[node] if node < len(each) else 1


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdigit() else 0
