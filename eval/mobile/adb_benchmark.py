"""Measure on an Android phone over adb: push models and a runtime's benchmark program, run it, read what it prints.

Each export needs the program of its runtime, which users build or download; :data:`PROGRAMS` says which.
"""

import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import Recipe
from cluster.models.export_spec import ANY, Exported
from cluster.telemetry import progress
from cluster.telemetry.error_text import last_line
from eval.mobile.android_device import HOT, AndroidPhone, cores_for, mask
from eval.mobile.timing_rows import MeasuredExport, Measurement, Row, compared, row

FOLDER = "/data/local/tmp"
"""The only folder where adb may write and programs may run without root."""


class Adb(Recipe):
    """An Android phone on a cable or in the network of adb."""

    kind: Literal["adb"] = "adb"
    """A program that adb starts."""
    cores: Literal["fast", "slow", "any"] = "fast"
    """The cores that the program may use."""
    calls: PositiveInt = 10
    """Calls per start of the program; their mean is one sample."""


@dataclass(frozen=True)
class ProgramRun:
    """One start of the program; ``model`` is a file on the phone."""

    model: str
    threads: int
    length: int
    warmup: int
    calls: int


@dataclass(frozen=True)
class Program:
    """A runtime's benchmark program, and how to read its output."""

    title: str
    where: str
    arguments: Callable[[ProgramRun], list[str]]
    mean: "re.Pattern[str]"
    mean_ms: Callable[[float, int], float]
    """Milliseconds of a call, from the printed number and the number of calls."""
    load: "re.Pattern[str] | None" = None
    load_ms: float = 1.0
    """Unit of the printed load time in milliseconds."""
    any_length: bool = False
    """Whether it can run a model that takes any length at a chosen length."""


PROGRAMS = {
    "litert": Program(
        title="LiteRT benchmark_model",
        where="TensorFlow's nightly android_aarch64_benchmark_model",
        arguments=lambda run: [
            f"--graph={run.model}", f"--num_threads={run.threads}", f"--warmup_runs={run.warmup}",
            # Without minimum durations it makes exactly this number of runs.
            "--warmup_min_secs=0", f"--num_runs={run.calls}", "--min_secs=0", "--max_secs=3600",
        ],
        mean=re.compile(r"Inference timings in us: .*Inference \(avg\): ([\d.e+]+)"),
        mean_ms=lambda found, _: found / 1e3,
        load=re.compile(r"Inference timings in us: Init: ([\d.e+]+)"),
        load_ms=1e-3,
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
"""Runtime of an export to its program."""


@dataclass(frozen=True)
class Session:
    """A folder on the phone with a program and models; the program's output goes to ``logs``."""

    phone: AndroidPhone
    folder: str
    program: Program
    file: str
    logs: Path

    def start(self, run: ProgramRun, cores: Sequence[int] | None) -> tuple[float, float | None]:
        """Run the program once; mean milliseconds of a call, and seconds to load.

        Raises:
            StageError: the program failed, or printed no time.
        """
        line = command(self.file, self.program, run, mask(cores) if cores else None)
        # Output goes through a file, because adb may lose or reorder parts of it.
        code = self.phone.shell(f"cd {self.folder} && {line} > printed.txt 2>&1; echo $?").strip()
        log = self.logs / f"{Path(run.model).stem}-{run.length}-{run.threads}.txt"
        self.phone.run("pull", f"{self.folder}/printed.txt", str(log))
        printed = log.read_text(encoding="utf-8", errors="replace")
        if code != "0":
            raise StageError(f"{self.file} ended with {code} on the phone: {last_line(printed, 'it printed nothing')}")
        return read_times(self.program, printed, run.calls)


def measure(
    phone: AndroidPhone,
    models: Sequence[MeasuredExport],
    binary: Path,
    settings: Measurement,
    adb: Adb,
    out: Path,
) -> dict[str, Any]:
    """Facts of a benchmark: rows, the phone, and its temperature over the measurement.

    Raises:
        StageError: the exports need different programs or have not all lengths, or the phone fails.
    """
    programs = {program_for(model.role, model.known).title: model for model in models}
    if len(programs) > 1:
        raise StageError(f"the exports need {' and '.join(programs)}: measure one runtime at a time")
    program = program_for(models[0].role, models[0].known)
    khz = phone.core_khz()
    pins = {count: cores_for(khz, count, adb.cores) for count in settings.threads}
    files = {
        (model.role, length): file_for(model.role, model.known, program, length)
        for model in models
        for length in settings.lengths
    }
    session = Session(
        phone, f"{FOLDER}/stillhouse-{secrets.token_hex(4)}", program, _program_file(binary), out / "logs"
    )
    session.logs.mkdir(exist_ok=True)
    phone.shell(f"mkdir -p {session.folder}")
    try:
        _push(session, models, binary, files)
        rows, thermal = _measure(session, models, settings, adb.calls, pins, files)
    finally:
        # A query, because a phone that is gone must not hide the first error.
        phone.query(f"rm -rf {session.folder}")
    about = {**phone.describe(), "thermal": thermal}
    return {"device": about, "rows": compared(rows), "calls_per_sample": adb.calls, "unfit": unfit(thermal)}


def _program_file(binary: Path) -> str:
    """Name of the program: the file itself, or the only file in a folder that is not a library."""
    if binary.is_file():
        return binary.name
    found = [path.name for path in sorted(binary.iterdir()) if path.is_file() and ".so" not in path.suffixes]
    if len(found) != 1:
        raise StageError(
            f"--binary {binary} has {len(found)} programs: give the program, or a folder with it and its .so"
        )
    return found[0]


def _push(
    session: Session, models: Sequence[MeasuredExport], binary: Path, files: Mapping[tuple[str, int], str]
) -> None:
    own = [binary] if binary.is_file() else sorted(path for path in binary.iterdir() if path.is_file())
    wanted = [(path, path.name) for path in own]
    for model in models:
        names = sorted({name for (role, _), name in files.items() if role == model.role})
        wanted += [(model.path / name, _on_phone(model.role, name)) for name in names]
    for path, name in progress.progress(wanted, "to the phone", len(wanted), "files"):
        session.phone.run("push", str(path), f"{session.folder}/{name}")
    session.phone.shell(f"chmod 755 {session.folder}/{session.file}")


def _on_phone(role: str, name: str) -> str:
    return f"{role}-{Path(name).name}"


def _measure(
    session: Session,
    models: Sequence[MeasuredExport],
    settings: Measurement,
    calls: int,
    pins: Mapping[int, Sequence[int] | None],
    files: Mapping[tuple[str, int], str],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows, and the phone's thermal readings before, between and after the rounds; models run in turns."""
    rows: list[Row] = []
    thermal = [session.phone.thermal()]
    turns = [(length, count) for length in settings.lengths for count in settings.threads]
    with progress.Progress("phone", len(turns) * settings.repeats, "rounds") as shown:
        for length, count in turns:
            samples: dict[str, list[float]] = {model.role: [] for model in models}
            loads: dict[str, float | None] = {}
            for _ in range(settings.repeats):
                for model in models:
                    file = _on_phone(model.role, files[model.role, length])
                    run = ProgramRun(file, count, length, settings.warmup, calls)
                    mean, loads[model.role] = session.start(run, pins[count])
                    samples[model.role].append(mean)
                thermal.append(session.phone.thermal())
                shown.advance()
            for model in models:
                more = {**model.facts(), "load_seconds": loads[model.role], "pinned_cores": pins[count]}
                rows.append(row(model.role, session.program.title, count, length, samples[model.role], **more))
    return rows, thermal


def unfit(thermal: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the numbers are not reliable: the phone was so warm that it slowed its cores."""
    worst = max((reading["status"] for reading in thermal if reading["status"] is not None), default=0)
    if worst >= HOT:
        return f"the phone reached thermal status {worst} and slowed its cores: let it cool, and measure fewer rounds"
    return None


def program_for(role: str, exported: Exported) -> Program:
    """The program for an export.

    Raises:
        StageError: no program runs it on Android.
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
        StageError: it has none, or the program cannot measure the length.
    """
    if (own := exported.files.get(str(length))) is not None:
        return own
    if exported.lengths is not None:
        lengths = ", ".join(map(str, exported.lengths))
        raise StageError(f"--{role} is for lengths {lengths}, not {length}: set lengths to one of these")
    if not program.any_length and length != exported.positions:
        raise StageError(
            f"--{role} takes any length and {program.title} measures the longest: set "
            f"lengths = [{exported.positions}], or export it for {length} tokens"
        )
    return exported.files[ANY]


def command(file: str, program: Program, run: ProgramRun, mask: str | None) -> str:
    """The shell command in the session's folder; ``mask`` pins it to cores."""
    pinned = f"taskset {mask} " if mask else ""
    return f"LD_LIBRARY_PATH=. {pinned}./{shlex.quote(file)} {shlex.join(program.arguments(run))}"


def read_times(program: Program, printed: str, calls: int) -> tuple[float, float | None]:
    """Mean milliseconds of a call, and seconds to load, None if the program does not print it.

    Raises:
        StageError: the output has no mean.
    """
    found = program.mean.search(printed)
    if found is None:
        last = last_line(printed, "it printed nothing")
        raise StageError(f"{program.title} gave no time on the phone, its last line: {last}; use {program.where}")
    loaded = program.load.search(printed) if program.load else None
    return program.mean_ms(float(found[1]), calls), float(loaded[1]) * program.load_ms / 1000 if loaded else None
