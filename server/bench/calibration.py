"""How fast the machine is just now: cores of a shared host, or two threads of one core, are worth less than their number."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping

import psutil

ROUNDS = 3
SPINS = 400_000


def spin() -> float:
    """Milliseconds that a fixed piece of Python takes."""
    start = time.perf_counter()
    kept: dict[int, str] = {}
    for number in range(SPINS):
        kept[number & 1023] = str(number)
    return (time.perf_counter() - start) * 1000.0


def machine_now() -> Mapping[str, float]:
    """What else is at work (the load average), and what a fixed piece of Python takes, in milliseconds: on one core alone,
    and on all cores at once."""
    load_average = round(os.getloadavg()[0], 2)
    return {
        "load_average_before": load_average,
        "one_core_ms": _at_once(1),
        "all_cores_ms": _at_once(psutil.cpu_count() or 1),
    }


def _at_once(processes: int) -> float:
    command = [sys.executable, "-m", __name__]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    found = [float(word) for each in started for word in each.communicate()[0].split()]
    return round(statistics.median(found), 1)


if __name__ == "__main__":
    for _ in range(ROUNDS):
        sys.stdout.write(f"{spin()}\n")
