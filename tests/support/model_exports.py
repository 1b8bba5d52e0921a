"""Tiny models, exports of them, and data of a tiny task."""

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import models_with_heads
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from cluster.artifacts import artifact, registry, stage

LOOSE = {"relative": 1.0, "agreement": 0.1, "score": 100.0}
PROBE = {"lengths": [8, 24], "rows": 2}


Test = TypeVar("Test", bound=Callable[..., None])


def needs(*distributions: str) -> Callable[[Test], Test]:
    """Mark a test that needs these distributions, and skip it where one is not installed."""
    absent = [name for name in distributions if not _installed(name)]
    skip = pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} is not installed: make test-toolchains does")

    def mark(test: Test) -> Test:
        marked: Test = pytest.mark.toolchain(skip(test))
        return marked

    return mark


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def make(module: str, out: Path, inputs: Mapping[str, Path], **values: Any) -> artifact.Artifact:
    """Run a stage with these recipe values; returns the artifact."""
    found = registry.find(module)
    made = stage.execute(found, found.read(values), inputs, out)
    assert made is not None
    return made


def onnx(model: Path, out: Path, **values: Any) -> Path:
    return make("deploy.onnx_export", out, {"model": model}, probe=PROBE, **values).path


def int8(export: Path, model: Path, out: Path, **values: Any) -> Path:
    return make("deploy.quantize", out, {"export": export, "model": model}, tolerance=LOOSE, **values).path


def pairs(folder: Path, rows: int = 24) -> Path:
    """Data in MRPC's columns with random labels."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for split in ("train", "dev"):
        chosen = chance.choice(tiny.ENGLISH, (rows, 2))
        columns = {"sentence1": chosen[:, 0], "sentence2": chosen[:, 1], "label": chance.integers(0, 2, rows)}
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / f"{split}.parquet")
    return folder


def mrpc_model(folder: Path, family: str = "distilbert", *, layers: int = 1) -> Path:
    """A random classifier with the labels of MRPC."""
    labels = ("not_equivalent", "equivalent")
    return models_with_heads.model_folder(folder, family, "classification", layers=layers, labels=labels)
