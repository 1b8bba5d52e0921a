"""Text of a plan: aligned lines, numbers with units, and the assumptions."""

import textwrap
from collections.abc import Sequence

from cluster.telemetry.formatting import duration, file_size, hours, memory_size, millions, plural
from distill.cost_model import step_prediction
from distill.cost_model.costs import checkpoint_bytes
from distill.cost_model.forecast import Forecast, PlannedRun, checkpoints_kept, scaled
from distill.cost_model.hardware import Cluster
from distill.cost_model.step_prediction import Layout, Prediction
from distill.modeling.model_shape import ModelShape
from distill.plan.answer import Totals, amount

PUBLISHED = {"DistilBERT": 720, "RoBERTa": 24_576}
"""GPU-hours: 8 V100 for 90 hours (Sanh et al. 2019), 1,024 V100 for a day (Liu et al. 2019)."""
SCALES = (8, 64)
"""Numbers of workers in the section about scaling."""

_WIDTH, _LABEL = 112, 22


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = []
    for first, *others in [heads, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(f"  {'   '.join([first.ljust(widths[0]), *cells])}".rstrip())
    return lines


def line(label: str, value: str) -> str:
    """A label and its value, wrapped below itself."""
    indent = " " * (2 + _LABEL)
    return textwrap.fill(f"  {label:<{_LABEL}}{value}", _WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def whole(
    name: str, assumed: Sequence[str], forecasts: Sequence[Forecast], totals: Totals, explain: bool = False
) -> str:
    """One plan in full: the answer, the main run, other runs of the recipe, layouts, refusals and assumptions.

    ``explain`` adds the formula of a step and how the run scales.
    """
    found = forecasts[0]
    parts = [
        [textwrap.fill(words, _WIDTH, break_on_hyphens=False) for words in (totals.sentence(), *totals.doubts())],
        [f"{name} on {found.cluster.name}", *_what(found.planned, found.chosen)],
        _time(forecasts),
        _memory(found),
        _disk_and_network(found),
        _best(found),
        _scaling(found) if explain else [],
        [*_others_refused(forecasts), *_notes([*assumed, *filter(None, [totals.suite_note])], found)],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def side_by_side(
    name: str, assumed: Sequence[str], plans: Sequence[Sequence[Forecast]], totals: Sequence[Totals]
) -> str:
    """Several machines in columns, with the refusals and warnings of each below."""
    mains = [forecasts[0] for forecasts in plans]
    rows: list[tuple[str, list[str]]] = [
        ("the student", [hours(found.hours) for found in mains]),
        ("with everything", [hours(total.hours) for total in totals]),
        ("device-hours", [amount(total.device_hours) for total in totals]),
        ("costs", ["" if total.cost is None else amount(total.cost) for total in totals]),
        ("seconds a step", [duration(found.chosen.step_seconds) for found in mains]),
        ("  of them network", [duration(found.chosen.network_seconds) for found in mains]),
        ("tokens/s", [f"{found.chosen.tokens_per_second:,.0f}" for found in mains]),
        ("sent a step", [file_size(found.chosen.network_bytes) for found in mains]),
        ("memory", [memory_size(found.chosen.used_bytes) for found in mains]),
        ("  of", [memory_size(found.chosen.memory_bytes) for found in mains]),
        ("precision", [found.chosen.precision for found in mains]),
        ("best: hours", [hours(found.best_hours) for found in mains]),
        ("  zero_stage", [str(found.best.layout.zero_stage) for found in mains]),
        ("  rows_per_device", [str(found.best.layout.micro_rows) for found in mains]),
        ("  teacher", [found.best.layout.teacher for found in mains]),
    ]
    rows = [row for row in rows if any(row[1])]
    lines = [f"{name}", *_what(mains[0].planned, mains[0].chosen), ""]
    lines += table(["", *(found.cluster.name for found in mains)], [[label, *cells] for label, cells in rows])
    lines += ["", _published()]
    for forecasts in plans:
        lines += ["", forecasts[0].cluster.name, *_others_refused(forecasts), *_notes([], forecasts[0])]
    notes = [*assumed, *dict.fromkeys(total.suite_note for total in totals if total.suite_note)]
    if notes:
        lines += ["", *_listed("taken for granted:", notes)]
    return "\n".join(lines)


def _model(shape: ModelShape) -> str:
    return f"{shape.layers} layers of {shape.hidden}, {millions(shape.parameters)} parameters"


def _what(planned: PlannedRun, step: Prediction) -> list[str]:
    lines = [line("teacher", f"{planned.teacher.name}: {_model(planned.teacher)}")] if planned.teacher else []
    lines.append(line("student", _model(planned.student)))
    for number, phase in enumerate(planned.phases):
        lines.append(line("then" if number else "training", f"{_length(phase)}, {step.precision}"))
    return lines


def _length(planned: PlannedRun) -> str:
    length = f"{planned.steps:,} steps of {planned.training.rows_per_step:,} rows of {planned.seq_len} tokens"
    if planned.training.epochs is not None and planned.train_rows is not None:
        length += f" ({planned.training.epochs:g} passes over {planned.train_rows:,} rows)"
    return length


def _time(forecasts: Sequence[Forecast]) -> list[str]:
    found = forecasts[0]
    planned = found.planned
    unit = f"{found.cluster.unit}-hours"
    lines = [
        "Time",
        line("whole run", f"{hours(found.hours)}, of them {hours(found.validation_seconds / 3600)} for validation"),
        *(
            line(f"a step, {phase.seq_len} tokens" if planned.later else "a step", _step(step))
            for phase, step in zip(planned.phases, planned.follow(found.chosen, found.cluster), strict=True)
        ),
        line(unit, _hours_of_devices(found)),
        *([line("", _published())] if found.cluster.device.kind == "gpu" else []),
    ]
    for other in forecasts[1:]:
        lines.append(line(f"also: {other.planned.name}", f"{hours(other.hours)}, {_hours_of_devices(other)} {unit}"))
    if len(forecasts) > 1:
        together = hours(sum(other.hours for other in forecasts))
        lines.append(line("all of them", f"{together}, {_all_device_hours(forecasts)} {unit}"))
    return lines


def _step(step: Prediction) -> str:
    parts = {
        "computing": step.compute_seconds,
        f"starting {plural(step.micros, 'micro-batch', 'micro-batches')}": step.overhead_seconds,
        "adding up gradients and moving weights": step.update_seconds,
        "network": step.network_seconds,
    }
    words = ", ".join(f"{name} {duration(value)}" for name, value in parts.items() if value)
    return f"{duration(step.step_seconds)}, {step.tokens_per_second:,.0f} tokens/s: {words}"


def _published() -> str:
    took = ", ".join(f"{name} {value:,}" for name, value in PUBLISHED.items())
    return f"published, on V100s: {took}; the passes of DistilBERT are unknown, so this is no measure of its speed"


def _hours_of_devices(found: Forecast) -> str:
    return amount(found.device_hours)


def _all_device_hours(forecasts: Sequence[Forecast]) -> str:
    return amount(sum(found.device_hours for found in forecasts))


def _memory(found: Forecast) -> list[str]:
    step = found.chosen
    sizes = {**step.memory, "together": step.used_bytes}
    lines = [line(name, f"{memory_size(count):>8}") for name, count in sizes.items()]
    lines[-1] += f" of {memory_size(step.memory_bytes)}"
    return [f"Memory of a {found.cluster.unit}", *lines]


def _disk_and_network(found: Forecast) -> list[str]:
    planned, step, cluster = found.planned, found.chosen, found.cluster
    kept = checkpoints_kept(planned.training, planned.all_steps)
    details = {
        "checkpoints": f" ({kept} of {file_size(checkpoint_bytes(planned.student))}, one of them while it is written)",
        "models": " (teacher and student)" if planned.teacher else "",
    }
    lines = ["Disk"]
    lines += [line(name, f"{file_size(count)}{details.get(name, '')}") for name, count in found.disk.items()]
    if step.layout.workers > 1:
        sent = f"{file_size(step.network_bytes)} sent by each {cluster.unit}"
        took = f"{duration(step.network_seconds)} at {cluster.gb_per_second:g} GB/s"
        lines += ["", "Network", line("a step", f"{sent}, {took}")]
    return lines


def _best(found: Forecast) -> list[str]:
    written, best = found.written, found.best
    lines = [
        "Placement",
        line("best here", f"{_placement(best)}: {hours(found.best_hours)}, {memory_size(best.used_bytes)}"),
    ]
    if written.layout != best.layout:
        lines.append(line("as written", f"{_placement(written)}: {_outcome(found, written)}"))
        lines.append(line("to have the best", " ".join(_settings(found))))
    return [*lines, *_choices(found)]


def _placement(step: Prediction) -> str:
    return ", ".join(f"{key} = {value}" for key, value in _words(step.layout).items())


def _words(layout: Layout) -> dict[str, str]:
    """A layout as values of a recipe's placement."""
    return {
        "rows_per_device": str(layout.micro_rows),
        "zero_stage": str(layout.zero_stage),
        "teacher": f'"{layout.teacher}"',
    }


def _settings(found: Forecast) -> list[str]:
    had, wanted = _words(found.written.layout), _words(found.best.layout)
    prefix = f"{found.planned.prefix}placement"
    return [f"--set {prefix}.{key}={value.strip(chr(34))}" for key, value in wanted.items() if had[key] != value]


def _choices(found: Forecast) -> list[str]:
    """Hours and memory of the micro-batches and stages around the best."""
    best = found.best.layout
    rows = max(1, found.planned.training.rows_per_step // best.workers)
    near = [count for count in step_prediction.divisors(rows) if best.micro_rows / 8 <= count <= best.micro_rows * 4]
    counts = [count for count in near if count & (count - 1) == 0 or count == best.micro_rows]
    stages = step_prediction.stages(found.best.precision)
    lines = []
    for size in counts:
        layouts = [Layout(best.workers, size, stage, best.teacher) for stage in stages]
        steps = [found.planned.predict(found.cluster, layout) for layout in layouts]
        lines.append([str(size).rjust(len("rows_per_device")), *(_outcome(found, step) for step in steps)])
    return table(["rows_per_device", *(f"zero_stage {stage}" for stage in stages)], lines)


def _outcome(found: Forecast, step: Prediction) -> str:
    return f"{hours(found.hours_of(step))}, {memory_size(step.used_bytes)}" if step.fits else "does not fit"


def _others_refused(forecasts: Sequence[Forecast]) -> list[str]:
    """Refusals of the recipe's other runs that the main run does not have."""
    first, *others = forecasts
    known = {text.replace(first.planned.prefix, "") for text in first.refusals}
    lines = []
    for other in others:
        new = [text for text in other.refusals if text.replace(other.planned.prefix, "") not in known]
        lines += _listed("will be refused:", [f"{other.planned.name}: {text}" for text in new])
    return lines


def _notes(assumed: Sequence[str], found: Forecast) -> list[str]:
    device = found.cluster.device
    share = f"{device.efficiency[found.chosen.precision]:.0%} of the peak: {device.efficiency_source}"
    network = [f"{found.cluster.network} between nodes, used to 80 %"] if found.cluster.nodes > 1 else []
    return [
        *_listed("will be refused:", found.refusals),
        *_listed("warning:", found.warnings),
        *_listed("taken for granted:", [*assumed, share, *network]),
    ]


def _listed(label: str, texts: Sequence[str]) -> list[str]:
    return [line(label, text) for text in texts]


def _scaling(found: Forecast) -> list[str]:
    planned, cluster = found.planned, found.cluster
    counts = [count for count in SCALES if count <= planned.training.rows_per_step]
    steps = [scaled(planned, cluster, count) for count in counts]
    if not steps:
        return []
    first = steps[0]
    device, precision, threads = cluster.device, first.precision, planned.training.placement.threads
    rate = step_prediction.flops_per_second(planned.training, precision, device)
    cores = f" x {plural(threads, 'core')}" if device.kind == "cpu" else ""
    peak = f"{device.peak_tflops[precision]:.4g} TFLOP/s{cores} x {device.efficiency[precision]:.0%}"
    # A ring sends these bytes twice (n-1)/n times.
    ring_bytes = first.network_bytes * first.layout.workers / (first.layout.workers - 1) / 2
    per_node = cluster.of_workers(SCALES[-1]).devices_per_node
    across = cluster.of_workers(2 * per_node).gb_per_second
    where = f" (a step of rows of {planned.seq_len} tokens)" if planned.later else ""
    lines = [
        f"Scaling to n {cluster.unit}s, each in its best placement{where}",
        line("a step", "operations / (n x rate) + micro-batches x overhead + memory traffic + sent / link"),
        line("operations", f"{first.tokens:,} tokens x {first.flops / first.tokens / 1e9:.3f} GFLOP"),
        line("rate", f"{peak} = {rate / 1e12:,.4g} TFLOP/s"),
        line("sent, by ring", f"2 (n-1)/n x {file_size(ring_bytes)} of gradients and weights"),
        line(
            "link",
            f"{device.link_gb_per_second:g} GB/s in a node, {across:g} GB/s between nodes of {per_node} "
            f"({cluster.network})",
        ),
    ]
    for workers, step in zip(counts, steps, strict=True):
        link = cluster.of_workers(workers).gb_per_second
        computing = f"{step.flops / 1e12:.4g} / ({workers} x {rate / 1e12:.4g})"
        overheads = f"{step.micros} x {device.overhead_seconds:g} + {step.update_seconds:.2g}"
        sending = f"{step.network_bytes / 1e9:.3g} / {link:g}"
        formula = f"{computing} + {overheads} + {sending} = {duration(step.step_seconds)}"
        lines.append(line(f"n = {workers}", formula))
    if too_many := [str(count) for count in SCALES if count not in counts]:
        lines.append(line(f"n = {', '.join(too_many)}", "more workers than a step has rows"))
    rows = [_scaled_row(planned, cluster, step, first) for step in steps]
    heads = [f"{cluster.unit}s", "a step", "network", "whole run", f"{cluster.unit}-hours", "of ideal"]
    return [*lines, *table(heads, rows)]


def _scaled_row(planned: PlannedRun, cluster: Cluster, step: Prediction, first: Prediction) -> list[str]:
    workers = step.layout.workers
    phases = zip(planned.phases, planned.follow(step, cluster.of_workers(workers)), strict=True)
    taken = sum(phase.steps * found.step_seconds for phase, found in phases) / 3600
    ideal = first.step_seconds * first.layout.workers / workers
    return [
        f"{workers:,}".rjust(len(cluster.unit) + 1),
        duration(step.step_seconds),
        duration(step.network_seconds),
        hours(taken),
        amount(taken * workers),
        f"{ideal / step.step_seconds:.0%}",
    ]
