"""The models of the paper's table 3, and any model folder, as things that score a pair of sentences on one CPU.

An architecture comes from its folder where one is given, else from the configuration published for it with random
weights: neither size nor time depends on what the weights are. A folder may hold configuration and tokenizer alone.
Every model is given one output for STS-B's score, saved in fp32 and loaded as a folder, so all are measured alike.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from cluster import vocabulary
from cluster.stage import StageError
from eval.elmo import ElmoPairs, ElmoSizes
from eval.runners import PyTorchRunner

Weights: TypeAlias = Literal["random", "given", "own"]
"""Drawn here; from a folder given for an architecture; of the teacher or student that the measurement is about."""

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


@dataclass(frozen=True)
class Reader:
    """A tokenizer, and whose it is where the model that reads with it has none."""

    tokenizer: Any
    of: str


@dataclass(frozen=True)
class PairModel:
    """Scores one pair of sentences a call: ``score(encode(first, second))``."""

    weights: Weights
    parameters: int
    bytes: int
    """Of its weights on disk, in fp32."""
    runtime: str
    tokenizer: str
    """``own``, or the model whose tokenizer stands in: then the lengths are that one's, not the architecture's."""
    encode: Callable[[str, str], Any]
    score: Callable[[Any], Any]


def elmo(sizes: ElmoSizes, seed: int) -> PairModel:
    """ELMo with the GLUE baseline's classifier, random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ElmoPairs(sizes).eval()

    def score(pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(*pair)
        return found

    runtime, parameters = f"PyTorch {torch.__version__}", sum(each.numel() for each in model.parameters())
    return PairModel("random", parameters, _saved_bytes(model), runtime, "own", model.encode, score)


def from_folder(folder: Path, weights: Weights, max_length: int, threads: int, seed: int) -> PairModel:
    """The model of a folder; with random weights where there are none in it.

    Raises:
        StageError: no configuration, no tokenizer or another model's, or weights that lack a part of the encoder.
    """
    if not (folder / "config.json").is_file():
        raise StageError(f"{folder} has no config.json: give a model folder, or one with configuration and tokenizer")
    reader = Reader(vocabulary.load(folder), "own")
    if next(folder.glob("*.safetensors"), None) is None:
        if weights == "own":
            raise StageError(f"{folder} has no weights (*.safetensors): save the whole model there")
        return random(AutoConfig.from_pretrained(folder, local_files_only=True), reader, max_length, threads, seed)
    with torch.random.fork_rng(devices=[]), vocabulary.quiet():
        torch.manual_seed(seed)
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
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
    return _reloaded(model, reader, weights, max_length, threads)


def random(config: Any, reader: Reader, max_length: int, threads: int, seed: int) -> PairModel:
    """A model of this configuration with random weights.

    Raises:
        StageError: the tokenizer has ids that the model does not know.
    """
    config.num_labels = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
    return _reloaded(model, reader, "random", max_length, threads)


def _reloaded(model: Any, reader: Reader, weights: Weights, max_length: int, threads: int) -> PairModel:
    """The model as it loads from the folder it is saved to, which gives its size on disk and is gone afterwards."""
    if (ids := vocabulary.vocab_size(reader.tokenizer)) > model.config.vocab_size:
        whose = "its own tokenizer" if reader.of == "own" else f"the tokenizer of {reader.of}, which stands in,"
        raise StageError(
            f"{whose} has {ids} ids, the {model.config.model_type} model knows {model.config.vocab_size}: give the "
            "model's folder with the tokenizer that belongs to it"
        )
    with tempfile.TemporaryDirectory() as folder, vocabulary.quiet():
        model.save_pretrained(folder)
        del model
        runner = PyTorchRunner(Path(folder), threads)
    loaded = runner.loaded
    encode = _encoder(reader.tokenizer, min(max_length, loaded.positions), runner.takes_types)
    return PairModel(
        weights, loaded.parameters, loaded.bytes, loaded.runtime, reader.of, encode, lambda given: runner(**given)
    )


def _encoder(tokenizer: Any, max_length: int, takes_types: bool) -> Callable[[str, str], dict[str, Any]]:
    """A pair as arrays ``[1, tokens]``, the longer text cut first; with token types only where the model has both."""

    def encode(first: str, second: str) -> dict[str, Any]:
        given = tokenizer(
            first,
            second,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=takes_types,
            return_tensors="np",
        )
        return dict(given)

    return encode


def _saved_bytes(model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(model.state_dict(), path)
        return path.stat().st_size
