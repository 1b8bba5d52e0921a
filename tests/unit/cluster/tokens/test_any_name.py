"""Folders and files may have any name: corpus, tokens and inspection read those they are given, and never a neighbor.

A run in a plain folder says what is right. Each drawn name has a neighbor that it would match as a pattern.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny

from cluster.artifacts import artifact, stage
from cluster.artifacts.artifact import Artifact
from cluster.corpus import stage as corpus_stage
from cluster.inspect import cli as inspection
from cluster.storage import filesystem
from cluster.storage.filesystem import Location
from cluster.tokens import stage as tokens_stage

TEXTS = [f"{number} {line}" for number in range(3) for line in tiny.ENGLISH]
HARD = ("run [v1]", "star*x", "q?mark", "[!a]", "**", "-x [a-z]", "~", "$HOME", "%20 #1?b=2", "a\\[b]", ".x", " {a,b} ")
"""Names known to be hard; others are drawn."""
SPECIAL = "*?[]!{}~$#%&+=@^|\\'\"`<>()-_.,;: 0aZ"
PRINTABLE = "".join(letter for letter in map(chr, range(32, 0x3100)) if letter.isprintable() and letter != "/")


def drawn(seed: int, count: int) -> list[str]:
    """Names of all printable characters, mostly of those with a meaning somewhere."""
    choice = random.Random(seed)
    names = ("".join(choice.choice(choice.choice((SPECIAL, PRINTABLE))) for _ in range(12)) for _ in range(9 * count))
    return [name for name in names if name.strip(".") and "::" not in name][:count]


def matched(name: str) -> str:
    """Another name that this one matches as a pattern; a longer one if it is no pattern."""
    other = re.sub(
        r"\[[!^](.)[^\]]*\]|\[(.)[^\]]*\]", lambda found: found[2] or ("b" if found[1] == "a" else "a"), name
    )
    other = other.replace("?", "x").replace("*", "yy")
    return other if other != name else f"{name}2"


def write(folder: Location, name: str, texts: Sequence[str]) -> None:
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    with filesystem.writing(folder / name) as temporary:
        temporary.write_text(lines, encoding="utf-8")


def make_corpus(path: str, out: Location, **settings: Any) -> Artifact:
    recipe = corpus_stage.Corpus.of({"sources": [{"kind": "jsonl", "path": path}], **settings})
    made = stage.execute(corpus_stage.STAGE, recipe, {}, out)
    assert made is not None
    return artifact.verify(out, "corpus")


def make_tokens(corpus: Location, tokenizer: Location, out: Location) -> Artifact:
    recipe = tokens_stage.Tokens.of({"seq_len": 32, "heldout": 0.2})
    made = stage.execute(tokens_stage.STAGE, recipe, {"corpus": corpus, "tokenizer": tokenizer}, out)
    assert made is not None
    return artifact.verify(out, "tokens")


def contents(made: Artifact) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in made.files.items()}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny.wordpiece(folder)
    return folder


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> dict[str, str]:
    """Contents of the rows from a folder with a plain name."""
    folder = tmp_path_factory.mktemp("plain")
    write(folder / "in", "a.jsonl", TEXTS)
    make_corpus(str(folder / "in"), folder / "corpus")
    return contents(make_tokens(folder / "corpus", tokenizer, folder / "tokens"))


def ways(folder: Location, name: str) -> Iterator[tuple[str, str]]:
    """How to write the source, and the label that its documents get."""
    yield str(folder / "in"), "in"
    yield f"{folder}/in/*.jsonl", "in"
    yield str(folder / "in" / f"{name}.jsonl"), name


def check(root: Location, name: str, tokenizer: Path, right: dict[str, str]) -> None:
    ours, theirs = root / name, root / matched(name)
    for folder, texts in ((theirs, ["A wrong text."] * 3), (ours, TEXTS)):
        write(folder / "in", f"{name}.jsonl", texts)
        write(folder / "in", f"{matched(name)}.txt", ["Wrong kind of file."])
    visible = [way for way in ways(ours, name) if not name.startswith(".") or way[0].endswith(f"{name}.jsonl")]
    neighbor = make_corpus(str(theirs / "in" / f"{name}.jsonl"), theirs / "corpus")
    for number, (path, label) in enumerate(visible):
        made = make_corpus(path, ours / f"corpus{number}")
        assert (made.facts["read"], made.facts["documents"]) == (len(TEXTS), len(TEXTS)), path
        assert [*made.facts["sources"]] == [label], path
        assert [entry["name"] for entry in made.facts["files"]] == [f"{name}.jsonl"], path
        assert inspection.look(made.location, 2, verify=True).headline.startswith(f"corpus of {len(TEXTS)}")
    rows = make_tokens(made.location, tokenizer, ours / "tokens")
    assert contents(rows) == right
    assert inspection.look(rows.location, 2, verify=True).title.startswith("tokens")
    assert artifact.verify(theirs / "corpus") == neighbor
    there = {entry.split("/")[0] for entry in filesystem.listing(ours)}
    assert there == {"in", "tokens", *(f"corpus{number}" for number in range(len(visible)))}


def test_names_that_are_patterns_are_names(root: Location, tokenizer: Path, right: dict[str, str]) -> None:
    check(root, HARD[0], tokenizer, right)


def test_any_name_is_a_name_in_a_folder(tmp_path: Path, tokenizer: Path, right: dict[str, str]) -> None:
    for name in [*HARD, *drawn(0, 20)]:
        check(tmp_path / "any", name, tokenizer, right)


@pytest.mark.long
@pytest.mark.usefixtures("bucket")
def test_any_name_is_a_name_in_a_store(tokenizer: Path, right: dict[str, str]) -> None:
    for name in [*HARD[1::2], *drawn(1, 4)]:
        check(filesystem.location("s3://barrel/any"), name, tokenizer, right)


def test_another_recipe_after_an_interruption_leaves_the_neighbor_alone(root: Location) -> None:
    texts = [f"Text {number} {'x' * number}" for number in range(100)]
    for name in ("runv", "run[v1]"):
        write(root / name, "a.jsonl", texts)
    neighbor = make_corpus(str(root / "runv" / "a.jsonl"), root / "runv" / "corpus")
    path, out = str(root / "run[v1]" / "a.jsonl"), root / "run[v1]" / "corpus"
    make_corpus(path, out)
    # An attempt that was killed at its end: everything is there but the manifest.
    filesystem.remove(out / "manifest.json")
    if isinstance(out, Path):
        out.rename(out.with_name(".corpus.partial"))
    draft = {"kind": "corpus", "inputs": {}, "recipe": {**neighbor.recipe, "shard_bytes": 1}}
    filesystem.write_json((out.with_name(".corpus.partial") if isinstance(out, Path) else out) / ".draft.json", draft)
    made = make_corpus(path, out, cleaning={"min_characters": 60})
    assert made.facts["documents"] == sum(len(text) >= 60 for text in texts)
    assert [*filesystem.listing(out)] == ["documents-00000.parquet", "manifest.json"]
    assert artifact.verify(root / "runv" / "corpus") == neighbor
