"""The usual layouts of published data: all give the same examples."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from finetune_tasks import colours, write_squad

from eval.tasks.definitions import TASKS
from eval.tasks.examples import from_folder, from_hub
from eval.tasks.file_readers import ExamplesError
from eval.tasks.questions import questions_from_folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_glue_download_is_read_from_above_and_from_within(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        write(tmp_path / "SST-2" / f"{split}.tsv", "sentence\tlabel\nso good \t1\n")
        write(tmp_path / "RTE" / f"{split}.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
    assert from_folder(TASKS["sst2"], tmp_path).train.texts == (("so good ",),)
    assert from_folder(TASKS["rte"], tmp_path).dev[0].texts == (("a",), ("b",))
    assert from_folder(TASKS["rte"], tmp_path / "RTE").train.labels.tolist() == [0]
    with pytest.raises(ExamplesError, match=r"has no train file of mnli: .*found RTE, SST-2"):
        from_folder(TASKS["mnli"], tmp_path)


def test_lines_that_quora_cut_in_two_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    whole = "1\t2\t3\tWhy?\tHow?\t1"
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.tsv", "\n".join([header, whole, "4\t5\t6\tcut here", "and here\t0", whole]) + "\n")
    with caplog.at_level(logging.INFO, "stillhouse"):
        found = from_folder(TASKS["qqp"], tmp_path)
    assert found.train.labels.tolist() == [1, 1]
    assert "2 of 4 lines" in caplog.text


@pytest.mark.parametrize("above", [True, False])
def test_imdb_as_it_is_published(above: bool, tmp_path: Path) -> None:
    folder = tmp_path / "aclImdb"
    for split in ("train", "test"):
        for label, text in (("pos", "great"), ("neg", "awful")):
            write(folder / split / label / "0_9.txt", f"{split} {text}<br />\n")
            write(folder / split / label / "10_1.txt", f"{split} really {text}")
        write(folder / split / "unsup" / "0_0.txt", "nobody said")
        write(folder / split / "urls_pos.txt", "http://example.org")
    found = from_folder(TASKS["imdb"], tmp_path if above else folder)
    assert found.train.texts == (
        ("train awful<br />\n", "train really awful", "train great<br />\n", "train really great"),
    )
    assert found.train.labels.tolist() == [0, 0, 1, 1]
    assert found.dev[0].texts[0][0] == "test awful<br />\n"


def test_what_datasets_saved_to_disk(tmp_path: Path) -> None:
    rows = [{"sentence": "so good", "label": 1, "idx": 0}, {"sentence": "so bad", "label": 0, "idx": 1}]
    features = datasets.Features(
        sentence=datasets.Value("string"),
        label=datasets.ClassLabel(names=["negative", "positive"]),
        idx=datasets.Value("int32"),
    )
    part = datasets.Dataset.from_list(rows, features=features)
    # A selection is saved as its selected rows, in order.
    saved = datasets.DatasetDict(train=part.select([1, 0]), validation=part)
    saved.save_to_disk(str(tmp_path / "saved"))
    found = from_folder(TASKS["sst2"], tmp_path / "saved")
    assert found.train.texts == (("so bad", "so good"),)
    assert found.train.labels.tolist() == [0, 1]
    assert found.train.files == ("saved train",)
    datasets.DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "hidden"))
    with pytest.raises(ExamplesError, match=r"has splits train, test: expected dev .*or validation"):
        from_folder(TASKS["sst2"], tmp_path / "hidden")


def test_a_local_folder_is_not_blamed_on_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "my [data]"
    write(folder / "train.csv", "sentence,label\ngood,1\n")
    with pytest.raises(ExamplesError, match=r"local folder .*--data") as refused:
        from_hub(TASKS["sst2"], str(folder))
    assert "network" not in str(refused.value)
    write(folder / "dev.csv", "sentence,label\ngood,1\n")
    assert len(from_folder(TASKS["sst2"], folder).train) == 1, "the advice works"


def test_a_saved_data_set_of_another_version_is_not_called_damaged(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"sentence": ["good"], "label": [1]})
    datasets.DatasetDict(train=part, dev=part).save_to_disk(str(tmp_path / "saved"))
    info = tmp_path / "saved" / "train" / "dataset_info.json"
    info.write_text(info.read_text().replace('"Value"', '"Hologram"'))
    with pytest.raises(ExamplesError, match=f"datasets {datasets.__version__}"):
        from_folder(TASKS["sst2"], tmp_path / "saved")


def flat(question: dict[str, Any]) -> dict[str, Any]:
    texts, starts = (list(side) for side in zip(*question["answers"], strict=True)) if question["answers"] else ([], [])
    answers = {"text": texts, "answer_start": starts}
    return {**{key: question[key] for key in ("id", "question", "context")}, "answers": answers}


def test_squad_files_and_rows_of_the_hub_say_the_same(tmp_path: Path) -> None:
    asked = colours(8)
    for split in ("train", "dev"):
        write_squad(tmp_path / "files" / f"{split}-v1.1.json", asked)
    rows = datasets.Dataset.from_list([flat(question) for question in asked])
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("train", "validation"):
        rows.to_parquet(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet")
        rows.to_json(tmp_path / "lines" / f"{name}.json")
    first, *others = (
        questions_from_folder(TASKS["squad"], tmp_path / name) for name in ("files", "saved", "parquet", "lines")
    )
    assert first.train.files == ("train-v1.1.json",)
    assert first.train.items[0].answers[0] in first.train.items[0].context
    for found in others:
        assert (found.train.items, found.dev[0].items) == (first.train.items, first.dev[0].items)


def test_squad_takes_the_version_of_its_task_and_names_subsets(tmp_path: Path) -> None:
    write_squad(tmp_path / "train-v1.1-subset.json", colours(3))
    write_squad(tmp_path / "dev-v1.1.json", colours(4))
    write_squad(tmp_path / "train-v2.0.json", colours(5, silent=True))
    write_squad(tmp_path / "dev-v2.0_subset.json", colours(6, silent=True))
    first = questions_from_folder(TASKS["squad"], tmp_path)
    assert (len(first.train), first.train.is_subset, len(first.dev[0]), first.dev[0].is_subset) == (3, True, 4, False)
    second = questions_from_folder(TASKS["squad2"], tmp_path)
    assert (len(second.train), second.train.is_subset, len(second.dev[0]), second.dev[0].is_subset) == (
        5,
        False,
        6,
        True,
    )
    assert not all(question.answers for question in second.train.items)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answers": [("gold", 0)]}, r"question 2 \(q1\): the answer 'gold' is not at 0"),
        ({"answers": []}, r"question 2 \(q1\): has no answer, as only SQuAD 2.0 allows: set task = \"squad2\""),
        ({"id": "q0", "answers": [("warm", 0)]}, "has an id twice, q0"),
        ({"context": None}, r"question 2 \(q1\): context is None|None, not text"),
    ],
)
def test_a_bad_question_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    first, second = colours(2)
    write_squad(tmp_path / "train-v1.1.json", [first, {**second, "context": "warm bread", "answers": [], **change}])
    write_squad(tmp_path / "dev-v1.1.json", [first])
    with pytest.raises(ExamplesError, match=says):
        questions_from_folder(TASKS["squad"], tmp_path)


@pytest.mark.parametrize(
    ("texts", "starts"),
    [(["river", "mill"], [4]), (["river"], ["4"]), ([None], [4]), (["river"], None)],
    ids=["too few places", "a word for a place", "no text", "no places"],
)
def test_answers_without_their_places_are_named(texts: Any, starts: Any, tmp_path: Path) -> None:
    answers = {"text": texts, "answer_start": starts}
    row = {"id": "q7", "question": "what?", "context": "the river mill", "answers": answers}
    for split in ("train", "dev"):
        write(tmp_path / f"{split}.jsonl", json.dumps(row))
    with pytest.raises(ExamplesError, match=r"line 1 \(q7\): the answers"):
        questions_from_folder(TASKS["squad"], tmp_path)


def test_an_incomplete_data_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.tsv", "sentence\tlabel\ngood\t1\n")
    write(tmp_path / "dev.tsv", "sentence\tlabel\ngood\t1\n")
    with pytest.raises(ExamplesError, match="is one of 2 files, of which 1 are here"):
        from_folder(TASKS["sst2"], tmp_path)
    write(tmp_path / "train-00001-of-00002.tsv", "sentence\tlabel\nbad\t0\n")
    assert from_folder(TASKS["sst2"], tmp_path).train.labels.tolist() == [1, 0]


def test_texts_with_only_one_label_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split / "pos" / "0_9.txt", "great")
    with pytest.raises(ExamplesError, match=r"train/neg has no texts \(\*\.txt\)"):
        from_folder(TASKS["imdb"], tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "tsv", "csv"])
def test_an_empty_file_is_called_empty(ending: str, tmp_path: Path) -> None:
    write(tmp_path / f"train.{ending}", "")
    for task, read in (("sst2", from_folder), ("squad", questions_from_folder)):
        with pytest.raises(ExamplesError, match=rf"train\.{ending} is empty: give a file with rows"):
            read(TASKS[task], tmp_path)


def test_a_csv_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"sentence,label\ncaf\xe9,1\n")
    with pytest.raises(ExamplesError, match=r"train\.csv: line 2 is not UTF-8: .*iconv"):
        from_folder(TASKS["sst2"], tmp_path)


def test_a_file_that_is_not_squad_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train-v1.1.json", json.dumps({"data": [{"title": "Mill"}]}))
    with pytest.raises(ExamplesError, match=r"train-v1.1.json is not a SQuAD file"):
        questions_from_folder(TASKS["squad"], tmp_path)


def test_hidden_files_of_other_systems_are_no_data(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write(tmp_path / "RTE" / f"{split}.tsv", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
        (tmp_path / "RTE" / f"._{split}.tsv").write_bytes(b"\x00\x05\x16\x07\xb0")
    (tmp_path / "._RTE.tsv").write_bytes(b"\x00\x05\x16\x07\xb0")
    assert from_folder(TASKS["rte"], tmp_path).train.texts == (("a",), ("b",))
    for name in ("train/pos/0_9.txt", "train/neg/0_1.txt", "test/pos/0_8.txt", "test/neg/0_2.txt"):
        write(tmp_path / "aclImdb" / name, "A film.")
        (tmp_path / "aclImdb" / name).with_name("._0_0.txt").write_bytes(b"\x00\x05\x16\x07\xb0")
    assert from_folder(TASKS["imdb"], tmp_path / "aclImdb").train.texts == (("A film.",) * 2,)


def test_line_files_may_be_compressed_and_have_endings_in_capitals(tmp_path: Path) -> None:
    line = json.dumps({"sentence": "good", "label": 1}) + "\n"
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    write(tmp_path / "dev.JSONL", line)
    found = from_folder(TASKS["sst2"], tmp_path)
    assert (found.train.texts, found.dev[0].texts) == ((("good",),), (("good",),))
    write(tmp_path / "train.jsonl", line)
    with pytest.raises(ExamplesError, match="more than one train file"):
        from_folder(TASKS["sst2"], tmp_path)
