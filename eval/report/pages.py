"""The report as HTML in one file, and as Markdown with pictures in ``plots/``."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from cluster.artifacts.commit import MANIFEST
from cluster.telemetry.formatting import NOT_MEASURED, amount, percent, ratio
from eval.report import measured_tables, paper_tables, phone_tables
from eval.report.measured_tables import Report
from eval.report.svg import Plot
from eval.report.table import Cell, Row, Table
from eval.results.comparison import failed

TEMPLATES = Path(__file__).parents[1] / "templates"
PLOTS = "plots"
TABLES: Mapping[str, Callable[[Report], Table]] = {
    "models": measured_tables.models,
    "held_out": measured_tables.held_out,
    "exports": measured_tables.exports,
    "latency": measured_tables.latency,
    "cost": measured_tables.cost,
    "jobs": measured_tables.jobs,
    "differences": paper_tables.differences,
    "claims": paper_tables.claims,
    "glue": paper_tables.glue,
    "downstream": paper_tables.downstream,
    "other_tasks": paper_tables.other_tasks,
    "size_and_speed": paper_tables.size_and_speed,
    "ablations": paper_tables.ablations,
    "metrics": paper_tables.metrics,
    "phones": phone_tables.table,
}
"""Name of a table in the templates to the function that makes it."""
UNIT = re.compile(r"(?<=\d) (?=(?:%|MB|M|ms|nats|hours)\b|%)")


@dataclass(frozen=True)
class Page:
    """A report as text; ``results`` is the relative path from the pages to the results, None if it is unknown."""

    report: Report
    plots: Sequence[Plot]
    results: str | None

    def html(self) -> str:
        """One page that contains its styles and pictures."""
        return self._render("report.html", {plot.name: Markup(plot.inline()) for plot in self.plots})

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        text = self._render(
            "report.md", {plot.name: f"![{plot.title}]({PLOTS}/{plot.name}.svg)" for plot in self.plots}
        )
        return re.sub(r"\n{3,}", "\n\n", text)

    def link(self, source: str | None) -> str:
        """Link to the manifest of an artifact, or to its entry on this page."""
        if source is None:
            return ""
        return f"#{anchor(source)}" if self.results is None else quote(f"{self.results}/{source}/{MANIFEST}")

    def line(self, row: Row) -> str:
        """A row of a Markdown table; the main rows are bold."""
        bold = row.kind in ("main", "total")
        return f"| {' | '.join(f'**{text}**' if bold else text for text in map(self._cell, row.cells))} |"

    def _cell(self, cell: Cell) -> str:
        text = escaped(cell.text)
        linked = f"[{text}]({self.link(cell.source)})" if cell.source and self.results is not None else text
        return f"{linked} ({escaped(cell.detail)})" if cell.detail else linked

    def _render(self, template: str, drawings: Mapping[str, str]) -> str:
        is_html = template.endswith(".html")
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=is_html,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_unbroken if is_html else None,
        )
        environment.filters |= {"escaped": escaped, "line": self.line, "link": self.link, "anchor": anchor}
        environment.filters["json"] = lambda value: json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
        return environment.get_template(template).render(
            sentence=sentence(self.report),
            cards=cards(self.report),
            failed=failed(self.report),
            report=self.report,
            tables={name: table(self.report) for name, table in TABLES.items()},
            conditions=measured_tables.conditions,
            descent=measured_tables.descent,
            not_measured=NOT_MEASURED,
            pictures=[(plot.section, drawings[plot.name]) for plot in self.plots],
        )


@dataclass(frozen=True)
class KeyNumber:
    """A card at the top of the page: a value, its label, the paper's value, and the verdict with its reason."""

    value: str
    label: str
    paper: str = ""
    verdict: str = ""
    reason: str = ""


def cards(report: Report) -> list[KeyNumber]:
    """The paper's claims, and the speed of the student's fastest export."""
    found = []
    for row in paper_tables.claims(report).rows:
        claim, here, paper, verdict = row.cells
        found.append(KeyNumber(here.text, str(claim), f"paper {paper.text}", verdict.text, verdict.detail))
    fastest = report["headline"]["fastest"]
    label = "The teacher's speed in PyTorch, at best"
    if fastest is None:
        return [*found, KeyNumber(NOT_MEASURED, label)]
    label = f"{label}: {fastest['how']}, {fastest['where']}"
    unfit = "" if report["headline"]["fit"] else "unclear"
    return [
        *found,
        KeyNumber(ratio(fastest["ratio_to_teacher"]), label, "", unfit, "the machine was not quiet" if unfit else ""),
    ]


def sentence(report: Report) -> str:
    """The headline in one sentence; it names or omits what was not measured."""
    headline = report["headline"]
    if headline["student_layers"] is None:
        return f"No student was made: its scores, size and speed are {NOT_MEASURED}."
    shape = [f"{headline['student_layers']} of {headline['teacher_layers'] or f'({NOT_MEASURED})'} layers"]
    if headline["parameter_share"] is not None:
        shape.append(f"{headline['parameter_share']:.0f} % of the parameters")
    if headline["kept"] is None:
        begin = f"The student has {' and '.join(shape)}; the share it keeps of the teacher's score is {NOT_MEASURED}"
    else:
        tasks = f"{len(headline['tasks'])} tasks" if len(headline["tasks"]) > 1 else headline["tasks"][0]
        tasks += " (in part on subsets)" if headline["subset"] else ""
        kept = percent(headline["kept"])
        begin = f"The student keeps {kept} of the teacher's score on {tasks} with {' and '.join(shape)}"
    return f"{begin}; {_speed(headline)}."


def _speed(headline: Mapping[str, Any]) -> str:
    same, fastest = headline["same_form"], headline["fastest"]
    if same is None:
        return f"its speed against the teacher is {NOT_MEASURED}"
    words = f"at batch {same['batch']} it is {ratio(same['ratio_same_form'])} as fast as the teacher in {same['how']}"
    words += f" ({same['where']}, {amount(same['p50_ms'], '.2f', ' ms')})"
    if fastest and fastest["form"] != same["form"]:
        words += f", its {fastest['how']} export {ratio(fastest['ratio_to_teacher'])} ({_exported_score(headline)})"
    return words if headline["fit"] else f"{words}, on a machine that was not quiet"


def _exported_score(headline: Mapping[str, Any]) -> str:
    score = headline["fastest_score"]
    if score is None:
        return f"the export's score is {NOT_MEASURED}"
    return f"the export's score: {score['export']:.1f} of {score['task']}, the model's {score['model']:.1f}"


def anchor(source: str) -> str:
    """Anchor of an artifact's entry on the page."""
    return re.sub(r"[^\w.-]", lambda found: f"_{ord(found[0]):x}", source.replace("/", "-"))


def _unbroken(value: Any) -> Any:
    """Keep a number and its unit on one line."""
    return UNIT.sub("\N{NO-BREAK SPACE}", value) if type(value) is str else value


def escaped(text: str) -> str:
    """Text for one cell of a Markdown table; error messages may contain any character."""
    text = " ".join(text.split())
    for character in ("\\", "|", "*", "_", "`"):
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;")
