"""The first panels of an inspection, side by side, in one PNG."""

import functools
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from cluster.inspect.findings import Bars, Curves, Findings, Histogram, InspectError, Panel
from cluster.telemetry.formatting import count
from cluster.telemetry.terminal import safe

PANELS = 3
COLOURS = ("#2f7de1", "#e0710c", "#1a9c5b", "#a45ee5", "#d6478a", "#0f93a3")
INK, FAINT, GROUND = "#27303c", "#6c7683", "#ffffff"
_BARS = 16
"""Most bars of a panel; the terminal shows all."""
_NAME = 26
_DECADE = 10
"""Smallest ratio of the largest to the smallest value at which a logarithmic axis has labels."""
_NOISY = 120
"""Points of a curve; a longer one is drawn faintly, under its means."""

_SETTINGS: Any = {
    "font.size": 9.5,
    "axes.edgecolor": "#b9c0c8",
    "axes.labelcolor": FAINT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


def draw(found: Findings, path: Path) -> None:
    """Write the picture.

    Raises:
        InspectError: there is nothing to draw.
    """
    panels = found.panels[:PANELS]
    if not panels:
        raise InspectError(f"{found.title} has nothing to draw: leave out --picture")
    with matplotlib.rc_context(_SETTINGS):
        layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.08, rect=(0, 0, 1, 0.87))
        figure = Figure(figsize=(5.6 * len(panels), 5.1), layout=layout, facecolor=GROUND)
        figure.text(0.012, 0.955, found.title, fontsize=13, fontweight="bold", va="center")
        figure.text(0.012, 0.905, _drawable(found.headline), fontsize=10, color=FAINT, va="center")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _panel(axes, panel, 22 if any(panel.note for panel in panels) else 10)
        figure.savefig(path, dpi=150, format="png")


def _panel(axes: Axes, panel: Panel, title_pad: float) -> None:
    grid: Literal["x", "y", "both"] = "both"
    if isinstance(panel, Histogram):
        grid = "y"
        _histogram(axes, panel)
    elif isinstance(panel, Curves):
        _curves(axes, panel)
    elif isinstance(panel, Bars):
        grid = "x"
        _bars(axes, panel)
    for axis in (axes.xaxis, axes.yaxis) if grid != "x" else (axes.xaxis,):
        axis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if value >= 10 else f"{value:g}"))
    axes.set_xlabel(panel.unit)
    axes.grid(True, axis=grid, color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(_drawable(panel.title), loc="left", fontsize=11, fontweight="bold", pad=title_pad)
    if panel.note:
        axes.annotate(
            panel.note, (0, 1), (0, 7), "axes fraction", textcoords="offset points", fontsize=8.8, color=FAINT
        )


def _histogram(axes: Axes, panel: Histogram) -> None:
    below = np.zeros(len(panel.edges) - 1)
    for colour, (name, numbers) in zip(COLOURS, panel.counts.items(), strict=False):
        axes.bar(
            panel.edges[:-1], numbers, np.diff(panel.edges), below, align="edge", color=colour,
            edgecolor=GROUND, linewidth=0.4, label=_drawable(name),
        )  # fmt: skip
        below += numbers
    axes.set_xscale("log")
    axes.set_xlim(panel.edges[0], panel.edges[-1])
    axes.set_ylabel("documents")
    axes.set_ylim(0, 1.06 * max(1, below.max()))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(panel.counts) > 1:
        axes.legend(frameon=False, fontsize=8.5, loc="upper right", handlelength=1, handleheight=1)


def _bars(axes: Axes, panel: Bars) -> None:
    entries = list(panel.values.items())[:_BARS]
    places = np.arange(len(entries))
    values = [value if np.isfinite(value) else 0.0 for _, value in entries]
    axes.barh(places, values, 0.72, color=COLOURS[0])
    axes.set_yticks(places, [_cut(_drawable(name)) for name, _ in entries], color=INK)
    axes.set_ylim(max(len(entries), 6) - 0.4, -0.6)
    axes.tick_params("y", length=0)
    axes.set_xlim(0, 1.22 * max([*values, 1e-12]))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for place, (_, value) in enumerate(entries):
        axes.annotate(
            panel.text(value), (values[place], place), (4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.spines["left"].set_visible(False)


def _curves(axes: Axes, panel: Curves) -> None:
    for colour, (name, (x, y)) in zip(COLOURS, panel.lines.items(), strict=False):
        if len(x) > _NOISY and panel.logarithmic != "both":
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.25)
            x, y = (np.array([part.mean() for part in np.array_split(values, _NOISY // 2)]) for values in (x, y))
        axes.plot(x, y, color=colour, linewidth=1.6, label=name, marker="o" if len(x) < 12 else "", markersize=3.5)
    if panel.logarithmic == "both":
        axes.set_xscale("log")
    every = np.concatenate([y for _, y in panel.lines.values()])
    if panel.logarithmic == "no":
        axes.set_ylim(bottom=0)
    elif panel.logarithmic == "both" or every.max() > _DECADE * every.min():
        axes.set_yscale("log")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    if len(panel.lines) > 1:
        axes.legend(frameon=False, fontsize=8.5)


def _cut(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _drawable(text: str) -> str:
    """The text without formulas, and with code points instead of characters that the font lacks."""
    known = _characters()
    shown = (character if ord(character) in known else f"U+{ord(character):04X}" for character in safe(text))
    return "".join(shown).replace("$", r"\$")


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(ft2font.FT2Font(font_manager.findfont(font_manager.FontProperties())).get_charmap())
