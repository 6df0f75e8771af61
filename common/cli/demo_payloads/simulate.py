#!/bin/sh
""":"
# Stage 1 of the demo: simulates collisions in which a Z boson decays to two muons.
#
# Each counter is a seed and gives one ROOT file, events-NNNNN.root, with a TTree "events". The same counter always
# gives the same events. The shell reads these lines and hands the file over to Python.
exec "${DEMO_PYTHON:-python3}" "$0" "$@"
"""

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uproot

Array = npt.NDArray[np.float64]

Z_MASS, Z_WIDTH = 91.1876, 2.4955  # GeV, PDG 2024
MASS_RANGE = (40.0, 160.0)  # GeV: wider than what is fitted, so that resolution may carry events in
MUON_MASS = 0.105658  # GeV
BACKGROUND = 0.08  # fraction of events
BACKGROUND_SLOPE = 25.0  # GeV
RESOLUTION = 0.012  # relative, of each muon's transverse momentum


def masses(rng: np.random.Generator, count: int) -> Array:
    """``count`` invariant masses in GeV: a relativistic Breit-Wigner of the Z over a falling background."""
    # The relativistic Breit-Wigner is a Cauchy distribution in s = m^2, which can be sampled by inverting its integral.
    low, high = (np.arctan((edge**2 - Z_MASS**2) / (Z_MASS * Z_WIDTH)) for edge in MASS_RANGE)
    s = Z_MASS**2 + Z_MASS * Z_WIDTH * np.tan(rng.uniform(low, high, count))
    reach = 1.0 - np.exp(-(MASS_RANGE[1] - MASS_RANGE[0]) / BACKGROUND_SLOPE)
    falling = MASS_RANGE[0] - BACKGROUND_SLOPE * np.log1p(-rng.uniform(0.0, reach, count))
    return np.where(rng.random(count) < BACKGROUND, falling, np.sqrt(s))


def decay(rng: np.random.Generator, mass: Array) -> tuple[Array, Array]:
    """Four-vectors (E, px, py, pz) in GeV, shape (4, n), of the two muons of a parent of ``mass`` at rest."""
    energy = mass / 2.0
    momentum = np.sqrt(energy**2 - MUON_MASS**2)
    # Angles follow 1 + cos^2(theta); its integral inverts in closed form (Cardano).
    u = 4.0 * rng.random(mass.size) - 2.0
    root = np.cbrt(u + np.sqrt(u**2 + 1.0))
    cos = np.clip(root - 1.0 / root, -1.0, 1.0)
    sin = np.sqrt(1.0 - cos**2)
    phi = rng.uniform(0.0, 2.0 * np.pi, mass.size)
    p = momentum * np.stack([sin * np.cos(phi), sin * np.sin(phi), cos])
    return np.vstack([energy, p]), np.vstack([energy, -p])


def boost(vectors: Array, beta: Array) -> Array:
    """``vectors`` (4, n) seen from a frame in which their own moves with velocity ``beta`` (3, n)."""
    beta2 = np.sum(beta**2, axis=0)
    gamma = 1.0 / np.sqrt(1.0 - beta2)
    along = np.sum(beta * vectors[1:], axis=0)
    stretch = (gamma - 1.0) * along / np.maximum(beta2, 1e-12) + gamma * vectors[0]
    return np.vstack([gamma * (vectors[0] + along), vectors[1:] + stretch * beta])


def smear(rng: np.random.Generator, muon: Array) -> Array:
    """The muon as a detector measures it: directions exact, transverse momentum blurred by :data:`RESOLUTION`."""
    p = muon[1:] * (1.0 + RESOLUTION * rng.standard_normal(muon.shape[1]))
    return np.vstack([np.sqrt(np.sum(p**2, axis=0) + MUON_MASS**2), p])


def simulate(seed: int, count: int) -> dict[str, Array]:
    """Branches of ``count`` events: energies and momenta of both muons and their true invariant mass, in GeV."""
    rng = np.random.default_rng(seed)
    mass = masses(rng, count)
    rapidity = rng.normal(0.0, 1.6, count)
    pt = rng.exponential(12.0, count)
    phi = rng.uniform(0.0, 2.0 * np.pi, count)
    transverse = np.sqrt(mass**2 + pt**2)
    energy = transverse * np.cosh(rapidity)
    beta = np.stack([pt * np.cos(phi), pt * np.sin(phi), transverse * np.sinh(rapidity)]) / energy
    branches: dict[str, Array] = {}
    for number, muon in enumerate(decay(rng, mass), start=1):
        measured = smear(rng, boost(muon, beta))
        branches.update({f"{name}{number}": values for name, values in zip(("E", "px", "py", "pz"), measured)})
    branches["M"] = mass
    return branches


def main() -> None:
    """Simulate the counters that this job has been given, ``DEMO_EVENTS`` events each."""
    count = int(os.environ["DEMO_EVENTS"])
    for counter in map(int, Path(os.environ["PILOTAGE_COUNTERS"]).read_text(encoding="utf-8").split()):
        name = f"events-{counter:05d}.root"
        branches = simulate(counter, count)
        with uproot.recreate(name) as file:
            tree = file.mktree("events", {branch: values.dtype for branch, values in branches.items()})
            tree.extend(branches)
        sys.stdout.write(f"{name}: {count} events\n")


if __name__ == "__main__":
    main()
