"""Export a model folder to ONNX and prove that it is still the same model.

::

    python -m deploy.onnx_export RECIPE --model DIR --out DIR

The model is any Hugging Face folder of a BERT, DistilBERT or RoBERTa with a masked-word, classification, regression
or question-answering head; the head is the one ``config.architectures`` names. The export holds::

    model.onnx             inputs int64 [batch, length], both free; external data only above 2 GB
    config.json  tokenizer.json  tokenizer_config.json
    parity.json            how far it is from the PyTorch model, see deploy.parity
"""

import contextlib
import functools
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.onnx import ONNXProgram
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cluster import artifact, stage, telemetry, vocabulary
from cluster.recipe import Recipe
from deploy import parity

logger = logging.getLogger("stillhouse")

MODEL = "model.onnx"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
FAMILIES = ("bert", "distilbert", "roberta")


class Export(Recipe):
    """An export to ONNX."""

    # The exporter writes 18 at least; from 23 on it writes an Attention operator that breaks the quantiser.
    opset: int = Field(20, ge=18, le=22)
    probe: parity.Probe = parity.Probe()
    tolerance: parity.Tolerance = parity.Tolerance()


@dataclass(frozen=True)
class Head:
    """What a model answers: its name for people, the class that loads it, and its outputs in order."""

    name: str
    auto: Any
    outputs: Mapping[str, parity.Layout]


HEADS = {
    "ForMaskedLM": Head("masked-words", AutoModelForMaskedLM, {"logits": "words"}),
    "ForSequenceClassification": Head("classification", AutoModelForSequenceClassification, {"logits": "classes"}),
    "ForQuestionAnswering": Head(
        "question-answering",
        AutoModelForQuestionAnswering,
        {"start_logits": "positions", "end_logits": "positions"},
    ),
}


@dataclass(frozen=True)
class Source:
    """A model folder, opened: fp32, ready to answer."""

    folder: Path
    config: PretrainedConfig
    head: Head
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def head_name(self) -> str:
        regression = self.head.name == "classification" and self.config.num_labels == 1
        return "regression" if regression else self.head.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order; token types only where the model tells more than one apart."""
        types = ("token_type_ids",) if getattr(self.config, "type_vocab_size", 0) > 1 else ()
        return ("input_ids", "attention_mask", *types)

    @property
    def positions(self) -> int:
        """Longest input in tokens; RoBERTa counts its positions from the padding id + 1."""
        unused = self.config.pad_token_id + 1 if self.config.model_type == "roberta" else 0
        return int(self.config.max_position_embeddings) - unused


def open_source(folder: Path) -> Source:
    """Open a model folder.

    Raises:
        StageError: no model folder, of another family or with another head, without all of its weights, or with a
            tokenizer that does not fit.
    """
    if not (folder / "config.json").is_file():
        raise stage.StageError(f"{folder} is not a model folder: it has no config.json")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    head = _head(folder, config)
    with vocabulary.quiet():
        model, loading = head.auto.from_pretrained(
            folder,
            config=config,
            # The plain formula exports to the operators that ONNX Runtime is fastest with.
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:3])
        raise stage.StageError(f"{folder}: its weights lack {missing}: export the folder that holds the trained head")
    return Source(folder, config, head, model.eval(), _tokenizer(folder, config))


def _head(folder: Path, config: PretrainedConfig) -> Head:
    architecture = (config.architectures or ["none named in config.json"])[0]
    known = [suffix for suffix in HEADS if architecture.endswith(suffix)]
    if config.model_type not in FAMILIES or not known:
        raise stage.StageError(
            f"{folder}: no export for architecture {architecture} ({config.model_type}): it takes "
            f"{', '.join(FAMILIES)} with a head of {', '.join(HEADS)}"
        )
    return HEADS[known[0]]


def _tokenizer(folder: Path, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    # Asked for here, because without files transformers makes an empty tokenizer and says nothing.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise stage.StageError(f"{folder} has no tokenizer: save the model's tokenizer.json there")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > config.vocab_size:
        raise stage.StageError(
            f"{folder}: its tokenizer has {len(tokenizer)} entries, its model {config.vocab_size}: "
            "save the tokenizer there that the model was trained with"
        )
    return tokenizer


class Traced(torch.nn.Module):
    """A model with named inputs and a plain tuple of outputs, which is what the exporter takes."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model = source.model
        self.outputs = tuple(source.head.outputs)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(found[name] for name in self.outputs)


def trace(source: Source, feed: parity.Feed, opset: int) -> ONNXProgram:
    """The model as an ONNX graph with free batch and length, without a trace of the machine it was made on."""
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with quiet():
        program = torch.onnx.export(
            Traced(source).eval(),
            kwargs={name: torch.from_numpy(values) for name, values in feed.items()},
            output_names=list(source.head.outputs),
            dynamic_shapes=dict.fromkeys(feed, free),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # The exporter notes the Python stack trace of every node: paths of this machine, and other bytes on another one.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*program.model.graph.inputs, *program.model.graph.initializers.values()):
        value.metadata_props.clear()
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings of the libraries back that nobody can act upon: what they might hide, parity finds."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def measure(source: Source, path: Path, probe: parity.Probe) -> tuple[dict[str, Any], dict[str, parity.Difference]]:
    """Description of the fixed inputs, and how far ``path`` is from its source on them."""
    feeds = parity.fixed_inputs(probe, source.tokenizer, source.inputs, source.positions)
    reference = parity.torch_outputs(source.model, source.head.outputs)
    candidate = parity.onnx_outputs(path)
    found = [
        parity.compare(reference(feed), candidate(feed), feed, source.head.outputs)
        for feed in telemetry.progress(feeds, "parity", len(feeds), "batches")
    ]
    return parity.describe(probe, feeds), functools.reduce(parity.merge, found)


def run(recipe: Export, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    source = open_source(inputs["model"])
    # Two rows of different length: a batch of one would be taken for a constant.
    shown = parity.fixed_inputs(parity.Probe(lengths=(16,), rows=2), source.tokenizer, source.inputs, source.positions)
    logger.info("tracing %s", type(source.model).__name__)
    trace(source, shown[1], recipe.opset).save(out / MODEL)
    described, differences = measure(source, out / MODEL, recipe.probe)
    parity.check(differences, recipe.tolerance, MODEL)
    artifact.write_json(out / parity.FILE, parity.report(described, differences, recipe.tolerance))
    shutil.copyfile(source.folder / "config.json", out / "config.json")
    source.tokenizer.save_pretrained(out)
    return {
        "format": "onnx",
        "opset": recipe.opset,
        "bytes": model_bytes(out),
        "parameters": source.model.num_parameters(),
        "head": source.head_name,
        "parity": parity.summary(differences),
        "model_name": source.folder.name,
        "source": identity(source.folder),
    }


def model_bytes(folder: Path) -> int:
    """Bytes of ``model.onnx`` and, above 2 GB, of its external data."""
    return sum(path.stat().st_size for path in folder.glob(f"{MODEL}*"))


def identity(folder: Path) -> str:
    """Identity of a model folder, artifact or not."""
    if (folder / artifact.MANIFEST).is_file():
        return artifact.read(folder).identity
    return artifact.folder_identity(folder)


STAGE = stage.Stage(
    run=run,
    recipe=Export,
    inputs={"model": stage.Role((stage.FOLDER,))},
    produces="export",
)

if __name__ == "__main__":
    stage.main(STAGE)
