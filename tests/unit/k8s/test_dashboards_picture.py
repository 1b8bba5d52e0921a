"""The picture of the dashboards: text fits into its panel, and every line has a name."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from k8s.monitoring.source.dashboards_picture import draw_panel, format_value
from k8s.monitoring.source.generate import BOARDS
from k8s.monitoring.source.grafana import HEIGHT, Panel
from k8s.monitoring.source.picture_data import Line

PANELS = [panel for board in BOARDS for panel in board.panels]
COLUMN, LINE = 0.36, 0.22
HOUR = 3600.0


def _lines(panel: Panel, names: list[str]) -> list[Line]:
    times = [1.7e9 + 60 * number for number in range(360)] if panel.kind == "graph" else [1.7e9]
    labels = {"run": "distilbert/student", "device": "Tesla V100-SXM2-16GB"}
    most = 1.0 if panel.unit == "percentunit" else 57_000.0
    return [
        Line(name, labels, times, [most * (1 + number) / (1 + len(names))] * len(times))
        for number, name in enumerate(names)
    ]


def _texts(panel: Panel, names: list[str]) -> tuple[list[Text], Figure]:
    """Text of a panel except the axis labels."""
    wide, high = panel.width * COLUMN, HEIGHT[panel.kind] * LINE
    figure = Figure(figsize=(wide, high), dpi=130)
    FigureCanvasAgg(figure)
    assert draw_panel(figure, panel, (0.0, 0.0, wide, high), _lines(panel, names))
    figure.draw_without_rendering()
    return list(figure.axes[0].texts), figure


@pytest.mark.parametrize("name", ["v100-node-1 {}", "a-pipeline/with-a-long-name {}"])
@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_text_fits_into_its_panel(panel: Panel, name: str) -> None:
    names = ["distilbert/student", *(name.format(number) for number in range(8))]
    texts, figure = _texts(panel, ["growth"] if panel.kind == "stat" else names)
    width, height = figure.bbox.size
    assert texts
    for text in texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0, (text.get_text(), extent)
        assert extent.x1 <= width, (text.get_text(), extent)
        assert extent.y0 >= 0, (text.get_text(), extent)
        assert extent.y1 <= height, (text.get_text(), extent)


def test_every_line_has_a_name_or_is_counted() -> None:
    panel = next(panel for panel in PANELS if panel.title == "Temperature")
    texts, _ = _texts(panel, [f"v100-node-1 {gpu}" for gpu in range(8)])
    assert {f"v100-node-1 {gpu}" for gpu in range(8)} <= {text.get_text() for text in texts}
    texts, _ = _texts(panel, [f"v100-node-{node} {gpu}" for node in range(8) for gpu in range(8)])
    named = [text.get_text() for text in texts if text.get_text().startswith("v100")]
    assert f"and {64 - len(named)} more" in {text.get_text() for text in texts}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (HOUR, "s", "1 hour"),
        (1.5 * HOUR, "s", "1.5 hours"),
        (48 * HOUR, "s", "2 days"),
        (90.0, "s", "1.5 min"),
        (0.25, "s", "250 ms"),
        (0.123, "percentunit", "12 %"),
        (3 * 2**30, "bytes", "3 GiB"),
        (float("nan"), "s", "–"),
    ],
)
def test_numbers_are_written_as_grafana_does(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text
