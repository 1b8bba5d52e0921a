"""Runs one model in a separate process, and measures load time, memory and calls.

Each model has its own process, because the peak of memory never falls, and because thread pools of runtimes must not
share one. The caller lets them take turns; each times its own calls. Orders and answers are JSON lines::

    {"open": {"kind": "export", "folder": …, "threads": 1, "megabytes": null}}  -> {"open_seconds": …, "runtime": …, …}
    {"take": "inputs.npz"}                                                      -> {"rows": 1500}
    {"first": 0}                                        one call                -> {"ms": 12.5}
    {"turn": [25, 50]}        one call that does not count, then one for each   -> {"ms": […], "joules": null}
    {"end": true}                                                               -> {"peak_memory_bytes": …, …}

An answer with ``error`` is the last one. The process imports only the library of its model: an export in ONNX Runtime
does not import PyTorch.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from cluster.artifacts import errors
from cluster.models import export_spec, model_folder, runtimes
from cluster.telemetry import host_memory
from eval.benchmark.rapl import POWERCAP, Meter

Kind: TypeAlias = Literal["export", "pytorch", "elmo"]
Arrays: TypeAlias = Mapping[str, npt.NDArray[np.int64]]
"""Named inputs of one call."""

MEGABYTE = 2**20


class ModelProcessError(errors.StageError):
    """A model does not load or run, or its process died; names the model."""


@dataclass(frozen=True)
class Opening:
    """What a process opens."""

    name: str
    """Name of the model in errors."""
    kind: Kind
    folder: Path
    threads: int
    megabytes: int | None = None
    """Limit of memory for the model and its calls, beyond Python and the runtime's library."""
    powercap: Path = POWERCAP


@dataclass(frozen=True)
class Turn:
    """Result of a turn: milliseconds of every call, and joules of all calls, if known."""

    ms: list[float]
    joules: float | None


class ModelProcess:
    """The process of a model, which is open inside the context."""

    load_seconds: float
    """From the start of the process to an open model, including Python and imports."""
    opened: dict[str, Any]
    """``runtime``, ``parameters``, ``bytes`` of the weights on disk, ``open_seconds`` of the model alone."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
            started = time.perf_counter()
            self._process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "eval.benchmark.model_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    # Some libraries read this when they are imported, to size their pools.
                    env={**os.environ, "OMP_NUM_THREADS": str(self._opening.threads)},
                )
            )
            stack.callback(self._close_input)
            stack.callback(self._process.kill)
            self.opened = self._ask(open=asdict(self._opening))
            self.load_seconds = time.perf_counter() - started
            self._running = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _close_input(self) -> None:
        """An order that a dead process did not read is still in the buffer, and closing tries to write it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def take(self, inputs: Path) -> int:
        """Read the inputs that :func:`write_inputs` wrote; returns their number."""
        return int(self._ask(take=str(inputs))["rows"])

    def first(self, row: int = 0) -> float:
        """Milliseconds of one call."""
        return float(self._ask(first=row)["ms"])

    def turn(self, first: int, last: int) -> Turn:
        """Call the model for the inputs from ``first`` to before ``last``.

        A call before them does not count: others have emptied its caches, and their threads may still be spinning.
        """
        return Turn(**self._ask(turn=[first, last]))

    def end(self) -> dict[str, int | None]:
        """``peak_memory_bytes`` of the process, and ``model_memory_bytes`` without Python and libraries."""
        return self._ask(end=True)

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the process died; the missing answer shows it
            self._process.stdin.write(f"{json.dumps(order, default=str)}\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        said: dict[str, Any] = json.loads(answer) if answer else {"error": self._death()}
        if (error := said.get("error")) is not None:
            raise ModelProcessError(f"{self._opening.name}: {error}")
        return said

    def _death(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().rpartition("\n")[2]
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process died ({ended}; {'memory may have run out' if code == -9 else last or 'it said nothing'})"


def write_inputs(path: Path, rows: list[Arrays]) -> None:
    """Write inputs for :meth:`ModelProcess.take`."""
    named = {f"{number}.{name}": values for number, row in enumerate(rows) for name, values in row.items()}
    np.savez(path, allow_pickle=False, **named)


def _read_inputs(path: Path) -> list[Arrays]:
    rows: dict[int, dict[str, npt.NDArray[np.int64]]] = {}
    with np.load(path, allow_pickle=False) as found:
        for key in found.files:
            number, _, name = key.partition(".")
            rows.setdefault(int(number), {})[name] = found[key]
    return [rows[number] for number in sorted(rows)]


def _open_export(folder: Path, threads: int) -> tuple[Callable[[Arrays], Any], dict[str, Any]]:
    known = export_spec.read(folder)
    call = runtimes.open_export(folder, threads)

    def one(row: Arrays) -> Any:
        # As in PyTorch, no types mean zeros: a single text.
        return call({name: row[name] if name in row else np.zeros_like(row["input_ids"]) for name in known.inputs})

    return one, {
        "runtime": runtimes.described(known),
        "parameters": known.parameters,
        "bytes": known.bytes(folder),
    }


def _open_pytorch(folder: Path, threads: int) -> tuple[Callable[[Arrays], Any], dict[str, Any]]:
    from cluster.models.runners import PyTorchRunner

    runner = PyTorchRunner(folder, threads)
    loaded = runner.loaded
    about = {"runtime": loaded.runtime, "parameters": loaded.parameters, "bytes": loaded.bytes}
    return lambda row: runner(**row), about


def _open_elmo(folder: Path, threads: int) -> tuple[Callable[[Arrays], Any], dict[str, Any]]:
    import torch

    from eval.benchmark.elmo import ElmoPairs

    torch.set_num_threads(threads)
    model = ElmoPairs.load(folder)

    def one(row: Arrays) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(row["first"]), torch.from_numpy(row["second"]))

    return one, {
        "runtime": f"PyTorch {torch.__version__}",
        "parameters": sum(each.numel() for each in model.parameters()),
        "bytes": model_folder.weight_bytes(folder),
    }


_KINDS = {"export": _open_export, "pytorch": _open_pytorch, "elmo": _open_elmo}


class _Served:
    """In the process: the model and its inputs."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        folder, threads = Path(asked["folder"]), int(asked["threads"])
        if asked["kind"] == "export":
            # Imports before the clock starts, because import time is not load time.
            runtimes.prepare(export_spec.read(folder))
        self._before = host_memory.status("VmRSS")
        if asked["megabytes"] is not None:
            _limit(int(asked["megabytes"]))
        started = time.perf_counter()
        self._model, about = _KINDS[asked["kind"]](folder, threads)
        self.about = {**about, "open_seconds": time.perf_counter() - started}
        self._meter = Meter(Path(asked["powercap"]))
        self._rows: list[Arrays] = []

    def take(self, path: str) -> dict[str, Any]:
        self._rows = _read_inputs(Path(path))
        return {"rows": len(self._rows)}

    def first(self, row: int) -> dict[str, Any]:
        return {"ms": self._timed(row)}

    def turn(self, bounds: tuple[int, int]) -> dict[str, Any]:
        first, last = bounds
        self._model(self._rows[first])
        before = self._meter.read()
        times = [self._timed(row) for row in range(first, last)]
        return {"ms": times, "joules": self._meter.joules(before, self._meter.read())}

    def end(self, _: bool) -> dict[str, Any]:
        peak = host_memory.status("VmHWM")
        beyond = None if peak is None or self._before is None else max(0, peak - self._before)
        return {"peak_memory_bytes": peak, "model_memory_bytes": beyond}

    def _timed(self, row: int) -> float:
        given = self._rows[row]
        started = time.perf_counter()
        self._model(given)
        return 1000 * (time.perf_counter() - started)


def serve() -> None:
    """Answer the orders of stdin until it ends."""
    # Libraries print to stdout, which is for answers only.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        for answer in _answers():
            print(json.dumps(answer), file=answers, flush=True)
    except Exception as error:  # a runtime may raise anything; the caller gets it
        print(json.dumps({"error": errors.describe(error)}), file=answers, flush=True)


def _answers() -> Iterator[dict[str, Any]]:
    served: _Served | None = None
    for line in sys.stdin:
        ((order, value),) = json.loads(line).items()
        if order == "open":
            served = _Served(value)
            yield served.about
        else:
            yield getattr(served, order)(value)


def _limit(megabytes: int) -> None:
    """Limit what the process may allocate from now on; mapped files do not count."""
    taken = host_memory.status("VmData")
    assert taken is not None, "a limit needs Linux"
    most = taken + megabytes * MEGABYTE
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    serve()
