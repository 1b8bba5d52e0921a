"""A small output folder of a pipeline with random models, for tests of the page that asks them."""

import shutil
from pathlib import Path
from typing import Any

import model_exports
import models_with_heads
import pyarrow as pa
import pyarrow.parquet as pq
import tiny

from cluster.artifacts import artifact
from cluster.models import example_inputs
from cluster.models.example_inputs import ExampleInput

SST2 = [ExampleInput("The mill ground barley.", None, "good"), ExampleInput("The copper still leaks.", None, "bad")]
SQUAD = [ExampleInput("What was ground?", "The mill by the river has ground barley.", "barley")]
LABELS = ("bad", "good")
HIDDEN = "The old mill by the river has ground barley since spring."
"""The second sentence of every document; "barley" is one token of the tiny tokenizer."""


def made(out: Path, kind: str, source: Path, inputs: dict[str, str] | None = None, **facts: Any) -> artifact.Artifact:
    """An artifact with the files of a model folder."""
    with artifact.create(out, kind=kind, inputs=inputs or {}, recipe={}) as draft:
        shutil.copytree(source, draft.path, dirs_exist_ok=True)
        draft.facts.update(facts)
    return artifact.read(out)


def tuned(out: Path, model: artifact.Artifact | None, source: Path, task: str, **facts: Any) -> artifact.Artifact:
    """A fine-tuned model as ``eval.finetune`` makes it."""
    inputs = {} if model is None else {"model": model.identity}
    known = {"train_examples": 180, "dev_examples": 60, "metric": "accuracy", "score": 91.5, "second_step": None}
    return made(out, "finetune", source, inputs, task=task, texts=2 if task == "mrpc" else 1, **{**known, **facts})


def text(out: Path) -> None:
    """A corpus and its tokens, half of whose documents are held out."""
    with artifact.create(out / "corpus", kind="corpus", inputs={}, recipe={}) as draft:
        texts = [f"Document {number} begins. {HIDDEN}" for number in range(40)]
        table = pa.table({"text": pa.array(texts, pa.large_string())})
        pq.write_table(table, draft.path / "documents-00000.parquet")
    with artifact.create(out / "tokens", kind="tokens", inputs={}, recipe={"heldout": "auto"}) as draft:
        draft.facts["heldout_share"] = 0.5


def pipeline(out: Path) -> Path:
    """Teacher, student and an ablation; both fine-tuned on sst2, mrpc and squad; ONNX exports of sst2; text."""
    work = out / ".work"
    base = {
        "teacher": made(out / "teacher", "teacher", tiny.bert_teacher(work / "bert", layers=2)),
        "student": made(out / "students" / "student", "student", _distilbert(work / "distilbert")),
    }
    made(out / "students" / "another", "student", work / "distilbert", {"run": "another"})
    for role, family in (("teacher", "bert"), ("student", "distilbert")):
        for task, head in (("sst2", "classification"), ("mrpc", "classification"), ("squad", "question-answering")):
            labels = LABELS if head == "classification" else None
            model = models_with_heads.model_folder(work / role / task, family, head, labels=labels)
            if task != "mrpc":
                example_inputs.write(model, SST2 if task == "sst2" else SQUAD)
            tuned(out / "finetune" / role / task, base[role], model, task)
        model_exports.onnx(out / "finetune" / role / "sst2", out / "exports" / role / "onnx")
    text(out)
    return out


def _distilbert(folder: Path) -> Path:
    return tiny.distilbert(folder, layers=1)
