"""Run ``tests/benchmarks/bench_*.py``, and record their rows and the machine.

A bench file defines ``rows() -> Iterator[Row]``; nothing else is needed::

    python tests/benchmarks/benchmark_runner.py                     all of them
    python tests/benchmarks/benchmark_runner.py step data --quick   these, at small sizes that only show that they run

Each row is printed and written to ``build/bench.json`` as soon as it is measured. Ratios are ours / theirs, larger
is better; of memory and of time, theirs / ours.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import sys
import textwrap
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

OUT = Path("build/bench.json")
QUICK = "STILLHOUSE_BENCH_QUICK"
"""Environment variable for small sizes that only show that a measurement runs."""

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
_LIBRARIES = ("torch", "deepspeed", "transformers", "numpy", "pyarrow", "tokenizers")
_INDENT = " " * 6


class BenchError(RuntimeError):
    """A measurement could not be made."""


@dataclass(frozen=True)
class Row:
    """One number and its conditions."""

    name: str
    value: float | None
    """None where it was not measured; ``detail`` says why."""
    unit: str
    detail: str


def not_measured(name: str, unit: str, reason: str) -> Row:
    return Row(name, None, unit, f"not measured ({reason})")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.median:.4g} ({low:.4g} to {high:.4g}, {len(self.values)} times)"


def ratios(over: Iterable[float], under: Iterable[float]) -> Spread:
    """Ratios of measurements made in turns, so that drift of the machine cancels."""
    return Spread(tuple(a / b for a, b in zip(over, under, strict=True)))


def quick() -> bool:
    return bool(os.environ.get(QUICK))


def machine() -> dict[str, Any]:
    """The machine; ``load`` has its load average."""
    return {
        "cpu": _cpu_model(),
        "cpu_flags": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "quick": quick(),
        "load": {"before": round(os.getloadavg()[0], 2), "after": None},
    }


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    return _cpu_info("flags").split()


def _cpu_info(key: str) -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


class Report:
    """Prints and saves rows one by one, so that an interruption loses none."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._machine = machine()
        self._rows: list[Row] = []

    def head(self) -> None:
        found = self._machine
        where = ", ".join([f"{found['cores']} cores {found['cpu']}", *found["cpu_flags"], *found["gpus"]])
        print(f"{where}; {found['memory_gib']} GiB; load {found['load']['before']}", flush=True)

    def add(self, row: Row) -> None:
        self._rows.append(row)
        print(line(row), flush=True)
        self._machine["load"]["after"] = round(os.getloadavg()[0], 2)
        self._out.parent.mkdir(parents=True, exist_ok=True)
        new = self._out.with_name(f".{self._out.name}.new")
        document = {"machine": self._machine, "rows": [asdict(row) for row in self._rows]}
        new.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        new.replace(self._out)


def line(row: Row) -> str:
    """A row of the table, followed by its conditions."""
    value = "-" if row.value is None else f"{row.value:,.4g}" if abs(row.value) < 1e4 else f"{row.value:,.0f}"
    detail = textwrap.fill(row.detail, 118, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return f"{row.name:<40} {value:>12} {row.unit}\n{detail}"


def names(folder: Path) -> list[str]:
    """Names of the bench files without ``bench_``."""
    return sorted(path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py"))


def run(chosen: Sequence[str], out: Path) -> int:
    """Run the chosen benchmarks; returns how many failed. A failure does not stop the others."""
    report, failed = Report(out), 0
    report.head()
    for name in chosen:
        started = time.monotonic()
        try:
            for row in _rows(name):
                report.add(row)
        except Exception:  # the others still run
            failed += 1
            print(f"error: bench_{name}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        print(f"  bench_{name}: {time.monotonic() - started:.0f} s", flush=True)
    return failed


def _rows(name: str) -> Iterator[Row]:
    found: Iterator[Row] = importlib.import_module(f"bench_{name}").rows()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    folder = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(prog="benchmark_runner", description="measure, print a table, write a JSON file")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names(folder))}; all by default")
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in names(folder)]:
        parser.error(f"there is no tests/benchmarks/bench_{unknown[0]}.py: choose from {', '.join(names(folder))}")
    if given.quick:
        os.environ[QUICK] = "1"
    support = str(folder.parent / "support")
    sys.path[:0] = [place for place in (str(folder), support) if place not in sys.path]
    return 1 if run(given.names or names(folder), given.out) else 0


if __name__ == "__main__":
    # Import under the module's name, so that bench files and this module share their classes.
    sys.exit(importlib.import_module("benchmark_runner").main())
