"""Recipe of a training run.

Everything outside ``[placement]`` is identity: it decides what is trained. ``[placement]`` says where the run executes;
tests check that it does not change the loss curve.

Defaults are those of DistilBERT (Sanh et al. 2019, arXiv 1910.01108, and the training command of its authors), but
without dropout. :mod:`distill.train.paper_differences` lists what else differs.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cluster.artifacts.recipe import Recipe
from cluster.models.precision import Precision
from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.tokens.rows import Check
from distill.follow.trackers import TrackerName

BUCKET_VALUES = 25_000_000
"""Values in a DeepSpeed reduction bucket. DeepSpeed's default of 5e8 takes up to 4 GB of a 16 GB card."""


Relation = Literal["queries", "keys", "values", "attention"]


class Loss(Recipe):
    """Weights and settings of the loss: by default the triple loss (paper, section 3, and the authors' command).

    ``soft``, ``masked`` and ``cosine`` compare outputs. ``hidden`` and ``relation`` compare layers: without ``soft``
    and ``masked``, no head computes logits.
    """

    soft: NonNegativeFloat = 5.0
    """Weight of the KL divergence from the teacher's softened words to the student's, times temperature squared."""
    masked: NonNegativeFloat = 2.0
    """Weight of the cross-entropy of the masked words."""
    cosine: NonNegativeFloat = 1.0
    """Weight of one minus the cosine between the last hidden states of student and teacher."""
    hidden: NonNegativeFloat = 0.0
    """Weight of the relative error of hidden states: squared distance to the teacher's, divided by their squared norm,
    mean over tokens and pairs of layers (after TinyBERT, Jiao et al. 2019, arXiv 1909.10351, equation 8)."""
    relation: NonNegativeFloat = 0.0
    """Weight of the KL divergence from the teacher's relations of a row's tokens to the student's, in nats a token,
    mean over heads and kinds (MiniLMv2, Wang et al. 2020, arXiv 2012.15828, section 3.1)."""
    temperature: PositiveFloat = 2.0
    """Softens the distributions of teacher and student (Hinton et al. 2015)."""
    soft_positions: Literal["all", "masked", "sampled"] = "all"
    """Positions of the soft loss: ``all`` (the paper's loss), the ``masked`` words, or those and a sample of the others
    (``sampled``). Fewer positions are faster and change the loss."""
    soft_sample: float = Field(0.2, gt=0, lt=1)
    """Share of a row's unmasked positions that ``sampled`` takes."""
    hidden_layers: Literal["uniform"] | tuple[tuple[NonNegativeInt, NonNegativeInt], ...] = "uniform"
    """Layers that ``hidden`` compares: pairs ``[student, teacher]``, counted from 0. ``uniform`` spreads the student's
    over the teacher's and pairs the last ones: [0, 1], [1, 3], [2, 5] for three of six."""
    relations: tuple[Relation, ...] = ("queries", "keys", "values")
    """What ``relation`` compares: the scaled products of queries with queries, keys with keys or values with values, or
    ``attention``, those of queries with keys."""
    relation_heads: PositiveInt | None = None
    """Heads into which relations cut queries, keys and values, whatever the attention's; by default as many as the
    teacher's attention has. They must divide the width of both models."""
    relation_layer: NonNegativeInt | None = None
    """Teacher layer of the relations, counted from 0; the last by default. The student's is always its last."""
    layer_positions: Literal["all", "unmasked"] = "all"
    """Tokens that ``hidden`` and ``relation`` count: ``all``, or those without a masked-word label (``unmasked``)."""
    inputs: Literal["masked", "clean"] = "masked"
    """Rows with masked words, or as they are (``clean``), which is what fine-tuning sees. ``masked`` needs the
    former."""

    @property
    def needs_teacher(self) -> bool:
        return any(getattr(self, term) > 0 for term in LOSS_TERMS if term != "masked")

    @property
    def needs_head(self) -> bool:
        """Whether a term compares words, for which the vocabulary head computes logits."""
        return self.soft > 0 or self.masked > 0

    @property
    def compares_layers(self) -> bool:
        return self.hidden > 0 or self.relation > 0

    def labels(self, masking: "Masking", seq_len: int) -> int:
        """Number of masked words in a row."""
        return max(1, round(masking.share * seq_len)) if self.inputs == "masked" else 0

    def other_positions(self, available: int) -> int:
        """Number of a row's ``available`` unmasked positions in the soft loss."""
        if self.soft == 0 or self.soft_positions == "masked":
            return 0
        return available if self.soft_positions == "all" else max(1, round(self.soft_sample * available))

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not any(getattr(self, term) for term in LOSS_TERMS):
            *others, last = LOSS_TERMS
            raise ValueError(f"every weight is 0: give {', '.join(others)} or {last} a weight")
        return self

    @model_validator(mode="after")
    def _clean_inputs(self) -> Self:
        if self.inputs == "clean" and self.masked > 0:
            raise ValueError('inputs = "clean" has no masked words: write masked = 0, or inputs = "masked"')
        if self.inputs == "clean" and self.soft > 0 and self.soft_positions == "masked":
            raise ValueError('inputs = "clean" has no masked positions: write soft_positions = "all" or "sampled"')
        if self.inputs == "clean" and self.layer_positions == "unmasked":
            raise ValueError('inputs = "clean" has no masked words to leave out: write layer_positions = "all"')
        return self

    @model_validator(mode="after")
    def _layers_to_compare(self) -> Self:
        if self.hidden > 0 and not self.hidden_layers:
            raise ValueError('hidden has a weight and no layers: write hidden_layers = "uniform" or some pairs')
        if len(set(self.hidden_layers)) < len(self.hidden_layers) and self.hidden_layers != "uniform":
            raise ValueError(f"hidden_layers {_pairs(self.hidden_layers)} has a pair twice: write each once")
        if self.relation > 0 and not self.relations:
            raise ValueError('relation has a weight and no relations: write relations = ["queries", "keys", "values"]')
        if len(set(self.relations)) < len(self.relations):
            raise ValueError(f"relations {list(self.relations)} has one twice: write each once")
        return self


def _tuples(value: Any) -> Any:
    """The value with tuples instead of lists."""
    if isinstance(value, list | tuple):
        return tuple(map(_tuples, value))
    return {key: _tuples(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _pairs(pairs: tuple[tuple[int, int], ...]) -> str:
    return str([list(pair) for pair in pairs])


class Masking(Recipe):
    """Dynamic masking (Devlin et al. 2018, section 3.1)."""

    share: float = Field(0.15, gt=0, le=0.5)
    """Share of a row's positions with a label: exactly ``round(share * seq_len)`` in every row."""
    smoothing: NonNegativeFloat = 0.7
    """A token's chance to be masked is proportional to count ** -smoothing (XLM, Lample and Conneau 2019)."""
    mask: float = Field(0.8, ge=0, le=1)
    """Share of the labelled words that the mask token replaces."""
    random: float = Field(0.1, ge=0, le=1)
    """Share of the labelled words that a random word replaces; the rest stay as they are."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mask + self.random > 1:
            raise ValueError(f"masking.mask {self.mask} and masking.random {self.random} are more than 1 together")
        return self


class Optimizer(Recipe):
    """AdamW with linear warm-up and linear decay to zero."""

    learning_rate: PositiveFloat = 5e-4
    """Largest learning rate, at the end of the warm-up."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.98, ge=0, lt=1)
    """Decay of the second moment."""
    epsilon: PositiveFloat = 1e-6
    """Added to the root of the second moment."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay; biases and LayerNorm weights have none."""
    clip: PositiveFloat = 5.0
    """Gradients with a larger norm, over all parameters, are scaled down to it."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step ``step`` (0-based) of ``steps``."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (steps - step) / max(1, steps - rising)


class WorkerRange(Recipe):
    """Bounds of an elastic number of workers: the run shrinks when it loses workers and grows when there is room."""

    min: PositiveInt
    """Fewest workers to train with."""
    max: PositiveInt
    """Most workers to train with."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"placement.workers.min {self.min} is above placement.workers.max {self.max}")
        return self


class Placement(Recipe):
    """Where a run executes. Not identity: it does not change the loss curve."""

    workers: PositiveInt | Literal["auto"] | WorkerRange = "auto"
    """Training processes. ``auto`` is one per GPU of the cluster, or one per node without GPUs. A range such as
    ``{ min = 2, max = 8 }`` uses as many as have room and divide ``rows_per_step``: the run continues with fewer when
    lost workers are not replaced, and restarts from a checkpoint with more when there is room."""
    device: Literal["auto", "cpu"] = "auto"
    """``auto`` trains on GPUs where the cluster has any; ``cpu`` never does, for models too small for a GPU."""
    threads: PositiveInt = 1
    """CPU threads of a worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage of the student: 1 shards optimizer state, 2 gradients too, 3 weights too. bf16 and fp16 need
    at least 1."""
    teacher: Literal["replica", "sharded", "offloaded"] = "replica"
    """A copy of the teacher on every worker, one copy sharded over the workers (ZeRO-3), or one kept in CPU memory."""
    rows_per_device: PositiveInt | Literal["auto"] = 16
    """Most rows of a micro-batch; gradient accumulation does the rest of ``rows_per_step``. ``auto`` measures the
    fastest number that fits in memory. Later phases use as many rows as hold no more tokens than the first."""
    head: Literal["fused", "naive"] = "fused"
    """``fused`` computes the losses from chunks of logits; ``naive``, the reference, holds all logits at once."""
    execution: Literal["auto", "eager", "compiled"] = "auto"
    """With ``torch.compile`` or without it; ``auto`` compiles on a GPU."""
    verify: Check = "sizes"
    """How the row files are compared with their manifest before the first step: ``sizes``, or ``hashes`` too, which
    reads every file once on every node."""
    log_every: PositiveInt = 10
    """Steps between two logs."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints."""
    validate_every: PositiveInt = 500
    """Steps between two validations."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints to keep."""
    keep_every: PositiveInt | None = None
    """Keep every n-th step's checkpoint permanently, too; none by default."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of the Prometheus exporter of every node; none by default."""
    follow: tuple[TrackerName, ...] = ()
    """Trackers that draw the run while it trains: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``. Each is an extra
    (``pip install 'stillhouse[tensorboard]'``), and one that fails costs a warning, not the run."""
    restarts: int = Field(3, ge=0)
    """Restarts after a worker or its node died. Drained nodes do not count. A second death at the same step ends the
    run at once."""
    replace_seconds: NonNegativeFloat = 120.0
    """Seconds to wait for lost workers to be replaced, before the run continues with fewer or, where ``workers`` does
    not allow fewer, fails."""

    def compiles(self, device: str) -> bool:
        """Whether to compile layers and losses on this kind of device."""
        return self.execution == "compiled" or (self.execution == "auto" and device == "cuda" and self.zero_stage < 3)

    @model_validator(mode="after")
    def _zero3_is_not_compiled(self) -> Self:
        if self.execution == "compiled" and self.zero_stage == 3:
            raise ValueError(
                "placement.execution compiled does not work with placement.zero_stage 3, which gathers weights by "
                'layer: write execution = "eager" or a lower stage'
            )
        return self


class Phase(Recipe):
    """A part of a run, on rows of one length."""

    seq_len: PositiveInt
    """Tokens in a row; ``--tokens`` needs an artifact of such rows."""
    steps: PositiveInt | None = None
    """Optimizer steps; exactly one of ``steps`` and ``epochs``."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows of this length."""
    rows_per_step: PositiveInt | None = None
    """Rows in an optimizer step; the run's by default."""
    loss: Loss | None = None
    """Loss of this phase. Values that its table leaves out are the run's."""

    @model_validator(mode="after")
    def _length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("write steps = N or epochs = N, exactly one of them, in every phase")
        return self


class Training(Recipe):
    """A training run of a masked language model, with or without a teacher."""

    loss: Loss = Loss()
    masking: Masking = Masking()
    optimizer: Optimizer = Optimizer()
    steps: NonNegativeInt | None = None
    """Optimizer steps; exactly one of ``steps`` and ``epochs``. A student of 0 steps is measured and exported as it
    starts: its teacher's layers, untrained."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows."""
    phases: tuple[Phase, ...] = ()
    """Instead of ``steps`` or ``epochs``: parts of the run on rows of different lengths (Devlin et al. 2018, appendix
    A.2: 128 tokens for most steps, then 512). One learning-rate schedule spans all phases."""
    rows_per_step: PositiveInt = 4096
    """Rows in an optimizer step, over all workers and micro-batches (paper, section 3: up to 4K)."""
    order: Literal["rows", "blocks"] = "rows"
    """``rows`` shuffles single rows. ``blocks`` shuffles blocks of consecutive rows (2 MiB) and the rows within 32
    blocks: for rows on spinning or network disks that do not fit into memory."""
    precision: Precision = "fp32"
    """Precision of the models. Optimizer state and sums of gradients are fp32."""
    seed: int = Field(1, ge=0)
    """Seed of the student's start, the order of rows and the masks."""
    validation_rows: PositiveInt = 512
    """Most held-out rows of a validation."""
    placement: Placement = Placement()

    @property
    def dropout(self) -> float:
        """Probability of dropout in the model that trains; a teacher trains without."""
        return 0.0

    def by_phase(self) -> tuple[Self, ...]:
        """One run per phase; without phases the run itself."""
        return tuple(map(self._phase, self.phases)) or (self,)

    def _phase(self, phase: Phase) -> Self:
        placement = self.placement
        if placement.rows_per_device != "auto":
            rows = max(1, placement.rows_per_device * self.phases[0].seq_len // phase.seq_len)
            placement = placement.model_copy(update={"rows_per_device": rows})
        rows_per_step = phase.rows_per_step or self.rows_per_step
        own = {"steps": phase.steps, "epochs": phase.epochs, "rows_per_step": rows_per_step, "placement": placement}
        return self.model_copy(update={"phases": (), "loss": phase.loss or self.loss, **own})

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The loss of every phase."""
        return tuple(phase.loss for phase in self.by_phase())

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss of some phase has a teacher."""
        return any(loss.needs_teacher for loss in self.losses)

    def total_steps(self, train_rows: int) -> int:
        """Optimizer steps of a run without phases on ``train_rows`` rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * train_rows / self.rows_per_step))

    def worker_counts(self) -> list[int]:
        """Numbers of workers in the range that divide every ``rows_per_step``, smallest first."""
        workers = self.placement.workers
        assert isinstance(workers, WorkerRange)
        shared = math.gcd(*(phase.rows_per_step for phase in self.by_phase()))
        return [count for count in range(workers.min, workers.max + 1) if shared % count == 0]

    def check_divides(self, workers: int) -> None:
        """Check that the rows of a step divide by the workers.

        Raises:
            ValueError: they do not; names the nearest number that does.
        """
        if self.rows_per_step % workers:
            near = max(1, round(self.rows_per_step / workers)) * workers
            raise ValueError(f"rows_per_step {self.rows_per_step} does not divide by {workers} workers: write {near}")

    def micro_rows(self, workers: int) -> int:
        """Rows of a micro-batch: the largest number up to ``rows_per_device`` that divides a worker's rows of a step.

        Where ``rows_per_device`` is ``auto``, all of a worker's rows.
        """
        self.check_divides(workers)
        rows = self.rows_per_step // workers
        given = self.placement.rows_per_device
        largest = rows if given == "auto" else given
        return max(n for n in range(1, min(rows, largest) + 1) if rows % n == 0)

    @model_validator(mode="before")
    @classmethod
    def _whole_losses(cls, values: Any) -> Any:
        """Fill the losses of the phases from the run's."""
        if not isinstance(values, Mapping):
            return values
        of_run = values.get("loss", {})

        def whole(phase: Any) -> Any:
            if not all(isinstance(part, Mapping) for part in (of_run, phase)) or not isinstance(
                own := phase.get("loss"), Mapping
            ):
                return phase
            return {**phase, "loss": {**of_run, **own}}

        found = dict(values)
        if isinstance(phases := values.get("phases"), list | tuple):
            found["phases"] = [whole(phase) for phase in phases]
        # What this returns is no JSON any more, and strict models then take no list for a tuple.
        return _tuples(found)

    @model_validator(mode="after")
    def _length(self) -> Self:
        given = [key for key in ("steps", "epochs") if getattr(self, key) is not None]
        if self.phases and given:
            raise ValueError(f"{given[0]} and phases exclude each other: write {given[0]} in every phase instead")
        if not self.phases and len(given) != 1:
            raise ValueError("write steps = N or epochs = N, exactly one of them")
        return self

    @model_validator(mode="after")
    def _some_count_divides(self) -> Self:
        workers = self.placement.workers
        if isinstance(workers, WorkerRange) and not self.worker_counts():
            sizes = sorted({phase.rows_per_step for phase in self.by_phase()})
            near = (max(1, round(size / workers.max)) * workers.max for size in sizes)
            raise ValueError(
                f"rows_per_step {' and '.join(map(str, sizes))} divides by no number of workers from {workers.min} to "
                f"{workers.max}: write {' and '.join(map(str, near))}"
            )
        return self

    @model_validator(mode="after")
    def _half_precision_needs_zero(self) -> Self:
        if self.precision != "fp32" and self.placement.zero_stage == 0:
            raise ValueError(
                f"placement.zero_stage 0 would add up gradients in {self.precision}: write 1, "
                "which adds them up in fp32 and costs nothing on one worker"
            )
        return self


class Student(Recipe):
    """Layers of the student, its initial weights and its dropout."""

    start: Literal["teacher", "random"] = "teacher"
    """Start from the teacher's layers, embeddings and head (paper, section 3), or from random weights."""
    layers: Literal["uniform", "first", "last"] | tuple[int, ...] = "uniform"
    """Teacher layers to take, counted from 0, or how to choose them: ``uniform`` spreads them evenly from the first to
    the last (0, 2, 4, 7, 9, 11 of twelve), ``first`` and ``last`` take the lowest and the highest."""
    depth: PositiveInt | None = None
    """Layers of the student; by default half of the teacher's, or as many as ``layers`` lists."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropout in the student while it trains, for hidden states and attention; never in the teacher, and
    not in validation. The authors' code trains with 0.1 (its ``training_configs/distilbert-base-uncased.json``). A
    micro-batch draws its masks from the seed, the step and its first row: other ``placement.rows_per_device``, other
    masks."""


class Distillation(Training):
    """A student trained from a teacher."""

    student: Student = Student()
    """Layers of the student, its initial weights and its dropout."""

    @property
    def dropout(self) -> float:
        return self.student.dropout
