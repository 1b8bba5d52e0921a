"""Run a model folder in PyTorch, or an export in its runtime, at batch 1 and up, on a fixed number of threads.

Both runners take the same arrays and give the same arrays back, so what measures or scores them asks only
:func:`runner_for` which one a folder needs.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from cluster.artifacts.errors import StageError
from cluster.models import export_spec, model_folder, runtimes
from cluster.tokens.tokenizer import quiet_tokenizer

Ids: TypeAlias = npt.NDArray[np.int64]
Outputs: TypeAlias = tuple[npt.NDArray[np.float32], ...]


@dataclass(frozen=True)
class Loaded:
    """What is known of a model once it is loaded; ``bytes`` are those of its weights on disk."""

    runtime: str
    parameters: int
    bytes: int
    load_seconds: float
    vocab_size: int
    positions: int
    """Longest input in tokens."""


class Runner(Protocol):
    """A loaded model: int64 ``[batch, length]`` in, the head's outputs in their order out."""

    loaded: Loaded

    def __call__(self, input_ids: Ids, attention_mask: Ids, token_type_ids: Ids | None = None) -> Outputs: ...


def runner_for(folder: Path, threads: int = 1) -> Runner:
    """The runner a folder needs: an export's own runtime, PyTorch otherwise.

    Raises:
        StageError: neither an export nor a model folder that loads, or its runtime is not installed.
    """
    return ExportRunner(folder, threads) if export_spec.is_export(folder) else PyTorchRunner(folder, threads)


class PyTorchRunner:
    """A Hugging Face folder in eager fp32 PyTorch, with the head its config names.

    Sets the number of threads of this whole process: PyTorch knows no other.

    Raises:
        StageError: no config, no known architecture, or weights that lack a part of it.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        config = model_folder.configuration(folder)
        # The class is imported before the clock starts: that is Python's time, not the model's.
        model_class = _model_class(folder, config)
        torch.set_num_threads(threads)
        started = time.perf_counter()
        with quiet_tokenizer():
            model, loading = model_class.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        seconds = time.perf_counter() - started
        if loading["missing_keys"]:
            raise StageError(
                f"{folder}: its weights lack {sorted(loading['missing_keys'])[0]}: save the whole model there"
            )
        self._model = model.eval()
        self.takes_types = getattr(config, "type_vocab_size", 1) > 1
        """Whether it tells the second text of a pair from the first by token types: BERT does, RoBERTa does not."""
        self.loaded = Loaded(
            runtime=f"PyTorch {torch.__version__}",
            parameters=model.num_parameters(),
            bytes=model_folder.weight_bytes(folder),
            load_seconds=seconds,
            vocab_size=config.vocab_size,
            positions=model_folder.positions(config),
        )

    def __call__(self, input_ids: Ids, attention_mask: Ids, token_type_ids: Ids | None = None) -> Outputs:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            given["token_type_ids"] = token_type_ids
        with torch.inference_mode():
            found = self._model(**{name: torch.from_numpy(values) for name, values in given.items()})
        return tuple(values.numpy() for values in found.to_tuple())


class ExportRunner:
    """An export of any format that runs on this machine, on ``threads`` threads of the processor.

    Raises:
        StageError: not an export, one that does not run here, or its runtime is not installed.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        described = export_spec.read(folder)
        # Libraries are imported before the clock starts: that is Python's time, not the model's.
        runtimes.prepare(described)
        started = time.perf_counter()
        self._call = runtimes.open_export(folder, threads)
        seconds = time.perf_counter() - started
        self._inputs = described.inputs
        self.takes_types = "token_type_ids" in described.inputs
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
        if self.takes_types:
            # As in PyTorch, where no types means all zero: one single text.
            feed["token_type_ids"] = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        return tuple(self._call(feed).values())


def _model_class(folder: Path, config: PretrainedConfig) -> type[PreTrainedModel]:
    name = (config.architectures or ["none"])[0]
    found: Any = getattr(transformers, name, None)
    if found is None:
        raise StageError(f"{folder}/config.json: architectures names {name}, which transformers does not have")
    return found  # type: ignore[no-any-return]
