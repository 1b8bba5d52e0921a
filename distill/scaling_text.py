"""How a plan scales to other numbers of workers: the formula, its numbers, and what comes out."""

from distill import prediction
from distill.forecast import Forecast, Planned, scaled
from distill.hardware import Cluster
from distill.prediction import Prediction
from distill.wording import counted, device_hours, gb, hours, line, seconds, table

SCALES = (8, 64)


def section(found: Forecast) -> list[str]:
    planned, cluster = found.planned, found.cluster
    counts = [count for count in SCALES if count <= planned.training.rows_per_step]
    steps = [scaled(planned, cluster, count) for count in counts]
    if not steps:
        return []
    first = steps[0]
    training = prediction.adapted(planned.training, cluster.device)
    rate = prediction.flops_per_second(training, training.precision, cluster.device)
    per_node = cluster.of_workers(SCALES[-1]).devices_per_node
    across = cluster.of_workers(2 * per_node).gb_per_second
    overhead = cluster.device.overhead_seconds
    where = f" (a step of rows of {planned.seq_len} tokens)" if planned.later else ""
    lines = [
        f"Scaling to n {cluster.unit}s, each in its best placement{where}",
        line("a step", "operations / (n x rate) + micro-batches x overhead + memory traffic + sent / link"),
        line("operations", f"{first.tokens:,} tokens x {first.flops / first.tokens / 1e9:.3f} GFLOP"),
        line("rate", f"{_rate(planned, cluster)} = {rate / 1e12:,.4g} TFLOP/s"),
        line("sent, by ring", f"2 (n-1)/n x {gb(_ring_bytes(first))} of gradients and weights"),
        line(
            "link",
            f"{cluster.device.link_gb_per_second:g} GB/s in a node, {across:g} GB/s between nodes of {per_node} "
            f"({cluster.network})",
        ),
    ]
    for count, step in zip(counts, steps, strict=True):
        link = cluster.of_workers(count).gb_per_second
        formula = (
            f"{step.flops / 1e12:.4g} / ({count} x {rate / 1e12:.4g}) + {step.micros} x {overhead:g} + "
            f"{step.update_seconds:.2g} + {step.network_bytes / 1e9:.3g} / {link:g} = {seconds(step.step_seconds)}"
        )
        lines.append(line(f"n = {count}", formula))
    if too_many := [str(count) for count in SCALES if count not in counts]:
        lines.append(line(f"n = {', '.join(too_many)}", "more workers than a step has rows"))
    rows = [_scaled_row(planned, cluster, step, first) for step in steps]
    heads = [f"{cluster.unit}s", "a step", "network", "whole run", f"{cluster.unit}-hours", "of ideal"]
    return [*lines, *table(heads, rows)]


def _ring_bytes(step: Prediction) -> float:
    """What goes round twice (n-1)/n times in a step."""
    workers = step.layout.workers
    return step.network_bytes * workers / (workers - 1) / 2


def _rate(planned: Planned, cluster: Cluster) -> str:
    device = cluster.device
    precision = prediction.adapted(planned.training, device).precision
    cores = f" x {counted(planned.training.placement.threads, 'core', 'cores')}" if device.kind == "cpu" else ""
    return f"{device.peak_tflops[precision]:.4g} TFLOP/s{cores} x {device.efficiency[precision]:.0%}"


def _scaled_row(planned: Planned, cluster: Cluster, step: Prediction, first: Prediction) -> list[str]:
    count = step.layout.workers
    phases = zip(planned.phases, planned.follow(step, cluster.of_workers(count)), strict=True)
    taken = sum(phase.steps * found.step_seconds for phase, found in phases) / 3600
    ideal = first.step_seconds * first.layout.workers / count
    return [
        f"{count:,}".rjust(len(cluster.unit) + 1),
        seconds(step.step_seconds),
        seconds(step.network_seconds),
        hours(taken),
        device_hours(taken * count),
        f"{ideal / step.step_seconds:.0%}",
    ]
