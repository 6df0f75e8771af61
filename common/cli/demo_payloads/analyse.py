#!/bin/sh
""":"
# Stage 2 of the demo: analyses the ROOT files that its job has been given.
#
# Computes the invariant mass of the two muons of each event from their four-vectors, selects, and writes one
# histogram (TH1 "mass") for each file. The shell reads these lines and hands the file over to Python.
exec "${DEMO_PYTHON:-python3}" "$0" "$@"
"""

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uproot

Array = npt.NDArray[np.float64]

EDGES = np.linspace(66.0, 116.0, 101)  # GeV
MIN_PT = 15.0  # GeV, of each muon
MAX_ETA = 2.4


def selected_masses(events: dict[str, Array]) -> Array:
    """Invariant masses, in GeV, of the muon pairs in which both muons pass the selection."""
    passed = np.ones(events["E1"].size, dtype=bool)
    for muon in "12":
        pt = np.hypot(events["px" + muon], events["py" + muon])
        passed &= (pt > MIN_PT) & (np.abs(np.arcsinh(events["pz" + muon] / pt)) < MAX_ETA)
    energy, px, py, pz = (events[name + "1"][passed] + events[name + "2"][passed] for name in ("E", "px", "py", "pz"))
    return np.sqrt(np.maximum(energy**2 - px**2 - py**2 - pz**2, 0.0))


def analyse(path: Path) -> None:
    """Write ``mass-NNNNN.root``, the histogram of one file, into the working directory."""
    with uproot.open(path) as file:
        events = file["events"].arrays(library="np")
    masses = selected_masses(events)
    counts, edges = np.histogram(masses, EDGES)
    # The server puts the ids of task and job in front of a name.
    number = path.name.rpartition("events-")[2]
    with uproot.recreate(f"mass-{number}") as file:
        file["mass"] = counts.astype(np.float64), edges
    sys.stdout.write(f"{path.name}: {events['E1'].size} events, {masses.size} selected, {counts.sum()} in range\n")


def main() -> None:
    """Analyse the files that this job has been given."""
    for name in Path(os.environ["PILOTAGE_INPUT_FILES"]).read_text(encoding="utf-8").splitlines():
        analyse(Path(name))


if __name__ == "__main__":
    main()
