"""Lines of files that may be compressed, larger than memory, or read from the middle.

A line belongs to the range of a file in which its first byte lies, so ranges that cover a file have every line once.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

import pyarrow as pa

from cluster import storage
from cluster.faults import Fault, excerpt
from cluster.sources import CODECS
from cluster.stage import StageError

BLOCK = 2**20

MAX_BYTES = 2**25
"""Longest line, and largest file that is one document."""

_BOM = b"\xef\xbb\xbf"

Line: TypeAlias = tuple[int, bytes]
"""Where a line begins in its file, decompressed, and its bytes without the end of line. One that is longer than
:data:`MAX_BYTES` is cut to a byte more."""


@contextlib.contextmanager
def opened(place: str) -> Iterator[Any]:
    """A file as a stream of decompressed bytes.

    Raises:
        StageError: the file is damaged, or cannot be read any more.
    """
    location = storage.location(place)
    codec = CODECS.get(location.suffix)
    try:
        with storage.open_read(location) as raw:
            yield pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec) if codec else raw
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise StageError(f"{place} cannot be read ({reason}): it is cut or damaged, fetch it again") from None


def of_range(stream: Any, start: int, end: int | None) -> Iterator[Line]:
    """The lines that begin in ``[start, end)`` of a stream; all of them, from the beginning, where it has no end."""
    rest, offset = b"", start
    if start:
        # The byte before says whether a line begins exactly here.
        stream.seek(start - 1)
        rest, offset = _after_newline(stream, start - 1, end)
    while end is None or offset < end:
        block = stream.read(BLOCK)
        found = (rest + block).split(b"\n")
        rest = found.pop()
        for line in found:
            if end is not None and offset >= end:
                return
            yield offset, line[: MAX_BYTES + 1]
            offset += len(line) + 1
        if not block:
            break
        if len(rest) > MAX_BYTES and (end is None or offset < end):
            yield offset, rest[: MAX_BYTES + 1]
            rest, offset = _after_newline(stream, offset + len(rest), end)
    if rest and (end is None or offset < end):
        yield offset, rest


def head(stream: Any) -> bytes:
    """All of a stream, or a little more than :data:`MAX_BYTES` of it."""
    data = b""
    while len(data) <= MAX_BYTES and (block := stream.read(BLOCK)):  # a compressed stream gives less than it is asked
        data += block
    return data


def _after_newline(stream: Any, offset: int, end: int | None) -> tuple[bytes, int]:
    """What was read behind the next end of line, and where that is in the stream; beyond ``end`` none is looked for."""
    while (end is None or offset < end) and (block := stream.read(BLOCK)):
        if (found := block.find(b"\n")) >= 0:
            return block[found + 1 :], offset + found + 1
        offset += len(block)
    return b"", offset


class Decoder:
    """Lines as text, or what is wrong with them; knows their numbers where it has seen a file from its beginning."""

    def __init__(self, start: int) -> None:
        self._number = 0
        self._from_start = not start

    def text(self, line: Line) -> str | Fault:
        self._number += 1
        offset, data = line
        if not offset:
            data = data.removeprefix(_BOM)
        if len(data) > MAX_BYTES:
            return self.fault("oversize", line)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return self.fault("not UTF-8", line)

    def fault(self, reason: str, line: Line) -> Fault:
        """What is wrong with the line decoded last."""
        where = f"line {self._number}" if self._from_start else f"the line at byte {line[0]}"
        return Fault(reason, where, excerpt(line[1]))
