"""Predicts hours, memory, disk and network of a run on given machines.

::

    stillhouse plan RECIPE [--hardware 8xV100-16GB]… [--network 100GbE] [--price 2.48] [--explain]
                    [--teacher DIR] [--tokens DIR | --rows N] [--set key=value]… [--json]

RECIPE is one for ``stillhouse launch`` or ``stillhouse train``. Without ``--hardware`` the command measures this
machine for some seconds. It downloads nothing.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.artifacts import artifact, errors, recipe
from cluster.artifacts.cli import SET_HELP
from cluster.artifacts.help_format import HelpFormatter
from cluster.corpus.stage import Corpus
from cluster.readers import splits
from cluster.telemetry.formatting import file_size
from cluster.telemetry.progress import say
from distill.config import Distillation, Training
from distill.cost_model import hardware
from distill.cost_model.forecast import Forecast, PlannedRun, forecast, scaled
from distill.cost_model.hardware import Cluster
from distill.cost_model.step_prediction import Prediction
from distill.launch import pipeline_recipe
from distill.launch.pipeline_recipe import MAIN, Pipeline, PipelinePlan
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape
from distill.modeling.student import chosen_layers
from distill.plan import report_text, suite_share
from distill.plan.answer import Totals
from distill.plan.suite_share import SuiteWork

_PARTS = ("step", "compute", "overhead", "update", "network")

BYTES_PER_TOKEN = 4.5
"""Of English text in BERT's word pieces."""
PAPER_TOKENS = 4_000_000_000
"""Tokens of the paper's corpus, English Wikipedia and the Toronto Book Corpus."""


class PlanError(ValueError):
    """The options do not determine the run."""


@dataclass(frozen=True)
class PlanRequest:
    """The runs of a recipe, the main one first, and the assumptions that the options left open."""

    name: str
    runs: list[PlannedRun]
    assumed: list[str]
    no_text: str = ""
    """Why the size of the text is not known, where the hours depend on it and the recipe names files."""
    suite: SuiteWork = field(default_factory=SuiteWork)
    shapes: Mapping[str, ModelShape] = field(default_factory=dict)
    """Of teacher and student, where the recipe is a pipeline's."""

    def suite_hours(self, cluster: Cluster) -> float | None:
        """Hours of the suite's fine-tunings; None where they are not known."""
        return self.suite.hours(self.shapes, self.runs[0].training, cluster) if self.suite.work else None


def read_request(options: argparse.Namespace) -> PlanRequest:
    """Read the recipe that the options name, and the tokens artifact where they name one."""
    reader = _Reader(options)
    values = recipe.read_values(options.recipe)
    if pipeline_recipe.is_pipeline(values):
        pipeline = pipeline_recipe.load(options.recipe, options.set)
        runs = reader.pipeline(pipeline)
        teacher = runs[0].teacher or reader.teacher(pipeline)
        shapes = {"teacher": teacher, MAIN: runs[0].student}
        work = suite_share.of_pipeline(pipeline, ("teacher", *pipeline.students()))
        return PlanRequest(options.recipe, runs, reader.assumed, reader.no_text, work, shapes)
    _check_training(options.recipe, values)
    runs = [reader.training(recipe.load(Distillation, options.recipe, options.set))]
    return PlanRequest(options.recipe, runs, reader.assumed)


def _check_training(reference: str, values: Mapping[str, Any]) -> None:
    known = Distillation.model_fields.keys() - {recipe.PLACEMENT}
    if values and not known & values.keys():
        raise PlanError(
            f"{reference} is neither a pipeline nor a training: stillhouse recipes lists pipelines, with the word "
            "launch; their table [train] is a training, for example demo#train"
        )


class _Reader:
    """Describes the runs of a recipe, and collects in ``assumed`` what the options leave open."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._facts = artifact.read(options.tokens, "tokens").facts if options.tokens else {}
        self._text_bytes: int | None = None
        self._no_files = ""
        self.no_text = ""
        self.assumed: list[str] = []

    def pipeline(self, pipeline: Pipeline) -> list[PlannedRun]:
        tokens = pipeline.token_recipe()
        corpus = Corpus.of(pipeline.corpus, "[corpus]")
        try:
            self._text_bytes = splits.text_bytes(corpus.sources)
        except errors.StageError as error:
            self._no_files = str(error)  # Files that are not here yet are no error of a plan.
        seq_len = self._seq_len(tokens.seq_len)
        teacher = self.teacher(pipeline)
        plan = PipelinePlan(pipeline, Path("out"))
        runs = []
        for name in pipeline.students():
            prefix = "train." if name == MAIN else f"ablations.{name}."
            # A student of no step only costs a validation.
            if name == MAIN or plan.distillation(name).steps != 0:
                runs.append(self._student_run(name, plan.distillation(name), teacher, seq_len, prefix))
        if (training := pipeline.teacher_training()) is not None:
            runs.append(self._by_phase("teacher", training, None, teacher, seq_len, "teacher.train."))
        return runs

    def teacher(self, pipeline: Pipeline) -> ModelShape:
        """Shape of the pipeline's teacher, which a student trained without one has, too."""
        tokens = pipeline.token_recipe()
        vocabulary = self._facts.get("vocab_size", getattr(tokens.tokenizer, "vocab_size", None))
        return self._teacher_shape(pipeline.teacher, vocabulary)

    def training(self, training: Distillation) -> PlannedRun:
        teacher = self._teacher_shape({}, None)
        if not self._facts and self._options.seq_len is None and not training.phases:
            self.assumed.append("rows of 128 tokens: give --tokens DIR or --seq-len N")
        seq_len = self._seq_len(training.phases[0].seq_len if training.phases else 128)
        return self._student_run(MAIN, training, teacher, seq_len, "")

    def _seq_len(self, written: int) -> int:
        return int(self._facts.get("seq_len", self._options.seq_len or written))

    def _student_run(
        self, name: str, training: Distillation, teacher: ModelShape, seq_len: int, prefix: str
    ) -> PlannedRun:
        student = model_shape.student_shape(teacher, len(chosen_layers(training.student, teacher.layers)))
        used = teacher if training.needs_teacher else None
        return self._by_phase(name, training, used, student, seq_len, prefix)

    def _by_phase(
        self, name: str, training: Training, teacher: ModelShape | None, student: ModelShape, seq_len: int, prefix: str
    ) -> PlannedRun:
        """A run with its phases. Rows of other lengths hold the same text as those of ``seq_len``."""
        lengths = [phase.seq_len for phase in training.phases] or [seq_len]
        phases = []
        for length, alone in zip(lengths, training.by_phase(), strict=True):
            count = self._train_rows(alone, seq_len)
            of_length = None if count is None else max(1, count * seq_len // length)
            phases.append(PlannedRun(name, alone, teacher, student, length, of_length, prefix))
        return replace(phases[0], later=tuple(phases[1:]))

    def _train_rows(self, training: Training, seq_len: int) -> int | None:
        """Training rows; None where neither the options nor the recipe need them."""
        given: int | None = self._options.rows or self._facts.get("train_rows")
        if given is not None or training.steps is not None:
            return given
        if self._text_bytes is not None:
            note = (
                f"{file_size(self._text_bytes)} of text in the sources, {BYTES_PER_TOKEN:g} bytes a token: "
                "--tokens DIR knows it exactly"
            )
            if note not in self.assumed:
                self.assumed.append(note)
            return max(1, round(self._text_bytes / BYTES_PER_TOKEN / seq_len))
        note = "a corpus of 4.0 G tokens, the paper's: give --tokens DIR or --rows N for yours"
        if note not in self.assumed:
            self.assumed.append(note)
        self.no_text = self._no_files
        return PAPER_TOKENS // seq_len

    def _teacher_shape(self, written: Mapping[str, Any], vocabulary: int | None) -> ModelShape:
        """Shape of the teacher that ``--teacher`` names, or else of the one in the recipe's table ``written``."""
        if self._options.teacher is not None:
            return model_shape.find(self._options.teacher)
        if "source" in written:
            found = model_shape.find(written["source"])
            if found.name in model_shape.KNOWN and not Path(written["source"]).is_dir():
                self.assumed.append(f"teacher {written['source']} has the published shape of {found.name}")
            return found
        if "architecture" not in written:
            self.assumed.append(f"a teacher of the shape of {model_shape.DEFAULT}: give --teacher DIR for yours")
            return model_shape.KNOWN[model_shape.DEFAULT]
        if vocabulary is None:
            raise PlanError("the vocabulary of the teacher is not known before the tokens are made: give --tokens DIR")
        shape = written["architecture"]
        numbers = (shape["layers"], shape["hidden"], shape["feed_forward"], shape["heads"])
        return ModelShape("the recipe's teacher", "bert", *numbers, int(vocabulary), shape.get("positions", 512))


def main(arguments: Sequence[str] | None = None, prog: str = "python -m distill.plan") -> None:
    """The command line."""
    options = _parser(prog).parse_args(arguments)
    with errors.errors_for_people():
        request = read_request(options)
        wanted = options.hardware or [hardware.HERE]
        clusters = [_cluster(text, options.network, request) for text in wanted]
        forecasts = [[forecast(planned, cluster) for planned in request.runs] for cluster in clusters]
        if options.json:
            print(json.dumps([as_json(request, found, options.price) for found in forecasts], indent=2))
            return
        totals = [_totals(request, found, options.price) for found in forecasts]
        if len(forecasts) == 1:
            print(report_text.whole(request.name, request.assumed, forecasts[0], totals[0], options.explain))
        else:
            print(report_text.side_by_side(request.name, request.assumed, forecasts, totals))


def _totals(request: PlanRequest, forecasts: Sequence[Forecast], price: float | None) -> Totals:
    cluster = forecasts[0].cluster
    suite = request.suite
    hours = request.suite_hours(cluster)
    return Totals(forecasts, suite.trainings, hours, suite.note(cluster), price, request.no_text)


def as_json(request: PlanRequest, forecasts: list[Forecast], price: float | None = None) -> dict[str, Any]:
    """The numbers of a plan, plain; seconds, bytes and hours."""
    main_run = forecasts[0]
    totals = _totals(request, forecasts, price)
    return {
        "recipe": request.name,
        "hardware": main_run.cluster.name,
        "network": main_run.cluster.network if main_run.cluster.nodes > 1 else None,
        "assumed": request.assumed,
        "runs": [_run_json(found) for found in forecasts],
        "scaling": [
            {"workers": count, **_step_json(scaled(main_run.planned, main_run.cluster, count))}
            for count in report_text.SCALES
        ],
        "suite_hours": totals.suite_hours,
        "hours": totals.hours,
        "device_hours": totals.device_hours,
        "cost": totals.cost,
        "published_gpu_hours": dict(report_text.PUBLISHED),
    }


def _run_json(found: Forecast) -> dict[str, Any]:
    return {
        "name": found.planned.name,
        "steps": found.planned.all_steps,
        "phases": [
            {"seq_len": phase.seq_len, "steps": phase.steps, **_step_json(step)}
            for phase, step in zip(found.planned.phases, found.planned.follow(found.chosen, found.cluster), strict=True)
        ],
        "hours": found.hours,
        "device_hours": found.device_hours,
        "planned": _step_json(found.chosen),
        "as_written": _step_json(found.written),
        "best": _step_json(found.best) | {"hours": found.best_hours},
        "disk_bytes": found.disk,
        "refusals": list(found.refusals),
        "warnings": list(found.warnings),
    }


def _step_json(step: Prediction) -> dict[str, Any]:
    return {
        "workers": step.layout.workers,
        "rows_per_device": step.layout.micro_rows,
        "zero_stage": step.layout.zero_stage,
        "teacher": step.layout.teacher,
        "precision": step.precision,
        **{f"{part}_seconds": getattr(step, f"{part}_seconds") for part in _PARTS},
        "network_bytes": step.network_bytes,
        "tokens_per_second": step.tokens_per_second,
        "memory_bytes": step.memory,
        "device_memory_bytes": step.memory_bytes,
        "fits": step.fits,
    }


def _cluster(text: str, network: str, request: PlanRequest) -> Cluster:
    nodes, count, name = hardware.split(text)
    if name != hardware.HERE:
        return hardware.cluster(text, network)
    hardware.network_gb_per_second(network)
    say("measuring this machine, which takes some seconds")
    from distill.plan import calibration  # it imports DeepSpeed, which a plan from descriptions does without

    main_run = request.runs[0]
    device = calibration.measure(main_run.training, main_run.teacher, main_run.student, main_run.seq_len, count)
    return Cluster(device, count, nodes, network)


def _parser(prog: str) -> argparse.ArgumentParser:
    epilog = f"example: {prog} distilbert --hardware 8xV100-16GB --price 2.48"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    what = "recipe of a pipeline or a training: TOML file, one table of it, or one that ships; example: own-text"
    parser.add_argument("recipe", metavar="RECIPE", help=what)
    parser.add_argument(
        "--hardware",
        metavar="WHAT",
        action="append",
        help="GPUs, nodes x GPUs (4x8xA100-40GB), CPU workers (2xcpu) or a TOML file; again for a table side by side "
        "(default: here, which measures this machine); example: 8xV100-16GB",
    )
    parser.add_argument(
        "--network",
        metavar="SPEED",
        default=hardware.ASSUMED_NETWORK,
        help="network between nodes: Ethernet, InfiniBand-HDR, or GB/s (default: %(default)s); example: 100GbE",
    )
    price = "price of a GPU-hour, or of an hour of a CPU worker (default: no costs); example: 2.48"
    parser.add_argument("--price", metavar="MONEY", type=_price, help=price)
    explain = "also print the formula of a step and how the run scales (default: leave that out)"
    parser.add_argument("--explain", action="store_true", help=explain)
    teacher = "folder of the teacher, or its well-known name (default: that of the recipe); example: bert-base-uncased"
    parser.add_argument("--teacher", metavar="DIR", help=teacher)
    tokens = "rows that stillhouse tokens made, which says how many (default: the paper's corpus)"
    rows = "training rows there will be (default: those of the paper's corpus); example: 1_000_000"
    length = "tokens in a row, where no --tokens say it (default: those of the recipe); example: 128"
    corpus = parser.add_mutually_exclusive_group()
    corpus.add_argument("--tokens", metavar="DIR", help=f"{tokens}; example: out/tokens")
    corpus.add_argument("--rows", metavar="N", type=_count, help=rows)
    parser.add_argument("--seq-len", metavar="N", type=_count, help=length)
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help=f"{SET_HELP}train.rows_per_step=16"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON (default: text)")
    return parser


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: write a number from 0 on, such as 2.48")
    return price


def _count(text: str) -> int:
    digits = text.replace(",", "").replace("_", "")
    if not digits.isdecimal() or int(digits) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number from 1 on, such as 1_000_000")
    return int(digits)
