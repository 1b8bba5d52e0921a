"""A step of losses between layers against a step of the triple loss: speed, memory and utilization.

Both are ``distill.train`` with the same teacher, rows and precision, one after the other in turns. The losses are those
of ``representation.toml``: every layer of the student and the relations of the last, rows as they are, no head.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import bench_step
from benchmark_runner import Row, Spread, quick, ratios
from measured_sides import Contender, Taken, Work
from reference_speeds import Yardstick
from transformers import BertConfig

from distill.cost_model import costs
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape

_ROUNDS = 1 if quick() else 5
_GB = 1e9
_MINILM = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


def rows() -> Iterator[Row]:
    for name, size, config in (("", "MiniLM (6 x 384)", _MINILM), ("_base", "BERT-base (12 x 768)", BertConfig())):
        with tempfile.TemporaryDirectory() as folder:
            work = Work(
                folder=folder,
                precision="bf16",
                rows=2 if quick() else 16,
                seq_len=128,
                accumulation=2 if quick() else 4,
                threads=2,
            )
            bench_step.prepare(work, config)
            yield from _of_size(name, size, work)


def _of_size(name: str, size: str, work: Work) -> Iterator[Row]:
    headless = replace(work, loss="layers")
    with ExitStack() as running:
        start = running.enter_context
        triple, layers = start(Contender("ours", work)), start(Contender("ours", headless))
        peak = start(Yardstick("peak", work))
        # The first steps warm up; memory counts from the second micro-batch on.
        memory = triple.step(full=True), layers.step(full=True)
        taken: list[tuple[Taken, Taken, float]] = []
        for _ in range(_ROUNDS):
            taken.append((triple.step(), layers.step(), peak.measure()))
    slow, fast, peaks = (
        Spread(tuple(values))
        for values in zip(*((a.tokens_per_second, b.tokens_per_second, c) for a, b, c in taken), strict=True)
    )
    where = (
        f"{size} to half of its layers, {work.precision}, micro-batches of {work.rows} x {work.seq_len} tokens, "
        f"{work.accumulation} to a step, {work.threads} threads"
    )
    ratio = ratios(fast.values, slow.values)
    detail = f"layers {fast.median:,.0f} tokens/s, triple loss {slow.median:,.0f} tokens/s; ratio {ratio}; {where}"
    yield Row(f"step_headless_vs_triple{name}", ratio.median, "ratio", detail)
    extra = [side.extra_bytes for side in memory]
    detail = (
        f"memory of a step above models, optimizer state and gradients: layers {extra[1] / _GB:.2f} GB, triple loss "
        f"{extra[0] / _GB:.2f} GB; {where}"
    )
    yield Row(f"step_headless_memory_vs_triple{name}", extra[1] / extra[0], "ratio", detail)
    teacher = model_shape.of_folder(Path(work.folder) / "teacher")
    used = _operations(headless, teacher)
    share = ratios(tuple(speed * used for speed in fast.values), peaks.values)
    detail = (
        f"{fast.median * used / _GB:,.0f} of {peaks.median / _GB:,.0f} GFLOP/s (fastest {work.precision} matrix "
        f"product of four shapes); {used / _GB:.4f} GFLOP per token; share {share}; {where}"
    )
    yield Row(f"step_headless_mfu{name}", share.median, "share", detail)


def _operations(work: Work, teacher: ModelShape) -> float:
    student = model_shape.student_shape(teacher, teacher.layers // 2)
    return costs.step_flops_per_token(work.recipe(), teacher, student, work.seq_len)
