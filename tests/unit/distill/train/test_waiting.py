"""No operation of an optimizer step waits for the device: none reads a number from it or copies one to it.

On a GPU torch reports operations that wait. A CPU run calls the same operations in our code, torch and DeepSpeed, and
the test watches for those that would wait.

Watching begins after the second step: in the first ones ZeRO-3 records in which order weights are needed, and checks
that all workers agree.

Neither method sees an explicit ``synchronize``. DeepSpeed 0.19.8 calls it on a GPU, only under ZeRO-3: after the last
backward pass of a step, and where it gathers its small parameters after the update.
"""

import contextlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_processes import RECIPE

from cluster.artifacts import stage
from distill.config import Distillation
from distill.data.batches import Batches
from distill.engine import deepspeed_engine
from distill.engine.deepspeed_engine import Engine
from distill.train.graceful_stop import GracefulStop
from distill.train.loop import STAGE
from distill.train.run_logger import RunLogger

STEPS, UNWATCHED = 4, 2
CUDA = torch.cuda.is_available()

_ATEN = torch.ops.aten
_WAITING = {
    # These read a number.
    *(_ATEN._local_scalar_dense, _ATEN.equal, _ATEN.is_nonzero),
    # The shape of their result depends on values.
    *(_ATEN.nonzero, _ATEN.masked_select, _ATEN._unique2, _ATEN.unique_dim),
    # These copy numbers to the device: torch.tensor(...).
    _ATEN.lift_fresh,
}


class Watch(TorchDispatchMode):
    """Records operations that would wait for a GPU."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        packet = func.overloadpacket
        if packet in _WAITING or (packet in (_ATEN.index, _ATEN.index_put_) and _by_mask(args[1])):
            self._waits.append(f"{packet} at {_caller()}")
        return func(*args, **(kwargs or {}))


def _by_mask(indices: Sequence[torch.Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _caller() -> str:
    """Innermost line outside of torch."""
    own = str(Path(torch.__file__).parent)
    frame = next(frame for frame in reversed(traceback.extract_stack()[:-2]) if not frame.filename.startswith(own))
    return f"{Path(frame.filename).name}:{frame.lineno}"


@contextlib.contextmanager
def watched(waits: list[str]) -> Iterator[None]:
    """Adds to ``waits`` the operations in this block that wait for a GPU, or would wait for one."""
    if not CUDA:
        with Watch(waits):
            yield
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits += [str(warning.message) for warning in caught if "synchronizing CUDA operation" in str(warning.message)]


class Loop:
    """Watches the training loop until it reads the measurements, after the last step."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waits: list[str] = []
        self._open = contextlib.ExitStack()
        self._steps = 0
        patch.setattr(RunLogger, "end_step", self._begins(RunLogger.end_step))
        may_wait: list[tuple[type, str]] = [
            (RunLogger, "drain"),
            # These work on CPU tensors, which a CPU run cannot distinguish from device tensors.
            *([] if CUDA else [(Batches, "take"), (GracefulStop, "agreed")]),
        ]
        for owner, name in may_wait:
            patch.setattr(owner, name, self._may_wait(getattr(owner, name)))

    def _begins(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            function(*args)
            self._steps += 1
            if self._steps == UNWATCHED:
                self._open.enter_context(watched(self.waits))

        return wrapped

    def _may_wait(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            self._open.close()
            found = function(*args)
            if UNWATCHED <= self._steps < STEPS:
                self._open.enter_context(watched(self.waits))
            return found

        return wrapped


def waits_of(folder: Path, out: Path, patch: pytest.MonkeyPatch, precision: str, **placement: Any) -> list[str]:
    """Operations that wait in the watched steps of a run with four micro-batches per step."""
    rare = {"log_every": STEPS, "save_every": STEPS, "validate_every": STEPS}
    changes = {"steps": STEPS, "precision": precision, "placement": {"rows_per_device": 2, **rare, **placement}}
    inputs = {"tokens": folder / "tokens", "teacher": folder / "teacher"}
    with patch.context() as inner:
        loop = Loop(inner)
        stage.execute(STAGE, Distillation.of({**RECIPE, **changes}), inputs, out)
    return loop.waits


@pytest.mark.parametrize(
    ("precision", "zero_stage"),
    [*(("fp32", zero_stage) for zero_stage in range(4)), *(("bf16", zero_stage) for zero_stage in range(1, 4))],
)
def test_no_step_waits_for_the_device(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, zero_stage: int
) -> None:
    assert waits_of(folder, tmp_path / "run", monkeypatch, precision, zero_stage=zero_stage) == []


@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_step_in_fp16_reads_one_flag(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_stage: int
) -> None:
    """DeepSpeed reads whether a gradient overflowed to decide whether to update."""
    monkeypatch.setattr(deepspeed_engine.deepspeed.accelerator.get_accelerator(), "is_fp16_supported", lambda: True)
    waits = waits_of(folder, tmp_path / "run", monkeypatch, "fp16", zero_stage=zero_stage)
    assert len(waits) == STEPS - UNWATCHED
    assert CUDA or all(wait.startswith("aten._local_scalar_dense at stage") for wait in waits)


@pytest.mark.parametrize("teacher", ["sharded", "offloaded"])
def test_a_sharded_teacher_never_waits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teacher: str
) -> None:
    assert waits_of(folder, tmp_path / "run", monkeypatch, "fp32", teacher=teacher) == []


@pytest.mark.parametrize(
    ("usual", "operation"),
    [
        (lambda loss: loss.item(), "_local_scalar_dense"),
        (lambda loss: torch.tensor(1.0, device=loss.device), "lift_fresh"),
        (lambda loss: loss.reshape(1)[loss.reshape(1) > 0], "index"),
    ],
)
def test_the_watcher_notices_operations_that_wait(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: Callable[..., Any], operation: str
) -> None:
    backward = Engine.backward

    def looking(made: Engine, loss: torch.Tensor) -> None:
        usual(loss)
        backward(made, loss)

    monkeypatch.setattr(Engine, "backward", looking)
    waits = waits_of(folder, tmp_path / "run", monkeypatch, "fp32")
    assert len(waits) == (STEPS - UNWATCHED) * 4
    assert CUDA or all(wait.startswith(f"aten.{operation} at {Path(__file__).name}") for wait in waits)
