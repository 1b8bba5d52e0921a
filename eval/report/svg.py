"""Drawing settings of the report's charts: SVG with one text and one background colour.

A page with a dark mode replaces both by its own (:meth:`Plot.inline`).
"""

import contextlib
import html
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GROUND = "#27303c", "#fefefe"
COLOURS = ("#2f7de1", "#e0710c", "#1a9c5b", "#a45ee5", "#d6478a", "#0f93a3", "#a37a12", "#7b8794")
STYLES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)))
TONES = {"passed": "#1a9c5b", "missed": "#e0710c", "unclear": "#8a94a1", "not measured": "#8a94a1"}
PAPER = "#8a94a1"


@dataclass(frozen=True)
class Plot:
    """A chart; ``name`` is the stem of its file, ``section`` its place on the page."""

    name: str
    title: str
    section: str
    svg: str

    def inline(self) -> str:
        """The chart as an element of a page, in the page's colours."""
        drawing = self.svg[self.svg.index("<svg ") :].replace(INK, "currentColor").replace(GROUND, "none")
        return drawing.replace("<svg ", f'<svg role="img" aria-label="{html.escape(self.title)}" ', 1)


class Canvas:
    """A figure with one pair of axes."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), layout="constrained", facecolor=GROUND)
        self.axes = self.figure.add_subplot(facecolor=GROUND)

    def svg(self) -> str:
        buffer = io.StringIO()
        self.figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
        return buffer.getvalue()


@contextlib.contextmanager
def canvas(
    title: str, width: float = 4.2, height: float = 2.7, across: str = "", grid: str = "both"
) -> Iterator[Canvas]:
    """A canvas with a title and the label ``across`` of the horizontal axis; sizes are in inches."""
    settings: dict[Any, Any] = {
        # Hashes ids with the title, because charts in one page must not share a clip path.
        "svg.hashsalt": title,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with matplotlib.rc_context(settings):
        made = Canvas(width, height)
        _style(made.axes, title, across, grid)
        yield made


def legend(axes: Axes, **where: Any) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, **where)


def _style(axes: Axes, title: str, across: str, grid: Any) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
    axes.set_xlabel(across, color=INK)
    axes.tick_params(colors=INK, labelcolor=INK, length=3)
    axes.grid(color=INK, alpha=0.13, linewidth=0.6, axis=grid)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_alpha(0.5)
