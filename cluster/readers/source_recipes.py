"""Recipes of the sources of a corpus, one class per kind, and the labels of their documents.

Paths are local files, folders or globs, or URLs (``s3://bucket/text/*.parquet``). Line files may be compressed
(``.gz``, ``.bz2``, ``.zst``).
"""

from glob import has_magic
from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt

from cluster.artifacts.recipe import Recipe
from cluster.storage import filesystem

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Suffixes of compressed line files."""


class Source(Recipe):
    """Settings of every source. Limits count documents that pass the filters, in order, before deduplication."""

    limit: PositiveInt | None = None  # documents at most
    max_bytes: PositiveInt | None = None  # of UTF-8 text at most
    weight: PositiveFloat | None = None  # share of the text, relative to other sources; set it for all or none
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
    """Plain UTF-8 files; blank lines and paragraphs are skipped."""

    kind: Literal["text"]
    documents: Literal["file", "line", "paragraph"] = "file"  # paragraphs are separated by blank lines


class WikiExtractor(Files):
    """Output of WikiExtractor, as ``<doc>`` text or ``--json``: one document per page with text, without its title."""

    kind: Literal["wikiextractor"]


class Hub(Source):
    """A data set of the Hugging Face Hub, or a local folder that `datasets` can load; streamed, never stored."""

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
    """The label of a source's documents."""
    if source.name:
        return source.name
    if isinstance(source, Hub):
        return source.dataset
    place = PurePosixPath(filesystem.location(fixed_part(source.path)).as_posix())
    suffixes = place.suffixes[-2:] if place.suffix in CODECS else place.suffixes[-1:]
    return place.name.removesuffix("".join(suffixes)) or place.name


def fixed_part(path: str) -> str:
    """The path or URL of the deepest folder above the first wildcard."""
    while has_magic(path):
        parent = path.rpartition("/")[0]
        path = parent or ("/" if path.startswith("/") else ".")
    return path
