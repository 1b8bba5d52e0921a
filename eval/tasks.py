"""The tasks a model is fine-tuned on, as data: what they read, how they are scored, how they are trained.

The nine tasks of GLUE (Wang et al. 2019), IMDb (Maas et al. 2011) and ``provenance``, a task that
:mod:`eval.provenance` makes out of any corpus. Scores follow the conventions of the DistilBERT paper's table 1:
Matthews for CoLA, the mean of accuracy and F1 for MRPC and QQP, the mean of Pearson and Spearman for STS-B, else
accuracy; MNLI's one number is the accuracy on the matched set, the mismatched one is recorded beside it.
"""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@dataclass(frozen=True)
class Task:
    """One row of the table. ``version`` goes up whenever a change here changes scores."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    """For each text (one, or two for a pair) the column names it may have, the usual one first."""
    label_names: tuple[str, ...] = ()
    """Names in the order of their numbers. Empty where labels are scores, or where the data brings the names."""
    label_range: tuple[float, float] | None = None
    """Lowest and highest score of a regression task; None for classes."""
    label_columns: tuple[str, ...] = ("label",)
    headerless: tuple[str, ...] = ()
    """Columns of the task's TSV where it is published without a header."""
    train: tuple[str, ...] = ("train",)
    dev: tuple[tuple[str, ...], ...] = (("dev", "validation"),)
    """For each set to score on, the names its split may have; the first set gives the headline."""
    metrics: tuple[Metric, ...] = ("accuracy",)
    headline: tuple[Metric, ...] = ("accuracy",)
    """The metrics whose mean is the task's one number."""
    epochs: int = 3
    learning_rate: float = 3e-5
    batch: int = 32
    max_length: int = 128
    version: int = 1
    note: str | None = None
    """What a reader of its score must know."""

    @property
    def outputs(self) -> int:
        """Width of the classification head."""
        return len(self.label_names) or 1

    @property
    def headline_name(self) -> str:
        """Name of the headline among the metrics: ``matthews``, ``accuracy_f1``."""
        return "_".join(self.headline)

    @property
    def metric(self) -> str:
        """What the headline is called."""
        return self.headline[0] if len(self.headline) == 1 else f"mean of {' and '.join(self.headline)}"


# Small sets need more passes than the usual 3: with 3 the head of RTE or WNLI has seen some 200 steps in all.
SMALL_SET_EPOCHS = 5

ALL_TASKS = (
    Task(
        name="cola",
        columns=(("sentence",),),
        label_names=("unacceptable", "acceptable"),
        headerless=("source", "label", "mark", "sentence"),
        metrics=("matthews", "accuracy"),
        headline=("matthews",),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(name="sst2", columns=(("sentence",),), label_names=("negative", "positive")),
    Task(
        name="mrpc",
        columns=(("sentence1", "#1 String"), ("sentence2", "#2 String")),
        label_names=("not_equivalent", "equivalent"),
        label_columns=("label", "Quality"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="stsb",
        columns=(("sentence1",), ("sentence2",)),
        label_range=(0.0, 5.0),
        label_columns=("label", "score"),
        metrics=("pearson", "spearman"),
        headline=("pearson", "spearman"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="qqp",
        columns=(("question1",), ("question2",)),
        label_names=("not_duplicate", "duplicate"),
        label_columns=("label", "is_duplicate"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
    ),
    Task(
        name="mnli",
        columns=(("premise", "sentence1"), ("hypothesis", "sentence2")),
        label_names=("entailment", "neutral", "contradiction"),
        label_columns=("label", "gold_label"),
        dev=(("dev_matched", "validation_matched"), ("dev_mismatched", "validation_mismatched")),
    ),
    Task(
        name="qnli",
        columns=(("question",), ("sentence",)),
        label_names=("entailment", "not_entailment"),
    ),
    Task(
        name="rte",
        columns=(("sentence1", "premise"), ("sentence2", "hypothesis")),
        label_names=("entailment", "not_entailment"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="wnli",
        columns=(("sentence1",), ("sentence2",)),
        label_names=("not_entailment", "entailment"),
        epochs=SMALL_SET_EPOCHS,
        note="Development sentences stand in the training set with the opposite label: a model that learns something "
        "scores below the majority class.",
    ),
    Task(
        name="imdb",
        columns=(("text", "review", "sentence"),),
        label_names=("negative", "positive"),
        label_columns=("label", "sentiment"),
        dev=(("test",),),
        batch=16,
        max_length=512,
    ),
    Task(name="provenance", columns=(("sentence",),), epochs=SMALL_SET_EPOCHS),
)

TASKS = {task.name: task for task in ALL_TASKS}
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
"""The nine tasks of the macro score, in the order of the paper's table."""
