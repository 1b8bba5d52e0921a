"""The model an export is made of: a Hugging Face folder, opened in fp32 with the head that its config names."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cluster.artifacts import errors
from cluster.models import model_folder
from cluster.models.export_spec import Head, Layout
from cluster.tokens.tokenizer import quiet_tokenizer

NEVER = -1e9
"""Added to a score of attention that must not count; finite, and large enough in any precision these compilers keep."""


@dataclass(frozen=True)
class Kind:
    """What a model answers: its name for people, the class that loads it, and its outputs in order."""

    name: Head
    auto: Any
    outputs: Mapping[str, Layout]


@dataclass(frozen=True)
class Original:
    """A model folder, opened: fp32, ready to answer."""

    folder: Path
    config: PretrainedConfig
    kind: Kind
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def head(self) -> Head:
        return model_folder.head(self.config) or self.kind.name

    @property
    def outputs(self) -> Mapping[str, Layout]:
        return self.kind.outputs

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order; token types only where the model tells more than one apart."""
        types = ("token_type_ids",) if getattr(self.config, "type_vocab_size", 0) > 1 else ()
        return ("input_ids", "attention_mask", *types)

    @property
    def positions(self) -> int:
        """Longest input in tokens."""
        return model_folder.positions(self.config)

    @property
    def identity(self) -> str:
        return model_folder.identity(self.folder)


class Positional(torch.nn.Module):
    """A model as the toolchains take it: inputs by their names, and a plain tuple of outputs."""

    def __init__(self, original: Original) -> None:
        super().__init__()
        self.model = original.model
        self.outputs = tuple(original.outputs)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(found[name] for name in self.outputs)


class OneRow(Positional):
    """A copy of a model for one row ``[1, length]`` at a time.

    It makes the four-dimensional attention mask itself, because the library's own way to one cannot be traced.
    """

    def __init__(self, original: Original) -> None:
        super().__init__(original)
        self.model = copy.deepcopy(original.model)
        for layer in self.model.modules():
            if isinstance(layer, nn.Embedding):
                # Of use in training only, and no kernel of a phone has it.
                layer.padding_idx = None
            if isinstance(layer, nn.Linear):
                # Unties a masked-word head from the embeddings, which are rounded in another way.
                layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        length = input_ids.shape[1]
        seen = attention_mask[:, None, None, :].bool().expand(1, 1, length, length)
        types = None if token_type_ids is None else token_type_ids.long()
        return super().forward(input_ids.long(), torch.where(seen, 0.0, NEVER), types)


def example_inputs(original: Original, length: int, kind: torch.dtype) -> dict[str, Tensor]:
    """Inputs to trace with, of their own memory each: a tensor shown twice would be traced as one input."""
    return {name: torch.ones((1, length), dtype=kind) for name in original.inputs}


VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")


FAMILIES = ("bert", "distilbert", "roberta")


KINDS = {
    "ForMaskedLM": Kind("masked-words", AutoModelForMaskedLM, {"logits": "words"}),
    "ForSequenceClassification": Kind("classification", AutoModelForSequenceClassification, {"logits": "classes"}),
    "ForQuestionAnswering": Kind(
        "question-answering",
        AutoModelForQuestionAnswering,
        {"start_logits": "positions", "end_logits": "positions"},
    ),
}
"""End of an architecture's name to what it answers."""


def open_original(folder: Path) -> Original:
    """Open a model folder.

    Raises:
        StageError: no model folder, of another family or with another head, without all of its weights, or with a
            tokenizer that does not fit.
    """
    config = model_folder.configuration(folder)
    kind = _kind(folder, config)
    with quiet_tokenizer():
        model, loading = kind.auto.from_pretrained(
            folder,
            config=config,
            # The plain formula exports to the operators that every runtime is fastest with.
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise errors.StageError(f"{folder}: its weights lack {missing}: export the folder that holds the trained head")
    return Original(folder, config, kind, model.eval(), tokenizer_of(folder, config))


def tokenizer_of(folder: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        StageError: there is none, or it has more entries than the model.
    """
    # Asked for here, because without files transformers makes an empty tokenizer and says nothing.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise errors.StageError(f"{folder} has no tokenizer: save the model's tokenizer.json there")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > config.vocab_size:
        raise errors.StageError(
            f"{folder}: its tokenizer has {len(tokenizer)} entries, its model {config.vocab_size}: "
            "save the tokenizer there that the model was trained with"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def _kind(folder: Path, config: PretrainedConfig) -> Kind:
    architecture = (config.architectures or ["none named in config.json"])[0]
    known = [suffix for suffix in KINDS if architecture.endswith(suffix)]
    if config.model_type not in FAMILIES or not known:
        raise errors.StageError(
            f"{folder}: no export for architecture {architecture} ({config.model_type}): it takes "
            f"{', '.join(FAMILIES)} with a head of {', '.join(KINDS)}"
        )
    return KINDS[known[0]]
