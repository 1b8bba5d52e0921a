"""The provenance task made from a corpus: balanced, split by document, without names, deterministic."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from cluster.artifacts import artifact, errors, stage
from eval.finetune.stage import STAGE as FINETUNE
from eval.finetune.stage import Finetune
from eval.tasks.definitions import TASKS
from eval.tasks.examples import from_folder
from eval.tasks.provenance import STAGE, Provenance, name_pattern

SMALL = {"labels": 3, "passages_per_label": 20, "passages_per_document": 2, "words": 10}
LICENSE = " ".join(f"license{number}" for number in range(10))


def corpus(folder: Path, documents: Sequence[tuple[str, str]]) -> Path:
    """A corpus artifact of two shards."""
    with artifact.create(folder, kind="corpus", inputs={}, recipe={}) as draft:
        for number in range(2):
            sources, texts = zip(*documents[number::2], strict=True)
            columns = {
                "source": pa.array(sources).dictionary_encode(),
                "text": pa.array(texts, pa.large_string()),
            }
            pq.write_table(pa.table(columns), draft.path / f"documents-{number:05d}.parquet")
    return folder


def packages(counts: Mapping[str, int], words: int = 60) -> list[tuple[str, str]]:
    """Documents whose words encode source and document, so that every passage can be traced."""
    chance = random.Random(1)
    found = []
    for source, count in counts.items():
        for number in range(count):
            body = [f"{source[::-1]}x{number}x{chance.randrange(10**6)}" for _ in range(words)]
            found.append((source, f"{LICENSE} {source} {' '.join(body)}"))
    return found


def make(documents: Sequence[tuple[str, str]], folder: Path, **values: Any) -> Path:
    made = corpus(folder / "corpus", documents)
    stage.execute(STAGE, Provenance.of({**SMALL, **values}), {"corpus": made}, folder / "out")
    return folder / "out"


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / f"{split}.parquet").to_pylist())


FOUR = {"numpy": 30, "ray": 40, "scikit-learn": 25, "tiny": 24}


def test_the_largest_sources_balanced_and_read_by_the_task(tmp_path: Path) -> None:
    out = make(packages(FOUR), tmp_path)
    assert json.loads((out / "labels.json").read_text()) == ["ray", "numpy", "scikit-learn"]
    found = from_folder(TASKS["provenance"], out)
    assert found.task.outputs == 3
    for part, count in ((found.train, 16), (found.dev[0], 4)):
        assert sorted(part.labels.tolist()) == [label for label in range(3) for _ in range(count)]
        assert all(len(sentence.split()) == 10 for sentence in part.texts[0])
        # Mixed, not one label after the other.
        assert part.labels.tolist() != sorted(part.labels.tolist())
    assert artifact.read(out, "dataset").facts["train_examples"] == 48


def test_no_document_is_on_both_sides_and_labels_are_true(tmp_path: Path) -> None:
    out = make(packages(FOUR), tmp_path)
    sides: dict[str, set[str]] = {}
    names = json.loads((out / "labels.json").read_text())
    for split in ("train", "dev"):
        for row in rows(out, split):
            own = [word for word in row["sentence"].split() if "x" in word]
            documents = {tuple(word.split("x")[:2]) for word in own}
            assert len(documents) == 1
            reversed_name, number = documents.pop()
            assert reversed_name[::-1] == names[row["label"]]
            sides.setdefault(f"{reversed_name} {number}", set()).add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_text_shared_by_documents_is_left_out(tmp_path: Path) -> None:
    out = make(packages(FOUR), tmp_path, passages_per_document=50, passages_per_label=100)
    sentences = [row["sentence"] for split in ("train", "dev") for row in rows(out, split)]
    assert LICENSE not in sentences
    assert len(set(sentences)) == len(sentences) == 300


def test_same_corpus_and_recipe_same_files_whatever_the_row_order(tmp_path: Path) -> None:
    documents = packages(FOUR)
    first = make(documents, tmp_path / "first")
    second = make(documents[::-1], tmp_path / "second")
    third = make(documents, tmp_path / "third", seed=2)
    for name in ("train.parquet", "dev.parquet", "labels.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert rows(first, "dev") != rows(third, "dev")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("import numpy.linalg as np", "import it.linalg as np"),
        ("NumPy's arrays of rays by ray.init", "it's arrays of rays by it.init"),
        ("ScikitLearn, scikit_learn and sklearn", "it, it and it"),
        ("PyTorch, torchvision, torch_cuda; a torso", "it, it, it_cuda; a torso"),
        ("about ab, a-b and a.b", "about it, it and it"),
    ],
)
def test_names_are_masked_in_every_spelling(text: str, masked: str) -> None:
    names = name_pattern(["numpy", "ray", "scikit-learn", "torch", "a-b", "--"])
    assert names.sub("it", text) == masked


@pytest.mark.parametrize(
    ("counts", "values", "says"),
    [
        ({"numpy": 30, "ray": 30}, {}, r"the corpus has 2 sources \(numpy, ray\), labels = 3: set labels = 2"),
        ({"numpy": 30}, {}, "give the corpus more sources"),
        ({"a1": 30, "b1": 30, "c1": 5}, {}, r"source c1 has \d+ passages of 10 words in 5 documents, too few"),
        ({"a1": 30, "b1": 30, "c1": 30}, {"words": 100}, "source a1 has 0 passages of 100 words"),
    ],
)
def test_a_corpus_too_small_is_refused(
    counts: Mapping[str, int], values: Mapping[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(errors.StageError, match=says):
        make(packages(counts), tmp_path, **values)
    assert not (tmp_path / "out").exists()


def test_a_student_learns_the_task(tmp_path: Path) -> None:
    chance = random.Random(2)
    halves = {"brewing": tiny.ENGLISH[:24], "weaving": tiny.ENGLISH[24:]}
    documents = [(source, " ".join(chance.sample(half, 8))) for source, half in halves.items() for _ in range(60)]
    out = make(documents, tmp_path, labels=2, passages_per_label=150, passages_per_document=4, words=12)
    model = tiny.distilbert(tmp_path / "model")
    recipe = Finetune.of({"task": "provenance", "epochs": 6, "learning_rate": 3e-3, "batch": 16})
    stage.execute(FINETUNE, recipe, {"model": model, "data": out}, tmp_path / "finetuned")
    facts = artifact.read(tmp_path / "finetuned", "finetune").facts
    assert facts["majority"] == 50.0
    assert facts["score"] > 75.0
    config = json.loads((tmp_path / "finetuned" / "config.json").read_text())
    assert config["id2label"] == {"0": "brewing", "1": "weaving"}


def test_only_the_files_of_the_manifest_are_read(tmp_path: Path) -> None:
    made = corpus(tmp_path / "corpus", packages(FOUR))
    stray = {"source": pa.array(["stray"] * 99).dictionary_encode(), "text": pa.array(["x " * 60] * 99)}
    pq.write_table(pa.table(stray), made / "documents-00099.parquet")
    stage.execute(STAGE, Provenance.of(SMALL), {"corpus": made}, tmp_path / "out")
    assert "stray" not in json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
