"""Patterns that users write: ``text/*.jsonl``, ``s3://bucket/text/**/*.parquet``.

A name is a pattern only where the user wrote one, and what exists under the exact name comes first: in
``run [v1]/*.jsonl`` only the last part is a pattern if there is a folder ``run [v1]``. Wildcards have the meaning that
:mod:`glob` gives them, in folders and in object stores: ``**`` stands for any folders, and hidden names, which begin
with a dot, match only where the pattern writes the dot.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from cluster.storage import filesystem
from cluster.storage.filesystem import FileInfo, Location

_ANY_FOLDERS = "**"


@dataclass(frozen=True)
class Pattern:
    """What a user wrote where a file, a folder or a pattern is expected."""

    folder: Location
    """The part to take literally; without a glob, the file or folder itself."""
    glob: str = ""
    """The pattern below it."""

    def files(self, suffixes: tuple[str, ...] = ("",)) -> list[FileInfo]:
        """The file, the files with these suffixes below the folder, or all matches of the glob, sorted by name."""
        if not self.glob:
            return filesystem.files(self.folder, suffixes)
        if isinstance(self.folder, Path):
            found = sorted(set(_expanded(self.folder, self._parts))) if self.folder.is_dir() else []
            return [filesystem.info(path) for path in found if filesystem.is_readable(path)]
        first, *_ = self._parts
        prefix = first[: next(number for number, letter in enumerate(first) if letter in "*?[")]
        depth = None if _ANY_FOLDERS in self._parts else len(self._parts)
        listed = filesystem.objects_below(self.folder, depth, prefix)
        return [info for name, info in listed.items() if name and _fits(name.split("/"), self._parts)]

    def covers(self, place: Location, suffixes: tuple[str, ...] = ("",)) -> bool:
        """Whether :meth:`files` would find a file at ``place``."""
        folder = self.folder.resolve() if isinstance(self.folder, Path) else self.folder
        place = place.resolve() if isinstance(place, Path) else place
        name = filesystem.relative(place, folder)
        if name is None:
            return False
        return _fits(name.split("/"), self._parts) and (bool(self.glob) or name.lower().endswith(suffixes))

    @property
    def _parts(self) -> list[str]:
        return (self.glob or _ANY_FOLDERS).split("/")


def pattern(text: str) -> Pattern:
    """What a path or URL of the user means.

    Raises:
        StorageError: as :func:`~cluster.storage.filesystem.location`.
    """
    place = filesystem.location(text)
    names = list(place.parts) if isinstance(place, Path) else place.path.split("/")
    literal = _first_wildcard(names, 1)  # the root, or the bucket, is none
    if literal == len(names) or filesystem.exists(place):
        return Pattern(place)
    while literal < len(names) and filesystem.exists(_above(place, names[: literal + 1])):
        literal = _first_wildcard(names, literal + 1)
    return Pattern(_above(place, names[:literal]), "/".join(names[literal:]))


def _first_wildcard(names: Sequence[str], start: int) -> int:
    """Index of the first name with a wildcard, or their number."""
    return next((number for number, name in enumerate(names) if number >= start and has_magic(name)), len(names))


def _above(place: Location, names: Sequence[str]) -> Location:
    return Path(*names) if isinstance(place, Path) else filesystem.sibling(place, "/".join(names))


def _expanded(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Whatever matches in a folder; unlike :func:`glob.glob`, it does not follow links in circles."""
    first, *rest = parts
    if first == _ANY_FOLDERS:
        for each in filesystem.folders(folder):
            yield from _expanded(each, rest or ["*"])
        return
    names = [name for name in os.listdir(folder) if _name_fits(name, first)] if has_magic(first) else [first]
    for path in (folder / name for name in names):
        if not rest:
            yield path
        elif path.is_dir():
            yield from _expanded(path, rest)


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a relative name matches a pattern; both are cut at the slashes."""
    if not parts or not names:
        return not parts and not names
    if parts[0] == _ANY_FOLDERS:
        deeper = len(names) > 1 and not names[0].startswith(".") and _fits(names[1:], parts)
        return deeper or _fits(names, parts[1:] or ["*"])
    return _name_fits(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _name_fits(name: str, part: str) -> bool:
    if not has_magic(part):
        return name == part
    return fnmatchcase(name, part) and (not name.startswith(".") or part.startswith("."))
