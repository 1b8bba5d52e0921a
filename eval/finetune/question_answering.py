"""Questions about passages: what a head that finds answers learns, and how its answers are measured."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.models.span_decoding import Floats, Span, Window, probabilities
from cluster.storage.filesystem import write_json
from cluster.tokens.tokenizer import vocabulary_digest
from eval.finetune.answer_spans import AnswerCandidates, SpanLoss, Windows, decode, encode_questions, targets
from eval.finetune.batching import Features, Inputs, Rows
from eval.finetune.task_distillation import Teaching
from eval.finetune.task_model import ModelError, TaskSource, device, span_logits, start, trained
from eval.finetune.trainer import outputs
from eval.tasks.definitions import Task
from eval.tasks.questions import QuestionData, Questions
from eval.tasks.squad_metrics import Answered, scores_always, scores_sometimes

PREDICTIONS = "predictions.json"
NBEST = "nbest_predictions.json"
NULL_ODDS = "null_odds.json"


@dataclass(frozen=True)
class Answering:
    """A task of questions, encoded for one model: what :mod:`eval.finetune.trainer` trains and the stage reports."""

    source: TaskSource
    data: QuestionData
    encoded: Windows
    dev: Windows
    loss: SpanLoss

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def parts(self) -> tuple[Questions, ...]:
        return (self.data.train, self.data.dev)

    @property
    def train(self) -> Features:
        return self.encoded.features

    @property
    def units(self) -> Rows:
        """The question of each row: windows of one passage say the same."""
        return self.encoded.questions

    def start(self, seed: int) -> Any:
        """The model before training, its head drawn from the seed."""
        return start(self.source, self.task, seed)

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        return span_logits(model, inputs)

    def measure(self, model: Any, micro_batch: int, folder: Path) -> dict[str, float]:
        """All metrics in percent; the answers are written beside the model."""
        found = answer(model, self.dev, self.data.dev, micro_batch)
        answered = _answered(self.data.dev, found)
        names = [question.id for question in self.data.dev.items]
        silent = self.task.answers == "sometimes"
        said = ["" if silent and each.null_difference > 0.0 else each.best for each in answered]
        write_json(folder / PREDICTIONS, dict(zip(names, said, strict=True)))
        write_json(folder / NBEST, {name: _listed(each, silent) for name, each in zip(names, found, strict=True)})
        if silent:
            odds = {name: each.null_difference for name, each in zip(names, answered, strict=True)}
            write_json(folder / NULL_ODDS, odds)
        return scored(self.task, self.data.dev, found)

    def majority(self) -> float:
        """Score of never giving an answer, in percent."""
        return 100.0 * sum(not question.answers for question in self.data.dev.items) / len(self.data.dev)


def prepare_questions(
    source: TaskSource, data: QuestionData, max_length: int, stride: int, teaching: Teaching | None
) -> Answering:
    """Encode a task of questions for a model, and ask the teacher, who must read the very same tokens.

    Raises:
        ModelError: the teacher has another vocabulary, reads less, or lacks weights; or a question leaves no room.
    """
    train, dev = (
        _on_device(encode_questions(source.tokenizer, part.items, max_length, stride))
        for part in (data.train, data.dev)
    )
    taught = None
    if teaching is not None:
        _check_teacher(source, teaching.teacher, max_length)
        read = _as_read_by(teaching.teacher, train, data.train, max_length, stride)
        taught = _teach(trained(teaching.teacher, data.task), read, teaching.micro_batch)
    places = torch.from_numpy(targets(train, data.train.items)).to(device())
    loss = SpanLoss(train.features, places, taught, None if teaching is None else teaching.step)
    return Answering(source, data, train, dev, loss)


def answer(model: Any, encoded: Windows, questions: Questions, micro_batch: int) -> list[AnswerCandidates]:
    """What the model finds for each question."""
    return found_in(encoded, questions, outputs(model, span_logits, encoded.features, micro_batch, "answers"))


def found_in(encoded: Windows, questions: Questions, batches: Iterable[tuple[Rows, Tensor]]) -> list[AnswerCandidates]:
    """What logits ``[rows, 2, longest]``, batch by batch, say to each question."""
    seen: list[list[tuple[Window, Floats]]] = [[] for _ in questions.items]
    for rows, logits in batches:
        for row, of_row in zip(rows, logits.cpu().numpy(), strict=True):
            window = encoded.windows[row]
            seen[window.question].append((window, of_row))
    return [decode(question, of_question) for question, of_question in zip(questions.items, seen, strict=True)]


def scored(task: Task, questions: Questions, found: Sequence[AnswerCandidates]) -> dict[str, float]:
    """All metrics in percent."""
    return (scores_sometimes if task.answers == "sometimes" else scores_always)(_answered(questions, found))


def _answered(questions: Questions, found: Sequence[AnswerCandidates]) -> list[Answered]:
    return [
        Answered(each.spans[0].text if each.spans else "", each.null_difference, question.answers)
        for question, each in zip(questions.items, found, strict=True)
    ]


def _check_teacher(source: TaskSource, teacher: TaskSource, max_length: int) -> None:
    if vocabulary_digest(source.tokenizer) != vocabulary_digest(teacher.tokenizer):
        raise ModelError(
            f"{teacher.path} has another vocabulary than {source.path}: a teacher of answers says which tokens they "
            "begin and end with, so give one that reads the same tokens"
        )
    if teacher.positions < max_length:
        raise ModelError(f"max_length = {max_length}, but the teacher reads {teacher.positions} tokens: lower it")


def _as_read_by(teacher: TaskSource, train: Windows, questions: Questions, max_length: int, stride: int) -> Features:
    """The student's rows as the teacher's own tokenizer makes them: only it knows whether a BERT is told token types.

    Raises:
        ModelError: it makes other tokens of the same texts.
    """
    read = _on_device(encode_questions(teacher.tokenizer, questions.items, max_length, stride)).features
    if not torch.equal(read.ids, train.features.ids):
        raise ModelError(
            f"{teacher.path} has the student's vocabulary, but its tokenizer splits the texts otherwise: a teacher of "
            "answers must read the same tokens, so give one with the same settings (lower case, accents)"
        )
    return read


def _teach(teacher: Any, features: Features, micro_batch: int) -> Tensor:
    """Its logits for every token, ``[tokens, 2]``."""
    taught = torch.empty((len(features.ids), 2), device=features.ids.device)
    for rows, logits in outputs(teacher, span_logits, features, micro_batch, "teacher's logits"):
        places, real = features.places(rows)
        taught[places[real]] = logits.transpose(1, 2)[real]
    return taught


def _on_device(found: Windows) -> Windows:
    return Windows(found.features.to(device()), found.windows)


def _listed(found: AnswerCandidates, silent: bool) -> list[dict[str, Any]]:
    """The best answers, the best one first; nothing is one of them where it may be the answer, and begins nowhere."""
    nothing = [Span("", found.null, -1, -1)] if silent else []
    best = sorted([*found.spans, *nothing], key=lambda span: -span.logit)
    return [
        {"text": span.text, "probability": share, "logit": span.logit, "begin": span.begin if span.text else None}
        for span, share in zip(best, probabilities(best), strict=True)
    ]
