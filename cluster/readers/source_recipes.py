"""Recipes of the sources of a corpus, one class per kind, and the labels of their documents.

Paths are local files, folders or globs, or URLs (``s3://bucket/text/*.parquet``). Line files may be compressed
(``.gz``, ``.bz2``, ``.zst``).
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, PositiveFloat, PositiveInt

from cluster.artifacts.recipe import Recipe
from cluster.artifacts.recipe_errors import EXAMPLE

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Suffixes of compressed line files."""


class Source(Recipe):
    """Settings of every source. Limits count documents that pass the filters, in order, before deduplication."""

    limit: PositiveInt | None = None
    """Most documents of this source; unlimited by default."""
    max_bytes: PositiveInt | None = None
    """Most bytes of UTF-8 text of this source; unlimited by default."""
    weight: PositiveFloat | None = None
    """Share of the text, relative to the weights of the other sources; all sources have one, or none."""
    licence: str = ""
    """A note for the manifest."""


class Files(Source):
    """Files by path, folder, glob or URL."""

    path: str = Field(min_length=1, json_schema_extra={EXAMPLE: 'path = "text/*"'})
    """A file, folder or glob, as a path or URL."""
    name: str = ""
    """Label of the documents; by default that of the file or folder."""


class Parquet(Files):
    """A string column of Parquet files."""

    kind: Literal["parquet"]
    """Parquet files."""
    column: str = "text"
    """Column of the text."""


class Arrow(Files):
    """A string column of Arrow IPC files, in the file or the stream form."""

    kind: Literal["arrow"]
    """Arrow IPC files."""
    column: str = "text"
    """Column of the text."""


class JsonLines(Files):
    """A string member of the objects in .jsonl files."""

    kind: Literal["jsonl"]
    """Files with one JSON object per line."""
    column: str = "text"
    """Key of the text."""


class Text(Files):
    """Plain UTF-8 files; blank lines and empty paragraphs are skipped."""

    kind: Literal["text"]
    """Plain text files."""
    documents: Literal["file", "line", "paragraph"] = "file"
    """What a document is: the whole file, a line, or a paragraph; blank lines separate paragraphs."""


class WikiExtractor(Files):
    """Output of WikiExtractor, as ``<doc>`` text or ``--json``: one document per page with text, without its title."""

    kind: Literal["wikiextractor"]
    """Output of WikiExtractor."""


class Hub(Source):
    """A data set of the Hugging Face Hub, or a local folder that `datasets` can load; streamed, never stored."""

    kind: Literal["hub"]
    """A data set of the Hugging Face Hub."""
    dataset: str = Field(json_schema_extra={EXAMPLE: 'dataset = "wikimedia/wikipedia"'})
    """Name on the Hub, or a local folder."""
    name: str = ""
    """Label of the documents; by default that of the data set."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    revision: str | None = None
    """A branch, tag or commit; only a commit pins the text."""
    split: str = "train"
    """Split of the data set."""
    column: str = "text"
    """Column of the text."""


class InstalledDocs(Source):
    """Prose from the docstrings of installed packages; the label of a document is its package."""

    kind: Literal["installed-docs"]
    """Docstrings of installed Python packages."""
    packages: tuple[str, ...] = ()
    """Top-level import names; empty means all installed packages."""


AnyFiles: TypeAlias = Parquet | Arrow | JsonLines | Text | WikiExtractor
AnySource: TypeAlias = Annotated[AnyFiles | Hub | InstalledDocs, Field(discriminator="kind")]


def describe(source: AnySource) -> str:
    """A source in a message: its path, its data set, or its kind."""
    if isinstance(source, InstalledDocs):
        return source.kind
    return source.dataset if isinstance(source, Hub) else source.path


def label(source: AnyFiles | Hub, place: str) -> str:
    """The label of a source's documents; ``place`` is the file or folder that its path means."""
    if source.name:
        return source.name
    if isinstance(source, Hub):
        return source.dataset
    found = PurePosixPath(place)
    suffixes = found.suffixes[-2:] if found.suffix.lower() in CODECS else found.suffixes[-1:]
    return found.name.removesuffix("".join(suffixes)) or found.name
