"""Matches labels by their names: those of a data set or a model with those of a task."""

import re
from collections.abc import Mapping, Sequence

from eval.tasks.definitions import Task

OTHER_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "negative": ("neg",),
    "positive": ("pos",),
    "entailment": ("entail", "entails", "entailed"),
    "contradiction": ("contradict", "contradicts", "contradictory"),
    "notentailment": ("nonentailment",),
    "equivalent": ("paraphrase", "true"),
    "notequivalent": ("notparaphrase", "nonparaphrase", "false"),
    "duplicate": ("true",),
    "notduplicate": ("nonduplicate", "false"),
    "acceptable": ("grammatical",),
    "unacceptable": ("ungrammatical",),
}
"""A task's label name to the spellings of published data sets and models, both as :func:`_folded`."""

_UNNAMED = re.compile(r"(?:label[ _-]?)?(\d+)", re.IGNORECASE)


def unnamed(name: str) -> int | None:
    """The number in a name that is only a number, as transformers' ``LABEL_0``; None for a real name."""
    match = _UNNAMED.fullmatch(name.strip())
    return None if match is None else int(match[1])


def class_named(task: Task, name: str) -> int | None:
    """The class with this name in the task, without regard to case, hyphens and known spellings; None without one."""
    if name in task.label_names:
        return task.label_names.index(name)
    wanted = _folded(name)
    known = [_folded(each) for each in task.label_names]
    found = [number for number, each in enumerate(known) if wanted in (each, *OTHER_SPELLINGS.get(each, ()))]
    return found[0] if len(found) == 1 else None


def classes_named(task: Task, names: Sequence[str]) -> tuple[int, ...] | None:
    """The task's class of each name; None unless they are exactly the names of its classes, in any order."""
    found = [class_named(task, name) for name in names]
    known = tuple(each for each in found if each is not None)
    return known if sorted(known) == list(range(len(task.label_names))) and len(known) == len(found) else None


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
