"""Decontamination: n-grams of a task's words are found at any position, in every file format of tasks."""

import gzip
import json
import logging
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paths
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import RecipeError
from cluster.corpus.clean_text import clean
from cluster.corpus.decontamination import Decontamination, EvaluationIndex, evaluation_files
from cluster.corpus.filters import Cleaning, Filter

DATA = paths.DATA

LONG = "a spirit safe is a padlocked glass walled chest found in distilleries that produce single malt whisky"
SHORT = "The condenser turns vapour into liquid again, slowly!"
TINY = "not worth it"


def _load(*tasks: Path | str, **values: Any) -> EvaluationIndex:
    return EvaluationIndex.load(Decontamination.of({"tasks": [str(task) for task in tasks], **values}))


def _task(folder: Path, *texts: str, name: str = "dev.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"sentence": text, "label": 1, "idx": number}) for number, text in enumerate(texts)]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_none(tmp_path: Path) -> None:
    evaluation = _load(_task(tmp_path / "whisky", LONG))
    words = LONG.split()
    for start in range(len(words) - 12):
        text = f"Before it. {' '.join(words[start : start + 13])} And after it."
        assert evaluation.overlap(text) == "whisky"
        assert evaluation.overlap(text.replace(words[start + 6], "other")) is None
        assert evaluation.overlap(" ".join(words[start : start + 12])) is None
    assert evaluation.overlap("") is None


def test_a_folder_with_brackets_in_its_name_is_a_folder(tmp_path: Path) -> None:
    folder = _task(tmp_path / "glue [v1]" / "rte", LONG)
    _task(folder, SHORT, name="train.jsonl")
    _task(tmp_path / "glue v" / "rte", "wrong", name="dev.jsonl")
    (folder / "README.md").touch()
    found = evaluation_files(Decontamination.of({"tasks": [str(folder)]}))
    assert [(task, info.location) for task, info in found] == [("rte", folder / "dev.jsonl")]
    globbed = evaluation_files(Decontamination.of({"tasks": [f"{folder}/*.jsonl"]}))
    assert [info.location.name for _, info in globbed] == ["dev.jsonl", "train.jsonl"]
    with pytest.raises(StageError, match="no such file"):
        evaluation_files(Decontamination.of({"tasks": [str(tmp_path / "glue [v2]")]}))


def test_linked_folders_are_read_and_hidden_files_are_not(tmp_path: Path) -> None:
    task = _task(tmp_path / "task", LONG)
    (task / "more").symlink_to(_task(tmp_path / "elsewhere", SHORT))
    (task / "._dev.jsonl").write_bytes(b"\0\5\x16\7")
    (task / ".ipynb_checkpoints").mkdir()
    (task / ".ipynb_checkpoints" / "dev-checkpoint.jsonl").write_bytes(b"{")
    assert {name: counts["texts"] for name, counts in _load(task).counts.items()} == {"task": 1, "task/more": 1}


def test_case_punctuation_and_line_breaks_hide_nothing(tmp_path: Path) -> None:
    evaluation = _load(_task(tmp_path / "whisky", LONG))
    assert evaluation.overlap("«" + LONG.upper().replace(" ", ",\n") + "»") == "whisky"


@pytest.mark.parametrize(
    "hide",
    [
        lambda text: unicodedata.normalize("NFD", text),
        lambda text: text.replace("ti", "t\x07i"),
        lambda text: text.replace("dis", "\ufeffd\ufeffis"),
        lambda text: text.replace("distilleries", "distil\u2060leries"),
        lambda text: text.replace("padlocked", "pad\xadlocked"),
        lambda text: text.replace(" ", "\x0b"),
        lambda text: text.replace(" ", "\x85"),
        lambda text: text.replace(" ", "\u200b "),
        lambda text: text.replace(" ", "\u200b"),
        lambda text: text.replace("e", "\u200be"),
        lambda text: text.replace(" ", "\u2028"),
        lambda text: text.replace("e", "e\ufe0f"),
        lambda text: text.replace("e", "\u034fe"),
        lambda text: text.replace("e", "\U000e0041e"),
        lambda text: text.replace("fe ", "f\U0001d41e "),
        lambda text: "".join(
            chr(ord(letter) + 0xFEE0) if letter.islower() and letter.isascii() else letter for letter in text
        ),
        lambda text: text.replace("distilleries's", "distilleries\u02bcs").replace("fi", "\ufb01"),
        str.upper,
        str.casefold,
    ],
)
def test_other_forms_of_the_same_text_hide_nothing_on_either_side(tmp_path: Path, hide: Callable[[str], str]) -> None:
    """The texts of a task are cleaned as documents are; documents are clean when they are compared."""
    text = LONG.replace("malt", "mált").replace("distilleries", "distilleries's fine Straßen, όδος")
    assert hide(text) != text
    assert _load(_task(tmp_path / "hidden", hide(text))).overlap(clean(text)) == "hidden"
    assert _load(_task(tmp_path / "plain", text)).overlap(clean(hide(text))) == "plain"


def test_texts_are_compared_as_the_rules_for_lines_leave_them(tmp_path: Path) -> None:
    lines = [f"{LONG.rsplit(' ', 8)[0]}.", "Terms of use and privacy policy.", "It is made of brass and of glass."]
    task = _task(tmp_path / "pages", "\n".join(lines))
    cleaning = Cleaning.of({"c4": {"min_sentences": 0}})
    kept = Filter(cleaning).apply("\n".join(lines)).text
    assert kept == f"{lines[0]}\n{lines[2]}"
    index = EvaluationIndex.load(Decontamination.of({"tasks": [str(task)]}), cleaning)
    assert index.overlap(kept) == index.overlap("\n".join(lines)) == "pages"


def test_shorter_texts_count_whole_and_the_shortest_not_at_all(tmp_path: Path) -> None:
    evaluation = _load(_task(tmp_path / "vapour", SHORT, TINY))
    assert evaluation.overlap("Now the condenser turns vapour into liquid again slowly and quietly.") == "vapour"
    assert evaluation.overlap("The condenser turns vapour into liquid again.") is None
    assert evaluation.overlap(f"It is {TINY}.") is None
    assert evaluation.counts == {"vapour": {"files": 1, "texts": 2, "ignored": 1, "runs": 1}}


@pytest.mark.parametrize("seed", range(4))
def test_overlaps_are_those_of_a_naive_search(tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(choice.choice("ab") for _ in range(length))

    texts = [text(choice.randint(3, 9)) for _ in range(4)]
    evaluation = _load(_task(tmp_path / "letters", *texts), words=7, min_words=5)
    lengths = {one: min(7, len(one.split())) for one in texts}
    runs = {
        tuple(one.split()[start : start + length])
        for one, length in lengths.items()
        for start in range(len(one.split()) - length + 1)
        if length >= 5
    }
    documents = [text(12) for _ in range(300)]
    expected = [
        any(tuple(words[start : start + len(run)]) == run for run in runs for start in range(len(words)))
        for words in (document.split() for document in documents)
    ]
    assert 0 < sum(expected) < len(expected), "the test needs some overlaps, but not all"
    assert [evaluation.overlap(document) is not None for document in documents] == expected


def test_the_first_named_task_is_told_where_several_share_a_text(tmp_path: Path) -> None:
    one, other = _task(tmp_path / "one", LONG), _task(tmp_path / "other", LONG, SHORT)
    assert _load(one, other).overlap(f"{SHORT} {LONG}") == "one"
    assert _load(other, one).overlap(f"{SHORT} {LONG}") == "other"
    assert _load(one, other).overlap(SHORT) == "other"


def _parquet(path: Path) -> None:
    nested = [{"text": [LONG], "start": [3]}]
    pq.write_table(pa.table({"idx": [0], "answers": nested}), path)


def _arrow(path: Path) -> None:
    table = pa.table({"premise": [LONG], "label": [1]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def _arrow_file(path: Path) -> None:
    table = pa.table({"premise": pa.array([LONG]).dictionary_encode(), "label": [1]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _squad(path: Path) -> None:
    paragraph = {
        "context": LONG,
        "qas": [{"question": "What?", "id": "1", "answers": [{"text": "a", "answer_start": 0}]}],
    }
    path.write_text(
        json.dumps({"version": "1.1", "data": [{"title": "x", "paragraphs": [paragraph]}]}), encoding="utf-8"
    )


def _json_lines(path: Path) -> None:
    path.write_text(f'{{"a": 1}}\n{json.dumps({"b": [LONG]})}\n', encoding="utf-8")


def _tsv(path: Path) -> None:
    path.write_text(f'index\tsentence\n0\t"Quoted {LONG}\r\n1\tanother\n', encoding="utf-8")


def _csv(path: Path) -> None:
    path.write_text(f'index,sentence\n0,"First, a line.\n{LONG}"\n', encoding="utf-8")


def _one_value_a_line(path: Path) -> None:
    """Separators inside strings: U+2028, next line; and a byte order mark before all."""
    lines = [
        json.dumps({"sentence": f"First\u2028and\x85second: {LONG}"}, ensure_ascii=False),
        json.dumps({"label": 1}),
    ]
    path.write_text("\ufeff" + "\n".join(lines), encoding="utf-8")


def _array(path: Path) -> None:
    path.write_text(json.dumps([{"sentence": "one"}, {"sentence": LONG}], indent=1), encoding="utf-8")


def _bytes(path: Path) -> None:
    table = {"text": pa.array([LONG.encode(), b"\x89PNG\r\n\xff"], pa.binary()), "none": pa.nulls(2)}
    pq.write_table(pa.table(table), path)


def _nested_bytes(path: Path) -> None:
    pq.write_table(pa.table({"page": [{"parts": [b"\x89PNG\r\n\xff", LONG.encode()]}]}), path)


def _lines(path: Path) -> None:
    path.write_text(f"\n = Title = \n{LONG}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("validation-00000-of-00001.parquet", _parquet),
        ("test.arrow", _arrow),
        ("valid.arrow", _arrow_file),
        ("dev-v1.1.json", _squad),
        ("dev.json", _json_lines),
        ("dev_matched.jsonl", _json_lines),
        ("dev.json", _one_value_a_line),
        ("dev.jsonl", _one_value_a_line),
        ("dev.json", _array),
        ("dev.parquet", _bytes),
        ("dev.parquet", _nested_bytes),
        ("dev.txt", lambda path: path.write_bytes(f"{SHORT}\r{LONG}\r".encode())),
        ("dev.jsonl.gz", lambda path: path.write_bytes(gzip.compress(json.dumps({"text": LONG}).encode()))),
        ("dev.tsv", _tsv),
        ("TEST.csv", _csv),
        ("valid.txt", _lines),
    ],
)
def test_every_form_is_read(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    (tmp_path / "task").mkdir()
    write(tmp_path / "task" / name)
    assert _load(tmp_path / "task").overlap(LONG) == "task"


def test_of_a_folder_the_files_named_for_evaluation_count(tmp_path: Path) -> None:
    root = tmp_path / "glue"
    _task(root / "rte", LONG)
    _task(root / "rte", SHORT, name="train.jsonl")
    _task(root / "mnli" / "validation", LONG, name="0000.jsonl")
    _task(root / "cola", LONG, name="latest.jsonl")
    (root / "rte" / "dev.md").write_text(SHORT)
    recipe = Decontamination.of({"tasks": [str(root)]})
    assert [(task, file.location.name) for task, file in evaluation_files(recipe)] == [
        ("glue/mnli", "0000.jsonl"),
        ("glue/rte", "dev.jsonl"),
    ]
    assert EvaluationIndex.load(recipe).overlap(SHORT) is None


def test_files_and_globs_are_taken_as_they_are_named(tmp_path: Path) -> None:
    _task(tmp_path / "rte", LONG, name="heldout.jsonl")
    _task(tmp_path / "cola", SHORT, name="heldout.jsonl")
    assert _load(tmp_path / "rte" / "heldout.jsonl").tasks == ("rte",)
    assert _load(f"{tmp_path}/*/held*.jsonl").tasks == ("cola", "rte")
    assert _load(tmp_path / "rte", files=["heldout"]).overlap(LONG) == "rte"


def test_a_file_without_texts_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _task(tmp_path / "rte", LONG)
    (tmp_path / "rte" / "test.jsonl").touch()
    with caplog.at_level(logging.INFO, "stillhouse"):
        assert _load(tmp_path / "rte").counts["rte"]["files"] == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"decontamination: no text in {tmp_path}/rte/test.jsonl"
    ]


def test_a_corpus_inside_a_task_is_no_evaluation_data_and_a_made_data_set_is(tmp_path: Path) -> None:
    _task(tmp_path / "tasks" / "whisky", LONG)
    for kind in ("dataset", "corpus"):
        with artifact.create(tmp_path / "tasks" / "dev" / kind, kind=kind, inputs={}, recipe={}) as draft:
            pq.write_table(pa.table({"text": [SHORT]}), draft.path / "documents-00000.parquet")
        if kind == "dataset":
            assert _load(tmp_path / "tasks").overlap(SHORT) == "tasks/dataset"
    with pytest.raises(StageError, match="dev/corpus is an artifact"):
        _load(tmp_path / "tasks")


def test_a_task_without_texts_hides_no_other_and_is_refused_alone(tmp_path: Path) -> None:
    _task(tmp_path / "rte", LONG)
    (tmp_path / "cola").mkdir()
    (tmp_path / "cola" / "dev.tsv").touch()
    assert _load(tmp_path / "cola", tmp_path / "rte").overlap(LONG) == "rte"
    with pytest.raises(StageError, match="cola has no text"):
        _load(tmp_path / "cola")


def test_other_processes_open_the_saved_index(tmp_path: Path) -> None:
    loaded = _load(_task(tmp_path / "whisky", LONG, SHORT))
    loaded.save(tmp_path / "made" / "evaluation.npz")
    opened = EvaluationIndex.open(tmp_path / "made" / "evaluation.npz")
    assert opened.overlap(SHORT) == "whisky"
    assert opened.overlap(TINY) is None
    assert opened.fingerprint == loaded.fingerprint
    assert opened.counts == loaded.counts
    assert _load(_task(tmp_path / "whisky", LONG)).fingerprint != loaded.fingerprint


def _nothing(folder: Path) -> Path:
    return folder / "nowhere"


def _no_match(folder: Path) -> Path:
    return folder / "*.tsv"


def _train_only(folder: Path) -> Path:
    return _task(folder / "rte", LONG, name="train.jsonl")


def _broken(folder: Path) -> Path:
    (folder / "dev.jsonl").write_text('{"sentence": "cut')
    return folder


def _truncated(folder: Path) -> Path:
    _parquet(folder / "dev.parquet")
    content = (folder / "dev.parquet").read_bytes()
    (folder / "dev.parquet").write_bytes(content[: len(content) // 2])
    return folder


def _latin(folder: Path) -> Path:
    (folder / "test.txt").write_bytes("naïve".encode("latin-1"))
    return folder


def _all_short(folder: Path) -> Path:
    return _task(folder / "sst2", TINY)


def _other_kind(folder: Path) -> Path:
    (folder / "dev.xml").write_text("<a/>")
    return folder / "dev.xml"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_nothing, "nowhere.*no such file or folder"),
        (_no_match, "nothing matches this glob"),
        (_train_only, r"no file .* dev, test, valid.*there is train.jsonl.*decontamination.files"),
        (_broken, r"dev.jsonl: line 1 is not JSON .*fetch it again"),
        (_truncated, r"dev.parquet cannot be read .*damaged"),
        (_latin, r"test.txt: line 1 is not UTF-8.*iconv"),
        (_all_short, "no text of sst2 has 8 words: lower min_words"),
        (_other_kind, "dev.xml: evaluation data is read from .parquet"),
    ],
)
def test_unreadable_files_are_refused_by_name(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(StageError, match=message):
        _load(make(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": ["x"], "min_words": 14}, "min_words 14 is above words 13"),
        ({"tasks": ["x"], "files": ["dev_matched"]}, "files.0"),
    ],
)
def test_impossible_recipes_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Decontamination.of(values)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
def test_an_article_with_a_paragraph_of_squad_is_found() -> None:
    """The files contain no article of SQuAD, so the test adds some; other articles share phrases with SQuAD."""
    evaluation = _load(DATA / "squad", DATA / "glue" / "rte", DATA / "glue" / "mrpc")
    table = pq.read_table(DATA / "corpus" / "wikipedia_en-00000-of-00008.parquet", columns=["text"])
    articles = table.column("text").to_pylist()[:300]
    squad = json.loads((DATA / "squad" / "dev-v1.1.json").read_text(encoding="utf-8"))["data"]
    contexts = [paragraph["context"] for article in squad for paragraph in article["paragraphs"]]
    found = [evaluation.overlap(article) for article in articles]
    assert set(found) <= {None, "squad"}
    assert sum(task is not None for task in found) <= 15
    planted = [
        f"{article[:500]}\n{context}\n{article[500:]}"
        for article, context in zip(articles, contexts[::7], strict=False)
    ]
    assert {evaluation.overlap(text) for text in planted} == {"squad"}
