"""Runs a model folder in PyTorch, or an export in its runtime, on a fixed number of threads.

Both runners take and return the same arrays; :func:`runner_for` chooses the one for a folder.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers

from cluster.artifacts.errors import StageError
from cluster.models import export_spec, model_check, model_folder, model_loading, runtimes

Ids: TypeAlias = npt.NDArray[np.int64]
Outputs: TypeAlias = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class Loaded:
    """Facts about a loaded model."""

    runtime: str
    parameters: int
    bytes: int
    """Bytes of the weights on disk."""
    load_seconds: float
    vocab_size: int
    positions: int
    """Longest input in tokens."""


class Runner(Protocol):
    """A loaded model: takes int64 ``[batch, length]``, and returns the outputs of the head in order."""

    loaded: Loaded

    def __call__(self, input_ids: Ids, attention_mask: Ids, token_type_ids: Ids | None = None) -> Outputs: ...


def runner_for(folder: Path, threads: int = 1) -> Runner:
    """The runner for a folder: the runtime of an export, otherwise PyTorch.

    Raises:
        ArtifactError: it was changed after it was made.
        StageError: neither an export nor a model folder, it cannot be loaded, or its runtime is not installed.
    """
    model_check.check(folder)
    return ExportRunner(folder, threads) if export_spec.is_export(folder) else PyTorchRunner(folder, threads)


class PyTorchRunner:
    """Runs a Hugging Face folder in eager fp32 PyTorch, with the head that its config names.

    Sets the number of threads of the whole process.

    Raises:
        StageError: no config, an unknown architecture, or weights that do not fit it.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        config = model_folder.configuration(folder)
        name = (config.architectures or ["none"])[0]
        # Imports the class before the clock starts, because import time is not load time.
        model_class: Any = getattr(transformers, name, None)
        if model_class is None:
            raise StageError(f"{folder}/config.json: architectures names {name}, which transformers does not have")
        torch.set_num_threads(threads)
        started = time.perf_counter()
        self._model = model_loading.load_whole(model_class, folder)
        seconds = time.perf_counter() - started
        self.loaded = Loaded(
            runtime=f"PyTorch {torch.__version__}",
            parameters=self._model.num_parameters(),
            bytes=model_folder.weight_bytes(folder),
            load_seconds=seconds,
            vocab_size=config.vocab_size,
            positions=model_folder.positions(config),
        )

    def __call__(self, input_ids: Ids, attention_mask: Ids, token_type_ids: Ids | None = None) -> Outputs:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            feed["token_type_ids"] = token_type_ids
        with torch.inference_mode():
            outputs = self._model(**{name: torch.from_numpy(values) for name, values in feed.items()})
        return tuple(values.numpy() for values in outputs.to_tuple())


class ExportRunner:
    """Runs an export on the CPU.

    Raises:
        StageError: not an export, it does not run on this machine, or its runtime is not installed.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        described = export_spec.read(folder)
        runtimes.prepare(described)  # imports the library before the clock starts
        started = time.perf_counter()
        self._call = runtimes.open_export(folder, threads)
        seconds = time.perf_counter() - started
        self._takes_types = "token_type_ids" in described.inputs
        self.loaded = Loaded(
            runtime=runtimes.described(described),
            parameters=described.parameters,
            bytes=described.bytes(folder),
            load_seconds=seconds,
            vocab_size=described.vocab_size,
            positions=described.positions,
        )

    def __call__(self, input_ids: Ids, attention_mask: Ids, token_type_ids: Ids | None = None) -> Outputs:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self._takes_types:
            # As in PyTorch, no types mean zeros: a single text.
            feed["token_type_ids"] = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return tuple(self._call(feed).values())
