"""Measure on an Android phone over adb: push models and a runtime's benchmark program, run, pull what it printed."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import telemetry
from cluster.stage import StageError
from eval import adb
from eval.mobile_rows import Model, Row, compared, row
from eval.phone_programs import Program, Run, command, file_for, program_for, read_times

FOLDER = "/data/local/tmp"
"""The one place where adb may write and programs may run, without root."""


@dataclass(frozen=True)
class Session:
    """What is on the phone for one measurement."""

    phone: adb.Phone
    folder: str
    program: Program
    name: str
    """Of the program's file."""
    logs: Path
    """Where what it printed is pulled to."""


@dataclass(frozen=True)
class Asked:
    """What is measured."""

    lengths: Sequence[int]
    threads: Sequence[int]
    warmup: int
    calls: int
    rounds: int
    cores: str
    """``fast``, ``slow`` or ``any``."""


def measure(phone: adb.Phone, models: Sequence[Model], binary: Path, asked: Asked, out: Path) -> dict[str, Any]:
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
    pins = {count: adb.cores_for(khz, count, asked.cores) for count in asked.threads}
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


def _push(session: Session, models: Sequence[Model], binary: Path, files: Mapping[tuple[str, int], str]) -> None:
    own = [binary] if binary.is_file() else sorted(path for path in binary.iterdir() if path.is_file())
    wanted = [(path, path.name) for path in own]
    for model in models:
        names = sorted({name for (role, _), name in files.items() if role == model.role})
        wanted += [(model.path / name, _on_phone(model.role, name)) for name in names]
    for path, name in telemetry.progress(wanted, "to the phone", len(wanted), "files"):
        session.phone.run("push", str(path), f"{session.folder}/{name}")
    session.phone.shell(f"chmod 755 {session.folder}/{session.name}")


def _on_phone(role: str, name: str) -> str:
    return f"{role}-{Path(name).name}"


def _measure(
    session: Session,
    models: Sequence[Model],
    asked: Asked,
    pins: Mapping[int, Sequence[int] | None],
    files: Mapping[tuple[str, int], str],
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Rows, and what the phone said of its temperature before, between the rounds and after."""
    rows: list[Row] = []
    thermal = [session.phone.thermal()]
    turns = [(length, count) for length in asked.lengths for count in asked.threads]
    with telemetry.Progress("phone", len(turns) * asked.rounds, "rounds") as shown:
        for length, count in turns:
            samples: dict[str, list[float]] = {model.role: [] for model in models}
            loads: dict[str, float | None] = {}
            for _ in range(asked.rounds):
                for model in models:
                    run = Run(
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


def _start(session: Session, run: Run, cores: Sequence[int] | None) -> tuple[float, float | None]:
    """One start of the program; what it prints goes through a file, so that nothing of it is lost or reordered."""
    phone, folder = session.phone, session.folder
    line = command(session.name, session.program, run, adb.mask(cores) if cores else None)
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
    if worst >= adb.HOT:
        return f"the phone reached thermal status {worst} and slowed its cores: let it cool, and measure fewer rounds"
    return None
