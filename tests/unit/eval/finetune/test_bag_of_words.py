"""Bags of words: TF-IDF with a linear model on the examples and metrics of the models."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from finetune_tasks import BAD, GOOD, sentiment, write_rows

from cluster.artifacts import artifact, stage
from cluster.artifacts.errors import StageError
from eval.finetune.bag_of_words import STAGE, BagOfWords
from eval.results.collect import collect
from eval.tasks.definitions import TASKS
from eval.tasks.examples import from_folder


def score(task: str, data: Path | None, out: Path, **values: Any) -> dict[str, Any]:
    made = stage.execute(STAGE, BagOfWords.of({"task": task, **values}), {} if data is None else {"data": data}, out)
    assert made is not None
    return dict(made.facts)


def pairs(folder: Path, task: str) -> Path:
    """Pairs of one good word each; what counts is whether it is the same one."""
    chance, rows = random.Random(7), []
    for _ in range(400):
        same = chance.randrange(2)
        first = chance.choice(GOOD)
        second = first if same else chance.choice([word for word in GOOD if word != first])
        label = {"stsb": 5.0 * same, "rte": 1 - same}[task]
        rows.append({"sentence1": f"the {first} mill", "sentence2": f"a {second} day", "label": label})
    write_rows(folder / "train.jsonl", rows[:300])
    write_rows(folder / "dev.jsonl", rows[300:])
    return folder


def test_it_learns_which_words_tell_the_class(tmp_path: Path) -> None:
    data = sentiment(tmp_path / "data")
    facts = score("sst2", data, tmp_path / "out")
    assert facts["score"] > 90.0 > facts["majority"] + 20
    assert (facts["train_examples"], facts["dev_examples"], facts["metric"]) == (180, 60, "accuracy")
    assert (facts["converged"], facts["subset"]) == (True, False)
    hits = pq.read_table(tmp_path / "out" / "examples.parquet")["score"].to_numpy()
    assert (len(hits), hits.mean()) == (60, pytest.approx(facts["score"]))
    assert artifact.verify(tmp_path / "out", "benchmark").facts["score"] == facts["score"]


@pytest.mark.parametrize("task", ["rte", "stsb"])
def test_pairs_are_compared_by_the_words_they_share(tmp_path: Path, task: str) -> None:
    """No word of either text alone tells the label."""
    facts = score(task, pairs(tmp_path / "data", task), tmp_path / "out")
    assert facts["score"] > 90.0
    assert "shares of shared words" in facts["settings"]["features"]


def test_the_same_examples_give_the_same_scores(tmp_path: Path) -> None:
    data = sentiment(tmp_path / "data")
    first, second = (score("sst2", data, tmp_path / name, features=16) for name in ("a", "b"))
    assert first["metrics"] == second["metrics"]
    values = [pq.read_table(tmp_path / name / "examples.parquet") for name in ("a", "b")]
    assert values[0].equals(values[1])


def test_limits_take_the_examples_that_the_models_take(tmp_path: Path) -> None:
    data = sentiment(tmp_path / "data")
    facts = score("sst2", data, tmp_path / "out", train_limit=50, dev_limit=20)
    assert (facts["train_examples"], facts["dev_examples"], facts["subset"]) == (50, 20, True)
    taken = from_folder(TASKS["sst2"], data).sample(50, 20)
    whole = from_folder(TASKS["sst2"], data)
    assert taken.dev[0].texts[0] != whole.dev[0].texts[0][:20]


def test_training_examples_of_one_class_give_that_class(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", [{"sentence": word, "label": 1} for word in GOOD])
    rows = [{"sentence": word, "label": int(word in GOOD)} for word in (*GOOD, *BAD)]
    write_rows(tmp_path / "data" / "dev.jsonl", rows)
    facts = score("sst2", tmp_path / "data", tmp_path / "out")
    assert (facts["score"], facts["converged"]) == (50.0, True)


def test_questions_and_two_places_of_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="squad asks questions about passages, which a bag of words cannot answer"):
        score("squad", sentiment(tmp_path / "data"), tmp_path / "out")
    with pytest.raises(StageError, match="exactly one place: give either --data DIR or the recipe's data"):
        score("sst2", None, tmp_path / "out")


def test_results_have_its_score_beside_those_of_the_models(small_results: Path, tmp_path: Path) -> None:
    score("sst2", sentiment(tmp_path / "data"), small_results / "bag_of_words" / "sst2")
    found = collect(small_results)
    assert found.bags["sst2"].seeds == []
    assert np.isin(found.examples["bag_of_words/sst2"]["score"], [0.0, 100.0]).all()
