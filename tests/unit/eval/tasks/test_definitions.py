"""The table of tasks agrees with the papers' conventions and the data's label codes."""

import pytest

from eval.tasks.definitions import ALL_TASKS, GLUE, TASKS, Task


def test_the_nine_glue_tasks_and_ours_are_there_once() -> None:
    assert len(TASKS) == len(ALL_TASKS)
    assert set(TASKS) == {*GLUE, "imdb", "squad", "squad2", "provenance", "word_order"}
    assert len(GLUE) == 9


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("cola", "matthews"),
        ("mnli", "accuracy"),
        ("mrpc", "mean of accuracy and f1"),
        ("qnli", "accuracy"),
        ("qqp", "mean of accuracy and f1"),
        ("rte", "accuracy"),
        ("sst2", "accuracy"),
        ("stsb", "mean of pearson and spearman"),
        ("wnli", "accuracy"),
        ("imdb", "accuracy"),
        ("squad", "f1"),
        ("squad2", "f1"),
    ],
)
def test_headlines_follow_the_paper(name: str, metric: str) -> None:
    assert TASKS[name].metric == metric


def test_label_codes_are_the_usual_ones() -> None:
    # WNLI's labels are opposite to those of RTE and QNLI: scores near chance would hide a mix-up.
    assert TASKS["rte"].label_names == TASKS["qnli"].label_names == ("entailment", "not_entailment")
    assert TASKS["wnli"].label_names == ("not_entailment", "entailment")
    assert TASKS["mnli"].label_names == ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_every_row_is_consistent(task: Task) -> None:
    assert set(task.headline) <= set(task.metrics)
    assert len(task.columns) in {1, 2}
    assert task.label_range is None or not task.label_names
    of_classes = 1 if task.label_range is not None or task.made_by else len(task.label_names)
    assert task.outputs == (of_classes if task.answers is None else 2)
    accepted = [name for names in (*task.columns, task.label_columns) for name in names]
    assert len(accepted) == len(set(accepted)), "one column name would be read for two things"
