"""Cuts the sources of a corpus into splits of about equal size, the units of work of the scan.

A split is a run of spans. A span is a file, or a range of a file that can be read from the middle (uncompressed lines,
row groups of Parquet); small files share a split. The cuts depend only on the names and sizes of the files, so cutting
opens no file and gives the same splits in every attempt.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.artifacts import commit
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
    describe,
    label,
)
from cluster.storage import filesystem, patterns
from cluster.storage.filesystem import FileInfo, Location
from cluster.storage.patterns import Pattern

SPLIT_BYTES = 2**26
"""Approximate bytes of text per split, which an actor processes in seconds to minutes."""

COMPRESSION = 3
"""Approximate bytes of text per byte of Parquet or of a compressed file."""

_SHOWN = 5
"""Names in a message."""

T = TypeVar("T")

logger = logging.getLogger("stillhouse")


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
    label: str = ""
    """Label of the documents; empty for installed docs, which have that of their package."""


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
        StageError: nothing at a path, an artifact in a source's folder, an unknown package, or a data set that cannot
            be found.
    """
    spans = (span for number, source in enumerate(sources) for span in _spans(number, source))
    return [Split(number, group) for number, (group, _) in enumerate(group_by_size(spans))]


def text_bytes(sources: Sequence[AnySource]) -> int | None:
    """About how many bytes of text are in files; None with sources whose size only reading tells.

    Raises:
        StageError: as :func:`make_splits`.
    """
    if any(isinstance(source, Hub | InstalledDocs) for source in sources):
        return None
    return sum(size for number, source in enumerate(sources) for _, size in _spans(number, source))


def refuse_inside(sources: Sequence[AnySource], out: Location, name: str) -> None:
    """Refuse to write a Parquet file ``name`` to a folder ``out`` where a source would read it, now or the next time.

    Raises:
        StageError: ``out`` is inside a source.
    """
    for source in sources:
        read = isinstance(source, Parquet) and patterns.pattern(source.path).covers(out / name, _suffixes(source))
        if read or (isinstance(source, Hub) and _is_local(source) and Pattern(_folder(source)).covers(out / name)):
            raise StageError(
                f"--out {out} is inside the source {describe(source)}, which would read it as text: choose a folder "
                "outside"
            )


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
        if _is_local(source):
            listed = filesystem.files(_folder(source))
            refuse_artifacts(f"source {source.dataset}", _folder(source), listed, listed)
        found = hub_datasets.resolve(source)
        for shard in range(found.shards):
            name = f"{source.split} {shard + 1} of {found.shards}"
            span = SourceSpan(number, found.place, name, shard, shard + 1, found.stamp, 0, label(source, found.place))
            yield span, SPLIT_BYTES
    else:
        pattern = _pattern(source)
        shared = label(source, pattern.folder.as_posix())
        for info in _files(source, pattern):
            name = filesystem.relative(info.location, pattern.folder) or info.location.name
            for start, end, text_bytes in _ranges(source, info):
                span = SourceSpan(number, str(info.location), name, start, end, info.stamp, info.bytes, shared)
                yield span, min(text_bytes, source.max_bytes or text_bytes)


def _ranges(source: AnyFiles, info: FileInfo) -> Iterator[tuple[int, int, int]]:
    """Start, end and approximate bytes of text of each range of a file."""
    compressed = info.location.suffix.lower() in CODECS
    ratio = COMPRESSION if compressed or isinstance(source, Parquet) else 1
    step = SPLIT_BYTES // ratio
    if compressed or isinstance(source, Arrow) or (isinstance(source, Text) and source.documents == "file"):
        step = max(1, info.bytes)  # readable only from the beginning
    for start in range(0, max(1, info.bytes), step):
        end = min(start + step, info.bytes)
        yield start, end, (end - start) * ratio


def _pattern(source: AnyFiles) -> Pattern:
    """What the source's path means; files of WikiExtractor have no suffix: AA/wiki_00, AA/wiki_01.bz2."""
    found = patterns.pattern(source.path)
    if isinstance(source, WikiExtractor) and not found.glob and not filesystem.is_file(found.folder):
        return replace(found, glob="**/wiki_*")
    return found


def _suffixes(source: AnyFiles) -> tuple[str, ...]:
    if isinstance(source, WikiExtractor):
        return ("",)
    suffix = ".txt" if isinstance(source, Text) else f".{source.kind}"
    return (suffix, *(f"{suffix}{codec}" for codec in (() if isinstance(source, Parquet | Arrow) else CODECS)))


def _files(source: AnyFiles, pattern: Pattern) -> list[FileInfo]:
    """The file, the matching files below the folder, or the matches of the glob; sorted by name."""
    suffixes = _suffixes(source)
    if pattern.glob:
        files = pattern.files()
    else:
        listed = pattern.files()
        files = [info for info in listed if _is_named(info, suffixes) or str(info.location) == str(pattern.folder)]
        refuse_artifacts(f"source {source.path}", pattern.folder, listed, files)
        _name_others(source, listed, files)
    if not files:
        names = "wiki_*" if isinstance(source, WikiExtractor) else f"*{suffixes[0]}"
        reason = (
            f"no {names} file below the folder (names with a leading dot do not count)"
            if _is_folder(source)
            else "no such file, and as a glob no match"
        )
        hint = f"; relative paths start at {filesystem.location('.')}" if filesystem.is_local(pattern.folder) else ""
        raise StageError(f"source path {source.path}: {reason}{hint}")
    if bad := [place for info in files if not _is_unicode(place := str(info.location))]:
        raise StageError(f"source path {source.path}: the name of the file {bad[0]!a} is not UTF-8: rename it")
    return files


def _is_named(info: FileInfo, suffixes: tuple[str, ...]) -> bool:
    return info.location.name.lower().endswith(suffixes)


def _name_others(source: AnyFiles, listed: list[FileInfo], files: list[FileInfo]) -> None:
    """Say which files below a source's folder are not read because of their names."""
    if files and len(listed) > len(files):
        others = sorted({info.location.name for info in listed} - {info.location.name for info in files})
        logger.info(
            "corpus: source %s: left out are %d files whose names do not end in %s (%s)",
            source.path,
            len(listed) - len(files),
            ", ".join(_suffixes(source)),
            ", ".join(others[:_SHOWN]) + (" …" if len(others) > _SHOWN else ""),
        )


def _is_unicode(name: str) -> bool:
    """Whether a name can be written to a manifest; Python keeps other bytes as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _is_folder(source: AnyFiles) -> bool:
    place = filesystem.location(source.path)
    return place.is_dir() if isinstance(place, Path) else filesystem.exists(place)


def refuse_artifacts(
    what: str, folder: Location, listed: Iterable[FileInfo], files: Iterable[FileInfo], meant: tuple[str, ...] = ()
) -> None:
    """Refuse a folder in which files to be read are those of an artifact further down, which nobody meant.

    An artifact that is named itself is read, and so are those of the kinds ``meant``.

    Raises:
        StageError: there is such an artifact.
    """
    above = {folder, *folder.parents}
    homes = {home for parent in {info.location.parent for info in files} for home in (parent, *parent.parents)} - above
    for info in listed:
        place = info.location
        is_near = place.name == commit.MANIFEST and place.parent in homes
        if is_near and commit.is_manifest(place) and commit.parse(place)["kind"] not in meant:
            raise StageError(
                f"{place.parent} is an artifact inside the {what} and would be read as text: move it elsewhere, or "
                "write a glob of the files you mean"
            )


def _is_local(source: Hub) -> bool:
    return _folder(source).is_dir()


def _folder(source: Hub) -> Path:
    return Path(source.dataset).absolute()
