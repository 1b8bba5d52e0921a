"""Text sources to cleaned, deduplicated documents in Parquet shards.

::

    python -m cluster.corpus RECIPE --out DIR

    documents-00000.parquet    source: dictionary<string>    text: large_string

Texts are UTF-8 in NFC without control characters; none is empty, none is there twice. Documents pass through one at
a time: a corpus needs about a hundred bytes of memory per document, whatever its size. The same input gives the same
shards, byte for byte.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveInt

from cluster import stage, telemetry
from cluster.recipe import Recipe
from cluster.sources import AnySource, Document, read

SOURCE, TEXT = "source", "text"
SHARDS = "documents-*.parquet"
SCHEMA = pa.schema([pa.field(SOURCE, pa.dictionary(pa.int32(), pa.string())), pa.field(TEXT, pa.large_string())])

ROW_GROUP_BYTES = 2**22

# Control characters (newline stays), lone surrogates, which UTF-8 cannot hold, and the byte order mark.
_UNWANTED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufeff]")


class Corpus(Recipe):
    """Which texts make up a corpus, and how they are cut into files."""

    sources: Annotated[tuple[AnySource, ...], Field(min_length=1)]
    min_characters: NonNegativeInt = 0  # shorter documents are dropped
    shard_bytes: PositiveInt = 64_000_000  # of text; a shard is also the unit of work of the next stage


def clean(text: str) -> str:
    """NFC, Unix line ends, blanks for tabs, no control characters, no white space around it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    return unicodedata.normalize("NFC", _UNWANTED.sub("", text)).strip()


def run(recipe: Corpus, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Write the shards; facts count documents and bytes by label, and everything dropped by reason.

    Raises:
        StageError: a source cannot be read, or no document is left.
    """
    for left in out.glob(SHARDS):  # by an interrupted attempt; reading is quick, so it starts again
        left.unlink()
    kept, num_bytes, dropped = Counter[str](), Counter[str](), Counter[str]()
    with Shards(out, recipe.shard_bytes) as shards, telemetry.Progress("corpus", 0, "documents") as shown:
        for document in _documents(recipe, dropped):
            size = shards.add(document)
            kept[document.source] += 1
            num_bytes[document.source] += size
            shown.advance()
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise stage.StageError(f"the corpus is empty (dropped: {reasons or 'nothing'}): give sources with text")
    return {
        "documents": kept.total(),
        "bytes": num_bytes.total(),
        "shards": shards.count,
        "sources": {label: {"documents": kept[label], "bytes": num_bytes[label]} for label in sorted(kept)},
        "dropped": dict(dropped),
    }


def _documents(recipe: Corpus, dropped: Counter[str]) -> Iterator[Document]:
    """Cleaned documents of all sources, each text once, within the limits of each source."""
    seen: set[bytes] = set()
    for source in recipe.sources:
        taken = taken_bytes = 0
        for document in read(source, dropped):
            text = clean(document.text)
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if reason := _reason_to_drop(text, digest in seen, recipe.min_characters):
                dropped[reason] += 1
                continue
            taken_bytes += len(text.encode())
            if source.max_bytes is not None and taken_bytes > source.max_bytes:
                break
            seen.add(digest)
            yield Document(document.source, text)
            taken += 1
            if taken == source.limit:
                break


def _reason_to_drop(text: str, repeated: bool, min_characters: int) -> str | None:
    if not text:
        return "empty"
    if len(text) < min_characters:
        return "short"
    return "repeated" if repeated else None


class Shards:
    """Parquet files filled one after the other, a new one where a document would exceed the budget of text."""

    def __init__(self, out: Path, shard_bytes: int) -> None:
        self.count = 0
        self._out, self._shard_bytes = out, shard_bytes
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[Document] = []
        self._waiting_bytes = self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._close()

    def add(self, document: Document) -> int:
        """Append a document; returns the UTF-8 bytes of its text."""
        size = len(document.text.encode())
        if self._bytes and self._bytes + size > self._shard_bytes:
            self._flush()
            self._close()
        self._waiting.append(document)
        self._waiting_bytes += size
        self._bytes += size
        if self._waiting_bytes >= ROW_GROUP_BYTES:
            self._flush()
        return size

    def _flush(self) -> None:
        if not self._waiting:
            return
        if self._writer is None:
            path = self._out / f"documents-{self.count:05}.parquet"
            self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=[SOURCE])
            self.count += 1
        labels = pa.array([document.source for document in self._waiting], pa.string()).dictionary_encode()
        texts = pa.array([document.text for document in self._waiting], pa.large_string())
        self._writer.write_table(pa.table([labels, texts], schema=SCHEMA))
        self._waiting, self._waiting_bytes = [], 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0


STAGE = stage.Stage(run=run, recipe=Corpus, produces="corpus")

if __name__ == "__main__":
    stage.main(STAGE)
