"""Teachers: unchanged, with a new head, trained from scratch, or refused in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from cluster.artifacts import artifact, stage
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import RecipeError
from distill.modeling import masked_lm
from distill.modeling.masked_lm import ModelError
from distill.train.teacher import STAGE, Teacher

TRAINING = {
    "steps": 4,
    "rows_per_step": 8,
    "loss": {"soft": 0.0, "cosine": 0.0},
    "validation_rows": 8,
    "placement": {"rows_per_device": 4},
}
ARCHITECTURE = {"layers": 2, "hidden": 32, "heads": 2, "feed_forward": 64, "positions": 64}


def make(recipe: dict[str, object], out: Path, tokens: Path | None = None) -> artifact.Artifact:
    inputs = {} if tokens is None else {"tokens": tokens}
    made = stage.execute(STAGE, Teacher.of(recipe), inputs, out)
    assert made is not None
    return made


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_from_a_folder_is_taken_as_it_is(tmp_path: Path, kind: str) -> None:
    builders = {"bert": tiny.bert_teacher, "roberta": tiny.roberta_teacher}
    source = builders[kind](tmp_path / "source")
    made = make({"source": str(source)}, tmp_path / "teacher")
    ours, theirs = (AutoModelForMaskedLM.from_pretrained(path).state_dict() for path in (made.path, source))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    text = "The mill by the river"
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (made.path, source)]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]
    assert made.facts["layers"] == 4


def headless(folder: Path, tmp_path: Path) -> Path:
    """The encoder of ``folder/bert`` alone, as AutoModel saves it."""
    AutoModel.from_pretrained(folder / "bert").save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(folder / "bert").save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_without_a_head_is_given_one(folder: Path, tmp_path: Path) -> None:
    source = headless(folder, tmp_path)
    with pytest.raises(ModelError, match=r"has no masked-word head: add a table \[train\]"):
        make({"source": str(source)}, tmp_path / "teacher")
    recipe = {"source": str(source), "train": TRAINING, "trains": "head"}
    made = make(recipe, tmp_path / "teacher", folder / "tokens")
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (source, made.path))
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("pooler"))
    head = AutoModelForMaskedLM.from_pretrained(made.path).cls.predictions
    assert head.bias.abs().sum() > 0
    assert made.facts["validation"]["masked"] > 0
    assert not (made.path / "run").exists()
    assert (made.path / "metrics.jsonl").is_file()


def test_a_new_head_is_drawn_from_the_seed(folder: Path, tmp_path: Path) -> None:
    source = headless(folder, tmp_path)
    heads = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(1)  # the head must not depend on earlier random draws
        recipe = {"source": str(source), "train": {**TRAINING, "steps": 1, "seed": seed}, "trains": "head"}
        made = make(recipe, tmp_path / name, folder / "tokens")
        heads.append(AutoModelForMaskedLM.from_pretrained(made.path).cls.predictions.transform.dense.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_encoder_can_be_trained_together_with_its_head(folder: Path, tmp_path: Path) -> None:
    source = headless(folder, tmp_path)
    made = make({"source": str(source), "train": TRAINING}, tmp_path / "teacher", folder / "tokens")
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (source, made.path))
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(before[name], after[name])


def test_a_teacher_is_trained_from_scratch(folder: Path, tmp_path: Path) -> None:
    plain = {"masking": {"smoothing": 0.0}, "optimizer": {"learning_rate": 5e-3}}
    recipe = {"architecture": ARCHITECTURE, "train": {**TRAINING, **plain, "steps": 100}}
    made = make(recipe, tmp_path / "teacher", folder / "tokens")
    model = AutoModelForMaskedLM.from_pretrained(made.path)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 32)
    assert made.facts["validation"]["masked"] < 5.5
    assert made.facts["vocabulary"] == artifact.read(folder / "tokens").facts["vocabulary"]


def test_weights_are_written_in_half_precision_and_read_as_whole_ones(tmp_path: Path) -> None:
    source = tiny.bert_teacher(tmp_path / "source")
    made = {
        weights: make({"source": str(source), "weights": weights}, tmp_path / weights).path
        for weights in ("fp32", "fp16")
    }
    whole, half = ((path / "model.safetensors").stat().st_size for path in made.values())
    assert half < 0.6 * whole
    model, missing = masked_lm.load(made["fp16"])
    assert not missing
    exact = load_file(made["fp32"] / "model.safetensors")
    for name, values in model.named_parameters():
        assert values.dtype == torch.float32
        assert torch.equal(values, exact[name].half().float())


def test_weights_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    source = tiny.bert_teacher(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["cls.predictions.bias"][0] = 1e5
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"cls\.predictions\.bias has weights above 65,504, too large for fp16"):
        make({"source": str(source), "weights": "fp16"}, tmp_path / "teacher")


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        ({}, r'write source = "…" or a table \[architecture\], exactly one'),
        ({"source": "x", "architecture": ARCHITECTURE}, "exactly one"),
        ({"architecture": ARCHITECTURE}, r"a teacher from scratch needs a table \[train\]"),
        ({"architecture": {**ARCHITECTURE, "heads": 3}, "train": TRAINING}, "hidden 32 does not divide by"),
        ({"source": "x", "train": {**TRAINING, "loss": {}}}, "a teacher has no teacher: write train.loss.soft = 0"),
    ],
)
def test_invalid_teacher_recipes_are_refused(recipe: dict[str, object], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        Teacher.of(recipe)


def test_models_that_cannot_be_teachers_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no model can be loaded from"):
        make({"source": str(tmp_path / "nothing")}, tmp_path / "a")
    student = tiny.distilbert(tmp_path / "distilbert")
    with pytest.raises(ModelError, match="is a DistilBertForMaskedLM"):
        make({"source": str(student)}, tmp_path / "b")
    with pytest.raises(StageError, match="needs --tokens DIR"):
        make({"architecture": ARCHITECTURE, "train": TRAINING}, tmp_path / "c")
    roberta = tiny.roberta_teacher(tmp_path / "roberta")
    with pytest.raises(ModelError, match=r"different vocabularies: .* --tokenizer"):
        make({"source": str(roberta), "train": TRAINING}, tmp_path / "d", folder / "tokens")
    short = {**ARCHITECTURE, "positions": 16}
    with pytest.raises(ModelError, match="rows of 32 tokens, but the teacher reads 16"):
        make({"architecture": short, "train": TRAINING}, tmp_path / "e", folder / "tokens")


def _pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _spoil(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][7, 3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "word"),
    [(_pickle, "pickled .*from_pretrained"), (_cut, "whole file .* again"), (_spoil, "not finite .*word_embeddings")],
)
def test_unusable_weights_are_named_with_what_helps(tmp_path: Path, change: Callable[[Path], None], word: str) -> None:
    source = tiny.bert_teacher(tmp_path / "source")
    change(source)
    with pytest.raises(ValueError, match=word):
        make({"source": str(source)}, tmp_path / "teacher")
