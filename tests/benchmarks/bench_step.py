"""One distillation step of ours and of the usual loop: speed, memory, utilization, and the plan's predictions.

BERT-base with random weights to six of its layers, 30,522 words; the same documents, packed into full rows for ours
and padded in batches of like lengths for the usual loop; only tokens that are not padding count.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import random_documents
import torch
from benchmark_runner import Row, Spread, not_measured, quick, ratios
from measured_sides import Contender, Taken, Work
from reference_speeds import LAYERS, TEACHER, Yardstick
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from cluster.artifacts import artifact
from cluster.models.precision import Precision
from cluster.tokens.tokenizer import vocabulary_digest
from distill.cost_model import costs
from distill.modeling import model_shape

_THREADS = 2
_ROUNDS = 1 if quick() else 3
_GB = 1e9
_WHAT = "BERT-base to 6 layers, vocabulary 30,522"
_GPU_ROWS = {"step_gpu_vs_usual": "ratio", "step_gpu_mfu": "share", "step_gpu_memory_vs_usual": "ratio"}


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        work = Work(
            folder=folder,
            precision="bf16",
            rows=2 if quick() else 16,
            seq_len=128,
            accumulation=2 if quick() else 4,
            threads=_THREADS,
        )
        prepare(work)
        yield from on_cpu(work)
    yield from on_gpu()


def prepare(work: Work, config: BertConfig | None = None) -> None:
    """Make the teacher, BERT-base by default, and documents for some steps in both forms."""
    folder = Path(work.folder)
    config = config or BertConfig()
    drawn = random_documents.draw(work.tokens * (_ROUNDS + 3), config.vocab_size)
    random_documents.tokens_artifact(folder / "tokens", random_documents.packed(drawn, work.seq_len), config.vocab_size)
    batches = random_documents.padded(drawn, work.seq_len, work.rows * work.seq_len)
    ids = {f"ids.{number}": batch.input_ids.contiguous() for number, batch in enumerate(batches)}
    lengths = {f"lengths.{number}": batch.lengths.contiguous() for number, batch in enumerate(batches)}
    save_file({**ids, **lengths}, folder / "batches.safetensors")
    torch.manual_seed(0)
    with artifact.create(folder / "teacher", kind="teacher", inputs={}, recipe={}) as draft:
        BertForMaskedLM(config).save_pretrained(draft.path)
        tokenizer = random_documents.tokenizer(draft.path, config.vocab_size)
        draft.facts.update(vocabulary=vocabulary_digest(tokenizer), layers=config.num_hidden_layers)


@dataclass(frozen=True)
class Measured:
    """One precision on one device, in rounds."""

    work: Work
    ours: tuple[Taken, ...]
    usual: tuple[Taken, ...]
    peaks: tuple[float, ...]
    """Operations per second of the fastest matrix product, measured in every round."""

    @property
    def our_speed(self) -> Spread:
        return Spread(tuple(step.tokens_per_second for step in self.ours))

    @property
    def usual_speed(self) -> Spread:
        return Spread(tuple(step.tokens_per_second for step in self.usual))


class Race:
    """Both sides for some workloads, each in its own process; a context manager."""

    def __init__(self, works: list[Work]) -> None:
        self.works = works
        self._running = ExitStack()

    def __enter__(self) -> Self:
        start = self._running.enter_context
        self._usual = {work.precision: start(Contender("usual", work)) for work in self.works}
        self._ours = {work.precision: start(Contender("ours", work)) for work in self.works}
        self._peaks = {work.precision: start(Yardstick("peak", work)) for work in self.works}
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def memory(self, work: Work) -> tuple[Taken, Taken]:
        """Memory of a step of full rows for ours and the usual loop. Call it first: it warms up both."""
        # The usual loop creates its optimizer state in the first step; ours has it from the start.
        self._usual[work.precision].ask("warm")
        usual = self._usual[work.precision].step(full=True)
        return self._ours[work.precision].step(full=True), usual

    def rounds(self) -> dict[Precision, Measured]:
        """Measure all sides in turns, so that variations of the machine affect all of them alike."""
        usual: dict[str, list[Taken]] = defaultdict(list)
        ours: dict[str, list[Taken]] = defaultdict(list)
        peaks: dict[str, list[float]] = defaultdict(list)
        for _ in range(_ROUNDS):
            for work in self.works:
                usual[work.precision].append(self._usual[work.precision].step())
                peaks[work.precision].append(self._peaks[work.precision].measure())
                ours[work.precision].append(self._ours[work.precision].step())
        return {
            work.precision: Measured(
                work, tuple(ours[work.precision]), tuple(usual[work.precision]), tuple(peaks[work.precision])
            )
            for work in self.works
        }


def on_cpu(work: Work) -> Iterator[Row]:
    """Two threads, bf16 and fp32, and the plan of the bf16 run."""
    single = replace(work, precision="fp32")
    with Yardstick("plan", work) as yardstick:
        plan = yardstick.measure()
    with Race([work, single]) as race:
        half = race.memory(work)
        yield memory("step_cpu_memory_vs_usual", work, *half)
        yield planned_memory(plan, work, half[0])
        yield memory("step_cpu_memory_vs_usual_fp32", single, *race.memory(single))
        found = race.rounds()
    bf16, fp32 = found["bf16"], found["fp32"]
    yield versus("step_cpu_vs_usual", bf16, bf16)
    yield versus("step_cpu_vs_usual_fp32", fp32, fp32)
    yield versus("step_cpu_bf16_vs_usual_fp32", bf16, fp32)
    yield share_of_peak("step_cpu_mfu", bf16)
    yield share_of_peak("step_cpu_mfu_fp32", fp32)
    yield planned_time(plan, bf16)


def on_gpu() -> Iterator[Row]:
    """The first GPU in fp16 and, if supported, bf16; 16,384 tokens in a micro-batch."""
    precisions: tuple[Precision, ...] = ("fp16", "bf16")
    if not torch.cuda.is_available():
        for precision in precisions:
            yield from _no_gpu_rows(precision, "no GPU")
        return
    has_bf16 = torch.cuda.get_device_capability() >= (8, 0)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(folder, "fp16", rows=128, seq_len=128, accumulation=4, threads=_THREADS, device="cuda")
        prepare(work)
        # One after the other: a GPU of 16 GB does not have room for four pairs of models.
        for precision in precisions:
            if precision == "bf16" and not has_bf16:
                yield from _no_gpu_rows(precision, "this GPU has no bf16")
                continue
            with Race([replace(work, precision=precision)]) as race:
                yield memory(_named("step_gpu_memory_vs_usual", precision), race.works[0], *race.memory(race.works[0]))
                found = race.rounds()[precision]
            yield versus(_named("step_gpu_vs_usual", precision), found, found)
            yield share_of_peak(_named("step_gpu_mfu", precision), found)


def _no_gpu_rows(precision: Precision, reason: str) -> Iterator[Row]:
    for name, unit in _GPU_ROWS.items():
        yield not_measured(_named(name, precision), unit, reason)


def _named(name: str, precision: str) -> str:
    return name if precision == "fp16" else f"{name}_{precision}"


def versus(name: str, ours: Measured, usual: Measured) -> Row:
    """Tokens per second, ours / theirs, round by round."""
    ratio = ratios(ours.our_speed.values, usual.usual_speed.values)
    detail = (
        f"ours {ours.work.precision} {ours.our_speed.median:,.0f} tokens/s, usual loop {_usual(usual.work)} "
        f"{usual.usual_speed.median:,.0f} tokens/s; ratio {ratio}; {_conditions(ours.work)}; {random_documents.LENGTHS}"
    )
    return Row(name, ratio.median, "ratio", detail)


def share_of_peak(name: str, found: Measured) -> Row:
    """Operations of a step by the formula of ``cost_model.costs``, over those of the fastest matrix product."""
    work = found.work
    teacher = model_shape.find(TEACHER)
    per_token = costs.step_flops_per_token(
        work.recipe(), teacher, model_shape.student_shape(teacher, LAYERS), work.seq_len
    )
    achieved = Spread(tuple(speed * per_token for speed in found.our_speed.values))
    share = ratios(achieved.values, found.peaks)
    detail = (
        f"{achieved.median / _GB:,.0f} of {Spread(found.peaks).median / _GB:,.0f} GFLOP/s (fastest {work.precision} "
        f"matrix product of four shapes); {per_token / _GB:.3f} GFLOP per token; share {share}; {_conditions(work)}"
    )
    return Row(name, share.median, "share", detail)


def memory(name: str, work: Work, ours: Taken, usual: Taken) -> Row:
    """Memory of a step above models, optimizer state and gradients, theirs / ours, at equal full rows."""
    detail = (
        f"extra memory of a step above models, optimizer state and gradients: usual loop {_usual(work)} "
        f"{usual.extra_bytes / _GB:.2f} GB, ours {work.precision} {ours.extra_bytes / _GB:.2f} GB (peaks in all "
        f"{usual.peak_bytes / _GB:.2f} and {ours.peak_bytes / _GB:.2f} GB); full rows for both; {_conditions(work)}"
    )
    return Row(name, usual.extra_bytes / ours.extra_bytes, "ratio", detail)


def planned_memory(plan: dict[str, float], work: Work, ours: Taken) -> Row:
    """Memory that ``distill.plan --hardware here`` predicts for a worker, over the peak of its process in a step."""
    detail = (
        f"predicted {plan['bytes'] / _GB:.2f} GB, {plan['reserved'] / _GB:.2f} GB of it reserve / measured "
        f"{ours.peak_bytes / _GB:.2f} GB; {work.precision}, {_conditions(work)}"
    )
    return Row("plan_memory", plan["bytes"] / ours.peak_bytes, "ratio", detail)


def planned_time(plan: dict[str, float], found: Measured) -> Row:
    """Time that ``distill.plan --hardware here`` predicts for a step, over the measured time."""
    seconds = Spread(tuple(step.seconds for step in found.ours))
    detail = (
        f"predicted {plan['seconds']:.2f} s / measured {seconds} s; calibrated just before, at "
        f"{plan['efficiency']:.2f} of the peak; {found.work.precision}, {_conditions(found.work)}"
    )
    return Row("plan_step_time", plan["seconds"] / seconds.median, "ratio", detail)


def _usual(work: Work) -> str:
    return "fp32" if work.precision == "fp32" else f"{work.precision} autocast"


def _conditions(work: Work) -> str:
    place = f"{work.threads} threads" if work.device == "cpu" else torch.cuda.get_device_name()
    return (
        f"{_WHAT}, micro-batches of {work.rows} x {work.seq_len} tokens, {work.accumulation} to a step, {place}; ours "
        "in large memory pages (set by itself), usual loop as people run it"
    )
