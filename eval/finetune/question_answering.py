"""Question answering: encoding, teacher's logits, answers and metrics."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cluster.models.span_decoding import NULL_THRESHOLD, AnswerCandidates, Floats, Window, candidates
from cluster.storage.filesystem import write_json
from cluster.tokens.tokenizer import vocabulary_digest
from eval.finetune.answer_spans import SpanLoss, Windows, encode_questions, targets
from eval.finetune.batching import Features, Inputs, Rows
from eval.finetune.layer_step import LayerTeaching
from eval.finetune.task_distillation import Teaching, layer_teaching
from eval.finetune.task_model import ModelError, TaskSource, device, load_trained, span_logits, start
from eval.finetune.trainer import outputs
from eval.tasks import per_example
from eval.tasks.definitions import Task
from eval.tasks.examples import TaskData
from eval.tasks.questions import Questions
from eval.tasks.squad_metrics import AnswerPrediction, scores_always, scores_sometimes, values_always, values_sometimes

PREDICTIONS = "predictions.json"
NBEST = "nbest_predictions.json"
NULL_ODDS = "null_odds.json"


@dataclass(frozen=True)
class Answering:
    """A task of questions, encoded for one model; a :class:`~eval.finetune.trainer.TaskProblem`."""

    source: TaskSource
    data: TaskData[Questions]
    encoded: Windows
    dev: Windows
    loss: SpanLoss
    layers: LayerTeaching | None

    @property
    def task(self) -> Task:
        return self.data.task

    @property
    def splits(self) -> tuple[Questions, ...]:
        return (self.data.train, *self.data.dev)

    @property
    def questions(self) -> Questions:
        """The development set."""
        return self.data.dev[0]

    @property
    def train(self) -> Features:
        return self.encoded.features

    @property
    def units(self) -> Rows:
        return self.encoded.questions

    def start(self, seed: int) -> Any:
        return start(self.source, self.task, seed)

    def forward(self, model: Any, inputs: Inputs) -> Tensor:
        return span_logits(model, inputs)

    def measure(self, model: Any, micro_batch: int, folder: Path) -> dict[str, float]:
        found = answer(model, self.dev, self.questions, micro_batch)
        answers = _predictions(self.questions, found)
        ids = [question.id for question in self.questions.items]
        nullable = self.task.answers == "sometimes"
        texts = ["" if nullable and each.null_difference > NULL_THRESHOLD else each.best for each in answers]
        write_json(folder / PREDICTIONS, dict(zip(ids, texts, strict=True)))
        write_json(folder / NBEST, {name: _listed(each, nullable) for name, each in zip(ids, found, strict=True)})
        if nullable:
            odds = {name: each.null_difference for name, each in zip(ids, answers, strict=True)}
            write_json(folder / NULL_ODDS, odds)
        values = (values_sometimes if nullable else values_always)(answers)
        per_example.write(folder, per_example.with_headline(self.task, values))
        return scored(self.task, self.questions, found)

    def majority(self) -> float:
        # The constant prediction is no answer.
        return 100.0 * sum(not question.answers for question in self.questions.items) / len(self.questions)


def prepare_questions(
    source: TaskSource, data: TaskData[Questions], max_length: int, stride: int, teaching: Teaching | None
) -> Answering:
    """Encode a task of questions for a model; the teacher of a second step must read the same tokens.

    Raises:
        ModelError: the teacher has another vocabulary, reads less, or lacks weights.
        StageError: a question leaves no room for its passage.
    """
    train, dev = (_encode(source, each, max_length, stride) for each in (data.train, data.dev[0]))
    taught = layers = None
    if teaching is not None:
        _check_teacher(source, teaching.teacher, max_length)
        features = _teacher_features(teaching.teacher, train, data.train, max_length, stride)
        layers = layer_teaching(teaching, source, data.task, train.features, features)
        model = load_trained(teaching.teacher, data.task) if layers is None else layers.teacher
        taught = _teacher_logits(model, features, teaching.micro_batch)
    labels = torch.from_numpy(targets(train, data.train.items)).to(device())
    loss = SpanLoss(train.features, labels, taught, None if teaching is None else teaching.step)
    return Answering(source, data, train, dev, loss, layers)


def answer(model: Any, encoded: Windows, questions: Questions, micro_batch: int) -> list[AnswerCandidates]:
    """The model's candidates for each question."""
    return decode_batches(encoded, questions, outputs(model, span_logits, encoded.features, micro_batch, "answers"))


def decode_batches(
    encoded: Windows, questions: Questions, batches: Iterable[tuple[Rows, Tensor]]
) -> list[AnswerCandidates]:
    """Candidates for each question, from batches of rows with their logits ``[rows, 2, longest]``."""
    windows: list[list[tuple[Window, Floats]]] = [[] for _ in questions.items]
    for rows, logits in batches:
        for row, of_row in zip(rows, logits.cpu().numpy(), strict=True):
            window = encoded.windows[row]
            windows[window.question].append((window, of_row))
    return [candidates(question.context, each) for question, each in zip(questions.items, windows, strict=True)]


def scored(task: Task, questions: Questions, found: Sequence[AnswerCandidates]) -> dict[str, float]:
    """All metrics in percent."""
    return (scores_sometimes if task.answers == "sometimes" else scores_always)(_predictions(questions, found))


def _predictions(questions: Questions, found: Sequence[AnswerCandidates]) -> list[AnswerPrediction]:
    return [
        AnswerPrediction(each.spans[0].text if each.spans else "", each.null_difference, question.answers)
        for question, each in zip(questions.items, found, strict=True)
    ]


def _check_teacher(source: TaskSource, teacher: TaskSource, max_length: int) -> None:
    if vocabulary_digest(source.tokenizer) != vocabulary_digest(teacher.tokenizer):
        raise ModelError(
            f"{teacher.path} has another vocabulary than {source.path}: the teacher of a task of questions must read "
            "the student's tokens, so give one with the same vocabulary"
        )
    if teacher.positions < max_length:
        raise ModelError(f"max_length = {max_length}, but the teacher reads {teacher.positions} tokens: lower it")


def _teacher_features(
    teacher: TaskSource, train: Windows, questions: Questions, max_length: int, stride: int
) -> Features:
    """The student's rows, encoded by the teacher's tokenizer, which may add token types.

    Raises:
        ModelError: the tokenizers split the texts differently.
    """
    features = _encode(teacher, questions, max_length, stride).features
    if not torch.equal(features.ids, train.features.ids):
        raise ModelError(
            f"{teacher.path} has the student's vocabulary, but its tokenizer splits the texts differently: give a "
            "teacher with the same settings (lower case, accents)"
        )
    return features


def _teacher_logits(teacher: Any, features: Features, micro_batch: int) -> Tensor:
    """The teacher's logits for every token, ``[tokens, 2]``."""
    taught = torch.empty((len(features.ids), 2), device=features.ids.device)
    for rows, logits in outputs(teacher, span_logits, features, micro_batch, "teacher's logits"):
        places, real = features.places(rows)
        taught[places[real]] = logits.transpose(1, 2)[real]
    return taught


def _encode(source: TaskSource, questions: Questions, max_length: int, stride: int) -> Windows:
    encoded = encode_questions(source.tokenizer, questions.items, max_length, stride)
    return Windows(encoded.features.to(device()), encoded.windows)


def _listed(found: AnswerCandidates, nullable: bool) -> list[dict[str, Any]]:
    """The candidates, the best first; where ``nullable``, no answer is one of them, with an empty text."""
    return [
        {"text": span.text, "probability": probability, "logit": span.logit, "begin": span.begin if span.text else None}
        for span, probability in found.ranked(nullable)
    ]
