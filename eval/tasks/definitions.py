"""The tasks as data: columns, labels, metrics and training defaults.

The nine tasks of GLUE (Wang et al. 2019), IMDb (Maas et al. 2011), SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) and
two that are made from any corpus, by :mod:`eval.tasks.provenance` and :mod:`eval.tasks.word_order`. Headline scores
follow table 1 of the DistilBERT paper: Matthews for CoLA, the mean of accuracy and F1 for MRPC and QQP, the mean of
Pearson and Spearman for STS-B, F1 for SQuAD, else accuracy (MNLI: on the matched set).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from cluster.artifacts.recipe_errors import EXAMPLE, nearest

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman", "exact"]


@dataclass(frozen=True)
class Task:
    """One task. Raise ``version`` with every change here that changes scores."""

    name: str
    columns: tuple[tuple[str, ...], ...]
    """For each text (two for a pair) its possible column names, the usual one first."""
    label_names: tuple[str, ...] = ()
    """Names in the order of their numbers; empty for regression, and where the data has the names."""
    label_range: tuple[float, float] | None = None
    """Lowest and highest score of a regression task; None for classes."""
    label_columns: tuple[str, ...] = ("label",)
    answers: Literal["always", "sometimes"] | None = None
    """For question answering: whether every passage holds an answer."""
    hub: str | None = None
    """Name on the Hugging Face hub; None for a task made here."""
    made_by: str | None = None
    """The stage that makes the task from a corpus."""
    folders: tuple[str, ...] = ()
    """Names of the folder it is published in."""
    published: str | None = None
    """Version in the names of its published files."""
    headerless: tuple[str, ...] = ()
    """Columns of its TSV, where that is published without a header."""
    broken_lines: bool = False
    """Whether its published TSV has a few lines cut in two, which the usual readers skip."""
    text_folders: tuple[str, ...] = ()
    """Folder of each label, where it is published as one file per text."""
    train: tuple[str, ...] = ("train",)
    dev: tuple[tuple[str, ...], ...] = (("dev", "valid", "val", "validation"),)
    """For each development set the possible names of its split, the Hub's last; the first set gives the headline."""
    metrics: tuple[Metric, ...] = ("accuracy",)
    headline: tuple[Metric, ...] = ("accuracy",)
    """The metrics whose mean is the task's score."""
    epochs: int = 3
    learning_rate: float = 3e-5
    batch: int = 32
    max_length: int = 128
    version: int = 1
    note: str | None = None
    """What a reader of the score must know."""

    @property
    def outputs(self) -> int:
        """Width of the head: classes, 1 score, or begin and end of an answer."""
        return len(self.label_names) or (1 if self.answers is None else 2)

    @property
    def command(self) -> str:
        """The command that makes the task from a corpus."""
        assert self.made_by is not None
        return self.made_by.rpartition(".")[2].replace("_", "-")

    @property
    def headline_name(self) -> str:
        """Key of the headline among the metrics: ``matthews``, ``accuracy_f1``."""
        return "_".join(self.headline)

    @property
    def metric(self) -> str:
        """Title of the headline."""
        return self.headline[0] if len(self.headline) == 1 else f"mean of {' and '.join(self.headline)}"


# Small sets need more than the usual 3 epochs: 3 epochs of RTE or WNLI are only some 200 steps.
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
        columns=(("sentence1", "#1 String", "text1"), ("sentence2", "#2 String", "text2")),
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
        columns=(("sentence1", "text1"), ("sentence2", "text2")),
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
        columns=(("question1", "text1"), ("question2", "text2")),
        label_names=("not_duplicate", "duplicate"),
        label_columns=("label", "is_duplicate"),
        metrics=("accuracy", "f1"),
        headline=("accuracy", "f1"),
    ),
    Task(
        name="mnli",
        hub="nyu-mll/glue:mnli",
        folders=("MNLI",),
        columns=(("premise", "sentence1", "text1"), ("hypothesis", "sentence2", "text2")),
        label_names=("entailment", "neutral", "contradiction"),
        label_columns=("label", "gold_label"),
        dev=(
            ("dev_matched", "valid_matched", "val_matched", "validation_matched"),
            ("dev_mismatched", "valid_mismatched", "val_mismatched", "validation_mismatched"),
        ),
    ),
    Task(
        name="qnli",
        hub="nyu-mll/glue:qnli",
        folders=("QNLI",),
        columns=(("question", "text1"), ("sentence", "text2")),
        label_names=("entailment", "not_entailment"),
    ),
    Task(
        name="rte",
        hub="nyu-mll/glue:rte",
        folders=("RTE",),
        columns=(("sentence1", "premise", "text1"), ("sentence2", "hypothesis", "text2")),
        label_names=("entailment", "not_entailment"),
        epochs=SMALL_SET_EPOCHS,
    ),
    Task(
        name="wnli",
        hub="nyu-mll/glue:wnli",
        folders=("WNLI",),
        columns=(("sentence1", "premise", "text1"), ("sentence2", "hypothesis", "text2")),
        label_names=("not_entailment", "entailment"),
        epochs=SMALL_SET_EPOCHS,
        note="The training set has the development sentences with the opposite label: a model that learns something "
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
    Task(name="provenance", columns=(("sentence",),), epochs=SMALL_SET_EPOCHS, made_by="eval.provenance"),
    Task(name="word_order", columns=(("sentence",),), epochs=SMALL_SET_EPOCHS, made_by="eval.word_order"),
)

TASKS = {task.name: task for task in ALL_TASKS}
MADE_HERE = {task.name: task.made_by for task in ALL_TASKS if task.made_by}
"""Tasks that are made from a corpus, with the stages that make them."""
GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
"""The nine tasks of the macro score, in the order of the paper's table."""


def known(name: str) -> str:
    """The name of a task.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        near = nearest(name, TASKS)
        hint = f"did you mean {near}?" if near else f"write one of {', '.join(TASKS)}"
        raise ValueError(f"no task {name}: {hint}")
    return name


TaskName: TypeAlias = Annotated[str, AfterValidator(known), Field(json_schema_extra={EXAMPLE: 'task = "rte"'})]
"""A recipe's key of :data:`TASKS`."""
