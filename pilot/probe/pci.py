"""Small things that sysfs is read with, and the names of PCI devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

#: Where distributions put the list of PCI vendors and devices.
NAME_LISTS = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")


def text_of(path: Path) -> str:
    """A small file's text; empty when it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def number_in(path: Path) -> Optional[int]:
    """A file's number, decimal or with ``0x``; None when it cannot be read."""
    try:
        return int(text_of(path), 0)
    except ValueError:
        return None


def device_name(root: Path, vendor: int, device: int) -> str:
    """What the machine's list of PCI devices calls one, of several names the one in brackets; empty when it doesn't."""
    for name in NAME_LISTS:
        section = re.search(rf"^{vendor:04x}  .*\n((?:[\t#\n].*\n?)*)", text_of(root / name), re.MULTILINE)
        found = section and re.search(rf"^\t{device:04x}  (.*)$", section[1], re.MULTILINE)
        if found:
            brackets = re.search(r"\[(.+)\]", found[1])
            return brackets[1] if brackets else found[1].strip()
    return ""
