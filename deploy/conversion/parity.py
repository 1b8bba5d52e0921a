"""How far an exported model is from its PyTorch model, on fixed inputs.

The inputs follow from seed, lengths and vocabulary, so that they can be built again. The export's ``parity.json`` holds
the result::

    {"against": "PyTorch fp32", "runtime": "onnxruntime 1.31.1",
     "inputs": {"lengths": [8, 30, 128], "rows": 4, "seed": 0, "tokens": 576, "sha256": "..."},
     "outputs": {"logits": {"max_abs": 4.1e-7, "scale": 2.2, "relative": 1.9e-7, "agreement": 1.0, "choices": 15}},
     "score": {"task": "mrpc", "metric": "…", "model": 84.1, "export": 83.9, "difference": -0.2, "examples": 408, …},
     "tolerance": {"relative": 0.0001, "agreement": 0.99, "score": 1.0}}

``relative`` is the largest difference of one value over the largest value of the reference; ``agreement`` is the
share of choices (a class, a word, the start or end of an answer) on which both agree; ``score`` compares both on a
task's development set (:mod:`deploy.conversion.task_score`) and is null without data.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.models.export_spec import Layout
from cluster.models.runtimes import Call, Outputs

FILE = "parity.json"

Feed: TypeAlias = dict[str, npt.NDArray[np.int64]]
"""Named model inputs, each ``[batch, length]``."""

SHORTEST = 3
"""[CLS], one token, [SEP]."""


class Probe(Recipe):
    """The fixed inputs: for each length one full row, and a batch of rows with increasing padding."""

    lengths: tuple[Annotated[int, Field(ge=SHORTEST)], ...] = Field((8, 30, 128), min_length=1)
    """Lengths in tokens."""
    rows: PositiveInt = 4
    """Rows of the padded batch."""
    seed: NonNegativeInt = 0
    """Seed of the random token ids."""


class Tolerance(Recipe):
    """How far an export may be from its model."""

    relative: PositiveFloat = 1e-4
    """Largest difference between outputs, relative to the reference's largest value."""
    agreement: float = Field(0.99, ge=0.0, le=1.0)
    """Lowest share of positions where both choose the same class or word."""
    score: NonNegativeFloat = 1.0
    """Most points that the task's score may lose, if ``--data`` is given."""


@dataclass(frozen=True)
class Difference:
    """The difference of one output over some inputs; :func:`merge` joins several."""

    max_abs: float
    scale: float
    agreed: int
    choices: int

    @property
    def relative(self) -> float:
        return self.max_abs / max(self.scale, float(np.finfo(np.float32).tiny))

    @property
    def agreement(self) -> float | None:
        """None for a regression, which has no candidates to choose from."""
        return self.agreed / self.choices if self.choices else None


def fixed_inputs(probe: Probe, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], positions: int) -> list[Feed]:
    """The inputs of a probe for a model with these input names; lengths beyond its ``positions`` become ``positions``.

    Raises:
        StageError: the tokenizer has no [CLS], [SEP] or padding token.
    """
    marks = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if None in marks:
        raise StageError(
            f"{tokenizer.name_or_path}: the tokenizer lacks a [CLS], [SEP] or padding token: name all three in "
            "tokenizer_config.json"
        )
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    chance = np.random.default_rng(probe.seed)
    feeds = []
    for length in sorted({min(length, positions) for length in probe.lengths}):
        falling = [max(SHORTEST, length * (probe.rows - row) // probe.rows) for row in range(probe.rows)]
        for filled in ([length], falling):
            feed = _batch(chance.choice(ordinary, (len(filled), length)), np.array(filled)[:, None], marks)
            feeds.append({name: feed[name] for name in names})
    return feeds


def _batch(ids: npt.NDArray[np.int64], filled: npt.NDArray[np.int64], marks: tuple[int, int, int]) -> Feed:
    """Rows ``[batch, length]`` of a pair of texts each, of which the first ``filled[row]`` tokens are not padding."""
    place = np.arange(ids.shape[1])[None, :]
    classify, separate, pad = marks
    ids = np.where(place == 0, classify, np.where(place == filled - 1, separate, np.where(place < filled, ids, pad)))
    attended = place < filled
    return {
        "input_ids": ids.astype(np.int64),
        "attention_mask": attended.astype(np.int64),
        "token_type_ids": (attended & (place >= filled // 2)).astype(np.int64),
    }


def describe(probe: Probe, feeds: Sequence[Feed]) -> dict[str, Any]:
    """The record of the inputs in ``parity.json``: how to build them again, and their hash."""
    contents = hashlib.sha256(b"".join(values.tobytes() for feed in feeds for values in feed.values()))
    return {
        "lengths": sorted({feed["input_ids"].shape[1] for feed in feeds}),
        "rows": probe.rows,
        "seed": probe.seed,
        "tokens": sum(int(feed["attention_mask"].sum()) for feed in feeds),
        "sha256": contents.hexdigest(),
    }


def recorded(folder: Path) -> Probe:
    """The probe that the export in ``folder`` was compared on."""
    inputs = json.loads((folder / FILE).read_text(encoding="utf-8"))["inputs"]
    return Probe(lengths=tuple(inputs["lengths"]), rows=inputs["rows"], seed=inputs["seed"])


def torch_outputs(model: PreTrainedModel, names: Iterable[str]) -> Call:
    """A PyTorch model as a function of a feed."""

    def answer(feed: Mapping[str, npt.NDArray[np.int64]]) -> Outputs:
        with torch.inference_mode():
            found = model(**{name: torch.from_numpy(values) for name, values in feed.items()})
        return {name: found[name].float().numpy() for name in names}

    return answer


def between(
    reference: Call, candidate: Call, feeds: Iterable[Feed], layouts: Mapping[str, Layout]
) -> dict[str, Difference]:
    """The differences between two models on some feeds."""
    return functools.reduce(merge, (compare(reference(feed), candidate(feed), feed, layouts) for feed in feeds))


def compare(reference: Outputs, candidate: Outputs, feed: Feed, layouts: Mapping[str, Layout]) -> dict[str, Difference]:
    """The difference of each output on one feed, padding excluded."""
    attended = feed["attention_mask"] == 1
    return {name: _difference(reference[name], candidate[name], attended, layout) for name, layout in layouts.items()}


def _difference(
    reference: npt.NDArray[np.float32],
    candidate: npt.NDArray[np.float32],
    attended: npt.NDArray[np.bool_],
    layout: Layout,
) -> Difference:
    wanted, found = ((v if layout == "classes" else v[attended]) for v in (reference, candidate))
    chosen, again = (_choices(v, attended, layout) for v in (reference, candidate))
    return Difference(
        max_abs=float(np.abs(wanted - found).max()),
        scale=float(np.abs(wanted).max()),
        agreed=int((chosen == again).sum()),
        choices=len(chosen),
    )


def _choices(values: npt.NDArray[np.float32], attended: npt.NDArray[np.bool_], layout: Layout) -> npt.NDArray[np.int64]:
    """Index of the best candidate of each choice; empty if there is only one candidate."""
    if layout == "words":
        values = values[attended]
    elif layout == "positions":
        values = np.where(attended, values, -np.inf)
    return values.argmax(axis=-1) if values.shape[-1] > 1 else np.empty(0, dtype=np.int64)


def merge(first: Mapping[str, Difference], second: Mapping[str, Difference]) -> dict[str, Difference]:
    """The differences over the inputs of both."""
    return {
        name: Difference(
            # np.maximum keeps a NaN of either side; max does not.
            max_abs=float(np.maximum(one.max_abs, second[name].max_abs)),
            scale=float(np.maximum(one.scale, second[name].scale)),
            agreed=one.agreed + second[name].agreed,
            choices=one.choices + second[name].choices,
        )
        for name, one in first.items()
    }


def check(differences: Mapping[str, Difference], tolerance: Tolerance, what: str) -> None:
    """
    Raises:
        StageError: an output differs more, or agrees less, than the tolerance allows, or is not a number.
    """
    for name, found in differences.items():
        # Written as "not <=" so that a NaN is refused too.
        if not found.relative <= tolerance.relative:
            raise StageError(
                f"{what} is not the model it was made from: {name} differs by {found.relative:.4g} of its largest "
                f"value, tolerance.relative allows {tolerance.relative:.4g}; raise it to accept this"
            )
        if found.agreement is not None and found.agreement < tolerance.agreement:
            raise StageError(
                f"{what} decides differently from its model: {name} agrees on {found.agreement:.1%} of {found.choices} "
                f"choices, tolerance.agreement asks for {tolerance.agreement:.1%}; lower it to accept this"
            )


def as_json(differences: Mapping[str, Difference]) -> dict[str, Any]:
    """The differences by output, for ``parity.json``."""
    keys = ("max_abs", "scale", "relative", "agreement", "choices")
    return {name: {key: getattr(found, key) for key in keys} for name, found in differences.items()}


def summary(differences: Mapping[str, Difference]) -> dict[str, float | None]:
    """The worst values over all outputs, for the manifest."""
    agreements = [found.agreement for found in differences.values() if found.agreement is not None]
    return {
        "max_abs": max(found.max_abs for found in differences.values()),
        "relative": max(found.relative for found in differences.values()),
        "agreement": min(agreements, default=None),
    }
