"""Stage: a folder of results -> one report that sets every number beside the teacher's and the paper's.

::

    python -m eval.report OUT --out OUT/report

Writes ``report.html`` (self-contained), ``report.md`` with ``plots/``, ``report.json`` (everything, for machines) and
``summary.txt`` (for a terminal). What was not measured is called so; a damaged artifact is an error that names it.
Below the results, every number links to the manifest of the artifact it was read from.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.artifacts import stage
from cluster.artifacts.recipe import Recipe
from cluster.storage import filesystem
from eval.report import pages, phone_tables, score_charts, training_charts
from eval.report.terminal_summary import summary
from eval.results.collect import collect, identity
from eval.results.comparison import compare, failed


class Report(Recipe):
    """A report leaves nothing to choose: it says what is there."""


def run(recipe: Report, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the report of what lies in the input ``results``; facts are its headline numbers."""
    report = compare(collect(inputs["results"]))
    finished = {row["task"]: row["scores"] for row in report["tables"]["1"]["rows"] + report["other_tasks"]}
    levels = {
        task: {name: scores[name] for name in ("teacher",) if name in scores} for task, scores in finished.items()
    }
    drawn = [*score_charts.draw(report), *training_charts.draw(report["runs"], levels), *phone_tables.codes(report)]
    page = pages.Page(report, drawn, _way(out, inputs["results"]))
    filesystem.write_json(out / "report.json", report)
    (out / pages.PLOTS).mkdir(exist_ok=True)
    for plot in drawn:
        (out / pages.PLOTS / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    (out / "report.md").write_text(page.markdown(), encoding="utf-8")
    (out / "report.html").write_text(page.html(), encoding="utf-8")
    (out / "summary.txt").write_text(summary(report), encoding="utf-8")
    return {
        "sentence": pages.sentence(report),
        "kept_percent": report["headline"]["kept"],
        "tasks": report["headline"]["tasks"],
        "claims": {claim["claim"]: claim["verdict"]["state"] for claim in report["claims"]},
        "failed_jobs": len(failed(report)),
    }


def _way(out: Path, results: Path) -> str | None:
    """The way from a report to its results; None for a report that does not lie below them and may go anywhere."""
    here, there = out.resolve(), results.resolve()
    return os.path.relpath(there, here) if here.is_relative_to(there) else None


STAGE = stage.Stage(
    name="eval.report",
    run=run,
    recipe=Report,
    inputs={"results": stage.Role((stage.FOLDER,), identify=identity)},
    produces="report",
    subject="results",
)
