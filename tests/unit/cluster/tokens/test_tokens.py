"""Token rows: packed as defined, the same on any number of actors, resumable; errors name the reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paths
import pyarrow.parquet as pq
import pytest
import tiny
import tiny_pipeline
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cluster.artifacts import artifact, cli, commit, errors, stage
from cluster.corpus import shard_writer
from cluster.corpus import stage as corpus_stage
from cluster.tokens import rows
from cluster.tokens.heldout import automatic_share, is_heldout
from cluster.tokens.packing import Packing, RowPacker
from cluster.tokens.stage import STAGE, WORK, Tokens
from cluster.tokens.tokenizer import SPECIAL_TOKENS, vocabulary_digest

SEQ_LEN = 32
SHARE = 0.2

pytestmark = pytest.mark.usefixtures("ray_of_three_cpus")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 384 documents in several shards; some name special tokens."""
    folder = tmp_path_factory.mktemp("texts")
    lines = [f"{number} {line} [SEP] and [MASK] are words." for number in range(8) for line in tiny.ENGLISH]
    return _corpus(folder, lines, shard_bytes=9_000)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    tiny.wordpiece(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, texts: Path, bert: Path) -> artifact.Artifact:
    return _make(tmp_path_factory.mktemp("made") / "tokens", texts, bert)


def _corpus(folder: Path, lines: list[str], shard_bytes: int = 10**6) -> Path:
    (folder / "in.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    recipe = corpus_stage.Corpus.of(
        {"sources": [{"kind": "jsonl", "path": str(folder / "in.jsonl")}], "shard_bytes": shard_bytes}
    )
    assert stage.execute(corpus_stage.STAGE, recipe, {}, folder / "corpus") is not None
    return folder / "corpus"


def _make(out: Path, texts: Path, given: Path | None = None, **settings: Any) -> artifact.Artifact:
    recipe = Tokens.of({"seq_len": SEQ_LEN, "heldout": SHARE, **settings})
    inputs = {"corpus": texts} | ({"tokenizer": given} if given else {})
    made = stage.execute(STAGE, recipe, inputs, out)
    assert made is not None
    return made


def _all_rows(found: rows.Rows) -> Any:
    return found.take(np.arange(len(found)))


def _contents(made: artifact.Artifact) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in made.manifest["files"].items()}


def _streams(texts: Path, folder: Path, part: str) -> list[list[int]]:
    """Tokens of one part by shard; [SEP], which is 3, follows each document."""
    encoder = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    found: list[list[int]] = []
    for path in sorted(texts.glob(shard_writer.SHARDS)):
        kept = [
            text for text in pq.read_table(path)["text"].to_pylist() if is_heldout(text, SHARE) == (part == "heldout")
        ]
        found.append([])
        for text in kept:
            found[-1] += [*encoder.encode(text, add_special_tokens=False).ids, 3]
    return found


def _naive(texts: Path, folder: Path, part: str) -> list[list[int]]:
    """Rows of one part by the definition, token by token; [CLS] is 2."""
    found: list[list[int]] = []
    for stream in _streams(texts, folder, part):
        row = [2]
        for token in stream:
            row.append(token)
            if len(row) == SEQ_LEN:
                found.append(row)
                row = [2]
    return found


@pytest.mark.parametrize("part", [rows.TRAIN, rows.HELDOUT])
def test_rows_are_those_of_the_definition(made: artifact.Artifact, texts: Path, bert: Path, part: str) -> None:
    found = rows.open_tokens(made.path)
    expected = _naive(texts, bert, part)
    assert len(expected) > 20
    np.testing.assert_array_equal(_all_rows(getattr(found, part)), expected)
    assert made.facts[f"{part}_rows"] == len(expected)


def test_rows_are_full_begin_with_cls_and_know_no_mask(made: artifact.Artifact) -> None:
    found = rows.open_tokens(made.path)
    for part in (found.train, found.heldout):
        whole = _all_rows(part)
        assert whole.shape[1] == found.seq_len == SEQ_LEN
        assert (whole[:, 0] == made.facts["cls_id"]).all()
        assert not np.isin(whole[:, 1:], [made.facts["cls_id"], made.facts["mask_id"], made.facts["pad_id"]]).any()
        assert whole.max() < found.vocab_size


def test_facts_and_counts_describe_the_rows(made: artifact.Artifact, texts: Path) -> None:
    found, facts = rows.open_tokens(made.path), made.facts
    np.testing.assert_array_equal(
        found.counts, np.bincount(_all_rows(found.train).reshape(-1), minlength=facts["vocab_size"])
    )
    assert found.counts.dtype == np.int64
    assert facts["tokens"] == (len(found.train) + len(found.heldout)) * SEQ_LEN
    assert facts["documents"] == artifact.read(texts, "corpus").facts["documents"]
    assert 0.1 < facts["heldout_documents"] / facts["documents"] < 0.3
    given = sum(len(stream) for part in (rows.TRAIN, rows.HELDOUT) for stream in _streams(texts, made.path, part))
    assert facts["tokens"] // SEQ_LEN * (SEQ_LEN - 1) + facts["dropped"]["tail_tokens"] == given
    assert facts["special_ids"] == [0, 1, 2, 3, 4]


def test_the_artifact_is_a_tokenizer_folder_with_the_same_vocabulary(made: artifact.Artifact, bert: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    assert tokenizer.tokenize("The mill by the river") == AutoTokenizer.from_pretrained(bert).tokenize(
        "The mill by the river"
    )
    assert vocabulary_digest(tokenizer) == made.facts["vocabulary"]
    assert len(tokenizer) == made.facts["vocab_size"]


@pytest.mark.parametrize("actors", [1, 2, 3])
def test_rows_are_the_same_bytes_on_any_number_of_actors(
    tmp_path: Path, made: artifact.Artifact, texts: Path, bert: Path, actors: int
) -> None:
    assert len(list(texts.glob(shard_writer.SHARDS))) > 3
    again = _make(tmp_path / "tokens", texts, bert, placement={"actors": actors})
    assert _contents(again) == _contents(made)
    assert again.identity == made.identity


def test_a_small_corpus_holds_out_what_fills_a_row(tmp_path: Path, bert: Path) -> None:
    """Seventeen short files, as everybody tries first, train and validate with the defaults."""
    made = _make(
        tmp_path / "tokens",
        _corpus(tmp_path, [f"{n} {line}" for n, line in enumerate(tiny.ENGLISH[:17])]),
        bert,
        heldout="auto",
    )
    assert made.facts["heldout_rows"] >= 1
    assert made.facts["train_rows"] >= 1
    assert 1 <= made.facts["heldout_documents"] <= 8
    assert 0 < made.facts["heldout_share"] < 1


def test_the_automatic_share_falls_with_the_size_of_the_corpus() -> None:
    texts = [f"document {number} " + "word " * 100 for number in range(2000)]
    shares = [automatic_share(texts[:count], count, 128) for count in (2, 20, 200, 2000)]
    assert shares == sorted(shares, reverse=True)
    for count, share in zip((2, 20, 200, 2000), shares, strict=True):
        assert 1 <= sum(is_heldout(text, share) for text in texts[:count]) <= count / 2
    assert automatic_share([], 10_000, 128) == 0.01, "a large corpus is not read"
    with pytest.raises(errors.StageError, match=r'one document.*documents = "paragraph"'):
        automatic_share(texts[:1], 1, 128)


def test_the_share_of_heldout_documents_is_the_one_asked_for() -> None:
    assert 0.18 < sum(is_heldout(f"document {number}", 0.2) for number in range(10_000)) / 10_000 < 0.22


def test_an_interrupted_attempt_goes_on_with_the_shards_that_are_missing(
    tmp_path: Path, made: artifact.Artifact, texts: Path, bert: Path
) -> None:
    last = sorted(texts.glob(shard_writer.SHARDS))[-1]
    whole = last.read_bytes()
    last.write_bytes(bytes(len(whole)))
    try:
        with pytest.raises(errors.StageError, match=last.name):
            _make(tmp_path / "tokens", texts, bert, placement={"actors": 1})
    finally:
        last.write_bytes(whole)
    staging = tmp_path / ".tokens.partial"
    written = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.arrow")}
    assert len(list((staging / WORK).glob("0*.json"))) == len(list(texts.glob(shard_writer.SHARDS))) - 1
    resumed = _make(tmp_path / "tokens", texts, bert, placement={"actors": 2})
    assert _contents(resumed) == _contents(made)
    assert {name: (resumed.path / name).stat().st_mtime_ns for name in written} == written


def test_roberta_tokenizers_bring_their_own_special_tokens(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "roberta").mkdir()
    tokenizer = tiny.byte_level(tmp_path / "roberta")
    found = _make(tmp_path / "tokens", texts, tmp_path / "roberta")
    assert found.facts["cls_id"] == tokenizer.convert_tokens_to_ids("<s>") == 0
    assert found.facts["sep_id"] == tokenizer.convert_tokens_to_ids("</s>")
    assert found.facts["mask_id"] == tokenizer.convert_tokens_to_ids("<mask>")
    assert found.facts["vocabulary"] == vocabulary_digest(tokenizer)
    train = _all_rows(rows.open_tokens(found.path).train)
    assert (train[:, 0] == 0).all()
    assert tiny.ENGLISH[0].split()[1] in tokenizer.decode(train.reshape(-1))


@pytest.mark.long
def test_a_trained_vocabulary_is_the_same_in_every_process_and_has_berts_order(tmp_path: Path, texts: Path) -> None:
    here = _make(tmp_path / "here", texts, tokenizer={"kind": "wordpiece", "vocab_size": 400})
    settings = ["seq_len=32", "heldout=0.2", "tokenizer.kind=wordpiece", "tokenizer.vocab_size=400"]
    done = _command("default", texts, tmp_path / "there", *(word for value in settings for word in ("--set", value)))
    assert done.returncode == 0, done.stderr
    assert _contents(artifact.read(tmp_path / "there", "tokens")) == _contents(here)
    tokenizer = AutoTokenizer.from_pretrained(here.path)
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert len(tokenizer) == here.facts["vocab_size"] == 400
    assert tokenizer.tokenize("THE") == ["the"]
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


def _command(recipe: str, texts: Path, out: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.tokens", recipe, "--corpus", str(texts), "--out", str(out), *more]
    return subprocess.run(
        command, env=tiny_pipeline.environment(**environment), capture_output=True, text=True, check=False
    )


def test_a_cluster_that_does_not_answer_ends_in_one_line(tmp_path: Path, texts: Path, bert: Path) -> None:
    more = ("--tokenizer", str(bert), "--set", "heldout=0.2")
    done = _command("default", texts, tmp_path / "tokens", *more, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_rows_of_mostly_unknown_words_are_dropped_and_counted() -> None:
    stream = RowPacker(Packing(seq_len=9, vocab_size=20, cls_id=2, sep_id=3, special_ids=(0, 1, 2, 3, 4)))
    words, unknown, half = [10] * 7, [1] * 7, [10, 11, 12, 13, 1, 1, 1, 10]  # with [CLS] 4 of 9 are special
    found = stream.add([np.array(ids, np.uint16).tobytes() for ids in (words, unknown, half, [12])])
    np.testing.assert_array_equal(found, [[2, *[10] * 7, 3], [2, 10, 11, 12, 13, 1, 1, 1, 10]])
    assert stream.special_rows == 1
    assert stream.tail_tokens == 3
    assert stream.add([]).shape == (0, 9)


def test_a_stream_has_the_same_rows_in_whatever_pieces_it_comes() -> None:
    packing = Packing(seq_len=9, vocab_size=70_000, cls_id=2, sep_id=3, special_ids=(0, 1, 2, 3, 4))
    draw = np.random.default_rng(0)
    documents = [draw.integers(5, 70_000, draw.integers(0, 30), dtype=np.uint32).tobytes() for _ in range(50)]
    at_once, stream = RowPacker(packing), RowPacker(packing)
    expected = at_once.add(documents)
    assert len(expected) > 50
    np.testing.assert_array_equal(np.concatenate([stream.add([document]) for document in documents]), expected)
    assert stream.tail_tokens == at_once.tail_tokens


def _without_mask(folder: Path) -> Path:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "the": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "lacking")
    return folder / "lacking"


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ([], "", "no tokenizer: give --tokenizer DIR, or a table [tokenizer]"),
        (["tokenizer.kind=wordpiece"], "bert", "two tokenizers: leave out either"),
        ([], "lacking", "has no mask_token"),
        ([], "empty", "no tokenizer at"),
        (["tokenizer.kind=wordpiece", "tokenizer.vocab_size=30"], "", "set 80 or more"),
        (["heldout=1e-9"], "bert", "the 0 heldout documents fill no row of 32 tokens"),
        (["heldout=0.999999"], "bert", "train documents fill no row of 32 tokens"),
        (["heldout=1.0"], "bert", "heldout: input should be 'auto' or less than 1"),
        (["placement.actors=0"], "bert", "placement.actors"),
        (["max_bad_share=2"], "bert", "max_bad_share: input should be less than or equal to 1"),
    ],
)
def test_invalid_inputs_of_tokens_are_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    texts: Path,
    bert: Path,
    settings: list[str],
    given: str,
    expected: str,
) -> None:
    (tmp_path / "empty").mkdir()
    folders = {"bert": bert, "lacking": _without_mask(tmp_path), "empty": tmp_path / "empty"}
    arguments = ["default", "--corpus", str(texts), "--out", str(tmp_path / "out"), "--set", f"seq_len={SEQ_LEN}"]
    arguments += [word for setting in settings for word in ("--set", setting)]
    arguments += ["--tokenizer", str(folders[given])] if given else []
    with pytest.raises(SystemExit) as exit_code:
        cli.main(STAGE.name, arguments)
    *progress, error = capsys.readouterr().err.splitlines()
    assert exit_code.value.code == 1
    assert error.startswith("error: ")
    assert expected in error
    assert all(line.startswith(("tokens: ", "characters: ", "vocabulary: ")) for line in progress)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path, bert: Path) -> None:
    with pytest.raises(commit.ArtifactError, match="corpus"):
        _make(tmp_path / "out", bert, bert)


def _failing(folder: Path) -> Path:
    """A tokenizer without a token for unknown words, which fails on them."""
    words = {word for line in tiny.ENGLISH for word in line.split()}
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    known = {word: number for number, word in enumerate([*names.values(), *sorted(words)])}
    core = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder / "failing")
    return folder / "failing"


@pytest.mark.long
def test_documents_on_which_the_tokenizer_fails_are_counted_and_the_others_are_not_touched(tmp_path: Path) -> None:
    tokenizer = _failing(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    good = [f"{line} {other}" for line in tiny.ENGLISH for other in tiny.ENGLISH[:4]]
    bad = [f"{line} unheard-of" for line in tiny.ENGLISH[:12]]
    expected = _make(tmp_path / "expected", _corpus(tmp_path / "good", good), tokenizer)
    texts = _corpus(tmp_path / "bad", [*bad[:1], *good, *bad[1:]])
    found = _make(tmp_path / "found", texts, tokenizer, max_bad_share=0.1)
    assert found.facts["dropped"]["failed_documents"] == 12
    assert found.facts["failed"]["reasons"] == {"tokenizer fails": 12}
    assert found.facts["failed"]["examples"][0]["text"] == bad[0][:40]
    assert found.facts["documents"] == len(good)
    assert _contents(found) == _contents(expected)
    with pytest.raises(errors.StageError, match=r"fails on 12 of 204 documents .*max_bad_share = 0.05") as refused:
        _make(tmp_path / "refused", texts, tokenizer, max_bad_share=0.05)
    assert bad[0][:40] in str(refused.value)


@pytest.mark.long
def test_a_document_that_kills_the_process_is_counted_and_the_others_are_not_touched(
    tmp_path: Path, bert: Path
) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    lines = [f"{number} {line}" for number in range(4) for line in tiny.ENGLISH]
    expected = _make(tmp_path / "expected", _corpus(tmp_path / "good", lines, shard_bytes=2_000), bert)
    texts = _corpus(tmp_path / "bad", [*lines, "kill the encoder"], shard_bytes=2_000)
    command = ["default", texts, tmp_path / "found", "--tokenizer", bert, "--set", f"seq_len={SEQ_LEN}"]
    arguments = [*map(str, command[3:]), "--set", f"heldout={SHARE}", "--set", "max_bad_share=0.02"]
    deadly = paths.SUPPORT / "patch_encoder_that_kills"
    done = _command("default", texts, tmp_path / "found", *arguments, PYTHONPATH=str(deadly))
    assert done.returncode == 0, done.stderr
    found = artifact.read(tmp_path / "found", "tokens")
    assert found.facts["dropped"]["failed_documents"] == 1
    assert found.facts["failed"]["reasons"] == {"tokenizer dies": 1}
    assert found.facts["failed"]["examples"][0]["text"] == "kill the encoder"
    assert _contents(found) == _contents(expected)
    assert "a worker at documents-" in done.stderr


def test_actors_read_and_write_in_folders_with_the_names_of_patterns(tmp_path: Path, texts: Path, bert: Path) -> None:
    expected = _contents(_make(tmp_path / "tokens", texts, bert))
    (tmp_path / "run v").mkdir()
    (tmp_path / "run [v1]*?").mkdir()
    _corpus(tmp_path / "run v", ["A wrong text."])
    lines = [f"{number} {line} [SEP] and [MASK] are words." for number in range(8) for line in tiny.ENGLISH]
    ours = _corpus(tmp_path / "run [v1]*?", lines, shard_bytes=9_000)
    assert _contents(_make(ours.parent / "tokens", ours, bert)) == expected
