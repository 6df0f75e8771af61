"""What a payload is told of its GPUs: the variables that the vendors' libraries look at."""

from __future__ import annotations

from collections.abc import Sequence

from common.wire import Gpu

VARIABLES = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "ROCR_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}
#: The libraries of NVIDIA and AMD take an empty value for "none"; Intel's takes it for "all", and a number that no card
#: has for "none".
NONE = {"nvidia": "", "amd": "", "intel": "1000"}


def gpu_environment(assigned: Sequence[Gpu]) -> dict[str, str]:
    """The variables, each naming exactly the job's own GPUs, by UUID where the vendor has them; a job without any is told
    so, for on a node with GPUs it would otherwise find those of the other jobs."""
    found: dict[str, list[str]] = {vendor: [] for vendor in VARIABLES}
    for gpu in assigned:
        if gpu.vendor in found:
            found[gpu.vendor].append(gpu.uuid or str(gpu.index))
    told = {VARIABLES[vendor]: ",".join(names) or NONE[vendor] for vendor, names in found.items()}
    if found["amd"] and not found["nvidia"]:
        del told["CUDA_VISIBLE_DEVICES"]  # AMD's library obeys it too: with an empty one it would see no card
    return told
