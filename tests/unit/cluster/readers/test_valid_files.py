"""Files that other programs write and that are valid are read, whatever their marks, types and names."""

import bz2
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from cluster.artifacts.errors import StageError
from cluster.corpus.stage import Corpus
from cluster.readers import splits, text_files
from cluster.readers.bad_documents import BadDocument, Document

TEXTS = ["One.", "Two\u2028of\x85a\x0ckind.", "Drei, größer."]


def _read(kind: str, path: Path | str, **values: Any) -> list[Document]:
    recipe = Corpus.of({"sources": [{"kind": kind, "path": str(path), **values}]})
    spans = [span for piece in splits.make_splits(recipe.sources) for span in piece.spans]
    batches = (batch for span in spans for batch in text_files.read(recipe.sources[0], span))
    return [document for _, documents in batches for document in documents]


def _json_lines(texts: list[str] | None = None, ascii_only: bool = False) -> bytes:
    lines = (json.dumps({"text": text}, ensure_ascii=ascii_only) for text in (TEXTS if texts is None else texts))
    return "".join(f"{line}\n" for line in lines).encode()


@pytest.mark.parametrize("ascii_only", [False, True])
def test_separators_inside_strings_end_no_line(tmp_path: Path, ascii_only: bool) -> None:
    (tmp_path / "a.jsonl").write_bytes(_json_lines(ascii_only=ascii_only))
    assert _read("jsonl", tmp_path) == TEXTS


def test_byte_order_marks_are_no_text_also_of_files_that_were_put_together(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + _json_lines() + mark + _json_lines())
    assert _read("jsonl", tmp_path) == TEXTS * 2
    (tmp_path / "a.txt").write_bytes(mark + b"One.\n\n" + mark + b"Two.\n")
    for documents, expected in (("line", ["One.", "Two."]), ("paragraph", ["One.", "Two."])):
        assert _read("text", tmp_path, documents=documents) == expected


_SKIPPABLE_FRAME = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "zstd": lambda data: pa.compress(data, "zstd", asbytes=True),
    "zstd behind a skippable frame": lambda data: _SKIPPABLE_FRAME + pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=[*PACKERS])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_the_first_bytes_tell_the_compression_and_not_the_name(
    tmp_path: Path, pack: Callable[[bytes], bytes], name: str
) -> None:
    (tmp_path / name).write_bytes(pack(_json_lines()))
    assert _read("jsonl", tmp_path / name) == TEXTS
    (tmp_path / name).write_bytes(_json_lines())
    assert _read("jsonl", tmp_path / name) == TEXTS


def test_zstandard_windows_of_gigabytes(tmp_path: Path) -> None:
    texts = [f"Line {number} of many." for number in range(100_000)]
    options = zstd.CompressionParameter.window_log, zstd.CompressionParameter.enable_long_distance_matching
    compressor = zstd.ZstdCompressor(options=dict(zip(options, (31, 1), strict=True)))
    packed = compressor.compress(_json_lines(texts)) + compressor.flush()
    with pytest.raises(OSError, match="too much memory"):
        pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read()
    usual = pa.compress(_json_lines(), "zstd", asbytes=True)
    for parts in (packed + packed, usual + packed + packed, _SKIPPABLE_FRAME + packed + packed):
        (tmp_path / "a.jsonl.zst").write_bytes(parts)
        assert _read("jsonl", tmp_path)[-200_000:] == texts * 2


def _parts(folder: Path) -> None:
    """Parts as pandas and Dask write them where some have no text."""
    frames = {
        "full": pd.DataFrame({"text": ["One.", "Two."]}),
        "no-rows": pd.DataFrame({"text": pd.Series([], dtype=object)}),
        "no-columns": pd.DataFrame(),
        "none": pd.DataFrame({"text": [None, None]}),
        "nan": pd.DataFrame({"text": [float("nan")]}),
    }
    for name, frame in frames.items():
        frame.to_parquet(folder / f"{name}.parquet")
    (folder / "zero-bytes.parquet").touch()


def test_parts_without_rows_or_text_are_missing_values(tmp_path: Path) -> None:
    _parts(tmp_path)
    found = _read("parquet", tmp_path)
    assert [document for document in found if isinstance(document, str)] == ["One.", "Two."]
    assert [document.reason for document in found if isinstance(document, BadDocument)] == ["missing"] * 3


KINDS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_type_that_holds_text_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    plain = pa.array(["One.", None, "größer"])
    values = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    table = pa.table({"text": values})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as file:
        file.write_table(table)
    for form in ("parquet", "arrow"):
        assert _read(form, tmp_path) == ["One.", BadDocument("missing", "row 2", ""), "größer"]


def test_runs_and_nulls_in_arrow_files_are_read(tmp_path: Path) -> None:
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["One.", "Two."]))
    for name, table in (("runs", pa.table({"text": runs})), ("none", pa.table({"text": pa.nulls(1)}))):
        with pa.ipc.new_stream(str(tmp_path / f"{name}.arrow"), table.schema) as stream:
            stream.write_table(table)
    assert _read("arrow", tmp_path) == [BadDocument("missing", "row 1", ""), "One.", "One.", "Two."]


def test_dictionaries_of_views_and_runs_of_dictionaries_are_read(tmp_path: Path) -> None:
    views = pa.array(["One.", "Two."]).cast(pa.string_view())
    runs = pa.RunEndEncodedArray.from_arrays(
        pa.array([2, 3], pa.int32()), pa.array(["One.", "Two."]).dictionary_encode()
    )
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1], pa.int8()), views)
    for values in (runs, dictionary):
        table = pa.table({"text": values})
        with pa.ipc.new_stream(str(tmp_path / "a.arrow"), table.schema) as stream:
            stream.write_table(table)
        assert _read("arrow", tmp_path) == ["One.", "One.", "Two."]


def test_endings_in_capitals_are_read_and_other_names_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "A.JSONL").write_bytes(_json_lines())
    (tmp_path / "b.jsonl.GZ").write_bytes(gzip.compress(_json_lines()))
    (tmp_path / "c.jsonl.xz").touch()
    with caplog.at_level(logging.INFO, "stillhouse"):
        assert _read("jsonl", tmp_path) == TEXTS * 2
    assert "c.jsonl.xz" in caplog.text


def test_a_column_whose_name_another_one_has_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["One."]), pa.array(["Two."])], ["text"] * 2), tmp_path / "a.parquet")
    with pytest.raises(StageError, match="two columns text"):
        _read("parquet", tmp_path)


NESTED = [{"value": "One."}, None, {"value": None}, {"value": "Two."}]


def _nested(folder: Path, **more: Any) -> None:
    table = pa.table({"text": NESTED, **{name.replace("_", "."): values for name, values in more.items()}})
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    with pa.ipc.new_file(str(folder / "a.arrow"), table.schema) as file:
        file.write_table(table)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), encoding="utf-8")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
def test_a_column_may_be_a_field_of_a_struct(tmp_path: Path, kind: str) -> None:
    _nested(tmp_path)
    found = _read(kind, tmp_path, column="text.value")
    assert [one if isinstance(one, str) else one.reason for one in found] == ["One.", "missing", "missing", "Two."]


@pytest.mark.parametrize(
    ("column", "advice"), [("text", r"text\.value"), ("list", "a row for each"), ("number", "another column")]
)
def test_other_types_are_refused_by_name(tmp_path: Path, column: str, advice: str) -> None:
    table = pa.table({"text": [{"value": "One."}], "list": [["One."]], "number": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(StageError, match=f"column {column} holds .*{advice}"):
        _read("parquet", tmp_path, column=column)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl"])
def test_a_name_that_holds_a_dot_comes_first(tmp_path: Path, kind: str) -> None:
    _nested(tmp_path, text_value=["a", "b", "c", "d"])
    assert _read(kind, tmp_path, column="text.value") == ["a", "b", "c", "d"]


def test_files_that_describe_a_folder_of_parquet_hold_no_documents(tmp_path: Path) -> None:
    table, found = pa.table({"text": ["One.", "Two."]}), []
    pq.write_table(table, tmp_path / "part-0.parquet", metadata_collector=found)
    found[0].set_file_path("part-0.parquet")
    pq.write_metadata(table.schema, tmp_path / "_metadata", found)
    pq.write_metadata(table.schema, tmp_path / "_common_metadata")
    (tmp_path / "_SUCCESS").touch()
    assert _read("parquet", tmp_path) == _read("parquet", f"{tmp_path}/*") == ["One.", "Two."]
