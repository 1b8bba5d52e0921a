"""From documents to token rows: against the tokenizer alone and the usual tools, on one and two actors, and 1 GB.

The text is Wikipedia with BERT's vocabulary if it is next to the checkout, else prose of installed packages with a
vocabulary trained on it.
"""

import json
import os
import pickle
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import paths
import psutil
import transformers
from benchmark_runner import Row, Spread, not_measured, quick, ratios
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from cluster.actors.ray_cluster import connect
from cluster.artifacts import artifact, stage
from cluster.corpus import shard_writer
from cluster.corpus import stage as corpus_stage
from cluster.tokens import stage as tokens_stage
from cluster.tokens.fast_encoder import Encoder, load_encoder
from cluster.tokens.packing import Packing
from cluster.tokens.shard_tokenizer import ShardTask, read_texts, tokenize
from cluster.tokens.tokenizer import special_ids, train_wordpiece, vocabulary_size

DATA = paths.DATA
_ROUNDS = 3
_ARTICLES = ("wikipedia_en-00000*", "wikipedia_en-0000[0-3]*")[not quick()]
_SHARD_BYTES = 8_000_000
_SLOW_BYTES = 2_000_000 if quick() else 6_000_000
_SYNTHETIC_BYTES = 20_000_000 if quick() else 1_000_000_000
_HELDOUT = 0.01
_SEQ_LEN = 128


@dataclass(frozen=True)
class Text:
    """A corpus and a tokenizer to measure with."""

    folder: Path
    what: str

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def shards(self) -> list[Path]:
        return sorted(self.corpus.glob(shard_writer.SHARDS))

    @property
    def bytes(self) -> int:
        return int(artifact.read(self.corpus).facts["bytes"])


def rows() -> Iterator[Row]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()  # texts are longer than a model's rows
    with tempfile.TemporaryDirectory() as folder, connect(2):
        text = _text(Path(folder))
        yield _against_raw(text)
        ours = {actors: _stage(text, actors) for actors in (2, 1)}
        yield _two_actors(text, ours)
        yield _against_datasets(text, ours[2])
        yield _against_pickle(text, ours[2])
        yield from _a_gigabyte(Path(folder), text)


def _text(folder: Path) -> Text:
    real = DATA.exists()
    path = str(DATA / "corpus" / _ARTICLES)
    source = {"kind": "parquet", "path": path} if real else {"kind": "installed-docs"}
    recipe = corpus_stage.Corpus.of({"sources": [source], "shard_bytes": _SHARD_BYTES})
    stage.execute(corpus_stage.STAGE, recipe, {}, folder / "corpus")
    if real:
        shutil.copytree(DATA / "models" / "bert-base-uncased", folder / "tokenizer")
    else:
        groups = partial(_groups, sorted((folder / "corpus").glob(shard_writer.SHARDS)))
        train_wordpiece(groups, vocab_size=30_522, lowercase=True, min_frequency=2).save_pretrained(
            folder / "tokenizer"
        )
    found = Text(folder, "")
    name = "Wikipedia articles" if real else "prose of installed packages"
    return Text(folder, f"{found.bytes / 1e6:,.0f} MB of {name} in {len(found.shards)} shards")


def _groups(shards: list[Path]) -> Iterator[list[str]]:
    for shard in shards:
        yield from read_texts(shard)


def _against_raw(text: Text) -> Row:
    """Alternate shard by shard between the work of an actor and the library's fastest call on the same documents."""
    tokenizer = load_encoder(text.tokenizer / "tokenizer.json")
    whole = AutoTokenizer.from_pretrained(text.tokenizer)
    special, vocab_size = special_ids(whole), vocabulary_size(whole)
    packing = Packing(_SEQ_LEN, vocab_size, special.cls, special.sep, special.all)
    encoder = Encoder(load_encoder(text.tokenizer / "tokenizer.json"), vocab_size)
    out = text.folder / "one"
    ours, raw = [], []
    for number, source in enumerate(text.shards):
        groups = list(read_texts(source))
        size = sum(len(document.encode()) for group in groups for document in group)
        raw.append(size / _seconds(lambda groups=groups: _encode_raw(tokenizer, groups)))
        shard = ShardTask(source, number, out, out / "work", packing, _HELDOUT)
        ours.append(size / _seconds(lambda shard=shard: tokenize(shard, encoder.encode)))
    shutil.rmtree(out)
    found = ratios(ours, raw)
    return Row(
        "tokenize_vs_raw",
        found.median,
        "x",
        f"one core, {text.what}, shard by shard in turns: Parquet read, encoded, packed in rows of {_SEQ_LEN}, "
        f"counted and written {_mb(ours)}, against encode_batch_fast alone on the same documents in memory {_mb(raw)}: "
        f"{found}; the first shard, with no word known yet: {found.values[0]:.3g}",
    )


def _encode_raw(tokenizer: Tokenizer, groups: list[list[str]]) -> None:
    for group in groups:
        tokenizer.encode_batch_fast(group, add_special_tokens=False)


def _stage(text: Text, actors: int) -> Spread:
    """Bytes per second of the whole stage, including the start of its actors, on a running Ray cluster."""
    recipe = tokens_stage.Tokens.of({"seq_len": _SEQ_LEN, "heldout": _HELDOUT, "placement": {"actors": actors}})
    inputs = {"corpus": text.corpus, "tokenizer": text.tokenizer}
    found = []
    for number in range(_ROUNDS):
        out = text.folder / f"tokens-{actors}-{number}"
        found.append(text.bytes / _seconds(partial(stage.execute, tokens_stage.STAGE, recipe, inputs, out)))
        shutil.rmtree(out)
    return Spread(tuple(found))


def _two_actors(text: Text, ours: dict[int, Spread]) -> Row:
    found = ratios(ours[2].values, ours[1].values)
    return Row(
        "tokenize_two_actors_vs_one",
        found.median,
        "x",
        f"the whole stage on {text.what}, {_ROUNDS} times each: two actors {_mb(ours[2].values)}, one "
        f"{_mb(ours[1].values)}, their start, hashing what was written and the manifest included: {found}; 2 is linear",
    )


def _against_datasets(text: Text, ours: Spread) -> Row:
    """``datasets.map(tokenizer, batched=True, num_proc=2)``, which leaves ragged rows and masks in Arrow files."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(text.tokenizer)
    found = []
    for number in range(_ROUNDS):
        cache = text.folder / f"datasets-{number}"
        loaded: Any = datasets.load_dataset(
            "parquet", data_files=[str(path) for path in text.shards], split="train", cache_dir=str(cache)
        )
        mapped = partial(loaded.map, lambda batch: tokenizer(batch["text"]), batched=True, num_proc=2)
        found.append(text.bytes / _seconds(partial(mapped, remove_columns=loaded.column_names)))
        shutil.rmtree(cache)
    ratio = ratios(ours.values, found)
    return Row(
        "tokenize_vs_datasets_map",
        ratio.median,
        "x",
        f"{text.what}, two processes each: the whole stage {_mb(ours.values)}, against datasets.map(tokenizer, "
        f"batched=True, num_proc=2) {_mb(found)}, whose loading of the Parquet files is not counted: {ratio}",
    )


def _against_pickle(text: Text, ours: Spread) -> Row:
    """One process, one text at a time, all rows pickled at the end (original code, ``scripts/binarized_data.py``)."""
    texts = _first(text, _SLOW_BYTES)
    today = AutoTokenizer.from_pretrained(text.tokenizer)
    names = json.loads((text.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    (text.folder / "vocab.txt").write_text("\n".join(sorted(names, key=names.__getitem__)) + "\n")
    then = BertTokenizerLegacy(str(text.folder / "vocab.txt"))
    rates = [_pickled(text.folder, tokenizer, texts, share) for tokenizer, share in ((today, 1), (then, 8))]
    usual, original = (ours.median / rate for rate in rates)
    return Row(
        "tokenize_vs_pickle",
        usual,
        "x",
        f"the whole stage with two actors {_mb(ours.values)}, against one process that encodes text by text and "
        f"pickles them all, on {_SLOW_BYTES / 1e6:.0f} MB: {rates[0] / 1e6:.3g} MB/s with the tokenizer transformers "
        f"has today; {rates[1] / 1e6:.3g} MB/s ({original:.3g} times slower than ours) with the one in Python that "
        "the original had",
    )


def _pickled(folder: Path, tokenizer: Any, texts: list[str], share: int) -> float:
    """Bytes per second, on a share of the texts."""
    texts = texts[: max(1, len(texts) // share)]

    def work() -> None:
        found = [tokenizer.encode(f"[CLS] {text.strip()} [SEP]", add_special_tokens=False) for text in texts]
        arrays = [np.array(ids, np.uint16) for ids in found]
        random.shuffle(arrays)
        with (folder / "usual.pickle").open("wb") as file:
            pickle.dump(arrays, file, protocol=pickle.HIGHEST_PROTOCOL)

    return sum(len(text.encode()) for text in texts) / statistics.median(_seconds(work) for _ in range(_ROUNDS))


def _first(text: Text, size: int) -> list[str]:
    found: list[str] = []
    for group in _groups(text.shards):
        for document in group:
            if (size := size - len(document.encode())) < 0:
                return found
            found.append(document)
    return found


def _a_gigabyte(folder: Path, text: Text) -> Iterator[Row]:
    """Lines of JSON to rows, with the peak of every process's memory."""
    if shutil.disk_usage(folder).free < 4 * _SYNTHETIC_BYTES:
        yield not_measured("corpus_to_rows_bytes_per_second", "bytes/s", "not enough room on the disk")
        return
    written = _synthetic(folder / "in", text)
    with Peaks() as corpus_peaks:
        recipe = corpus_stage.Corpus.of({"sources": [{"kind": "jsonl", "path": str(folder / "in")}]})
        cleaned = _seconds(lambda: stage.execute(corpus_stage.STAGE, recipe, {}, folder / "large"))
    with Peaks() as token_peaks:
        inputs = {"corpus": folder / "large", "tokenizer": text.tokenizer}
        settings = tokens_stage.Tokens.of({"seq_len": _SEQ_LEN, "heldout": _HELDOUT})
        made = _seconds(lambda: stage.execute(tokens_stage.STAGE, settings, inputs, folder / "rows"))
    facts = artifact.read(folder / "rows").facts
    yield Row(
        "corpus_to_rows_bytes_per_second",
        written / (cleaned + made),
        "bytes/s",
        f"{written / 1e9:.2f} GB of lines of JSON (made-up documents of the words of {text.what.partition(' in ')[0]}) "
        f"on two cores: cleaned and without repeats in {cleaned:.0f} s, {facts['tokens'] / 1e6:,.0f} M tokens in rows "
        f"in {made:.0f} s; peak memory in MiB: corpus driver {corpus_peaks.driver}, its actors {corpus_peaks.actors}; "
        f"tokens driver {token_peaks.driver}, its actors {token_peaks.actors}",
    )


def _synthetic(out: Path, text: Text) -> int:
    """Write JSON lines of random documents with real word frequencies; returns their bytes."""
    out.mkdir()
    words = np.array(" ".join(_first(text, 20_000_000)).split(" "), dtype=object)
    choice = np.random.default_rng(0)
    written = 0
    for number in range(max(1, _SYNTHETIC_BYTES // 100_000_000)):
        with (out / f"part-{number:03}.jsonl").open("w", encoding="utf-8") as file:
            left = _SYNTHETIC_BYTES // max(1, _SYNTHETIC_BYTES // 100_000_000)
            while left > 0:
                length = int(choice.lognormal(6, 1)) + 1
                line = json.dumps({"text": " ".join(words[choice.integers(0, len(words), length)])}) + "\n"
                left -= len(line)
                written += len(line)
                file.write(line)
    return written


@dataclass
class Peaks:
    """Peak resident memory of this process and of each actor of a pool inside the block, in MiB."""

    driver: int = 0
    _of_actors: dict[int, int] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    @property
    def actors(self) -> list[int]:
        return sorted(self._of_actors.values())

    def __enter__(self) -> "Peaks":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._over.wait(0.2):
            self.driver = max(self.driver, _private_mib(me))
            for child in me.children(recursive=True):
                try:
                    if any("_Host" in part for part in child.cmdline()):
                        self._of_actors[child.pid] = max(self._of_actors.get(child.pid, 0), _private_mib(child))
                except psutil.NoSuchProcess:
                    continue


def _private_mib(process: psutil.Process) -> int:
    """Resident memory without shared memory: Ray's object store and mapped files."""
    found = process.memory_info()
    return int((found.rss - found.shared) / 2**20)


def _mb(rates: Any) -> str:
    found = Spread(tuple(rate / 1e6 for rate in rates))
    return f"{found.median:.3g} MB/s"


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
