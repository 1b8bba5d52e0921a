"""Model folders to be timed: the models of the paper's table 3, and any other with the head that a workload needs.

An architecture comes from its folder where one is given, else from the configuration published for it with random
weights: neither size nor time depends on what the weights are. A folder may hold configuration and tokenizer alone.
Every model that is changed here is saved in fp32, so that all of them are loaded alike.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from cluster.artifacts.errors import StageError
from cluster.models import model_folder
from cluster.tokens.tokenizer import quiet_tokenizer, vocabulary_size
from eval.benchmark.elmo import ElmoPairs, ElmoSizes

Weights: TypeAlias = Literal["random", "given", "own"]
"""Drawn here; from a folder given for an architecture; of the teacher or student that the measurement is about."""

Head: TypeAlias = Literal["score", "answers", "any"]
"""What a workload asks of a model: one score of a pair of texts, where an answer begins and ends, or anything."""

_ROBERTA = {
    "vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip

CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "bert_base": transformers.BertConfig,
    "distilbert": transformers.DistilBertConfig,
    "roberta_base": lambda: transformers.RobertaConfig(**_ROBERTA),
    "distilroberta": lambda: transformers.RobertaConfig(**_ROBERTA, num_hidden_layers=6),
}
TITLES = {
    "elmo": "ELMo",
    "bert_base": "BERT-base",
    "distilbert": "DistilBERT",
    "roberta_base": "RoBERTa-base",
    "distilroberta": "DistilRoBERTa",
    "teacher": "teacher",
    "student": "student",
}

_CLASSES: dict[Head, Callable[..., Any]] = {
    "score": functools.partial(AutoModelForSequenceClassification.from_pretrained, num_labels=1),
    "answers": functools.partial(AutoModelForQuestionAnswering.from_pretrained, num_labels=2),
}
_ENDINGS: dict[Head, str] = {"score": "ForSequenceClassification", "answers": "ForQuestionAnswering", "any": ""}


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and whose it is where the model that reads with it has none: else ``own``."""

    tokenizer: Any
    of: str


def has_weights(folder: Path) -> bool:
    return next(folder.glob("*.safetensors"), None) is not None


def fits(config: Any, head: Head) -> bool:
    """Whether a model has the head as it is."""
    return str((config.architectures or [""])[0]).endswith(_ENDINGS[head])


def with_head(folder: Path, head: Head, out: Path, seed: int) -> Path:
    """A folder of this model with this head: its own where it has it, else ``out``, with a random head.

    Raises:
        StageError: its weights lack a part of the encoder.
    """
    if fits(model_folder.configuration(folder), head):
        return folder
    with torch.random.fork_rng(devices=[]), quiet_tokenizer():
        torch.manual_seed(seed)
        model, loaded = _CLASSES[head](
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            # A head for another task is drawn anew; anything else that does not fit is refused below.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    absent = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
    encoder = f"{model.base_model_prefix}."
    if damaged := sorted(key for key in absent if key.startswith(encoder) and ".pooler." not in key):
        raise StageError(f"{folder}: its weights lack {damaged[0]}: save the whole model there")
    return _saved(model, out)


def random(config: Any, head: Head, out: Path, seed: int) -> Path:
    """A folder of a model of this configuration with random weights."""
    config.num_labels = 2 if head == "answers" else 1
    kind = AutoModelForQuestionAnswering if head == "answers" else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config)
    return _saved(model, out)


def random_elmo(sizes: ElmoSizes, out: Path, seed: int) -> Path:
    """A folder of ELMo with the GLUE baseline's classifier, random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ElmoPairs(sizes).save(out)
    return out


def check_reads(config: Any, reader: Reader) -> None:
    """
    Raises:
        StageError: the tokenizer has ids that the model does not know.
    """
    if (ids := vocabulary_size(reader.tokenizer)) > config.vocab_size:
        whose = "its own tokenizer" if reader.of == "own" else f"the tokenizer of {reader.of}, which stands in,"
        raise StageError(
            f"{whose} has {ids} ids, the {config.model_type} model knows {config.vocab_size}: give the "
            "model's folder with the tokenizer that belongs to it"
        )


def _saved(model: Any, out: Path) -> Path:
    with quiet_tokenizer():
        model.save_pretrained(out)
    return out
