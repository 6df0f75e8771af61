#!/bin/sh
""":"
# Stage 3 of the demo: merges the histograms of stage 2 into one, fits the Z peak and draws it.
#
# Writes z-peak.root (the merged TH1), z-fit.json (the numbers) and z-peak.png (the plot). The shell reads these
# lines and hands the file over to Python.
exec "${DEMO_PYTHON:-python3}" "$0" "$@"
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uproot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

PARAMETERS = ("mass", "width", "resolution", "signal", "background", "slope")
GRID = 0.05  # GeV: step at which the convolution is computed
MARGIN = 8.0  # GeV: how far beside the histogram it looks
MAX_STEPS = 200


def merge(paths: list[Path]) -> tuple[Array, Array]:
    """Sum of the histograms "mass" in ``paths``: counts (n) and edges (n + 1), in GeV.

    Raises:
        ValueError: there is nothing to merge, or two histograms have different edges.
    """
    histograms = []
    for path in paths:
        with uproot.open(path) as file:
            histograms.append(file["mass"].to_numpy())
    if not histograms:
        raise ValueError("no histogram to merge: give at least one file")
    edges = histograms[0][1]
    for path, (_, others) in zip(paths, histograms):
        if not np.array_equal(edges, others):
            raise ValueError(f"{path}: its histogram has other edges than that of {paths[0]}")
    return np.sum([counts for counts, _ in histograms], axis=0), edges


def breit_wigner(mass: Array, pole: float, width: float) -> Array:
    """Relativistic Breit-Wigner density in ``mass`` (GeV), not normalised (PDG 2024, section 48.2)."""
    return mass / ((mass**2 - pole**2) ** 2 + (pole * width) ** 2)


def signal_shape(edges: Array, pole: float, width: float, resolution: float) -> Array:
    """Fraction of the signal in each bin: Breit-Wigner folded with a Gaussian of ``resolution`` GeV."""
    grid = np.arange(edges[0] - MARGIN + GRID / 2, edges[-1] + MARGIN, GRID)
    offsets = np.arange(-MARGIN, MARGIN + GRID / 2, GRID)
    kernel = np.exp(-0.5 * (offsets / resolution) ** 2)
    folded = np.convolve(breit_wigner(grid, pole, width), kernel / kernel.sum(), mode="same")
    fractions, _ = np.histogram(grid, edges, weights=folded)
    shape: Array = fractions / fractions.sum()
    return shape


def background_shape(edges: Array, slope: float) -> Array:
    """Fraction of the background in each bin: an exponential that falls by e in ``1 / slope`` GeV."""
    centres = (edges[:-1] + edges[1:]) / 2
    density = np.exp(-slope * (centres - centres.mean()))
    shape: Array = density / density.sum()
    return shape


def expected(parameters: Array, edges: Array) -> tuple[Array, Array]:
    """Expected counts of each bin: all, and the background alone."""
    pole, width, resolution, signal, background, slope = parameters
    below = background * background_shape(edges, slope)
    return signal * signal_shape(edges, pole, width, resolution) + below, below


def deviance(counts: Array, model: Array) -> float:
    """Twice the negative logarithm of the Poisson likelihood ratio (Baker and Cousins 1984)."""
    if np.any(model <= 0.0):
        return float("inf")
    logarithm = np.log(np.where(counts > 0, counts / model, 1.0))
    return float(2.0 * np.sum(model - counts + counts * logarithm))


def derivatives(parameters: Array, edges: Array) -> Array:
    """Derivatives of the expected counts, shape (bins, parameters), by central differences."""
    columns = []
    for index, value in enumerate(parameters):
        step = np.zeros_like(parameters)
        step[index] = 1e-4 * max(abs(value), 1e-2)
        columns.append(
            (expected(parameters + step, edges)[0] - expected(parameters - step, edges)[0]) / (2 * step[index])
        )
    return np.stack(columns, axis=1)


@dataclass
class Fit:
    """Fitted parameters in the order of :data:`PARAMETERS`, their covariance, and how well they describe the counts."""

    values: Array
    covariance: Array
    chi2: float
    ndf: int

    @property
    def errors(self) -> Array:
        """One standard deviation of each parameter."""
        return np.sqrt(np.diag(self.covariance))


def fit(counts: Array, edges: Array) -> Fit:
    """Maximum of the Poisson likelihood by damped Gauss-Newton steps (Fisher scoring).

    Raises:
        ValueError: too few events, or no maximum was found.
    """
    if counts.sum() < 1000:
        raise ValueError(f"{counts.sum():.0f} events are too few to fit six parameters: simulate at least 1000")
    centre = (edges[:-1] + edges[1:]) / 2
    values = np.array([centre[np.argmax(counts)], 2.0, 1.0, 0.9 * counts.sum(), 0.1 * counts.sum(), 0.02])
    best, damping = deviance(counts, expected(values, edges)[0]), 1e-3
    for _ in range(MAX_STEPS):
        model = expected(values, edges)[0]
        slopes = derivatives(values, edges)
        curvature = slopes.T @ (slopes / model[:, None])
        damped = curvature + damping * np.diag(np.diag(curvature))
        step = np.linalg.solve(damped, slopes.T @ ((counts - model) / model))
        trial = values + step
        # Width and resolution enter squared: their sign means nothing.
        trial[1:3] = np.abs(trial[1:3])
        reached = deviance(counts, expected(trial, edges)[0])
        if reached > best:
            damping *= 10.0
            continue
        values, gained, best, damping = trial, best - reached, reached, damping / 10.0
        if gained < 1e-7:
            covariance: Array = np.linalg.inv(curvature).astype(np.float64)
            return Fit(values, covariance, best, counts.size - values.size)
    raise ValueError(f"the fit did not converge in {MAX_STEPS} steps")


def label(name: str, value: float, error: float) -> str:
    """A line of the legend, in GeV, as mathematical text."""
    return rf"${name} = {value:.3f} \pm {error:.3f}$ GeV"


def draw_peak(axes: Axes, counts: Array, edges: Array, result: Fit) -> None:
    """Data with their errors, the fitted curve and its background."""
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    # Five points a bin make the curve smooth; each stands for the counts of a whole bin.
    fine = np.linspace(edges[0], edges[-1], 5 * counts.size + 1)
    points = (fine[:-1] + fine[1:]) / 2
    model, below = (5 * curve for curve in expected(result.values, fine))
    data = f"Simulation, {counts.sum():,.0f} events"
    axes.errorbar(
        centres, counts, np.sqrt(counts), fmt="o", ms=3.2, color="black", elinewidth=0.9, label=data, zorder=3
    )
    axes.plot(points, model, color="#c0392b", linewidth=1.8, label=r"Fit: Breit–Wigner $\otimes$ Gauss + exponential")
    axes.fill_between(points, below, color="#c8d3dd", linewidth=0, label="Background")
    names = (r"m_Z", r"\Gamma_Z", r"\sigma")
    numbers = [label(name, value, error) for name, value, error in zip(names, result.values, result.errors)]
    for text in (*numbers, rf"$\chi^2/\mathrm{{ndf}} = {result.chi2:.1f}/{result.ndf}$"):
        axes.plot([], [], " ", label=text)
    axes.set_ylabel(f"Events / {width:.1f} GeV")
    axes.set_ylim(0.0, 1.12 * counts.max())
    handles, labels = axes.get_legend_handles_labels()
    order = [len(labels) - 1, *range(len(labels) - 1)]  # matplotlib puts error bars last
    axes.legend([handles[i] for i in order], [labels[i] for i in order], frameon=False, fontsize=10, loc="upper left")
    axes.set_title(r"$Z \to \mu^+\mu^-$", loc="right", fontsize=13)
    axes.set_title("Pilotage demo", loc="left", fontsize=13, fontweight="bold")


def draw_pulls(axes: Axes, counts: Array, edges: Array, result: Fit) -> None:
    """Distance of each bin from the fit, in standard deviations."""
    model = expected(result.values, edges)[0]
    pulls = (counts - model) / np.sqrt(model)
    axes.axhspan(-1, 1, color="#e6ebf0", linewidth=0)
    axes.axhline(0, color="#c0392b", linewidth=1.2)
    axes.plot((edges[:-1] + edges[1:]) / 2, pulls, "o", ms=3.2, color="black")
    reach = max(3.5, 1.1 * float(np.abs(pulls).max()))
    axes.set_ylim(-reach, reach)
    axes.set_ylabel("Pull")
    axes.set_xlabel(r"Invariant mass $m_{\mu\mu}$ [GeV]", fontsize=12)


def draw(path: Path, counts: Array, edges: Array, result: Fit) -> None:
    """Write the plot: the peak above, the pulls below."""
    figure = Figure(figsize=(8.0, 6.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1.0])
    draw_peak(upper, counts, edges, result)
    draw_pulls(lower, counts, edges, result)
    for axes in (upper, lower):
        axes.tick_params(which="both", direction="in", top=True, right=True)
        axes.minorticks_on()
        axes.set_xlim(edges[0], edges[-1])
    figure.align_ylabels([upper, lower])
    figure.savefig(path, dpi=160)


def report(counts: Array, result: Fit) -> dict[str, object]:
    """What z-fit.json says: values and errors (masses in GeV), events and the quality of the fit."""
    numbers: dict[str, object] = {
        name: {"value": float(value), "error": float(error)}
        for name, value, error in zip(PARAMETERS, result.values, result.errors)
    }
    return {**numbers, "events": int(counts.sum()), "chi2": result.chi2, "ndf": result.ndf}


def main() -> None:
    """Merge, fit and draw the histograms that this job has been given."""
    names = Path(os.environ["PILOTAGE_INPUT_FILES"]).read_text(encoding="utf-8").splitlines()
    counts, edges = merge([Path(name) for name in names])
    with uproot.recreate("z-peak.root") as file:
        file["mass"] = counts, edges
    result = fit(counts, edges)
    numbers = report(counts, result)
    text = json.dumps(numbers, indent=2) + "\n"
    Path("z-fit.json").write_text(text, encoding="utf-8")
    draw(Path("z-peak.png"), counts, edges, result)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
