"""The corpus: every kind of source, cleaning and deduplication with counts, deterministic shards, clear errors."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import unicodedata
from pathlib import Path
from typing import Any

import paths
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_server
import tiny
from prometheus_client import REGISTRY
from ray_clusters import actors
from waiting import wait_until

from cluster.actors.ray_cluster import connect
from cluster.artifacts import artifact, cli, errors, stage
from cluster.corpus import clean_text, filters, shard_writer
from cluster.corpus import stage as corpus_stage
from cluster.corpus.stage import STAGE, Corpus
from cluster.readers import docstrings, splits
from cluster.storage import filesystem

REAL_DATA = paths.DATA


def _make(out: Path, *sources: dict[str, Any], **settings: Any) -> artifact.Artifact:
    recipe = Corpus.of({"sources": [*sources], **settings})
    made = stage.execute(STAGE, recipe, {}, out)
    assert made is not None
    return made


def _documents(made: artifact.Artifact) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for path in sorted(made.path.glob(shard_writer.SHARDS)):
        table = pq.read_table(path)
        found.extend(zip(table["source"].to_pylist(), table["text"].to_pylist(), strict=True))
    return found


def _texts(made: artifact.Artifact) -> list[str]:
    return [text for _, text in _documents(made)]


def _json_lines(path: Path, texts: list[Any]) -> dict[str, Any]:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return {"kind": "jsonl", "path": str(path)}


def _parquet(path: Path, texts: list[Any], column: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array(texts, pa.string()), "id": range(len(texts))}), path)
    return path


def test_documents_are_cleaned_and_everything_dropped_is_counted_by_reason(tmp_path: Path) -> None:
    composed, decomposed = "Crème brûlée.", unicodedata.normalize("NFD", "Crème brûlée.")
    assert composed != decomposed
    # \x00 between letter and accent: composing before removing it would leave the pair apart.
    hidden = decomposed.replace("e\u0300", "e\x00\u0300")
    repeated = [composed, decomposed, hidden, "One\ttwo\r\nthree\x00\x1b\x9f\ufeff.", "  One two\nthree. "]
    texts = [*repeated, None, "", " \n\t\x07", "Hi.", "Half a pair \ud800 is not text."]
    made = _make(tmp_path / "out", _json_lines(tmp_path / "in.jsonl", texts), cleaning={"min_characters": 5})
    assert _texts(made) == ["Crème brûlée.", "One two\nthree.", "Half a pair  is not text."]
    assert made.facts["dropped"] == {"repeated": 3, "missing": 1, "empty": 2, "short": 1}
    assert made.facts["duplicates"] == {"exact": 3, "near": 0, "overlap": {}}
    assert (made.facts["read"], made.facts["documents"]) == (10, 3)
    assert made.facts["bytes"] == sum(len(text.encode()) for text in _texts(made))


def test_repeated_documents_are_dropped_across_sources_and_the_first_label_stays(tmp_path: Path) -> None:
    first = {**_json_lines(tmp_path / "a.jsonl", ["Same.", "Only a."]), "name": "first", "licence": "CC BY-SA 4.0"}
    second = _json_lines(tmp_path / "b.jsonl", ["Only b.", "Same."])
    made = _make(tmp_path / "out", first, second)
    assert _documents(made) == [("first", "Same."), ("first", "Only a."), ("b", "Only b.")]
    assert made.facts["sources"] == {
        "first": {"documents": 2, "bytes": 12, "licence": "CC BY-SA 4.0", "weight": None},
        "b": {"documents": 1, "bytes": 7, "licence": "", "weight": None},
    }


def test_parquet_is_read_from_a_file_a_folder_and_a_glob_in_sorted_order(tmp_path: Path) -> None:
    _parquet(tmp_path / "in" / "b.parquet", ["Third.", "Fourth."])
    _parquet(tmp_path / "in" / "a" / "z.parquet", ["First.", None, "Second."])
    whole = ["First.", "Second.", "Third.", "Fourth."]
    for number, path in enumerate(("in", "in/**/*.parquet")):
        made = _make(tmp_path / f"out{number}", {"kind": "parquet", "path": str(tmp_path / path)})
        assert _texts(made) == whole
        assert {label for label, _ in _documents(made)} == {"in"}
    alone = _make(tmp_path / "out", {"kind": "parquet", "path": str(tmp_path / "in" / "b.parquet")})
    assert _documents(alone) == [("b", "Third."), ("b", "Fourth.")]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_every_arrow_string_type_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"body": pa.array(["Words.", "More."]).cast(kind)}), tmp_path / "a.parquet")
    made = _make(tmp_path / "out", {"kind": "parquet", "path": str(tmp_path / "a.parquet"), "column": "body"})
    assert _texts(made) == ["Words.", "More."]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["One.\nTwo.\n\n \nThree."]),
        ("line", ["One.", "Two.", "Three."]),
        ("paragraph", ["One.\nTwo.", "Three."]),
    ],
)
def test_plain_text_by_file_line_and_paragraph(tmp_path: Path, documents: str, expected: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffOne.\r\nTwo.\n\n \nThree.".encode())
    made = _make(tmp_path / "out", {"kind": "text", "path": str(tmp_path / "a.txt"), "documents": documents})
    assert _texts(made) == expected


def test_limits_count_documents_that_pass_the_filters_repeated_ones_too(tmp_path: Path) -> None:
    source = _json_lines(tmp_path / "a.jsonl", ["", "Aa.", "Aa.", "Bb.", "Cc.", "", "Dd."])
    limited = _make(tmp_path / "limit", {**source, "limit": 3})
    assert _texts(limited) == ["Aa.", "Bb."]
    assert limited.facts["dropped"] == {"empty": 1, "repeated": 1}
    assert limited.facts["read"] == 4
    short = _make(tmp_path / "bytes", {**source, "max_bytes": 13})
    assert _texts(short) == ["Aa.", "Bb.", "Cc."]
    assert short.facts["dropped"] == {"empty": 2, "repeated": 1}


def test_shards_keep_their_budget_their_schema_and_their_bytes(tmp_path: Path) -> None:
    source = _json_lines(tmp_path / "a.jsonl", [f"{number} {line}" for number in range(20) for line in tiny.ENGLISH])
    first, second = (_make(tmp_path / name, source, shard_bytes=20_000) for name in ("first", "second"))
    names = [path.name for path in sorted(first.path.glob("*.parquet"))]
    assert names == [f"documents-{number:05}.parquet" for number in range(first.facts["shards"])]
    assert len(names) > 3
    for name in names:
        table = pq.read_table(first.path / name)
        assert table.schema.field("source").type == pa.dictionary(pa.int32(), pa.string())
        assert table.schema.field("text").type == pa.large_string()
        assert sum(len(text.encode()) for text in table["text"].to_pylist()) <= 20_000
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    assert first.identity == second.identity
    assert len(_texts(first)) == 20 * len(tiny.ENGLISH)


DOCSTRING = """Return the *smallest* of the `values` that are given to :func:`~statistics.smallest`.

The values are compared with each other until
only one of them is left::

    while len(values) > 1: this is not the prose of a person.

.. versionadded:: 3.2
   This line of the directive is not a part of the prose.

.. note:: It is an error to give no values at all,
   because there is no smallest of them.

>>> smallest([3, 1, 2])
1

* A point of a list that is a sentence of its own
  and goes on in the next line.
* short point

Parameters
----------
values : list of int
    The values of which the smallest is to be found.
key
    func

Args:
    default (`int`, *optional*): The value to return where there are none.
    other:
        What to do with all of the other values.

:param strict: Whether the values must not be equal
    to each other.

Examples
--------
This sentence in the examples is not for the reader of prose.

====  ====
a     b
====  ====

See https://example.org/values or [the notes](https://example.org) for what is not said here.
"""


def test_prose_of_a_docstring_is_its_sentences() -> None:
    assert docstrings.paragraphs(DOCSTRING) == [
        "Return the smallest of the values that are given to smallest.",
        "It is an error to give no values at all, because there is no smallest of them.",
        "A point of a list that is a sentence of its own and goes on in the next line.",
        "The values of which the smallest is to be found.",
        "The value to return where there are none.",
        "What to do with all of the other values.",
        "Whether the values must not be equal to each other.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short for us.",
        "the opening is not a capital, so it is a part of something.",
        "There is no full stop at the end of this one",
        "Axis Length Width Height Depth Volume Area Weight.",
        "If a_b == c.d() then x[0] += 1 else y -= 2 for z.",
    ],
)
def test_what_does_not_read_like_english_is_no_prose(text: str) -> None:
    assert not docstrings.reads_as_prose(text)


def test_installed_docs_are_read_without_importing_and_labelled_by_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, stdlib = tmp_path / "site", tmp_path / "stdlib"
    shared = "A sentence that both of the packages have in their docs."
    files = {
        site / "alpha" / "__init__.py": f'"""{shared}"""\nraise RuntimeError("imported")\n',
        site / "alpha" / "deep" / "inner.py": "class A:\n    '''The class has a sentence for the reader.'''\n"
        "    if True:\n        async def f(self):\n            '''The method has one for the reader as well.'''\n",
        site / "alpha" / "tests" / "cases.py": '"""The tests have sentences that are of no use."""\n',
        site / "alpha" / "_vendor" / "copy.py": '"""The copy has sentences that are not of this package."""\n',
        site / "alpha" / "old.py": "print 'not of this version'\n",
        site / "beta.py": f'"""{shared}\n\nThis one is a sentence of the second alone."""\n',
        site / "alpha-1.0.dist-info" / "hook.py": '"""The metadata of a package is not a package itself."""\n',
        stdlib / "mathematics.py": '"""The module has the functions that are in every school book."""\n',
        stdlib / "site-packages" / "beta.py": '"""What is installed is not a part of the library."""\n',
    }
    for path, source in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(stdlib if name == "stdlib" else site))
    made = _make(tmp_path / "out", {"kind": "installed-docs"})
    assert _documents(made) == [
        ("alpha", shared),
        ("alpha", "The class has a sentence for the reader.\n\nThe method has one for the reader as well."),
        ("beta", "This one is a sentence of the second alone."),
        ("stdlib", "The module has the functions that are in every school book."),
    ]
    assert made.facts["dropped"] == {"unparsable modules": 1}


def test_installed_docs_of_real_packages_are_prose(tmp_path: Path) -> None:
    source = {"kind": "installed-docs", "packages": ["packaging", "filelock", "jinja2"]}
    made = _make(tmp_path / "out", source, cleaning={"min_characters": 200})
    labels = [label for label, _ in _documents(made)]
    assert labels == sorted(labels)
    assert {*labels} == {"filelock", "jinja2", "packaging"}
    paragraphs = [paragraph for text in _texts(made) for paragraph in text.split("\n\n")]
    assert all(docstrings.reads_as_prose(paragraph) for paragraph in paragraphs)
    assert len(paragraphs) == len({*paragraphs})
    assert made.facts["bytes"] > 50_000


def _broken_parquet(path: Path) -> str:
    whole = _parquet(path / "in.parquet", tiny.ENGLISH).read_bytes()
    (path / "in.parquet").write_bytes(whole[: len(whole) // 2])
    return '{ kind = "parquet", path = "in.parquet" }'


def _no_such_column(path: Path) -> str:
    _parquet(path / "in.parquet", tiny.ENGLISH, column="body")
    return '{ kind = "parquet", path = "in.parquet" }'


def _numbers(path: Path) -> str:
    _parquet(path / "in.parquet", tiny.ENGLISH)
    return '{ kind = "parquet", path = "in.parquet", column = "id" }'


def _latin(path: Path) -> str:
    (path / "in.txt").write_bytes("One.\nTwo.\nCrème.\n".encode("latin-1"))
    return '{ kind = "text", path = "in.txt" }'


def _cut_line(path: Path) -> str:
    (path / "in.jsonl").write_text('\n{"text": "Tw', encoding="utf-8")
    return '{ kind = "jsonl", path = "in.jsonl" }'


def _line_without_column(path: Path) -> str:
    (path / "in.jsonl").write_text('{"body": "Two."}\n', encoding="utf-8")
    return '{ kind = "jsonl", path = "in.jsonl" }'


def _no_object(path: Path) -> str:
    (path / "in.jsonl").write_text('["One."]\n', encoding="utf-8")
    return '{ kind = "jsonl", path = "in.jsonl" }'


def _huge_file(path: Path) -> str:
    with (path / "in.txt").open("wb") as file:
        file.truncate(2**30)  # sparse: takes no room
    return '{ kind = "text", path = "in.txt" }'


def _nothing_left(path: Path) -> str:
    (path / "in.txt").write_text("\x00\n \n\x07\n", encoding="utf-8")
    return '{ kind = "text", path = "in.txt", documents = "line" }'


def _cut_gzip(path: Path) -> str:
    (path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"text": "One."}\n' * 1000)[:-20])
    return '{ kind = "jsonl", path = "in.jsonl.gz" }'


def _not_bzip2(path: Path) -> str:
    (path / "in.jsonl.bz2").write_bytes(bytes(range(20)))
    return '{ kind = "jsonl", path = "in.jsonl.bz2" }'


def _empty_folder(path: Path) -> str:
    (path / "in").mkdir()
    return '{ kind = "text", path = "in" }'


REFUSALS = {
    _broken_parquet: "in.parquet cannot be read",
    _no_such_column: "in.parquet has no column text: set column to one of body, id",
    _numbers: "in.parquet: column id holds int64, expected strings",
    _latin: "in.txt: line 3: not UTF-8: 'Cr\\\\xe8me.'",
    _cut_line: 'in.jsonl: line 2: not JSON: \'{"text": "Tw\'',
    _line_without_column: 'in.jsonl: line 1: no column: \'{"body"',
    _no_object: "in.jsonl: line 1: no object: '[\"One.\"]'",
    _huge_file: "in.txt: the file: oversize",
    _nothing_left: "source 1 (in.txt) has no document: of 2 read, all are dropped (2 empty, for example",
    _cut_gzip: "in.jsonl.gz cannot be read (Truncated compressed stream): it is cut or damaged",
    _not_bzip2: "in.jsonl.bz2 does not begin like a file of bz2: it is cut or damaged",
    _empty_folder: "source path in: no *.txt file below the folder",
    lambda path: '{ kind = "text", path = "absent/*.txt" }': "source path absent/*.txt: no such file",
    lambda path: '{ kind = "installed-docs", packages = ["absent"] }': "package absent is not installed",
    lambda path: '{ kind = "text", path = "in.txt", document = "line" }': "did you mean",
    lambda path: '{ kind = "text", path = "in.txt", limit = 0 }': "greater than 0",
    lambda path: '{ kind = "text", path = "a", weight = 1.0 }, { kind = "text", path = "b" }': "give all of them one",
}


@pytest.mark.parametrize(("prepare", "expected"), REFUSALS.items())
def test_unreadable_sources_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prepare: Any, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text(f"sources = [{prepare(tmp_path)}]\n", encoding="utf-8")
    with pytest.raises(SystemExit) as exit_code:
        cli.main(STAGE.name, ["recipe.toml", "--out", "out"])
    said = capsys.readouterr()
    assert exit_code.value.code == 1
    *progress, error = said.err.splitlines()
    assert error.startswith("error: ")
    assert expected in error
    assert all(line.startswith("corpus: ") for line in progress)
    assert not (tmp_path / "out").exists()


def _command(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.toml").write_text(f"[[sources]]\n{source}\n", encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cluster.corpus", "recipe.toml", "--out", "out"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_hub_source_reads_a_local_folder(tmp_path: Path) -> None:
    _parquet(tmp_path / "local" / "train.parquet", tiny.ENGLISH)
    done = _command(tmp_path, 'kind = "hub"\ndataset = "./local"\nname = "local"\nlimit = 40')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / done.stdout.strip()).samefile(tmp_path / "out")
    assert _documents(artifact.read(tmp_path / "out", "corpus")) == [("local", line) for line in tiny.ENGLISH[:40]]


def test_a_hub_source_in_a_folder_that_its_library_takes_for_a_pattern_is_refused(tmp_path: Path) -> None:
    for name in ("my [data]", "my d*", "a::b"):
        _parquet(tmp_path / name / "train.parquet", tiny.ENGLISH)
        with pytest.raises(errors.StageError, match="rename the folder"):
            _make(tmp_path / "out", {"kind": "hub", "dataset": str(tmp_path / name)})


def test_a_file_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _json_lines(tmp_path / "in" / os.fsdecode(b"a\xff.jsonl"), ["Text."])
    with pytest.raises(errors.StageError, match=r"udcff.*rename"):
        _make(tmp_path / "out", {"kind": "jsonl", "path": str(tmp_path / "in")})


def test_sources_with_brackets_keep_their_labels_and_names(tmp_path: Path) -> None:
    sources: list[dict[str, Any]] = []
    for language in ("en", "de"):
        (tmp_path / f"wiki [{language}]").mkdir()
        _json_lines(tmp_path / f"wiki [{language}]" / "a.jsonl", [f"Text in {language}."])
        sources.append({"kind": "jsonl", "path": str(tmp_path / f"wiki [{language}]")})
    sources[1]["path"] += "/*.jsonl"
    (tmp_path / "wiki e").mkdir()
    _json_lines(tmp_path / "wiki e" / "a.jsonl", ["Another text."])
    made = _make(tmp_path / "out", *sources)
    assert _documents(made) == [("wiki [en]", "Text in en."), ("wiki [de]", "Text in de.")]
    assert [entry["name"] for entry in made.facts["files"]] == ["a.jsonl", "a.jsonl"]


def test_linked_folders_are_read_by_every_way_to_write_a_source(tmp_path: Path) -> None:
    for folder in ("in/part0", "disk/part1"):
        (tmp_path / folder).mkdir(parents=True)
        _json_lines(tmp_path / folder / "a.jsonl", [f"Text in {folder}."])
    (tmp_path / "in" / "part1").symlink_to(tmp_path / "disk" / "part1")
    (tmp_path / "in" / "part1" / "back").symlink_to(tmp_path / "in")
    for number, path in enumerate(("in", "in/**/*.jsonl", "in/*/*.jsonl")):
        made = _make(tmp_path / f"out{number}", {"kind": "jsonl", "path": str(tmp_path / path)})
        assert _texts(made) == ["Text in in/part0.", "Text in disk/part1."]
        assert (made.facts["read"], made.facts["dropped"]) == (2, {})


def test_hidden_files_of_other_systems_are_left_out_of_a_folder_and_read_by_name(tmp_path: Path) -> None:
    _parquet(tmp_path / "in" / "x.parquet", ["Text."])
    (tmp_path / "in" / "._x.parquet").write_bytes(b"\0\5\x16\7 of another system")
    _parquet(tmp_path / "in" / ".ipynb_checkpoints" / "x-checkpoint.parquet", ["An old text."])
    for number, path in enumerate(("in", "in/*.parquet", "in/**/*.parquet")):
        assert _texts(_make(tmp_path / f"out{number}", {"kind": "parquet", "path": str(tmp_path / path)})) == ["Text."]
    named = {"kind": "parquet", "path": str(tmp_path / "in" / ".ipynb_checkpoints")}
    assert _texts(_make(tmp_path / "named", named)) == ["An old text."]


def test_an_output_that_the_source_would_read_is_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "in" / "a.parquet", ["Text."])
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for path in ("in", "in/**/*.parquet", "in/*/documents-*", "link"):
        for out in ("in/corpus", "link/corpus"):
            with pytest.raises(errors.StageError, match=f"{out} is inside the source"):
                _make(tmp_path / out, {"kind": "parquet", "path": str(tmp_path / path)})
            assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.parquet"]
    for number, path in enumerate(("in", "in/a.parquet", "in/*.parquet")):
        beside = tmp_path / ("in" if path.endswith("parquet") else ".") / f"out{number}"
        assert _texts(_make(beside, {"kind": "parquet", "path": str(tmp_path / path)})) == ["Text."]


def test_an_interrupted_attempt_in_a_source_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _json_lines(tmp_path / "in" / "a.jsonl", [f"Text {number}." for number in range(20)])
    _parquet(tmp_path / "in" / "b.parquet", ["Of a file."])
    lines = {"kind": "jsonl", "path": str(tmp_path / "in")}
    with pytest.raises(errors.StageError, match="20 no column"):
        _make(tmp_path / "in" / "corpus", {**lines, "column": "other"})
    assert [*(tmp_path / "in" / ".corpus.partial").rglob("*.parquet")]
    files = {"kind": "parquet", "path": str(tmp_path / "in")}
    assert _texts(_make(tmp_path / "out", files)) == ["Of a file."]
    assert _make(tmp_path / "in" / "corpus", lines).facts["read"] == 20


def test_an_artifact_inside_a_source_folder_is_read_only_where_it_is_named(tmp_path: Path) -> None:
    finished = _make(tmp_path / "in" / "deep" / "corpus", _json_lines(tmp_path / "a.jsonl", ["Made before."]))
    _parquet(tmp_path / "in" / "b.parquet", ["Text."])
    _parquet(tmp_path / "in" / "crawl" / "c.parquet", ["Crawled."])
    (tmp_path / "in" / "crawl" / "manifest.json").write_text("[]")
    with pytest.raises(errors.StageError, match=r"deep/corpus is an artifact inside the source .*/in "):
        _make(tmp_path / "out", {"kind": "parquet", "path": str(tmp_path / "in")})
    named = {"kind": "parquet", "path": str(finished.path), "name": "earlier"}
    globbed = {"kind": "parquet", "path": f"{tmp_path}/in/*.parquet"}
    assert _texts(_make(tmp_path / "out", named, globbed)) == ["Made before.", "Text."]
    hub = {"kind": "hub", "dataset": str(tmp_path / "in")}
    with pytest.raises(errors.StageError, match="deep/corpus is an artifact inside the source"):
        _make(tmp_path / "other", hub)
    with pytest.raises(errors.StageError, match="inside the source"):
        _make(tmp_path / "in" / "new", hub)
    shutil.rmtree(tmp_path / "in" / "deep")
    assert _texts(_make(tmp_path / "out2", {"kind": "parquet", "path": str(tmp_path / "in")})) == ["Text.", "Crawled."]


def test_a_hub_source_out_of_reach_ends_in_one_line(tmp_path: Path) -> None:
    done = _command(tmp_path, 'kind = "hub"\ndataset = "no-such-owner/no-such-text"')
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: dataset no-such-owner/no-such-text, split train: cannot be loaded (")


@pytest.mark.real_data
@pytest.mark.skipif(not REAL_DATA.exists(), reason="real text is not next to the checkout")
def test_real_articles_and_novels_pass_whole(tmp_path: Path) -> None:
    articles = {"kind": "parquet", "path": str(REAL_DATA / "corpus" / "wikipedia_en-00000-of-00008.parquet")}
    novels = {"kind": "parquet", "path": str(REAL_DATA / "corpus" / "novels_en.parquet"), "limit": 3, "name": "novels"}
    novels["max_bytes"] = 30_000_000  # so little that one piece holds all, and no cluster is started
    made = _make(tmp_path / "out", {**articles, "limit": 300, "name": "wikipedia"}, novels, shard_bytes=2_000_000)
    assert {label: kept["documents"] for label, kept in made.facts["sources"].items()} == {
        "wikipedia": 300,
        "novels": 3,
    }
    assert all(text == clean_text.clean(text) for text in _texts(made))


@pytest.fixture
def _small_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "SPLIT_BYTES", 2_000)


def _recipe_with_every_option(path: Path) -> dict[str, Any]:
    """A recipe with every option, for sources in many pieces."""
    path.mkdir()
    long = [" ".join(tiny.ENGLISH[start : start + 4]) for start in range(40)]
    near = [f"{text} Once more with an ending." for text in long[:10]]
    (path / "task").mkdir()
    (path / "task" / "dev.jsonl").write_text(json.dumps({"question": tiny.ENGLISH[5], "label": 1}), encoding="utf-8")
    lines = [json.dumps({"text": text}) for text in [*long, *long[5:15], *near, "", None]]
    (path / "a.jsonl").write_text("\n".join([*lines[:7], '{"text": "cut', *lines[7:]]), encoding="utf-8")
    (path / "b.txt").write_text("\n".join(f"{number} {line}" for line in tiny.ENGLISH for number in range(9)), "utf-8")
    return {
        "sources": [
            {"kind": "jsonl", "path": str(path / "a.jsonl"), "weight": 2.0},
            {"kind": "text", "path": str(path / "b.txt"), "documents": "line", "limit": 150, "weight": 1.0},
        ],
        "near_duplicates": {"threshold": 0.7},
        "decontamination": {"tasks": [str(path / "task")]},
        "shard_bytes": 900,
    }


def test_filters_across_documents_are_counted_by_reason(tmp_path: Path) -> None:
    made = stage.execute(STAGE, Corpus.of(_recipe_with_every_option(tmp_path / "in")), {}, tmp_path / "out")
    assert made is not None
    dropped = made.facts["dropped"]
    assert made.facts["duplicates"] == {
        "exact": dropped["repeated"],
        "near": dropped["nearly repeated"],
        "overlap": {"task": dropped["overlap with task"]},
    }
    assert dropped["empty"] == dropped["missing"] == dropped["not JSON"] == 1
    # The sentence is in the long texts 2 to 5, in one of the repeated and four of the nearly repeated ones, in 9 lines.
    texts = _texts(made)
    assert dropped["overlap with task"] == 4 + 1 + 4 + 9
    assert dropped["repeated"] == 9
    assert not [text for text in texts if tiny.ENGLISH[5] in text]
    assert dropped["nearly repeated"] >= 5
    assert made.facts["read"] == made.facts["documents"] + sum(dropped.values())
    sizes = {label: found["bytes"] for label, found in made.facts["sources"].items()}
    assert sizes["a"] / sizes["b"] == pytest.approx(2, rel=0.2)  # to a document
    assert made.facts["evaluation"] == {"task": {"files": 1, "texts": 1, "ignored": 0, "runs": 3}}
    assert made.facts["examples"][0] == {
        "file": "a.jsonl",
        "where": "line 8",
        "reason": "not JSON",
        "text": '{"text": "cut',
    }


@pytest.mark.long
@pytest.mark.usefixtures("_small_splits")
def test_the_bytes_are_the_same_for_any_number_of_actors_and_nothing_is_read_twice(tmp_path: Path) -> None:
    recipe = _recipe_with_every_option(tmp_path / "in")
    broken = _parquet(tmp_path / "in" / "c.parquet", [text[::-1] for text in tiny.ENGLISH])
    recipe["sources"].append({"kind": "parquet", "path": str(broken), "weight": 1.0})
    del recipe["sources"][1]["limit"]  # so that every attempt needs every piece
    whole, found = broken.read_bytes(), broken.stat()
    units: list[float] = []

    def make(name: str, actors: int) -> artifact.Artifact:
        before = REGISTRY.get_sample_value("stillhouse_units_total", {"task": "corpus"}) or 0.0
        made = stage.execute(STAGE, Corpus.of(recipe | {"placement": {"actors": actors}}), {}, tmp_path / name)
        units.append((REGISTRY.get_sample_value("stillhouse_units_total", {"task": "corpus"}) or 0.0) - before)
        assert made is not None
        return made

    with connect(2):
        one = make("one", 1)
        broken.write_bytes(whole[:-8] + bytes(8))
        os.utime(broken, ns=(found.st_atime_ns, found.st_mtime_ns))
        with pytest.raises(errors.StageError, match="cannot be read"):
            make("two", 2)
        wait_until(lambda: not actors(psutil.Process().children(recursive=True)))  # their unit is recorded
        left = len(list((tmp_path / ".two.partial" / "splits").glob("0*.json")))
        broken.write_bytes(whole)
        os.utime(broken, ns=(found.st_atime_ns, found.st_mtime_ns))
        two = make("two", 2)
    assert left > 5
    assert units[1] == units[0] - left
    assert one.facts["shards"] > 5
    assert one.identity == two.identity


def test_a_changed_source_starts_over_and_a_finished_attempt_is_not_made_again(tmp_path: Path) -> None:
    source = _json_lines(tmp_path / "a.jsonl", tiny.ENGLISH)
    recipe = Corpus.of({"sources": [source], "shard_bytes": 400})
    (tmp_path / "out" / "documents-00003.parquet").mkdir(parents=True)  # no file can be written there
    with pytest.raises(IsADirectoryError):
        corpus_stage.run(recipe, {}, tmp_path / "out")
    marker, shard = tmp_path / "out" / "splits" / "00000.json", tmp_path / "out" / "documents-00001.parquet"
    written = (shard.stat().st_ino, shard.stat().st_mtime_ns)
    (tmp_path / "out" / "documents-00003.parquet").rmdir()
    known = json.loads(marker.read_text())
    known["spans"][0]["fingerprint"] = "as it was left"
    marker.write_text(json.dumps(known))
    facts = corpus_stage.run(recipe, {}, tmp_path / "out")
    assert facts["files"][0]["sha256"] == hashlib.sha256(b"as it was left").hexdigest()
    assert not marker.exists()
    assert corpus_stage.run(recipe, {}, tmp_path / "out") == facts
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == written
    _json_lines(tmp_path / "a.jsonl", tiny.ENGLISH[:12])
    assert corpus_stage.run(recipe, {}, tmp_path / "out")["documents"] == 12
    assert len(list((tmp_path / "out").glob(shard_writer.SHARDS))) == 3


def test_more_than_a_set_share_of_bad_documents_stops_the_run_with_examples(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    fine = [json.dumps({"text": f"Number {number}."}).encode() for number in range(1_200)]
    bad = [b'{"text": "\xff"}', b'{"text": 3}', b'{"text": ""}'] * 5
    path.write_bytes(b"\n".join([*fine[:100], *bad[:12], *fine[100:]]))
    made = _make(tmp_path / "fine", {"kind": "jsonl", "path": str(path)})
    assert made.facts["dropped"] == {"not UTF-8": 4, "no string": 4, "empty": 4}
    assert [example["where"] for example in made.facts["examples"]] == [f"line {n}" for n in (101, 102)] + [
        "document 103",
        "line 104",
        "line 105",
    ]
    path.write_bytes(b"\n".join([*fine[:100], *bad, *fine[100:]]))
    with pytest.raises(errors.StageError, match=r"15 of the first 1,215 .* max_bad_share = 0\.01"):
        _make(tmp_path / "bad", {"kind": "jsonl", "path": str(path)})
    assert (
        _make(tmp_path / "kept", {"kind": "jsonl", "path": str(path)}, max_bad_share=0.02).facts["documents"] == 1_200
    )


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.usefixtures("_small_splits")
def test_sources_and_corpus_may_be_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = _recipe_with_every_option(tmp_path / "in")
    with s3_server.serving(tmp_path / "requests.log") as port:
        store = s3_server.use(port, monkeypatch)
        store.put(f"{tmp_path}/in/", f"{s3_server.BUCKET}/in/", recursive=True)
        remote = json.loads(json.dumps(local).replace(str(tmp_path), f"s3://{s3_server.BUCKET}"))
        with connect(2):
            here, there = (
                stage.execute(STAGE, Corpus.of(recipe), {}, filesystem.location(out))
                for recipe, out in ((local, tmp_path / "out"), (remote, f"s3://{s3_server.BUCKET}/out"))
            )
        assert here is not None
        assert there is not None
        assert there.files == here.files
        assert there.facts == here.facts
        assert not store.exists(f"{s3_server.BUCKET}/out/splits")


def test_a_file_that_changes_while_it_is_read_ends_the_run_and_the_next_one_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(100)))
    whole, read = texts.read_text(), filters.Filter.apply
    touched: list[str] = []

    def apply(cleaner: filters.Filter, text: str) -> filters.FilterResult:
        if not touched:
            touched.append(text)
            texts.write_text(whole + whole.replace("document", "another"))
        return read(cleaner, text)

    monkeypatch.setattr(filters.Filter, "apply", apply)
    with pytest.raises(errors.StageError, match=r"texts.jsonl was changed while it was read"):
        _make(tmp_path / "out", {"kind": "jsonl", "path": str(texts)})
    assert _make(tmp_path / "out", {"kind": "jsonl", "path": str(texts)}).facts["documents"] == 200


def test_labels_that_several_sources_share_have_the_sum_of_their_weights(tmp_path: Path) -> None:
    sources = []
    for number in range(2):
        path = tmp_path / f"{number}.txt"
        path.write_text("".join(f"text {line} of {number}\n" for line in range(50)))
        sources.append({"kind": "text", "path": str(path), "name": "both", "documents": "line", "weight": 1.5})
    made = _make(tmp_path / "out", *sources)
    assert made.facts["sources"]["both"] == {
        "documents": 100,
        "bytes": made.facts["bytes"],
        "licence": "",
        "weight": 3.0,
    }


def test_a_source_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="path"):
        Corpus.of({"sources": [{"kind": "text", "path": ""}]})
