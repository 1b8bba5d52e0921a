"""What is in a data set, a benchmark or a report."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import Bars, Block, Findings, Pairs, Section, Table, Words, flat
from cluster.inspect.text_stats import TextStats, described, samples
from cluster.storage import filesystem
from cluster.telemetry.formatting import count, file_size, share


def dataset(found: Artifact, num_samples: int) -> Findings:
    """Examples by label, what their texts are like, and texts that are in both parts."""
    texts, parts, labels = TextStats(), dict[str, set[str]](), dict[str, Counter[str]]()
    names = _label_names(found)
    for name in sorted(name for name in found.files if name.endswith(".parquet")):
        with filesystem.open_read(found.location / name) as source, pq.ParquetFile(source) as file:
            table = file.read()
        part = name.removesuffix(".parquet")
        columns = [field.name for field in table.schema if str(field.type) in ("string", "large_string")]
        rows = [
            " · ".join(filter(None, values)) for values in zip(*(table[c].to_pylist() for c in columns), strict=True)
        ]
        parts[part] = set(rows)
        answers = table["label"].to_pylist() if "label" in table.column_names else [None] * len(rows)
        written = [str(names.get(answer, answer)) for answer in answers]
        labels[part] = Counter(written)
        for label, row in zip(written, rows, strict=True):
            texts.add(label, row, num_samples)
    first, *others = parts.values()
    shared = sum(len(first & other) for other in others)
    remarks = [f"{shared:,} texts are in two of the parts {', '.join(parts)}: scores say too much"] if shared else []
    sections = [
        Section("EXAMPLES", [Pairs(flat(found.facts)), *_labels(labels)]),
        Section("TEXT", described(texts)),
        Section("SAMPLES", samples(texts, num_samples)),
    ]
    return Findings("", "", "", remarks, sections)


def _label_names(found: Artifact) -> Mapping[Any, str]:
    if "labels.json" not in found.files:
        return {}
    return dict(enumerate(filesystem.read_json(found.location / "labels.json")))


def _labels(labels: Mapping[str, Counter[str]]) -> list[Block]:
    return [
        Bars(
            f"Labels of {part}: {numbers.total():,} examples",
            "examples",
            dict(numbers.most_common()),
            {label: f"{number:,}  {share(number, numbers.total())}" for label, number in numbers.items()},
        )
        for part, numbers in labels.items()
    ]


def benchmark(found: Artifact, num_samples: int) -> Findings:
    """Times by model, runtime and length, and the machine or phone they hold for; other measurements as they are."""
    facts = found.facts
    if "rows" not in facts:  # of scores or of layers
        return Findings("", "", "", [], [Section("MEASURED", [Pairs(flat(facts))])])
    rows = [_timed(row) for row in facts["rows"]]
    head = ("model", "runtime", "tokens", "threads", "p50 ms", "p90 ms", "p99 ms", "size", "speed")
    blocks: list[Block] = [Table(head, rows, texts=2)] if rows else []
    for tokens, threads in dict.fromkeys((row[2], row[3]) for row in rows):
        here = [row for row in facts["rows"] if _place(row) == (tokens, threads)]
        times = {f"{row['model']}, {row['runtime']}": row["p50_ms"] for row in here}
        title = f"Median time, {tokens} tokens, threads {threads}"
        blocks.append(Bars(title, "ms", times, {name: f"{time:.3g} ms" for name, time in times.items()}))
    remarks = [f"the times prove nothing: {facts['unfit']}"] if facts["unfit"] else []
    remarks += ["a proxy: this was measured on a host, and not on a phone"] if facts.get("proxy") else []
    remarks += [f"not measured: {_problem(each)}" for each in facts.get("problems", ())]
    where = facts["machine"] if "machine" in facts else facts["device"]
    return Findings("", "", "", remarks, [Section("TIMES", blocks), Section("MACHINE", [Pairs(flat(where))])])


def _problem(found: Mapping[str, Any]) -> str:
    where = ", ".join(f"{key} {value}" for key, value in found.items() if key != "error")
    return f"{where}: {found['error']}"


def _place(row: Mapping[str, Any]) -> tuple[str, str]:
    """Tokens of an input, or what the texts are, and threads."""
    return f"{row['length']:,}" if row["length"] is not None else str(row["workload"]), str(row["threads"])


def _timed(row: Mapping[str, Any]) -> tuple[str, ...]:
    times = (f"{row[key]:.3g}" for key in ("p50_ms", "p90_ms", "p99_ms"))
    against = row["ratio_to_teacher"]
    return (
        row["model"], row["runtime"], *_place(row), *times, "–" if row["bytes"] is None else file_size(row["bytes"]),
        "–" if against is None else f"{against:.2f}×",
    )  # fmt: skip


def report(found: Artifact, num_samples: int) -> Findings:
    """The report's own summary."""
    with filesystem.open_read(found.location / "summary.txt") as file:
        summary = file.read().decode()
    remarks = [f"{found.facts['failed_jobs']:,} jobs failed"] if found.facts["failed_jobs"] else []
    return Findings("", "", "", remarks, [Section("REPORT", [Words(summary)])])


def pipeline(found: Mapping[str, Artifact], runs: list[str], jobs: list[dict[str, Any]]) -> list[Section]:
    """The artifacts and runs of an output folder."""
    rows = [(place, one.kind, one.identity[:12], file_size(one.bytes)) for place, one in found.items()]
    rows += [(place, "run", "", "") for place in runs]
    sections = [Section("HERE", [Table(("place", "kind", "identity", "size"), sorted(rows), texts=3)])]
    if jobs:
        states = Counter(job["state"] for job in jobs)
        failed = [(job["name"], job["error"] or "") for job in jobs if job["state"] == "failed"]
        told = Pairs([("jobs", ", ".join(f"{count(number)} {state}" for state, number in states.items()))])
        sections.append(Section("JOBS", [told, Table(("failed", "because"), failed, texts=2)] if failed else [told]))
    return sections
