"""Models in separate processes: timed inside, their memory measured alone, and named in errors."""

import json
import os
import signal
from pathlib import Path

import model_exports
import models_with_heads
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rapl_counters import domain

from cluster.models.export_spec import Exported
from eval.benchmark.model_process import ModelProcess, ModelProcessError, Opening, write_inputs

NAMES = ("input_ids", "attention_mask")


def inputs(path: Path, rows: int, length: int = 8) -> Path:
    ids = np.random.default_rng(0).integers(5, 90, (rows, 1, length))
    write_inputs(path, [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids])
    return path


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of 1 MB that averages embeddings of its ids."""
    folder = tmp_path_factory.mktemp("export")
    table = np.random.default_rng(0).normal(size=(100, 2500)).astype(np.float32)
    ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "length"]) for name in NAMES)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 2500])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("ReduceMean", ["words"], ["logits"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "mean", [ids, mask], [logits], [numpy_helper.from_array(table, "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    described = Exported(
        "onnx",
        "onnxruntime",
        {"any": "model.onnx"},
        "classification",
        NAMES,
        {"logits": "classes"},
        512,
        0,
        100,
        250_000,
    )
    described.write(folder)
    return folder


def test_an_export_is_timed_by_itself(export: Path, tmp_path: Path) -> None:
    counter = domain(tmp_path / "powercap", "package-0", "intel-rapl:0", 500)
    opening = Opening("student onnx", "export", export, 1, powercap=counter.parents[1])
    with ModelProcess(opening) as process:
        assert process.load_seconds > process.opened["open_seconds"] > 0
        assert process.opened["runtime"].startswith("ONNX Runtime")
        assert process.opened["bytes"] == (export / "model.onnx").stat().st_size
        assert process.take(inputs(tmp_path / "inputs.npz", 7)) == 7
        assert process.first() > 0
        turn = process.turn(2, 6)
        assert len(turn.ms) == 4
        assert min(turn.ms) > 0
        assert turn.joules == 0, "the counter exists and did not move"
        with pytest.raises(ModelProcessError, match=r"student onnx: IndexError: list index out of range"):
            process.turn(6, 9)


def test_measured_memory_is_the_model_s(export: Path, tmp_path: Path) -> None:
    ballast = np.ones(60_000_000)
    with ModelProcess(Opening("student onnx", "export", export, 1)) as process:
        process.take(inputs(tmp_path / "inputs.npz", 2))
        process.first()
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        held = process.end()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    assert held["peak_memory_bytes"] is not None
    assert held["model_memory_bytes"] is not None
    assert 0 < held["model_memory_bytes"] < held["peak_memory_bytes"] < ballast.nbytes


@model_exports.needs("executorch", "torchao")
@pytest.mark.long
def test_a_runtime_brings_its_operators_into_a_new_process(tmp_path: Path) -> None:
    model = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    made = model_exports.make(
        "deploy.executorch_export",
        tmp_path / "pte",
        {"model": model},
        tolerance=model_exports.LOOSE,
        probe=model_exports.PROBE,
    )
    with ModelProcess(Opening("student executorch-int8", "export", made.path, 1)) as process:
        process.take(inputs(tmp_path / "inputs.npz", 1))
        assert process.first() > 0, "8-bit embeddings are in a separate library"


def test_a_process_that_dies_is_named(export: Path) -> None:
    with ModelProcess(Opening("student onnx", "export", export, 1)) as process:
        os.kill(process.pid, signal.SIGKILL)
        # Ended with all its threads, which hold the pipe as long as they live; it is not reaped.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ModelProcessError, match=r"^student onnx: its process died \(signal 9; memory may have"):
            process.first()


def test_a_model_that_does_not_load_is_named(export: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(ModelProcessError, match=r"^teacher: .* is not an export"),
        ModelProcess(Opening("teacher", "export", tmp_path, 1)),
    ):
        pass
    described = json.loads((export / "runtime.json").read_text())
    (tmp_path / "runtime.json").write_text(json.dumps({**described, "runtime": "coreml", "format": "coreml-fp16"}))
    with (
        pytest.raises(ModelProcessError, match=r"^teacher: coreml-fp16 runs on a Mac"),
        ModelProcess(Opening("teacher", "export", tmp_path, 1)),
    ):
        pass
