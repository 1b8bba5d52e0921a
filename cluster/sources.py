"""Where documents come from: one recipe table and one reader per kind of source.

A reader yields documents one at a time and holds no more than a batch of them. What it cannot read it refuses by
file and line: a corpus that silently lacks a part of its text is worse than none.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, PositiveInt

from cluster import installed_docs
from cluster.recipe import Recipe
from cluster.stage import StageError

BATCH = 64
"""Documents read from a columnar file at once: novels have a million characters each."""

MAX_FILE_BYTES = 2**28
"""Largest file taken as one document."""


@dataclass(frozen=True)
class Document:
    """One text and the label of where it comes from."""

    source: str
    text: str


class Source(Recipe):
    """What every source may say."""

    limit: PositiveInt | None = None  # documents kept at most
    max_bytes: PositiveInt | None = None  # of UTF-8 text kept at most


class Parquet(Source):
    """A string column of Parquet files: one file, all below a folder, or a glob."""

    kind: Literal["parquet"]
    path: str
    name: str = ""
    column: str = "text"


class JsonLines(Source):
    """A string member of the objects in .jsonl files: one file, all below a folder, or a glob."""

    kind: Literal["jsonl"]
    path: str
    name: str = ""
    column: str = "text"


class Text(Source):
    """Plain UTF-8 files: one file, all .txt below a folder, or a glob."""

    kind: Literal["text"]
    path: str
    name: str = ""
    documents: Literal["file", "line", "paragraph"] = "file"  # paragraphs are separated by blank lines


class Hub(Source):
    """A data set of the Hugging Face Hub, or a local folder that `datasets` understands."""

    kind: Literal["hub"]
    dataset: str
    name: str = ""
    config: str | None = None
    revision: str | None = None  # a commit pins the text
    split: str = "train"
    column: str = "text"
    reading: Literal["download", "stream"] = "download"


class InstalledDocs(Source):
    """Prose from the docstrings of installed packages; the label of a document is its package."""

    kind: Literal["installed-docs"]
    packages: tuple[str, ...] = ()  # top-level import names; none means all


AnySource: TypeAlias = Annotated[Parquet | JsonLines | Text | Hub | InstalledDocs, Field(discriminator="kind")]


def read(source: AnySource, dropped: Counter[str]) -> Iterator[Document]:
    """All documents of a source, uncleaned, in a fixed order; what has no text is counted in ``dropped``.

    Raises:
        StageError: nothing at the path, or something there cannot be read.
    """
    if isinstance(source, InstalledDocs):
        found = installed_docs.documents(source.packages, dropped)
        yield from (Document(package, text) for package, text in found)
        return
    label = source.name or _default_name(source)
    for text in _texts(source):
        if text is None:
            dropped["missing"] += 1
        else:
            yield Document(label, text)


def _default_name(source: Parquet | JsonLines | Text | Hub) -> str:
    if isinstance(source, Hub):
        return source.dataset
    fixed = [place for place in (Path(source.path), *Path(source.path).parents) if not has_magic(str(place))]
    return fixed[0].stem or fixed[0].absolute().name


def _texts(source: Parquet | JsonLines | Text | Hub) -> Iterator[str | None]:
    if isinstance(source, Hub):
        yield from _hub(source)
        return
    for path in _files(source.path, ".txt" if isinstance(source, Text) else f".{source.kind}"):
        if isinstance(source, Parquet):
            yield from _parquet(path, source.column)
        elif isinstance(source, JsonLines):
            yield from _json_lines(path, source.column)
        else:
            yield from _text(path, source.documents)


def _files(path: str, suffix: str) -> list[Path]:
    """The file, the files with this suffix below the folder, or those the glob matches; sorted."""
    place = Path(path)
    if place.is_file():
        return [place]
    found = place.rglob(f"*{suffix}") if place.is_dir() else map(Path, glob(path, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        what = f"no *{suffix} file below the folder" if place.is_dir() else "no such file, and as a glob no match"
        raise StageError(f"source path {path}: {what}; relative paths start at {Path.cwd()}")
    return files


def _parquet(path: Path, column: str) -> Iterator[str | None]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_column(column, schema.names, str(path))
            kind = schema.field(column).type
            if not _is_string(kind):
                raise StageError(f"{path}: column {column} holds {kind}, expected strings: name another column")
            for batch in file.iter_batches(BATCH, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise StageError(
            f"{path} is not a readable Parquet file ({_first_line(error)}): it is cut or damaged, fetch it again"
        ) from None


def _json_lines(path: Path, column: str) -> Iterator[str | None]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise StageError(f"{path}: line {number} is not JSON ({error.msg}): mend or delete the line") from None
        if not isinstance(record, dict):
            raise StageError(f"{path}: line {number} is no JSON object: write one object a line")
        _check_column(column, list(record), f"{path}: line {number}")
        text = record[column]
        if not isinstance(text, str | None):
            raise StageError(f"{path}: line {number}: {column} holds {json.dumps(text)[:40]}, expected a string")
        yield text


def _text(path: Path, documents: Literal["file", "line", "paragraph"]) -> Iterator[str]:
    if documents == "line":
        yield from (line for _, line in _lines(path))
        return
    if documents == "file":
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise StageError(
                f"{path} has {size:,} bytes, too many for one document: set documents to 'paragraph' or 'line'"
            )
        yield "".join(line for _, line in _lines(path))
        return
    paragraph: list[str] = []
    for _, line in _lines(path):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    if paragraph:
        yield "".join(paragraph)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, ends included, of a file in UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise StageError(
                    f"{path}: line {number} is not UTF-8 (byte {error.start + 1} of the line): convert the file, "
                    "for example with iconv -t utf-8"
                ) from None


def _hub(source: Hub) -> Iterator[str | None]:
    import datasets  # seconds to import, and only this source needs it

    place = f"dataset {source.dataset}, split {source.split}"
    try:
        found: Any = datasets.load_dataset(
            source.dataset,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.reading == "stream",
        )
        for batch in found.iter(BATCH):
            _check_column(source.column, list(batch), place)
            yield from _strings(batch[source.column], place, source.column)
    except StageError:
        raise
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise StageError(
            f"{place}: cannot be loaded ({_first_line(error)}); check its name and the network, or name a local folder"
        ) from None


def _strings(values: Iterable[Any], place: str, column: str) -> Iterator[str | None]:
    for value in values:
        if not isinstance(value, str | None):
            raise StageError(f"{place}: column {column} holds {type(value).__name__}, expected strings")
        yield value


def _check_column(column: str, known: list[str], place: str) -> None:
    if column not in known:
        raise StageError(f"{place} has no column {column}: set column to one of {', '.join(known)}")


def _is_string(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
