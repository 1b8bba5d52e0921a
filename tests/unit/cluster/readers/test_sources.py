"""Sources: every file format gives the same documents for any splits and compression, and errors name the place."""

import bz2
import gzip
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from cluster.artifacts.errors import StageError
from cluster.corpus.stage import Corpus
from cluster.readers import columnar_files, source_recipes, splits, text_files, text_lines, wiki_pages
from cluster.readers.bad_documents import BadDocument, Document
from cluster.storage import patterns

TEXTS = ["One.", "Two is ä longer öne.", "", "Three, 三つ, in a few words.", "Four\nhas two lines.", "Five."]
SINGLE = [text for text in TEXTS if text and "\n" not in text]


def _read(source: dict[str, Any]) -> list[Document]:
    recipe = Corpus.of({"sources": [source]})
    spans = [span for piece in splits.make_splits(recipe.sources) for span in piece.spans]
    batches = (batch for span in spans for batch in text_files.read(recipe.sources[0], span))
    return [document for _, documents in batches for document in documents]


def _json(path: Path, name: str = "a.jsonl") -> dict[str, Any]:
    records = "\n\n".join(json.dumps({"id": 1, "text": text}, ensure_ascii=False) for text in TEXTS)
    (path / name).write_text("\ufeff" + records, encoding="utf-8")
    return {"kind": "jsonl", "path": str(path / name)}


def _line(path: Path) -> dict[str, Any]:
    (path / "a.txt").write_bytes("\r\n \r\n".join(SINGLE).encode())
    return {"kind": "text", "path": str(path / "a.txt"), "documents": "line"}


def _paragraph(path: Path) -> dict[str, Any]:
    (path / "a.txt").write_text("\n\n" + "\n \n\n".join(text for text in TEXTS if text) + "\n", encoding="utf-8")
    return {"kind": "text", "path": str(path / "a.txt"), "documents": "paragraph"}


def _wiki(path: Path, as_json: bool = False) -> dict[str, Any]:
    """Output of WikiExtractor 3.0.6: escaped, and with pages without text."""
    folder = path / "AA"
    folder.mkdir()
    pages = []
    for number, text in enumerate(TEXTS):
        title, escaped = f'Title "{number}"', html.escape(f"{text} & <b>" if text else "", quote=False)
        about = f'<doc id="{number}" url="https://example.org/?id={number}" title="{title}">'
        page = f"{about}\n{title}\n\n{escaped}\n\n</doc>\n"
        pages.append(json.dumps({"id": str(number), "title": title, "text": escaped}) + "\n" if as_json else page)
    (folder / "wiki_00").write_text("".join(pages[:2]), encoding="utf-8")
    (folder / "wiki_01.bz2").write_bytes(bz2.compress("".join(pages[2:]).encode()))
    (folder / "notes").write_text("are not read", encoding="utf-8")
    return {"kind": "wikiextractor", "path": str(path)}


def _wiki_json(path: Path) -> dict[str, Any]:
    return _wiki(path, as_json=True)


def _parquet(path: Path) -> dict[str, Any]:
    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS, "more": [{"text": "no"}] * len(TEXTS)})
    pq.write_table(table, path / "a.parquet", row_group_size=2)
    return {"kind": "parquet", "path": str(path / "a.parquet")}


def _arrow(path: Path) -> dict[str, Any]:
    table = pa.table({"text": pa.array(TEXTS, pa.string_view())})
    with pa.ipc.new_file(str(path / "a.arrow"), table.schema) as file:
        file.write_table(table[:4], max_chunksize=3)
    with pa.ipc.new_stream(str(path / "b.arrow"), table.schema) as stream:
        stream.write_table(table[4:])
    return {"kind": "arrow", "path": str(path)}


WHOLE: dict[Callable[[Path], dict[str, Any]], list[str]] = {
    _json: TEXTS,
    _line: [f"{text}\r" for text in SINGLE[:-1]] + SINGLE[-1:],
    _paragraph: [text for text in TEXTS if text],
    _wiki: [f"{text} & <b>" for text in TEXTS if text],
    _wiki_json: [f"{text} & <b>" for text in TEXTS if text],
    _parquet: TEXTS,
    _arrow: TEXTS,
}


@pytest.mark.parametrize(("write", "expected"), WHOLE.items())
def test_documents_are_the_same_wherever_the_files_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], dict[str, Any]], expected: list[str]
) -> None:
    source = write(tmp_path)
    sizes = (1, 2, 3, 7, 20, 64, 100, 300, 2**26)
    for size in sizes:
        monkeypatch.setattr(splits, "SPLIT_BYTES", max(size, splits.COMPRESSION))
        monkeypatch.setattr(text_lines, "BLOCK", max(1, size // 2))
        monkeypatch.setattr(columnar_files, "BATCH_BYTES", size)
        read = [text for text in _read(source) if getattr(text, "reason", "") != wiki_pages.NO_TEXT]
        found = [text.strip() if write is _wiki and isinstance(text, str) else text for text in read]
        assert found == expected, size


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lambda data: pa.compress(data, "zstd", asbytes=True)])
def test_compressed_files_are_read_in_a_row_of_parts_too(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    plain = Path(_json(tmp_path)["path"]).read_bytes()
    ending = {b"\x1f\x8b": ".gz", b"BZ": ".bz2", b"\x28\xb5": ".zst"}[pack(plain)[:2]]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a.jsonl{ending}").write_bytes(pack(plain[:50]) + pack(plain[50:]))
    assert _read({"kind": "jsonl", "path": str(tmp_path / "in")}) == TEXTS
    (tmp_path / "in" / f"b.txt{ending}").write_bytes(pack("Ä whole file.".encode()))
    assert _read({"kind": "text", "path": str(tmp_path / "in")}) == ["Ä whole file."]


def test_sources_are_read_from_urls(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for write in (_json, _parquet, _arrow):
        (folder := tmp_path / write.__name__).mkdir()
        source = write(folder)
        store.put(str(folder), f"/bucket/{write.__name__}", recursive=True)
        assert _read({**source, "path": f"memory://bucket/{write.__name__}"}) == TEXTS
        assert _read({**source, "path": f"file://{folder}"}) == TEXTS
    with pytest.raises(StageError, match="no such file, and as a glob no match"):
        _read({"kind": "jsonl", "path": "memory://bucket/none/*.jsonl"})


def test_splits_are_cut_by_size_and_small_files_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SPLIT_BYTES", 100)
    for name, size in (("a", 30), ("b", 60), ("c", 20), ("d", 250)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"x" * size)
    (tmp_path / "e.jsonl.gz").write_bytes(b"x" * 90)
    found = splits.make_splits(Corpus.of({"sources": [{"kind": "jsonl", "path": str(tmp_path)}]}).sources)
    assert [[(span.name[0], span.start, span.end) for span in piece.spans] for piece in found] == [
        [("a", 0, 30), ("b", 0, 60)],
        [("c", 0, 20)],
        [("d", 0, 100)],
        [("d", 100, 200)],
        [("d", 200, 250)],
        [("e", 0, 90)],
    ]


def test_errors_name_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [b'{"text": "\xff\xfe"}', b'{"text": ', b"[1]", b'{"body": "x"}', b'{"text": null}', b'{"text": ["x"]}']
    bad += [b"[" * 7_000, b"9" * 5_000, b'{"text": "' + b"x" * 9_000 + b'"}']
    fine = b'{"text": "Fine."}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line for pair in zip([fine] * 9, bad, strict=True) for line in pair))
    monkeypatch.setattr(text_lines, "MAX_BYTES", 2**13)
    monkeypatch.setattr(text_lines, "BLOCK", 2**9)
    source = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}
    found = _read(source)
    faults = [document for document in found if isinstance(document, BadDocument)]
    assert found.count("Fine.") == 9
    assert [fault.where for fault in faults] == [f"line {2 * number}" for number in range(1, 10)]
    reasons = ["not UTF-8", "not JSON", "no object", "no column", "missing", "no string"]
    reasons += ["not JSON", "not JSON", "oversize"]
    assert [fault.reason for fault in faults] == reasons
    assert faults[0].text == '{"text": "\\xff\\xfe"}'
    monkeypatch.setattr(splits, "SPLIT_BYTES", 40)
    in_ranges = [document for document in _read(source) if isinstance(document, BadDocument)]
    assert [fault.reason for fault in in_ranges] == reasons
    assert [fault.where for fault in in_ranges[:3]] == ["line 2", "the line at byte 51", "the line at byte 79"]


def test_strings_in_parquet_that_are_no_utf8_are_faults(tmp_path: Path) -> None:
    ends = pa.py_buffer(np.array([0, 2, 5, 5], np.int32).tobytes())
    column = pa.Array.from_buffers(pa.string(), 3, [None, ends, pa.py_buffer(b"ok\xff\xfeb")])
    for name, values in (("a", column), ("b", column.dictionary_encode()), ("c", pa.array(["ok", None, ""]))):
        pq.write_table(pa.table({"text": values}), tmp_path / f"{name}.parquet")
    wrong = BadDocument("not UTF-8", "row 2", "\\xff\\xfeb")
    missing = BadDocument("missing", "row 2", "")
    found = _read({"kind": "parquet", "path": str(tmp_path)})
    assert found == ["ok", wrong, "", "ok", wrong, "", "ok", missing, ""]


def test_a_page_that_is_cut_is_a_fault_and_so_is_one_with_other_bytes(tmp_path: Path) -> None:
    page = '<doc id="1" url="u" title="T">\nT\n\nText.\n\n</doc>\n'
    (tmp_path / "wiki_00").write_bytes(
        page.encode() + page.replace("Text", "Tëxt").encode("latin-1") + page[:40].encode()
    )
    first, second, third = _read({"kind": "wikiextractor", "path": str(tmp_path / "wiki_00")})
    assert isinstance(first, str)
    assert first.strip() == "Text."
    assert second == BadDocument("not UTF-8", "line 10", "T\\xebxt.")
    assert third == BadDocument("unfinished", "a page without </doc>", page.splitlines()[0])


def test_paragraphs_and_pages_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_BYTES", 200)
    monkeypatch.setattr(text_lines, "BLOCK", 64)
    (tmp_path / "a.txt").write_text("Short.\n\n" + "\n".join(tiny.ENGLISH) + "\n\nEnd.", encoding="utf-8")
    source = {"kind": "text", "path": str(tmp_path / "a.txt")}
    first, second, third = _read({**source, "documents": "paragraph"})
    assert (first, third) == ("Short.", "End.")
    assert isinstance(second, BadDocument)
    assert second.reason == "oversize"
    (whole,) = _read(source)
    assert whole == BadDocument("oversize", "the file", "Short.\n\nThe mill by the river has ground")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("texts/a.jsonl.gz", "a"),
        ("texts/*.jsonl", "texts"),
        ("texts/**/x-*.jsonl", "texts"),
        ("memory://bucket/wiki/part-*.parquet", "wiki"),
        ("/data/books.v2/", "books"),
    ],
)
def test_a_label_is_the_name_of_the_file_or_folder(path: str, label: str) -> None:
    source = Corpus.of({"sources": [{"kind": "jsonl", "path": path}]}).sources[0]
    found = patterns.pattern(path).folder
    assert source_recipes.label(source, found.as_posix()) == label  # type: ignore[arg-type]
