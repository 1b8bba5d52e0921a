"""What a run will take: hours, memory, disk and network on given machines, before it is started.

::

    python -m distill.plan RECIPE --hardware 8xV100-16GB [--hardware 4x8xA100-40GB]… [--network 100GbE]
                           [--teacher DIR] [--tokens DIR | --rows N] [--set key=value]… [--json]

RECIPE is what ``distill.launch`` or ``distill.train`` takes. ``--hardware here`` measures this machine for some seconds
instead of reading a description. Nothing is downloaded.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.artifacts import artifact, errors, recipe
from cluster.telemetry.progress import say
from distill.config import Distillation, Training
from distill.cost_model import hardware
from distill.cost_model.forecast import Forecast, PlannedRun, forecast, scaled
from distill.cost_model.hardware import Cluster
from distill.launch.pipeline_recipe import MAIN, Pipeline, PipelinePlan
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape
from distill.modeling.student import chosen_layers
from distill.plan import report_text

PAPER_TOKENS = 4_000_000_000
"""Word pieces of the paper's corpus, English Wikipedia and the Toronto Book Corpus."""


class PlanError(ValueError):
    """What is to be planned is not known well enough."""


class Request:
    """What the command line asks for: the runs of a recipe, the main one first, and what had to be assumed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.name: str = options.recipe
        self.assumed: list[str] = []
        self._facts = artifact.read(options.tokens, "tokens").facts if options.tokens else {}
        self._options = options
        values = recipe.read_values(options.recipe)
        if "train" in values and "corpus" in values:
            self.runs = self._pipeline(recipe.load(Pipeline, options.recipe, options.set))
        else:
            self.runs = [self._distillation(recipe.load(Distillation, options.recipe, options.set))]

    def _pipeline(self, pipeline: Pipeline) -> list[PlannedRun]:
        tokens = pipeline.token_recipe()
        seq_len = self._seq_len(tokens.seq_len)
        teacher = self._teacher(pipeline.teacher, getattr(tokens.tokenizer, "vocab_size", None))
        plan = PipelinePlan(pipeline, Path("out"))
        found = [
            self._student(name, plan.distillation(name), teacher, seq_len, "train.") for name in pipeline.students()
        ]
        if (training := pipeline.teacher_training()) is not None:
            found.append(self._phased("teacher", training, None, teacher, seq_len, "teacher.train."))
        return found

    def _distillation(self, distillation: Distillation) -> PlannedRun:
        teacher = self._teacher({}, None)
        if not self._facts and self._options.seq_len is None and not distillation.phases:
            self.assumed.append("rows of 128 tokens: give --tokens DIR or --seq-len N")
        written = distillation.phases[0].seq_len if distillation.phases else 128
        return self._student(MAIN, distillation, teacher, self._seq_len(written), "")

    def _student(self, name: str, training: Distillation, teacher: ModelShape, seq_len: int, prefix: str) -> PlannedRun:
        student = model_shape.student_shape(teacher, len(chosen_layers(training.student.layers, teacher.layers)))
        taught = teacher if training.loss.needs_teacher else None
        if name not in (MAIN, "teacher"):
            prefix = f"ablations.{name}."
        return self._phased(name, training, taught, student, seq_len, prefix)

    def _phased(
        self, name: str, training: Training, taught: ModelShape | None, student: ModelShape, seq_len: int, prefix: str
    ) -> PlannedRun:
        """A run by its phases; the rows of a length come from those of ``seq_len``, as they hold the same text."""
        lengths = [phase.seq_len for phase in training.phases] or [seq_len]
        found = []
        for length, alone in zip(lengths, training.by_phase(), strict=True):
            rows = self._rows(alone, seq_len)
            of_length = None if rows is None else max(1, rows * seq_len // length)
            found.append(PlannedRun(name, alone, taught, student, length, of_length, prefix))
        return replace(found[0], later=tuple(found[1:]))

    def _seq_len(self, written: int) -> int:
        return int(self._facts.get("seq_len", self._options.seq_len or written))

    def _rows(self, training: Training, seq_len: int) -> int | None:
        if self._options.rows is not None:
            return int(self._options.rows)
        if "train_rows" in self._facts:
            return int(self._facts["train_rows"])
        if training.steps is not None:
            return None
        note = "a corpus of 4.0 G tokens, the paper's: give --tokens DIR or --rows N for yours"
        if note not in self.assumed:
            self.assumed.append(note)
        return PAPER_TOKENS // seq_len

    def _teacher(self, written: dict[str, Any], vocabulary: int | None) -> ModelShape:
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
        size = self._facts.get("vocab_size", vocabulary)
        if size is None:
            raise PlanError("the vocabulary of the teacher is not known before the tokens are made: give --tokens DIR")
        shape = written["architecture"]
        numbers = (shape["layers"], shape["hidden"], shape["feed_forward"], shape["heads"])
        return ModelShape("the recipe's teacher", "bert", *numbers, int(size), shape.get("positions", 512))


def main(arguments: Sequence[str] | None = None, prog: str = "python -m distill.plan") -> None:
    """The command line."""
    options = _parser(prog).parse_args(arguments)
    with errors.errors_for_people():
        request = Request(options)
        clusters = [_cluster(text, options.network, request) for text in options.hardware]
        forecasts = [[forecast(planned, cluster) for planned in request.runs] for cluster in clusters]
        if options.json:
            print(json.dumps([as_json(request, found) for found in forecasts], indent=2))
        elif len(forecasts) == 1:
            print(report_text.whole(request.name, request.assumed, forecasts[0]))
        else:
            print(report_text.side_by_side(request.name, request.assumed, forecasts))


def as_json(request: Request, forecasts: list[Forecast]) -> dict[str, Any]:
    """The numbers of a plan, plain; seconds, bytes and hours."""
    main_run = forecasts[0]
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


def _step_json(step: Any) -> dict[str, Any]:
    return {
        "workers": step.layout.workers,
        "rows_per_device": step.layout.micro_rows,
        "zero_stage": step.layout.zero_stage,
        "teacher": step.layout.teacher,
        "precision": step.precision,
        "step_seconds": step.step_seconds,
        "compute_seconds": step.compute_seconds,
        "overhead_seconds": step.overhead_seconds,
        "update_seconds": step.update_seconds,
        "network_seconds": step.network_seconds,
        "network_bytes": step.network_bytes,
        "tokens_per_second": step.tokens_per_second,
        "memory_bytes": step.memory,
        "device_memory_bytes": step.memory_bytes,
        "fits": step.fits,
    }


def _cluster(text: str, network: str, request: Request) -> Cluster:
    nodes, count, name = hardware.split(text)
    if name != hardware.HERE:
        return hardware.cluster(text, network)
    hardware.network_gb_per_second(network)
    say("measuring this machine")
    from distill.plan import calibration  # it imports DeepSpeed, which a plan from descriptions does without

    main_run = request.runs[0]
    device = calibration.measure(main_run.training, main_run.teacher, main_run.student, main_run.seq_len, count)
    return Cluster(device, count, nodes, network)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a pipeline or training recipe: TOML file, FILE#table, or name"
    )
    parser.add_argument(
        "--hardware",
        metavar="WHAT",
        action="append",
        required=True,
        help="8xV100-16GB, 4x8xA100-40GB (nodes x GPUs), 2xcpu, a TOML file, or here; again for a table side by side",
    )
    parser.add_argument(
        "--network",
        metavar="SPEED",
        default=hardware.ASSUMED_NETWORK,
        help="between nodes: 25GbE (the default), 100GbE, InfiniBand-HDR, or GB/s",
    )
    parser.add_argument("--teacher", metavar="DIR", help="a teacher artifact or Hugging Face folder, or a known name")
    corpus = parser.add_mutually_exclusive_group()
    corpus.add_argument("--tokens", metavar="DIR", help="tokens artifact: how many rows of which length")
    corpus.add_argument("--rows", metavar="N", type=_count, help="training rows there will be")
    parser.add_argument("--seq-len", metavar="N", type=_count, help="tokens in a row, where no --tokens say it")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a recipe value")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser


def _count(text: str) -> int:
    number = int(text.replace(",", "").replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
