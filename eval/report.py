"""Stage: a pipeline's output folder -> one report that sets every number beside the teacher's and the paper's.

::

    python -m eval.report OUT --out OUT/report

Writes ``report.html`` (self-contained), ``report.md`` with ``plots/``, ``report.json`` (everything, for machines) and
``summary.txt`` (for a terminal). What was not measured is called so; a damaged artifact is an error that names it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import artifact, stage
from cluster.recipe import Recipe
from eval import pages
from eval.comparison import compare
from eval.plots import draw
from eval.results import collect, identity
from eval.summary import summary


class Report(Recipe):
    """A report leaves nothing to choose: it says what is there."""


def run(recipe: Report, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the report of what lies in the input ``results``; facts are its headline numbers."""
    results = collect(inputs["results"])
    report = compare(results)
    plots = draw(report["runs"])
    artifact.write_json(out / "report.json", report)
    (out / pages.PLOTS).mkdir(exist_ok=True)
    for plot in plots:
        (out / pages.PLOTS / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
    (out / "report.md").write_text(pages.markdown(report, plots), encoding="utf-8")
    (out / "report.html").write_text(pages.html(report, plots), encoding="utf-8")
    (out / "summary.txt").write_text(summary(report), encoding="utf-8")
    return {
        "sentence": pages.sentence(report),
        "kept_percent": report["headline"]["kept"],
        "tasks": report["headline"]["tasks"],
        "failed_jobs": sum(job.state == "failed" for job in results.jobs),
    }


STAGE = stage.Stage(
    run=run,
    recipe=Report,
    inputs={"results": stage.Role((stage.FOLDER,))},
    produces="report",
    subject="results",
    identify={"results": identity},
)

if __name__ == "__main__":
    stage.main(STAGE)
