"""A user's priority, if the option is on: whoever uses little comes before whoever uses much."""

from __future__ import annotations

START = 1000
CORES_A_POINT = 5
LEAST = -1000
"""Below this it does not fall: a user with many cores still runs where nobody else wants to."""


def user_priority(running_cores: float, n: int = 0) -> int:
    """1000 - (T + n) / 5, in whole points (PanDA documentation, "job priority").

    ``T`` is the user's running cores, ``n`` the jobs that come before this one: none, as a job is made when it is
    claimed. A job takes the priority that its user has at that moment, so nothing has to be recalculated.
    """
    return max(LEAST, START - int((running_cores + n) // CORES_A_POINT))
