"""A classification (or regression) head on an encoder: load, train, predict.

A plain loop in PyTorch, as in Devlin et al. 2019, appendix A.3: AdamW, linear warm-up, linear decay to 0. BERT,
DistilBERT and RoBERTa go through the same lines. On a CPU the same seed gives the same weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from cluster import vocabulary
from cluster.telemetry import Progress
from eval.examples import scoring_batches, training_batches
from eval.tasks import Task

# Every this many steps the loss is read from the device, shown, and checked.
LOG_EVERY = 20
SCORING_BATCH = 64
CLIP_NORM = 1.0

# What a masked-language model does not bring along; anything else that is missing is a damaged model.
HEAD = ("classifier.", "pre_classifier.", "pooler.", "bert.pooler.")

Encoded: TypeAlias = Sequence[Mapping[str, list[int]]]
Rows: TypeAlias = npt.NDArray[np.int64]


class ClassifierError(ValueError):
    """A model cannot be fine-tuned: it is not one, its weights are incomplete, or training diverged."""


@dataclass(frozen=True)
class Settings:
    """How to train, with nothing left open."""

    epochs: int
    learning_rate: float
    batch: int
    max_length: int
    warmup: float
    weight_decay: float
    precision: Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Source:
    """The folder of a model in Hugging Face layout, its configuration and its tokenizer."""

    path: Path
    config: Any
    tokenizer: Any

    @property
    def positions(self) -> int:
        """Longest input, in tokens. RoBERTa counts positions from its padding id + 1."""
        offset = self.config.pad_token_id + 1 if self.config.model_type == "roberta" else 0
        return int(self.config.max_position_embeddings) - offset


def open_source(path: Path) -> Source:
    """Read a model's configuration and tokenizer.

    Raises:
        ClassifierError: the folder lacks a file that every model has.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (path / name).is_file():
            raise ClassifierError(f"{path} has no {name}: give a teacher or student artifact, or a Hugging Face folder")
    config = transformers.AutoConfig.from_pretrained(path)
    return Source(path, config, transformers.AutoTokenizer.from_pretrained(path))


@dataclass(frozen=True)
class Classifier:
    """A model with a head for ``task``, on its device."""

    model: Any
    tokenizer: Any
    task: Task

    @classmethod
    def load(cls, source: Source, task: Task, seed: int) -> "Classifier":
        """The encoder of ``source`` with a head drawn from ``seed``, or with the head it has where that fits.

        Raises:
            ClassifierError: weights other than a head's are missing.
        """
        torch.manual_seed(seed)
        names = dict(enumerate(task.label_names)) or {0: "score"}
        with vocabulary.quiet():
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                source.path,
                num_labels=task.outputs,
                id2label=names,
                label2id={name: number for number, name in names.items()},
                problem_type="single_label_classification" if task.label_range is None else "regression",
                # Half-precision files (a teacher's, usually) are trained from in fp32.
                dtype=torch.float32,
                use_safetensors=True,
                # A model fine-tuned on another task is a fair start: its head is replaced. Checked below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        absent = {*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}
        if damaged := sorted(key for key in absent if not key.startswith(HEAD)):
            raise ClassifierError(
                f"{source.path} lacks {len(damaged)} weights of its encoder, {damaged[0]} first: it is damaged, or of "
                "another architecture than its config.json says; make or get it again"
            )
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), source.tokenizer, task)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train(self, examples: Encoded, labels: npt.NDArray[Any], settings: Settings, seed: int) -> None:
        """Train over ``examples`` in an order given by (seed, epoch).

        Raises:
            ClassifierError: the loss is not finite.
        """
        batches = _all_batches(examples, settings, seed)
        optimizer = torch.optim.AdamW(self._groups(settings.weight_decay), lr=settings.learning_rate)
        warmup_steps = round(settings.warmup * len(batches))
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup_steps, len(batches))
        losses: list[Tensor] = []
        self.model.train()
        with Progress(f"{self.task.name}, seed {seed}", len(batches), "steps") as progress:
            for step, rows in enumerate(batches, start=1):
                loss = self._loss(examples, rows, torch.from_numpy(labels[rows]), settings.precision)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
                due = step % LOG_EVERY == 0 or step == len(batches)
                progress.advance(note={"loss": f"{_drain(losses, step):.3f}"} if due else None)

    @torch.inference_mode()
    def predict(self, examples: Encoded) -> npt.NDArray[Any]:
        """Predicted classes or scores ``[examples]``, computed in fp32: what anybody gets who loads the saved model."""
        self.model.eval()
        outputs = np.empty((len(examples), self.task.outputs), dtype=np.float32)
        for rows in scoring_batches(_lengths(examples), SCORING_BATCH):
            outputs[rows] = self._logits(examples, rows).cpu().numpy()
        return outputs[:, 0] if self.task.label_range is not None else outputs.argmax(axis=1)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face layout."""
        with vocabulary.quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _logits(self, examples: Encoded, rows: Rows) -> Tensor:
        """``[rows, outputs]`` of the examples ``rows``, padded to the longest of them."""
        batch = self.tokenizer.pad([examples[row] for row in rows], return_tensors="pt")
        logits: Tensor = self.model(**batch.to(self.model.device)).logits
        return logits

    def _loss(self, examples: Encoded, rows: Rows, labels: Tensor, precision: str) -> Tensor:
        """Mean cross entropy in nats per example, or mean squared error of a score."""
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = self._logits(examples, rows)
        if self.task.label_range is not None:
            return nn.functional.mse_loss(logits.float().squeeze(-1), labels.to(device))
        return nn.functional.cross_entropy(logits.float(), labels.to(device))

    def _groups(self, weight_decay: float) -> list[dict[str, Any]]:
        # Biases and LayerNorm weights are not decayed: decay pulls towards 0, and a scale should stay near 1.
        parameters = list(self.model.parameters())
        return [
            {"params": [each for each in parameters if each.ndim > 1], "weight_decay": weight_decay},
            {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0},
        ]


def _all_batches(examples: Encoded, settings: Settings, seed: int) -> list[Rows]:
    lengths = _lengths(examples)
    epochs = (training_batches(lengths, settings.batch, seed, epoch) for epoch in range(settings.epochs))
    return [rows for epoch in epochs for rows in epoch]


def _lengths(examples: Encoded) -> list[int]:
    return [len(example["input_ids"]) for example in examples]


def _drain(losses: list[Tensor], step: int) -> float:
    """Mean of the losses since the last time, which are forgotten."""
    mean = float(torch.stack(losses).mean())
    losses.clear()
    if not np.isfinite(mean):
        raise ClassifierError(f'the loss is {mean} by step {step}: lower learning_rate, or use precision = "fp32"')
    return mean
