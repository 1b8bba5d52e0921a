"""What the Hugging Face Hub calls the sets of examples that models are scored on, and the metrics."""

from dataclasses import dataclass

from eval.paper import key

METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "exact": "exact_match",
}
"""Our names of metrics to the Hub's, where they differ."""

_MISMATCHED = "mismatched_"


@dataclass(frozen=True)
class ScoredSet:
    """A set of examples and a metric, by the Hub's names; ``dataset`` is the task's own name where the Hub has none."""

    task_type: str
    title: str
    dataset: str
    configuration: str | None
    split: str
    metric: str


_GLUE = {
    "cola": "CoLA",
    "mnli": "MNLI",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "wnli": "WNLI",
}
_OTHERS = {
    "imdb": ("text-classification", "IMDb", "stanfordnlp/imdb", "test"),
    "squad": ("question-answering", "SQuAD 1.1", "rajpurkar/squad", "validation"),
    "squad2": ("question-answering", "SQuAD 2.0", "rajpurkar/squad_v2", "validation"),
}


def scored_set(task: str, metric: str) -> ScoredSet:
    """The set of examples behind a task's metric."""
    name = key(task)
    plain = metric.removeprefix(_MISMATCHED)
    if name in _GLUE:
        split = "validation"
        if name == "mnli":
            split = "validation_matched" if plain == metric else "validation_mismatched"
        return ScoredSet("text-classification", f"GLUE {_GLUE[name]}", "nyu-mll/glue", name, split, plain)
    if name in _OTHERS:
        kind, title, dataset, split = _OTHERS[name]
        return ScoredSet(kind, title, dataset, None, split, plain)
    return ScoredSet("text-classification", task, task, None, "dev", plain)
