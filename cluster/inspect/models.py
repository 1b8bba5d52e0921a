"""Models: their parts, the spread of their weights, values that are not finite, and scores."""

import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from cluster.artifacts.artifact import Artifact
from cluster.inspect.findings import Bars, Block, Findings, InspectError, Pairs, Section, Table, flat
from cluster.models import model_folder
from cluster.storage import filesystem
from cluster.telemetry import progress
from cluster.telemetry.formatting import count, plain, share

ONNX = "model.onnx"
_LAYER = re.compile(r"\blayers?\.(\d+)\.")
_CONFIG = ("vocab_size", "max_position_embeddings", "hidden_act", "num_attention_heads", "n_heads", "num_labels")


@dataclass(frozen=True)
class Tensor:
    """A tensor of a weights file."""

    name: str
    dtype: str
    values: npt.NDArray[np.float32]

    @property
    def part(self) -> str:
        """``layer N``, ``embeddings`` or ``head``."""
        if found := _LAYER.search(self.name):
            return f"layer {found[1]}"
        return "embeddings" if "embeddings" in self.name else "head"


def inspect(found: Artifact, num_samples: int) -> Findings:
    """View of a teacher, a student, a fine-tuned model or an export."""
    sections, remarks = [_facts(found)], list[str]()
    if model_folder.has_weights(found.path):
        section, remarks = _weights(model_folder.weights(found.path))
        sections.append(section)
    if ONNX in found.files:
        sections.append(_graph(found.path / ONNX))
    if found.kind == "finetune":
        section, more = _scores(found)
        sections, remarks = [section, *sections], remarks + more
    return Findings(remarks=remarks, sections=sections)


def _facts(found: Artifact) -> Section:
    known = {key: value for key, value in found.facts.items() if key not in ("vocabulary", "source", "lineage")}
    if isinstance(found.facts.get("source"), str) and found.kind == "teacher":
        known["source"] = found.facts["source"]
    if "config.json" in found.files:
        config = filesystem.read_json(found.path / "config.json")
        known["config"] = {key: config[key] for key in _CONFIG if key in config}
    return Section("MODEL", [Pairs(flat(known))])


def read(path: Path) -> Iterator[Tensor]:
    """The floating-point tensors of a safetensors file, one at a time, from a memory map.

    Raises:
        InspectError: the file is cut or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:  # NumPy has no bfloat16
            for name in file.keys():  # noqa: SIM118
                if (tensor := file.get_tensor(name)).is_floating_point():
                    yield Tensor(name, file.get_slice(name).get_dtype(), tensor.float().flatten().numpy())
    except SafetensorError as error:
        raise InspectError(f"{path} is not a weights file ({error}): make the artifact again") from None


def _weights(paths: Sequence[Path]) -> tuple[Section, list[str]]:
    parts: dict[str, list[Tensor]] = defaultdict(list)
    types, remarks = Counter[str](), list[str]()
    for tensor in progress.progress(itertools.chain(*map(read, paths)), "weights", 0, "tensors"):
        parts[tensor.part].append(tensor)
        types[tensor.dtype] += tensor.values.size
        remarks += _problems(tensor)
    ordered = {part: parts[part] for part in sorted(parts, key=_height)}
    numbers = {part: sum(tensor.values.size for tensor in tensors) for part, tensors in ordered.items()}
    spreads = {part: _spread(tensors) for part, tensors in ordered.items()}
    total = sum(numbers.values())
    rows = [
        (part, str(len(parts[part])), count(number), share(number, total), *map("{:.3g}".format, spreads[part]))
        for part, number in numbers.items()
    ]
    deviations = {part: deviation for part, (deviation, _) in spreads.items()}
    blocks: list[Block] = [
        Table(("part", "tensors", "parameters", "share", "spread", "largest"), rows),
        Bars("Parameters by part", "parameters", numbers, count),
        Bars("Spread of the weights by part", "standard deviation", deviations),
    ]
    names = paths[0].name if len(paths) == 1 else f"{len(paths)} files"
    kinds = ", ".join(f"{count(number)} {dtype}" for dtype, number in types.most_common())
    return Section("WEIGHTS", blocks, f"{count(total)} numbers in {names} ({kinds})."), remarks


def _problems(tensor: Tensor) -> list[str]:
    if broken := int((~np.isfinite(tensor.values)).sum()):
        return [f"{broken:,} of {tensor.values.size:,} weights of {tensor.name} are not finite"]
    if tensor.name.endswith("weight") and not tensor.values.any():
        return [f"all weights of {tensor.name} are 0"]
    return []


def _spread(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Standard deviation and largest absolute value of the weights, without biases."""
    weights = [tensor.values for tensor in tensors if tensor.name.endswith("weight")]
    values = np.concatenate(weights or [np.zeros(1, dtype=np.float32)])
    with np.errstate(invalid="ignore"):
        return float(values.std()), float(np.abs(values).max())


def _height(part: str) -> tuple[int, int]:
    """Sort key, from the bottom of the model to its top."""
    if part.startswith("layer "):
        return 1, int(part.split()[1])
    return (0, 0) if part == "embeddings" else (2, 0)


def _graph(path: Path) -> Section:
    """Operators and number types of an ONNX model."""
    import onnx  # only exports need it

    graph = onnx.load(path, load_external_data=False).graph
    operators = Counter(node.op_type for node in graph.node)
    numbers = Counter[str]()
    for tensor in graph.initializer:
        numbers[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += int(np.prod(tensor.dims))
    total = numbers.total()
    entries = [
        ("inputs", ", ".join(entry.name for entry in graph.input)),
        ("outputs", ", ".join(entry.name for entry in graph.output)),
        ("operators", f"{operators.total():,} of {len(operators)} types"),
    ]
    by_type = dict(numbers.most_common())
    blocks: list[Block] = [
        Pairs(entries),
        Bars("Numbers in the model by type", "numbers", by_type, lambda n: f"{count(n)}  {share(n, total)}"),
        Bars("Operators", "operators", dict(operators.most_common(12))),
    ]
    return Section("GRAPH", blocks)


def _scores(found: Artifact) -> tuple[Section, list[str]]:
    facts = found.facts
    scores = {f"seed {one['seed']}": one["score"] for one in filesystem.read_json(found.path / "scores.json")["seeds"]}
    remarks = []
    if statistics.median(scores.values()) <= facts["majority"]:
        remarks.append(f"no better than always answering the most frequent label ({facts['majority']:.1f})")
    if facts["subset"]:
        remarks.append("measured on a part of the task's examples: do not compare with published numbers")
    title = f"{facts['metric']} on {plain(facts['dev_examples'])} examples of {facts['task']}"
    values = {"most frequent answer": facts["majority"], **scores}
    return Section("SCORES", [Bars(title, facts["metric"], values, "{:.1f}".format)]), remarks
