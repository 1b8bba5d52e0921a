"""Files in folders of this machine and in object stores, behind one set of functions.

A file appears whole or not at all. An object carries the SHA-256 of its contents, which saves reading it again.
Listings are never cached.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import fsspec.asyn
from upath import UPath

from cluster.telemetry import progress
from cluster.telemetry.error_text import one_line

Location: TypeAlias = Path | UPath

TRANSFERS = 8
"""Files that are copied to or from an object store at the same time."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SIGNED = ("http", "https")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs"}
"""Libraries whose errors are not OSErrors: credentials, endpoints, broken connections."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_SHA256 = "sha256"
"""Key of an object's metadata."""
_BULK = 1000
"""Most objects that S3 deletes in one request."""


class StorageError(ValueError):
    """A location cannot be understood, reached, read or written."""


def location(text: str | Path | UPath) -> Location:
    """What a path or URL means; relative paths start at the working directory.

    Raises:
        StorageError: a URL of a store whose library is not installed, one that holds a secret, or one that has lost a
            slash on its way through a path.
    """
    if isinstance(text, UPath):
        return text if text.protocol not in ("", "file", "local") else Path(text.path).absolute()
    if (url := _URL.fullmatch(str(text))) is None or isinstance(text, Path):
        if re.match(r"[a-z][a-z0-9]+:/", str(text)):
            raise StorageError(f"{text} is neither a path nor a URL: write two slashes after the colon")
        return Path(text).absolute()
    scheme, rest = url[1].lower(), url[2]
    if scheme in ("file", "local"):
        return Path(urllib.request.url2pathname(rest.removeprefix("localhost"))).absolute()
    _refuse_secrets(scheme, rest)
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'stillhouse[{extra}]'" if extra else "use a path, s3:// or gs://"
        raise StorageError(f"{text}: {one_line(error)}: {advice}") from None
    # Listings are never remembered: other processes and machines write to the same places.
    return _in_store(scheme, rest, {"use_listings_cache": False})


def is_local(place: Location) -> bool:
    return isinstance(place, Path)


def explain_storage_error(error: BaseException) -> str | None:
    """One line for an error of an object store's library; None for other errors."""
    if type(error).__module__.partition(".")[0] in _LIBRARIES:
        return one_line(error)
    return None


@contextlib.contextmanager
def storage_errors(place: Location) -> Iterator[None]:
    """Turn errors of an object store's library in the block into one line: where, what, and what to do.

    Raises:
        StorageError: an error that the user can correct.
        FileNotFoundError: no such object, with its URL as the file name.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        if is_local(place) or isinstance(error, FileExistsError):
            raise
        if "bucket" in str(error).lower():
            raise StorageError(f"{place}: {one_line(error)}: create the bucket, or name another") from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from None
    except Exception as error:
        if is_local(place) or (isinstance(error, OSError) and error.errno in _FULL):
            raise
        if type(error).__name__ == "FileExpired":  # of s3fs: the second request found another version than the first
            raise StorageError(f"{place} was changed while it was read: run the same command again") from None
        if (line := explain_storage_error(error)) is None and not isinstance(error, OSError):
            raise
        raise StorageError(f"{place}: {line or one_line(error)}: {_advice(place)}") from None


def _advice(place: Location) -> str:
    known = {"s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS"}
    extra = _EXTRAS.get(getattr(place, "protocol", ""), "")
    return f"check the address, the network and the credentials{f' ({known[extra]})' if extra else ''}"


def _refuse_secrets(scheme: str, rest: str) -> None:
    host = rest.partition("/")[0]
    # Secrets may hold a slash, so that the @ after them is not in the part before the first one; buckets hold no colon.
    if ":" in host.rpartition("@")[0] or (scheme in _EXTRAS and ":" in host):
        raise StorageError(f"the {scheme}:// URL holds a password: leave it out, credentials come from the environment")
    if scheme in _SIGNED and "?" in rest:
        place = rest.partition("?")[0]
        raise StorageError(
            f"{scheme}://{place}?… is signed or has parameters, and would be kept in manifests: fetch it"
        )


@dataclass(frozen=True)
class FileInfo:
    """A file in a listing."""

    location: Location
    bytes: int
    stamp: str
    """Changes with the file: modification time in nanoseconds, or ETag."""


def exists(place: Location) -> bool:
    """Whether a file or folder exists; in an object store, a folder exists while it has objects."""
    with storage_errors(place):
        return place.exists()


def is_file(place: Location) -> bool:
    with storage_errors(place):
        return place.is_file()


def files(place: Location, suffixes: tuple[str, ...] = ("",)) -> list[FileInfo]:
    """The file, or the files with these suffixes below the folder, sorted by name; empty if nothing is there.

    Names are taken literally (:mod:`cluster.storage.patterns` knows patterns). Links are followed. Hidden files and
    folders, whose names begin with a dot, are left out: systems and other programs keep theirs there.
    """

    def fits(name: str) -> bool:
        return name.endswith(suffixes) and not _is_hidden(name)

    if not isinstance(place, Path):
        found = [each for name, each in objects_below(place).items() if not name or fits(name)]
        return found or ([info(place)] if is_file(place) else [])
    if place.is_file():
        return [info(place)]
    within = folders(place) if place.is_dir() else ()
    paths = (path for folder in within for path in folder.iterdir() if fits(path.name) and is_readable(path))
    return [info(path) for path in sorted(paths)]


def listing(folder: Location) -> dict[str, FileInfo]:
    """Every file below a folder by its relative name, sorted; empty if the folder does not exist.

    Unlike :func:`files`, it has the hidden ones, and does not follow links to other folders: whatever is listed is
    below the folder, and may be removed with it.
    """
    if not isinstance(folder, Path):
        return objects_below(folder)
    found: dict[str, FileInfo] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with contextlib.suppress(FileNotFoundError):  # another process's temporary file, in place by now
            found[path.relative_to(folder).as_posix()] = info(path)
    return found


def folders(folder: Path, *, hidden: bool = False, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """The folder and all folders below it; follows links, but not back to a folder ``above``."""
    found = folder.stat()
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    yield folder
    with os.scandir(folder) as entries:
        below = sorted(entry.name for entry in entries if entry.is_dir() and (hidden or not _is_hidden(entry.name)))
    for name in below:
        yield from folders(folder / name, hidden=hidden, above=(*above, here))


def is_readable(path: Path) -> bool:
    """Whether a path is a file.

    Raises:
        StorageError: it is a link to a missing file, which nobody may take for no file.
    """
    if path.is_symlink() and not path.exists():
        raise StorageError(f"{path} is a link to {os.readlink(path)}, which is missing: restore it, or remove the link")
    return path.is_file()


def objects_below(folder: UPath, depth: int | None = None, prefix: str = "") -> dict[str, FileInfo]:
    """Objects below a folder of an object store by their relative names, sorted; a lone object has the name "".

    Args:
        depth: most parts of a name; unlimited by default.
        prefix: beginning of the first part.
    """
    wanted: dict[str, Any] = {"prefix": prefix} if prefix else {}
    with storage_errors(folder):
        entries = folder.fs.find(folder.path, maxdepth=depth, detail=True, **wanted)
    start = len(folder.path.rstrip("/")) + 1
    # Some programs mark a folder with an object whose name ends in a slash.
    names = sorted((name for name in entries if entries[name].get("type") == "file" and name[-1:] != "/"), key=_parts)
    return {name[start:]: _remote_info(folder, name, entries[name]) for name in names}


def relative(place: Location, folder: Location) -> str | None:
    """Name of a file below a folder; None if it is elsewhere."""
    start = f"{folder.as_posix().rstrip('/')}/"
    name = place.as_posix()
    return name.removeprefix(start) if name.startswith(start) else None


def sibling(place: UPath, path: str) -> UPath:
    """Another path in the same object store."""
    return _in_store(place.protocol, path.lstrip("/"), place.storage_options)


def _in_store(scheme: str, path: str, options: Mapping[str, Any]) -> UPath:
    for mark in ("::", "?versionId="):
        if mark in path:
            raise StorageError(f"{scheme}://{path}: the store's library reads {mark} as an instruction: rename it")
    place: UPath = UPath(f"{scheme}://{path}", **options)
    return place


def info(place: Location) -> FileInfo:
    """One file, as in a listing.

    Raises:
        FileNotFoundError: it is not there.
    """
    if isinstance(place, Path):
        found = place.stat()
        return FileInfo(place, found.st_size, str(found.st_mtime_ns))
    with storage_errors(place):
        return _remote_info(place, place.path, place.fs.info(place.path))


def open_read(place: Location) -> BinaryIO:
    """The file, opened for reading at any position. The caller closes it."""
    with storage_errors(place):
        return place.open("rb")


@contextlib.contextmanager
def local(place: Location) -> Iterator[Path]:
    """A path on this machine, for libraries that open only those: the file itself, or a copy inside the block."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
        copy = Path(folder) / place.name
        download(place, copy)
        yield copy


def download(place: UPath, path: Path) -> None:
    """Copy an object to a local path."""
    with storage_errors(place):
        place.fs.get_file(place.path, str(path))


def transfer(what: str, copy: Callable[[str], None], sizes: Mapping[str, int]) -> None:
    """Copy several files at a time and show progress; stop at the first error."""
    with progress.Progress(what, sum(sizes.values()), "bytes") as shown, ThreadPoolExecutor(TRANSFERS) as transfers:
        running = {name: transfers.submit(copy, name) for name in sizes}
        try:
            for name, copied in running.items():
                copied.result()
                shown.advance(sizes[name])
        except BaseException:
            transfers.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def writing(place: Location) -> Iterator[Path]:
    """A temporary file of this machine to fill; it appears at its location when the block ends without an error.

    Of two writers of the same file the last one stays; neither ever sees or harms the other's half.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
        try:
            yield temporary
            sync(temporary)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as folder:
        temporary = Path(folder) / place.name
        yield temporary
        upload(temporary, place)


def upload(path: Path, place: UPath) -> None:
    """Make an object of a local file, with its SHA-256 as metadata."""
    carried = _carried(place, file_sha256(path))
    with storage_errors(place):
        place.fs.put_file(str(path), place.path, **carried)


def create_text(place: UPath, text: str) -> None:
    """Create an object; if several processes try at once, one succeeds.

    Raises:
        FileExistsError: it is there already.
    """
    with storage_errors(place):
        place.fs.pipe_file(place.path, text.encode(), mode="create")


def write_json(place: Location, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinity).
    """
    text = json_text(value)
    with writing(place) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """The JSON text of a value.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinity).
    """
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(place: Location) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it is not JSON in UTF-8.
    """
    return json.loads(read_bytes(place).decode("utf-8"))


def read_bytes(place: Location) -> bytes:
    """The contents of a small file, of one version even while other processes replace it."""
    if isinstance(place, Path):
        return place.read_bytes()
    # One request: a file object first asks for the size, and fails if another process writes in between.
    one: dict[str, Any] = {"max_concurrency": 1} if place.protocol in ("s3", "s3a") else {}
    with storage_errors(place):
        return bytes(place.fs.cat_file(place.path, **one))


def remove(place: Location) -> None:
    """Remove a file, if it exists."""
    with storage_errors(place), contextlib.suppress(FileNotFoundError):
        if isinstance(place, Path):
            place.unlink()
        else:
            place.fs.rm_file(place.path)


def remove_tree(folder: Location) -> None:
    """Remove a folder with all contents, if it exists."""
    with storage_errors(folder), contextlib.suppress(FileNotFoundError):
        if isinstance(folder, Path):
            shutil.rmtree(folder)
        else:
            _remove_objects(folder, folder.fs.find(folder.path))


def file_sha256(place: Location) -> str:
    """SHA-256 of a file's contents."""
    if isinstance(place, Path):
        with place.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    digest = hashlib.sha256()
    with storage_errors(place), open_read(place) as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def stated_sha256(place: Location) -> str:
    """SHA-256 that an object carries, otherwise that of its contents."""
    if isinstance(place, Path):
        return file_sha256(place)
    with storage_errors(place):
        if place.protocol in ("s3", "s3a"):
            carried = place.fs.metadata(place.path)
        else:
            carried = place.fs.info(place.path).get("metadata") or {}
    return str(carried.get(_SHA256) or file_sha256(place))


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_objects(folder: UPath, keys: list[str]) -> None:
    """Remove objects by their exact keys: ``fs.rm`` takes them for patterns."""
    if (bulk := getattr(folder.fs, "_bulk_delete", None)) is None:
        with ThreadPoolExecutor(TRANSFERS) as removals:
            list(removals.map(folder.fs.rm_file, keys))
        return
    for start in range(0, len(keys), _BULK):
        fsspec.asyn.sync(folder.fs.loop, bulk, keys[start : start + _BULK])


def _is_hidden(name: str) -> bool:
    """Whether a part of a relative name begins with a dot."""
    return name.startswith(".") or "/." in name


def _remote_info(place: UPath, name: str, entry: Mapping[str, Any]) -> FileInfo:
    found = (entry.get(key) for key in ("ETag", "etag", "LastModified", "updated", "mtime", "created"))
    stamp = next((str(value).strip('"') for value in found if value), "")
    return FileInfo(sibling(place, name), int(entry["size"]), stamp)


def _carried(place: UPath, sha256: str) -> dict[str, Any]:
    """Arguments with which a store keeps a SHA-256 with an object."""
    if place.protocol in ("s3", "s3a"):
        return {"Metadata": {_SHA256: sha256}}
    return {"metadata": {_SHA256: sha256}} if place.protocol in ("gs", "gcs") else {}


def _parts(name: str) -> list[str]:
    """Objects are sorted as paths are: ``a/b`` before ``a-b``."""
    return name.split("/")
