"""Every patch of DeepSpeed is still needed: without it, the installed version shows the problem.

If a test fails after an upgrade, delete the patch it names.
"""

import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import paths
import pytest
import tiny
import torch
from deepspeed.ops.op_builder import builder
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero import stage3
from tiny_engine import one_step, started, training
from torch.utils._python_dispatch import TorchDispatchMode

from distill.engine import deepspeed_engine, deepspeed_patches, process_group
from distill.engine.deepspeed_patches import ORIGINALS
from distill.engine.process_group import Workers
from distill.engine.step_timer import StepTimer


@pytest.fixture(scope="module")
def workers() -> Workers:
    return process_group.join(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert_teacher(tmp_path_factory.mktemp("patches"), layers=2)


def imported(**environment: str) -> str:
    """Output of a process that imports only DeepSpeed."""
    ours = ("DS_ACCELERATOR", "DS_SKIP_CUDA_CHECK")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    run = subprocess.run(
        [sys.executable, "-c", "import deepspeed"],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout + run.stderr


def test_the_patches_are_for_the_installed_version() -> None:
    assert f"DeepSpeed {version('deepspeed')} " in (deepspeed_patches.__doc__ or "")


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not list mappings and their flags")
def test_torch_uses_huge_pages_only_when_told() -> None:
    code = "import torch; kept = torch.empty(2**26, dtype=torch.uint8); print(open('/proc/self/smaps').read())"

    def advised(**environment: str) -> int:
        clean = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
        )
        return len(re.findall(r"^VmFlags:.* hg\b", run.stdout, re.MULTILINE))

    assert advised(THP_MEM_ALLOC_ENABLE="1") == advised() + 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="DeepSpeed finds the GPU")
def test_without_an_accelerator_in_the_environment_deepspeed_warns() -> None:
    assert "Setting accelerator to CPU" in imported()
    assert "accelerator" not in imported(DS_ACCELERATOR="cpu")


def test_another_cuda_toolkit_than_torch_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "installed_cuda_version", lambda name: (11, 8))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with contextlib.redirect_stdout(io.StringIO()):
        assert builder.assert_no_cuda_mismatch()
    monkeypatch.delenv("DS_SKIP_CUDA_CHECK")
    with pytest.raises(builder.CUDAMismatchException):
        builder.assert_no_cuda_mismatch()


UNPATCHED = """
import contextlib, sys, warnings
from pathlib import Path
from distill.engine import deepspeed_engine, process_group
from tiny_engine import one_step, started, training

if sys.argv[2] == "unpatched":
    deepspeed_engine.suppressed_warnings = contextlib.nullcontext
    deepspeed_engine.deepspeed.utils.logger.setLevel("WARNING")
warnings.simplefilter("always", DeprecationWarning)
one_step(started(Path(sys.argv[1]), training(zero_stage=3), process_group.join(1)))
"""


@pytest.mark.long
def test_the_first_start_warns_and_logs(folder: Path) -> None:
    patched, unpatched = (
        subprocess.run(
            [sys.executable, "-c", UNPATCHED, str(folder), which],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(paths.SUPPORT), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            check=True,
        )
        for which in ("patched", "unpatched")
    )
    for message in ("torch.jit.script_method", "unknown inputs or outputs"):
        assert message in unpatched.stdout + unpatched.stderr
        assert message not in patched.stdout + patched.stderr


def test_a_collective_is_deprecated(workers: Workers) -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        deepspeed.comm.comm.cdb.all_gather_into_tensor(torch.empty(1), torch.ones(1))


def test_the_shared_memory_op_would_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        NAME = "deepspeed_shm_comm"
        loaded = False

        def load(self) -> str:
            self.loaded = True
            return "the compiled op"

        def absolute_name(self) -> str:
            return self.NAME

    made = Builder()
    accelerator = deepspeed.accelerator.get_accelerator()
    monkeypatch.setattr(accelerator, "create_op_builder", lambda name: made, raising=False)
    monkeypatch.setattr(deepspeed.ops, "__compatible_ops__", {Builder.NAME: True}, raising=False)
    assert importlib.import_module("deepspeed.comm.torch").build_shm_op() is None
    assert not made.loaded
    with contextlib.redirect_stdout(io.StringIO()):
        assert ORIGINALS["build_shm_op"]() == "the compiled op"
    assert made.loaded


class Reads(TorchDispatchMode):
    """Counts reads of numbers from tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def reads_of_a_step(folder: Path, workers: Workers) -> int:
    """Number of reads by DeepSpeed in the third optimizer step of a run with ZeRO-3."""
    made = started(folder, training(zero_stage=3, rows_per_device=8), workers)
    for seed in range(2):
        one_step(made, seed)
    step, counted = made._engine.step, Reads()

    def watched() -> None:
        with counted:
            step()

    made._engine.step = watched
    one_step(made, 2)
    return counted.count


def test_zero_3_reads_its_norm_from_the_device(folder: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = reads_of_a_step(folder, workers)
    monkeypatch.setattr(stage3.DeepSpeedZeroOptimizer_Stage3, "_get_norm_groups", ORIGINALS["_get_norm_groups"])
    monkeypatch.setattr(stage3, "combine_grad_norm_groups", ORIGINALS["combine_grad_norm_groups"])
    assert reads_of_a_step(folder, workers) > patched


def test_zero_3_needs_a_norm_of_no_groups() -> None:
    with pytest.raises(RuntimeError):
        ORIGINALS["combine_grad_norm_groups"]([])


def test_collectives_are_not_timed_without_the_patch(workers: Workers) -> None:
    backend = deepspeed.comm.comm.cdb
    seconds = {}
    for patched in (False, True):
        for name in deepspeed_patches._COLLECTIVES:
            backend.__dict__.pop(name, None)
        timer = StepTimer(workers.device)
        if patched:
            deepspeed_patches.time_collectives(timer)
        timer.begin("optimizer")
        backend.all_reduce(torch.ones(1))
        timer.begin("")
        seconds[patched] = timer.read()["communication"]
    assert seconds[False] == 0
    assert seconds[True] > 0


def test_adamw_states_cannot_be_read_without_the_patch(
    folder: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed_engine, "initialize_adamw_state", lambda *_: None)
    made = started(folder, training(), workers)

    def step_and_read() -> None:
        one_step(made)
        made.state(keep=True)

    with pytest.raises((ValueError, KeyError)):
        step_and_read()


def test_the_setter_for_whole_tensors_does_not_pad() -> None:
    """Seven values on two workers: partitions of four, the second one with a padded value."""
    partition = torch.zeros(4)
    optimizer = SimpleNamespace(
        _get_fp32_opt_state_partition=lambda *_, **__: (partition, 0), _get_param_partition_rank=lambda _: 1
    )
    parameter = SimpleNamespace(requires_grad=True, ds_numel=7)
    with pytest.raises(RuntimeError, match="exceeds"):
        stage3.DeepSpeedZeroOptimizer_Stage3.set_full_hp_param(optimizer, torch.ones(7), parameter)


def test_the_smallest_loss_scale_has_no_exception_of_its_own(workers: Workers) -> None:
    scaler = DynamicLossScaler(
        init_scale=1, scale_window=1, min_scale=1, delayed_shift=1, consecutive_hysteresis=False,
        raise_error_at_min_scale=True, dtype=torch.float16,
    )  # fmt: skip
    with pytest.raises(Exception, match="minimum") as raised:
        scaler.update_scale(True)
    assert raised.type is Exception
    assert deepspeed_patches.is_minimum_loss_scale(raised.value)
