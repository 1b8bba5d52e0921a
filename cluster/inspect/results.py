"""Data sets, benchmarks, reports and the output folders of pipelines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import Bars, Block, Findings, Pairs, Section, Table, Words, flat, with_share
from cluster.inspect.text_stats import TextStats, describe, samples
from cluster.storage import filesystem
from cluster.telemetry.formatting import count, file_size


def dataset(found: Artifact, num_samples: int) -> Findings:
    """Examples by label, statistics of their texts, and texts that occur in two parts."""
    stats, parts, charts = TextStats(), dict[str, set[str]](), list[Block]()
    labelled = "labels.json" in found.files
    names: Mapping[Any, str] = dict(enumerate(filesystem.read_json(found.location / "labels.json"))) if labelled else {}
    for name in found.matching("*.parquet"):
        with filesystem.open_read(found.location / name) as source, pq.ParquetFile(source) as file:
            table = file.read()
        part = name.removesuffix(".parquet")
        columns = [field.name for field in table.schema if str(field.type) in ("string", "large_string")]
        values = zip(*(table[column].to_pylist() for column in columns), strict=True)
        texts = [" · ".join(filter(None, row)) for row in values]
        answers = table["label"].to_pylist() if "label" in table.column_names else [None] * len(texts)
        labels = [str(names.get(answer, answer)) for answer in answers]
        for label, text in zip(labels, texts, strict=True):
            stats.add(label, text, num_samples)
        parts[part], numbers = set(texts), dict(Counter(labels).most_common())
        charts.append(Bars(f"Labels of {part}: {len(texts):,} examples", "examples", numbers, with_share(len(texts))))
    first, *others = parts.values()
    shared = sum(len(first & other) for other in others)
    where = ", ".join(parts)
    remarks = [f"{shared:,} texts are in two of the parts {where}: scores are contaminated"] if shared else []
    sections = [
        Section("EXAMPLES", [Pairs(flat(found.facts)), *charts]),
        Section("TEXT", describe(stats)),
        Section("SAMPLES", samples(stats, num_samples)),
    ]
    return Findings(remarks=remarks, sections=sections)


def benchmark(found: Artifact, num_samples: int) -> Findings:
    """Times by model, runtime and length, and the machine or phone; other measurements as name and value."""
    facts = found.facts
    if "rows" not in facts:  # scores or layers
        return Findings(sections=[Section("MEASURED", [Pairs(flat(facts))])])
    head = ("model", "runtime", "tokens", "threads", "p50 ms", "p90 ms", "p99 ms", "size", "speed")
    blocks: list[Block] = [Table(head, [_cells(row) for row in facts["rows"]], texts=2)] if facts["rows"] else []
    charts: dict[tuple[str, str], dict[str, float]] = {}
    for row in facts["rows"]:
        charts.setdefault(_conditions(row), {})[f"{row['model']}, {row['runtime']}"] = row["p50_ms"]
    for (tokens, threads), times in charts.items():
        blocks.append(Bars(f"Median time, {tokens} tokens, threads {threads}", "ms", times, "{:.3g} ms".format))
    remarks = [f"the times are not valid: {facts['unfit']}"] if facts["unfit"] else []
    remarks += ["a proxy: these are measurements of a host, not of a phone"] if facts.get("proxy") else []
    remarks += [f"not measured: {_problem(each)}" for each in facts.get("problems", ())]
    where = facts["machine"] if "machine" in facts else facts["device"]
    return Findings(remarks=remarks, sections=[Section("TIMES", blocks), Section("MACHINE", [Pairs(flat(where))])])


def _problem(found: Mapping[str, Any]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in found.items() if key != "error")
    return f"{where}: {found['error']}"


def _conditions(row: Mapping[str, Any]) -> tuple[str, str]:
    """Tokens of an input, or the name of its workload, and threads."""
    return f"{row['length']:,}" if row["length"] is not None else str(row["workload"]), str(row["threads"])


def _cells(row: Mapping[str, Any]) -> list[str]:
    times = [f"{row[key]:.3g}" for key in ("p50_ms", "p90_ms", "p99_ms")]
    size = "–" if row["bytes"] is None else file_size(row["bytes"])
    ratio = "–" if row["ratio_to_teacher"] is None else f"{row['ratio_to_teacher']:.2f}×"
    return [row["model"], row["runtime"], *_conditions(row), *times, size, ratio]


def report(found: Artifact, num_samples: int) -> Findings:
    """The summary that the report contains."""
    with filesystem.open_read(found.location / "summary.txt") as file:
        summary = file.read().decode()
    remarks = [f"{found.facts['failed_jobs']:,} jobs failed"] if found.facts["failed_jobs"] else []
    return Findings(remarks=remarks, sections=[Section("REPORT", [Words(summary)])])


def pipeline(found: Mapping[str, Artifact], runs: Sequence[str], jobs: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The artifacts, runs and jobs of an output folder."""
    rows = [(place, one.kind, one.identity[:12], file_size(one.bytes)) for place, one in found.items()]
    rows += [(place, "run", "", "") for place in runs]
    sections = [Section("CONTENTS", [Table(("place", "kind", "identity", "size"), sorted(rows), texts=3)])]
    if jobs:
        states = Counter(job["state"] for job in jobs)
        blocks: list[Block] = [Pairs([("jobs", ", ".join(f"{count(n)} {state}" for state, n in states.items()))])]
        if failed := [(job["name"], job["error"] or "") for job in jobs if job["state"] == "failed"]:
            blocks.append(Table(("failed", "because"), failed, texts=2))
        sections.append(Section("JOBS", blocks))
    return sections
