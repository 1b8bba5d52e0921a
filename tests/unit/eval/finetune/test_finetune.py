"""Fine-tune tiny teachers and students with the real stage: learning, reproducibility and resuming."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import tiny
import torch
from finetune_tasks import BAD, GOOD, QUICK, finetune, sentiment, write_rows
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from cluster.artifacts import artifact, cli, commit, stage
from cluster.artifacts.errors import StageError
from eval.finetune.early_stopping import divide
from eval.finetune.stage import STAGE, Finetune


@pytest.mark.parametrize("build", [tiny.bert_teacher, tiny.distilbert, tiny.roberta_teacher], ids=lambda b: b.__name__)
def test_every_architecture_learns_by_the_same_lines(build: Any, tmp_path: Path) -> None:
    model = build(tmp_path / "model", layers=2)
    scores = finetune(model, sentiment(tmp_path / "data"), tmp_path / "out", task="sst2")
    assert scores["score"] > 90.0 > scores["majority"] + 20
    assert (scores["train_examples"], scores["dev_examples"]) == (180, 60)
    assert (scores["metric"], scores["subset"]) == ("accuracy", False)
    found = artifact.verify(tmp_path / "out", "finetune")
    assert found.facts["score"] == scores["score"]
    hits = pq.read_table(found.path / "examples.parquet")["score"].to_numpy()
    assert (len(hits), hits.mean()) == (60, pytest.approx(scores["score"]))
    trained = AutoModelForSequenceClassification.from_pretrained(found.path)
    assert trained.config.id2label == {0: "negative", 1: "positive"}
    assert found.facts["parameters"] == sum(parameter.numel() for parameter in trained.parameters())
    tokens = AutoTokenizer.from_pretrained(found.path)(
        ["warm clear honey", "broken flood"], padding=True, return_tensors="pt"
    )
    assert trained(**tokens).logits.argmax(-1).tolist() == [1, 0]


def test_regression_learns_a_score(tmp_path: Path) -> None:
    chance = random.Random(7)
    rows = []
    for _ in range(400):
        score = chance.randrange(6)
        words = chance.choices(GOOD, k=score) + chance.choices(BAD, k=5 - score)
        rows.append({"sentence1": " ".join(words), "sentence2": "the mill", "label": float(score)})
    write_rows(tmp_path / "data" / "train.jsonl", rows[:320])
    write_rows(tmp_path / "data" / "dev.jsonl", rows[320:])
    model = tiny.bert_teacher(tmp_path / "model", layers=2)
    scores = finetune(model, tmp_path / "data", tmp_path / "out", task="stsb", epochs=8)
    assert scores["score"] > 70.0
    assert scores["majority"] == 0.0
    metrics = {name: each["median"] for name, each in scores["metrics"].items()}
    assert scores["score"] == pytest.approx((metrics["pearson"] + metrics["spearman"]) / 2)
    assert metrics["pearson_spearman"] == scores["score"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["problem_type"] == "regression"


def test_mnli_is_scored_on_both_sets_and_the_first_leads(tmp_path: Path) -> None:
    rows = [{"premise": word, "hypothesis": word, "label": number % 3} for number, word in enumerate(GOOD * 3)]
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    write_rows(tmp_path / "data" / "dev_matched.jsonl", rows[:7])
    write_rows(tmp_path / "data" / "dev_mismatched_subset.jsonl", rows[7:12])
    model = tiny.distilbert(tmp_path / "model")
    scores = finetune(model, tmp_path / "data", tmp_path / "out", task="mnli", epochs=1)
    assert set(scores["metrics"]) == {"accuracy", "mismatched_accuracy"}
    assert scores["score"] == scores["metrics"]["accuracy"]["median"]
    assert scores["dev_examples"] == 7
    assert scores["dev_files"] == ["dev_matched.jsonl", "dev_mismatched_subset.jsonl"]
    assert scores["subset"] is True


def test_same_seed_same_scores_and_weights(tmp_path: Path) -> None:
    model, data = tiny.bert_teacher(tmp_path / "model", layers=2), sentiment(tmp_path / "data")
    hard = {"task": "sst2", "epochs": 1, "learning_rate": 3e-4}
    first, again, other = (
        finetune(model, data, tmp_path / f"out{number}", seeds=[seed], **hard) for number, seed in enumerate((3, 3, 4))
    )
    weights = [safetensors.torch.load_file(tmp_path / f"out{number}" / "model.safetensors") for number in range(3)]
    assert first["metrics"] == again["metrics"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["classifier.weight"], weights[2]["classifier.weight"])
    assert other["median_seed"] == 4


def test_bf16_learns_too_and_saves_fp32(tmp_path: Path) -> None:
    model, data = tiny.bert_teacher(tmp_path / "model", layers=2), sentiment(tmp_path / "data")
    scores = finetune(model, data, tmp_path / "out", task="sst2", precision="bf16")
    assert scores["score"] > 90.0
    weights = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_an_interrupted_job_keeps_its_finished_seeds(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data")
    recipe = Finetune.of({**QUICK, "task": "sst2", "epochs": 1, "learning_rate": 3e-4, "seeds": [1, 2, 3]})
    inputs, out = {"model": model, "data": data}, tmp_path / "out"
    # The second seed fails: a directory is at the path of its result.
    obstacle = tmp_path / ".out.partial" / "seeds" / "2.json"
    with (
        contextlib.suppress(KeyboardInterrupt),
        artifact.create(out, kind="finetune", inputs=stage.identities(STAGE, inputs), recipe=recipe.identity()),
    ):
        obstacle.mkdir(parents=True)
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="directory"):
        stage.execute(STAGE, recipe, inputs, out)
    assert not out.exists()
    first = obstacle.with_name("1.json")
    kept = {**json.loads(first.read_text()), "seconds": 12345.0}
    first.write_text(json.dumps(kept))
    obstacle.rmdir()

    stage.execute(STAGE, recipe, inputs, out)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["seeds"][0] == kept
    by_score = sorted(scores["seeds"], key=lambda result: result["score"])
    assert [result["seed"] for result in scores["seeds"]] == [1, 2, 3]
    assert (scores["low"], scores["score"], scores["high"]) == tuple(result["score"] for result in by_score)
    assert scores["median_seed"] == by_score[1]["seed"]
    files = {path.name for path in out.iterdir()}
    assert files == {
        "examples.json",
        "examples.parquet",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "scores.json",
        "manifest.json",
    }


def test_an_attempt_interrupted_while_it_clears_up_is_complete(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data", 40)
    values = {"task": "sst2", "epochs": 1}
    first = finetune(model, data, tmp_path / "first", **values)
    recipe = Finetune.of({**QUICK, **values})
    inputs, out = {"model": model, "data": data}, tmp_path / "out"
    with (
        contextlib.suppress(KeyboardInterrupt),
        artifact.create(out, kind="finetune", inputs=stage.identities(STAGE, inputs), recipe=recipe.identity()) as made,
    ):
        for path in (tmp_path / "first").iterdir():
            if path.name != commit.MANIFEST:
                (made.path / path.name).write_bytes(path.read_bytes())
        # The folder of the median seed is deleted, but its mark of completion exists.
        (made.path / "seeds").mkdir()
        (made.path / "seeds" / "1.json").write_text(json.dumps(first["seeds"][0]))
        raise KeyboardInterrupt
    stage.execute(STAGE, recipe, inputs, out)
    assert not (out / "seeds").exists()
    assert json.loads((out / "scores.json").read_text()) == first
    found, before = (artifact.read(place).facts for place in (out, tmp_path / "first"))
    assert found == before


def test_the_model_kept_is_the_one_of_the_median_seed(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data")
    values = {"task": "sst2", "epochs": 1, "learning_rate": 3e-4}
    together = finetune(model, data, tmp_path / "together", seeds=[5, 6, 7], **values)
    finetune(model, data, tmp_path / "alone", seeds=[together["median_seed"]], **values)
    kept, alone = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("together", "alone"))
    assert all(torch.equal(kept[name], alone[name]) for name in alone)


def test_limits_take_fewer_and_say_subset(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data")
    scores = finetune(model, data, tmp_path / "out", task="sst2", epochs=1, train_limit=20)
    assert (scores["train_examples"], scores["dev_examples"], scores["subset"]) == (20, 60, True)
    scores = finetune(model, data, tmp_path / "fewer", task="sst2", epochs=1, dev_limit=10)
    assert (scores["train_examples"], scores["dev_examples"], scores["subset"]) == (180, 10, True)


def without_dropout(model: Path) -> Path:
    """Without dropout, which draws different numbers for different micro-batches, runs are comparable."""
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    return model


def test_a_micro_batch_changes_nothing(tmp_path: Path) -> None:
    model, data = without_dropout(tiny.bert_teacher(tmp_path / "model", layers=2)), sentiment(tmp_path / "data")
    # 16 examples as 5, 5, 5 and 1: means of means would differ.
    for name, micro_batch in (("whole", None), ("parts", 5)):
        placement = {"micro_batch": micro_batch}
        finetune(model, data, tmp_path / name, task="sst2", epochs=1, learning_rate=1e-3, placement=placement)
    whole, parts = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-4, rtol=0.0)
    assert artifact.read(tmp_path / "whole").recipe == artifact.read(tmp_path / "parts").recipe


def test_a_halved_recipe_makes_the_same_thing() -> None:
    assert STAGE.halved is not None
    recipe = Finetune.of({"task": "imdb", "max_length": 128, "placement": {"threads": 2}})
    sizes = []
    while (half := STAGE.halved(recipe)) is not None:
        assert half.identity() == recipe.identity()
        assert half.placement.threads == 2
        sizes.append(half.placement.micro_batch)
        recipe = half
    assert sizes == [8, 4, 2, 1]


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="on a CPU the micro-batches of long examples have one or two rows"
)
def test_half_is_half_of_what_the_longest_examples_have() -> None:
    assert STAGE.halved is not None
    half = STAGE.halved(Finetune.of({"task": "rte", "batch": 32, "max_length": 256}))
    assert half is not None
    assert half.placement.micro_batch == 2
    assert STAGE.halved(Finetune.of({"task": "squad", "max_length": 384})) is None


def test_every_job_sets_its_own_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model, before = sentiment(tmp_path / "data", 16), tiny.distilbert(tmp_path / "model"), torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    values = {"task": "sst2", "epochs": 1, "placement": {"threads": "auto"}}
    try:
        torch.set_num_threads(1)
        finetune(model, data, tmp_path / "out", **values)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_early_stopping_ends_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    model = tiny.distilbert(tmp_path / "model")
    chance = random.Random(1)
    # Random labels: longer training makes the held-out loss worse.
    rows = [{"sentence": " ".join(chance.choices(GOOD + BAD, k=6)), "label": chance.randrange(2)} for _ in range(160)]
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    write_rows(tmp_path / "data" / "dev.jsonl", rows[:4])
    values = {"task": "sst2", "learning_rate": 1e-2, "epochs": 12}
    stopping = {"patience": 2, "held_out": 0.25}
    scores = finetune(model, tmp_path / "data", tmp_path / "out", early_stopping=stopping, **values)
    assert scores["seeds"][0]["epochs"] < 12
    assert scores["settings"]["early_stopping"] == stopping
    assert scores["train_examples"] == 160


def test_held_out_examples_keep_units_together() -> None:
    units = np.repeat(np.arange(10), 3)
    rows, held = divide(units, 0.3)
    assert sorted([*rows, *held]) == list(range(30))
    assert len(held) == 9
    assert not {*units[rows]} & {*units[held]}


def test_fp16_is_for_gpus(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match='precision = "fp16" needs a GPU'):
        finetune(tmp_path, tmp_path, tmp_path / "out", task="sst2", precision="fp16")


def test_scores_say_below_majority(tmp_path: Path) -> None:
    data = sentiment(tmp_path / "data")
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    # Like WNLI: the training labels are wrong on the dev set.
    turned = [{"sentence1": row["sentence"], "sentence2": "the mill", "label": 1 - row["label"]} for row in rows]
    write_rows(tmp_path / "trap" / "dev.jsonl", turned[:60])
    write_rows(tmp_path / "trap" / "train.jsonl", [{**row, "label": 1 - row["label"]} for row in turned])
    scores = finetune(tiny.distilbert(tmp_path / "model"), tmp_path / "trap", tmp_path / "out", task="wnli")
    assert scores["score"] < 20.0 < scores["majority"]
    assert scores["below_majority"] is True


def test_xlm_roberta_counts_its_positions_from_the_padding_id(tmp_path: Path) -> None:
    tokenizer = tiny.byte_level(tmp_path / "model")
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=14, pad_token_id=1, **sizes)
    XLMRobertaForMaskedLM(config).save_pretrained(tmp_path / "model")
    data = sentiment(tmp_path / "data", 40)
    with pytest.raises(ValueError, match="max_length = 13, but the model reads 12"):
        finetune(tmp_path / "model", data, tmp_path / "longer", task="sst2", max_length=13)
    finetune(tmp_path / "model", data, tmp_path / "out", task="sst2", epochs=1, max_length=12)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 12


def test_more_words_than_embeddings_are_refused(tmp_path: Path) -> None:
    model = tiny.distilbert(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["codec"])
    tokenizer.save_pretrained(model)
    with pytest.raises(StageError, match="its tokenizer has"):
        finetune(model, sentiment(tmp_path / "data", 40), tmp_path / "out", task="sst2")


def test_missing_encoder_weights_are_an_error(tmp_path: Path) -> None:
    model = tiny.bert_teacher(tmp_path / "model", layers=2)
    weights = safetensors.torch.load_file(model / "model.safetensors")
    lost = "bert.encoder.layer.1.attention.self.query.weight"
    safetensors.torch.save_file(
        {name: each for name, each in weights.items() if name != lost}, model / "model.safetensors"
    )
    with pytest.raises(ValueError, match=f"lack {lost} of the encoder"):
        finetune(model, sentiment(tmp_path / "data"), tmp_path / "out", task="sst2")


def test_a_finetuned_model_can_start_another_task(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data")
    finetune(model, data, tmp_path / "first", task="sst2", epochs=1)
    rows = [{"premise": word, "hypothesis": word, "label": number % 3} for number, word in enumerate(GOOD)]
    for split in ("train", "dev_matched", "dev_mismatched"):
        write_rows(tmp_path / "three" / f"{split}.jsonl", rows)
    finetune(tmp_path / "first", tmp_path / "three", tmp_path / "second", task="mnli", epochs=1)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "neutral", "2": "contradiction"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"task": "sentiment"}, "task: no task sentiment: write one of cola, sst2"),
        ({"task": "rted"}, "task: no task rted: did you mean rte?"),
        ({"task": "rte", "seeds": [1, 1]}, "names a seed twice"),
        ({"task": "rte", "seeds": []}, "seeds"),
        ({"task": "rte", "warmup": 1.0}, "warmup"),
        ({"task": "rte", "placement": {"threads": "all"}}, "threads"),
    ],
)
def test_invalid_recipes_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Finetune.of(values)


def test_too_long_inputs_are_refused_and_standard_lengths_lowered(tmp_path: Path) -> None:
    model, data = tiny.roberta_teacher(tmp_path / "model", layers=1, positions=48), sentiment(tmp_path / "data", 40)
    with pytest.raises(ValueError, match="max_length = 64, but the model reads 48 tokens"):
        finetune(model, data, tmp_path / "out", task="sst2", max_length=64)
    scores = finetune(model, data, tmp_path / "out", task="sst2", max_length=None, epochs=1)
    assert scores["settings"]["max_length"] == 48


def test_a_diverging_run_stops(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data")
    weights = safetensors.torch.load_file(model / "model.safetensors")
    weights["distilbert.embeddings.LayerNorm.weight"].fill_(float("inf"))
    safetensors.torch.save_file(weights, model / "model.safetensors")
    with pytest.raises(ValueError, match="the loss is nan by step"):
        finetune(model, data, tmp_path / "out", task="sst2")


@pytest.mark.parametrize(
    ("rows", "says"), [(40, "the held-out loss is nan after epoch 1"), (2, "at least two training examples")]
)
def test_early_stopping_needs_a_finite_held_out_loss(rows: int, says: str, tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data", rows)
    weights = safetensors.torch.load_file(model / "model.safetensors")
    weights["distilbert.embeddings.LayerNorm.weight"].fill_(float("inf"))
    safetensors.torch.save_file(weights, model / "model.safetensors")
    with pytest.raises(ValueError, match=says):
        finetune(model, data, tmp_path / "out", task="sst2", early_stopping={})


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, data, out = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data"), tmp_path / "out"
    capfd.readouterr()
    command = ["finetune", "--model", str(model), "--out", str(out), "--set", "task=sst2", "--set", "epochs=1"]
    with pytest.raises(SystemExit):
        cli.main(STAGE.name, command)
    assert "exactly one place: give either --data DIR or" in capfd.readouterr().err
    cli.main(STAGE.name, [*command, "--set", "seeds=[1]", "--data", str(data)])
    printed = capfd.readouterr()
    assert printed.out.strip() == str(out)
    assert "answers: 60 rows in" in printed.err
    # No messages about newly initialised weights, no progress bars of loading and writing.
    assert "classifier" not in printed.err
    assert "%|" not in printed.err
