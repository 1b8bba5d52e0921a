"""Reads the documents of one span of a source, in order, one batch at a time.

Memory holds one batch, whatever the size of the file. A document that cannot be read becomes a ``BadDocument``; a file
that cannot be read (damaged, no such column) raises StageError, because a corpus must not silently lack text.

Spans of line files are byte ranges: a span has the lines, paragraphs or pages that begin in it, and reads past its end
to finish the last one. Compressed files are always one span.
"""

import itertools
from collections.abc import Iterator

from cluster.readers import (
    byte_streams,
    columnar_files,
    docstrings,
    hub_datasets,
    json_lines,
    source_recipes,
    text_lines,
    wiki_pages,
)
from cluster.readers.bad_documents import BadDocument, Document, excerpt
from cluster.readers.source_recipes import AnySource
from cluster.readers.splits import SourceSpan
from cluster.readers.text_lines import DocumentBuilder, LineDecoder

BATCH = 512
"""Documents of line files per batch."""


def read(source: AnySource, span: SourceSpan) -> Iterator[tuple[str, list[Document]]]:
    """Label and documents of a span, before cleaning.

    Raises:
        StageError: a file or data set cannot be read.
        StorageError: an object store does not answer.
    """
    if isinstance(source, source_recipes.InstalledDocs):
        found = docstrings.documents(source.packages)
        for package, pairs in itertools.groupby(found, key=lambda pair: pair[0]):
            yield package, [document for _, document in pairs]
        return
    yield from ((span.label, batch) for batch in _batches(source, span))


def _batches(source: source_recipes.AnyFiles | source_recipes.Hub, span: SourceSpan) -> Iterator[list[Document]]:
    if isinstance(source, source_recipes.Hub):
        yield from _hub(source, span)
    elif not span.size:
        return  # no file of a form that has a header, and no damaged one either: it is reported as empty
    elif isinstance(source, source_recipes.Parquet):
        yield from columnar_files.parquet(span, source.column)
    elif isinstance(source, source_recipes.Arrow):
        yield from columnar_files.arrow(span, source.column)
    else:
        if isinstance(source, source_recipes.JsonLines):
            documents = json_lines.documents(span, source.column)
        elif isinstance(source, source_recipes.WikiExtractor):
            documents = wiki_pages.documents(span)
        else:
            documents = {"file": _whole, "line": _lines, "paragraph": _paragraphs}[source.documents](span)
        while batch := list(itertools.islice(documents, BATCH)):
            yield batch


def _hub(source: source_recipes.Hub, span: SourceSpan) -> Iterator[list[Document]]:
    where, first_row = f"dataset {source.dataset}, split {source.split}", 1
    for table in hub_datasets.tables(source, span.place, span.stamp, span.start):
        for batch in table.to_batches():
            yield columnar_files.texts(batch, source.column, where, first_row)
            first_row += len(batch)


def _whole(span: SourceSpan) -> Iterator[Document]:
    data = b""
    with byte_streams.open_text(span.place) as stream:
        # A compressed stream returns fewer bytes than requested.
        while len(data) <= text_lines.MAX_BYTES and (block := stream.read(text_lines.BLOCK)):
            data += block
    if len(data) > text_lines.MAX_BYTES:
        yield BadDocument("oversize", "the file", excerpt(data))
        return
    try:
        yield data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        yield BadDocument("not UTF-8", f"line {number}", excerpt(data[data.rfind(b"\n", 0, error.start) + 1 :]))


def _lines(span: SourceSpan) -> Iterator[Document]:
    decoder = LineDecoder(span.start)
    for line in text_lines.of_span(span):
        text = decoder.text(line)
        if not text_lines.is_blank(text):
            yield text


def _paragraphs(span: SourceSpan) -> Iterator[Document]:
    """Paragraphs that follow a blank line in the span, or the start of the file."""
    end = text_lines.end_of(span)
    builder = DocumentBuilder(span.start)
    in_span = span.start == 0
    for line in text_lines.of_span(span, past_end=True):
        text = builder.decode(line)
        if text_lines.is_blank(text):
            if (document := builder.take()) is not None:
                yield document
            if end is not None and line[0] >= end:
                return
            in_span = True
        elif in_span:
            builder.add(text)
    if (document := builder.take()) is not None:
        yield document
