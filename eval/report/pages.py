"""The report as HTML in one file, and as Markdown with pictures in ``plots/``."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

import cluster
from cluster.artifacts.commit import MANIFEST
from cluster.telemetry.formatting import NOT_MEASURED
from eval.highlights.bars import first_bars, shares
from eval.highlights.headline import sentence, trust
from eval.highlights.identity import identity
from eval.highlights.measured import highlights
from eval.highlights.unasked import MEASUREMENTS, unmeasured
from eval.report import measured_tables, paper_tables, phone_tables, task_tables
from eval.report.measured_tables import Report
from eval.report.svg import Plot
from eval.report.table import Cell, Row, Table
from eval.results.comparison import failed

TEMPLATES = Path(__file__).parents[1] / "templates"
LOOK = Path(cluster.__file__).parent / "look"
ICON, PALETTE = LOOK / "icon.svg", LOOK / "palette.css"
"""The look that all pages share."""
PLOTS = "plots"
TABLES: Mapping[str, Callable[[Report], Table]] = {
    "models": measured_tables.models,
    "held_out": measured_tables.held_out,
    "exports": measured_tables.exports,
    "latency": measured_tables.latency,
    "latency_brief": measured_tables.latency_brief,
    "cost": measured_tables.cost,
    "jobs": measured_tables.jobs,
    "differences": paper_tables.differences,
    "claims": paper_tables.claims,
    "glue": paper_tables.glue,
    "downstream": paper_tables.downstream,
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
        is_html, report = template.endswith(".html"), self.report
        tables = {name: table(report) for name, table in TABLES.items()}
        pictures = [(plot.section, drawings[plot.name]) for plot in self.plots]
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
            sentence=sentence(report),
            identity=identity(report),
            highlights=highlights(report),
            trust=trust(report),
            bars=first_bars(report),
            shares=shares(report),
            unmeasured=unmeasured(report),
            verdicts=verdicts(report),
            failed=failed(report),
            report=report,
            tables=tables,
            task_tables=task_tables.tables(report),
            sections=sections(report, tables, [section for section, _ in pictures]),
            conditions=measured_tables.conditions,
            descent=measured_tables.descent,
            not_measured=NOT_MEASURED,
            pictures=pictures,
            icon=Markup(ICON.read_text(encoding="utf-8")),
            palette=Markup(PALETTE.read_text(encoding="utf-8")),
            brief_models=measured_tables.BRIEF,
            brief_3=paper_tables.BRIEF_3,
            brief_scores=paper_tables.BRIEF,
            brief_phones=phone_tables.BRIEF,
        )


def sections(report: Report, tables: Mapping[str, Table], places: Collection[str]) -> dict[str, str]:
    """The sections that have something to show, in order: anchor to title; ``places`` are those of the pictures."""
    claims = [claim for claim in report["claims"] if claim["ours"] is not None]
    timed = [tables[name].rows for name in ("size_and_speed", "latency", "exports")]
    found = {
        "scores": "Scores" if report["scores"] or tables["glue"].rows or tables["downstream"].rows else "",
        "models": "Models" if report["models"] else "",
        "speed": "Size and speed" if any(timed) else "",
        "phone": "On a phone" if tables["phones"].rows or report["phones"]["waiting"] else "",
        "parts": "Ablations" if tables["ablations"].rows else "",
        "training": "Training" if {"curves", "probes"} & {*places} else "",
        "claims": "The paper's claims" if claims else "",
        "cost": "Cost" if report["runs"] or report["tuning"] else "",
        "unmeasured": "Not measured" if unmeasured(report) else "",
        "lineage": "Lineage",
    }
    return {name: title for name, title in found.items() if title}


def verdicts(report: Report) -> str:
    """How the paper's claims fared: ``2 passed, 1 missed, 4 not asked for``."""
    states = Counter(claim["verdict"]["state"] for claim in report["claims"])
    lost = {claim for each in MEASUREMENTS for claim in each.claims if each.name in _failed_names(report)}
    failed_claims = sum(claim["claim"] in lost for claim in report["claims"] if claim["ours"] is None)
    counted = {
        **{state: states[state] for state in ("passed", "missed", "unclear")},
        "failed": failed_claims,
        "not asked for": states[NOT_MEASURED] - failed_claims,
    }
    return ", ".join(f"{number} {state}" for state, number in counted.items() if number)


def _failed_names(report: Report) -> set[str]:
    return {each.name for each in unmeasured(report) if each.state == "failed"}


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
