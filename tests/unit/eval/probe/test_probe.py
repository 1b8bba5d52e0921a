"""Probes of frozen models: features, cosines and linear scores against independent computations, and refusals."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from finetune_tasks import sentiment, write_rows
from scipy.stats import pearsonr, spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from cluster.artifacts import artifact, stage
from cluster.artifacts.errors import StageError
from eval.probe.stage import STAGE, FrozenProbe


def probe(model: Path, data: Path, out: Path, task: str, **values: Any) -> dict[str, Any]:
    made = stage.execute(STAGE, FrozenProbe.of({"task": task, **values}), {"model": model, "data": data}, out)
    assert made is not None
    return dict(made.facts)


@torch.no_grad()
def features(folder: Path, *columns: list[str]) -> np.ndarray[Any, Any]:
    """Mean of the last hidden states, one input at a time, without padding."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for texts in zip(*columns, strict=True):
        encoded = tokenizer(*texts, return_tensors="pt")
        if model.config.model_type != "bert":
            encoded.pop("token_type_ids", None)
        found.append(model(**encoded).last_hidden_state[0].mean(dim=0).numpy())
    return np.stack(found)


def similar(folder: Path) -> Path:
    """Pairs of sentences with a score from 0 to 5."""
    chance = np.random.default_rng(1)
    rows = [
        {
            "sentence1": tiny.ENGLISH[int(a)],
            "sentence2": tiny.ENGLISH[int(b)] if chance.random() > 0.3 else tiny.ENGLISH[int(a)] + " Again.",
            "label": float(np.round(chance.random() * 5, 1)),
        }
        for a, b in chance.integers(0, len(tiny.ENGLISH), (40, 2))
    ]
    write_rows(folder / "train.jsonl", rows[:8])
    write_rows(folder / "dev.jsonl", rows[8:])
    return folder


def rows_of(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("make", [tiny.bert_teacher, tiny.distilbert, tiny.roberta_teacher])
def test_pairs_are_scored_by_the_cosine_of_their_texts(tmp_path: Path, make: Any) -> None:
    model, data = make(tmp_path / "model"), similar(tmp_path / "data")
    facts = probe(model, data, tmp_path / "out", "stsb")
    rows = rows_of(data, "dev")
    first, second = (features(model, [row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)]
    labels = [row["label"] for row in rows]
    # Batches round otherwise than single texts, which may swap neighbors among the ranks.
    assert facts["metrics"]["pearson"]["median"] == pytest.approx(100 * pearsonr(cosine, labels)[0], abs=1e-2)
    assert facts["metrics"]["spearman"]["median"] == pytest.approx(100 * spearmanr(cosine, labels)[0], abs=1.0)
    assert (facts["probe"], facts["train_examples"], facts["dev_examples"]) == ("cosine", 0, 32)


def test_classes_are_scored_by_a_linear_model_of_frozen_features(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data")
    facts = probe(model, data, tmp_path / "out", "sst2", strength=0.5)
    train, dev = rows_of(data, "train"), rows_of(data, "dev")
    of_train, of_dev = (features(model, [row["sentence"] for row in rows]) for rows in (train, dev))
    scaler = StandardScaler().fit(of_train)
    fitted = LogisticRegression(C=0.5, max_iter=500).fit(scaler.transform(of_train), [row["label"] for row in train])
    right = fitted.predict(scaler.transform(of_dev)) == [row["label"] for row in dev]
    assert facts["score"] == pytest.approx(100 * right.mean())
    assert facts["score"] > facts["majority"] + 10, "the words that tell the class are in the features"
    of_examples = pq.read_table(tmp_path / "out" / "examples.parquet")["score"].to_numpy()
    assert of_examples.mean() == pytest.approx(facts["score"])
    assert (facts["probe"], facts["converged"], facts["train_examples"]) == ("linear", True, 180)
    assert artifact.verify(tmp_path / "out", "benchmark").facts["score"] == facts["score"]


def test_a_probe_draws_no_random_numbers(tmp_path: Path) -> None:
    model, data = tiny.bert_teacher(tmp_path / "model"), sentiment(tmp_path / "data")
    first, again = (probe(model, data, tmp_path / name, "sst2", train_limit=100) for name in ("first", "again"))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert first["train_examples"] == 100


def test_what_a_probe_cannot_score_is_refused(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data", 40)
    with pytest.raises(StageError, match="squad asks questions about passages, which need a fine-tuned head"):
        probe(model, data, tmp_path / "out", "squad")
    with pytest.raises(StageError, match="give either --data DIR or the recipe's data"):
        stage.execute(STAGE, FrozenProbe.of({"task": "sst2"}), {"model": model}, tmp_path / "out")
    with pytest.raises(StageError, match=r"no config\.json"):
        probe(data, data, tmp_path / "out", "sst2")
    write_rows(tmp_path / "one" / "train.jsonl", [{**row, "label": 1} for row in rows_of(data, "train")])
    (tmp_path / "one" / "dev.jsonl").write_text((data / "dev.jsonl").read_text())
    with pytest.raises(StageError, match="are all 'positive': a probe needs examples of two classes or more"):
        probe(model, tmp_path / "one", tmp_path / "out", "sst2")
    assert not (tmp_path / "out").exists()


def test_the_command_line_probes(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), similar(tmp_path / "data")
    command = [sys.executable, "-m", "cluster.console", "probe", "default", "--set", "task=stsb"]
    command += ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [sys.executable, "-m", "cluster.console", "inspect", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "stsb" in shown.stdout
