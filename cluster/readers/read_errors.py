"""Says in one line why a file cannot be read, and what helps.

Fetching a file again helps only where bytes are damaged. It does not help where the file has another form, uses a
feature that this project lacks, is changed by another process, or cannot be reached.
"""

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa
from backports import zstd

from cluster.artifacts.errors import StageError
from cluster.storage import filesystem
from cluster.storage.filesystem import FileInfo
from cluster.telemetry.error_text import first_line

DAMAGED = "it is cut or damaged, fetch it again"

ENCRYPTED = "is encrypted: let its owner write it again without encryption"

HEAD_BYTES = 512
"""Bytes at the start of a file that show its form."""

_FORMS = (
    (b"PAR1", 'a Parquet file: read it with kind = "parquet", or end its name in .parquet'),
    (b"PARE", "an encrypted Parquet file: let its owner write it again without encryption"),
    (b"ARROW1", 'an Arrow file: read it with kind = "arrow", or end its name in .arrow'),
    (b"FEA1", "a Feather file of version 1: write it again with pandas.read_feather(…).to_parquet(…)"),
    (b"PK\x03\x04", "a zip archive: unpack it with unzip {name}"),
    (b"\xfd7zXZ\x00", "compressed with xz, which is not read: unpack it with xz -d {name}"),
    (b"\x04\x22\x4d\x18", "compressed with lz4, which is not read: unpack it with lz4 -d {name}"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy, which is not read: unpack it with snzip -d {name}"),
    (b"\x1f\x9d", "compressed with compress, which is not read: unpack it with gzip -d {name}"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it with 7z x {name}"),
    (b"Rar!\x1a\x07", "a RAR archive: unpack it with unrar x {name}"),
    (b"Obj\x01", "an Avro file: convert it to Parquet, for example with Spark or DuckDB"),
    (b"ORC", "an ORC file: convert it with pyarrow.orc.read_table and pyarrow.parquet.write_table"),
    (b"SQLite format 3\x00", "an SQLite database: export its table as JSON lines or CSV"),
    (b"%PDF-", "a PDF document: convert it with pdftotext {name}"),
    (b"\xff\xfe\x00\x00", "in UTF-32: convert it with iconv -f utf-32 -t utf-8 {name}"),
    (b"\x00\x00\xfe\xff", "in UTF-32: convert it with iconv -f utf-32 -t utf-8 {name}"),
    (b"\xff\xfe", "in UTF-16: convert it with iconv -f utf-16 -t utf-8 {name}"),
    (b"\xfe\xff", "in UTF-16: convert it with iconv -f utf-16 -t utf-8 {name}"),
)
"""First bytes of files that are not what a reader expects; what they are, and what to do."""
_TAR_AT, _TAR = 257, b"ustar"

_BEHIND = (
    "has other bytes behind its compressed text ({error}), such as padding: check it with gzip -t {name}, and pack it "
    "anew with gzip -dc {name} | gzip > NEW"
)
_LACKING = (
    ("incorrect header check", _BEHIND),
    ("unknown compression method", _BEHIND),
    ("encrypt", ENCRYPTED),
    ("decrypt", ENCRYPTED),
    ("not supported", "uses a feature that pyarrow lacks ({error}): write it again with compression zstd"),
    ("unsupported", "uses a feature that pyarrow lacks ({error}): write it again with compression zstd"),
    ("not implemented", "uses a feature that pyarrow lacks ({error}): write it again with compression zstd"),
    ("not built", "uses a feature that pyarrow lacks ({error}): write it again with compression zstd"),
)
"""Words in messages of pyarrow that tell a missing feature, or bytes too many, from damaged bytes."""


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Turn an error of reading a file inside the block into one line.

    Raises:
        StageError: what is wrong with the file, and what to do.
        StorageError: an object store does not answer.
    """
    try:
        yield
    except (StageError, filesystem.StorageError):
        raise
    except (OSError, EOFError, zstd.ZstdError, pa.ArrowException) as error:
        raise StageError(f"{place} {_reason(error, place)}") from None


def _reason(error: BaseException, place: str) -> str:
    text = first_line(error)
    if isinstance(error, FileNotFoundError):
        return "is no longer there: leave the files alone while they are read, and run the same command again"
    if isinstance(error, PermissionError):
        return "may not be read by this user: change its permissions, for example with chmod a+r, or leave it out"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror or text}): the disk or its server failed, not the file's contents"
    if isinstance(error, pa.ArrowMemoryError):
        return f"needs more memory than this machine has left ({text}): give the stage fewer actors"
    lower = text.lower()
    for word, reason in _LACKING:
        if word in lower or (word == "not implemented" and isinstance(error, pa.ArrowNotImplementedError)):
            return reason.format(error=text, name=quoted(place))
    return f"cannot be read ({text}): {DAMAGED}"


def refuse_other_form(place: str, head: bytes, expected: bytes = b"", unpacked: bool = False) -> None:
    """Raise StageError if a file, perhaps the unpacked one, begins like another form than ``expected``."""
    if reads_as_text(head):
        return
    name = quoted(place.rpartition(".")[0] if unpacked else place)
    is_what = f"{place}{', unpacked,' if unpacked else ''} is"
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        raise StageError(f"{is_what} a tar archive: unpack it with tar -xf {quoted(place)}")
    for start, form in _FORMS:
        if head.startswith(start) and start != expected:
            raise StageError(f"{is_what} {form.format(name=name)}")
    if order := _unmarked_utf16(head):
        raise StageError(f"{is_what} in UTF-16: convert it with iconv -f utf-16{order} -t utf-8 {name}")


def _unmarked_utf16(head: bytes) -> str:
    """The byte order of UTF-16 without a byte order mark, where every other byte of most letters is zero."""
    zeros = {"be": head[::2].count(0), "le": head[1::2].count(0)}
    order = max(zeros, key=lambda each: zeros[each])
    return order if 4 * zeros[order] > len(head) and min(zeros.values()) == 0 else ""


def quoted(place: str) -> str:
    """The name of a file as a shell takes it."""
    return shlex.quote(PurePosixPath(place).name)


def reads_as_text(head: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 without control characters; the last character may be cut."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = head[: error.start].decode("utf-8")
    return all(character >= " " or character.isspace() for character in text)


@contextlib.contextmanager
def unchanged(found: FileInfo) -> Iterator[None]:
    """Raise StageError if a file is no longer what was listed when the block ends, with or without an error.

    A corpus must not mix two versions of a file, and what fails in a file that changes is not its contents.
    """
    try:
        yield
    except (StageError, filesystem.StorageError):
        _check_unchanged(found)
        raise
    _check_unchanged(found)


def _check_unchanged(found: FileInfo) -> None:
    try:
        now = filesystem.info(found.location)
    except FileNotFoundError:
        now = None
    if now is None or (now.bytes, now.stamp) != (found.bytes, found.stamp):
        raise StageError(
            f"{found.location} was {'changed' if now else 'removed'} while it was read: leave the file alone, and run "
            "the same command again, which starts over"
        )
