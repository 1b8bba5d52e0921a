"""Opens files for reading, and text files as streams of decompressed bytes.

The first bytes of a file decide how it is compressed, whatever its name.
"""

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from backports import zstd

from cluster.artifacts.errors import StageError
from cluster.readers import read_errors
from cluster.readers.source_recipes import CODECS
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

_MAGIC = ((b"\x1f\x8b\x08", "gzip"), (b"BZh", "bz2"), (b"\x28\xb5\x2f\xfd", "zstd"))
_BZIP2 = (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
"""What follows the fourth byte of a bzip2 file; the first three alone may be text."""
_SKIPPABLE = b"\x2a\x4d\x18"
"""Bytes 1 to 3 of a skippable Zstandard frame, with which some programs begin; the byte before is 0x50 to 0x5f."""
_LARGEST_WINDOW_LOG = 31
"""Base-2 logarithm of the largest window that Zstandard knows: 2 GB."""


@contextlib.contextmanager
def open_text(place: str, start: int = 0, cut: bool = False) -> Iterator[Any]:
    """A text file as a stream of decompressed bytes, at its beginning.

    Args:
        place: the file.
        start: where the caller will begin to read; the form of the file is checked if that is the beginning.
        cut: whether the caller reads only a range of the file, which works in plain files alone.

    Raises:
        StageError: the file is damaged, has another form, or has become unreadable, also while it is read.
    """
    with read_errors.reading(place), opened(filesystem.location(place)) as raw:
        if start:
            yield raw
            return
        head = _start(raw, read_errors.HEAD_BYTES)
        raw.seek(0)
        codec = _codec(place, head)
        if codec is None:
            read_errors.refuse_other_form(place, head)
            yield raw
            return
        if cut:
            raise StageError(f"{place} is compressed with {codec}: end its name in {_suffix(codec)}")
        probe = _decompressed(raw, codec)  # stays until the end, because it closes the file when it goes
        inner = _start(probe, read_errors.HEAD_BYTES)
        read_errors.refuse_other_form(place, inner, unpacked=True)
        if twice := codec_of(inner):
            raise StageError(f"{place} is compressed twice, with {twice} inside: unpack it once")
        raw.seek(0)
        yield _decompressed(raw, codec)


@contextlib.contextmanager
def opened(place: Location) -> Iterator[Any]:
    """A file, opened for reading at any position."""
    with filesystem.open_read(place) as raw:
        yield raw if filesystem.is_local(place) else _StoredObject(raw, place)


def text_head(place: str) -> bytes:
    """The first decompressed bytes of a text file."""
    with open_text(place) as stream:
        return _start(stream, read_errors.HEAD_BYTES)


def _start(stream: Any, size: int) -> bytes:
    """The first bytes of a stream."""
    found = b""
    while len(found) < size and (block := stream.read(size - len(found))):
        found += block
    return found


def codec_of(head: bytes) -> str | None:
    """The compression that the first bytes of a file show."""
    for magic, codec in _MAGIC:
        if head.startswith(magic) and (codec != "bz2" or head[4:10] in _BZIP2):
            return codec
    return "zstd" if head[1:4] == _SKIPPABLE and head[0] >> 4 == 5 else None


def _codec(place: str, head: bytes) -> str | None:
    """The compression of a text file; None for a plain one."""
    if (found := codec_of(head)) is not None:
        return found
    named = next((codec for suffix, codec in CODECS.items() if place.lower().endswith(suffix)), None)
    if named and not read_errors.reads_as_text(head):
        read_errors.refuse_other_form(place, head)
        raise StageError(f"{place} does not begin like a file of {named}: {read_errors.DAMAGED}")
    return None


def _decompressed(raw: Any, codec: str) -> Any:
    if codec == "zstd":  # pyarrow refuses windows above 128 MB, as zstd --long=31 makes them
        return zstd.ZstdFile(raw, options={zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW_LOG})
    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), codec)


def _suffix(codec: str) -> str:
    return next(suffix for suffix, name in CODECS.items() if name == codec)


class _StoredObject:
    """An open object, whose errors while it is read name the object and say what to check."""

    def __init__(self, raw: Any, place: Location) -> None:
        self._raw, self._place = raw, place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def read(self, size: int = -1) -> bytes:
        with filesystem.storage_errors(self._place):
            try:
                return bytes(self._raw.read(size))
            except OSError as error:
                if error.errno == errno.EBUSY:  # so s3fs says that the object is another one now
                    raise StageError(
                        f"{self._place} was changed while it was read: leave the object alone, and run the same "
                        "command again"
                    ) from None
                raise
