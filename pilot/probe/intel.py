"""Intel's discrete GPUs from sysfs (drivers i915 and xe); what processes use of them from ``/proc/*/fdinfo``.

Integrated graphics are not offered: they have no memory of their own. Roots are ``/`` but for tests.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Optional

from common.wire import Gpu
from pilot.probe.pci import device_name, number_in, text_of
from pilot.probe.visible import Device, can_open

MB = 1024 * 1024
VENDOR = 0x8086
DRIVERS = ("i915", "xe")
#: In fdinfo (kernel documentation, "DRM client usage stats"): memory of the card itself, in the words of the two drivers.
LOCAL_MEMORY = re.compile(r"^drm-(?:total|memory)-(?:local|vram)\d*:\s*(\d+)\s*(KiB|MiB)?\s*$", re.MULTILINE)
ENGINE_NS = re.compile(r"^drm-engine-(?!capacity)[\w-]+:\s*(\d+)\s*ns\s*$", re.MULTILINE)
UNITS = {"": 1, "KiB": 1024, "MiB": MB}


def present(root: Path = Path("/")) -> bool:
    """Whether one of Intel's drivers has a card."""
    return any(True for _ in _cards(root))


def devices(root: Path = Path("/")) -> list[Device]:
    """The cards with memory of their own that this process can open, in the order of their PCI addresses."""
    found: list[Device] = []
    for address, card in sorted(_cards(root)):
        memory = _memory_bytes(card, address)
        if memory is None or not _can_open(card, root):
            continue
        device = number_in(card / "device/device") or 0
        driver = _driver(card)
        gpu = Gpu(
            vendor="intel",
            model=device_name(root, VENDOR, device) or f"Intel {device:04x}",
            memory_mb=memory // MB,
            index=len(found),
            driver=f"{driver} {text_of(root / 'proc/sys/kernel/osrelease')}".strip(),
            pci=address,
        )
        found.append(Device(gpu, gpu.index))
    return found


def use(gpu: Gpu, pids: Collection[int], root: Path = Path("/")) -> tuple[Optional[int], float]:
    """Nanoseconds for which the processes kept a card's engines busy so far (None: the driver does not say), and MiB of
    its memory that they use."""
    clients: dict[str, str] = {}
    for pid in pids:
        for text in _open_files(root / "proc" / str(pid)):
            client = re.search(r"^drm-client-id:\s*(\d+)", text, re.MULTILINE)
            if client and re.search(rf"^drm-pdev:\s*{re.escape(gpu.pci)}\s*$", text, re.MULTILINE):
                clients[client[1]] = text  # descriptors that were passed on are the same client
    busy = [int(value) for text in clients.values() for value in ENGINE_NS.findall(text)]
    memory = sum(int(n) * UNITS[unit] for text in clients.values() for n, unit in LOCAL_MEMORY.findall(text))
    return (sum(busy) if busy else None), memory / MB


def _cards(root: Path) -> Iterator[tuple[str, Path]]:
    """PCI address and folder of each card."""
    for card in (root / "sys/class/drm").glob("card[0-9]*"):
        if card.name[4:].isdigit() and number_in(card / "device/vendor") == VENDOR and _driver(card) in DRIVERS:
            yield (card / "device").resolve().name, card


def _driver(card: Path) -> str:
    try:
        return (card / "device/driver").readlink().name
    except OSError:
        return ""


def _memory_bytes(card: Path, address: str) -> Optional[int]:
    """What the driver says; with i915 of the mainline kernel, which doesn't, the size of the window to the memory (PCI
    region 2). None for integrated graphics, which sit on the first bus."""
    told = number_in(card / "lmem_total_bytes")
    tiles = [number_in(tile / "physical_vram_size_bytes") or 0 for tile in (card / "device").glob("tile[0-9]*")]
    if told or sum(tiles):
        return told or sum(tiles)
    if re.match(r"[0-9a-f]+:00:", address):
        return None
    regions = text_of(card / "device/resource").splitlines()
    words = regions[2].split() if len(regions) > 2 else []
    return int(words[1], 16) - int(words[0], 16) + 1 if len(words) == 3 and int(words[1], 16) else None


def _can_open(card: Path, root: Path) -> bool:
    nodes = [path.name for path in (card / "device/drm").glob("renderD*")]
    return any(can_open(root / "dev/dri" / name) for name in nodes)


def _open_files(process: Path) -> Iterator[str]:
    """What the kernel says of a process's descriptors of graphics devices."""
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        try:
            target = str(descriptor.readlink())
        except OSError:
            continue
        if target.startswith("/dev/dri/"):
            yield text_of(process / "fdinfo" / descriptor.name)
