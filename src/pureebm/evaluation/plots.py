"""Plots of benchmark rows as inline SVG: without date, random ids or document head, so equal rows give equal bytes."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pureebm.evaluation.tables import Row

OURS, INK, SOFT = "#1f6f8b", "#1b1f24", "#8a939c"
COLORS = {"none": "#b3261e", "pureebm": OURS, "jpeg": "#c98a1b", "blur": "#7b5ea7", "ddpm": "#3c8d5a", "vq": "#a0567b"}
MARKERS = "osD^vP*X<>"
ENERGY_COLORS = {"clean": "#5b6570", "poisoned": "#b3261e", "purified": OURS}


def success_plot(rows: Sequence[Row]) -> Markup | None:
    """Natural accuracy over poison success, a point for each defense; None where no row has both.

    Ours are filled, quoted figures hollow; the dotted line is the floor, bars are the 95 % intervals.
    """
    own = [row for row in rows if row["poison_success"] is not None and row["natural_accuracy"] is not None]
    if not own:
        return None

    def draw(axes: Axes) -> None:
        floors = [row["clean_floor"] for row in own if row["clean_floor"] is not None]
        if floors:
            axes.axvline(100 * floors[0], color=SOFT, linestyle=":", linewidth=1, zorder=0, label="clean floor")
        for number, row in enumerate(own):
            _point(axes, row, MARKERS[number % len(MARKERS)])
        axes.set_xlabel("poison success (%), lower is better")
        axes.set_ylabel("natural accuracy (%)")
        axes.grid(color="#e6e9ed", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(0.08)
        axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.02, 0.5), borderaxespad=0)

    return _svg(draw, width=5.8, height=max(3.2, 0.5 + 0.2 * (len(own) + 1)), right=0.66)


def _point(axes: Axes, row: Row, marker: str) -> None:
    x, y = 100 * row["poison_success"], 100 * row["natural_accuracy"]
    color = COLORS.get(row["defence"].split("-")[0].split(":")[0], INK)
    interval = row.get("poison_success_interval")
    if interval is not None and interval[0] < interval[1]:
        low, high = (100 * end for end in interval)
        axes.plot([low, high], [y, y], color=color, alpha=0.35, linewidth=1.4, zorder=1)
    label = row["defence"] + (" †" if row["quoted"] else "")
    face = "none" if row["quoted"] else color
    axes.plot(
        [x], [y], marker, color=color, markerfacecolor=face, markersize=7, linestyle="none", label=label, zorder=2
    )


FEWEST_LENGTHS = 4
"""Numbers of updates that one chain must have been measured at for a curve."""


def steps_plot(rows: Sequence[Row]) -> Markup | None:
    """Poison success and natural accuracy against the number of updates, a pair of curves for each chain that was
    measured at several; no defense stands at 0. None where there is no such chain."""
    chains: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("n_steps") is not None and "steps=" in row["defence"]:
            chains.setdefault(re.sub(r"steps=\d+,?", "", row["defence"]), []).append(row)
    chains = {name: part for name, part in chains.items() if len(part) >= FEWEST_LENGTHS}
    if not chains:
        return None
    start = [row | {"n_steps": 0} for row in rows if row["defence"] == "none"]

    def draw(axes: Axes) -> None:
        for number, (name, part) in enumerate(chains.items()):
            ordered = sorted(start + part, key=lambda row: row["n_steps"])
            steps, marker = [row["n_steps"] for row in ordered], MARKERS[number % len(MARKERS)]
            for key, color in (("poison_success", COLORS["none"]), ("natural_accuracy", OURS)):
                values = [math.nan if row[key] is None else 100 * row[key] for row in ordered]
                label = key.replace("_", " ") + (f", {name}" if len(chains) > 1 else "")
                axes.plot(steps, values, marker=marker, color=color, markersize=5, label=label)
        axes.set_xscale("symlog", linthresh=1)
        axes.set(xlabel="updates", ylabel="%", ylim=(-2, 102))
        axes.grid(color="#e6e9ed", linewidth=0.8)
        axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.02, 0.5), borderaxespad=0)

    return _svg(draw, width=5.8, height=3.2, right=0.7)


def energy_plot(energies: Mapping[str, NDArray[np.float32]]) -> Markup:
    """Histograms of energies by kind ("clean", "poisoned", "purified"); the outermost bins hold what lies beyond."""
    every = np.concatenate(list(energies.values())).astype(np.float64)
    low, high = np.percentile(every, [0.5, 99.5])
    spread = max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-6)
    bins = np.linspace(low - 0.02 * spread, high + 0.02 * spread, 33)

    def draw(axes: Axes) -> None:
        for kind, values in energies.items():
            counts, _ = np.histogram(values.clip(bins[0], bins[-1]), bins)
            axes.stairs(counts, bins, fill=True, color=ENERGY_COLORS[kind], alpha=0.45, label=kind)
        axes.set_xlabel("energy: low means natural")
        axes.set_ylabel("images")
        axes.legend(frameon=False, fontsize=9)

    return _svg(draw, width=5.2, height=2.9, right=0.98)


def _svg(draw: Callable[[Axes], None], *, width: float, height: float, right: float) -> Markup:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "pureebm", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left=0.7 / width, bottom=0.52 / height, right=right, top=1 - 0.12 / height)
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup("<svg" + buffer.getvalue().partition("<svg")[2])
