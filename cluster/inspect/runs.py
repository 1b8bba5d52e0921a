"""Run folders: progress, losses, and the checkpoints to resume from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.inspect.findings import Block, Curves, Findings, InspectError, Pairs, Section, Table, flat
from cluster.storage import filesystem
from cluster.telemetry.formatting import count, duration, file_size, plain, share
from cluster.telemetry.loss_terms import LOSS_TERMS
from cluster.telemetry.metrics_log import read_metrics

RECIPE, METRICS, CHECKPOINTS = "recipe.json", "metrics.jsonl", "checkpoints"
_LOSSES = ("total", *LOSS_TERMS)
_RISE = 1.5
"""Ratio of the last loss to the smallest one that is worth a remark."""

Lines = Sequence[Mapping[str, Any]]


def is_run(folder: Path) -> bool:
    return (folder / RECIPE).is_file()


def described(folder: Path) -> dict[str, Any]:
    """The recipe and the identities of the inputs: ``{"recipe": …, "inputs": …}``."""
    found = _json(folder / RECIPE)
    if not {"recipe", "inputs"} <= found.keys():
        raise InspectError(f"{folder / RECIPE} is not the recipe of a run: name the folder of a run, or an artifact")
    return found


def inspect(folder: Path, verify: bool) -> Findings:
    """View of a run; ``verify`` compares the hashes of the checkpoints' files."""
    train, validations = _train_and_validation(folder / METRICS)
    sections = [_progress(train, validations)]
    if train:
        sections.append(Section("LEARNING", _curves(train, validations)))
    checkpoints, remarks = _checkpoints(folder, verify)
    sections += [checkpoints, Section("RECIPE", [Pairs(flat(described(folder)["recipe"]))])]
    headline = _headline(train, validations)
    return Findings(f"run {folder.name}", str(folder), headline, [*_remarks(train), *remarks], sections)


def curves(path: Path) -> list[Block]:
    """Curves of a ``metrics.jsonl``."""
    return _curves(*_train_and_validation(path))


def _train_and_validation(path: Path) -> tuple[Lines, Lines]:
    lines = read_metrics(path)
    train, validations = ([line for line in lines if line["kind"] == kind] for kind in ("train", "validation"))
    return train, validations


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(filesystem.read_json(path))
    except ValueError as error:
        raise InspectError(f"{path} cannot be read ({error}): it was cut or changed") from None


def _headline(train: Lines, validations: Lines) -> str:
    if not train:
        return "Validated at step 0, without a step of training." if validations else "No step was logged yet."
    last = train[-1]
    done = f"{last['step']:,} of {last['steps']:,} steps ({share(last['step'], last['steps'])})"
    return f"{done}, {count(last['tokens'])} tokens seen"


def _progress(train: Lines, validations: Lines) -> Section:
    if not train:
        values = [Pairs(_validation(validations))] if validations else []
        return Section("PROGRESS", values, "No step was logged.")
    last = train[-1]
    speed, step_seconds = (
        float(np.median([line[name] for line in train])) for name in ("tokens_per_second", "step_seconds")
    )
    left = (last["steps"] - last["step"]) * step_seconds
    entries = [
        ("step", f"{last['step']:,} of {last['steps']:,}" + (f", {duration(left)} left" if left else ", finished")),
        ("speed", f"{count(speed)} tokens/s (median)"),
        ("last losses", ", ".join(f"{name} {plain(last[name])}" for name in _LOSSES if last.get(name) is not None)),
        ("gradient norm", f"{plain(last['gradient_norm'])}, loss scale {plain(last['loss_scale'])}"),
        ("skipped steps", plain(last["skipped_steps"])),
    ]
    return Section("PROGRESS", [Pairs([*entries, *_validation(validations)])])


def _validation(validations: Lines) -> list[tuple[str, str]]:
    """The values of the last validation that were measured."""
    if not validations:
        return []
    last = validations[-1]
    values = {key: value for key, value in last.items() if key not in ("kind", "step") and value is not None}
    return [(f"validation at {last['step']:,}", plain(values))]


def _curves(train: Lines, validations: Lines) -> list[Block]:
    losses = {name: found for name in _LOSSES if (found := _curve(train, name)) and found[1].any()}
    if len(losses) == 2:
        losses.pop("total")  # equals the only term
    accuracies = ("accuracy", "agreement", "teacher_accuracy", "counts_accuracy")
    blocks: list[Block] = [Curves("Training loss by term", "step", losses, logarithmic="up")] if losses else []
    if accuracy := {name: found for name in accuracies if (found := _curve(validations, name))}:
        blocks.append(Curves("Hidden held-out words predicted exactly", "step", accuracy))
    if speed := _curve(train, "tokens_per_second"):
        blocks.append(Curves("Tokens per second", "step", {"tokens/s": speed}))
    return blocks


def _curve(lines: Lines, name: str) -> Any:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None and np.isfinite(line[name])]
    return tuple(np.array(points, dtype=np.float64).T) if points else None


def _checkpoints(folder: Path, verify: bool) -> tuple[Section, list[str]]:
    rows, remarks = [], []
    for path in sorted(folder.glob(f"{CHECKPOINTS}/step_*/checkpoint.json")):
        facts, checkpoint = _json(path), path.parent
        there = {name: checkpoint / name for name in facts["files"] if (checkpoint / name).is_file()}
        damaged = [
            name
            for name, digest in facts["files"].items()
            if name not in there or (verify and filesystem.file_sha256(there[name]) != digest)
        ]
        remarks += [f"{checkpoint / name} is damaged or missing" for name in damaged]
        state = f"damaged: {', '.join(damaged)}" if damaged else "hashes compared" if verify else "there"
        size = file_size(sum(file.stat().st_size for file in there.values()))
        rows.append((checkpoint.name, state, f"{facts['step']:,}", count(facts["tokens"]), size))
    return Section("CHECKPOINTS", [Table(("checkpoint", "state", "step", "tokens", "size"), rows, texts=2)]), remarks


def _remarks(train: Lines) -> list[str]:
    if not train:
        return []
    total = np.array([line["total"] for line in train], dtype=np.float64)
    remarks, last = [], np.median(total[-10:])
    if not np.isfinite(total).all():
        step = train[int(np.argmin(np.isfinite(total)))]["step"]
        remarks.append(f"the loss is not finite at step {step:,}")
    elif last > _RISE * total.min():
        remarks.append(f"the loss ends at {last:.4g} and was {total.min():.4g}: it has risen again")
    if (skipped := train[-1]["skipped_steps"]) > 0.01 * train[-1]["step"]:
        remarks.append(f"{skipped:,} steps were skipped because of overflows")
    return remarks
