"""The fine-tunings of a suite in numbers, for plans: examples and tokens, from the published sizes of the tasks."""

from collections.abc import Mapping
from typing import Any

from cluster.artifacts.stage import StageContext, Workload
from cluster.jobs.job import Job
from eval.suite.plan import SECOND_STEP, SuitePlan
from eval.suite.recipe import Suite
from eval.tasks.definitions import TASKS
from eval.tasks.provenance import Provenance
from eval.tasks.word_order import WordOrder

SIZES: Mapping[str, tuple[int, float]] = {
    "cola": (8_551, 11),
    "sst2": (67_349, 13),
    "mrpc": (3_668, 53),
    "stsb": (5_749, 31),
    "qqp": (363_846, 31),
    "mnli": (392_702, 40),
    "qnli": (104_743, 50),
    "rte": (2_490, 71),
    "wnli": (635, 37),
    "imdb": (25_000, 312),
    "squad": (87_599, 384),
    "squad2": (130_319, 384),
}
"""Task to its published training examples, and their mean tokens in BERT's word pieces, which we measured on samples of
the data. Windows of SQuAD are padded to 384."""


def workload(suite: Suite, context: StageContext) -> list[Workload]:
    """The fine-tunings of the suite.

    Raises:
        StageError: a folder of a task is not there.
    """
    models = {name: context.out / name for name in context.models}
    return [_of(suite, job) for job in SuitePlan(suite, models, context.out).scores()]


def _of(suite: Suite, job: Job) -> Workload:
    _, name, task = job.name.split("/")
    values: Mapping[str, Any] = job.recipe
    if task == "provenance":
        made = Provenance.of(suite.provenance)
        examples, tokens = made.labels * made.passages_per_label, 1.3 * made.words
    elif task == "word_order":
        sentences = WordOrder.of(suite.word_order)
        examples = sentences.train_examples + sentences.dev_examples
        tokens = 1.3 * (sentences.shortest + sentences.longest) / 2
    else:
        examples, tokens = SIZES.get(task, (10_000, TASKS[task].max_length))
    passes = (values.get("epochs") or TASKS[task].epochs) * len(values.get("seeds", (1,)))
    return Workload(
        model="student" if name == SECOND_STEP else name,
        examples=passes * min(examples, values.get("train_limit") or examples),
        tokens=min(tokens, values.get("max_length") or TASKS[task].max_length),
        taught=name == SECOND_STEP,
        gpu=suite.job_gpus > 0,
        precision=values.get("precision", "fp32"),
        trainings=len(values.get("seeds", (1,))),
    )
