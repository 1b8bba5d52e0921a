"""Counts add up for every file: documents read are those kept and those dropped; nothing does not pass as success."""

import gzip
import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from cluster.artifacts import artifact, stage
from cluster.artifacts.errors import StageError
from cluster.corpus.stage import STAGE, Corpus
from cluster.readers import splits

GOOD = [f"{number} {line}" for number, line in enumerate(tiny.ENGLISH)]
TEXTS: list[str | None] = [*GOOD[:20], "", "Hi.", None, GOOD[3], *GOOD[20:]]


def _make(out: Path, *sources: dict[str, Any], **settings: Any) -> artifact.Artifact:
    made = stage.execute(STAGE, Corpus.of({"sources": [*sources], **settings}), {}, out)
    assert made is not None
    return made


def _json_lines(path: Path, texts: list[Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path)}


def _jsonl(folder: Path) -> dict[str, Any]:
    _json_lines(folder / "a.jsonl", TEXTS)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "One more line."}\nno json\n[1]\n{"a": 1}\n'))
    return {"kind": "jsonl", "path": str(folder)}


def _parquet(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.string())}), folder / "a.parquet", row_group_size=7)
    pq.write_table(pa.table({"text": pa.nulls(2)}), folder / "b.parquet")
    return {"kind": "parquet", "path": str(folder)}


def _arrow(folder: Path) -> dict[str, Any]:
    with pa.ipc.new_stream(str(folder / "a.arrow"), pa.schema([("text", pa.string())])) as stream:
        stream.write_table(pa.table({"text": pa.array(TEXTS, pa.string())}))
    return {"kind": "arrow", "path": str(folder)}


def _files(folder: Path) -> dict[str, Any]:
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03}.txt").write_text(text or " ", encoding="utf-8")
    return {"kind": "text", "path": str(folder)}


def _lines(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_bytes("\n".join(text or "\x07" for text in TEXTS).encode() + b"\n\xff\n")
    return {"kind": "text", "path": str(folder), "documents": "line"}


def _paragraphs(folder: Path) -> dict[str, Any]:
    (folder / "a.txt").write_text("\n\n".join(text or "\x07" for text in TEXTS), encoding="utf-8")
    return {"kind": "text", "path": str(folder), "documents": "paragraph"}


def _wiki(folder: Path) -> dict[str, Any]:
    pages = [f'<doc id="{number}" title="T">\nT\n\n{text or ""}\n</doc>\n' for number, text in enumerate(TEXTS)]
    (folder / "wiki_00").write_text("".join(pages) + "outside\n", encoding="utf-8")
    (folder / "wiki_01").write_text('{"title": "T", "text": "T\\n\\nA page of JSON."}\n', encoding="utf-8")
    return {"kind": "wikiextractor", "path": str(folder)}


def _docs(folder: Path) -> dict[str, Any]:
    return {"kind": "installed-docs", "packages": ["packaging", "filelock"]}


READERS: list[Callable[[Path], dict[str, Any]]] = [
    _jsonl, _parquet, _arrow, _files, _lines, _paragraphs, _wiki, _docs,
]  # fmt: skip


@pytest.mark.parametrize("write", READERS)
def test_documents_read_are_those_kept_and_those_dropped(
    tmp_path: Path, write: Callable[[Path], dict[str, Any]]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "dev.txt").write_text(GOOD[9], encoding="utf-8")
    rules = {
        "cleaning": {"min_characters": 5},
        "near_duplicates": {},
        "decontamination": {"tasks": [f"{tmp_path}/task"]},
    }
    made = _make(tmp_path / "out", write(tmp_path / "in"), **rules, max_bad_share=1.0)
    files = made.facts["files"]
    for file in files:
        assert file["read"] == file["kept"] + sum(file.get("dropped", {}).values()), file["name"]
    assert sum(file["read"] for file in files) == made.facts["read"]
    assert sum(file["kept"] for file in files) == made.facts["documents"] > 0
    dropped: Counter[str] = Counter()
    for file in files:
        dropped.update(file.get("dropped", {}))
    assert dict(dropped) == made.facts["dropped"]
    if write not in (_docs, _files):
        assert made.facts["read"] >= len(TEXTS)
        assert dropped["repeated"] == dropped["short"] == dropped["overlap with task"] == 1


def test_counts_of_a_file_in_many_splits_and_behind_a_limit_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "SPLIT_BYTES", 10**9)
    for name in "abc":
        _json_lines(tmp_path / "in" / f"{name}.jsonl", [f"{name} {text}" for text in GOOD])
    size = (tmp_path / "in" / "a.jsonl").stat().st_size
    monkeypatch.setattr(splits, "_ranges", lambda source, info: ((start, min(start + 999, info.bytes), 999)
                        for start in range(0, info.bytes, 999)))  # fmt: skip
    limit = len(GOOD) + 3
    made = _make(tmp_path / "out", {"kind": "jsonl", "path": str(tmp_path / "in"), "limit": limit})
    assert size > 3 * 999
    assert [(file["name"], file["read"], file["kept"]) for file in made.facts["files"]] == [
        ("a.jsonl", len(GOOD), len(GOOD)),
        ("b.jsonl", 3, 3),
        ("c.jsonl", 0, 0),
    ]


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "no document" in record.getMessage()]


def test_a_file_that_gives_nothing_is_named_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in"
    _json_lines(folder / "a.jsonl", GOOD)
    (folder / "b.jsonl").write_text("no json at all\n", encoding="utf-8")
    (folder / "c.jsonl").touch()
    _json_lines(folder / "d.jsonl", GOOD[:3])
    with caplog.at_level(logging.INFO, "stillhouse"):
        made = _make(tmp_path / "out", {"kind": "jsonl", "path": str(folder)})
    first, second, third = _said(caplog)
    assert "b.jsonl: 1 read" in first
    assert "not JSON" in first
    assert "no document from " in second
    assert "c.jsonl: it is empty" in second
    assert "repair or delete these lines" in first
    assert "3 repeated" in third
    assert [file["kept"] for file in made.facts["files"]] == [len(GOOD), 0, 0, 0]


def test_a_file_behind_the_limit_of_its_source_is_not_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        _json_lines(tmp_path / "in" / f"{name}.jsonl", [f"{name} {text}" for text in GOOD])
    with caplog.at_level(logging.INFO, "stillhouse"):
        _make(tmp_path / "out", {"kind": "jsonl", "path": str(tmp_path / "in"), "limit": 5})
    assert _said(caplog) == []


def test_many_files_without_documents_take_a_few_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _json_lines(tmp_path / "in" / "a.jsonl", GOOD)
    for number in range(20):
        (tmp_path / "in" / f"b{number:02}.jsonl").touch()
    with caplog.at_level(logging.INFO, "stillhouse"):
        _make(tmp_path / "out", {"kind": "jsonl", "path": str(tmp_path / "in")})
    assert len(_said(caplog)) == 6
    assert "15 more files" in _said(caplog)[-1]


@pytest.mark.parametrize("texts", [[], [None], ["", " "], [{"no": "text"}], ["Too short."]])
def test_a_source_that_gives_nothing_is_refused_beside_a_good_one(tmp_path: Path, texts: list[Any]) -> None:
    good, empty = _json_lines(tmp_path / "a.jsonl", GOOD), _json_lines(tmp_path / "b.jsonl", texts)
    with pytest.raises(StageError, match=r"source 2 .*b\.jsonl\) has no document"):
        _make(tmp_path / "out", good, empty, cleaning={"min_characters": 20})
    assert not (tmp_path / "out").exists()


def test_wiki_pages_in_an_unknown_form_are_no_success(tmp_path: Path) -> None:
    good = _json_lines(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "wiki_00").write_text("[[Page]]\nIts text.\n", encoding="utf-8")
    with pytest.raises(StageError, match=r"outside of <doc>.*WikiExtractor"):
        _make(tmp_path / "out", {"kind": "wikiextractor", "path": str(tmp_path / "wiki")}, good)


def test_a_source_whose_documents_another_one_has_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = _json_lines(tmp_path / "a.jsonl", GOOD), _json_lines(tmp_path / "b.jsonl", GOOD[:4])
    with caplog.at_level(logging.INFO, "stillhouse"):
        made = _make(tmp_path / "out", first, second)
    assert made.facts["documents"] == len(GOOD)
    assert any("source 2" in line and "4 repeated" in line for line in _said(caplog))


def test_a_limit_below_the_first_document_is_refused(tmp_path: Path) -> None:
    source = {**_json_lines(tmp_path / "a.jsonl", GOOD), "max_bytes": 3}
    with pytest.raises(StageError, match="max_bytes = 3"):
        _make(tmp_path / "out", source)
