"""The teacher that ships: what its folder says is true, and it knows more of English than word counts."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cluster.artifacts import artifact, registry, shipped
from cluster.tokens import word_count_gain
from distill.modeling import masked_lm
from distill.train.teacher import Teacher

FOLDER = shipped.models()["small-english"]

SENSIBLE = {
    "The [MASK] of France is Paris.": {"capital", "city", "center", "centre"},
    "He shook his [MASK] and said nothing.": {"head"},
    "She opened the [MASK] and went into the room.": {"door", "window", "doors"},
    "They were married and had three [MASK].": {"children", "sons", "daughters"},
    "He was born in [MASK] and studied at the university.": {"london", "england", "paris", "germany", "new"},
    "The band released its first [MASK] in 1999.": {"album", "single", "record"},
    "The river flows into the Atlantic [MASK].": {"ocean", "sea", "coast"},
    "The city has a population of more than ten [MASK] people.": {"million", "thousand", "hundred"},
    "It is one of [MASK] most important cities in the country.": {"the"},
    "You must not [MASK] that I love you.": {"know", "think", "say", "believe", "see", "be", "tell", "feel", "forget"},
}
"""Sentences of the model card, and words that fit."""


def test_the_folder_is_whole_and_small() -> None:
    found = artifact.verify(FOLDER, "teacher")
    assert (FOLDER / "model.safetensors").stat().st_size <= 8_000_000
    assert found.manifest["made"].keys() == {"at", "seconds"}, "no host and no path of another machine"
    assert set(found.files) | {"README.md", "recipe.toml", "manifest.json"} == {
        path.name for path in FOLDER.iterdir() if path.suffix != ".pyc"
    }


def test_the_recipe_beside_it_is_the_one_it_was_made_by() -> None:
    recipe = Teacher.of(tomllib.loads((FOLDER / "recipe.toml").read_text("utf-8"))["teacher"])
    assert artifact.read(FOLDER).recipe == recipe.identity()


def test_the_card_says_what_the_manifest_says() -> None:
    card = ModelCard((FOLDER / "README.md").read_text("utf-8"))
    facts = artifact.read(FOLDER).facts
    measured = facts["validation"]
    assert f"{measured['hidden_loss']:.2f}" in card.text
    assert f"{measured['counts_hidden_loss']:.2f}" in card.text
    assert f"{facts['tokens'] / 1e6:.1f} million tokens" in card.text
    for license_name in ("CC BY-SA 3.0", "GFDL", "public domain"):
        assert license_name in card.text
    assert [each["text"] for each in card.data.widget] == list(SENSIBLE)


def test_transformers_loads_it_and_it_fills_masks_sensibly() -> None:
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    guesses: dict[str, list[str]] = {}
    for text in SENSIBLE:
        ids = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**ids).logits[0, (ids["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()]
        guesses[text] = [tokenizer.decode([one]).strip() for one in logits.topk(5).indices.tolist()]
    first = [text for text, words in SENSIBLE.items() if guesses[text][0] in words]
    among = [text for text, words in SENSIBLE.items() if words & {*guesses[text]}]
    assert len(first) >= 9, guesses
    assert len(among) == len(SENSIBLE), guesses


@pytest.mark.usefixtures("ray_of_three_cpus")
def test_it_beats_the_word_counts_of_text_that_it_never_saw(tmp_path: Path) -> None:
    """On documentation, which is neither an encyclopedia nor a novel, and whose counts the counts know."""
    source = {"kind": "installed-docs", "packages": ["stdlib", "numpy"]}
    registry.execute(
        "cluster.corpus", {"sources": [source], "cleaning": {"min_characters": 200}}, {}, tmp_path / "corpus"
    )
    values: dict[str, Any] = {"seq_len": 64, "heldout": 0.1, "tokenizer": {"kind": "pretrained", "name": str(FOLDER)}}
    registry.execute("cluster.tokens", values, {"corpus": tmp_path / "corpus"}, tmp_path / "tokens")
    registry.execute("distill.teacher", {"source": "small-english"}, {}, tmp_path / "teacher")
    given = {"tokens": tmp_path / "tokens", "teacher": tmp_path / "teacher"}
    untrained = {"steps": 0, "validation_rows": 128, "masking": {"smoothing": 0.0}}
    registry.execute("distill.train", untrained, given, tmp_path / "run")
    registry.execute("distill.export", {}, {"run": tmp_path / "run"}, tmp_path / "student")
    measured = artifact.read(tmp_path / "student").facts["validation"]
    saved = word_count_gain.saved_percent(measured["teacher_hidden_loss"], measured["counts_hidden_loss"])
    assert saved is not None
    assert saved > 15.0
    assert measured["teacher_hidden_loss"] < measured["hidden_loss"] - 0.3, "half of its layers know less"


def test_a_recipe_names_it_and_a_folder_of_that_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shipped.place("small-english") == FOLDER
    assert shipped.place("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    model, missing = masked_lm.load("small-english")
    assert not missing
    assert next(model.parameters()).dtype == torch.float32
    monkeypatch.chdir(tmp_path)
    Path("small-english").mkdir()
    assert shipped.place("small-english") == "small-english"
