"""Measure on an Android phone over adb: push models and a runtime's benchmark program, run, pull what it printed."""

import re
import secrets
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.models.export_spec import ANY, Exported
from cluster.telemetry import progress
from eval.mobile import android_device
from eval.mobile.timing_rows import MeasuredExport, Row, compared, row

FOLDER = "/data/local/tmp"
"""The one place where adb may write and programs may run, without root."""


@dataclass(frozen=True)
class ProgramRun:
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
    arguments: Callable[[ProgramRun], list[str]]
    mean: "re.Pattern[str]"
    mean_ms: Callable[[float, int], float]
    """Of the number found and the calls asked for."""
    load: "re.Pattern[str] | None"
    load_ms: float
    """Milliseconds in the unit of the number found."""
    any_length: bool
    """Whether it can be told a length, where the model takes any."""


@dataclass(frozen=True)
class Session:
    """What is on the phone for one measurement."""

    phone: android_device.AndroidPhone
    folder: str
    program: Program
    name: str
    """Of the program's file."""
    logs: Path
    """Where what it printed is pulled to."""


@dataclass(frozen=True)
class AdbRequest:
    """What is measured."""

    lengths: Sequence[int]
    threads: Sequence[int]
    warmup: int
    calls: int
    rounds: int
    cores: str
    """``fast``, ``slow`` or ``any``."""


def measure(
    phone: android_device.AndroidPhone, models: Sequence[MeasuredExport], binary: Path, asked: AdbRequest, out: Path
) -> dict[str, Any]:
    """Facts of a benchmark: rows, the phone, and its temperature over the measurement.

    Raises:
        StageError: the exports need different programs or another length, or the phone fails.
    """
    programs = {program_for(model.role, model.known).title: model for model in models}
    if len(programs) > 1:
        raise StageError(f"the exports need {' and '.join(programs)}: measure one runtime at a time")
    program = program_for(models[0].role, models[0].known)
    name = _program_file(binary)
    khz = phone.core_khz()
    pins = {count: android_device.cores_for(khz, count, asked.cores) for count in asked.threads}
    files = {
        (model.role, length): file_for(model.role, model.known, program, length)
        for model in models
        for length in asked.lengths
    }
    session = Session(phone, f"{FOLDER}/stillhouse-{secrets.token_hex(4)}", program, name, out / "logs")
    session.logs.mkdir(exist_ok=True)
    phone.shell(f"mkdir -p {session.folder}")
    try:
        _push(session, models, binary, files)
        rows, thermal = _measure(session, models, asked, pins, files)
    finally:
        # Also where the phone is gone: then there is nothing to be said that the first error does not say.
        phone.asked(f"rm -rf {session.folder}")
    about = {**phone.describe(), "thermal": thermal}
    return {"device": about, "rows": compared(rows), "calls_per_sample": asked.calls, "unfit": unfit(thermal)}


def _program_file(binary: Path) -> str:
    """Name of the program: the file itself, or the only one in a folder that is no library."""
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
    session.phone.shell(f"chmod 755 {session.folder}/{session.name}")


def _on_phone(role: str, name: str) -> str:
    return f"{role}-{Path(name).name}"


def _measure(
    session: Session,
    models: Sequence[MeasuredExport],
    asked: AdbRequest,
    pins: Mapping[int, Sequence[int] | None],
    files: Mapping[tuple[str, int], str],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows, and what the phone said of its temperature before, between the rounds and after."""
    rows: list[Row] = []
    thermal = [session.phone.thermal()]
    turns = [(length, count) for length in asked.lengths for count in asked.threads]
    with progress.Progress("phone", len(turns) * asked.rounds, "rounds") as shown:
        for length, count in turns:
            samples: dict[str, list[float]] = {model.role: [] for model in models}
            loads: dict[str, float | None] = {}
            for _ in range(asked.rounds):
                for model in models:
                    run = ProgramRun(
                        _on_phone(model.role, files[model.role, length]), count, length, asked.warmup, asked.calls
                    )
                    mean, loads[model.role] = _start(session, run, pins[count])
                    samples[model.role].append(mean)
                thermal.append(session.phone.thermal())
                shown.advance()
            runtime = session.program.title
            for model in models:
                more = {**model.facts(), "load_seconds": loads[model.role], "pinned_cores": pins[count]}
                rows.append(row(model.role, runtime, count, length, samples[model.role], **more))
    return rows, thermal


def _start(session: Session, run: ProgramRun, cores: Sequence[int] | None) -> tuple[float, float | None]:
    """One start of the program; what it prints goes through a file, so that nothing of it is lost or reordered."""
    phone, folder = session.phone, session.folder
    line = command(session.name, session.program, run, android_device.mask(cores) if cores else None)
    code = phone.shell(f"cd {folder} && {line} > printed.txt 2>&1; echo $?").strip()
    kept = session.logs / f"{Path(run.model).stem}-{run.length}-{run.threads}.txt"
    phone.run("pull", f"{folder}/printed.txt", str(kept))
    printed = kept.read_text(encoding="utf-8", errors="replace")
    if code != "0":
        lines = printed.strip().splitlines()
        raise StageError(
            f"{session.name} ended with {code} on the phone: {lines[-1] if lines else 'it printed nothing'}"
        )
    return read_times(session.program, printed, run.calls)


def unfit(thermal: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the numbers are not to be relied on: the phone was so warm that it slowed itself."""
    worst = max((said["status"] for said in thermal if said["status"] is not None), default=0)
    if worst >= android_device.HOT:
        return f"the phone reached thermal status {worst} and slowed its cores: let it cool, and measure fewer rounds"
    return None


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


def command(name: str, program: Program, run: ProgramRun, mask: str | None) -> str:
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
