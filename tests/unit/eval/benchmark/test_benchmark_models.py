"""Models to time: their workloads, heads and tokenizers, and those refused before any measurement."""

import shutil
from pathlib import Path
from typing import Any

import models_with_heads
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from cluster.artifacts import artifact, errors
from cluster.models import runners
from cluster.models.export_spec import Exported
from eval.benchmark import reference_models, workloads
from eval.benchmark.benchmark_models import BenchmarkModel, Preparation, choose, gather
from eval.benchmark.elmo import ElmoPairs, ElmoSizes
from eval.benchmark.reference_models import CONFIGURATIONS
from eval.benchmark.workloads import Workload

SMALL = ElmoSizes(character=4, filters=((1, 3), (2, 5)), highways=1, projection=6, cell=10, hidden=7)
TEXTS = [(tiny.ENGLISH[0], tiny.ENGLISH[1]), (" ".join(tiny.ENGLISH[:12]), " ".join(tiny.ENGLISH[:12]))]
PAIRS = Workload("pairs", None, TEXTS)
QUESTIONS = Workload("questions", 40, [("river", "rain"), TEXTS[1]])
FIXED = Workload("lengths", 30)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    teacher = tiny.bert_teacher(root / "teacher", layers=4)
    return {
        "teacher": teacher,
        "student-stsb": models_with_heads.model_folder(root / "stsb", "distilbert", "regression"),
        "student-squad": models_with_heads.model_folder(root / "squad", "distilbert", "question-answering"),
        "bert_base": without_weights(root / "bert", teacher),
    }


def without_weights(folder: Path, source: Path) -> Path:
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    return folder


def export_of(model: Path, out: Path, form: str, head: str, **changes: Any) -> Path:
    """An export with a description but without a model."""
    known: dict[str, Any] = {
        "format": form, "runtime": "onnxruntime", "files": {"any": "model.onnx"}, "head": head,
        "inputs": ("input_ids", "attention_mask"), "outputs": {"logits": "classes"}, "positions": 64, "pad": 0,
        "vocab_size": 100, "parameters": 1,
    }  # fmt: skip
    with artifact.create(out, kind="export", inputs={}, recipe={}) as draft:
        Exported(**{**known, **changes}).write(draft.path)
        draft.facts.update(source=artifact.folder_identity(model), model_name=model.name, format=form)
    return out


def preparation(found: list[BenchmarkModel], folder: Path) -> Preparation:
    return Preparation(found, SMALL, 0, folder)


def test_configurations_have_the_published_sizes() -> None:
    millions = {}
    for name, configuration in CONFIGURATIONS.items():
        config = configuration()
        config.num_labels = 1
        with torch.device("meta"):
            millions[name] = round(AutoModelForSequenceClassification.from_config(config).num_parameters() / 1e6, 1)
    # Encoders have 109.5, 66.4, 124.6 and 82.1 millions; DistilBERT's head is the largest.
    assert millions == {"bert_base": 109.5, "distilbert": 67.0, "roberta_base": 124.6, "distilroberta": 82.1}


def test_every_workload_gets_the_models_that_were_tuned_for_it(folders: dict[str, Path], tmp_path: Path) -> None:
    inputs = {
        **folders,
        "export-1": export_of(folders["student-stsb"], tmp_path / "a", "int8", "regression"),
        "export-2": export_of(folders["student-squad"], tmp_path / "b", "int8", "question-answering"),
        "export-3": export_of(folders["student-stsb"], tmp_path / "c", "onnx", "regression"),
    }
    found = gather(("elmo", "bert_base"), inputs)

    def chosen(workload: Workload) -> list[tuple[str, str]]:
        return [(each.name, "" if each.folder is None else each.folder.name) for each in choose(found, workload)]

    eager = [("bert_base", "bert"), ("teacher", "teacher")]
    assert chosen(PAIRS) == [
        ("elmo", ""), *eager, ("student", "stsb"), ("student int8", "a"), ("student onnx", "c"),
    ]  # fmt: skip
    assert chosen(QUESTIONS) == [*eager, ("student", "squad"), ("student int8", "b")]
    assert chosen(FIXED) == [*eager, ("student", "stsb"), ("student int8", "a"), ("student onnx", "c")]
    assert {each.name: each.weights for each in found if each.export is None} == {
        "elmo": "random", "bert_base": "random", "teacher": "own", "student": "own"
    }  # fmt: skip


def test_an_export_belongs_to_the_model_it_was_made_of(folders: dict[str, Path], tmp_path: Path) -> None:
    export = export_of(folders["student-squad"], tmp_path / "export", "int8", "question-answering")
    with pytest.raises(errors.StageError, match=r"--export .*export .* squad"):
        gather((), {"student": folders["student-stsb"], "export": export})
    found = gather((), {"teacher": folders["student-squad"], "export": export})
    assert [each.name for each in found] == ["teacher", "teacher int8"]


@pytest.mark.parametrize(
    ("models", "given", "line"),
    [
        (("elmo",), ("bert_base",), "--bert_base was given, but models does not have bert_base"),
        ((), (), "nothing to measure: give --student"),
    ],
)
def test_models_that_cannot_be_measured_are_refused(
    folders: dict[str, Path], models: tuple[str, ...], given: tuple[str, ...], line: str
) -> None:
    with pytest.raises(errors.StageError, match=line):
        gather(models, {role: folders[role] for role in given})


def test_a_model_has_the_head_of_the_workload(folders: dict[str, Path], tmp_path: Path) -> None:
    found = gather(("bert_base",), {name: folders[name] for name in ("teacher", "student-stsb", "bert_base")})
    making = preparation(found, tmp_path)
    pairs = {each.who: making.ready(each, PAIRS) for each in choose(found, PAIRS)}
    questions = {each.who: making.ready(each, QUESTIONS) for each in choose(found, QUESTIONS)}
    assert pairs["student"].folder == folders["student-stsb"], "it has the head already"
    for made, wanted in ((pairs, "SequenceClassification"), (questions, "QuestionAnswering")):
        for each in made.values():
            assert AutoConfig.from_pretrained(each.folder).architectures[0].endswith(wanted)
            row = each.encoded.rows[1]
            outputs = runners.PyTorchRunner(each.folder)(**row)
            assert [output.shape[0] for output in outputs] == [1] * len(outputs)
    # The new head gets the teacher's encoder; an architecture without weights gets random ones.
    body = load_file(folders["teacher"] / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    named = [load_file(each["teacher"].folder / "model.safetensors") for each in (pairs, questions)]
    assert all(torch.equal(each["bert.embeddings.word_embeddings.weight"], body) for each in named)
    drawn = load_file(pairs["bert_base"].folder / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert not torch.equal(drawn, body)


def test_texts_are_read_as_each_model_reads_them(folders: dict[str, Path], tmp_path: Path) -> None:
    found = gather((), {"teacher": folders["teacher"], "student": folders["student-stsb"]})
    making = preparation(found, tmp_path)
    bert, distilbert = (making.ready(each, PAIRS).encoded for each in found)
    if "token_type_ids" in distilbert.rows[0]:
        bert, distilbert = distilbert, bert
    assert sorted({*bert.rows[0]["token_type_ids"].flatten()}) == [0, 1]
    assert "token_type_ids" not in distilbert.rows[0]
    assert [row["input_ids"].shape[1] for row in bert.rows] == [bert.rows[0]["input_ids"].shape[1], tiny.POSITIONS]
    assert bert.seconds is not None
    assert bert.seconds > 0
    padded = making.ready(found[0], QUESTIONS).encoded
    assert [row["input_ids"].shape for row in padded.rows] == [(1, 40)] * 2
    assert padded.rows[0]["attention_mask"].sum() < padded.rows[1]["attention_mask"].sum() == 40


def test_elmo_reads_characters_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    (elmo,) = gather(("elmo",), {})
    made = preparation([elmo], tmp_path).ready(elmo, PAIRS)
    assert (made.kind, made.tokenizer, set(made.encoded.rows[0])) == ("elmo", "own", {"first", "second"})
    first, again = ElmoPairs.load(made.folder), ElmoPairs.load(made.folder)
    given = [torch.from_numpy(values) for values in made.encoded.rows[0].values()]
    with torch.no_grad():
        torch.testing.assert_close(first(*given), again(*given))


def test_another_models_tokenizer_may_stand_in_where_its_ids_are_known(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    found = gather(("distilbert",), {"student": folders["student-stsb"]})
    making = preparation(found, tmp_path)
    (other,) = [each for each in found if each.who == "distilbert"]
    reader = making._reader(other)
    assert reader.of == "student"
    config = AutoConfig.from_pretrained(folders["student-stsb"])
    config.vocab_size = len(reader.tokenizer) - 1
    with pytest.raises(errors.StageError, match=r"tokenizer of student, .* ids"):
        reference_models.check_reads(config, reader)
    alone = gather(("distilbert",), {})
    with pytest.raises(errors.StageError, match=r"distilbert has no tokenizer here: .* as --distilbert"):
        preparation(alone, tmp_path).ready(alone[0], PAIRS)


def test_longer_inputs_than_a_model_reads_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    given = {"student": folders["student-squad"]}
    given["export"] = export_of(folders["student-squad"], tmp_path / "short", "litert-int8", "question-answering",
                                positions=32)  # fmt: skip
    found = gather((), given)
    making = preparation(found, tmp_path)
    eager, export = sorted(found, key=lambda each: each.form != "pytorch")
    with pytest.raises(errors.StageError, match=r"65 tokens .* student .* \(64\)"):
        making.ready(eager, Workload("lengths", 65), workloads.drawn(65, 1, 1, 100, 0))
    with pytest.raises(errors.StageError, match=r"questions: 40 tokens .* student litert-int8 .* \(32\)"):
        making.ready(export, QUESTIONS)


def test_an_incomplete_model_folder_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.StageError, match=r"has no config\.json"):
        reference_models.with_head(tmp_path / "empty", "score", tmp_path / "out", 0)
    with pytest.raises(errors.StageError, match="has no weights"):
        gather((), {"teacher": folders["bert_base"]})
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["teacher"], damaged)
    weights = load_file(damaged / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(errors.StageError, match=r"lack bert\.encoder\.layer\.1\.output\.dense\.weight"):
        reference_models.with_head(damaged, "score", tmp_path / "out", 0)


def test_fixed_length_inputs_are_deterministic_and_without_special_ids() -> None:
    drawn = workloads.drawn(12, 5, 2, 100, 7)
    assert [row["input_ids"].shape for row in drawn.rows] == [(2, 12)] * 5
    assert min(row["input_ids"].min() for row in drawn.rows) >= 50
    again = workloads.drawn(12, 5, 2, 100, 7)
    assert all((one["input_ids"] == two["input_ids"]).all() for one, two in zip(drawn.rows, again.rows, strict=True))
    assert drawn.seconds is None
