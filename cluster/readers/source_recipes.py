"""Where documents come from: one recipe table per kind of source, and what its documents are called.

Paths are files, folders or globs of this machine, or URLs (``s3://bucket/text/*.parquet``). Files of lines may be
compressed (``.gz``, ``.bz2``, ``.zst``).
"""

from glob import has_magic
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt

from cluster.artifacts.recipe import Recipe
from cluster.storage import filesystem

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Endings of compressed files of lines."""


class Source(Recipe):
    """What every source may say. Limits count documents that passed the document filters, in order, before repeated
    ones are dropped."""

    limit: PositiveInt | None = None  # documents at most
    max_bytes: PositiveInt | None = None  # of UTF-8 text at most
    weight: PositiveFloat | None = None  # share of the text, among those of the other sources; all have one or none has
    licence: str = ""  # a note for the manifest


class Files(Source):
    """Files by path, folder, glob or URL."""

    path: Annotated[str, Field(min_length=1)]
    name: str = ""  # label of the documents; that of the file or folder by default


class Parquet(Files):
    """A string column of Parquet files."""

    kind: Literal["parquet"]
    column: str = "text"


class Arrow(Files):
    """A string column of Arrow IPC files, in the file or the stream form."""

    kind: Literal["arrow"]
    column: str = "text"


class JsonLines(Files):
    """A string member of the objects in .jsonl files."""

    kind: Literal["jsonl"]
    column: str = "text"


class Text(Files):
    """Plain UTF-8 files; lines and paragraphs are those with more than white space."""

    kind: Literal["text"]
    documents: Literal["file", "line", "paragraph"] = "file"  # paragraphs are separated by blank lines


class WikiExtractor(Files):
    """What WikiExtractor made of a Wikipedia dump, as ``<doc>`` text or with ``--json``: a document for each page that
    has text, without its title."""

    kind: Literal["wikiextractor"]


class Hub(Source):
    """A data set of the Hugging Face Hub, or a local folder that `datasets` understands; streamed, never stored."""

    kind: Literal["hub"]
    dataset: str
    name: str = ""
    config: str | None = None
    revision: str | None = None  # a commit pins the text
    split: str = "train"
    column: str = "text"


class InstalledDocs(Source):
    """Prose from the docstrings of installed packages; the label of a document is its package."""

    kind: Literal["installed-docs"]
    packages: tuple[str, ...] = ()  # top-level import names; none means all


AnyFiles: TypeAlias = Parquet | Arrow | JsonLines | Text | WikiExtractor
AnySource: TypeAlias = Annotated[AnyFiles | Hub | InstalledDocs, Field(discriminator="kind")]


def label(source: AnyFiles | Hub) -> str:
    """What the documents of a source are called."""
    if source.name:
        return source.name
    if isinstance(source, Hub):
        return source.dataset
    place = PurePosixPath(filesystem.location(fixed_part(source.path)).as_posix())
    endings = place.suffixes[-2:] if place.suffix in CODECS else place.suffixes[-1:]
    return place.name.removesuffix("".join(endings)) or place.name


def fixed_part(path: str) -> str:
    """A path or URL up to the folder in which its first wildcard stands."""
    while has_magic(path):
        parent = path.rpartition("/")[0]
        path = parent or ("/" if path.startswith("/") else ".")
    return path
