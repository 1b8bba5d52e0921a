"""Make a report of a folder of results that compares every number with the teacher's and the paper's.

::

    stillhouse report OUT --out OUT/report

Writes ``report.html`` (self-contained), ``report.md`` with ``plots/``, ``report.json`` (everything, for machines) and
``summary.txt`` (for a terminal). The report names what was not measured; a damaged artifact is
an error. In a report below the results, numbers link to the manifests of their artifacts.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.artifacts import stage
from cluster.artifacts.recipe import Recipe
from cluster.storage import filesystem
from eval.highlights.headline import sentence
from eval.report import pages, phone_tables, score_charts, training_charts
from eval.report.terminal_summary import summary
from eval.results.collect import collect, identity
from eval.results.comparison import compare, failed


class Report(Recipe):
    """A report; it has no settings."""


def run(recipe: Report, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the report of the input ``results``; the facts are its headline numbers."""
    report = compare(collect(inputs["results"]))
    finished = {row["task"]: row["scores"] for row in report["tables"]["1"]["rows"] + report["other_tasks"]}
    levels = {task: {"teacher": scores["teacher"]} for task, scores in finished.items() if "teacher" in scores}
    drawn = [*score_charts.draw(report), *training_charts.draw(report["runs"], levels), *phone_tables.codes(report)]
    page = pages.Page(report, drawn, _relative(out, inputs["results"]))
    filesystem.write_json(out / "report.json", report)
    (out / pages.PLOTS).mkdir(exist_ok=True)
    for plot in drawn:
        (out / pages.PLOTS / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    (out / "report.md").write_text(page.markdown(), encoding="utf-8")
    (out / "report.html").write_text(page.html(), encoding="utf-8")
    (out / "summary.txt").write_text(summary(report), encoding="utf-8")
    return {
        "sentence": sentence(report),
        "kept_percent": report["headline"]["kept"],
        "tasks": report["headline"]["tasks"],
        "claims": {claim["claim"]: claim["verdict"]["state"] for claim in report["claims"]},
        "failed_jobs": len(failed(report)),
    }


def _relative(out: Path, results: Path) -> str | None:
    """Relative path from a report to its results; None outside of their folder, because such a report may move."""
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
