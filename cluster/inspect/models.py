"""What is in an artifact with a model: its parts, how their weights are spread, and whether all of them are numbers."""

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import Bars, Block, Findings, InspectError, Pairs, Section, Table, flat
from cluster.telemetry import progress
from cluster.telemetry.formatting import count, plain, share

WEIGHTS, ONNX = "model.safetensors", "model.onnx"
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LAYER = re.compile(r"\blayers?\.(\d+)\.")
_CONFIG = ("vocab_size", "max_position_embeddings", "hidden_act", "num_attention_heads", "n_heads", "num_labels")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file of weights."""

    name: str
    dtype: str
    values: npt.NDArray[np.float32]

    @property
    def part(self) -> str:
        """Layer, embeddings or head."""
        if found := _LAYER.search(self.name):
            return f"layer {found[1]}"
        return "embeddings" if "embeddings" in self.name else "head"


def inspect(found: Artifact, num_samples: int) -> Findings:
    """All there is to see of a teacher, a student, a fine-tuned model or an export."""
    sections = [_facts(found)]
    remarks: list[str] = []
    if WEIGHTS in found.files:
        section, remarks = _weights(found.path / WEIGHTS)
        sections.append(section)
    if ONNX in found.files:
        sections.append(_graph(found.path / ONNX))
    if found.kind == "finetune":
        section, more = _scores(found)
        sections, remarks = [section, *sections], remarks + more
    return Findings("", "", "", remarks, sections)


def _facts(found: Artifact) -> Section:
    known = {key: value for key, value in found.facts.items() if key not in ("vocabulary", "source", "lineage")}
    if isinstance(found.facts.get("source"), str) and found.kind == "teacher":
        known["source"] = found.facts["source"]
    if "config.json" in found.files:
        config = json.loads((found.path / "config.json").read_text(encoding="utf-8"))
        known["config"] = {key: config[key] for key in _CONFIG if key in config}
    return Section("MODEL", [Pairs(flat(known))])


def read(path: Path) -> Iterator[Tensor]:
    """The floating-point tensors of a safetensors file, one at a time, from a memory map.

    Raises:
        InspectError: the file is cut or no safetensors file.
    """
    mapped = np.memmap(path, dtype=np.uint8, mode="r")
    try:
        start = 8 + int(mapped[:8].view("<u8")[0])
        header = json.loads(bytes(mapped[8:start]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if entry["dtype"] in _TYPES:
                values = np.frombuffer(mapped[start + begin : start + end], dtype=_TYPES[entry["dtype"]])
                yield Tensor(name, entry["dtype"], _as_float(values, entry["dtype"]))
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise InspectError(f"{path} is no file of weights ({error}): make the artifact again") from None


def _as_float(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _weights(path: Path) -> tuple[Section, list[str]]:
    parts: dict[str, list[Tensor]] = defaultdict(list)
    types, remarks = Counter[str](), list[str]()
    for tensor in progress.progress(read(path), "weights", 0, "tensors"):
        parts[tensor.part].append(tensor)
        types[tensor.dtype] += tensor.values.size
        remarks += _broken(tensor)
    ordered = {part: parts[part] for part in sorted(parts, key=_place)}
    numbers = {part: sum(tensor.values.size for tensor in tensors) for part, tensors in ordered.items()}
    spreads = {part: _spread(tensors) for part, tensors in ordered.items()}
    total = sum(numbers.values())
    rows = [
        (
            part,
            str(len(tensors)),
            count(numbers[part]),
            share(numbers[part], total),
            *map("{:.3g}".format, spreads[part]),
        )
        for part, tensors in ordered.items()
    ]
    blocks: list[Block] = [
        Table(("part", "tensors", "parameters", "share", "spread", "largest"), rows),
        Bars("Parameters by part", "parameters", numbers, {part: count(number) for part, number in numbers.items()}),
        Bars(
            "Spread of the weights by part",
            "standard deviation",
            {part: spread for part, (spread, _) in spreads.items()},
        ),
    ]
    kinds = ", ".join(f"{count(number)} {dtype}" for dtype, number in types.most_common())
    return Section("WEIGHTS", blocks, f"{count(total)} numbers in {path.name} ({kinds})."), remarks


def _broken(tensor: Tensor) -> list[str]:
    """What is wrong with a tensor."""
    if broken := int((~np.isfinite(tensor.values)).sum()):
        return [f"{broken:,} of {tensor.values.size:,} weights of {tensor.name} are no finite numbers"]
    if tensor.name.endswith("weight") and not tensor.values.any():
        return [f"all weights of {tensor.name} are 0"]
    return []


def _spread(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Standard deviation and largest absolute value of the weights; biases are apart from them."""
    weights = [tensor.values for tensor in tensors if tensor.name.endswith("weight")]
    values = np.concatenate(weights or [np.zeros(1, dtype=np.float32)])
    with np.errstate(invalid="ignore"):
        return float(values.std()), float(np.abs(values).max())


def _place(part: str) -> tuple[int, int]:
    """From the bottom of the model to its top."""
    if part.startswith("layer "):
        return 1, int(part.split()[1])
    return (0, 0) if part == "embeddings" else (2, 0)


def _graph(path: Path) -> Section:
    """Operators and the types of the numbers of an ONNX model."""
    import onnx  # only exports need it

    graph = onnx.load(path, load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    numbers = Counter[str]()
    for tensor in graph.initializer:
        numbers[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += int(np.prod(tensor.dims))
    shown = {dtype: f"{count(number)}  {share(number, numbers.total())}" for dtype, number in numbers.items()}
    often = dict(operators.most_common(12))
    inputs = ", ".join(entry.name for entry in graph.input)
    outputs = ", ".join(entry.name for entry in graph.output)
    return Section(
        "GRAPH",
        [
            Pairs(
                [
                    ("reads", inputs),
                    ("gives", outputs),
                    ("operators", f"{operators.total():,} of {len(operators)} types"),
                ]
            ),
            Bars("Numbers in the model by type", "numbers", dict(numbers.most_common()), shown),
            Bars("Operators", "operators", often),
        ],
    )


def _scores(found: Artifact) -> tuple[Section, list[str]]:
    facts = found.facts
    scores = json.loads((found.path / "scores.json").read_text(encoding="utf-8"))
    values = {"most frequent answer": facts["majority"]}
    values |= {f"seed {result['seed']}": result["score"] for result in scores["seeds"]}
    shown = {name: f"{value:.1f}" for name, value in values.items()}
    remarks = []
    if statistics.median(result["score"] for result in scores["seeds"]) <= facts["majority"]:
        remarks.append(f"no better than always giving the most frequent answer ({facts['majority']:.1f})")
    if facts["subset"]:
        remarks.append("measured on a part of the task's examples: not to be compared with published numbers")
    title = f"{facts['metric']} on {plain(facts['dev_examples'])} examples of {facts['task']}"
    return Section("SCORES", [Bars(title, facts["metric"], values, shown)]), remarks
