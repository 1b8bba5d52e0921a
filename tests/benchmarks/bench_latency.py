"""How fast a model of DistilBERT's size is on this processor, in every runtime that is installed, against BERT-base.

Random weights, batch 1, as many tokens as a pair of STS-B has and as a question with its passage; on one core and on
all of them; every model in its own process; the models take turns. Ratios are BERT-base's p50 in eager
fp32 PyTorch over this one's.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import random_documents
import torch
from benchmark_runner import Row, not_measured, quick
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from cluster.artifacts import artifact, errors, registry, stage
from eval.benchmark.stage import STAGE, BenchmarkRecipe
from eval.results.export_formats import FORMATS, TITLES, Format, check_toolchains

_MEGABYTE = 1e6
_LENGTHS = (8, 16) if quick() else (30, 384)
# A LiteRT export has one file per length: 30 tokens are padded to 32.
_BUCKETS = (8, 16) if quick() else (32, 384)
_REPEATS = 3 if quick() else 60
_VOCABULARY = 1000 if quick() else 30_522
_LOOSE = {"relative": 1.0, "agreement": 0.0}
"""Random weights give random outputs; other tests check that an export matches its model."""
_WANTED = 8.0
_MOST_MEGABYTES = 70.0


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bert, student = models(folder)
        made: dict[Format, Path] = {}
        for form in FORMATS:
            try:
                check_toolchains([form], "bench")
            except errors.StageError as error:
                yield not_measured(f"latency_{form}", "ratio", f"not installed; {error}")
                continue
            made[form] = export(form, student, folder, made)
        yield from told(measure(bert, student, list(made.values()), folder / "latency"))


def models(folder: Path) -> tuple[Path, Path]:
    """BERT-base and a student with half of its layers, both random, with a tokenizer; tiny models in quick runs."""
    bert, student = BertConfig(num_labels=1), DistilBertConfig(num_labels=1)
    if quick():
        bert = BertConfig(
            num_labels=1, vocab_size=_VOCABULARY, hidden_size=64, num_attention_heads=2, num_hidden_layers=2,
            intermediate_size=128,
        )  # fmt: skip
        student = DistilBertConfig(num_labels=1, vocab_size=_VOCABULARY, dim=64, n_heads=2, n_layers=1, hidden_dim=128)
    torch.manual_seed(0)
    for name, model in (
        ("bert", BertForSequenceClassification(bert)),
        ("student", DistilBertForSequenceClassification(student)),
    ):
        model.save_pretrained(folder / name)
        random_documents.tokenizer(folder / name, _VOCABULARY)
    return folder / "bert", folder / "student"


def export(form: Format, model: Path, folder: Path, made: dict[Format, Path]) -> Path:
    """Export the model to this format; ``made`` has the formats it may be converted from."""
    making = FORMATS[form]
    values: dict[str, Any] = {**making.values, "tolerance": _LOOSE}
    inputs = {"model": model}
    if making.of is not None:
        inputs["export"] = made[making.of]
    if making.calibrated:
        inputs["tokens"] = rows_to_calibrate(folder / "tokens")
        values["calibration"] = {"rows": 8 if quick() else 32}
    if making.stage == "deploy.litert_export":
        values["lengths"] = _BUCKETS
    found = registry.find(making.stage)
    stage.execute(found, found.read(values), inputs, folder / form)
    return folder / form


def rows_to_calibrate(place: Path) -> Path:
    """Made-up text."""
    if not place.exists():
        table = random_documents.packed(random_documents.draw(128 * 80, _VOCABULARY), 128)
        random_documents.tokens_artifact(place, table, _VOCABULARY)
    return place


def measure(bert: Path, student: Path, exports: Sequence[Path], out: Path) -> artifact.Artifact:
    """Run the benchmark from the command line."""
    recipe = BenchmarkRecipe(
        models=("bert_base", "distilbert"), lengths=_LENGTHS, threads=(1,) if quick() else (1, "all"), repeats=_REPEATS
    )
    inputs = {"bert_base": bert, "distilbert": student}
    inputs |= {f"export-{place.name}": place for place in exports}
    made = stage.execute(STAGE, recipe, inputs, out)
    assert made is not None
    return made


def told(made: artifact.Artifact) -> Iterator[Row]:
    """Sizes, then for each workload the ratios and the fastest runtime."""
    found: list[dict[str, Any]] = made.facts["rows"]
    quiet = f"; not quiet: {made.facts['unfit']}" if made.facts["unfit"] else ""
    first = [row for row in found if (row["length"], row["threads"]) == (_LENGTHS[0], found[0]["threads"])]
    for row in first:
        yield Row(f"bytes_{_name(row)}", row["bytes"] / _MEGABYTE, "MB", f"{row['runtime']}, on disk")
    for (length, threads), group in itertools.groupby(found, key=lambda row: (row["length"], row["threads"])):
        timed = list(group)
        reference = next(row for row in timed if row["model"] == "bert_base")
        where = f"{length}_tokens_{threads}_thread{'' if threads == 1 else 's'}"
        for row in timed:
            detail = (
                f"{row['runtime']}: p50 {row['p50_ms']:.2f} ms (p90 {row['p90_ms']:.2f}, p99 {row['p99_ms']:.2f}, "
                f"{row['inputs']} times), first {row['first_ms']:.0f} ms, load {row['load_seconds']:.1f} s, peak "
                f"{row['peak_memory_bytes'] / _MEGABYTE:.0f} MB; BERT-base eager {reference['p50_ms']:.2f} ms{quiet}"
            )
            yield Row(f"latency_{_name(row)}_{where}", row["ratio_to_bert_base"], "ratio", detail)
        yield _ahead(where, timed)


def _ahead(where: str, timed: Sequence[dict[str, Any]]) -> Row:
    """The fastest format, and whether one reaches the goals for speed and size."""
    student = sorted((row for row in timed if row["model"] != "bert_base"), key=lambda row: float(row["p50_ms"]))
    best = student[0]
    wanted = [
        TITLES[row["form"]]
        for row in student
        if row["ratio_to_bert_base"] >= _WANTED and row["bytes"] <= _MOST_MEGABYTES * _MEGABYTE
    ]
    order = ", ".join(f"{TITLES[row['form']]} {row['p50_ms']:.2f} ms" for row in student)
    detail = (
        f"{TITLES[best['form']]} wins: {order}. At least {_WANTED:g} times BERT-base in at most "
        f"{_MOST_MEGABYTES:g} MB: {', '.join(wanted) or 'none'}"
    )
    return Row(f"latency_fastest_{where}", best["ratio_to_bert_base"], "ratio", detail)


def _name(row: dict[str, Any]) -> str:
    return "bert_base_pytorch" if row["model"] == "bert_base" else f"student_{row['form']}"
