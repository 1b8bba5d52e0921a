"""Tiny models with each head that the exports support, saved with their tokenizers."""

from pathlib import Path

import tiny
import torch
from transformers import AutoConfig, DistilBertConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

HEADS = {
    "masked-words": MODEL_FOR_MASKED_LM_MAPPING,
    "classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "regression": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "question-answering": MODEL_FOR_QUESTION_ANSWERING_MAPPING,
}
LABELS = {"classification": 3, "regression": 1}


def model_folder(
    folder: Path, family: str, head: str, *, layers: int = 1, labels: tuple[str, ...] | None = None
) -> Path:
    """A random model of a family (bert, distilbert, roberta) with a head, saved into ``folder``."""
    config = _config(folder, family, layers)
    config.num_labels = LABELS.get(head, 2)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HEADS[head][type(config)](config)
        with torch.no_grad():
            # Initial weights near zero would give the same outputs for different inputs.
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


def _config(folder: Path, family: str, layers: int) -> PretrainedConfig:
    if family == "roberta":
        return AutoConfig.from_pretrained(tiny.roberta_teacher(folder, layers=layers))
    if family == "bert":
        return AutoConfig.from_pretrained(tiny.bert_teacher(folder, layers=layers))
    tokenizer = tiny.wordpiece(folder)
    return DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=layers, n_heads=2, hidden_dim=128, max_position_embeddings=64
    )


def load(folder: Path, head: str) -> PreTrainedModel:
    """The model in a folder, loaded with ``transformers``."""
    config = AutoConfig.from_pretrained(folder)
    return HEADS[head][type(config)].from_pretrained(folder).eval()
