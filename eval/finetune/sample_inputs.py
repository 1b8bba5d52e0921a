"""A few development examples to try a fine-tuned model on."""

from collections.abc import Iterator

from cluster.models.example_inputs import ExampleInput
from eval.tasks.definitions import Task
from eval.tasks.examples import Examples, TaskSplit
from eval.tasks.questions import Questions

COUNT = 6
CHARACTERS = 1200
"""Most characters of an example; longer ones are hard to read on a phone."""


def sample_inputs(task: Task, split: TaskSplit) -> list[ExampleInput]:
    """Up to :data:`COUNT` examples of a split in its order: different labels in turns, different passages."""
    found: list[ExampleInput] = []
    waiting = [one for one in _all(task, split) if len(one.text) + len(one.second or "") <= CHARACTERS and one.text]
    while waiting and len(found) < COUNT:
        # One of every label or passage, then the next of each.
        turn: dict[str | None, ExampleInput] = {}
        for one in waiting:
            turn.setdefault(one.second if task.answers else one.answer, one)
        found += turn.values()
        waiting = [one for one in waiting if one not in turn.values()]
    return found[:COUNT]


def _all(task: Task, split: TaskSplit) -> Iterator[ExampleInput]:
    split = split.sample(50 * COUNT)
    if isinstance(split, Questions):
        for question in split.items:
            yield ExampleInput(question.text, question.context, question.answers[0] if question.answers else "")
    elif isinstance(split, Examples):
        for *texts, label in zip(*split.texts, split.labels, strict=True):
            name = f"{label:g}" if task.label_range is not None else task.label_names[int(label)]
            yield ExampleInput(texts[0], texts[1] if len(texts) > 1 else None, name)
