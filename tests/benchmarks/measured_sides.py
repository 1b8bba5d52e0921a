"""The measured sides: processes that make one step per request.

Separate processes, because peak memory never falls, and because each side needs its own environment. They take
turns, because the speed of a machine drifts::

    with Contender("ours", work) as ours, Contender("usual", work) as usual:
        for _ in range(3):
            usual.step(), ours.step()

Ours is ``distill.train`` itself on artifacts on the disk; its batches block until the next request. The loop is not
copied here.
"""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from benchmark_runner import BenchError
from random_documents import Padded
from safetensors.torch import load_file

from cluster.models.precision import Precision
from distill.config import Distillation

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Ours sets this itself (``distill.engine.deepspeed_engine``); the usual loop runs without it."""


LOSSES: dict[str, dict[str, Any]] = {
    "triple": {},
    "layers": {"soft": 0.0, "masked": 0.0, "cosine": 0.0, "hidden": 1.0, "relation": 1.0, "inputs": "clean"},
}


@dataclass(frozen=True)
class Work:
    """The workload of both sides: one optimizer step of a student."""

    folder: str
    """Contains ``teacher`` and ``tokens`` (artifacts) and ``batches.safetensors`` (the same documents, padded)."""
    precision: Precision
    rows: int
    """In a micro-batch, full ones."""
    seq_len: int
    accumulation: int
    threads: int
    device: str = "cpu"
    loss: str = "triple"
    """A key of :data:`LOSSES`."""

    @property
    def tokens(self) -> int:
        """Tokens in a step of full rows."""
        return self.rows * self.seq_len * self.accumulation

    def recipe(self) -> Distillation:
        """No checkpoint, validation or end of the run occurs during a measurement."""
        never = 1_000_000
        return Distillation.model_validate(
            {
                "steps": never,
                "rows_per_step": self.rows * self.accumulation,
                "precision": self.precision,
                "loss": LOSSES[self.loss],
                "validation_rows": 1,
                "placement": {
                    "device": "auto" if self.device == "cuda" else "cpu",
                    "threads": self.threads,
                    "rows_per_device": self.rows,
                    "save_every": never,
                    "validate_every": never,
                },
            }
        )


@dataclass(frozen=True)
class Taken:
    """Measurements of a step."""

    seconds: float
    tokens: int
    """Without padding."""
    before_bytes: int
    """Memory between two micro-batches: both models, optimizer state, gradients."""
    peak_bytes: int
    """Peak memory from there to the end of the step."""

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def extra_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes


class Process:
    """A child process that answers requests, one line of JSON each."""

    def __init__(self, module: str, *arguments: str, large_pages: bool | None = None, cuda: bool = False) -> None:
        environment = {
            key: value for key, value in os.environ.items() if key not in (LARGE_PAGES, "RANK", "WORLD_SIZE")
        }
        support = str(Path(__file__).parents[1] / "support")
        environment["PYTHONPATH"] = os.pathsep.join([support, environment.get("PYTHONPATH", "")])
        if large_pages:
            environment[LARGE_PAGES] = "1"
        if not cuda:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._what = f"{module} {' '.join(arguments[:1])}"
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 closed at exit
        self._child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(f"{module}.py")), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )

    def ask(self, order: str) -> Any:
        """Send a request; returns the answer.

        Raises:
            BenchError: the child died; the message has its last output.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(order + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            self._fail()
        answer = self._child.stdout.readline()
        if not answer:
            self._fail()
        return json.loads(answer)

    def _fail(self) -> NoReturn:
        code = self._child.wait()
        self._errors.seek(0)
        raise BenchError(f"{self._what} ended with {code}:\n{self._errors.read()[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # It ends when its stdin closes; kill it, because the end of training is not measured.
        self._child.kill()
        self._child.communicate()
        self._errors.close()


class Contender(Process):
    """``ours`` or ``usual`` on a workload."""

    def __init__(self, side: str, work: Work) -> None:
        super().__init__("measured_sides", side, json.dumps(asdict(work)), cuda=work.device == "cuda")

    def step(self, full: bool = False) -> Taken:
        """One optimizer step; with ``full``, memory is measured, and the usual loop gets full rows too."""
        return Taken(**self.ask("full" if full else "step"))


class Pace:
    """Inside the child: waits for requests, and measures from one to the next."""

    def __init__(self, device: str) -> None:
        self._device = device
        # Only answers may reach the parent, not what libraries print.
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._started: float | None = None
        self._micros = self._before = self.tokens = 0
        self.order = ""

    def begin_step(self) -> None:
        """Answer for the previous step, if any, and wait for the next request."""
        if self._started is not None:
            self._wait()
            seconds = time.perf_counter() - self._started
            self.answer(Taken(seconds, self.tokens, self._before, peak_bytes(self._device)))
        self.order = sys.stdin.readline().strip()
        if not self.order:
            os._exit(0)
        self._micros, self.tokens, self._before = 0, 0, 0
        self._wait()
        self._started = time.perf_counter()

    def begin_micro(self, tokens: int) -> None:
        """Called before every micro-batch; before the second one, gradients exist and memory is measured."""
        self.tokens += tokens
        self._micros += 1
        if self._micros == 2 and self.order == "full":
            self._before = held_bytes(self._device)

    def answer(self, value: Any) -> None:
        self._answers.write(json.dumps(value if isinstance(value, (dict, list, float)) else asdict(value)) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def held_bytes(device: str) -> int:
    """Current memory after freed blocks are returned; resets the peak."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def peak_bytes(device: str) -> int:
    """Peak memory since :func:`held_bytes`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def ours(work: Work, pace: Pace) -> None:
    """``distill.train`` on the workload's artifacts, one step per request."""
    from distill.data import batches
    from distill.train import loop  # imported here: it changes the environment, which must not affect the usual loop

    take = batches.Batches.take

    def paced(rows: batches.Batches, step: int, first: int, count: int) -> batches.Batch:
        if first == 0:
            pace.begin_step()
        pace.begin_micro(count * work.seq_len)
        return take(rows, step, first, count)

    setattr(batches.Batches, "take", paced)  # noqa: B010 mypy would rather not
    folder = Path(work.folder)
    with tempfile.TemporaryDirectory() as out:
        loop.run(work.recipe(), {"tokens": folder / "tokens", "teacher": folder / "teacher"}, Path(out) / "run")


def usual(work: Work, pace: Pace) -> None:
    """``baseline_loop`` on the same documents."""
    from baseline_loop import UsualLoop, Words

    from cluster.tokens.rows import open_tokens
    from distill.modeling import masked_lm, student

    torch.set_num_threads(work.threads)
    folder, recipe = Path(work.folder), work.recipe()
    tokens = open_tokens(folder / "tokens")
    teacher, _ = masked_lm.load(folder / "teacher")
    words = Words(torch.from_numpy(tokens.counts), tokens.special_ids, tokens.mask_id)
    learner = student.make(teacher, recipe.student, recipe.seed)
    loop = UsualLoop(teacher, learner, words, recipe, torch.device(work.device))
    saved = load_file(folder / "batches.safetensors")
    ragged = [Padded(saved[f"ids.{number}"], saved[f"lengths.{number}"]) for number in range(len(saved) // 2)]
    table = torch.from_numpy(tokens.train.take(torch.arange(work.rows).numpy()))
    full = [Padded(table, torch.full((work.rows,), work.seq_len))] * 2
    orders = {
        "warm": lambda step: full[:1],
        "full": lambda step: full,
        "step": lambda step: _spread(ragged, work, step),
    }
    for step in range(1_000_000):
        pace.begin_step()
        part = orders[pace.order](step)
        loop.step(_paced(part, pace), len(part), recipe.optimizer.learning_rate)


def _spread(batches: list[Padded], work: Work, step: int) -> list[Padded]:
    """Batches of a step, spread evenly over all lengths; every step has different ones."""
    stride = len(batches) / work.accumulation
    shift = (step * 0.618) % 1
    return [batches[int((number + shift) * stride)] for number in range(work.accumulation)]


def _paced(batches: list[Padded], pace: Pace) -> Any:
    for batch in batches:
        pace.begin_micro(batch.tokens)
        yield batch


SIDES: dict[str, Callable[[Work, Pace], None]] = {"ours": ours, "usual": usual}

if __name__ == "__main__":
    work = Work(**json.loads(sys.argv[2]))
    SIDES[sys.argv[1]](work, Pace(work.device))
