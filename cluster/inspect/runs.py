"""What is in a run folder: how far it got, how it learned, and what it can go on from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.inspect.findings import Block, Curves, Findings, InspectError, Pairs, Section, Table, flat
from cluster.storage import filesystem
from cluster.telemetry.formatting import count, duration, file_size, plain, share

RECIPE, METRICS, CHECKPOINTS = "recipe.json", "metrics.jsonl", "checkpoints"
_LOSSES = ("total", "soft", "masked", "cosine")
_RISE = 1.5
"""So many times its least loss a run may end at without a remark."""


def is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file()


def described(folder: Path) -> dict[str, Any]:
    """What is trained, and the identities of what it is trained from: ``{"recipe": …, "inputs": …}``."""
    found: dict[str, Any] = _parsed(folder / RECIPE, (folder / RECIPE).read_text(encoding="utf-8"))
    if not {"recipe", "inputs"} <= found.keys():
        raise InspectError(f"{folder / RECIPE} is no recipe of a run: name the folder of a run, or an artifact")
    return found


def inspect(folder: Path, verify: bool) -> Findings:
    """All there is to see of a run."""
    lines = _lines(folder / METRICS)
    train = [line for line in lines if line["kind"] == "train"]
    validations = [line for line in lines if line["kind"] == "validation"]
    sections = [_progress(train, validations)]
    if train:
        sections.append(Section("LEARNING", _curves(train, validations)))
    checkpoints, remarks = _checkpoints(folder, verify)
    sections += [checkpoints, Section("RECIPE", [Pairs(flat(described(folder)["recipe"]))])]
    return Findings(f"run {folder.name}", str(folder), _headline(train), [*_remarks(train), *remarks], sections)


def curves(path: Path) -> list[Block]:
    """How the model beside a ``metrics.jsonl`` learned."""
    lines = _lines(path)
    kinds = ([line for line in lines if line["kind"] == kind] for kind in ("train", "validation"))
    return _curves(*kinds)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``; the last may be half written while the run goes on."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [_parsed(path, line) for line in complete.splitlines()]


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError as error:
        raise InspectError(f"{path} cannot be read ({error}): it was cut or changed") from None


def _headline(train: Sequence[Mapping[str, Any]]) -> str:
    if not train:
        return "Nothing has been trained yet."
    last = train[-1]
    done = f"{last['step']:,} of {last['steps']:,} steps ({share(last['step'], last['steps'])})"
    return f"{done}, {count(last['tokens'])} tokens seen"


def _progress(train: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> Section:
    if not train:
        return Section("PROGRESS", [], "No step was logged.")
    last = train[-1]
    speed = float(np.median([line["tokens_per_second"] for line in train]))
    left = (last["steps"] - last["step"]) * float(np.median([line["step_seconds"] for line in train]))
    entries = [
        ("step", f"{last['step']:,} of {last['steps']:,}" + (f", {duration(left)} left" if left else ", finished")),
        ("speed", f"{count(speed)} tokens/s (median)"),
        ("last losses", ", ".join(f"{name} {plain(last[name])}" for name in _LOSSES if last.get(name) is not None)),
        ("gradient norm", f"{plain(last['gradient_norm'])}, loss scale {plain(last['loss_scale'])}"),
        ("skipped steps", plain(last["skipped_steps"])),
    ]
    if validations:
        told = (
            (key, value) for key, value in validations[-1].items() if key not in ("kind", "step") and value is not None
        )
        entries.append(
            (f"validation at {validations[-1]['step']:,}", ", ".join(f"{key} {plain(value)}" for key, value in told))
        )
    return Section("PROGRESS", [Pairs(entries)])


def _curves(train: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> list[Block]:
    losses = {name: found for name in _LOSSES if (found := _curve(train, name)) and found[1].any()}
    if len(losses) == 2:
        losses.pop("total")  # is the only term
    blocks: list[Block] = [Curves("Training loss by term", "step", losses, logarithmic="up")] if losses else []
    accuracy = {
        name: found for name in ("accuracy", "agreement", "teacher_accuracy") if (found := _curve(validations, name))
    }
    if accuracy:
        blocks.append(Curves("Held-out words predicted exactly", "step", accuracy))
    if speed := _curve(train, "tokens_per_second"):
        blocks.append(Curves("Tokens per second", "step", {"tokens/s": speed}))
    return blocks


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> Any:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None and np.isfinite(line[name])]
    return tuple(np.array(points, dtype=np.float64).T) if points else None


def _checkpoints(folder: Path, verify: bool) -> tuple[Section, list[str]]:
    rows, remarks = [], []
    for path in sorted(folder.glob(f"{CHECKPOINTS}/step_*/checkpoint.json")):
        facts = _parsed(path, path.read_text(encoding="utf-8"))
        files = [path.parent / name for name in facts["files"]]
        damaged = [file.name for file in files if not file.is_file()]
        if verify:
            sound = {name for name in facts["files"] if name not in damaged}
            damaged += [name for name in sound if filesystem.file_sha256(path.parent / name) != facts["files"][name]]
        remarks += [f"{path.parent / name} is damaged or missing" for name in damaged]
        state = f"damaged: {', '.join(damaged)}" if damaged else "hashes compared" if verify else "there"
        bytes_there = sum(file.stat().st_size for file in files if file.is_file())
        rows.append((path.parent.name, state, f"{facts['step']:,}", count(facts["tokens"]), file_size(bytes_there)))
    return Section("CHECKPOINTS", [Table(("checkpoint", "state", "step", "tokens", "size"), rows, texts=2)]), remarks


def _remarks(train: Sequence[Mapping[str, Any]]) -> list[str]:
    if not train:
        return []
    total = np.array([line["total"] for line in train], dtype=np.float64)
    remarks = []
    if not np.isfinite(total).all():
        step = train[int(np.argmin(np.isfinite(total)))]["step"]
        remarks.append(f"the loss is no finite number at step {step:,}")
    elif np.median(total[-10:]) > _RISE * total.min():
        remarks.append(f"the loss ends at {np.median(total[-10:]):.4g}, and was {total.min():.4g}: it has risen again")
    if (skipped := train[-1]["skipped_steps"]) > 0.01 * train[-1]["step"]:
        remarks.append(f"{skipped:,} steps were skipped for an overflow")
    return remarks
