"""The cgroup (v2) of a job, where a payload has one of its own: the kernel's own account of its memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

MB = 1024 * 1024
ROOT = Path("/sys/fs/cgroup")
_UNIFIED = "0::"


@dataclass(frozen=True)
class CgroupMemory:
    """``used_mb`` without file pages that the kernel can drop at any time, ``swap_mb``, the highest value of all that was
    charged (zero: this kernel does not say), and how many processes the kernel has killed for want of memory."""

    used_mb: float
    swap_mb: float
    peak_mb: float
    killed: int


def cgroup_of(pid: int, proc: Path = Path("/proc")) -> Optional[str]:
    """The path of a process's cgroup (v2), such as ``/user.slice``; None without cgroup v2, or when it has ended."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line[len(_UNIFIED) :] for line in lines if line.startswith(_UNIFIED)), None)


def own_cgroup(pid: int, pilot: int, root: Path = ROOT, proc: Path = Path("/proc")) -> Optional[Path]:
    """The folder of the payload's cgroup, if it is below the pilot's and not the same: then it holds the payload alone.

    None where it has none, or where its memory is not accounted.
    """
    mine, theirs = cgroup_of(pid, proc), cgroup_of(pilot, proc)
    if mine is None or theirs is None or mine == theirs or ".." in Path(mine).parts:
        return None
    if not f"{mine}/".startswith(f"{theirs.rstrip('/')}/"):
        return None
    folder = root / mine.lstrip("/")
    return folder if (folder / "memory.current").is_file() else None


def read_memory(folder: Path) -> Optional[CgroupMemory]:
    """What the kernel says of a cgroup; None when it is gone."""
    current = _number(folder / "memory.current")
    if current is None:
        return None
    return CgroupMemory(
        used_mb=max(0, current - _named(folder / "memory.stat").get("inactive_file", 0)) / MB,
        swap_mb=(_number(folder / "memory.swap.current") or 0) / MB,
        peak_mb=(_number(folder / "memory.peak") or 0) / MB,
        killed=_named(folder / "memory.events").get("oom_kill", 0),
    )


def _number(path: Path) -> Optional[int]:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _named(path: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return {}
