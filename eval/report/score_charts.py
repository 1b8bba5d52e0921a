"""The chart of the ablations: what each part of the training contributes, here and in the paper."""

from collections.abc import Mapping
from typing import Any

from eval.report.svg import Change, Plot, changes

Report = Mapping[str, Any]


def draw(report: Report) -> list[Plot]:
    """Change of the mean score by ablation; none for a single one, which the table says as well."""
    rows = [row for row in report["tables"]["4"]["rows"] if row["change"] is not None]
    if len(rows) < 2:
        return []
    title = "Change of the mean score, points"
    bars = [Change(row["title"], row["change"], _reach(row["versus"]), row["paper"]) for row in rows]
    return [Plot("ablations", title, "ablations", changes(title, bars))]


def _reach(against: Mapping[str, Any]) -> float | None:
    """Half of the range of a change."""
    return None if against["low"] is None else (float(against["high"]) - float(against["low"])) / 2
