"""What the kernel's control groups leave to this process, versions 1 and 2 and both at once.

``root`` is ``/`` but for tests. A limit may be set on any ancestor of the process's group, and inside a container the
group's path may not exist below the mount; both are looked at: the least counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

MB = 1024 * 1024
#: What version 1 says for "no limit" is the largest number of pages; anything beyond this many bytes means none.
NO_LIMIT = 1 << 60


def memory_limit_mb(root: Path = Path("/")) -> Optional[int]:
    """The least memory limit in MB; None: there is none."""
    limits = []
    for folder, version in folders(root, "memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        value = _read(folder / name)
        if value.isdigit() and int(value) < NO_LIMIT:
            limits.append(int(value) // MB)
    return min(limits, default=None)


def cpu_quota(root: Path = Path("/")) -> Optional[float]:
    """The least CPU quota, in cores; None: there is none."""
    quotas = []
    for folder, version in folders(root, "cpu"):
        if version == 2:
            words = _read(folder / "cpu.max").split()
        else:
            words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def cpuset_cores(root: Path = Path("/")) -> Optional[int]:
    """How many CPUs the CPU sets leave, the least of all groups on the way; None: there are none."""
    counts = []
    for folder, version in folders(root, "cpuset"):
        names = ("cpuset.cpus.effective", "cpuset.cpus") if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
        count = _cpus_in(next((text for text in (_read(folder / name) for name in names) if text), ""))
        if count:
            counts.append(count)
    return min(counts, default=None)


def _cpus_in(text: str) -> int:
    """How many CPUs a list such as ``0-3,8`` names."""
    found = re.findall(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in found)


def folders(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folders of this process's group and of its ancestors that may hold limits of that controller."""
    groups = dict(_groups(root))
    for line in _read(root / "proc/self/mounts").splitlines():
        words = line.split()
        if len(words) < 4:
            continue
        mount, kind, options = words[1], words[2], words[3].split(",")
        if kind == "cgroup2":
            version, group = 2, groups.get("", "/")
        elif kind == "cgroup" and controller in options:
            version, group = 1, groups.get(controller, "/")
        else:
            continue
        base = root / mount.lstrip("/")
        folder = base / group.lstrip("/")
        while folder != base and base in folder.parents:
            yield folder, version
            folder = folder.parent
        yield base, version


def _groups(root: Path) -> Iterator[tuple[str, str]]:
    """Controller (empty for version 2) and path of this process's groups."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _number, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
