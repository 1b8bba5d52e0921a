"""Measure latency and memory of teacher, student, exports and published models on this machine's CPU.

::

    stillhouse latency RECIPE --student DIR [--teacher DIR] [--export DIR…] [--bert-base DIR]
                                  [--pairs DIR] [--questions DIR] --out DIR

Workloads are token ids of fixed ``lengths``; with ``--pairs`` (a folder of STS-B) the paper's protocol, its development
set one pair at a time; with ``--questions`` (a folder of SQuAD) questions with their passages in 384 tokens. Models
fine-tuned for both are both given (``--student STSB SQUAD``). An export records its model. ``models`` names published
architectures; they have random weights unless a folder brings weights, and ``weights`` says which.

For every number of threads and workload, each model runs in a separate process on the same cores, and all models take
an input before the next one, so that a machine that grows warm or busy slows them alike. ``latency.json``::

    {"machine": {"processor": …, "flags": […], "governor": …, "libraries": {…}, …}, "settings": {…},
     "conditions": [{"threads": 1, "workload": "pairs", "pinned_cores": [1], "others_share_of_machine": 0.01, …}],
     "data": {"pairs": {"files": ["dev.tsv"], "examples": 1500, "measured": 1500, "subset": false}},
     "energy": {"absent": null},                                   or why there are no joules
     "fit": true, "unfit": null,                                   or why not: the machine was not quiet
     "rows": [{"model": "student", "form": "int8", "weights": "own", "tokenizer": "own", "runtime": …,
               "workload": "pairs", "length": null, "tokens": 31.2, "inputs": 1500, "batch": 1, "threads": 1,
               "seconds": …, "tokenise_seconds": …, "p50_ms": …, "p90_ms": …, "p99_ms": …, "mean_ms": …, "min_ms": …,
               "max_ms": …, "first_ms": …, "load_seconds": …, "peak_memory_bytes": …, "model_memory_bytes": …,
               "bytes": …, "parameters": …, "joules": …, "ratio_to_teacher": …, "ratio_to_bert_base": …}]}

``seconds`` are of all ``inputs``, without tokenization, which takes ``tokenise_seconds``. Outliers count.
``load_seconds`` run from the start of the process to an open model. ``model_memory_bytes`` is the part of the peak that
came with the model; the rest is Python and the runtime (ExecuTorch's imports PyTorch here, not on a phone). ``joules``
are of one call. Ratios compare with eager PyTorch in fp32 in the same turns, and 2 means twice as fast: ratios of
seconds over texts, of medians at a fixed length.
"""

import contextlib
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.artifacts import errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.storage import filesystem
from cluster.telemetry import progress
from eval.benchmark import benchmark_models, host, rapl, workloads
from eval.benchmark.benchmark_models import OWN, PYTORCH, REFERENCE, BenchmarkModel, Preparation, PreparedModel, gather
from eval.benchmark.elmo import ElmoSizes
from eval.benchmark.model_process import ModelProcess, Opening, write_inputs
from eval.benchmark.percentiles import percentiles
from eval.benchmark.reference_models import CONFIGURATIONS, TITLES
from eval.benchmark.workloads import Workload
from eval.results.schema import TEACHER

logger = logging.getLogger("stillhouse")

FILE = "latency.json"

Architecture: TypeAlias = Literal["elmo", "bert_base", "distilbert", "roberta_base", "distilroberta"]
Row: TypeAlias = dict[str, Any]


class PairSet(Recipe):
    """The development set of STS-B, where ``--pairs`` is given."""

    limit: PositiveInt | None = None
    """Most pairs; all by default."""


class QuestionSet(Recipe):
    """The development set of SQuAD, where ``--questions`` is given."""

    limit: PositiveInt | None = 200
    """Most questions, each with its passage."""
    length: PositiveInt = 384
    """Tokens of question and passage, which are cut or padded to it."""


class BenchmarkRecipe(Recipe):
    """A measurement of speed and size."""

    models: tuple[Architecture, ...] = ()
    """Published architectures, in addition to the given models."""
    lengths: tuple[PositiveInt, ...] = (30, 128)
    """Tokens of an input, for each workload of a fixed length."""
    batch: PositiveInt = 1
    """Inputs per call at a fixed length; texts always come one by one."""
    pairs: PairSet = PairSet()
    questions: QuestionSet = QuestionSet()
    threads: tuple[PositiveInt | Literal["all"], ...] = Field((1, "all"), min_length=1)
    """Numbers of threads to measure with."""
    turn: PositiveInt = 1
    """Inputs that a model answers before the next model's turn; one uncounted call precedes them."""
    warmup: NonNegativeInt = 5
    """Uncounted calls of each model on each workload."""
    repeats: PositiveInt = 50
    """Inputs of each workload of a fixed length."""
    elmo: ElmoSizes = Field(default_factory=ElmoSizes)
    seed: NonNegativeInt = 0
    """Seed of the random inputs."""


@dataclass
class Times:
    """What was measured of one model on one workload."""

    first_ms: float
    ms: list[float] = field(default_factory=list)
    joules: float | None = 0.0

    def add(self, ms: Sequence[float], joules: float | None) -> None:
        self.ms += ms
        self.joules = None if joules is None or self.joules is None else self.joules + joules


def counts(recipe: BenchmarkRecipe) -> list[int]:
    """Numbers of threads, each once."""
    everything = host.usable_cores()
    return list(dict.fromkeys(everything if count == "all" else count for count in recipe.threads))


def wanted(recipe: BenchmarkRecipe, inputs: Mapping[str, Path]) -> list[Workload]:
    """The workloads of a benchmark.

    Raises:
        StageError: there are none.
        ExamplesError: a folder does not hold its task.
    """
    found = [workloads.pairs(inputs["pairs"], recipe.pairs.limit)] if "pairs" in inputs else []
    found += [Workload("lengths", length) for length in recipe.lengths]
    if "questions" in inputs:
        found.append(workloads.questions(inputs["questions"], recipe.questions.limit, recipe.questions.length))
    if not found:
        raise errors.StageError("nothing to time the models on: give --pairs or --questions, or write lengths")
    return found


def ready(
    recipe: BenchmarkRecipe, workload: Workload, known: Sequence[BenchmarkModel], making: Preparation
) -> list[PreparedModel]:
    """The prepared models of a workload; none if no model can do it."""
    chosen = benchmark_models.choose(known, workload)
    drawn = None
    if workload.length is not None and workload.kind == "lengths" and chosen:
        vocab_size = min(each.config.vocab_size for each in chosen)
        drawn = workloads.drawn(workload.length, recipe.repeats, recipe.batch, vocab_size, recipe.seed)
    return [making.ready(each, workload, drawn) for each in chosen]


def time_turns(
    recipe: BenchmarkRecipe, processes: Mapping[str, ModelProcess], rows: int, shown: Any
) -> dict[str, Times]:
    """Call every model for all rows, in turns."""
    times = {name: Times(process.first()) for name, process in processes.items()}
    for _ in range(recipe.warmup):
        for process in processes.values():
            process.first()
    for first in range(0, rows, recipe.turn):
        last = min(first + recipe.turn, rows)
        for name, process in processes.items():
            turn = process.turn(first, last)
            times[name].add(turn.ms, turn.joules)
        shown.advance(last - first)
    return times


def measure(
    recipe: BenchmarkRecipe,
    workload: Workload,
    prepared: Sequence[PreparedModel],
    threads: int,
    place: Path,
    shown: Any,
) -> list[Row]:
    """One row for each model.

    Raises:
        ModelProcessError: a model does not load, or its process died.
    """
    with contextlib.ExitStack() as stack:
        processes: dict[str, ModelProcess] = {}
        for each in prepared:
            opening = Opening(each.model.name, each.kind, each.folder, threads)
            processes[opening.name] = stack.enter_context(ModelProcess(opening))
            write_inputs(place, each.encoded.rows)
            rows = processes[opening.name].take(place)
        times = time_turns(recipe, processes, rows, shown)
        found = []
        for each in prepared:
            process = processes[each.model.name]
            found.append(_row(recipe, workload, each, threads, process, times[each.model.name]))
    return _compared(found)


def _row(
    recipe: BenchmarkRecipe,
    workload: Workload,
    prepared: PreparedModel,
    threads: int,
    process: ModelProcess,
    times: Times,
) -> Row:
    model, encoded, opened = prepared.model, prepared.encoded, process.opened
    return {
        "model": model.who,
        "title": TITLES[model.who],
        "form": model.form,
        "weights": model.weights,
        "tokenizer": prepared.tokenizer,
        "runtime": opened["runtime"],
        "workload": workload.kind,
        "length": workload.length,
        "tokens": encoded.tokens,
        "inputs": len(encoded.rows),
        "batch": recipe.batch if workload.kind == "lengths" else 1,
        "threads": threads,
        "tokenise_seconds": encoded.seconds,
        "seconds": sum(times.ms) / 1000,
        **percentiles(times.ms),
        "first_ms": times.first_ms,
        "load_seconds": process.load_seconds,
        **process.end(),
        "bytes": opened["bytes"],
        "parameters": opened["parameters"],
        "joules": None if times.joules is None else times.joules / len(times.ms),
    }


def _compared(rows: Sequence[Row]) -> list[Row]:
    """Rows of the same turns, with their ratios to teacher and BERT-base in eager PyTorch."""
    eager = {row["model"]: row for row in rows if row["form"] == PYTORCH}

    def against(who: str, row: Row) -> float | None:
        measured = "p50_ms" if row["workload"] == "lengths" else "seconds"
        return float(eager[who][measured] / row[measured]) if who in eager else None

    return [
        {**row, "ratio_to_teacher": against(TEACHER, row), "ratio_to_bert_base": against(REFERENCE, row)}
        for row in rows
    ]


def _name_the_rest(known: Sequence[BenchmarkModel], prepared: Sequence[PreparedModel]) -> None:
    timed = [each.model for each in prepared]
    for each in known:
        if each not in timed:
            logger.info("%s (%s) is not timed: no workload here is for its head", each.name, each.folder or "random")


def run(recipe: BenchmarkRecipe, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    rows: list[Row] = []
    conditions = []
    known = gather(recipe.models, inputs)
    with tempfile.TemporaryDirectory() as folder:
        making = Preparation(known, recipe.elmo, recipe.seed, Path(folder))
        # Pinned to one core, because tokenization is timed here.
        with host.pinned(1):
            work = [(each, ready(recipe, each, known, making)) for each in wanted(recipe, inputs)]
        _name_the_rest(known, [model for _, prepared in work for model in prepared])
        turns = [(count, *each) for count in counts(recipe) for each in work if each[1]]
        total = sum(len(prepared[0].encoded.rows) for _, _, prepared in turns)
        with progress.Progress("latency", total, "inputs") as shown:
            for count, workload, prepared in turns:
                with host.pinned(count) as cores:
                    watch = host.InterferenceMonitor(count, cores)
                    rows += measure(recipe, workload, prepared, count, Path(folder) / "inputs.npz", shown)
                    found = watch.conditions()
                about = {"threads": count, "workload": workload.name, "pinned_cores": cores}
                conditions.append({**about, **found.facts(), **found.verdict()})
    reasons = [each["unfit"] for each in conditions if each["unfit"]]
    facts = {
        "machine": host.describe(),
        "conditions": conditions,
        "data": {each.kind: dict(each.about) for each, _ in work if each.about},
        "energy": {"absent": rapl.Meter().absent},
        "fit": not reasons,
        "unfit": reasons[0] if reasons else None,
        "rows": rows,
    }
    filesystem.write_json(out / FILE, {"settings": recipe.resolved(), **facts})
    return facts


FOLDER = stage.Role((stage.FOLDER,), optional=True)
TUNED = stage.Role((stage.FOLDER,), optional=True, keyed_by="task")

STAGE = stage.Stage(
    name="eval.latency",
    run=run,
    recipe=BenchmarkRecipe,
    inputs={
        **dict.fromkeys(OWN, TUNED),
        "export": stage.Role(("export",), optional=True, keyed_by=stage.IDENTITY),
        **dict.fromkeys((*CONFIGURATIONS, "pairs", "questions"), FOLDER),
    },
    produces="benchmark",
    example="latency --student out/students/student --teacher out/teacher",
    alone=True,
)
