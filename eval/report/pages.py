"""The report as pages: HTML in one file, Markdown with its pictures beside it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cluster.artifacts.commit import MANIFEST
from eval.report import measured_tables, paper_tables, phone_tables
from eval.report.measured_tables import Report
from eval.report.svg import Plot
from eval.report.table import NOT_MEASURED, Cell, Row, amount, percent, ratio
from eval.results.comparison import failed

TEMPLATES = Path(__file__).parents[1] / "templates"
PLOTS = "plots"
UNIT = re.compile(r"(?<=\d) (?=(?:%|MB|M|ms|nats|hours)\b|%)")


@dataclass(frozen=True)
class Page:
    """A report to be shown; ``way`` leads from where it lies to the results, None where nothing does."""

    report: Report
    plots: Sequence[Plot]
    way: str | None

    def html(self) -> str:
        """One page without any outside resource: styles and pictures are in it."""
        return self._render("report.html", {plot.name: Markup(plot.inline()) for plot in self.plots})

    def markdown(self) -> str:
        """GitHub-flavoured Markdown; pictures lie in ``plots/`` beside it."""
        text = self._render(
            "report.md", {plot.name: f"![{plot.title}]({PLOTS}/{plot.name}.svg)" for plot in self.plots}
        )
        return re.sub(r"\n{3,}", "\n\n", text)

    def link(self, source: str | None) -> str:
        """Where a reader finds what an artifact says of itself: its manifest, or its line on this page."""
        if source is None:
            return ""
        return f"#{anchor(source)}" if self.way is None else f"{self.way}/{source}/{MANIFEST}"

    def line(self, row: Row) -> str:
        """A row of a Markdown table; the rows that matter most in bold."""
        bold = row.kind in ("main", "total")
        return f"| {' | '.join(f'**{text}**' if bold else text for text in map(self._cell, row.cells))} |"

    def _cell(self, cell: Cell) -> str:
        text = escaped(cell.text)
        linked = f"[{text}]({self.link(cell.source)})" if cell.source and self.way is not None else text
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
            tables=measured_tables,
            paper_tables=paper_tables,
            phone_report=phone_tables,
            not_measured=NOT_MEASURED,
            pictures=[(plot.section, drawings[plot.name]) for plot in self.plots],
        )


@dataclass(frozen=True)
class KeyNumber:
    """A key number, what it is, what the paper has, and how it fared."""

    value: str
    label: str
    paper: str = ""
    verdict: str = ""
    reason: str = ""


def cards(report: Report) -> list[KeyNumber]:
    """The paper's claims, and what the fastest form of the student brings."""
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
    """The headline: what was measured, in one sentence; what was not is called so, or left out."""
    told = report["headline"]
    if told["student_layers"] is None:
        return f"No student was made: its scores, size and speed are {NOT_MEASURED}."
    shape = [f"{told['student_layers']} of {told['teacher_layers'] or f'({NOT_MEASURED})'} layers"]
    if told["parameter_share"] is not None:
        shape.append(f"{told['parameter_share']:.0f} % of the parameters")
    if told["kept"] is None:
        begin = f"The student has {' and '.join(shape)}; the share it keeps of the teacher's score is {NOT_MEASURED}"
    else:
        tasks = f"{len(told['tasks'])} tasks" if len(told["tasks"]) > 1 else told["tasks"][0]
        tasks += " (in part on subsets)" if told["subset"] else ""
        begin = (
            f"The student keeps {percent(told['kept'])} of the teacher's score on {tasks} with {' and '.join(shape)}"
        )
    return f"{begin}; {_speed(told)}."


def _speed(told: Mapping[str, Any]) -> str:
    same, fastest = told["same_form"], told["fastest"]
    if same is None:
        return f"its speed against the teacher is {NOT_MEASURED}"
    words = f"at batch {same['batch']} it is {ratio(same['ratio_same_form'])} as fast as the teacher in {same['how']}"
    words += f" ({same['where']}, {amount(same['p50_ms'], '.2f', ' ms')})"
    if fastest and fastest["form"] != same["form"]:
        words += f", its {fastest['how']} export {ratio(fastest['ratio_to_teacher'])} ({_exported_score(told)})"
    return words if told["fit"] else f"{words}, on a machine that was not quiet"


def _exported_score(told: Mapping[str, Any]) -> str:
    score = told["fastest_score"]
    if score is None:
        return f"the export's score is {NOT_MEASURED}"
    return f"the export's score: {score['export']:.1f} of {score['task']}, the model's {score['model']:.1f}"


def anchor(source: str) -> str:
    """The name of an artifact's place on the page."""
    return source.replace("/", "-")


def _unbroken(value: Any) -> Any:
    """A number and its unit stay on one line."""
    return UNIT.sub("\N{NO-BREAK SPACE}", value) if type(value) is str else value


def escaped(text: str) -> str:
    """Text that stays in its cell of a Markdown table, whatever an error message holds."""
    text = " ".join(text.split())
    for character in ("\\", "|", "*", "_", "`"):
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;")
