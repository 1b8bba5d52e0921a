"""Serve the measuring page to the holder of a one-time link, and accept one result.

A link is ``http://host:port/?t=<token>``. Opening it stores the token in a cookie. Without the cookie the server
refuses every request: page, models and job. The server accepts one result for a token.

::

    GET  /?t=TOKEN    303 to the page, with the cookie
    GET  /…           a file of the page's manifest, by its exact name; no other file can be reached
    GET  /job         what to measure: {"job": name, "id": …, "plan": {…}, "version": …}
    POST /result?job=ID   JSON of at most 1 MiB: 201 accepted, 400 with the reason, 409 the job has a result already

The id names the link that the numbers were measured for: a phone keeps numbers that it could not send, and may still
have them when it opens the link of another job.
"""

import contextlib
import hashlib
import hmac
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError
from cluster.serving import http_server
from cluster.serving.http_server import refusal, response

MAX_RESULT_BYTES = 2**20


class ResultError(ValueError):
    """The posted JSON is not a valid result; the phone shows the message."""


@dataclass
class ResultInbox:
    """A one-time token, the job it belongs to, and the result once it is accepted."""

    page: artifact.Artifact
    job: Mapping[str, Any]
    accept: Callable[[Any], Any]
    """Turns posted JSON into a result, or raises :class:`ResultError`."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    result: Any = None
    opened: threading.Event = field(default_factory=threading.Event)
    """Set when a client opens the link."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the result is accepted and its sender has the confirmation."""

    @property
    def id(self) -> str:
        """Public name of the link, which does not reveal the token."""
        return link_id(self.token)


def link_id(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]


@contextlib.contextmanager
def serving(inbox: ResultInbox, host: str, port: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve from a thread inside the block; yields the port. Leaving the block closes all connections.

    Raises:
        StageError: the address is not available.
    """
    try:
        listener = http_server.listen(host, port)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise StageError(
            f"cannot serve the page at {host}:{port}: {reason}; set placement.port to another one"
        ) from None

    def confirm(sent: web.StreamResponse) -> None:
        if sent.status == HTTPStatus.CREATED:
            inbox.done.set()

    answer = _Inbox(inbox, listener.getsockname()[1], secure=tls is not None).answer
    with http_server.serving(answer, listener, tls, confirm) as found:
        yield found


class _Inbox:
    """Answers the requests for one inbox."""

    def __init__(self, inbox: ResultInbox, port: int, secure: bool) -> None:
        self._inbox, self._secure = inbox, secure
        # Browsers send a cookie to every port of a host, and two jobs may wait on one host.
        self._cookie = f"stillhouse_token_{port}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "POST":
            return await self._post(request)
        if request.method == "GET":
            return self._get(request)
        return refusal(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or POST")

    def _get(self, request: web.BaseRequest) -> web.StreamResponse:
        if "t" in request.query:
            return self._open(request.query.getall("t")[-1])
        if not self._has_token(request):
            reason = "This page needs its link: open the link or scan the QR code of the job."
            return refusal(HTTPStatus.FORBIDDEN, reason)
        path = request.rel_url.raw_path
        if path == "/job":
            return response(text=json.dumps({**self._inbox.job, "id": self._inbox.id}), kind="application/json")
        return self._file("index.html" if path == "/" else path[1:], request.headers.get("If-None-Match"))

    def _open(self, token: str) -> web.Response:
        if not self._is_token(token):
            return refusal(HTTPStatus.FORBIDDEN, "No job waits for this link: ask for a new one.")
        self._inbox.opened.set()
        opened = response(HTTPStatus.SEE_OTHER, headers={"Location": "/"})
        # Lax: links in messages work, and no other site can post with it.
        opened.set_cookie(self._cookie, token, max_age=86400, httponly=True, samesite="Lax", secure=self._secure)
        return opened

    def _has_token(self, request: web.BaseRequest) -> bool:
        return self._is_token(request.cookies.get(self._cookie, ""))

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(errors="replace"), self._inbox.token.encode())

    def _file(self, name: str, known_tag: str | None) -> web.StreamResponse:
        page = self._inbox.page
        if name not in page.files:
            return refusal(HTTPStatus.NOT_FOUND, "this page has no such file")
        path, entry = page.path / name, page.files[name]
        # The name of a part contains its digest. A browser asks again for every other file, and may get a 304.
        caching = "private, max-age=31536000, immutable" if name.endswith(".part") else "no-cache"
        headers = {"ETag": f'"{entry["sha256"][:32]}"', "Cache-Control": caching}
        if known_tag == headers["ETag"]:
            return response(HTTPStatus.NOT_MODIFIED, headers=headers)
        return http_server.file_response(path, int(entry["bytes"]), headers)

    async def _post(self, request: web.BaseRequest) -> web.Response:
        inbox = self._inbox
        if not self._has_token(request):
            return refusal(HTTPStatus.FORBIDDEN, "this token does not belong to the job")
        if request.rel_url.raw_path != "/result":
            return refusal(HTTPStatus.NOT_FOUND, "post to /result")
        if request.query.getall("job", []) != [inbox.id]:
            reason = "the numbers were measured for another job: reload the page and measure again"
            return refusal(HTTPStatus.BAD_REQUEST, reason)
        body = await http_server.json_body(request, MAX_RESULT_BYTES, "a result")
        try:
            result = inbox.accept(json.loads(body))
        except ResultError as error:
            return refusal(HTTPStatus.BAD_REQUEST, str(error))
        except (ValueError, RecursionError):
            return refusal(HTTPStatus.BAD_REQUEST, "a result is JSON")
        if inbox.result is not None:
            return refusal(HTTPStatus.CONFLICT, "this link already has a result")
        inbox.result = result
        return response(HTTPStatus.CREATED, "accepted\n")
