"""Model folders for benchmarks: published architectures, and models with the head that a workload needs.

An architecture comes from its folder where the user gives one, else from its published configuration with random
weights: size and time do not depend on their values. A folder may have configuration and tokenizer alone. Models made
here are saved in fp32, so that all load alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from cluster.artifacts.errors import StageError
from cluster.models import model_folder, model_loading
from cluster.tokens.tokenizer import quiet_tokenizer, vocabulary_size
from eval.benchmark.elmo import ElmoPairs, ElmoSizes

Weights: TypeAlias = Literal["random", "given", "own"]
"""Drawn here; from a folder given for an architecture; the teacher's or student's own."""

Head: TypeAlias = Literal["score", "answers", "any"]
"""Head that a workload needs: one score for a pair of texts, begin and end of an answer, or any."""

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

_CLASSES: dict[Head, tuple[Any, int]] = {
    "score": (AutoModelForSequenceClassification, 1),
    "answers": (AutoModelForQuestionAnswering, 2),
}
"""Head to the class that loads it, and its outputs."""
_ENDINGS: dict[Head, str] = {"score": "ForSequenceClassification", "answers": "ForQuestionAnswering", "any": ""}


@dataclass(frozen=True)
class Reader:
    """A tokenizer; ``of`` is ``own``, or names the model whose tokenizer stands in."""

    tokenizer: Any
    of: str


def fits(config: Any, head: Head) -> bool:
    """Whether a model has the head already."""
    return str((config.architectures or [""])[0]).endswith(_ENDINGS[head])


def with_head(folder: Path, head: Head, out: Path, seed: int) -> Path:
    """The folder of a model with this head: ``folder`` where it has the head, else ``out`` with a random one.

    Raises:
        StageError: the weights do not fit the configuration.
    """
    if fits(model_folder.configuration(folder), head):
        return folder
    kind, outputs = _CLASSES[head]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, _ = model_loading.load(kind, folder, num_labels=outputs)
    return _saved(model, out)


def random(config: Any, head: Head, out: Path, seed: int) -> Path:
    """Save a model of this configuration with random weights into ``out``."""
    config.num_labels = 2 if head == "answers" else 1
    kind = AutoModelForQuestionAnswering if head == "answers" else AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config)
    return _saved(model, out)


def random_elmo(sizes: ElmoSizes, out: Path, seed: int) -> Path:
    """Save ELMo with the GLUE baseline's classifier and random weights into ``out``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ElmoPairs(sizes).save(out)
    return out


def check_reads(config: Any, reader: Reader) -> None:
    """Check a tokenizer that stands in for that of a model.

    Raises:
        StageError: it has more ids than the model.
    """
    if (ids := vocabulary_size(reader.tokenizer)) > config.vocab_size:
        raise StageError(
            f"the tokenizer of {reader.of}, which stands in, has {ids} ids, the {config.model_type} model "
            f"{config.vocab_size}: give the model's folder with the tokenizer that belongs to it"
        )


def _saved(model: Any, out: Path) -> Path:
    with quiet_tokenizer():
        model.save_pretrained(out)
    return out
