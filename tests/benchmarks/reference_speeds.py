"""References for measurements, in their own processes: the fastest matrix product on this machine, and the plan.

A child process like those of ``measured_sides``, which answers every request.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from measured_sides import Pace, Process, Work

TEACHER = "bert-base-uncased"
LAYERS = 6

_SHAPES = {
    "cpu": ((1024, 768, 3072), (1024, 3072, 768), (512, 768, 30_522), (2048, 2048, 2048)),
    "cuda": ((16_384, 768, 3072), (16_384, 3072, 768), (2048, 768, 30_522), (8192, 8192, 8192)),
}
"""Rows, inner size and columns of the products in a step, and of large squares."""
_SECONDS = 0.4
"""How long one shape is repeated."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Yardstick(Process):
    """``peak`` or ``plan`` for a workload."""

    def __init__(self, what: str, work: Work) -> None:
        # As in our training: products are fastest in large memory pages.
        super().__init__(
            "reference_speeds", what, json.dumps(asdict(work)), large_pages=True, cuda=work.device == "cuda"
        )

    def measure(self) -> Any:
        return self.ask("measure")


def peak(work: Work) -> float:
    """Operations per second of the fastest matrix product of some shapes, in the workload's precision."""
    torch.set_num_threads(work.threads)
    dtype = _DTYPES[work.precision]
    best = 0.0
    for rows, inner, columns in _SHAPES[work.device]:
        # The second factor is transposed, like the weight of a linear layer.
        left = torch.randn(rows, inner, device=work.device).to(dtype)
        right = torch.randn(columns, inner, device=work.device).to(dtype).t()
        product = partial(torch.mm, left, right, out=left @ right)
        best = max(best, 2 * rows * inner * columns / _fastest(product, work))
    return best


def _fastest(product: Callable[[], object], work: Work) -> float:
    """Shortest time of a call, in seconds, out of as many calls as fit into some tenths of a second."""
    best, until = float("inf"), time.perf_counter() + _SECONDS
    repeat = 10 if work.device == "cuda" else 1
    while time.perf_counter() < until:
        _wait(work)
        started = time.perf_counter()
        for _ in range(repeat):
            product()
        _wait(work)
        best = min(best, (time.perf_counter() - started) / repeat)
    return best


def _wait(work: Work) -> None:
    if work.device == "cuda":
        torch.cuda.synchronize()


def plan(work: Work) -> dict[str, float]:
    """Predictions of ``distill.plan --hardware here`` for this workload: seconds of a step, bytes of a worker."""
    from distill.cost_model import step_prediction
    from distill.cost_model.hardware import Cluster
    from distill.modeling import model_shape
    from distill.modeling.model_shape import student_shape
    from distill.plan import calibration

    recipe, teacher = work.recipe(), model_shape.find(TEACHER)
    student = student_shape(teacher, LAYERS)
    device = calibration.measure(recipe, teacher, student, work.seq_len)
    found = step_prediction.predict(recipe, teacher, student, work.seq_len, Cluster(device))
    return {
        "seconds": found.step_seconds,
        "bytes": float(found.used_bytes),
        "reserved": device.reserved_gib * 2**30,
        "efficiency": device.efficiency[work.precision],
    }


YARDSTICKS: dict[str, Callable[[Work], Any]] = {"peak": peak, "plan": plan}

if __name__ == "__main__":
    chosen, given = YARDSTICKS[sys.argv[1]], Work(**json.loads(sys.argv[2]))
    pace = Pace(given.device)
    while sys.stdin.readline():
        pace.answer(chosen(given))
