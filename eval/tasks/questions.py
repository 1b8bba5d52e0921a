"""Questions about passages, as SQuAD asks them: read, checked one by one, sampled.

Rajpurkar et al. 2016 and 2018. An answer is a piece of its passage; in SQuAD 2.0 a question may have none.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.tasks.definitions import Task
from eval.tasks.file_readers import ExamplesError, SourceTable
from eval.tasks.layouts import SUBSET, Splits, hub, local


@dataclass(frozen=True)
class Question:
    """One question, and the answers that people gave: text and place in ``context``, in characters."""

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Questions:
    """One split, and the files it came from."""

    files: tuple[str, ...]
    items: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def is_subset(self) -> bool:
        return any(map(SUBSET.search, self.files))

    def sample(self, limit: int | None) -> "Questions":
        """At most ``limit`` questions, the same ones for everybody."""
        if limit is None or limit >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(0).permutation(len(self))[:limit])
        return Questions(self.files, tuple(self.items[row] for row in chosen))


@dataclass(frozen=True)
class QuestionData:
    """A task of questions: those to learn from, and those to score on."""

    task: Task
    train: Questions
    dev: Questions

    def sample(self, train_limit: int | None, dev_limit: int | None) -> "QuestionData":
        """At most so many questions of each set."""
        return QuestionData(self.task, self.train.sample(train_limit), self.dev.sample(dev_limit))


def questions_from_folder(task: Task, folder: Path) -> QuestionData:
    """Both splits from local files.

    Raises:
        ExamplesError: a split is not there, or a question or answer is not what the task says.
    """
    return _data(task, local(task, folder))


def dev_questions_from_folder(task: Task, folder: Path) -> Questions:
    """The questions to score on alone.

    Raises:
        ExamplesError: as :func:`questions_from_folder`.
    """
    return _questions(task, local(task, folder)(task.dev[0]))


def questions_from_hub(task: Task, name: str) -> QuestionData:
    """Both splits from the hub (``rajpurkar/squad``).

    Raises:
        ExamplesError: it cannot be fetched, or as :func:`questions_from_folder`.
    """
    return _data(task, hub(task, name))


def _data(task: Task, splits: Splits) -> QuestionData:
    return QuestionData(task, _questions(task, splits(task.train)), _questions(task, splits(task.dev[0])))


def _questions(task: Task, tables: list[SourceTable]) -> Questions:
    items = tuple(question for table in tables for question in _rows(task, table))
    if not items:
        raise ExamplesError(f"{tables[0].where} has no questions: give one with some")
    if len({question.id for question in items}) != len(items):
        raise ExamplesError(f"{tables[0].where} has an id twice: answers are told apart by the ids of their questions")
    return Questions(tuple(table.name for table in tables), items)


def _rows(task: Task, table: SourceTable) -> Iterator[Question]:
    names = ("id", "question", "context", "answers")
    if not table.columns:
        raise ExamplesError(f"{table.where} is empty: get it again")
    if lacking := [name for name in names if name not in table.columns]:
        raise ExamplesError(f"{table.where}: no column {lacking[0]} among {', '.join(table.columns)}: add it")
    contexts: dict[str, str] = {}
    for number, (name, text, context, answers) in enumerate(zip(*(table.columns[name] for name in names), strict=True)):
        try:
            _check_texts(name, text, context)
            # Some five questions share a passage: one copy of it is kept.
            yield _question(task, name, text, contexts.setdefault(context, context), answers)
        except ExamplesError as error:
            raise ExamplesError(f"{table.place(number)} ({name}): {error}") from None


def _check_texts(*values: Any) -> None:
    for value in values:
        if not isinstance(value, str):
            raise ExamplesError(f"id, question and context are texts, one is {value!r}: mend it or drop the question")


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
            found = context[start : start + len(answer)]
            raise ExamplesError(f"the answer {answer!r} is not at {start}, where {found!r} stands: mend answer_start")
    return Question(name, text, context, texts, starts)
