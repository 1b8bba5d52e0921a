"""Labels, columns and splits are matched by their names, whatever their numbers."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.tasks.declared_names import inside
from eval.tasks.definitions import TASKS
from eval.tasks.examples import dev_from_folder, from_folder, from_hub
from eval.tasks.file_readers import ExamplesError
from eval.tasks.label_matching import class_named, classes_named, unnamed

MNLI = ["entailment", "neutral", "contradiction"]
REORDERED = ["contradiction", "entailment", "neutral"]
SPLITS = ("train", "validation_matched", "validation_mismatched")


def nli(names: list[str], **columns: Any) -> datasets.Dataset:
    """One pair of each MNLI class, in the task's order, numbered as in ``names``."""
    folded = [name.casefold() for name in names]
    columns = columns or {"premise": list("abc"), "hypothesis": list("def")}
    values = {**columns, "label": [folded.index(name) for name in MNLI]}
    features = {name: datasets.Value("string") for name in columns} | {"label": datasets.ClassLabel(names=names)}
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def saved(folder: Path, part: datasets.Dataset, *splits: str) -> Path:
    datasets.DatasetDict(dict.fromkeys(splits or SPLITS, part)).save_to_disk(str(folder))
    return folder


def parquet(folder: Path, part: datasets.Dataset) -> Path:
    for split in SPLITS:
        part.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("names", [MNLI, REORDERED, ["Contradiction", "NEUTRAL", "Entailment"]])
@pytest.mark.parametrize("store", [saved, parquet])
def test_classes_are_those_of_their_names(store: Any, names: list[str], tmp_path: Path) -> None:
    found = from_folder(TASKS["mnli"], store(tmp_path / "data", nli(names)))
    for part in (found.train, *found.dev):
        assert part.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("form", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_name_their_classes(form: Any, tmp_path: Path) -> None:
    part = nli(REORDERED)
    schema = part.features.arrow_schema
    with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as file, form(file, schema) as writer:
        writer.write_table(pa.Table.from_pydict(part.to_dict(), schema))
    assert inside(tmp_path / "train.arrow") == {"label": REORDERED}


def test_classes_of_a_hub_data_set_are_those_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    label = datasets.ClassLabel(names=["not_entailment", "entailment"])
    features = datasets.Features(sentence1=datasets.Value("string"), sentence2=datasets.Value("string"), label=label)
    part = datasets.Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0]}, features)
    for split in ("train", "validation"):
        part.to_parquet(tmp_path / "rte" / f"{split}.parquet")
    assert from_hub(TASKS["rte"], str(tmp_path / "rte")).train.labels.tolist() == [0, 1]


@pytest.mark.parametrize("store", [saved, parquet])
def test_names_of_other_classes_are_refused_with_both_lists(store: Any, tmp_path: Path) -> None:
    columns = {"premise": list("abc"), "hypothesis": list("def")}
    values = {**columns, "label": [0, 1, 2]}
    features = {name: datasets.Value("string") for name in columns}
    features["label"] = datasets.ClassLabel(names=["joy", "anger", "fear"])
    other = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    with pytest.raises(ExamplesError, match=r"joy, anger, fear.*entailment, neutral, contradiction") as refused:
        from_folder(TASKS["mnli"], store(tmp_path / "data", other))
    assert "train" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("declared", ["README.md", "labels.json"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_names_beside_the_files_number_their_labels(declared: str, ending: str, tmp_path: Path) -> None:
    rows = [{"sentence": "good", "label": 0}, {"sentence": "bad", "label": 1}]
    for split in ("train", "valid"):
        path = tmp_path / f"{split}.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif ending == "csv":
            path.write_text("sentence,label\ngood,0\nbad,1\n")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if declared == "labels.json":
        (tmp_path / declared).write_text(json.dumps(["pos", "neg"]))
    else:
        names = "names:\n          '0': positive\n          '1': negative"
        column = f"  - name: label\n    dtype:\n      class_label:\n        {names}\n"
        (tmp_path / declared).write_text(f"---\ndataset_info:\n  features:\n{column}---\n\n# Reviews\n")
    found = from_folder(TASKS["sst2"], tmp_path)
    assert found.train.labels.tolist() == [1, 0]
    assert found.dev[0].labels.tolist() == [1, 0]


def test_a_card_that_names_nothing_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text("sentence,label\ngood,1\n")
    (tmp_path / "README.md").write_text("# Reviews\n")
    assert from_folder(TASKS["sst2"], tmp_path).train.labels.tolist() == [1]
    assert capfd.readouterr().err == ""
    (tmp_path / "README.md").write_text("---\ndataset_info: [\n---\n")
    with pytest.raises(ExamplesError, match=r"README\.md"):
        from_folder(TASKS["sst2"], tmp_path)


@pytest.mark.parametrize(
    ("task", "value", "wanted"),
    [
        ("sst2", "Positive", 1),
        ("imdb", "neg", 0),
        ("rte", "Not Entailment", 1),
        ("wnli", "not-entailment", 0),
        ("mnli", "CONTRADICTION", 2),
        ("qqp", True, 1),
        ("mrpc", False, 0),
        ("sst2", "1", 1),
    ],
)
def test_words_are_matched_by_name(task: str, value: Any, wanted: int, tmp_path: Path) -> None:
    columns = [names[0] for names in TASKS[task].columns]
    row = {**dict.fromkeys(columns, "text"), "label": value}
    for split in ("train", *(names[0] for names in TASKS[task].dev)):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    assert from_folder(TASKS[task], tmp_path).train.labels.tolist() == [wanted]


def test_names_in_a_column_beside_the_numbers_count(tmp_path: Path) -> None:
    rows = [{"text1": "a", "text2": "b", "label": place, "label_text": name} for place, name in enumerate(REORDERED)]
    for split in ("train", "dev_matched", "dev_mismatched"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert from_folder(TASKS["mnli"], tmp_path).train.labels.tolist() == [2, 0, 1]


def test_splits_without_names_have_the_numbers_of_those_with_names(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["positive", "negative"])
    features = datasets.Features(sentence=datasets.Value("string"), label=label)
    part = datasets.Dataset.from_dict({"sentence": ["good", "bad"], "label": [0, 1]}, features)
    part.to_parquet(tmp_path / "train.parquet")
    (tmp_path / "dev.jsonl").write_text('{"sentence": "good", "label": 0}\n{"sentence": "bad", "label": "negative"}\n')
    found = from_folder(TASKS["sst2"], tmp_path)
    assert found.train.labels.tolist() == found.dev[0].labels.tolist() == [1, 0]
    _, (dev,) = dev_from_folder(TASKS["sst2"], tmp_path)
    assert dev.labels.tolist() == [1, 0]


def test_two_columns_that_may_both_be_meant_are_refused(tmp_path: Path) -> None:
    row = {"sentence1": "a", "sentence2": "b", "score": 4.8, "label": 1}
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(ExamplesError, match="columns label and score differ"):
        from_folder(TASKS["stsb"], tmp_path)
    (tmp_path / "train.jsonl").write_text(json.dumps({**row, "label": 4.8}))
    (tmp_path / "dev.jsonl").write_text(json.dumps({**row, "label": 4.8}))
    assert from_folder(TASKS["stsb"], tmp_path).train.labels.tolist() == pytest.approx([4.8])


def test_true_is_no_label_where_its_meaning_is_open(tmp_path: Path) -> None:
    """Class 1 of RTE is *not* entailment, so ``true`` read as 1 is the opposite of what it says."""
    row = {"sentence1": "a", "sentence2": "b", "label": True}
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    with pytest.raises(ExamplesError, match=r"line 1: label is True"):
        from_folder(TASKS["rte"], tmp_path)


def test_numbers_as_names_are_the_numbers(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "score": ["5", "2"]})
    found = from_folder(TASKS["stsb"], saved(tmp_path / "data", part.class_encode_column("score"), "train", "dev"))
    assert found.train.labels.tolist() == [5.0, 2.0]


def test_names_beyond_ascii_case_and_spelling() -> None:
    assert class_named(TASKS["imdb"], "POS") == 1
    assert class_named(TASKS["mnli"], "joy") is None
    assert classes_named(TASKS["mnli"], REORDERED) == (2, 0, 1)
    assert classes_named(TASKS["mnli"], ["entailment", "Entailment", "neutral"]) is None
    assert classes_named(TASKS["mnli"], [*MNLI, "other"]) is None
    assert [unnamed(name) for name in ("LABEL_2", "7", "label 1", "two")] == [2, 7, 1, None]


@pytest.mark.parametrize(
    ("first", "second"), [("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2")]
)
def test_columns_are_matched_by_known_names(first: str, second: str, tmp_path: Path) -> None:
    part = nli(MNLI, **{second: list("def"), first: list("abc")})
    found = from_folder(TASKS["mnli"], saved(tmp_path / "data", part))
    assert found.train.texts == (tuple("abc"), tuple("def"))


def test_columns_of_other_names_are_refused_by_name(tmp_path: Path) -> None:
    part = nli(MNLI, left=list("abc"), right=list("def"))
    with pytest.raises(ExamplesError, match=r"no column premise or sentence1 .*left, right, label"):
        from_folder(TASKS["mnli"], saved(tmp_path / "data", part))


@pytest.mark.parametrize("split", ["dev", "validation", "valid", "val"])
def test_splits_are_matched_by_known_names(split: str, tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"sentence": ["good"], "label": [1]})
    assert len(from_folder(TASKS["sst2"], saved(tmp_path / "saved", part, "train", split)).dev[0]) == 1
    for name in ("train", split):
        part.to_parquet(tmp_path / "files" / f"{name}.parquet")
    assert len(from_folder(TASKS["sst2"], tmp_path / "files").dev[0]) == 1


def test_two_development_splits_are_refused(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"sentence": ["good"], "label": [1]})
    with pytest.raises(ExamplesError, match="dev and validation"):
        from_folder(TASKS["sst2"], saved(tmp_path / "data", part, "train", "dev", "validation"))


@pytest.mark.parametrize("name", ["README.md", "dataset_infos.json"])
def test_a_byte_order_mark_hides_no_names(name: str, tmp_path: Path) -> None:
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv").write_text("sentence,label\ngood,0\n")
    (tmp_path / "README.md").write_text("# Reviews\n")
    info = {"features": {"label": {"names": ["positive", "negative"], "_type": "ClassLabel"}}}
    card = "\n---\ndataset_info:\n  features:\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    declared = {
        "README.md": f"{card}          '0': positive\n          '1': negative\n---\n",
        "dataset_infos.json": json.dumps({"default": info}),
    }
    (tmp_path / name).write_text("\ufeff" + declared[name], encoding="utf-8")
    assert from_folder(TASKS["sst2"], tmp_path).train.labels.tolist() == [1]
