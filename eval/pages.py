"""The report as pages: HTML in one file, Markdown with its pictures beside it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval import tables
from eval.cells import NOT_MEASURED, Row, amount, percent, ratio
from eval.plots import Plot
from eval.tables import Report

TEMPLATES = Path(__file__).parent / "templates"
PLOTS = "plots"
UNIT = re.compile(r"(?<=\d) (?=(?:%|MB|M|ms|nats|hours)\b|%)")


@dataclass(frozen=True)
class Figure:
    """A key number; ``verdict`` is ``good`` or ``short`` of its aim, or empty where there is none."""

    value: str
    label: str
    verdict: str = ""


def html(report: Report, plots: Sequence[Plot]) -> str:
    """One page without any outside resource: styles and pictures are in it."""
    pictures = [Markup(plot.inline()) for plot in plots]
    return _render("report.html", report, pictures)


def markdown(report: Report, plots: Sequence[Plot]) -> str:
    """GitHub-flavoured Markdown; pictures lie in ``plots/`` beside it."""
    return _render("report.md", report, [f"![{plot.title}]({PLOTS}/{plot.name}.svg)" for plot in plots])


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
        begin = (
            f"The student keeps {percent(told['kept'])} of the teacher's score on {tasks} with {' and '.join(shape)}"
        )
    return f"{begin}; {_speed(told)}."


def _speed(told: Mapping[str, Any]) -> str:
    same, fastest = told["same_form"], told["fastest"]
    if same is None:
        return f"its speed against the teacher is {NOT_MEASURED}"
    batch = "" if told["batch"] is None else f"at batch {told['batch']} "
    words = f"{batch}it is {ratio(same['ratio_same_form'])} as fast as the teacher in {same['form']}"
    words += f" ({same['length']} tokens, {amount(same['p50_ms'], '.2f', ' ms')})"
    if fastest and fastest["form"] != same["form"]:
        words += (
            f", its {fastest['form']} export {ratio(fastest['ratio_to_teacher'])} (the export's score is not measured)"
        )
    return words


def figures(report: Report) -> list[Figure]:
    """The key numbers, measured or not."""
    told = report["headline"]
    target = report["paper"]["target_percent"]
    verdict = "" if told["kept"] is None else "good" if told["kept"] >= target else "short"
    tasks = f" on {', '.join(told['tasks'])}" if told["tasks"] else ""
    layers = None if told["student_layers"] is None else f"{told['student_layers']} of {told['teacher_layers'] or '?'}"
    same, fastest = told["same_form"] or {}, told["fastest"] or {}
    same_label = f": {same['form']}, {same['length']} tokens" if same else ""
    fastest_label = f": {fastest['form']} against PyTorch, {fastest['length']} tokens" if fastest else ""
    ablation = told["ablation"] or {}
    gain = ablation.get("gain")
    return [
        Figure(percent(told["kept"]), f"of the teacher's score kept{tasks}; the aim is {target:.0f} %", verdict),
        Figure(
            amount(gain, "+.3f", scale=-1).replace("-", "\N{MINUS SIGN}"),
            f"nats of MLM loss against {ablation.get('name', 'a student trained otherwise')}",
            "" if gain is None else "good" if gain > 0 else "short",
        ),
        Figure(layers or NOT_MEASURED, "of the teacher's layers"),
        Figure(amount(told["parameter_share"], ".0f", " %"), "of the teacher's parameters"),
        Figure(ratio(same.get("ratio_same_form")), f"the teacher's speed in the same runtime{same_label}"),
        Figure(ratio(fastest.get("ratio_to_teacher")), f"the teacher's speed at best{fastest_label}"),
    ]


def _render(template: str, report: Report, pictures: Sequence[str]) -> str:
    is_html = template.endswith(".html")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken if is_html else None,
    )
    environment.filters["escaped"] = escaped
    environment.filters["line"] = line
    return environment.get_template(template).render(
        sentence=sentence(report),
        figures=figures(report),
        failed=[job for job in report["jobs"] if job["state"] == "failed"],
        report=report,
        tables=tables,
        not_measured=NOT_MEASURED,
        pictures=pictures,
    )


def _unbroken(value: Any) -> Any:
    """A number and its unit stay on one line."""
    return UNIT.sub("\N{NO-BREAK SPACE}", value) if type(value) is str else value


def line(row: Row) -> str:
    """A row of a Markdown table; the rows that matter most in bold."""
    texts = [escaped(str(cell)) for cell in row.cells]
    bold = row.kind in ("main", "total")
    return f"| {' | '.join(f'**{text}**' if bold else text for text in texts)} |"


def escaped(text: str) -> str:
    """Text that stays in its cell of a Markdown table, whatever an error message holds."""
    text = " ".join(text.split())
    for character in ("\\", "|", "*", "_", "`"):
        text = text.replace(character, f"\\{character}")
    return text.replace("<", "&lt;")
