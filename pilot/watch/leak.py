"""Whether a payload's memory keeps growing: the slope of a straight line through what was seen of it."""

from __future__ import annotations

MOST_POINTS = 128
LEAST_POINTS = 8
KIB_IN_MIB = 1024.0
Point = tuple[float, float]


class MemoryTrend:
    """Memory over time, in a bounded number of points however long the payload runs."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._step_s = 0.0

    def add(self, wall_s: float, memory_mb: float) -> None:
        """Memory in MiB at a moment of the run. What comes too soon after the last point is left out."""
        if self._points and wall_s - self._points[-1][0] < self._step_s:
            return
        self._points.append((wall_s, memory_mb))
        if len(self._points) >= MOST_POINTS:
            self._points = self._points[::2]
            self._step_s = 2 * (self._points[-1][0] - self._points[0][0]) / MOST_POINTS

    def slope_kb_s(self) -> float:
        """KiB a second over the second half of the run, as the first belongs to its start; 0 while it is not known."""
        if len(self._points) < LEAST_POINTS:
            return 0.0
        middle = (self._points[0][0] + self._points[-1][0]) / 2
        late = [point for point in self._points if point[0] >= middle]
        return _slope(late) * KIB_IN_MIB if len(late) >= LEAST_POINTS // 2 else 0.0


def _slope(points: list[Point]) -> float:
    """Least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
