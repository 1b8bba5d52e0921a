"""What a training run is, and what it refuses.

Everything outside ``[placement]`` is identity: what is trained. ``[placement]`` says where it runs; changing it must
not change the loss curve, and a test holds it to that.

Defaults are those of DistilBERT (Sanh et al. 2019, arXiv 1910.01108, and the training command its authors published).
"""

import math
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cluster.artifacts.recipe import Recipe
from cluster.models.precision import Precision
from cluster.tokens.rows import Check

BUCKET_VALUES = 25_000_000
"""Values in a DeepSpeed reduction bucket. DeepSpeed's default of 5e8 takes up to 4 GB of a 16 GB card."""


class Loss(Recipe):
    """Weights of the triple loss (paper, section 3; weights from the authors' command)."""

    soft: NonNegativeFloat = 5.0
    """KL divergence from the teacher's softened distribution to the student's, times temperature squared."""
    masked: NonNegativeFloat = 2.0
    """Cross-entropy of the masked words."""
    cosine: NonNegativeFloat = 1.0
    """One minus the cosine between the last hidden states of student and teacher."""
    temperature: PositiveFloat = 2.0
    """Softens teacher and student alike (Hinton et al. 2015)."""
    soft_positions: Literal["all", "masked", "sampled"] = "all"
    """Positions the soft targets are compared at: all (the paper's loss), the hidden words, or those and a sample of
    the others. Fewer positions are faster, and another loss."""
    soft_sample: float = Field(0.2, gt=0, lt=1)
    """Share of a row's other positions that ``sampled`` takes."""

    @property
    def needs_teacher(self) -> bool:
        return self.soft > 0 or self.cosine > 0

    def other_positions(self, available: int) -> int:
        """How many of a row's ``available`` positions without a label the soft targets are compared at."""
        if self.soft == 0 or self.soft_positions == "masked":
            return 0
        return available if self.soft_positions == "all" else max(1, round(self.soft_sample * available))

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.soft + self.masked + self.cosine == 0:
            raise ValueError("every weight is 0: give soft, masked or cosine a weight")
        return self


class Masking(Recipe):
    """Dynamic masking: which words are hidden, and how (Devlin et al. 2018, section 3.1)."""

    share: float = Field(0.15, gt=0, le=0.5)
    """Share of a row's positions that carry a label: exactly ``round(share * seq_len)`` in every row."""
    smoothing: NonNegativeFloat = 0.7
    """A token is chosen with a chance proportional to count ** -smoothing (XLM, Lample and Conneau 2019)."""
    mask: float = Field(0.8, ge=0, le=1)
    """Share of the chosen words shown as the mask token."""
    random: float = Field(0.1, ge=0, le=1)
    """Share of the chosen words shown as a random word; the rest is shown as it is."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.mask + self.random > 1:
            raise ValueError(f"masking.mask {self.mask} and masking.random {self.random} are more than 1 together")
        return self


class Optimizer(Recipe):
    """AdamW with linear warm-up and linear decay to zero."""

    learning_rate: PositiveFloat = 5e-4
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    epsilon: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to biases and LayerNorm weights."""
    clip: PositiveFloat = 5.0
    """Largest norm of the whole gradient."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step ``step`` (0-based) of ``steps``."""
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * (steps - step) / max(1, steps - rising)


class WorkerRange(Recipe):
    """As many workers as there are places for, within bounds; looked at again when workers are lost or places found."""

    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"placement.workers.min {self.min} is above placement.workers.max {self.max}")
        return self


class Placement(Recipe):
    """Where a run executes. Not identity: none of this may change the loss curve."""

    workers: PositiveInt | Literal["auto"] | WorkerRange = "auto"
    """Training processes: ``auto`` is one per GPU of the cluster, or one per node where there is none. With
    ``{ min = 2, max = 8 }`` there are as many as have a place and divide ``rows_per_step``: the run goes on with fewer
    when some cannot be replaced, and grows back, through a checkpoint, when places have come."""
    device: Literal["auto", "cpu"] = "auto"
    """GPUs where the cluster has any, or CPUs even there: for models too small to be worth one."""
    threads: PositiveInt = 1
    """CPU threads per worker."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage of the student: what is sharded over the workers. In half precision at least 1."""
    teacher: Literal["replica", "sharded", "offloaded"] = "replica"
    """A copy of the teacher on every worker, one copy sharded over them (ZeRO-3), or that copy in CPU memory."""
    rows_per_device: PositiveInt | Literal["auto"] = 16
    """Most rows in one micro-batch; accumulation makes up the rest of ``rows_per_step``. ``auto`` measures which
    number trains fastest in the memory there is. In a run with phases these are rows of the first one: others have as
    many as hold no more tokens."""
    head: Literal["fused", "naive"] = "fused"
    """Vocabulary projection and losses in chunks, or the reference: all logits of both models at once."""
    execution: Literal["auto", "eager", "compiled"] = "auto"
    """With ``torch.compile`` or without; ``auto`` compiles on a GPU."""
    verify: Check = "sizes"
    """How the files of rows are compared with their manifest before the first step: by size, or by hash as well, which
    reads all of them once on every node."""
    log_every: PositiveInt = 10
    save_every: PositiveInt = 500
    validate_every: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints to keep."""
    keep_every: PositiveInt | None = None
    """Checkpoints of every so many steps are kept as well, for good."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of the Prometheus exporter of the first worker; none by default."""
    restarts: int = Field(3, ge=0)
    """How often the workers are started again after one of them, or its node, died. A node that is drained before it
    goes does not count. Two deaths at the same step end the run whatever is left of this."""
    replace_seconds: NonNegativeFloat = 120.0
    """How long to wait for lost workers to be replaced, before going on with fewer or, where ``workers`` does not allow
    fewer, giving up."""

    def compiles(self, device: str) -> bool:
        """Whether layers and losses are compiled on this kind of device."""
        return self.execution == "compiled" or (self.execution == "auto" and device == "cuda" and self.zero_stage < 3)

    @model_validator(mode="after")
    def _zero3_is_not_compiled(self) -> Self:
        if self.execution == "compiled" and self.zero_stage == 3:
            raise ValueError(
                "placement.execution compiled does not go with placement.zero_stage 3, whose weights come and go "
                'between layers: write execution = "eager" or a lower stage'
            )
        return self


class Phase(Recipe):
    """A stretch of a run on rows of one length."""

    seq_len: PositiveInt
    """Tokens in a row: ``--tokens`` has an artifact of such rows."""
    steps: PositiveInt | None = None
    """Optimizer steps; exactly one of ``steps`` and ``epochs``."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows of this length."""
    rows_per_step: PositiveInt | None = None
    """By default the run's. Long rows usually come with fewer of them."""

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
    steps: PositiveInt | None = None
    """Optimizer steps; exactly one of ``steps`` and ``epochs``."""
    epochs: PositiveFloat | None = None
    """Passes over the training rows."""
    phases: tuple[Phase, ...] = ()
    """In place of ``steps`` and ``epochs``: stretches of the run on rows of different lengths, one after the other
    (Devlin et al. 2018, appendix A.2: 128 for most steps, then 512). The learning rate spans them all."""
    rows_per_step: PositiveInt = 4096
    """Rows in one optimizer step, over all workers and accumulation (paper, section 3: up to 4K)."""
    order: Literal["rows", "blocks"] = "rows"
    """Rows of an epoch in any order, each read from anywhere; or blocks of consecutive rows (2 MiB) in any order, and
    rows mixed within 32 of them: for rows on spinning or network disks that do not fit into memory."""
    precision: Precision = "fp32"
    seed: int = Field(1, ge=0)
    validation_rows: PositiveInt = 512
    """Held-out rows of a validation, or all there are."""
    placement: Placement = Placement()

    def by_phase(self) -> tuple[Self, ...]:
        """The run as runs on rows of one length each, one for every phase; without phases the run itself."""
        return tuple(map(self._phase, self.phases)) or (self,)

    def _phase(self, phase: Phase) -> Self:
        placement = self.placement
        if placement.rows_per_device != "auto":
            rows = max(1, placement.rows_per_device * self.phases[0].seq_len // phase.seq_len)
            placement = placement.model_copy(update={"rows_per_device": rows})
        rows_per_step = phase.rows_per_step or self.rows_per_step
        own = {"steps": phase.steps, "epochs": phase.epochs, "rows_per_step": rows_per_step, "placement": placement}
        return self.model_copy(update={"phases": (), **own})

    def total_steps(self, train_rows: int) -> int:
        """Optimizer steps of a run without phases on so many training rows."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * train_rows / self.rows_per_step))

    def worker_counts(self) -> list[int]:
        """The numbers of workers that a range allows: those that divide every ``rows_per_step``, smallest first."""
        workers = self.placement.workers
        assert isinstance(workers, WorkerRange)
        shared = math.gcd(*(phase.rows_per_step for phase in self.by_phase()))
        return [count for count in range(workers.min, workers.max + 1) if shared % count == 0]

    def check_divides(self, workers: int) -> None:
        """Rows of a step must fall evenly on the workers.

        Raises:
            ValueError: they do not; says a number that does.
        """
        if self.rows_per_step % workers:
            near = max(1, round(self.rows_per_step / workers)) * workers
            raise ValueError(f"rows_per_step {self.rows_per_step} does not divide by {workers} workers: write {near}")

    def micro_rows(self, workers: int) -> int:
        """Rows in a micro-batch: the largest count that divides the step evenly over workers and accumulation.

        Where ``placement.rows_per_device`` is ``auto``, the most that measuring may find: a worker's whole step.
        """
        self.check_divides(workers)
        rows = self.rows_per_step // workers
        given = self.placement.rows_per_device
        largest = rows if given == "auto" else given
        return max(n for n in range(1, min(rows, largest) + 1) if rows % n == 0)

    @model_validator(mode="after")
    def _length(self) -> Self:
        given = [key for key in ("steps", "epochs") if getattr(self, key) is not None]
        if self.phases and given:
            raise ValueError(f"{given[0]} and phases do not go together: write {given[0]} in every phase instead")
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
                "which keeps them in fp32 and costs nothing on one worker"
            )
        return self


class Student(Recipe):
    """The student's shape and how it starts."""

    start: Literal["teacher", "random"] = "teacher"
    """From the teacher's layers, embeddings and head (paper, section 3), or from random weights."""
    layers: tuple[int, ...] | None = None
    """Teacher layers to take, from 0; by default half of them, evenly spread: 0, 2, 4, 7, 9, 11 of twelve."""


class Distillation(Training):
    """A student trained from a teacher."""

    student: Student = Student()
