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

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import mimetypes
import secrets
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import web

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError

MAX_RESULT_BYTES = 2**20
IDLE_SECONDS = 30.0
"""Deadline of a handshake, of the head of the next request, and of a client that takes in nothing of a response."""
BODY_SECONDS = 60.0
"""Deadline of the body of a request, from its first byte to its last."""
MAX_CONNECTIONS = 64
"""Open at once; a browser opens about six."""
_CHUNK_BYTES = 2**18
_PATH = web.ResponseKey("path", Path)
"""The file that a response consists of."""

_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".part": "application/octet-stream",
    ".webmanifest": "application/manifest+json",
    ".md": "text/plain; charset=utf-8",
}
_HEADERS = {
    # Browsers give threads only to pages that are isolated from others.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Server": "stillhouse",
}

logger = logging.getLogger(__name__)


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
        listener = socket.create_server((host, port), backlog=128)  # a browser opens many connections at once
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise StageError(
            f"cannot serve the page at {host}:{port}: {reason}; set placement.port to another one"
        ) from None
    listener.setblocking(False)
    with listener:
        stop: Future[Callable[[], object]] = Future()
        server = _Server(inbox, listener, tls)
        thread = threading.Thread(target=lambda: asyncio.run(server.run(stop)), daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stop.result()()
            thread.join()


class _Connection(web.RequestHandler):
    """One client."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A response then counts as sent when the kernel has all of it, so that its deadline covers its end too.
        assert isinstance(transport, asyncio.WriteTransport)
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.closed.set()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer without a stack trace and library versions; malformed requests are not worth a log entry."""
        if status >= 500:
            logger.error("cannot answer a request", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionResetError("the response has begun")
        if self.transport is not None:
            asyncio.get_running_loop().call_later(IDLE_SECONDS, self.transport.abort)
        return _refusal(HTTPStatus(status), HTTPStatus(status).phrase)


class _Server:
    """Serves one inbox: accepts connections and answers their requests."""

    def __init__(self, inbox: ResultInbox, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        self._inbox, self._listener, self._tls = inbox, listener, tls
        # Browsers send a cookie to every port of a host, and two jobs may wait on one host.
        self._cookie = f"stillhouse_token_{listener.getsockname()[1]}"
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, stop: "Future[Callable[[], object]]") -> None:
        """Serve until another thread calls the function that this sets as the result of ``stop``."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        manager = web.Server(self.answer)
        accepting = loop.create_task(self._accept(manager))
        stop.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        accepting.cancel()  # asyncio.run cancels the connections

    async def _accept(self, manager: web.Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError:  # the client left, or this process has no file descriptors
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= MAX_CONNECTIONS:
                client.close()
                continue
            task = loop.create_task(self._connect(manager, client))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _connect(self, manager: web.Server, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # The access log would contain the token.
        settings: dict[str, Any] = {"access_log": None, "lingering_time": 0, "auto_decompress": False}
        connection = _Connection(manager, loop=loop, keepalive_timeout=IDLE_SECONDS, **settings)
        deadlines = {"ssl_handshake_timeout": IDLE_SECONDS, "ssl_shutdown_timeout": 1.0} if self._tls else {}
        with contextlib.suppress(OSError):  # a failed handshake
            transport, _ = await loop.connect_accepted_socket(lambda: connection, client, ssl=self._tls, **deadlines)
            try:
                await connection.closed.wait()
            finally:
                transport.abort()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.method == "POST":
                response: web.StreamResponse = await self._post(request)
            elif request.method == "GET":
                response = self._get(request)
            else:
                response = _refusal(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or POST")
            try:
                await _send(request, response)
            finally:
                if response.status == HTTPStatus.CREATED:
                    self._inbox.done.set()
        except OSError:  # the client is gone or too slow, or a file is missing
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError from None
        return response

    def _get(self, request: web.BaseRequest) -> web.StreamResponse:
        if "t" in request.query:
            return self._open(request.query.getall("t")[-1])
        if not self._has_token(request):
            reason = "This page needs its link: open the link or scan the QR code of the job."
            return _refusal(HTTPStatus.FORBIDDEN, reason)
        path = request.rel_url.raw_path
        if path == "/job":
            return _response(text=json.dumps({**self._inbox.job, "id": self._inbox.id}), kind="application/json")
        return self._file("index.html" if path == "/" else path[1:], request.headers.get("If-None-Match"))

    def _open(self, token: str) -> web.Response:
        if not self._is_token(token):
            return _refusal(HTTPStatus.FORBIDDEN, "No job waits for this link: ask for a new one.")
        self._inbox.opened.set()
        response = _response(HTTPStatus.SEE_OTHER, headers={"Location": "/"})
        # Lax: links in messages work, and no other site can post with it.
        secure = self._tls is not None
        response.set_cookie(self._cookie, token, max_age=86400, httponly=True, samesite="Lax", secure=secure)
        return response

    def _has_token(self, request: web.BaseRequest) -> bool:
        return self._is_token(request.cookies.get(self._cookie, ""))

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(errors="replace"), self._inbox.token.encode())

    def _file(self, name: str, known_tag: str | None) -> web.StreamResponse:
        page = self._inbox.page
        if name not in page.files:
            return _refusal(HTTPStatus.NOT_FOUND, "this page has no such file")
        path, entry = page.path / name, page.files[name]
        # The name of a part contains its digest. A browser asks again for every other file, and may get a 304.
        caching = "private, max-age=31536000, immutable" if name.endswith(".part") else "no-cache"
        headers = {"ETag": f'"{entry["sha256"][:32]}"', "Cache-Control": caching}
        if known_tag == headers["ETag"]:
            return _response(HTTPStatus.NOT_MODIFIED, headers=headers)
        response = web.StreamResponse(headers={**_HEADERS, **headers, "Content-Type": _type(path)})
        response.content_length = int(entry["bytes"])
        response[_PATH] = path
        return response

    async def _post(self, request: web.BaseRequest) -> web.Response:
        inbox = self._inbox
        if not self._has_token(request):
            return _refusal(HTTPStatus.FORBIDDEN, "this token does not belong to the job")
        if request.rel_url.raw_path != "/result":
            return _refusal(HTTPStatus.NOT_FOUND, "post to /result")
        if request.query.getall("job", []) != [inbox.id]:
            reason = "the numbers were measured for another job: reload the page and measure again"
            return _refusal(HTTPStatus.BAD_REQUEST, reason)
        if request.content_length is None:
            return _refusal(HTTPStatus.LENGTH_REQUIRED, "a result needs a Content-Length")
        if request.content_length > MAX_RESULT_BYTES:
            return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a result has at most {MAX_RESULT_BYTES} bytes")
        if request.content_type != "application/json":
            return _refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a result is application/json")
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
        try:
            result = inbox.accept(json.loads(body))
        except ResultError as error:
            return _refusal(HTTPStatus.BAD_REQUEST, str(error))
        except (ValueError, RecursionError):
            return _refusal(HTTPStatus.BAD_REQUEST, "a result is JSON")
        if inbox.result is not None:
            return _refusal(HTTPStatus.CONFLICT, "this link already has a result")
        inbox.result = result
        return _response(HTTPStatus.CREATED, "accepted\n")


def _response(
    status: HTTPStatus = HTTPStatus.OK,
    text: str = "",
    kind: str = "text/plain",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    about = {**_HEADERS, "Cache-Control": "no-store", "Content-Type": f"{kind}; charset=utf-8", **(headers or {})}
    return web.Response(status=status, body=text.encode(), headers=about)


def _refusal(status: HTTPStatus, reason: str) -> web.Response:
    response = _response(status, f"{reason}\n")
    response.force_close()  # the body of the request was not read
    return response


async def _send(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Send a response, with a deadline for every chunk: a large file may take long, a stalled client may not.

    Raises:
        OSError: the client took in nothing for IDLE_SECONDS, or the file cannot be read to its end.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(IDLE_SECONDS) as deadline:
        await response.prepare(request)
        if _PATH in response:
            with response[_PATH].open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    await response.write(chunk)
                    deadline.reschedule(loop.time() + IDLE_SECONDS)
                if file.tell() != response.content_length:
                    raise OSError("the file changed")
        await response.write_eof()


def _type(path: Path) -> str:
    return _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
