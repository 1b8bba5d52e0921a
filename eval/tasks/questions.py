"""Questions about passages in SQuAD's form: read, and checked one by one.

Rajpurkar et al. 2016 and 2018. An answer is a part of its passage; in SQuAD 2.0 a question may have no answer.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from eval.tasks.definitions import Task
from eval.tasks.examples import TaskData, TaskSplit
from eval.tasks.file_readers import ExamplesError, SourceTable
from eval.tasks.layouts import hub, local


@dataclass(frozen=True)
class Question:
    """One question with the reference answers: texts, and first characters in ``context``."""

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Questions(TaskSplit):
    """One split of questions."""

    items: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, rows: Sequence[int]) -> Self:
        return dataclasses.replace(self, items=tuple(self.items[row] for row in rows))


def questions_from_folder(task: Task, folder: Path) -> TaskData[Questions]:
    """Both splits from local files.

    Raises:
        ExamplesError: a split is missing, or a question or answer is malformed.
    """
    return TaskData.read(task, local(task, folder), _questions)


def dev_questions_from_folder(task: Task, folder: Path) -> Questions:
    """The development set alone.

    Raises:
        ExamplesError: as :func:`questions_from_folder`.
    """
    return _questions(task, local(task, folder)(task.dev[0]))


def questions_from_hub(task: Task, name: str) -> TaskData[Questions]:
    """Both splits from the hub (``rajpurkar/squad``).

    Raises:
        ExamplesError: the data set cannot be fetched, or as :func:`questions_from_folder`.
    """
    return TaskData.read(task, hub(task, name), _questions)


def _questions(task: Task, tables: Sequence[SourceTable]) -> Questions:
    items = tuple(question for table in tables for question in _rows(task, table))
    if not items:
        raise ExamplesError(f"{tables[0].where} has no questions: give a file with questions")
    name, count = Counter(question.id for question in items).most_common(1)[0]
    if count > 1:
        raise ExamplesError(f"{tables[0].where} has an id twice, {name}: give every question its own id")
    return Questions(tuple(table.name for table in tables), items)


def _rows(task: Task, table: SourceTable) -> Iterator[Question]:
    names = ("id", "question", "context", "answers")
    if not table.columns:
        raise ExamplesError(f"{table.where} is empty: give a file with rows")
    if lacking := [name for name in names if name not in table.columns]:
        raise ExamplesError(f"{table.where}: no column {lacking[0]} among {', '.join(table.columns)}: add it")
    contexts: dict[str, str] = {}
    for number, (name, text, context, answers) in enumerate(zip(*(table.columns[name] for name in names), strict=True)):
        try:
            for value in (name, text, context):
                if not isinstance(value, str):
                    raise ExamplesError(
                        f"id, question or context is {value!r}, not text: correct it or drop the question"
                    )
            # About five questions share a passage: keep one copy.
            yield _question(task, name, text, contexts.setdefault(context, context), answers)
        except ExamplesError as error:
            raise ExamplesError(f"{table.place(number)} ({name}): {error}") from None


def _question(task: Task, name: str, text: str, context: str, answers: Any) -> Question:
    if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= set(answers):
        raise ExamplesError('answers is not {"text": [...], "answer_start": [...]}: write it so')
    texts, starts = (tuple(answers[key] or ()) for key in ("text", "answer_start"))
    pairs = list(itertools.zip_longest(texts, starts))
    if not all(isinstance(text, str) and isinstance(start, int) for text, start in pairs):
        raise ExamplesError(
            f"the answers {list(texts)} have the places {list(starts)}: write a text and its place for each"
        )
    if not texts and task.answers == "always":
        raise ExamplesError('has no answer, as only SQuAD 2.0 allows: set task = "squad2"')
    for answer, start in pairs:
        if context[start : start + len(answer)] != answer:
            there = context[start : start + len(answer)]
            raise ExamplesError(
                f"the answer {answer!r} is not at {start}, the passage has {there!r} there: correct answer_start"
            )
    return Question(name, text, context, texts, starts)
