"""Files of examples: the readers of corpora and tasks are the same, and valid files of other programs are read."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.tasks.definitions import TASKS
from eval.tasks.file_readers import ExamplesError, SourceTable, read

SENTENCES = ["One\u2028of two.", "A\x85next line.", 'He said "no', "größer"]
SST2 = TASKS["sst2"]


def _read(path: Path) -> SourceTable:
    return read(path, SST2)


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_json_lines_with_separators_and_a_mark(tmp_path: Path, name: str) -> None:
    lines = [json.dumps({"sentence": text, "label": 1}, ensure_ascii=False) for text in SENTENCES]
    (tmp_path / name).write_text("\ufeff" + "\n\n".join(lines), encoding="utf-8")
    assert _read(tmp_path / name).columns["sentence"] == SENTENCES
    (tmp_path / name).write_text("\n\n".join([*lines, "[1]"]), encoding="utf-8")
    with pytest.raises(ExamplesError, match="line 9 is not a JSON object"):
        _read(tmp_path / name)


def test_one_array_of_objects_is_read(tmp_path: Path) -> None:
    rows = [{"sentence": text, "label": 1} for text in SENTENCES]
    (tmp_path / "train.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert _read(tmp_path / "train.json").columns["sentence"] == SENTENCES


def test_squad_is_read_in_any_order_of_members(tmp_path: Path) -> None:
    """Also where the first line does not begin with data or version."""
    question = {"id": "q", "question": "Who?", "answers": [{"text": "king", "answer_start": 4}]}
    squad = {"title": "x", "data": [{"paragraphs": [{"context": "The king.", "qas": [question]}]}]}
    (tmp_path / "dev.json").write_text("\ufeff" + json.dumps(squad), encoding="utf-8")
    assert _read(tmp_path / "dev.json").columns["question"] == ["Who?"]


def test_lines_of_tsv_end_at_line_feeds_alone_and_quotation_marks_have_no_meaning(tmp_path: Path) -> None:
    rows = "".join(f"{text}\t1\r\n" for text in SENTENCES)
    (tmp_path / "train.tsv").write_bytes(f"\ufeffsentence\tlabel\r\n{rows}".encode())
    assert _read(tmp_path / "train.tsv").columns["sentence"] == SENTENCES


def test_long_fields_of_csv_are_read(tmp_path: Path) -> None:
    long = "word " * 40_000
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["sentence", "label"], *([text, "1"] for text in [*SENTENCES, long])])
    assert _read(tmp_path / "train.csv").columns["sentence"] == [*SENTENCES, long]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary(), pa.large_string()], ids=str)
def test_types_that_hold_text_are_read_from_parquet_and_arrow(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"sentence": pa.array(SENTENCES).cast(kind), "label": [1, 0, 1, 0], "none": pa.nulls(4)})
    pq.write_table(table, tmp_path / "train.parquet")
    with pa.ipc.new_stream(str(tmp_path / "train.arrow"), table.schema) as stream:
        stream.write_table(table)
    for form in ("parquet", "arrow"):
        found = _read(tmp_path / f"train.{form}").columns
        assert dict(found) == {"sentence": SENTENCES, "label": [1, 0, 1, 0], "none": [None] * 4}


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    (folder := tmp_path / "label=7").mkdir()
    pq.write_table(pa.table({"sentence": SENTENCES}), folder / "train.parquet")
    assert list(_read(folder / "train.parquet").columns) == ["sentence"]


def test_errors_name_row_and_cause(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n")
    with pytest.raises(ExamplesError, match=r"line 3 is not UTF-8.*iconv"):
        _read(tmp_path / "train.tsv")
    (tmp_path / "train.jsonl").write_text('{"sentence": "fine"}\n{"sentence": fine}\n{"a": 1}\n', encoding="utf-8")
    with pytest.raises(ExamplesError, match=r"line 2 is not JSON.*correct it"):
        _read(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_text('{"sentence": "fine"}\n{"sentence": "cu', encoding="utf-8")
    with pytest.raises(ExamplesError, match=r"line 2 is not JSON.*fetch it again"):
        _read(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_bytes(gzip.compress(b'{"sentence": "fine"}\n'))
    assert _read(tmp_path / "train.jsonl").columns == {"sentence": ["fine"]}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_other_systems_and_of_files_put_together(tmp_path: Path, end: str) -> None:
    (tmp_path / "train.tsv").write_bytes(f"sentence\tlabel{end}\ufeffOne.\t1{end}Two.\t0{end}".encode())
    assert _read(tmp_path / "train.tsv").columns == {"sentence": ["One.", "Two."], "label": ["1", "0"]}
    lines = [json.dumps({"sentence": text}) for text in SENTENCES]
    (tmp_path / "train.jsonl").write_bytes(f"\ufeff{lines[0]}{end}\ufeff{end.join(lines[1:])}{end}".encode())
    assert _read(tmp_path / "train.jsonl").columns["sentence"] == SENTENCES


def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path) -> None:
    for name, mark in (("train.tsv", "\t"), ("train.csv", ",")):
        (tmp_path / name).write_bytes(f"sentence{mark}label\r\na{mark}1\r\n\r\n".encode())
        assert _read(tmp_path / name).columns == {"sentence": ["a"], "label": ["1"]}


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tsentence\tlabel\na\tb\t1\n", encoding="utf-8")
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["sentence"] * 2), tmp_path / "dev.parquet")
    for name in ("train.tsv", "dev.parquet"):
        with pytest.raises(ExamplesError, match="two columns sentence"):
            _read(tmp_path / name)
