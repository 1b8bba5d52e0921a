"""The model that an export is made from: a Hugging Face folder, opened in fp32 with the head that its config names."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cluster.artifacts import errors
from cluster.models import model_check, model_folder, model_loading, model_tokenizer
from cluster.models.export_spec import Head, Layout

MASKED_SCORE = -1e9
"""Added to the attention scores of padding; finite, and large enough in every precision that the compilers use."""

FAMILIES = ("bert", "distilbert", "roberta")

_HEADS: Mapping[Head, tuple[Any, Mapping[str, Layout]]] = {
    "masked-words": (AutoModelForMaskedLM, {"logits": "words"}),
    "classification": (AutoModelForSequenceClassification, {"logits": "classes"}),
    "regression": (AutoModelForSequenceClassification, {"logits": "classes"}),
    "question-answering": (
        AutoModelForQuestionAnswering,
        {"start_logits": "positions", "end_logits": "positions"},
    ),
}
"""Head to the class that loads it, and its outputs in order."""


@dataclass(frozen=True)
class SourceModel:
    """An opened model folder, in fp32 and in evaluation mode."""

    folder: Path
    config: PretrainedConfig
    head: Head
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def outputs(self) -> Mapping[str, Layout]:
        return _HEADS[self.head][1]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order; token types only if the model distinguishes several."""
        return model_tokenizer.input_names(self.tokenizer, self.config)

    @property
    def positions(self) -> int:
        """Longest input in tokens."""
        return model_folder.positions(self.config)

    @property
    def identity(self) -> str:
        return model_folder.identity(self.folder)


def open_source_model(folder: Path) -> SourceModel:
    """Open a model folder.

    Raises:
        ArtifactError: it was changed after it was made.
        StageError: not a model folder, an unsupported family or head, weights that do not fit the configuration, or a
            tokenizer that does not fit the model.
    """
    model_check.check(folder)
    config = model_folder.configuration(folder)
    head = model_folder.head(config)
    if head is None or config.model_type not in FAMILIES:
        architecture = (config.architectures or ["none named in config.json"])[0]
        raise errors.StageError(
            f"{folder}: cannot export architecture {architecture} ({config.model_type}): it takes "
            f"{', '.join(FAMILIES)} with a head for {', '.join(_HEADS)}"
        )
    # Plain attention exports to the operators that every runtime executes fastest.
    model = model_loading.load_whole(_HEADS[head][0], folder, config=config, attn_implementation="eager")
    return SourceModel(folder, config, head, model, model_tokenizer.open_tokenizer(folder, config))


class PositionalModel(nn.Module):
    """A model as the toolchains need it: named inputs, and a plain tuple of outputs."""

    def __init__(self, source: SourceModel) -> None:
        super().__init__()
        self.model = source.model
        self.outputs = tuple(source.outputs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(found[name] for name in self.outputs)


class OneRowModel(PositionalModel):
    """A copy of a model that takes one row ``[1, length]`` at a time.

    It builds the four-dimensional attention mask itself, because transformers' own code for it cannot be traced.
    """

    def __init__(self, source: SourceModel) -> None:
        super().__init__(source)
        self.model = copy.deepcopy(source.model)
        for layer in self.model.modules():
            if isinstance(layer, nn.Embedding):
                # Only training uses it, and no kernel for phones supports it.
                layer.padding_idx = None
            if isinstance(layer, nn.Linear):
                # Unties a masked-word head from the embeddings, which are quantized differently.
                layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        length = input_ids.shape[1]
        attended = attention_mask[:, None, None, :].bool().expand(1, 1, length, length)
        types = None if token_type_ids is None else token_type_ids.long()
        return super().forward(input_ids.long(), torch.where(attended, 0.0, MASKED_SCORE), types)


def example_inputs(source: SourceModel, length: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs to trace with; each has its own memory, because the tracer takes a shared tensor for one input."""
    return {name: torch.ones((1, length), dtype=dtype) for name in source.inputs}


def trace_one_row(source: SourceModel, model: nn.Module, dtype: torch.dtype) -> ExportedProgram:
    """The program of a one-row model for rows of any length; ``dtype`` is that of the inputs."""
    inputs = example_inputs(source, 17, dtype)
    length = torch.export.Dim("length", min=2, max=source.positions)
    return torch.export.export(model.eval(), (), inputs, dynamic_shapes={name: {1: length} for name in inputs})
