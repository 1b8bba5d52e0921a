"""Validation on held-out rows: loss terms, accuracy on masked words, agreement with the teacher, and word counts.

Rows and masks are the same at every validation and for every number of workers. A masked word is *hidden* (the input
has the mask token there), *visible* (the input has the word itself) or *replaced* (it has a random word). Accuracy and
agreement are those of hidden words, because a visible one needs no guess.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.tokens.rows import TokenSet
from distill.config import Training
from distill.data.batches import I64, VALIDATION_EPOCH, Batch, Masker
from distill.data.word_counts import WordCounts
from distill.engine.deepspeed_engine import Engine
from distill.engine.process_group import Workers
from distill.engine.teacher_engine import TeacherEngine
from distill.modeling import fused_head
from distill.modeling.compared_layers import ComparedLayers
from distill.modeling.fused_head import Guesses
from distill.modeling.masked_lm import Outputs, Taps
from distill.train.student_objective import ObjectiveOutput

_OF_MODEL = ("masked", "hidden_loss", "accuracy", "visible_accuracy", "replaced_accuracy")
_OF_COUNTS = ("masked", "hidden_loss", "accuracy")
_BESIDE_A_TEACHER = tuple(term for term in LOSS_TERMS if term != "masked")
NAMES = (
    *_BESIDE_A_TEACHER,
    *_OF_MODEL,
    "agreement",
    *(f"teacher_{name}" for name in _OF_MODEL),
    *(f"counts_{name}" for name in _OF_COUNTS),
)
"""Names of the values: losses in nats, shares from 0 to 1.

``masked`` is the loss on all masked words, ``hidden_loss`` and ``accuracy`` are on the hidden ones; those that begin
with ``teacher_`` and ``counts_`` are of the teacher and of word counts (:mod:`distill.data.word_counts`)."""

Columns = dict[str, Tensor]
"""Sums of a measurement over the masked words of each row, ``[rows]``."""


class Validated(NamedTuple):
    """A validation: its values, and what is needed to compare two models row by row."""

    values: dict[str, float | None]
    """``total`` and :data:`NAMES`; None where not measured."""
    rows: dict[str, list[float]]
    """For every held-out row: ``hidden`` (number of hidden words), ``hits`` (those guessed) and ``nats`` (the sum of
    their losses)."""


class Validation:
    """Measures a model on held-out rows, which the workers share."""

    def __init__(
        self,
        tokens: TokenSet,
        training: Training,
        teacher: TeacherEngine | None,
        layers: ComparedLayers | None,
        workers: Workers,
    ) -> None:
        self._rows, self._teacher = tokens.heldout, teacher
        # Validation measures the soft loss even where its weight in training is 0, and always on masked words.
        measured = training.loss.model_copy(update={"soft": 1.0, "inputs": "masked"})
        self._taps = layers.of_teacher(measured) if layers else Taps()
        self._layer_terms = [] if layers is None else layers.terms
        self._masker = Masker(tokens, training.model_copy(update={"loss": measured}))
        self._counts = WordCounts(tokens, training.masking, workers.device)
        self._mask_id = tokens.mask_id
        self._training, self._workers = training, workers
        self._count = min(training.validation_rows, len(self._rows))

    @torch.no_grad()
    def measure(self, engine: Engine) -> Validated:
        """Measure the model in ``engine``. Collective."""
        table: dict[str, Tensor] = {}
        with engine.evaluating():
            for batch, rows, counts in self._shares(engine.micro_rows):
                targets = self._teacher(batch, self._taps) if self._teacher is not None else None
                projection = self._teacher.projection if self._teacher is not None else None
                found = self._columns(engine(batch, targets, projection), targets, batch)
                for name, column in found.items():
                    whole = table.setdefault(name, column.new_zeros(self._count, dtype=torch.float64))
                    if counts:
                        whole[rows[0] : rows[-1] + 1] = column.double()
        together = torch.stack([*table.values()])
        torch.distributed.all_reduce(together)
        columns = dict(zip(table, together.cpu(), strict=True))
        rows_of_words = {"hidden": "hidden", "hits": "right_hidden", "nats": "nats_hidden"}
        return Validated(self._values(columns), {name: columns[of].tolist() for name, of in rows_of_words.items()})

    def _shares(self, micro_rows: int) -> Iterator[tuple[Batch, I64, bool]]:
        """This worker's batches, their rows, and whether they count.

        A worker with fewer batches repeats one that does not: under ZeRO-3 all workers must run forward equally often.
        """
        starts = list(range(0, self._count, micro_rows))
        turns = -(-len(starts) // self._workers.world_size)
        for turn in range(turns):
            number = turn * self._workers.world_size + self._workers.rank
            start = starts[min(number, len(starts) - 1)]
            rows = np.arange(start, min(start + micro_rows, self._count), dtype=np.int64)
            batch = self._masker.mask(self._rows.take(rows), rows, np.full_like(rows, VALIDATION_EPOCH))
            yield batch.to(self._workers.device), rows, number < len(starts)

    def _columns(self, output: ObjectiveOutput, targets: Outputs | None, batch: Batch) -> Columns:
        assert output.guesses is not None
        labels = batch.labels.view(len(batch.input_ids), -1)
        kinds = self._kinds(batch)
        found = {name: kind.sum(dim=1) for name, kind in kinds.items()}
        found |= _sums("", output.guesses, labels, kinds)
        counts = torch.full_like(batch.labels, self._counts.top_word), self._counts.nats(batch.labels)
        found |= _sums("counts_", Guesses(*counts), labels, kinds)
        if targets is not None and self._teacher is not None:
            features, teacher = targets.features[: len(batch.labels)], self._teacher
            taught = fused_head.guesses(features, teacher.projection, batch.labels, teacher.chunk)
            found |= _sums("teacher_", taught, labels, kinds)
            same = (output.guesses.words == taught.words).view_as(labels)
            found["agreed"] = (same & kinds["hidden"]).sum(dim=1)
            for term in ("soft", "cosine", *self._layer_terms):
                found[f"loss_{term}"] = getattr(output.losses, term).expand(len(labels))
        return found

    def _kinds(self, batch: Batch) -> dict[str, Tensor]:
        """Which masked words ``[rows, labels per row]`` are hidden, visible and replaced."""
        labels = batch.labels.view(len(batch.input_ids), -1)
        shown = batch.input_ids.reshape(-1)[batch.positions[: len(batch.labels)]].view_as(labels)
        hidden, same = shown == self._mask_id, shown == labels
        return {"hidden": hidden, "visible": same & ~hidden, "replaced": ~same & ~hidden}

    def _values(self, columns: Mapping[str, Tensor]) -> dict[str, float | None]:
        sums = {name: float(column.sum()) for name, column in columns.items()}
        masked = sum(sums[kind] for kind in ("hidden", "visible", "replaced"))

        def share(name: str, of: float) -> float | None:
            return sums[name] / of if name in sums and of else None

        values: dict[str, float | None] = {term: share(f"loss_{term}", self._count) for term in _BESIDE_A_TEACHER}
        for prefix in ("", "teacher_", "counts_"):
            values[f"{prefix}masked"] = share(f"{prefix}nats", masked)
            values[f"{prefix}hidden_loss"] = share(f"{prefix}nats_hidden", sums["hidden"])
            values[f"{prefix}accuracy"] = share(f"{prefix}right_hidden", sums["hidden"])
            for kind in ("visible", "replaced"):
                values[f"{prefix}{kind}_accuracy"] = share(f"{prefix}right_{kind}", sums[kind])
        values["agreement"] = share("agreed", sums["hidden"])
        weights = self._training.loss
        total = sum(getattr(weights, term) * (values[term] or 0.0) for term in LOSS_TERMS)
        return {"total": total, **{name: values[name] for name in NAMES}}


def _sums(prefix: str, guesses: Guesses, labels: Tensor, kinds: Mapping[str, Tensor]) -> Columns:
    """Nats and right guesses of the rows; ``labels`` are ``[rows, labels per row]``."""
    nats, right = guesses.nats.view_as(labels).double(), guesses.words.view_as(labels) == labels
    found = {f"{prefix}nats": nats.sum(dim=1), f"{prefix}nats_hidden": (nats * kinds["hidden"]).sum(dim=1)}
    return found | {f"{prefix}right_{name}": (right & kind).sum(dim=1) for name, kind in kinds.items()}
