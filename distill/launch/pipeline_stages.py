"""The stages of a pipeline for people: how many there are, which one begins, and what it makes."""

from collections.abc import Iterator

from cluster.telemetry.formatting import plain, plural
from cluster.telemetry.progress import say
from distill.launch.pipeline_recipe import MAIN, PipelinePlan


class Stages:
    """Counts the stages of a plan as they begin."""

    def __init__(self, plan: PipelinePlan) -> None:
        self._made = dict(_stages(plan))
        self._begun = 0

    def begin(self, name: str) -> None:
        """Say ``3 of 9  tokens: packed rows of 64 tokens``."""
        self._begun += 1
        say(f"{self._begun} of {len(self._made)}  {name}: {self._made[name]}")


def _stages(plan: PipelinePlan) -> Iterator[tuple[str, str]]:
    """Name of each stage, and what it makes."""
    pipeline = plan.pipeline
    yield "corpus", f"clean, deduplicated documents from {plural(len(pipeline.corpus.get('sources', ())), 'source')}"
    learned = (pipeline.token_values().get("tokenizer") or {}).get("kind") == "wordpiece"
    yield "tokens", f"{'a vocabulary, and ' if learned else ''}packed rows of {pipeline.token_recipe().seq_len} tokens"
    yield "teacher", _teacher(plan)
    student = plan.distillation(MAIN).student
    depth = student.depth or (None if isinstance(student.layers, str) else len(student.layers))
    kept = f"{depth} of" if depth else "half"
    yield MAIN, f"{kept} the teacher's layers, distilled{_steps(plan, MAIN)}"
    for name, changes in pipeline.all_ablations().items():
        changed = ", ".join(f"{key} {plain(value)}" for key, value in changes.items())
        told = f"the same student with other values ({changed}){_steps(plan, name)}"
        yield name, "the student as it starts, untrained" if changes == {"steps": 0} else told
    yield "suite", f"{', '.join(_measured(plan))}"


def _teacher(plan: PipelinePlan) -> str:
    source, training = plan.pipeline.teacher.get("source"), plan.pipeline.teacher_training()
    if training is None:
        return str(source)
    steps = f" in {training.steps:,} steps" if training.steps else ""
    return f"{f'{source}, ' if source else 'a model from scratch, '}trained on masked words{steps}"


def _steps(plan: PipelinePlan, name: str) -> str:
    steps = plan.distillation(name).steps
    return f" in {steps:,} steps" if steps else ""


def _measured(plan: PipelinePlan) -> Iterator[str]:
    suite = plan.pipeline.suite
    models = 1 + len(plan.pipeline.students())
    if tasks := suite.get("tasks"):
        yield f"scores of {plural(models, 'model')} on {', '.join(tasks)}"
    if suite.get("exports") is not None:
        yield "exports and their speed"
    if suite.get("baselines") is not None:
        yield "published architectures"
    yield "the report"
