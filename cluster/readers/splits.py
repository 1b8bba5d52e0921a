"""What is read of the sources, cut into pieces of about the same size: the units of work of a corpus.

A piece is a run of spans. A span is a file, or a range of one that can be read from the middle (lines that are not
compressed, row groups of Parquet); small files go together into a piece. The cuts depend on the names and sizes of the
files alone, so nothing is opened for them, and every attempt at a corpus makes the same ones.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.artifacts.errors import StageError
from cluster.readers import docstrings, hub_datasets
from cluster.readers.source_recipes import (
    CODECS,
    AnyFiles,
    AnySource,
    Arrow,
    Hub,
    InstalledDocs,
    Parquet,
    WikiExtractor,
    fixed_part,
)
from cluster.storage import filesystem
from cluster.storage.filesystem import FileInfo

PIECE_BYTES = 2**26
"""Text in a piece, about: an actor takes seconds to minutes for it, whatever is asked of the documents."""

COMPRESSION = 3
"""Bytes of text in a byte of Parquet or of a compressed file, about."""


@dataclass(frozen=True)
class Span:
    """A part of one file of a source, or all of it."""

    source: int
    """Which of the recipe's sources."""
    place: str
    """The file; of a hub source the data set, of installed docs nothing."""
    name: str
    """The file's name below the source's path."""
    start: int
    end: int
    """Bytes of the file; shards of a hub source, which has as many as it has files."""
    stamp: str
    """What changes when the contents do; of a hub data set its commit."""
    size: int
    """Bytes of the whole file."""


@dataclass(frozen=True)
class Split:
    """What an actor reads in one go."""

    number: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        first, *others = self.spans
        return f"{first.place or first.name}{f' and {len(others)} more' if others else ''}"

    @property
    def size(self) -> int:
        return sum(span.end - span.start for span in self.spans if span.size)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"number": self.number, "spans": [asdict(span) for span in self.spans]}


def cut(sources: Sequence[AnySource]) -> list[Split]:
    """The pieces of all sources, in order.

    Raises:
        StageError: nothing at a path, an unknown package, or a data set that cannot be found.
    """
    spans = (span for number, source in enumerate(sources) for span in _spans(number, source))
    return [Split(number, together) for number, together in enumerate(_grouped(spans))]


def _spans(number: int, source: AnySource) -> Iterator[tuple[Span, int]]:
    """Spans, and how much text is in each, about; where nobody knows, a piece full of it."""
    if isinstance(source, InstalledDocs):
        stamp = docstrings.stamp(source.packages)
        yield Span(number, "", source.kind, 0, 1, stamp, 0), PIECE_BYTES
    elif isinstance(source, Hub):
        found = hub_datasets.find(source)
        for shard in range(found.shards):
            name = f"{source.split} {shard + 1} of {found.shards}"
            yield Span(number, found.place, name, shard, shard + 1, found.stamp, 0), PIECE_BYTES
    else:
        start = len(filesystem.location(fixed_part(source.path)).as_posix().rstrip("/")) + 1
        for info in _files(source):
            name = info.location.as_posix()[start:] or info.location.name
            for begin, end, text in _ranges(source, info):
                span = Span(number, str(info.location), name, begin, end, info.stamp, info.bytes)
                yield span, min(text, source.max_bytes or text)


def _ranges(source: AnyFiles, info: FileInfo) -> Iterator[tuple[int, int, int]]:
    """Start, end and bytes of text of each range of a file."""
    compressed = info.location.suffix in CODECS
    ratio = COMPRESSION if compressed or isinstance(source, Parquet) else 1
    step = PIECE_BYTES // ratio
    if compressed or isinstance(source, Arrow) or getattr(source, "documents", "") == "file":
        step = max(1, info.bytes)  # can only be read from its beginning
    for begin in range(0, max(1, info.bytes), step):
        end = min(begin + step, info.bytes)
        yield begin, end, (end - begin) * ratio


def _grouped(spans: Iterable[tuple[Span, int]]) -> Iterator[tuple[Span, ...]]:
    together: list[Span] = []
    text = 0
    for span, more in spans:
        if together and text + more > PIECE_BYTES:
            yield tuple(together)
            together, text = [], 0
        together.append(span)
        text += more
    if together:
        yield tuple(together)


def _files(source: AnyFiles) -> list[FileInfo]:
    """The file, the files below the folder that are of this kind, or those the glob matches; sorted by name."""
    if isinstance(source, WikiExtractor):
        files, what = _wiki_files(source.path)
    else:
        ending = ".txt" if source.kind == "text" else f".{source.kind}"
        lines = not isinstance(source, Parquet | Arrow)
        files = filesystem.files(source.path, (ending, *(f"{ending}{codec}" for codec in CODECS if lines)))
        what = f"no *{ending} file below the folder"
    if not files:
        place = filesystem.location(source.path)
        reason = what if filesystem.exists(place) else "no such file, and as a glob no match"
        here = f"; relative paths start at {filesystem.location('.')}" if filesystem.is_local(place) else ""
        raise StageError(f"source path {source.path}: {reason}{here}")
    return files


def _wiki_files(path: str) -> tuple[list[FileInfo], str]:
    """WikiExtractor's files have no ending: AA/wiki_00, AA/wiki_01.bz2."""
    is_one = fixed_part(path) != path or filesystem.is_file(filesystem.location(path))
    files = filesystem.files(path if is_one else f"{path.rstrip('/')}/**/wiki_*")
    return files, "no wiki_* file below the folder"
