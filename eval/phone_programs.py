"""The benchmark programs of the runtimes, as they run on a phone: how each is called, and what it prints.

None of them tells single calls in a way that all share, so a sample is one start of the program and its mean over
``calls`` calls; starts of all models alternate.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from cluster.exported import ANY, Exported
from cluster.stage import StageError


@dataclass(frozen=True)
class Run:
    """One start: the model's file on the phone, and what it is asked for."""

    model: str
    threads: int
    length: int
    warmup: int
    calls: int


@dataclass(frozen=True)
class Program:
    """A runtime's benchmark program. ``mean_ms`` reads the mean of a call, ``load_ms`` the time to load, if told."""

    title: str
    where: str
    arguments: Callable[[Run], list[str]]
    mean: "re.Pattern[str]"
    mean_ms: Callable[[float, int], float]
    """Of the number found and the calls asked for."""
    load: "re.Pattern[str] | None"
    load_ms: float
    """Milliseconds in the unit of the number found."""
    any_length: bool
    """Whether it can be told a length, where the model takes any."""


PROGRAMS = {
    "litert": Program(
        title="LiteRT benchmark_model",
        where="TensorFlow's nightly android_aarch64_benchmark_model",
        arguments=lambda run: [
            f"--graph={run.model}", f"--num_threads={run.threads}", f"--warmup_runs={run.warmup}",
            # Both minimum durations off: exactly as many runs as asked for.
            "--warmup_min_secs=0", f"--num_runs={run.calls}", "--min_secs=0", "--max_secs=3600",
        ],
        mean=re.compile(r"Inference timings in us: .*Inference \(avg\): ([\d.e+]+)"),
        mean_ms=lambda found, _: found / 1e3,
        load=re.compile(r"Inference timings in us: Init: ([\d.e+]+)"),
        load_ms=1e-3,
        any_length=False,
    ),
    "executorch": Program(
        # It has no warm-up; ONNX Runtime's program makes one call before it counts.
        title="ExecuTorch executor_runner, first call included",
        where="ExecuTorch's CMake target executor_runner, with XNNPACK and quantized kernels",
        arguments=lambda run: [
            f"--model_path={run.model}", f"--num_executions={run.calls}", f"--cpu_threads={run.threads}",
        ],
        mean=re.compile(r"Model executed successfully \d+ time\(s\) in ([\d.]+) ms"),
        mean_ms=lambda found, calls: found / calls,
        load=None,
        load_ms=1.0,
        any_length=False,
    ),
    "onnxruntime": Program(
        title="ONNX Runtime onnxruntime_perf_test",
        where="ONNX Runtime's build.sh --android, target onnxruntime_perf_test",
        arguments=lambda run: [
            "-I", "-f", "batch:1", "-f", f"length:{run.length}", "-x", str(run.threads), "-y", "1",
            "-r", str(run.calls), run.model,
        ],
        mean=re.compile(r"Average inference time cost(?: total)?: ([\d.e+-]+) ms"),
        mean_ms=lambda found, _: found,
        load=re.compile(r"Session creation time cost: ([\d.e+-]+) s"),
        load_ms=1e3,
        any_length=True,
    ),
}  # fmt: skip
"""By the runtime an export names."""


def program_for(role: str, exported: Exported) -> Program:
    """The program for an export.

    Raises:
        StageError: none runs it on Android.
    """
    if exported.runtime not in PROGRAMS:
        raise StageError(
            f"--{role} is {exported.format}, which no program here runs on Android: give an export for "
            f"{', '.join(PROGRAMS)}"
        )
    return PROGRAMS[exported.runtime]


def file_for(role: str, exported: Exported, program: Program, length: int) -> str:
    """The file of an export to measure at a length.

    Raises:
        StageError: it has none, or the program cannot be told the length.
    """
    if (own := exported.files.get(str(length))) is not None:
        return own
    if exported.lengths is not None:
        lengths = ", ".join(map(str, exported.lengths))
        raise StageError(f"--{role} is for lengths {lengths}, not {length}: set lengths to one of these")
    # Without being told, a program takes the longest input the model allows.
    if not program.any_length and length != exported.positions:
        raise StageError(
            f"--{role} takes any length and {program.title} measures the longest: set "
            f"lengths = [{exported.positions}], or export it for {length} tokens"
        )
    return exported.files[ANY]


def command(name: str, program: Program, run: Run, mask: str | None) -> str:
    """The shell command on the phone, in the folder of the program: beside its libraries, held to its cores."""
    pinned = f"taskset {mask} " if mask else ""
    return f"LD_LIBRARY_PATH=. {pinned}./{shlex.quote(name)} {shlex.join(program.arguments(run))}"


def read_times(program: Program, printed: str, calls: int) -> tuple[float, float | None]:
    """Mean milliseconds of a call and seconds to load, None where the program does not tell.

    Raises:
        StageError: the program did not run to its end.
    """
    found = program.mean.search(printed)
    if found is None:
        lines = printed.strip().splitlines()
        raise StageError(
            f"{program.title} gave no time on the phone, its last line: {lines[-1] if lines else '(nothing)'}; use "
            f"{program.where}"
        )
    loaded = program.load.search(printed) if program.load else None
    return program.mean_ms(float(found[1]), calls), float(loaded[1]) * program.load_ms / 1000 if loaded else None
