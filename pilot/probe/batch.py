"""What the batch system says that this slot has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import psutil

from pilot.probe.condor import condor_figures
from pilot.probe.features import feature_figures
from pilot.probe.figure import Figure
from pilot.probe.slurm import slurm_figures


def batch_figures(environment: Mapping[str, str], now: float) -> list[Figure]:
    """All that the pilot's own ``environment`` leads to; empty outside a batch system. ``now``: seconds since the epoch.

    Wall time that a system counts from the job's start, without saying when that was, is counted from this process's.
    """
    return [
        *condor_figures(environment, now),
        *slurm_figures(environment, now),
        *_pbs(environment, now),
        *_lsf(environment),
        *_grid_engine(environment),
        *feature_figures(environment, now),
    ]


def _pbs(environment: Mapping[str, str], now: float) -> Iterator[Figure]:
    """PBS Professional (NCPUS) and Torque (PBS_NUM_PPN, PBS_WALLTIME in seconds)."""
    if "PBS_JOBID" not in environment:
        return
    for name in ("NCPUS", "PBS_NUM_PPN"):
        if _number(environment, name):
            yield Figure("cores", name, _number(environment, name))
    if _number(environment, "PBS_WALLTIME"):
        age_s = max(0.0, now - psutil.Process().create_time())
        yield Figure("wall_s", "PBS_WALLTIME", int(_number(environment, "PBS_WALLTIME") - age_s))


def _lsf(environment: Mapping[str, str]) -> Iterator[Figure]:
    """LSF names the hosts of a job and the slots on each; the first is where its script runs."""
    if "LSB_JOBID" not in environment:
        return
    found = re.match(r"\S+\s+(\d+)(\s|$)", environment.get("LSB_MCPU_HOSTS", ""))
    if found:
        yield Figure("cores", "LSB_MCPU_HOSTS", int(found[1]))


def _grid_engine(environment: Mapping[str, str]) -> Iterator[Figure]:
    """Grid Engine. On several hosts NSLOTS counts those of all of them, so that it says nothing of this one."""
    if "SGE_TASK_ID" in environment and _number(environment, "NHOSTS") == 1 and _number(environment, "NSLOTS"):
        yield Figure("cores", "NSLOTS", _number(environment, "NSLOTS"))


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdigit() else 0
