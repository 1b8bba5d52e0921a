"""Opens exported models in their runtimes, each as a function of named arrays.

The function hides what a runtime cannot do: it pads rows for a file of fixed length and cuts the outputs back, and
runs a batch row by row where a runtime takes one row at a time.
"""

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.artifacts.errors import StageError
from cluster.models.export_spec import ANY, Exported, read

Feed: TypeAlias = Mapping[str, npt.NDArray[np.int64]]
"""Named model inputs, each ``[rows, length]``."""

Outputs: TypeAlias = dict[str, npt.NDArray[np.float32]]

Call: TypeAlias = Callable[[Feed], Outputs]


def open_export(folder: Path, threads: int = 1) -> Call:
    """The model of an export as a function of its inputs, on ``threads`` threads of the CPU.

    Raises:
        StageError: not an export, it does not run on this machine, or its runtime is not installed.
    """
    exported = read(folder)
    prepare(exported)
    load = RUNTIMES[exported.runtime].load
    opened = {key: load(folder / name, exported, threads) for key, name in exported.files.items()}
    whole = opened[ANY] if exported.lengths is None else _padded(exported, {int(key): opened[key] for key in opened})
    return row_by_row(whole) if exported.rows == "one" else whole


def require(distribution: str, install: str) -> str:
    """Version of a library.

    Raises:
        StageError: it is not installed; the message says ``pip install`` with the arguments ``install``.
    """
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise StageError(f"{distribution} is not installed: pip install {install}") from None


def prepare(exported: Exported) -> None:
    """Import the library that runs an export, which may take seconds.

    Raises:
        StageError: it is not installed, or does not exist for this machine.
    """
    if exported.runtime not in RUNTIMES:
        raise StageError(f"{exported.format} runs on a Mac, iPhone or iPad only: open it there with Xcode")
    runtime = RUNTIMES[exported.runtime]
    require(runtime.distribution, f"'stillhouse[{runtime.extra}]'")
    for module in runtime.modules:
        importlib.import_module(module)


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what C++ writes to stderr: no setting stops ExecuTorch's notes on CPU and threads."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def described(exported: Exported) -> str:
    """Title and version of the runtime, and the precision: ``ONNX Runtime 1.31.1 int8``."""
    runtime = RUNTIMES[exported.runtime]
    precision = next((word for word in ("int8", "fp16") if word in exported.format), "fp32")
    return f"{runtime.title} {importlib.metadata.version(runtime.distribution)} {precision}"


def onnx_call(path: Path, outputs: Iterable[str], threads: int) -> Call:
    """An ONNX or ORT file as a function of its inputs, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    session, names = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), list(outputs)
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _onnxruntime(path: Path, exported: Exported, threads: int) -> Call:
    return onnx_call(path, exported.outputs, threads)


def _openvino(path: Path, exported: Exported, threads: int) -> Call:
    import openvino

    # By default OpenVINO runs fp32 and int8 models in bf16 if the CPU has it.
    hints = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", hints)

    def call(feed: Feed) -> Outputs:
        found = compiled(dict(feed))
        return {name: np.array(found[name], dtype=np.float32) for name in exported.outputs}

    return call


def _executorch(path: Path, exported: Exported, threads: int) -> Call:
    import torch
    from executorch.extension.pybindings import portable_lib

    # ExecuTorch has one thread pool for the whole process.
    with _silent_stderr():
        portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(str(path))

    def call(feed: Feed) -> Outputs:
        found = module.forward([torch.from_numpy(np.ascontiguousarray(feed[name])) for name in exported.inputs])
        # A copy, because the next call writes to the same memory.
        return {name: values.float().clone().numpy() for name, values in zip(exported.outputs, found, strict=True)}

    return call


def _litert(path: Path, exported: Exported, threads: int) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    run = interpreter.get_signature_runner()

    def call(feed: Feed) -> Outputs:
        found = run(**{name: feed[name].astype(np.int32) for name in exported.inputs})
        return {name: found[name].astype(np.float32) for name in exported.outputs}

    return call


class Runtime(NamedTuple):
    """A library that runs exports."""

    title: str
    load: Callable[[Path, Exported, int], Call]
    distribution: str
    extra: str | None
    """The extra of this package that installs the library."""
    modules: tuple[str, ...]


RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime": Runtime("ONNX Runtime", _onnxruntime, "onnxruntime", None, ("onnxruntime",)),
    "openvino": Runtime("OpenVINO", _openvino, "openvino", "openvino", ("openvino",)),
    "executorch": Runtime(
        "ExecuTorch",
        _executorch,
        "executorch",
        "executorch",
        # The second registers the operator of 8-bit embeddings.
        ("executorch.extension.pybindings.portable_lib", "executorch.kernels.quantized"),
    ),
    "litert": Runtime("LiteRT", _litert, "ai-edge-litert", "litert", ("ai_edge_litert.interpreter",)),
}


def _padded(exported: Exported, by_length: Mapping[int, Call]) -> Call:
    """Pads rows to the shortest length that holds them, and cuts the outputs of the padding off."""

    def call(feed: Feed) -> Outputs:
        length = feed["input_ids"].shape[1]
        room = min((each for each in by_length if each >= length), default=None)
        if room is None:
            raise StageError(f"{length} tokens are more than this {exported.format} takes: at most {max(by_length)}")
        fill = {"input_ids": exported.pad}
        padding = ((0, 0), (0, room - length))
        padded = {name: np.pad(row, padding, constant_values=fill.get(name, 0)) for name, row in feed.items()}
        found = by_length[room](padded)
        return {
            name: found[name] if layout == "classes" else found[name][:, :length]
            for name, layout in exported.outputs.items()
        }

    return call


def row_by_row(single: Call) -> Call:
    """A function of a batch from one that takes a single row at a time."""

    def call(feed: Feed) -> Outputs:
        rows = range(len(feed["input_ids"]))
        found = [single({name: values[row : row + 1] for name, values in feed.items()}) for row in rows]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    return call
