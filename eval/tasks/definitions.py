"""The tasks a model is fine-tuned on, as data: what they read, how they are scored, how they are trained.

The nine tasks of GLUE (Wang et al. 2019), IMDb (Maas et al. 2011), SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) and
``provenance``, a task that :mod:`eval.provenance` makes out of any corpus. Scores follow the conventions of the
DistilBERT paper's table 1: Matthews for CoLA, the mean of accuracy and F1 for MRPC and QQP, the mean of Pearson and
Spearman for STS-B, else accuracy; MNLI's one number is the accuracy on the matched set, SQuAD's is F1, and the
mismatched set's accuracy and exact matches are recorded beside them.
"""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "exact"]


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
    answers: Literal["always", "sometimes"] | None = None
    """Of a task of questions: whether every passage holds an answer. What is learned is where it begins and ends."""
    hub: str | None = None
    """Its usual name on the hub; None where it is made here."""
    folders: tuple[str, ...] = ()
    """Names of the folder it is published in."""
    published: str | None = None
    """The version in the names of its published files."""
    headerless: tuple[str, ...] = ()
    """Columns of the task's TSV where it is published without a header."""
    broken_lines: bool = False
    """Whether its published TSV has a few lines cut in two, which everybody leaves out."""
    text_folders: tuple[str, ...] = ()
    """Where it is published as a file for each text: the folder of every label."""
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
        """Width of the head: for an answer, where it begins and where it ends."""
        return len(self.label_names) or (1 if self.answers is None else 2)

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
        hub="nyu-mll/glue:cola",
        folders=("CoLA",),
        columns=(("sentence",),),
        label_names=("unacceptable", "acceptable"),
        headerless=("source", "label", "mark", "sentence"),
        metrics=("matthews", "accuracy"),
        headline=("matthews",),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="sst2",
        hub="nyu-mll/glue:sst2",
        folders=("SST-2",),
        columns=(("sentence",),),
        label_names=("negative", "positive"),
    ),
    Task(
        name="mrpc",
        hub="nyu-mll/glue:mrpc",
        folders=("MRPC",),
        columns=(("sentence1", "#1 String"), ("sentence2", "#2 String")),
        label_names=("not_equivalent", "equivalent"),
        label_columns=("label", "Quality"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="stsb",
        hub="nyu-mll/glue:stsb",
        folders=("STS-B",),
        columns=(("sentence1",), ("sentence2",)),
        label_range=(0.0, 5.0),
        label_columns=("label", "score"),
        metrics=("pearson", "spearman"),
        headline=("pearson", "spearman"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="qqp",
        hub="nyu-mll/glue:qqp",
        folders=("QQP",),
        broken_lines=True,
        columns=(("question1",), ("question2",)),
        label_names=("not_duplicate", "duplicate"),
        label_columns=("label", "is_duplicate"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
    ),
    Task(
        name="mnli",
        hub="nyu-mll/glue:mnli",
        folders=("MNLI",),
        columns=(("premise", "sentence1"), ("hypothesis", "sentence2")),
        label_names=("entailment", "neutral", "contradiction"),
        label_columns=("label", "gold_label"),
        dev=(("dev_matched", "validation_matched"), ("dev_mismatched", "validation_mismatched")),
    ),
    Task(
        name="qnli",
        hub="nyu-mll/glue:qnli",
        folders=("QNLI",),
        columns=(("question",), ("sentence",)),
        label_names=("entailment", "not_entailment"),
    ),
    Task(
        name="rte",
        hub="nyu-mll/glue:rte",
        folders=("RTE",),
        columns=(("sentence1", "premise"), ("sentence2", "hypothesis")),
        label_names=("entailment", "not_entailment"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="wnli",
        hub="nyu-mll/glue:wnli",
        folders=("WNLI",),
        columns=(("sentence1",), ("sentence2",)),
        label_names=("not_entailment", "entailment"),
        epochs=SMALL_SET_EPOCHS,
        note="Development sentences stand in the training set with the opposite label: a model that learns something "
        "scores below the majority class.",
    ),
    Task(
        name="imdb",
        hub="stanfordnlp/imdb",
        folders=("aclImdb",),
        text_folders=("neg", "pos"),
        columns=(("text", "review", "sentence"),),
        label_names=("negative", "positive"),
        label_columns=("label", "sentiment"),
        dev=(("test",),),
        batch=16,
        max_length=512,
    ),
    Task(
        name="squad",
        columns=(("question",), ("context",)),
        answers="always",
        hub="rajpurkar/squad",
        folders=("SQuAD", "squad1.1", "v1.1"),
        published="1.1",
        metrics=("exact", "f1"),
        headline=("f1",),
        learning_rate=5e-5,
        max_length=384,
    ),
    Task(
        name="squad2",
        columns=(("question",), ("context",)),
        answers="sometimes",
        hub="rajpurkar/squad_v2",
        folders=("SQuAD2", "squad2.0", "v2.0"),
        published="2.0",
        metrics=("exact", "f1"),
        headline=("f1",),
        epochs=2,
        learning_rate=5e-5,
        batch=48,
        max_length=384,
    ),
    Task(name="provenance", columns=(("sentence",),), epochs=SMALL_SET_EPOCHS),
)

TASKS = {task.name: task for task in ALL_TASKS}
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
"""The nine tasks of the macro score, in the order of the paper's table."""
