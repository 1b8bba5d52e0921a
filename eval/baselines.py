"""Measure size and speed of architectures side by side: the paper's table 3, on this machine.

::

    python -m eval.baselines RECIPE --pairs DIR [--teacher DIR] [--student DIR] [--bert_base DIR] … --out DIR

``--pairs`` is a folder of STS-B; its development set is scored one pair at a time in eager fp32. Chunk by chunk every
model takes its turn on the same pairs, so a machine that grows warm or busy does it to all of them alike. A folder
given for an architecture brings its tokenizer, and its weights where it has them; without one its weights are random
and another model's tokenizer stands in, which ``weights`` and ``tokenizer`` say. ``baselines.json``::

    {"machine": {…}, "settings": {…}, "data": {"files": ["dev.tsv"], "examples": 1500, "subset": false},
     "fit": true, "unfit": null,
     "rows": [{"model": "bert_base", "title": "BERT-base", "weights": "random", "tokenizer": "own", "parameters": …,
               "bytes": …, "runtime": "PyTorch 2.13.0", "pairs": 1500, "seconds": …, "tokenise_seconds": …,
               "p50_ms": …, "p90_ms": …, "p99_ms": …, "ratio_to_bert_base": …}]}

``seconds`` are those of a pass over ``pairs`` pairs (the median pass) without tokenisation, never scaled up from
fewer; with it they are ``seconds + tokenise_seconds``. ``p50_ms`` and its like are of single pairs, without
tokenisation. ``ratio_to_bert_base`` is BERT-base's seconds over these: 2 means twice as fast.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from cluster import artifact, stage, telemetry, vocabulary
from cluster.recipe import Recipe
from eval import architectures, machine
from eval.architectures import CONFIGURATIONS, TITLES, PairModel, Reader
from eval.elmo import ElmoSizes
from eval.examples import from_folder
from eval.tasks import TASKS

FILE = "baselines.json"
OWN = ("teacher", "student")
REFERENCE = "bert_base"

Architecture: TypeAlias = Literal["elmo", "bert_base", "distilbert", "roberta_base", "distilroberta"]
Pair: TypeAlias = tuple[str, str]


class Baselines(Recipe):
    """A measurement of architectures."""

    models: tuple[Architecture, ...] = ("elmo", "bert_base", "distilbert", "roberta_base", "distilroberta")
    """Architectures to measure; the teacher and student that are given are measured as well."""
    limit: PositiveInt | None = None  # pairs, drawn from the development set; all of them where it is left out
    passes: PositiveInt = 1
    chunk: PositiveInt = 25  # pairs a model scores before the next one's turn
    threads: PositiveInt = 1
    elmo: ElmoSizes = Field(default_factory=ElmoSizes)
    seed: NonNegativeInt = 0


@dataclass
class Times:
    """Seconds of one model: of each pass, and of each pair it scored."""

    passes: list[float] = field(default_factory=list)
    tokenising: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)

    def begin_pass(self) -> None:
        self.passes.append(0.0)
        self.tokenising.append(0.0)

    def add(self, tokenising: float, scoring: Iterable[float]) -> None:
        """Count the pairs of one chunk towards the pass that was begun last."""
        found = list(scoring)
        self.tokenising[-1] += tokenising
        self.passes[-1] += sum(found)
        self.pairs += found


def read_pairs(folder: Path, limit: int | None) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs of STS-B's development set, in its order, and what they are taken from.

    Raises:
        ExamplesError: the folder does not hold the task.
    """
    dev = from_folder(TASKS["stsb"], folder).dev[0]
    first, second = dev.sample(limit).texts
    about = {"files": list(dev.files), "examples": len(dev), "subset": dev.is_subset}
    return list(zip(first, second, strict=True)), about


def load(recipe: Baselines, inputs: Mapping[str, Path]) -> dict[str, PairModel]:
    """Every model that is measured, by name.

    Raises:
        StageError: nothing to measure, a folder for an architecture that is not, no tokenizer at hand, or a folder
            that does not load.
    """
    folders = {name: path for name, path in inputs.items() if name != "pairs"}
    names = [*recipe.models, *(name for name in OWN if name in folders)]
    if unused := [name for name in folders if name not in names]:
        raise stage.StageError(f"--{unused[0]} was given, but models does not have {unused[0]}: add it there")
    if not names:
        raise stage.StageError("nothing to measure: name architectures in models, or give --teacher or --student")
    stand_in = _stand_in(folders)
    return {name: _load_one(name, recipe, folders.get(name), stand_in) for name in names}


def _load_one(name: str, recipe: Baselines, folder: Path | None, stand_in: Reader | None) -> PairModel:
    if name == "elmo":
        return architectures.elmo(recipe.elmo, recipe.seed)
    settings = (TASKS["stsb"].max_length, recipe.threads, recipe.seed)
    if folder is not None:
        return architectures.from_folder(folder, "own" if name in OWN else "given", *settings)
    if stand_in is None:
        raise stage.StageError(
            f"{name} has no tokenizer here: give a folder with config.json and tokenizer.json as --{name} "
            f"(or as --{REFERENCE}, whose tokenizer then stands in)"
        )
    return architectures.random(CONFIGURATIONS[name](), stand_in, *settings)


def _stand_in(folders: Mapping[str, Path]) -> Reader | None:
    """The tokenizer for architectures without one: BERT-base's where it was given, else the first at hand."""
    present = sorted(folders, key=lambda name: (name != REFERENCE, name not in OWN))
    return Reader(vocabulary.load(folders[present[0]]), present[0]) if present else None


def measure(
    models: Mapping[str, PairModel], pairs: Sequence[Pair], recipe: Baselines, shown: telemetry.Progress
) -> dict[str, Times]:
    """Seconds of every model over all pairs, ``recipe.passes`` times."""
    times = {name: Times() for name in models}
    chunks = [pairs[first : first + recipe.chunk] for first in range(0, len(pairs), recipe.chunk)]
    for _ in range(recipe.passes):
        for each in times.values():
            each.begin_pass()
        for chunk in chunks:
            for name, model in models.items():
                times[name].add(*_time_chunk(model, chunk))
                shown.advance(len(chunk))
    return times


def _time_chunk(model: PairModel, chunk: Sequence[Pair]) -> tuple[float, list[float]]:
    """Seconds of tokenising a chunk, and of scoring each of its pairs."""
    # Not counted: the model before has emptied the caches of this one, which a pass by itself would not meet.
    model.score(model.encode(*chunk[0]))
    started = time.perf_counter()
    encoded = [model.encode(*pair) for pair in chunk]
    return time.perf_counter() - started, [_seconds(model.score, each) for each in encoded]


def _seconds(call: Callable[[Any], Any], given: Any) -> float:
    started = time.perf_counter()
    call(given)
    return time.perf_counter() - started


def rows(models: Mapping[str, PairModel], times: Mapping[str, Times], pairs: int) -> list[dict[str, Any]]:
    """One row of ``baselines.json`` for each model."""
    seconds = {name: statistics.median(each.passes) for name, each in times.items()}
    found = []
    for name, model in models.items():
        p50, p90, p99 = 1000 * np.percentile(times[name].pairs, (50, 90, 99))
        found.append(
            {
                "model": name,
                "title": TITLES[name],
                "weights": model.weights,
                "tokenizer": model.tokenizer,
                "parameters": model.parameters,
                "bytes": model.bytes,
                "runtime": model.runtime,
                "pairs": pairs,
                "seconds": seconds[name],
                "tokenise_seconds": statistics.median(times[name].tokenising),
                "p50_ms": float(p50),
                "p90_ms": float(p90),
                "p99_ms": float(p99),
                "ratio_to_bert_base": seconds[REFERENCE] / seconds[name] if REFERENCE in seconds else None,
            }
        )
    return found


def run(recipe: Baselines, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    pairs, data = read_pairs(inputs["pairs"], recipe.limit)
    threads_before = torch.get_num_threads()
    try:
        with machine.pinned(recipe.threads) as cores:
            torch.set_num_threads(recipe.threads)
            models = load(recipe, inputs)
            total = len(pairs) * len(models) * recipe.passes
            watch = machine.Watch(recipe.threads, cores)
            with telemetry.Progress("baselines", total, "pairs") as shown:
                times = measure(models, pairs, recipe, shown)
            conditions = watch.conditions()
    finally:
        torch.set_num_threads(threads_before)
    about = {**machine.describe(), "pinned_cores": cores, **conditions.facts()}
    facts = {"machine": about, "data": data, **conditions.verdict(), "rows": rows(models, times, len(pairs))}
    artifact.write_json(out / FILE, {"settings": recipe.resolved(), **facts})
    return facts


FOLDER = stage.Role((stage.FOLDER,), optional=True)

STAGE = stage.Stage(
    run=run,
    recipe=Baselines,
    inputs={"pairs": stage.Role((stage.FOLDER,)), **dict.fromkeys((*OWN, *CONFIGURATIONS), FOLDER)},
    produces="benchmark",
)

if __name__ == "__main__":
    stage.main(STAGE)
