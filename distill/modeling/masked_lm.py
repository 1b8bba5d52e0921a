"""Splits a masked language model into encoder, head transform and vocabulary projection.

The models of ``transformers`` compute all logits at once, which distillation avoids: :class:`MaskedLM` returns the last
hidden states and, at chosen positions, the input of the vocabulary projection. Only this module knows how the
architectures are built.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForMaskedLM

from cluster.artifacts import shipped
from cluster.models import encoder_parts, model_check, model_loading, model_tokenizer
from cluster.tokens.tokenizer import load_tokenizer

ARCHITECTURES = ("BertForMaskedLM", "RobertaForMaskedLM", "DistilBertForMaskedLM")

# Longest row whose attention scores, of one head, fit several times into the cache of a core.
_CACHED_SCORES = 256


class ModelError(ValueError):
    """The architecture, files or shape of a model are not usable."""


@dataclass(frozen=True)
class Taps:
    """What a forward pass computes and returns; layers count from 0."""

    layers: tuple[int, ...] = ()
    """Layers whose hidden states to return."""
    relation: int | None = None
    """Layer whose ``products`` to return; :meth:`MaskedLM.watch` must have named it."""
    products: tuple[str, ...] = ()
    """Some of ``queries``, ``keys`` and ``values``."""
    depth: int | None = None
    """Number of layers to run; all by default. The layer after them may still give its products."""
    head: bool = True
    """Whether to compute the features of the vocabulary projection."""


@dataclass(frozen=True)
class Outputs:
    """Output for a batch of rows."""

    hidden: Float[Tensor, "tokens hidden"]
    """The hidden state of every token after the last layer that ran."""
    features: Float[Tensor, "positions hidden"]
    """The input of the vocabulary projection at the requested positions; without a head, at none."""
    layers: tuple[Float[Tensor, "tokens hidden"], ...] = ()
    """Hidden states of the tapped layers."""
    products: Mapping[str, Float[Tensor, "rows length hidden"]] = field(default_factory=dict)
    """Queries, keys or values of the tapped layer, all heads side by side."""


@dataclass(frozen=True)
class Projection:
    """The vocabulary projection: ``logits = features @ weight.T + bias``."""

    weight: Float[Tensor, "vocab hidden"]
    bias: Float[Tensor, " vocab"]

    def logits(self, features: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions vocab"]:
        """All logits at once."""
        return functional.linear(features, self.weight, self.bias)


_WHOLE = Taps()
_KEPT = "kept_output"


def _keep(module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """A forward hook that leaves the output in the module, where a copy of the model finds its own."""
    setattr(module, _KEPT, output)


class MaskedLM(nn.Module):
    """A ``BertForMaskedLM``, ``RobertaForMaskedLM`` or ``DistilBertForMaskedLM`` without its logits.

    Rows are full (no padding), so there is no attention mask.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if type(model).__name__ not in ARCHITECTURES:
            raise ModelError(f"{type(model).__name__} is not supported: use {', '.join(ARCHITECTURES)}")
        self.model = model
        self._watched: set[int] = set()

    def forward(
        self, input_ids: Int[Tensor, "rows length"], positions: Int[Tensor, " positions"], taps: Taps = _WHOLE
    ) -> Any:
        """Compute :class:`Outputs`, with features at ``positions`` of the flattened rows."""
        hidden = self.model.base_model.embeddings(input_ids=input_ids)
        kept: dict[int, Tensor] = {}
        products: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers()):
            if number == taps.depth:
                if number == taps.relation:
                    products = {name: encoder_parts.products(layer)[name](hidden) for name in taps.products}
                break
            hidden = layer(hidden)
            if number in taps.layers:
                kept[number] = hidden.flatten(0, 1)
            if number in self._watched:
                found = {name: module.__dict__.pop(_KEPT) for name, module in encoder_parts.products(layer).items()}
                products = {name: found[name] for name in taps.products} if number == taps.relation else products
        hidden = hidden.flatten(0, 1)
        # Without positions the head computes nothing, and its weights still get a gradient, of 0.
        features = self._transform(hidden[positions if taps.head else positions[:0]])
        return Outputs(hidden, features, tuple(kept[number] for number in taps.layers), products)

    def watch(self, layer: int) -> None:
        """Keep queries, keys and values of a layer during its forward pass. Call it before anything is compiled."""
        if layer not in self._watched:
            self._watched.add(layer)
            for module in encoder_parts.products(list(self.layers())[layer]).values():
                module.register_forward_hook(_keep)

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters that only the vocabulary head uses; not the word embeddings, which it shares."""
        shared = {id(parameter) for parameter in self.model.base_model.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in shared]

    @property
    def projection(self) -> Projection:
        """The vocabulary projection; under ZeRO-3 use it only inside :meth:`forward`."""
        last = self.model.get_output_embeddings()
        return Projection(last.weight, last.bias)

    def layers(self) -> Iterator[nn.Module]:
        """The transformer layers, first to last."""
        yield from encoder_parts.layers(self.model.base_model)

    def _transform(self, hidden: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        model = self.model
        match type(model).__name__:
            case "BertForMaskedLM":
                return model.cls.predictions.transform(hidden)  # type: ignore[no-any-return]
            case "RobertaForMaskedLM":
                return model.lm_head.layer_norm(functional.gelu(model.lm_head.dense(hidden)))  # type: ignore[no-any-return]
            case _:
                return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))  # type: ignore[no-any-return]


def load(source: str | Path, seed: int = 0) -> tuple[Any, frozenset[str]]:
    """Load a masked language model in fp32; also returns the names of missing weights.

    ``source`` is a folder, the name of a shipped teacher, or a hub id.

    Only a head may lack weights, which are drawn from ``seed``.

    Raises:
        ArtifactError: a file of the artifact in the folder was changed.
        StageError: not found, unreadable, or weights that do not fit the configuration.
        ModelError: an unsupported architecture, or weights that are not finite.
    """
    source = shipped.place(source)
    if Path(source).is_dir():
        model_check.check(Path(source))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, missing = model_loading.load(AutoModelForMaskedLM, source)
    if type(model).__name__ not in ARCHITECTURES:
        raise ModelError(f"{source} is a {model.config.model_type} model: use one of {', '.join(ARCHITECTURES)}")
    if (name := next((name for name, one in model.named_parameters() if not one.isfinite().all()), None)) is not None:
        raise ModelError(f"{source} has weights that are not finite ({name}): nothing can be learned from it")
    return model, missing


def save_shape(model: Any, tokenizer: Path, folder: Path) -> None:
    """Write a model's configuration and tokenizer, without weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model_tokenizer.save_beside(load_tokenizer(tokenizer), model.config, folder)


def load_trained(folder: Path, weights: dict[str, Tensor]) -> Any:
    """The model of the configuration in ``folder``, with weights from a checkpoint of :class:`MaskedLM`.

    Raises:
        ModelError: the checkpoint is of another configuration.
    """
    config = AutoConfig.from_pretrained(folder)
    model = MaskedLM(AutoModelForMaskedLM.from_config(config, dtype=torch.float32))
    model.load_state_dict(weights, strict=False)
    if missing := {name for name, _ in model.named_parameters()} - weights.keys():
        raise ModelError(f"the checkpoint lacks {min(missing)}: it is of another model than {folder}")
    if left := weights.keys() - model.state_dict().keys():
        raise ModelError(f"{folder / 'config.json'} leaves out {min(left)} of the checkpoint: it was changed")
    return model.model


def choose_attention(model: Any, device: str, seq_len: int) -> None:
    """Select the fastest attention for rows of this length on this kind of device.

    On a CPU, plain matrix products are faster than the fused kernel while the scores fit into the cache; on a GPU the
    fused kernel is always faster.
    """
    model.set_attn_implementation("eager" if device == "cpu" and seq_len <= _CACHED_SCORES else "sdpa")


def set_dropout(model: nn.Module, probability: float) -> None:
    """Make ``model`` train with this probability at every dropout; with 0, compute the same in training as later.

    Its configuration stays: it says what people fine-tune with.
    """
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = probability
    model.train(probability > 0)


def facts(model: Any) -> dict[str, Any]:
    """Facts about a model for a manifest."""
    return {
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "layers": model.config.num_hidden_layers,
        "hidden": model.config.hidden_size,
    }
