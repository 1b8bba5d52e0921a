"""The report's section on phones: measurements, the paper's phone, and the links of waiting jobs."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from cluster.serving import links
from cluster.telemetry.formatting import NOTHING, amount, megabytes, millions, ratio
from eval.report.svg import Plot
from eval.report.table import Cell, Row, Table, cells
from eval.results.export_formats import TITLES
from eval.results.schema import STUDENT

Report: TypeAlias = Mapping[str, Any]

BRIEF = ("On", "Model", "Runtime", "p50 ms", "×", "% less time")
PROXY = "proxy, no phone"
_TRANSPORTS = {"browser": "in a browser", "adb": "over adb"}


def codes(report: Report) -> list[Plot]:
    """The QR codes of waiting jobs."""
    return [
        Plot(each["section"], f"The link of {each['name']}", each["section"], links.svg(each["link"]))
        for each in report["phones"]["waiting"]
    ]


def table(report: Report) -> Table:
    """Every model on every device, then the paper's phone; no rows without a measurement."""
    found = report["phones"]["measured"]
    rows: list[Row] = []
    for benchmark in found:
        own = [_row(benchmark, row) for row in benchmark["rows"]]
        rows += [Row(row.cells, "group") if number == 0 and rows else row for number, row in enumerate(own)]
    findings = [line for benchmark in found for line in _findings(benchmark)]
    if rows:
        rows += [_paper_row(report["phones"]["paper"]["phone"], row) for row in report["phones"]["paper"]["rows"]]
    columns = (
        "On", "Model", "p50 ms", "×", "% less time", "Threads", "Tokens", "Runtime", "Size", "Memory", "tokenize ms",
        "Parameters", "p90 ms", "p99 ms", "first ms", "load s",
    )  # fmt: skip
    caption = "Every model on every device, and the paper's phone"
    return Table(columns, tuple(rows), frozenset({"On", "Model", "Runtime"}), tuple(findings), _notes(report), caption)


def _row(benchmark: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
    texts = (
        amount(row["p50_ms"], ".1f"), *_gain(row, row["model"] == STUDENT), f"{row['threads']}", f"{row['length']}",
        _runtime(benchmark, row), megabytes(row["bytes"]),
        amount(row["peak_memory_bytes"], ".0f", " MB", 1e-6, NOTHING),
        amount((row["tokenise"] or {}).get("p50_ms"), ".1f", absent=NOTHING), millions(row["parameters"]),
        amount(row["p90_ms"], ".1f"), amount(row["p99_ms"], ".1f"), amount(row["first_ms"], ".1f", absent=NOTHING),
        amount(row["load_seconds"], ".2f", absent=NOTHING),
    )  # fmt: skip
    name, source = benchmark["name"], f"mobile/{benchmark['name']}"
    where = Cell(PROXY, name, source) if benchmark["proxy"] else Cell(name, _where(benchmark), source)
    model = Cell(row["title"] or row["model"], "random weights" if row["weights"] == "random" else "")
    return Row((where, model, *cells(texts)))


def _runtime(benchmark: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The runtime, with the format of the export if the runtime's name does not contain it."""
    form = TITLES.get(row["format"], row["format"]) if benchmark["way"] == "adb" else None
    return ", ".join(filter(None, (row["runtime"], form)))


def _where(benchmark: Mapping[str, Any]) -> str:
    if benchmark["proxy"]:
        return PROXY
    still = benchmark["device"].get("mobile") is False
    return f"{benchmark['title']}, {_TRANSPORTS[benchmark['way']]}{' that is no phone' if still else ''}"


def _gain(row: Mapping[str, Any], student: bool) -> tuple[str, str]:
    """The gain as ratio and as percentage; the paper mixes them."""
    if not student:
        return NOTHING, NOTHING
    return ratio(row["ratio_to_teacher"]), amount(row["less_time_percent"], ".0f", " %").replace("-", "\N{MINUS SIGN}")


def _paper_row(phone: str, row: Mapping[str, Any]) -> Row:
    gain = _gain(row, row["ratio_to_teacher"] is not None)
    size = amount(row["bytes"], ".1f", " MB", 1e-6, NOTHING)
    texts = (amount(row["p50_ms"], ".0f"), *gain, NOTHING, NOTHING, NOTHING, size, *(NOTHING,) * 7)
    return Row((Cell(f"{phone} (paper)"), Cell(row["model"]), *cells(texts)), "paper")


def _findings(benchmark: Mapping[str, Any]) -> Iterator[str]:
    """Sentences: the student's largest gain, why the numbers are not reliable, and what did not run."""
    own = [row for row in benchmark["rows"] if row["model"] == STUDENT and row["ratio_to_teacher"] is not None]
    if own:
        best = min(own, key=lambda row: (-row["length"], row["p50_ms"]))
        on = f"{best['threads']} thread{'' if best['threads'] == 1 else 's'}"
        less = best["less_time_percent"]
        yield (
            f"{benchmark['name']} ({_where(benchmark)}): the student answers {best['length']} tokens in "
            f"{best['p50_ms']:.1f} ms on {on}, {ratio(best['ratio_to_teacher'])} as fast as the teacher in the same "
            f"runtime: {abs(less):.0f} % {'less' if less >= 0 else 'more'} time."
        )
    if benchmark["unfit"]:
        yield f"{benchmark['name']} is unfit: {benchmark['unfit']}. Do not rely on its times."
    for problem in benchmark["problems"]:
        what = ", ".join(f"{key} {value}" for key, value in problem.items() if key != "error")
        yield f"{benchmark['name']}, {what}: not measured, {problem['error']}."


def _notes(report: Report) -> tuple[str, ...]:
    if not report["phones"]["measured"]:
        return ()
    published = report["phones"]["paper"]
    teacher, student = published["rows"]
    notes = [
        "Milliseconds of the network without tokenization, as in the paper. Tokens: question and passage together. "
        "× is the teacher's p50 over the student's with the same runtime, threads and "
        f"length; {ratio(student['ratio_to_teacher'])} is "
        f"{student['less_time_percent']:.0f} % less time, which the paper calls 71 % faster ({published['phone']}, "
        f"{teacher['p50_ms']:,.0f} to {student['p50_ms']:,.0f} ms; its model is not quantized)."
    ]
    if proxies := [each for each in report["phones"]["measured"] if each["proxy"]]:
        limits = sorted({each["settings"]["way"]["memory_megabytes"] for each in proxies})
        notes.append(
            f"A proxy is no phone: {', '.join(sorted({each['title'] for each in proxies}))}, with processes limited to "
            f"{', '.join(f'{limit:,}' for limit in limits)} MB. It shows what fits into that memory and how two models "
            "compare in one runtime, but not a phone's milliseconds."
        )
    return tuple(notes)
