"""Share of training time spent on metrics and on checkpoints, measured in a real run.

The run logs as often as by default, and saves checkpoints far more often, so that a minute has some.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import random_documents
import torch
from benchmark_runner import Row, quick
from measured_sides import Pace, Process
from prometheus_client import REGISTRY, generate_latest
from transformers import BertConfig, BertForMaskedLM

from cluster.artifacts import artifact
from cluster.tokens.tokenizer import vocabulary_digest
from distill.config import Distillation, Placement

_STEPS, _SAVE_EVERY = (6, 3) if quick() else (41, 20)
_ROWS, _SEQ_LEN, _THREADS = 16, 128, 2
_RECORDING = ("add", "end_step", "drain", "save", "validated", "begin")
_SCRAPE_EVERY = 15.0
_CONDITIONS = f"BERT of 4 x 256 to 2 layers, vocabulary 30,522, bf16, {_ROWS} x {_SEQ_LEN} tokens"
_SHAPE = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}


def rows() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        with Process("bench_telemetry", folder) as run:
            found = run.ask("train")
    total = found["total"]
    scraping = found["scrape"] * total / _SCRAPE_EVERY
    background = (found["writing"] + scraping) / _THREADS
    blocked = sum(found[name] for name in _RECORDING)
    yield Row(
        "metrics_share",
        (blocked - found["save"] + scraping) / total,
        "share",
        f"smaller is better, at most 0.005; reading and logging {blocked - found['save']:.4f} s and a "
        f"scrape of {found['scrape'] * 1e3:.1f} ms every {_SCRAPE_EVERY:g} s, which is taken to stop training, of "
        f"{total:.1f} s; {_CONDITIONS}",
    )
    default = Placement().save_every
    rare = (blocked - found["save"] + (found["save"] + background) * _SAVE_EVERY / default) / total
    yield Row(
        "telemetry_share",
        (blocked + background) / total,
        "share",
        f"smaller is better; {_STEPS - 1} steps of {total / (_STEPS - 1):.2f} s, a log line every "
        f"{Placement().log_every}, a checkpoint ({found['bytes'] / 1e6:.0f} MB) every {_SAVE_EVERY}: blocked "
        f"{blocked:.3f} s (checkpoints "
        f"{found['save']:.3f} s, reading and logging {blocked - found['save']:.3f} s), processor time of the writing "
        f"thread {found['writing']:.2f} s on {_THREADS} cores, a scrape of {found['scrape'] * 1e3:.1f} ms every "
        f"{_SCRAPE_EVERY:g} s, borders between the parts of steps {found['begin']:.4f} s, of {total:.1f} s "
        f"without validation; with a checkpoint "
        f"every {default} steps as by default the share would be {rare:.5f}; {_CONDITIONS}; without the first step and "
        f"the wait for the last checkpoint",
    )


def _prepare(folder: Path) -> None:
    config = BertConfig(**_SHAPE)
    drawn = random_documents.draw(_STEPS * _ROWS * _SEQ_LEN // 4 + 20 * _SEQ_LEN, config.vocab_size)
    random_documents.tokens_artifact(folder / "tokens", random_documents.packed(drawn, _SEQ_LEN), config.vocab_size)
    with artifact.create(folder / "teacher", kind="teacher", inputs={}, recipe={}) as draft:
        BertForMaskedLM(config).save_pretrained(draft.path)
        tokenizer = random_documents.tokenizer(draft.path, config.vocab_size)
        draft.facts.update(vocabulary=vocabulary_digest(tokenizer), layers=config.num_hidden_layers)


class Clock:
    """Records the seconds spent in some functions, and the time of their first call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.moments: dict[str, float] = {}

    def around(self, owner: Any, name: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """Measure every call of ``owner.name`` from now on."""
        inner = getattr(owner, name)

        def timed(*given: Any, **named: Any) -> Any:
            started = clock()
            self.moments.setdefault(f"{name} begins", time.perf_counter())
            try:
                return inner(*given, **named)
            finally:
                self.seconds[name] += clock() - started

        setattr(owner, name, timed)


def _train(folder: Path) -> dict[str, float]:
    """The run, in its own process."""
    from distill.checkpointing.checkpoint_writer import CheckpointWriter
    from distill.engine.step_timer import StepTimer
    from distill.train import loop
    from distill.train.run_logger import RunLogger
    from distill.train.validation import Validation

    clock = Clock()
    for name in (*_RECORDING, "__exit__"):
        clock.around(StepTimer if name == "begin" else RunLogger, name)
    clock.around(Validation, "measure")
    clock.around(CheckpointWriter, "_write", time.thread_time)
    recipe = Distillation(
        steps=_STEPS,
        rows_per_step=_ROWS,
        precision="bf16",
        validation_rows=8,
        placement=Placement(threads=_THREADS, rows_per_device=_ROWS, save_every=_SAVE_EVERY, validate_every=10**6),
    )
    torch.manual_seed(0)
    loop.run(recipe, {"tokens": folder / "tokens", "teacher": folder / "teacher"}, folder / "run")
    # From the end of the first step, which includes the set-up.
    whole = clock.moments["__exit__ begins"] - clock.moments["end_step begins"]
    newest = max((folder / "run" / "checkpoints").glob("step_*"))
    return {
        **{name: clock.seconds[name] for name in _RECORDING},
        "writing": clock.seconds["_write"],
        "scrape": _scrape_seconds(),
        "total": whole - clock.seconds["measure"],
        "bytes": float(sum(file.stat().st_size for file in newest.iterdir())),
    }


def _scrape_seconds() -> float:
    """Processor time of one scrape."""
    started = time.thread_time()
    for _ in range(10):
        generate_latest(REGISTRY)
    return (time.thread_time() - started) / 10


if __name__ == "__main__":
    pace = Pace("cpu")
    sys.stdin.readline()
    pace.answer(_train(Path(sys.argv[1])))
