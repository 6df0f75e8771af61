"""AMD's GPUs from sysfs: the compute driver's topology (``/sys/class/kfd``) and amdgpu's own files (``/sys/class/drm``).

``rocm-smi`` is asked only for the name of a card that sysfs does not name. Roots are ``/`` but for tests.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from common.wire import Gpu
from pilot.probe.pci import device_name, number_in, text_of
from pilot.probe.visible import Device, can_open

logger = logging.getLogger(__name__)

MB = 1024 * 1024
NODES = "sys/class/kfd/kfd/topology/nodes"
PROCESSES = "sys/class/kfd/kfd/proc"
ROCM_SMI = ("--showproductname", "--showbus", "--json")
TIMEOUT_S = 30
#: Kinds of memory banks that are the card's own (enum hsa_heap_type of the kernel's kfd_topology.h: public, private).
CARD_HEAPS = (1, 2)


@dataclass(frozen=True)
class _Card:
    """A card's place in sysfs: its folder under ``/sys/class/drm`` and its number for the compute driver."""

    gpu: Gpu
    drm: Path
    kfd_id: int


def present(root: Path = Path("/")) -> bool:
    """Whether the compute driver is there and can be opened: without it the cards only draw."""
    return (root / NODES).is_dir() and can_open(root / "dev/kfd")


def devices(root: Path = Path("/"), environment: Optional[Mapping[str, str]] = None) -> list[Device]:
    """All cards that this process can open, in the order of the runtime library."""
    cards = list(_cards(root))
    if any(not card.gpu.model for card in cards):
        names = _names(environment or {})
        for card in cards:
            card.gpu.model = card.gpu.model or names.get(card.gpu.pci) or f"AMD {card.gpu.capability}"
    return [Device(card.gpu, place) for place, card in enumerate(cards)]


def use(gpu: Gpu, pids: Collection[int], root: Path = Path("/")) -> Optional[tuple[float, float]]:
    """How busy a card is in percent, and MiB of its memory that the processes use; None when it is gone.

    Where the driver tells nothing of single processes, all that is used of the card is theirs.
    """
    card = next((card for card in _cards(root) if card.gpu.pci == gpu.pci), None)
    if card is None:
        return None
    shares = [number_in(root / PROCESSES / str(pid) / f"vram_{card.kfd_id}") for pid in pids]
    mine = [share for share in shares if share is not None]
    used = sum(mine) if mine else number_in(card.drm / "device/mem_info_vram_used") or 0
    return float(number_in(card.drm / "device/gpu_busy_percent") or 0), used / MB


def _cards(root: Path) -> Iterator[_Card]:
    """A node that the device cgroup keeps from us cannot be read, and its render node cannot be opened."""
    index = 0
    for node in sorted((root / NODES).glob("[0-9]*"), key=lambda path: int(path.name) if path.name.isdigit() else 0):
        kfd_id = number_in(node / "gpu_id")
        if not kfd_id:
            continue  # a CPU, or not ours
        known = _properties(node / "properties")
        minor = known.get("drm_render_minor", 0)
        if not can_open(root / f"dev/dri/renderD{minor}"):
            continue
        drm = root / f"sys/class/drm/renderD{minor}"
        yield _Card(_gpu(root, node, drm, known, index), drm, kfd_id)
        index += 1


def _gpu(root: Path, node: Path, drm: Path, known: Mapping[str, int], index: int) -> Gpu:
    memory = number_in(drm / "device/mem_info_vram_total") or _bank_bytes(node)
    unique = known.get("unique_id", 0)
    model = text_of(drm / "device/product_name") or device_name(root, 0x1002, known.get("device_id", 0))
    version = text_of(root / "sys/module/amdgpu/version") or text_of(root / "proc/sys/kernel/osrelease")
    return Gpu(
        vendor="amd",
        model=model,
        memory_mb=memory // MB,
        uuid=f"GPU-{unique:016x}" if unique else "",
        index=index,
        driver=f"amdgpu {version}".strip(),
        capability=_instruction_set(known.get("gfx_target_version", 0)),
        pci=_address(known),
    )


def _instruction_set(version: int) -> str:
    """``gfx90a`` of 90010: two decimal digits each for the minor number and the stepping, both written in hex."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""


def _address(known: Mapping[str, int]) -> str:
    place = known.get("location_id", 0)
    return f"{known.get('domain', 0):04x}:{place >> 8 & 0xFF:02x}:{place >> 3 & 0x1F:02x}.{place & 7}"


def _bank_bytes(node: Path) -> int:
    banks = (_properties(bank / "properties") for bank in (node / "mem_banks").glob("[0-9]*"))
    return sum(bank.get("size_in_bytes", 0) for bank in banks if bank.get("heap_type") in CARD_HEAPS)


def _properties(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    return {name: int(value) for name, value in re.findall(r"^(\w+) (\d+)$", text_of(path), re.MULTILINE)}


def _names(environment: Mapping[str, str]) -> dict[str, str]:
    """What ``rocm-smi`` calls the cards, by PCI address; empty without it."""
    binary = shutil.which("rocm-smi", path=environment.get("PATH"))
    if binary is None:
        return {}
    try:
        answer = subprocess.run([binary, *ROCM_SMI], capture_output=True, timeout=TIMEOUT_S, check=True).stdout
        cards = json.loads(answer)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.info("rocm-smi does not name the cards: %s", error)
        return {}
    described = cards.values() if isinstance(cards, dict) else []
    return {
        str(card["PCI Bus"]).lower(): str(
            card.get("Card Series") or card.get("Card series") or card.get("Card SKU", "")
        )
        for card in described
        if isinstance(card, dict) and "PCI Bus" in card
    }
