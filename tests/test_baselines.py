"""Baselines of architecture: their published sizes, what is run for each, and the rows that come of it."""

import json
import shutil
from pathlib import Path

import headed
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from cluster import artifact, stage, telemetry
from cluster.recipe import load
from eval import architectures
from eval.architectures import CONFIGURATIONS, PairModel, Reader
from eval.baselines import STAGE, Baselines, measure, read_pairs, rows
from eval.elmo import ElmoSizes

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = ElmoSizes(character=4, filters=((1, 3), (2, 5)), highways=1, projection=6, cell=10, hidden=7)
QUICK = Baselines(models=("elmo", "bert_base", "distilbert"), passes=2, chunk=3, elmo=SMALL)


def stsb(folder: Path) -> Path:
    """A task folder of four training and seven development pairs."""
    folder.mkdir(parents=True)
    pairs = zip(tiny.ENGLISH[::2], tiny.ENGLISH[1::2], strict=True)
    lines = [json.dumps({"sentence1": one, "sentence2": two, "label": 2.5}) + "\n" for one, two in pairs]
    (folder / "train.jsonl").write_text("".join(lines[:4]))
    (folder / "dev.jsonl").write_text("".join(lines[4:11]))
    return folder


def without_weights(folder: Path, source: Path) -> Path:
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("models")
    teacher = tiny.bert_teacher(root / "teacher", layers=4)
    return {
        "pairs": stsb(root / "stsb"),
        "teacher": teacher,
        "student": headed.model_folder(root / "student", "distilbert", "regression"),
        "bert_base": without_weights(root / "bert", teacher),
    }


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> artifact.Artifact:
    made = stage.execute(
        STAGE, QUICK.model_copy(update={"models": ("elmo", "bert_base")}), folders, folders["pairs"].parent / "out"
    )
    assert made is not None
    return made


def test_configurations_have_the_published_sizes() -> None:
    millions = {}
    for name, configuration in CONFIGURATIONS.items():
        config = configuration()
        config.num_labels = 1
        with torch.device("meta"):
            millions[name] = round(AutoModelForSequenceClassification.from_config(config).num_parameters() / 1e6, 1)
    # Encoders have 109.5, 66.4, 124.6 and 82.1 millions; DistilBERT's head is the largest.
    assert millions == {"bert_base": 109.5, "distilbert": 67.0, "roberta_base": 124.6, "distilroberta": 82.1}


def test_every_model_has_its_row(folders: dict[str, Path], measured: artifact.Artifact) -> None:
    found = {row["model"]: row for row in measured.facts["rows"]}
    assert [(name, row["weights"], row["title"]) for name, row in found.items()] == [
        ("elmo", "random", "ELMo"),
        ("bert_base", "random", "BERT-base"),
        ("teacher", "own", "teacher"),
        ("student", "own", "student"),
    ]
    for row in found.values():
        assert (row["pairs"], row["tokenizer"]) == (7, "own")
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert min(row["seconds"], row["tokenise_seconds"]) > 0
        assert row["ratio_to_bert_base"] == found["bert_base"]["seconds"] / row["seconds"]
        assert row["runtime"] == f"PyTorch {torch.__version__}"
    # One output for the score, whatever head the folder had; weights in fp32.
    assert found["teacher"]["parameters"] == found["bert_base"]["parameters"] == _parameters(folders["teacher"])
    assert found["student"]["parameters"] == _parameters(folders["student"])
    assert found["student"]["bytes"] == (folders["student"] / "model.safetensors").stat().st_size
    assert found["elmo"]["bytes"] >= 4 * found["elmo"]["parameters"]


def _parameters(folder: Path) -> int:
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).num_parameters()


def test_the_file_holds_the_conditions(measured: artifact.Artifact) -> None:
    said = json.loads((measured.path / "baselines.json").read_text())
    assert said["rows"] == measured.facts["rows"]
    assert said["machine"] == measured.facts["machine"]
    assert said["data"] == measured.facts["data"]
    assert said["settings"]["elmo"]["hidden"] == 7
    assert said["fit"] == measured.facts["fit"] == (said["unfit"] is None)
    assert len(said["machine"]["load_average"]) == 2
    assert said["machine"]["libraries"]["torch"] == torch.__version__


def test_a_folders_model_scores_as_it_does_by_itself(folders: dict[str, Path]) -> None:
    first, second = tiny.ENGLISH[:2]
    model = architectures.from_folder(folders["student"], "own", 128, 1, 0)
    (found,) = model.score(model.encode(first, second))
    given = AutoTokenizer.from_pretrained(folders["student"])(first, second, return_tensors="pt")
    del given["token_type_ids"]
    theirs = AutoModelForSequenceClassification.from_pretrained(folders["student"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), theirs(**given).logits)


def test_the_second_text_is_told_apart_where_the_model_can_and_long_pairs_are_cut(folders: dict[str, Path]) -> None:
    long = " ".join(tiny.ENGLISH[:12])
    bert = architectures.from_folder(folders["teacher"], "own", 40, 1, 0)
    assert sorted({*bert.encode("one", "two")["token_type_ids"].flatten()}) == [0, 1]
    assert bert.encode(long, long)["input_ids"].shape == (1, 40)
    beyond = architectures.from_folder(folders["teacher"], "own", 128, 1, 0)
    assert beyond.encode(long, long)["input_ids"].shape == (1, tiny.POSITIONS)


def test_another_models_tokenizer_may_stand_in_where_its_ids_are_known(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(tiny.roberta_teacher(tmp_path / "roberta", layers=1))
    reader = Reader(AutoTokenizer.from_pretrained(folders["teacher"]), "bert_base")
    config.vocab_size = len(reader.tokenizer)
    model = architectures.random(config, reader, 128, 1, 0)
    assert (model.weights, model.tokenizer) == ("random", "bert_base")
    given = model.encode(*tiny.ENGLISH[:2])
    assert "token_type_ids" not in given
    assert model.score(given)[0].shape == (1, 1)
    config.vocab_size -= 1
    with pytest.raises(stage.StageError, match=r"tokenizer of bert_base, which stands in, has .* ids, the roberta"):
        architectures.random(config, reader, 128, 1, 0)


def test_models_take_turns_chunk_by_chunk_on_the_same_pairs() -> None:
    calls: list[tuple[str, str]] = []

    def noting(name: str) -> PairModel:
        return PairModel("random", 1, 1, "none", "own", lambda one, two: one, lambda pair: calls.append((name, pair)))

    models = {name: noting(name) for name in ("elmo", "student")}
    pairs = [(str(number), "") for number in range(5)]
    with telemetry.Progress("test", 20, "pairs") as shown:
        times = measure(models, pairs, Baselines(chunk=2, passes=2), shown)
    chunks = ["001", "223", "44"]  # the first of each once more than it counts
    assert calls == [(name, pair) for _ in range(2) for chunk in chunks for name in models for pair in chunk]
    assert [len(times["elmo"].pairs), len(times["student"].passes)] == [10, 2]
    assert sum(times["elmo"].passes) == pytest.approx(sum(times["elmo"].pairs))
    # Without BERT-base there is nothing to be twice as fast as.
    assert [row["ratio_to_bert_base"] for row in rows(models, times, 5)] == [None, None]


def test_a_limit_takes_the_same_few_pairs_every_time(folders: dict[str, Path]) -> None:
    (whole, about), (few, same) = (read_pairs(folders["pairs"], limit) for limit in (None, 3))
    assert about == same == {"files": ["dev.jsonl"], "examples": 7, "subset": False}
    assert (len(whole), len(few)) == (7, 3)
    assert few == read_pairs(folders["pairs"], 3)[0] == [pair for pair in whole if pair in few]


@pytest.mark.parametrize(
    ("models", "given", "message"),
    [
        (("distilbert",), (), "distilbert has no tokenizer here: .* as --distilbert"),
        (("elmo",), ("bert_base",), "--bert_base was given, but models does not have bert_base"),
        ((), (), "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folders: dict[str, Path], tmp_path: Path, models: tuple[str, ...], given: tuple[str, ...], message: str
) -> None:
    recipe = QUICK.model_copy(update={"models": models})
    inputs = {role: folders[role] for role in ("pairs", *given)}
    with pytest.raises(stage.StageError, match=message):
        stage.execute(STAGE, recipe, inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_whole_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    def refused(folder: Path, weights: architectures.Weights, message: str) -> None:
        with pytest.raises(stage.StageError, match=message):
            architectures.from_folder(folder, weights, 128, 1, 0)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "given", r"has no config\.json")
    refused(folders["bert_base"], "own", "has no weights")
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["teacher"], damaged)
    weights = load_file(damaged / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    refused(damaged, "given", r"its weights lack bert\.encoder\.layer\.1\.output\.dense\.weight")


def test_the_shipped_recipe_is_the_documented_one() -> None:
    assert load(Baselines, "baselines") == Baselines()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data beside the checkout")
def test_the_papers_table_at_full_size_on_a_few_real_pairs(tmp_path: Path) -> None:
    inputs = {"pairs": DATA / "glue/stsb", "bert_base": DATA / "models/bert-base-uncased"}
    made = stage.execute(STAGE, Baselines(limit=4, chunk=2), inputs, tmp_path / "out")
    assert made is not None
    found = {row["model"]: row for row in made.facts["rows"]}
    assert [row["tokenizer"] for row in found.values()] == ["own", "own", "bert_base", "bert_base", "bert_base"]
    assert {name: round(row["parameters"] / 1e6) for name, row in found.items()} == {
        "elmo": 178, "bert_base": 109, "distilbert": 67, "roberta_base": 125, "distilroberta": 82,
    }  # fmt: skip
    for row in found.values():
        assert row["bytes"] == pytest.approx(4 * row["parameters"], rel=1e-3)
