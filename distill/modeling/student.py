"""Creates a student from layers of its teacher.

A BERT teacher gives a ``DistilBertForMaskedLM``, a RoBERTa teacher a ``RobertaForMaskedLM`` with fewer layers (Sanh et
al. 2019, section 3: no token-type embeddings, no pooler, layers from the teacher). The authors' code dropped BERT's
token-type row 0, which BERT adds at every position; this module adds it to the position embeddings, so that a student
with all layers computes the same as its teacher.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM, RobertaForMaskedLM

from distill.config import Student
from distill.modeling.masked_lm import ModelError

logger = logging.getLogger("stillhouse")

_DISTILBERT_LAYER = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_DISTILBERT_HEAD = {
    "cls.predictions.transform.dense": "vocab_transform",
    "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
}
# Fixed in DistilBERT; a configuration value of BERT.
_DISTILBERT_EPSILON = 1e-12


def spread(count: int, layers: int) -> tuple[int, ...]:
    """``count`` of the layers, evenly spread, with the first and the last: 0, 2, 4, 7, 9, 11 for six of twelve."""
    return tuple(round(i * (layers - 1) / max(1, count - 1)) for i in range(count))


def make(teacher: Any, recipe: Student, seed: int) -> Any:
    """Create a student in fp32.

    Raises:
        ModelError: layers out of range, or an unsupported teacher.
    """
    layers = chosen_layers(recipe, teacher.config.num_hidden_layers)
    if not teacher.config.tie_word_embeddings:
        raise ModelError(
            "the teacher's head does not share the word embeddings (tie_word_embeddings = false): use one that does"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match type(teacher).__name__:
            case "BertForMaskedLM":
                student = DistilBertForMaskedLM(_distilbert_config(teacher.config, len(layers)))
            case "RobertaForMaskedLM":
                config = copy.deepcopy(teacher.config)
                config.num_hidden_layers = len(layers)
                student = RobertaForMaskedLM(config)
            case other:
                raise ModelError(f"a teacher is a BertForMaskedLM or RobertaForMaskedLM, not {other}")
    if recipe.start == "teacher":
        weights = _weights(teacher, layers)
        missing, unknown = student.load_state_dict(weights, strict=False)
        assert not unknown, unknown
        assert all("position_ids" in name for name in missing), missing
    student.tie_weights()
    return student


def chosen_layers(recipe: Student, available: int) -> tuple[int, ...]:
    """The teacher layers that a student takes.

    Raises:
        ModelError: none, repeated, out of order, out of range, or another number than ``depth``.
    """
    depth = max(1, available // 2) if recipe.depth is None else recipe.depth
    if depth > available:
        raise ModelError(f"student.depth {depth} is more than the teacher's {available} layers: write fewer")
    match recipe.layers:
        case "uniform":
            return spread(depth, available)
        case "first":
            return tuple(range(depth))
        case "last":
            return tuple(range(available - depth, available))
    wanted = recipe.layers
    if not wanted or list(wanted) != sorted(set(wanted)) or wanted[0] < 0 or wanted[-1] >= available:
        example = list(spread(max(1, available // 2), available))
        raise ModelError(
            f"student.layers {list(wanted)} does not fit a teacher of {available} layers: list some of "
            f"0 to {available - 1} in rising order, for example {example}"
        )
    if recipe.depth not in (None, len(wanted)):
        raise ModelError(
            f"student.layers lists {len(wanted)} layers and student.depth is {recipe.depth}: leave student.depth out"
        )
    return wanted


def _distilbert_config(teacher: Any, layers: int) -> DistilBertConfig:
    if teacher.layer_norm_eps != _DISTILBERT_EPSILON:
        logger.warning(
            "teacher has LayerNorm epsilon %g, DistilBERT computes with %g: the start is close, not exact",
            teacher.layer_norm_eps,
            _DISTILBERT_EPSILON,
        )
    return DistilBertConfig(
        vocab_size=teacher.vocab_size,
        max_position_embeddings=teacher.max_position_embeddings,
        dim=teacher.hidden_size,
        hidden_dim=teacher.intermediate_size,
        n_layers=layers,
        n_heads=teacher.num_attention_heads,
        activation=teacher.hidden_act,
        dropout=teacher.hidden_dropout_prob,
        attention_dropout=teacher.attention_probs_dropout_prob,
        initializer_range=teacher.initializer_range,
        pad_token_id=teacher.pad_token_id,
    )


def _weights(teacher: Any, layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """The teacher's weights under the student's names."""
    weights = {name: tensor.detach().clone() for name, tensor in teacher.state_dict().items()}
    if type(teacher).__name__ == "RobertaForMaskedLM":
        return _renumbered(weights, layers)
    embeddings = "bert.embeddings."
    found = {
        "distilbert.embeddings.word_embeddings.weight": weights[f"{embeddings}word_embeddings.weight"],
        "distilbert.embeddings.position_embeddings.weight": weights[f"{embeddings}position_embeddings.weight"]
        + weights[f"{embeddings}token_type_embeddings.weight"][0],
        "vocab_projector.weight": weights["cls.predictions.decoder.weight"],
        "vocab_projector.bias": weights["cls.predictions.bias"],
    }
    renamed = {"bert.embeddings.LayerNorm": "distilbert.embeddings.LayerNorm", **_DISTILBERT_HEAD}
    for number, layer in enumerate(layers):
        for theirs, ours in _DISTILBERT_LAYER.items():
            renamed[f"bert.encoder.layer.{layer}.{theirs}"] = f"distilbert.transformer.layer.{number}.{ours}"
    for theirs, ours in renamed.items():
        for part in ("weight", "bias"):
            found[f"{ours}.{part}"] = weights[f"{theirs}.{part}"]
    return found


def _renumbered(weights: dict[str, torch.Tensor], layers: Sequence[int]) -> dict[str, torch.Tensor]:
    prefix = "roberta.encoder.layer."
    found = {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
    for number, layer in enumerate(layers):
        theirs = f"{prefix}{layer}."
        for name, tensor in weights.items():
            if name.startswith(theirs):
                found[f"{prefix}{number}.{name.removeprefix(theirs)}"] = tensor
    return found
