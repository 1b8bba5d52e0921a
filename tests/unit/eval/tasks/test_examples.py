"""Loading examples: every published layout, every refusal, tokens, batches, and the real files."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts.recipe import ROOT
from eval.tasks.definitions import TASKS
from eval.tasks.examples import from_folder, from_hub
from eval.tasks.file_readers import ExamplesError

DATA = ROOT.parent / "shared" / "data"

# For each task: the header of GLUE's TSV, a row, and its texts and label.
GLUE_TSV = {
    "cola": (None, "gj04\t1\t\tThe book fell.", ("The book fell.",), 1),
    "sst2": ("sentence\tlabel", "a fine film \t1", ("a fine film ",), 1),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tHe said "no\tShe left.',
        ('He said "no', "She left."),
        1,
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tmain\tMSRvid\t2012\t1\tnone\tnone\tA plane.\tA jet.\t3.800",
        ("A plane.", "A jet."),
        3.8,
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t2\t3\tWhy?\tHow?\t0", ("Why?", "How?"), 0),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
        "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tfiction\t( a )\t( b )\t(X a)\t(X b)\tIt rains.\tIt is dry.\tneutral\tcontradiction",
        ("It rains.", "It is dry."),
        2,
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tThe king.\tnot_entailment", ("Who?", "The king."), 1),
    "rte": (
        "index\tsentence1\tsentence2\tlabel",
        "0\tRain fell.\tIt was wet.\tentailment",
        ("Rain fell.", "It was wet."),
        0,
    ),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tHe ran.\tHe moved.\t1", ("He ran.", "He moved."), 1),
}


def write_tsv(folder: Path, stem: str, header: str | None, *rows: str) -> None:
    lines = [*([header] if header is not None else []), *rows]
    (folder / f"{stem}.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def sst2(folder: Path, *rows: str) -> Path:
    write_tsv(folder, "train", "sentence\tlabel", *(rows or ("good\t1", "bad\t0")))
    write_tsv(folder, "dev", "sentence\tlabel", "good\t1")
    return folder


@pytest.mark.parametrize("name", GLUE_TSV)
def test_reads_the_tsv_that_glue_publishes(name: str, tmp_path: Path) -> None:
    header, row, texts, label = GLUE_TSV[name]
    stems = ["train", "dev_matched", "dev_mismatched"] if name == "mnli" else ["train", "dev"]
    for stem in stems:
        write_tsv(tmp_path, stem, header, row, row)
    found = from_folder(TASKS[name], tmp_path)
    for part in (found.train, *found.dev):
        assert part.texts == tuple((text, text) for text in texts)
        assert part.labels == pytest.approx([label, label])
        assert part.labels.dtype == (np.float32 if name == "stsb" else np.int64)
    assert [part.files for part in found.dev] == [(f"{stem}.tsv",) for stem in stems[1:]]


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    rows = [{"sentence1": 'She said "so".', "sentence2": "It\u2028is; fine,\ttoo", "label": 1}] * 2
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation-00000-of-00001.parquet")
    from_json = from_folder(TASKS["wnli"], tmp_path)
    assert from_json.train.texts == from_json.dev[0].texts
    (tmp_path / "train.jsonl").unlink()
    quoted = '"She said ""so"".","It\u2028is; fine,\ttoo",entailment\r\n'
    (tmp_path / "train.csv").write_text("sentence1,sentence2,label\r\n" + quoted * 2, encoding="utf-8", newline="")
    from_csv = from_folder(TASKS["wnli"], tmp_path)
    assert from_csv.train.texts == from_json.train.texts
    assert from_csv.train.labels.tolist() == from_json.train.labels.tolist() == [1, 1]


def test_shards_are_joined_in_order_and_subsets_recorded(tmp_path: Path) -> None:
    write_tsv(tmp_path, "train_subset-00001-of-00002", "sentence\tlabel", "second\t0")
    write_tsv(tmp_path, "train_subset-00000-of-00002", "sentence\tlabel", "first\t1")
    write_tsv(tmp_path, "dev", "sentence\tlabel", "good\t1")
    found = from_folder(TASKS["sst2"], tmp_path)
    assert found.train.texts == (("first", "second"),)
    assert found.train.is_subset
    assert not found.dev[0].is_subset


def test_imdb_is_scored_on_its_test_set(tmp_path: Path) -> None:
    for split, word in (("train", "seen"), ("test", "unseen")):
        write_tsv(tmp_path, split, "text\tlabel", f"{word}\t1")
    assert from_folder(TASKS["imdb"], tmp_path).dev[0].texts == (("unseen",),)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("fine\t", "label is missing: write one of 0 (negative), 1 (positive)"),
        ("fine\t2", "label is 2, out of range: write one of 0 (negative)"),
        ("fine\tgood", "label is 'good', which is no label of sst2"),
        ("fine\t0.5", "label is '0.5', which is no label of sst2"),
        ("fine\t-1", "label is -1, a hidden test label: use the dev or validation split"),
        ("fine", "has 1 fields, not 2 (sentence, label): correct it or drop it"),
    ],
)
def test_the_error_names_a_bad_row(row: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ExamplesError) as error:
        from_folder(TASKS["sst2"], sst2(tmp_path, "good\t1", row))
    assert says in str(error.value)
    assert f"{tmp_path / 'train.tsv'}: line 3" in str(error.value)


@pytest.mark.parametrize(
    ("label", "says"), [(5.1, "5.1"), (None, "missing"), (-1, "hidden"), (float("nan"), "missing")]
)
def test_a_bad_score_is_named(label: float | None, says: str, tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": each} for each in (0.0, 5.0, label)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(ExamplesError, match=rf"train.parquet: row 3: label is .*{says}"):
        from_folder(TASKS["stsb"], tmp_path)


def test_the_error_names_an_empty_text(tmp_path: Path) -> None:
    rows = [{"sentence": "a", "label": 0}, {"sentence": None, "label": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(ExamplesError, match="row 2: sentence is None, not text"):
        from_folder(TASKS["sst2"], tmp_path)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_tsv(tmp_path, "train", "phrase\tlabel", "good\t1")
    with pytest.raises(ExamplesError, match="no column sentence among phrase, label"):
        from_folder(TASKS["sst2"], tmp_path)


def test_files_that_are_absent_double_or_damaged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match=r"no train file of sst2"):
        from_folder(TASKS["sst2"], tmp_path)
    sst2(tmp_path)
    write_tsv(tmp_path, "train_subset", "sentence\tlabel", "good\t1")
    with pytest.raises(ExamplesError, match=r"train file of sst2 \(train.tsv, train_subset.tsv\)"):
        from_folder(TASKS["sst2"], tmp_path)
    (tmp_path / "train_subset.tsv").unlink()
    (tmp_path / "train.tsv").rename(tmp_path / "train.parquet")
    with pytest.raises(ExamplesError, match=r"train\.parquet is text, no Parquet file"):
        from_folder(TASKS["sst2"], tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "train.jsonl")
    with pytest.raises(ExamplesError, match="line 1 is not JSON"):
        from_folder(TASKS["sst2"], tmp_path)
    write_tsv(tmp_path, "train", "sentence\tlabel")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(ExamplesError, match=r"train\.tsv has no examples"):
        from_folder(TASKS["sst2"], tmp_path)


def test_mnli_without_its_mismatched_set_is_refused(tmp_path: Path) -> None:
    header, row, _, _ = GLUE_TSV["mnli"]
    for stem in ("train", "dev_matched"):
        write_tsv(tmp_path, stem, header, row)
    with pytest.raises(ExamplesError, match="no dev_mismatched file of mnli"):
        from_folder(TASKS["mnli"], tmp_path)


def test_hub_data_goes_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "rte"
    folder.mkdir()
    for split, label in (("train", 0), ("validation", 1)):
        rows = [{"sentence1": "a", "sentence2": "b", "label": label}]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    found = from_hub(TASKS["rte"], str(folder))
    assert found.train.labels.tolist() == [0]
    assert found.dev[0].labels.tolist() == [1]
    (folder / "validation.parquet").unlink()
    with pytest.raises(ExamplesError, match=r"has splits train: expected dev .*or validation"):
        from_hub(TASKS["rte"], str(folder))


def test_a_data_set_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ExamplesError, match=r"nyu-mll/glue:rte cannot be fetched .* --data DIR") as error:
        from_hub(TASKS["rte"], "nyu-mll/glue:rte")
    assert "\n" not in str(error.value)
    with pytest.raises(ExamplesError, match=r"made here by stillhouse provenance"):
        from_hub(TASKS["provenance"], "nyu-mll/glue")


def test_samples_are_deterministic(tmp_path: Path) -> None:
    rows = [f"text {number}\t{number % 2}" for number in range(40)]
    train = from_folder(TASKS["sst2"], sst2(tmp_path, *rows)).train
    first, again = train.sample(10), train.sample(10)
    assert first.texts == again.texts
    assert len(first) == len(set(first.texts[0])) == 10
    assert all(int(text.split()[1]) % 2 == label for text, label in zip(first.texts[0], first.labels, strict=True))
    assert train.sample(40) is train


# Rows of train and each dev set according to the data's README, and whether a file is a subset.
REAL = {
    "cola": (8551, [1043], False),
    "sst2": (67349, [872], False),
    "mrpc": (3668, [408], False),
    "stsb": (5749, [1500], False),
    "rte": (2490, [277], False),
    "wnli": (635, [71], False),
    "qnli": (17869, [5463], True),
    "mnli": (23739, [9815, 1000], True),
    "qqp": (18833, [1000], True),
}


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
@pytest.mark.parametrize("name", REAL)
def test_every_real_glue_task_is_read_whole(name: str) -> None:
    found = from_folder(TASKS[name], DATA / "glue" / name)
    train, dev, subset = REAL[name]
    assert (len(found.train), [len(part) for part in found.dev]) == (train, dev)
    assert any(part.is_subset for part in (found.train, *found.dev)) is subset
    if name == "stsb":
        assert (found.train.labels.min(), found.train.labels.max()) == (0.0, 5.0)
    else:
        assert set(found.dev[0].labels.tolist()) == set(range(found.task.outputs))


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
def test_real_imdb_is_read_whole() -> None:
    found = from_folder(TASKS["imdb"], DATA / "imdb")
    assert (len(found.train), len(found.dev[0])) == (25000, 25000)
    assert int(found.dev[0].labels.sum()) == 12500
