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
    bars = [
        Change(row["title"], row["change"], None if row["error"] is None else 2 * row["error"], row["paper"])
        for row in rows
    ]
    return [Plot("ablations", title, "ablations", changes(title, bars))]
