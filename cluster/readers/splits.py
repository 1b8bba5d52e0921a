"""Cuts the sources of a corpus into splits of about equal size, the units of work of the scan.

A split is a run of spans. A span is a file, or a range of a file that can be read from the middle (uncompressed lines,
row groups of Parquet); small files share a split. The cuts depend only on the names and sizes of the files, so cutting
opens no file and gives the same splits in every attempt.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

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
    Text,
    WikiExtractor,
    fixed_part,
)
from cluster.storage import filesystem
from cluster.storage.filesystem import FileInfo

SPLIT_BYTES = 2**26
"""Approximate bytes of text per split, which an actor processes in seconds to minutes."""

COMPRESSION = 3
"""Approximate bytes of text per byte of Parquet or of a compressed file."""

T = TypeVar("T")


@dataclass(frozen=True)
class SourceSpan:
    """A file of a source, or a range of it."""

    source: int
    """Index in the recipe's sources."""
    place: str
    """The file; for a hub source the data set; empty for installed docs."""
    name: str
    """The file's name below the source's path."""
    start: int
    end: int
    """Byte range; for a hub source a range of shards."""
    stamp: str
    """Changes with the contents; for a hub source the commit."""
    size: int
    """Bytes of the whole file; 0 for other sources."""


@dataclass(frozen=True)
class Split:
    """Spans that one actor reads in one go."""

    number: int
    spans: tuple[SourceSpan, ...]

    @property
    def name(self) -> str:
        first, *others = self.spans
        return f"{first.place or first.name}{f' and {len(others)} more' if others else ''}"

    @property
    def size(self) -> int:
        return sum(span.end - span.start for span in self.spans if span.size)

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, "spans": [asdict(span) for span in self.spans]}


def make_splits(sources: Sequence[AnySource]) -> list[Split]:
    """The splits of all sources, in order.

    Raises:
        StageError: nothing at a path, an unknown package, or a data set that cannot be found.
    """
    spans = (span for number, source in enumerate(sources) for span in _spans(number, source))
    return [Split(number, group) for number, (group, _) in enumerate(group_by_size(spans))]


def group_by_size(items: Iterable[tuple[T, int]]) -> Iterator[tuple[tuple[T, ...], int]]:
    """Groups of consecutive items, and the size of each: at most :data:`SPLIT_BYTES`, or one item."""
    group: list[T] = []
    group_size = 0
    for item, size in items:
        if group and group_size + size > SPLIT_BYTES:
            yield tuple(group), group_size
            group, group_size = [], 0
        group.append(item)
        group_size += size
    if group:
        yield tuple(group), group_size


def _spans(number: int, source: AnySource) -> Iterator[tuple[SourceSpan, int]]:
    """The spans of a source, and the approximate bytes of text in each; a full split if the size is unknown."""
    if isinstance(source, InstalledDocs):
        yield SourceSpan(number, "", source.kind, 0, 1, docstrings.stamp(source.packages), 0), SPLIT_BYTES
    elif isinstance(source, Hub):
        found = hub_datasets.resolve(source)
        for shard in range(found.shards):
            name = f"{source.split} {shard + 1} of {found.shards}"
            yield SourceSpan(number, found.place, name, shard, shard + 1, found.stamp, 0), SPLIT_BYTES
    else:
        name_start = len(filesystem.location(fixed_part(source.path)).as_posix().rstrip("/")) + 1
        for info in _files(source):
            name = info.location.as_posix()[name_start:] or info.location.name
            for start, end, text_bytes in _ranges(source, info):
                span = SourceSpan(number, str(info.location), name, start, end, info.stamp, info.bytes)
                yield span, min(text_bytes, source.max_bytes or text_bytes)


def _ranges(source: AnyFiles, info: FileInfo) -> Iterator[tuple[int, int, int]]:
    """Start, end and approximate bytes of text of each range of a file."""
    compressed = info.location.suffix in CODECS
    ratio = COMPRESSION if compressed or isinstance(source, Parquet) else 1
    step = SPLIT_BYTES // ratio
    if compressed or isinstance(source, Arrow) or (isinstance(source, Text) and source.documents == "file"):
        step = max(1, info.bytes)  # readable only from the beginning
    for start in range(0, max(1, info.bytes), step):
        end = min(start + step, info.bytes)
        yield start, end, (end - start) * ratio


def _files(source: AnyFiles) -> list[FileInfo]:
    """The file, the matching files below the folder, or the matches of the glob; sorted by name."""
    if isinstance(source, WikiExtractor):  # its files have no suffix: AA/wiki_00, AA/wiki_01.bz2
        is_one = fixed_part(source.path) != source.path or filesystem.is_file(filesystem.location(source.path))
        files = filesystem.files(source.path if is_one else f"{source.path.rstrip('/')}/**/wiki_*")
        pattern = "wiki_*"
    else:
        suffix = ".txt" if isinstance(source, Text) else f".{source.kind}"
        codecs = () if isinstance(source, Parquet | Arrow) else CODECS
        files = filesystem.files(source.path, (suffix, *(f"{suffix}{codec}" for codec in codecs)))
        pattern = f"*{suffix}"
    if not files:
        place = filesystem.location(source.path)
        exists = filesystem.exists(place)
        reason = f"no {pattern} file below the folder" if exists else "no such file, and as a glob no match"
        hint = f"; relative paths start at {filesystem.location('.')}" if filesystem.is_local(place) else ""
        raise StageError(f"source path {source.path}: {reason}{hint}")
    return files
