"""The GPUs of this slot, of all vendors.

A machine with none costs a few looks for files: no library is loaded, no program started.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from common.wire import Gpu
from pilot.probe import amd, intel, nvml, visible
from pilot.probe.visible import Device

logger = logging.getLogger(__name__)

#: Any of these says that NVIDIA's driver is there (the last on Windows' subsystem for Linux).
NVIDIA_SIGNS = ("dev/nvidiactl", "proc/driver/nvidia/version", "dev/dxg")
QUERY = "index,uuid,name,memory.total,driver_version,compute_cap,pci.bus_id,mig.mode.current"
TIMEOUT_S = 30


def find_gpus(environment: Mapping[str, str], root: Path = Path("/")) -> list[Gpu]:
    """The GPUs that this process can open and that the batch system left to this slot.

    ``environment`` is the pilot's own; ``root`` is ``/`` but for tests. A driver that does not answer is logged, and its
    cards are not offered.
    """
    found: list[Gpu] = []
    if any((root / sign).exists() for sign in NVIDIA_SIGNS):
        found += visible.nvidia(_nvidia(environment, root), environment)
    if amd.present(root):
        found += visible.amd(amd.devices(root, environment), environment)
    if intel.present(root):
        found += visible.intel(intel.devices(root), environment)
    return found


def _nvidia(environment: Mapping[str, str], root: Path) -> list[Device]:
    """By the driver's library; where its Python package is missing, by ``nvidia-smi``."""
    if not nvml.installed():
        return _by_program(environment)
    try:
        with nvml.opened() as library:
            return library.devices(root)
    except OSError as error:
        logger.warning("no GPU of NVIDIA's is offered: %s", error)
        return []


def _by_program(environment: Mapping[str, str]) -> list[Device]:
    binary = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if binary is None:
        logger.warning("no GPU of NVIDIA's is offered: there is a driver, but neither nvidia-ml-py nor nvidia-smi")
        return []
    words = [binary, f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("no GPU of NVIDIA's is offered, nvidia-smi does not answer: %s", error)
        return []
    return parse_smi(answer.stdout)


def parse_smi(text: str) -> list[Device]:
    """The rows of nvidia-smi's answer to :data:`QUERY`. A card that is partitioned is left out: only the library tells
    of its instances."""
    found: list[Device] = []
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        if len(row) != 8 or not row[0].isdigit():
            continue
        index, uuid, model, memory, driver, capability, bus, mig = (cell.strip() for cell in row)
        if mig == "Enabled":
            logger.warning("GPU %s is partitioned (MIG): install nvidia-ml-py, so that its instances are found", uuid)
            continue
        gpu = Gpu(
            vendor="nvidia",
            model=model,
            memory_mb=int(memory) if memory.isdigit() else 0,  # "[N/A]" where the memory is the host's
            uuid=uuid,
            index=int(index),
            driver=driver,
            capability=capability,
            pci=nvml.pci_address(bus),
        )
        found.append(Device(gpu, gpu.index))
    return found
