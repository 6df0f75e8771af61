"""Whether the kernel killed something of this pilot's for want of memory: the counter of its control group."""

from __future__ import annotations

from pathlib import Path
from typing import Optional


class OutOfMemoryKills:
    """Counts from its making on, in the group that the pilot and all its payloads are in. ``root`` is ``/`` but for tests.

    Where several payloads run side by side the count says that one of them was killed, not which.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = _counter(root)
        self._before = _oom_kills(self._file)

    def since(self) -> int:
        """How many processes the kernel has killed meanwhile; 0 also where it does not say."""
        return max(0, _oom_kills(self._file) - self._before)


def _counter(root: Path) -> Optional[Path]:
    """``memory.events`` (version 2) or ``memory.oom_control`` (version 1), each with a line ``oom_kill N``.

    In a container the group's path may not exist below the mount, whose own top is then the group.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        _number, controllers, group = line.split(":", 2)
        if not controllers:
            mounts, name = ["sys/fs/cgroup", "sys/fs/cgroup/unified"], "memory.events"
        elif "memory" in controllers.split(","):
            mounts, name = ["sys/fs/cgroup/memory"], "memory.oom_control"
        else:
            continue
        for mount in mounts:
            for place in (root / mount / group.lstrip("/") / name, root / mount / name):
                if place.is_file():
                    return place
    return None


def _oom_kills(path: Optional[Path]) -> int:
    lines = [] if path is None else _read(path).splitlines()
    values = [value.strip() for name, _, value in (line.partition(" ") for line in lines) if name == "oom_kill"]
    return int(values[0]) if values and values[0].isdigit() else 0


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
