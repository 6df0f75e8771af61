"""The GPUs of this slot."""

from __future__ import annotations

import csv
import io
import logging
import shutil
import subprocess
from collections.abc import Mapping
from typing import Optional

from common.wire import Gpu

logger = logging.getLogger(__name__)

QUERY = ("--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")
TIMEOUT_S = 30


def find_gpus(environment: Mapping[str, str]) -> list[Gpu]:
    """NVIDIA's GPUs that ``CUDA_VISIBLE_DEVICES`` leaves to this slot; none without the driver's ``nvidia-smi``."""
    binary = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if binary is None:
        return []
    try:
        answer = subprocess.run([binary, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nvidia-smi does not answer, no GPU is offered: %s", error)
        return []
    return parse_gpus(answer.stdout, environment.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(text: str, visible: Optional[str] = None) -> list[Gpu]:
    """The rows of nvidia-smi's answer (index, UUID, name, memory in MiB) that are visible.

    ``visible``: None for all, else indices or UUIDs (or beginnings of them) separated by commas; the list ends at the
    first that does not exist, as it does for CUDA.
    """
    rows: list[tuple[str, Gpu]] = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != 4:
            continue
        index, uuid, model, memory = (cell.strip() for cell in row)
        rows.append((index, Gpu(vendor="nvidia", model=model, memory_mb=_mb(memory), uuid=uuid)))
    if visible is None:
        return [gpu for _index, gpu in rows]
    chosen: list[Gpu] = []
    for word in (part.strip() for part in visible.split(",")):
        found = [gpu for index, gpu in rows if word and (word == index or gpu.uuid.startswith(word))]
        if len(found) != 1:
            break
        chosen.append(found[0])
    return chosen


def _mb(text: str) -> int:
    """Some devices (those that share the host's memory) answer "[N/A]": zero."""
    return int(text) if text.isdigit() else 0
