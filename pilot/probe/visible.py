"""Which of a machine's GPUs the batch system left to this slot.

What cannot be opened (device cgroup, container) is not even looked at here: the vendors' modules leave it out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.wire import Gpu

CONDOR = "_CONDOR_AssignedGPUs"
SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
#: What a container runtime writes for "no GPU"; anything else it has carried out already, by the devices that it made.
NO_DEVICE = ("none", "void")


@dataclass(frozen=True)
class Device:
    """A GPU that this process can open. ``number`` is its number on the whole machine (``/dev/nvidia3``: 3), which a
    slot that sees only some of them counts differently."""

    gpu: Gpu
    number: int


def can_open(node: Path) -> bool:
    """Whether a device node can be opened: permissions alone do not tell, a device cgroup shows only then."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    os.close(fd)
    return True


def nvidia(devices: Sequence[Device], environment: Mapping[str, str]) -> list[Gpu]:
    """Those that the batch system gave to this job by CUDA_VISIBLE_DEVICES, else by its own variable; all when neither
    is set. Instances of a card (MIG) come with their card, or by their own names."""
    if environment.get("NVIDIA_VISIBLE_DEVICES", "").strip().lower() in NO_DEVICE:
        return []
    return _chosen(devices, environment, "CUDA_VISIBLE_DEVICES")


def amd(devices: Sequence[Device], environment: Mapping[str, str]) -> list[Gpu]:
    """The same by ROCR_VISIBLE_DEVICES, or where that is not set by HIP_VISIBLE_DEVICES."""
    own = "ROCR_VISIBLE_DEVICES"
    return _chosen(devices, environment, own if own in environment else "HIP_VISIBLE_DEVICES")


def intel(devices: Sequence[Device], environment: Mapping[str, str]) -> list[Gpu]:
    """The same by ZE_AFFINITY_MASK. A card of which only a tile is ours (``0.1``) is left out: its memory is shared."""
    return _chosen(devices, environment, "ZE_AFFINITY_MASK")


def _chosen(devices: Sequence[Device], environment: Mapping[str, str], own: str) -> list[Gpu]:
    if own in environment:
        return [device.gpu for device in _picked(devices, environment[own].split(","), _by_name)]
    for name in SLURM:
        if name in environment:
            return [device.gpu for device in _picked(devices, _ranges(environment[name]), _by_number)]
    if CONDOR in environment:
        words = [re.sub(r"^\s*(CUDA|OCL|HIP)(?=\d)", "", word) for word in environment[CONDOR].split(",")]
        return [device.gpu for device in _picked(devices, words, _by_name)]
    return [device.gpu for device in devices]


def _picked(devices: Sequence[Device], words: Sequence[str], fits: Callable[[Device, str], bool]) -> list[Device]:
    """In the order of the words; the list ends at the first that names no card, or several, as it does for CUDA."""
    chosen: list[Device] = []
    for word in (part.strip() for part in words):
        found = [device for device in devices if word and fits(device, word)]
        if len({device.gpu.parent or device.gpu.uuid or device.gpu.index for device in found}) != 1:
            break
        chosen += [device for device in found if device not in chosen]
    return chosen


def _by_name(device: Device, word: str) -> bool:
    """A number, or the beginning of a UUID: the card's own, or that of an instance."""
    gpu = device.gpu
    if word.isdigit():
        return int(word) == gpu.index
    return gpu.uuid.startswith(word) or gpu.parent.startswith(word)


def _by_number(device: Device, word: str) -> bool:
    return word.isdigit() and int(word) == device.number


def _ranges(text: str) -> list[str]:
    """Slurm's way to write numbers: ``0-2,5``."""
    words: list[str] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,4})-(\d{1,4})\s*", part)
        words += [str(n) for n in range(int(found[1]), int(found[2]) + 1)] if found else [part]
    return words
