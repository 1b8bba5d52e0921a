"""The CPU benchmark: turns, rows, ratios and conditions, and real models of every kind."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altered_models
import model_exports
import models_with_heads
import numpy as np
import paths
import pytest
import result_folders
import tiny
import torch
from transformers import AutoModelForSequenceClassification

from cluster.artifacts import artifact, cli, errors, stage
from cluster.artifacts.recipe import RecipeError, load
from cluster.models.runners import ExportRunner, PyTorchRunner, runner_for
from eval.benchmark import stage as benchmark_stage
from eval.benchmark.elmo import ElmoSizes
from eval.benchmark.model_process import ModelProcessError, Turn
from eval.benchmark.percentiles import percentiles
from eval.benchmark.stage import STAGE, BenchmarkRecipe, counts, time_turns, wanted

DATA = paths.DATA
SMALL = ElmoSizes(character=4, filters=((1, 3), (2, 5)), highways=1, projection=6, cell=10, hidden=7)


def stsb(folder: Path) -> Path:
    """A task folder of four training and seven development pairs."""
    folder.mkdir(parents=True)
    pairs = zip(tiny.ENGLISH[::2], tiny.ENGLISH[1::2], strict=True)
    lines = [json.dumps({"sentence1": one, "sentence2": two, "label": 2.5}) + "\n" for one, two in pairs]
    (folder / "train.jsonl").write_text("".join(lines[:4]))
    (folder / "dev.jsonl").write_text("".join(lines[4:11]))
    return folder


def squad(folder: Path) -> Path:
    """A task folder of three questions."""
    folder.mkdir(parents=True)
    answer = {"text": ["river"], "answer_start": [4]}
    rows = [{"id": str(number), "question": "What?", "context": "The river is long.", "answers": answer}
            for number in range(3)]  # fmt: skip
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@dataclass
class Noting:
    """Records its calls in place of a model's process."""

    name: str
    calls: list[tuple[str, Any]]
    joules: float | None = 2.0
    rounds: Iterator[float] = field(default_factory=lambda: iter(range(1, 100)))

    def first(self) -> float:
        self.calls.append((self.name, "first"))
        return 50.0

    def turn(self, first: int, last: int) -> Turn:
        self.calls.append((self.name, (first, last)))
        return Turn([float(next(self.rounds)) for _ in range(first, last)], self.joules)


class Shown:
    def __init__(self) -> None:
        self.count = 0

    def advance(self, count: int) -> None:
        self.count += count


def test_models_take_turns_on_the_same_inputs() -> None:
    calls: list[tuple[str, Any]] = []
    models: Any = {name: Noting(name, calls) for name in ("elmo", "student")}
    models["student"].joules = None
    shown = Shown()
    times = time_turns(BenchmarkRecipe(turn=2, warmup=1), models, 5, shown)
    order: list[Any] = ["first", "first", (0, 2), (2, 4), (4, 5)]
    assert calls == [(name, what) for what in order for name in models]
    assert (times["elmo"].ms, times["elmo"].joules, times["elmo"].first_ms) == ([1, 2, 3, 4, 5], 6.0, 50)
    assert times["student"].joules is None
    assert shown.count == 5
    # By default one call of every model before the next input.
    assert BenchmarkRecipe().turn == 1


def test_percentiles_by_hand_with_their_outliers() -> None:
    numbers = percentiles([float(value) for value in range(1, 102)])
    assert numbers == {"p50_ms": 51, "p90_ms": 91, "p99_ms": 100, "mean_ms": 51, "min_ms": 1, "max_ms": 101}


def test_ratios_are_of_seconds_over_texts_and_of_medians_at_a_length() -> None:
    def row(model: str, form: str, seconds: float, p50: float, workload: str) -> dict[str, Any]:
        return {"model": model, "form": form, "seconds": seconds, "p50_ms": p50, "workload": workload}

    for workload, expected in (("pairs", (4.0, 8.0)), ("lengths", (2.0, 3.0))):
        found = benchmark_stage._compared(
            [
                row("bert_base", "pytorch", 80.0, 30.0, workload),
                row("teacher", "pytorch", 40.0, 20.0, workload),
                row("teacher", "int8", 20.0, 5.0, workload),
                row("student", "int8", 10.0, 10.0, workload),
            ]
        )
        assert (found[-1]["ratio_to_teacher"], found[-1]["ratio_to_bert_base"]) == expected
    alone = benchmark_stage._compared([row("student", "pytorch", 1.0, 1.0, "pairs")])
    assert (alone[0]["ratio_to_teacher"], alone[0]["ratio_to_bert_base"]) == (None, None)


def test_threads_are_counted_once() -> None:
    cores = len(os.sched_getaffinity(0))
    assert counts(BenchmarkRecipe()) == list(dict.fromkeys((1, cores)))
    assert counts(BenchmarkRecipe(threads=(cores, "all"))) == [cores]
    with pytest.raises(RecipeError, match="threads"):
        BenchmarkRecipe.of({"threads": ["most"]})


def test_workloads_follow_from_what_is_given(tmp_path: Path) -> None:
    folders = {"pairs": stsb(tmp_path / "stsb"), "questions": squad(tmp_path / "squad")}
    recipe = BenchmarkRecipe.of({"lengths": [8], "pairs": {"limit": 3}, "questions": {"length": 20}})
    assert [each.name for each in wanted(recipe, folders)] == ["pairs", "8 tokens", "questions"]
    pairs, _, questions = wanted(recipe, folders)
    assert dict(pairs.about) == {"files": ["dev.jsonl"], "examples": 7, "measured": 3, "subset": True}
    assert len(pairs.texts) == 3
    assert pairs.texts == wanted(recipe, folders)[0].texts, "the same few every time"
    assert [each for each in wanted(BenchmarkRecipe(), folders)[0].texts if each in pairs.texts] == pairs.texts
    assert dict(questions.about) == {"files": ["dev.jsonl"], "examples": 3, "measured": 3, "subset": False}
    assert questions.texts[0] == ("What?", "The river is long.")
    with pytest.raises(errors.StageError, match="nothing to time the models on: give --pairs"):
        wanted(BenchmarkRecipe(lengths=()), {})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, a student and the student's exports, made by the stages."""
    root = tmp_path_factory.mktemp("models")
    found = {
        "teacher": models_with_heads.model_folder(root / "teacher", "bert", "classification", layers=4),
        "student": models_with_heads.model_folder(root / "student", "bert", "classification", layers=2),
    }
    onnx = model_exports.onnx(found["student"], root / "onnx")
    int8 = model_exports.int8(onnx, found["student"], root / "int8")
    return found | {"export-1": onnx, "export-2": int8, "pairs": stsb(root / "stsb")}


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> artifact.Artifact:
    recipe = BenchmarkRecipe.of(
        {"models": ["elmo"], "lengths": [8], "threads": [1], "warmup": 1, "repeats": 7, "elmo": SMALL.model_dump()}
    )
    made = stage.execute(STAGE, recipe, folders, folders["teacher"].parent / "latency")
    assert made is not None
    return made


@pytest.mark.long
def test_there_is_one_complete_row_for_each_model_and_workload(
    folders: dict[str, Path], measured: artifact.Artifact
) -> None:
    rows = measured.facts["rows"]
    own = [("teacher", "pytorch"), ("student", "pytorch"), ("student", "int8"), ("student", "onnx")]
    assert [(row["workload"], row["model"], row["form"]) for row in rows] == [
        ("pairs", "elmo", "pytorch"), *(("pairs", *each) for each in own), *(("lengths", *each) for each in own),
    ]  # fmt: skip
    for row in rows:
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["seconds"] == pytest.approx(row["inputs"] * row["mean_ms"] / 1000)
        assert min(row["first_ms"], row["load_seconds"], row["tokens"]) > 0
        assert (row["inputs"], row["threads"], row["length"]) == (7, 1, None if row["workload"] == "pairs" else 8)
        assert (row["tokenise_seconds"] is None) == (row["workload"] == "lengths")
        assert row["peak_memory_bytes"] > row["model_memory_bytes"] > 0
        assert row["bytes"] > 0
        assert (row["joules"] is None) == (measured.facts["energy"]["absent"] is not None)
    sizes = {(row["model"], row["form"]): (row["parameters"], row["bytes"]) for row in rows}
    student = sizes["student", "pytorch"]
    assert sizes["student", "int8"][0] == sizes["student", "onnx"][0] == student[0] < sizes["teacher", "pytorch"][0]
    assert sizes["student", "int8"][1] < sizes["student", "onnx"][1]
    assert student[1] == (folders["student"] / "model.safetensors").stat().st_size
    memory = {row["form"]: row["peak_memory_bytes"] for row in rows if row["model"] == "student"}
    assert memory["onnx"] < memory["pytorch"], "an export is alone in its process, without PyTorch"
    assert {row["weights"] for row in rows if row["model"] == "elmo"} == {"random"}


@pytest.mark.long
def test_the_file_holds_the_conditions(measured: artifact.Artifact) -> None:
    said = json.loads((measured.path / "latency.json").read_text())
    assert said["rows"] == measured.facts["rows"]
    assert said["settings"]["repeats"] == 7
    assert said["machine"]["cores"] == os.cpu_count()
    assert said["machine"]["libraries"]["torch"] == torch.__version__
    assert said["machine"]["processor"]
    assert said["fit"] == (said["unfit"] is None)
    assert [(each["workload"], each["threads"]) for each in said["conditions"]] == [("pairs", 1), ("8 tokens", 1)]
    for each in said["conditions"]:
        assert len(each["pinned_cores"]) == 1
        assert each["others_share_of_pinned_cores"] is None or each["others_share_of_pinned_cores"] < 1
    assert said["data"]["pairs"]["measured"] == 7


@pytest.mark.long
def test_a_model_that_does_not_load_ends_the_measurement_with_its_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    files = model_exports.onnx(folders["student"], tmp_path / "files")
    facts = artifact.read(files).facts
    (files / "manifest.json").unlink()
    (files / "model.onnx").write_bytes(b"\0" * (files / "model.onnx").stat().st_size)
    broken = altered_models.as_artifact(files, tmp_path / "broken", "export", **facts)
    before = os.sched_getaffinity(0)
    recipe = BenchmarkRecipe(lengths=(8,), threads=(1,), repeats=1)
    with pytest.raises(ModelProcessError, match=r"^student onnx: InvalidProtobuf"):
        stage.execute(STAGE, recipe, {"student": folders["student"], "export": broken}, tmp_path / "latency")
    assert not (tmp_path / "latency").exists()
    assert os.sched_getaffinity(0) == before


def test_an_export_in_the_place_of_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runtime.json").write_text("{}")
    with pytest.raises(errors.StageError, match=r"--student .* is an export: .* --export"):
        stage.execute(STAGE, BenchmarkRecipe(), {"student": tmp_path}, tmp_path / "latency")


@pytest.mark.long
def test_both_runners_answer_as_the_model_does(folders: dict[str, Path]) -> None:
    ids = np.random.default_rng(0).integers(5, 100, (2, 13))
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    types = (np.arange(13) >= 6).astype(np.int64)[None, :].repeat(2, axis=0)
    model = AutoModelForSequenceClassification.from_pretrained(folders["student"]).eval()
    eager, onnx = runner_for(folders["student"]), runner_for(folders["export-1"])
    assert (type(eager), type(onnx)) == (PyTorchRunner, ExportRunner)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    for arrays in (given, {"input_ids": ids, "attention_mask": mask}):
        with torch.no_grad():
            wanted = model(**{name: torch.from_numpy(values) for name, values in arrays.items()}).logits.numpy()
        for runner in (eager, onnx):
            (found,) = runner(**arrays)
            np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_incomplete_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.StageError, match=r"it has no config\.json"):
        runner_for(tmp_path)
    body = models_with_heads.model_folder(tmp_path / "body", "bert", "masked-words")
    config = json.loads((body / "config.json").read_text())
    (body / "config.json").write_text(json.dumps(config | {"architectures": ["BertForSequenceClassification"]}))
    with pytest.raises(errors.StageError, match=r"weights lack bert\.pooler"):
        runner_for(body)
    (body / "config.json").write_text(json.dumps(config | {"architectures": ["BertForEverything"]}))
    with pytest.raises(errors.StageError, match="architectures names BertForEverything"):
        runner_for(body)


def test_the_shipped_recipe_is_the_documented_one() -> None:
    assert load(BenchmarkRecipe, "latency") == BenchmarkRecipe()


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
def test_the_papers_table_at_full_size_on_a_few_real_pairs(tmp_path: Path) -> None:
    inputs = {"pairs": DATA / "glue/stsb", "bert_base": DATA / "models/bert-base-uncased"}
    recipe = load(BenchmarkRecipe, "baselines", ["pairs.limit=4", "turn=2", "warmup=0"])
    made = stage.execute(STAGE, recipe, inputs, tmp_path / "out")
    assert made is not None
    found = {row["model"]: row for row in made.facts["rows"]}
    assert [row["tokenizer"] for row in found.values()] == ["own", "own", "bert_base", "bert_base", "bert_base"]
    assert {name: round(row["parameters"] / 1e6) for name, row in found.items()} == {
        "elmo": 178, "bert_base": 109, "distilbert": 67, "roberta_base": 125, "distilroberta": 82,
    }  # fmt: skip
    for row in found.values():
        assert row["bytes"] == pytest.approx(4 * row["parameters"], rel=1e-3)


@pytest.mark.long
def test_models_of_two_tasks_are_each_timed_on_their_texts(tmp_path: Path) -> None:
    given = {"pairs": stsb(tmp_path / "stsb"), "questions": squad(tmp_path / "squad")}
    for task, head in (("stsb", "regression"), ("squad", "question-answering")):
        model = models_with_heads.model_folder(tmp_path / f"student-{task}", "distilbert", head)
        given |= {f"student-{task}": model, f"export-{task}": model_exports.onnx(model, tmp_path / f"onnx-{task}")}
    recipe = BenchmarkRecipe.of({"lengths": [], "threads": [1], "questions": {"length": 20}, "turn": 4, "warmup": 0})
    made = stage.execute(STAGE, recipe, given, tmp_path / "latency")
    assert made is not None
    rows = made.facts["rows"]
    assert [(row["workload"], row["form"], row["inputs"], row["length"]) for row in rows] == [
        ("pairs", "pytorch", 7, None), ("pairs", "onnx", 7, None),
        ("questions", "pytorch", 3, 20), ("questions", "onnx", 3, 20),
    ]  # fmt: skip
    assert {row["tokens"] for row in rows if row["workload"] == "questions"} == {20}
    heads = [json.loads((made.path.parent / f"student-{task}/config.json").read_text())["architectures"]
             for task in ("stsb", "squad")]  # fmt: skip
    assert heads == [["DistilBertForSequenceClassification"], ["DistilBertForQuestionAnswering"]]


def test_several_models_and_exports_are_given_on_the_command_line(tmp_path: Path) -> None:
    for name, kind, facts in (
        ("a", "finetune", {"task": "stsb"}), ("b", "finetune", {"task": "squad"}),
        ("c", "export", {"format": "int8"}), ("d", "export", {"format": "onnx"}), ("e", "student", {}),
    ):  # fmt: skip
        result_folders.make(tmp_path / name, kind, facts, {})
    parser = cli.parser_for(STAGE, "stillhouse latency")

    def inputs(*words: str) -> dict[str, Any]:
        given = [str(tmp_path / word) if len(word) == 1 else word for word in words]
        options = parser.parse_args(["default", *given, "--out", str(tmp_path / "out")])
        return {name: Path(str(place)).name for name, place in cli.stage_call(STAGE, options)[1].items()}

    identities = {name: artifact.read(tmp_path / name).identity[:12] for name in ("c", "d")}
    found = inputs("--student", "b", "a", "--export", "c", "--export", "d")
    assert found == {"student-stsb": "a", "student-squad": "b"} | {f"export-{identities[x]}": x for x in ("c", "d")}
    assert inputs("--student", "e", "--export", "c") == {"student": "e", "export": "c"}
    with pytest.raises(errors.StageError, match="does not say its task"):
        inputs("--student", "a", "e")
