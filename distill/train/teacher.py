"""Makes a teacher: from a hub id or a folder, with a trained head, or trained from scratch on masked words.

It trains in the same loop as a student, without a teacher.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from transformers import BertConfig, BertForMaskedLM

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import model_tokenizer
from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.telemetry.progress import say
from cluster.tokens import word_count_gain
from cluster.tokens.rows import TokenSet, open_tokens
from cluster.tokens.tokenizer import load_tokenizer, quiet_tokenizer, vocabulary_digest
from distill.checkpointing.run_folder import Run
from distill.config import Placement, Training
from distill.data.schedule import Schedule
from distill.engine.process_group import join
from distill.follow import trackers
from distill.modeling import masked_lm
from distill.modeling.masked_lm import MaskedLM, ModelError
from distill.train import preflight
from distill.train.loop import check_reads, fit

RUN = "run"
"""Folder of the training run inside the unfinished artifact."""


class Architecture(Recipe):
    """Shape of a BERT that trains from scratch."""

    layers: PositiveInt
    """Transformer layers."""
    hidden: PositiveInt
    """Width of the hidden states."""
    heads: PositiveInt
    """Attention heads; BERT's are 64 wide (Devlin et al. 2018)."""
    feed_forward: PositiveInt
    """Width of the feed-forward layers, usually four times ``hidden``."""
    positions: PositiveInt = 512
    """Longest row in tokens."""
    initializer_range: PositiveFloat = 0.02
    """Standard deviation of the initial weights. BERT's 0.02 suits widths from 512 on; narrower models need more."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"architecture.hidden {self.hidden} does not divide by architecture.heads {self.heads}")
        return self


class Teacher(Recipe):
    """Origin of a teacher: exactly one of ``source`` and ``architecture``."""

    source: str | None = None
    """A BERT or RoBERTa, with or without a masked-word head: a folder, a hub id, or the name of a shipped teacher."""
    architecture: Architecture | None = None
    """Shape of a teacher that trains from scratch."""
    train: Training | None = None
    """Masked-word training; required from scratch and for an encoder without a head, optional otherwise."""
    trains: Literal["all", "head"] = "all"
    """What ``train`` changes: ``all`` weights, or the ``head`` alone (without the word embeddings it shares)."""
    weights: Literal["fp32", "fp16"] = "fp32"
    """Precision of the written weights. Everything reads them as fp32; fp16 halves the file."""

    @property
    def placement(self) -> Placement | None:
        return self.train.placement if self.train else None

    def identity(self) -> dict[str, Any]:
        """Leaves out the placement of the training, too."""
        values = super().identity()
        return values | {"train": self.train.identity() if self.train else None}

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.architecture is None):
            raise ValueError('write source = "…" or a table [architecture], exactly one of them')
        if self.architecture is not None and (self.train is None or self.trains == "head"):
            raise ValueError('a teacher from scratch needs a table [train], and trains = "all"')
        if self.train is not None and self.train.steps == 0:
            raise ValueError("train.steps = 0 is for students: leave the table [train] out to take a model as it is")
        if self.train is not None and self.train.needs_teacher:
            others = [term for term in LOSS_TERMS if term != "masked"]
            weighed = [term for term in others if any(getattr(loss, term) for loss in self.train.losses)]
            zeros = " and ".join(f"train.loss.{term} = 0" for term in weighed)
            raise ValueError(f"a teacher has no teacher: write {zeros}")
        return self


def run(recipe: Teacher, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write a teacher."""
    if recipe.train is not None:
        trackers.check(recipe.train.placement.follow)
    given = [open_tokens(path) for path in stage.inputs_of("tokens", inputs).values()]
    tokens = given[0] if given else None
    model, tokenizer_folder = _untrained(recipe, tokens)
    tokenizer = load_tokenizer(tokenizer_folder)
    model_tokenizer.check_tokenizer(tokenizer, model.config, tokenizer_folder)
    vocabulary = vocabulary_digest(tokenizer)
    for rows in given:
        check_reads(model, vocabulary, tokenizer_folder, rows)
    facts: dict[str, Any] = {"source": recipe.source or "trained here", "vocabulary": vocabulary}
    if recipe.train is not None:
        if tokens is None:
            raise errors.StageError("a teacher with a table [train] needs --tokens DIR")
        identities = {role: artifact.read(path).identity for role, path in inputs.items()}
        _train(model, recipe, Schedule(recipe.train, given), identities, out / RUN)
    if int(os.environ.get("RANK", "0")) != 0:
        return {}  # only the first worker writes
    if recipe.train is not None:
        model, spent = _trained(recipe, tokens, out / RUN)
        facts |= spent
        measured = spent["validation"]
        if warning := word_count_gain.warning(
            "this teacher", measured.get("hidden_loss"), measured.get("counts_hidden_loss")
        ):
            say(f"warning: {warning}")
    with quiet_tokenizer():
        (_halved(model) if recipe.weights == "fp16" else model).save_pretrained(out)
    model_tokenizer.save_beside(tokenizer, model.config, out)
    if (out / RUN).exists():
        (out / RUN / "metrics.jsonl").replace(out / "metrics.jsonl")
        shutil.rmtree(out / RUN)
    return masked_lm.facts(model) | facts


def _halved(model: Any) -> Any:
    """The model in fp16.

    Raises:
        ModelError: a weight is too large for fp16.
    """
    largest = torch.finfo(torch.float16).max
    for name, values in model.named_parameters():
        if values.abs().max() > largest:
            raise ModelError(f'{name} has weights above {largest:,.0f}, too large for fp16: write weights = "fp32"')
    return model.half()


def _untrained(recipe: Teacher, tokens: TokenSet | None) -> tuple[Any, str | Path]:
    """The model to start from, and the folder of its tokenizer."""
    if recipe.source is not None:
        model, missing = masked_lm.load(recipe.source, recipe.train.seed if recipe.train else 0)
        if type(model).__name__ not in ("BertForMaskedLM", "RobertaForMaskedLM"):
            raise ModelError(f"{recipe.source} is a {type(model).__name__}: a teacher is a BERT or a RoBERTa")
        if missing and recipe.train is None:
            raise ModelError(f"{recipe.source} has no masked-word head: add a table [train] to the recipe to train one")
        return model, recipe.source
    if tokens is None:
        raise errors.StageError("a teacher from scratch needs --tokens DIR")
    assert recipe.architecture is not None
    assert recipe.train is not None
    shape = recipe.architecture
    config = BertConfig(
        vocab_size=tokens.vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.positions,
        initializer_range=shape.initializer_range,
        pad_token_id=tokens.artifact.facts["pad_id"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return BertForMaskedLM(config), tokens.path


def _train(model: Any, recipe: Teacher, schedule: Schedule, identities: dict[str, str], folder: Path) -> None:
    """Masked-word training. Collective."""
    training = recipe.train
    assert training is not None
    if recipe.trains == "head":
        model.base_model.requires_grad_(False)
    workers = join(training.placement.threads)
    preflight.check_worker(schedule, None, model, workers, folder)
    if workers.is_main_process:
        Run(folder).claim(recipe.identity(), identities)
    torch.distributed.barrier()
    fit(model, None, schedule, training, Run(folder), workers)


def _trained(recipe: Teacher, tokens: TokenSet | None, folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """The trained model, and what its training took and reached, as of a student.

    It comes from the checkpoint, which has whole fp32 weights; in memory they may be sharded and in half precision.
    """
    newest = Run(folder).newest()
    assert newest is not None
    model, _ = _untrained(recipe, tokens)
    MaskedLM(model).load_state_dict(newest.load().weights, strict=False)
    facts = {key: newest.facts[key] for key in ("tokens", "world_size", "device", "validation")}
    return model, {**facts, "steps": newest.step, "device_hours": newest.facts["device_seconds"] / 3600}


STAGE = stage.Stage(
    name="distill.teacher",
    run=run,
    recipe=Teacher,
    inputs={"tokens": stage.Role(("tokens",), optional=True, keyed_by="seq_len")},
    produces="teacher",
    example="demo#teacher --tokens out/tokens",
)
