"""Locations: paths and URLs as one thing, and what goes wrong with them in one line.

A location is a :class:`pathlib.Path` for what this machine can open (``/data/text``, ``file:///data/text``) and a
``UPath`` for everything else (``s3://bucket/text``, ``gs://bucket/text``). Credentials and endpoints come from the
environment, as the libraries of the stores read them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``), never from a URL: URLs stand in recipes, manifests and messages.
"""

import contextlib
import errno
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import fsspec
from upath import UPath

Location: TypeAlias = Path | UPath

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SIGNED = ("http", "https")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_LIBRARIES = {"aiobotocore", "aiohttp", "botocore", "gcsfs", "google", "requests", "s3fs"}
"""Where the errors of object stores come from that are no OSError: credentials, endpoints, broken connections."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
        raise StorageError(f"{text}: {_one_line(error)}: {advice}") from None
    # Listings are never remembered: other processes and machines write to the same places.
    return UPath(f"{scheme}://{rest}", use_listings_cache=False)


def is_local(place: Location) -> bool:
    return isinstance(place, Path)


def explain(error: BaseException) -> str | None:
    """The one line for an error of an object store's library; None for any other."""
    if type(error).__module__.partition(".")[0] in _LIBRARIES:
        return _one_line(error)
    return None


@contextlib.contextmanager
def told(place: Location) -> Iterator[None]:
    """Makes one line of what the library of an object store raises in the block: where, what, and what to do.

    Raises:
        StorageError: what people can mend.
        FileNotFoundError: no such object, with its URL as the file name.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        if is_local(place) or isinstance(error, FileExistsError):
            raise
        if "bucket" in str(error).lower():
            raise StorageError(f"{place}: {_one_line(error)}: create the bucket, or name another") from None
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place)) from None
    except Exception as error:
        if is_local(place) or (isinstance(error, OSError) and error.errno in _FULL):
            raise
        if (line := explain(error)) is None and not isinstance(error, OSError):
            raise
        raise StorageError(f"{place}: {line or _one_line(error)}: {_advice(place)}") from None


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
