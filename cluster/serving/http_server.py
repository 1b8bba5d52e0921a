"""A small HTTP server in a thread, for pages that people open: limits, deadlines, strict headers, and no access log.

A handler turns a request into a response. Clients are not trusted: the number of connections is limited, a deadline
ends each that stalls, malformed requests get a plain refusal, and no response reveals versions or stack traces.
"""

import asyncio
import contextlib
import logging
import mimetypes
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import web

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
HEADERS = {
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

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Sent: TypeAlias = Callable[[web.StreamResponse], None]
"""Called after a response was sent, also where its client has gone."""

logger = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that a handler cannot answer; ``status`` and the message go into the refusal."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one, ``::`` every address of both kinds.

    Raises:
        OSError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # A browser opens many connections at once.
    listener = socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=host == "::")
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def serving(
    handler: Handler, listener: socket.socket, tls: ssl.SSLContext | None = None, sent: Sent = lambda response: None
) -> Iterator[int]:
    """Serve from a thread inside the block; yields the port. Leaving the block closes all connections."""
    with listener:
        stop: Future[Callable[[], object]] = Future()
        server = _Server(handler, listener, tls, sent)
        thread = threading.Thread(target=lambda: asyncio.run(server.run(stop)), daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            stop.result()()
            thread.join()


def response(
    status: HTTPStatus = HTTPStatus.OK,
    text: str = "",
    kind: str = "text/plain",
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """A text, which no browser or proxy keeps."""
    about = {**HEADERS, "Cache-Control": "no-store", "Content-Type": f"{kind}; charset=utf-8", **(headers or {})}
    return web.Response(status=status, body=text.encode(), headers=about)


def refusal(status: HTTPStatus, reason: str) -> web.Response:
    found = response(status, f"{reason}\n")
    found.force_close()  # the body of the request was not read
    return found


def file_response(path: Path, size: int, headers: Mapping[str, str]) -> web.StreamResponse:
    """A file of ``size`` bytes."""
    found = web.StreamResponse(headers={**HEADERS, **headers, "Content-Type": _type(path)})
    found.content_length = size
    found[_PATH] = path
    return found


async def json_body(request: web.BaseRequest, limit: int, what: str) -> bytes:
    """The body of a request that says its length and that it is JSON; ``what`` begins the messages.

    Raises:
        RequestError: no length, too long, or another type.
        TimeoutError: it did not arrive in time.
    """
    if request.content_length is None:
        raise RequestError(HTTPStatus.LENGTH_REQUIRED, f"{what} needs a Content-Length")
    if request.content_length > limit:
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{what} has at most {limit} bytes")
    if request.content_type != "application/json":
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"{what} is application/json")
    async with asyncio.timeout(BODY_SECONDS):
        return await request.read()


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
        if isinstance(exc, ConnectionError):  # the client is gone
            raise exc
        if status >= 500:
            logger.error("cannot answer a request", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionResetError("the response has begun")
        if self.transport is not None:
            asyncio.get_running_loop().call_later(IDLE_SECONDS, self.transport.abort)
        return refusal(HTTPStatus(status), HTTPStatus(status).phrase)


class _Server:
    """Accepts connections and answers their requests."""

    def __init__(self, handler: Handler, listener: socket.socket, tls: ssl.SSLContext | None, sent: Sent) -> None:
        self._handler, self._listener, self._tls, self._sent = handler, listener, tls, sent
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, stop: "Future[Callable[[], object]]") -> None:
        """Serve until another thread calls the function that this sets as the result of ``stop``."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        manager = web.Server(self._answer)
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
        # The access log would contain tokens.
        settings: dict[str, Any] = {"access_log": None, "lingering_time": 0, "auto_decompress": False}
        connection = _Connection(manager, loop=loop, keepalive_timeout=IDLE_SECONDS, **settings)
        deadlines = {"ssl_handshake_timeout": IDLE_SECONDS, "ssl_shutdown_timeout": 1.0} if self._tls else {}
        with contextlib.suppress(OSError):  # a failed handshake
            transport, _ = await loop.connect_accepted_socket(lambda: connection, client, ssl=self._tls, **deadlines)
            try:
                await connection.closed.wait()
            finally:
                transport.abort()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            try:
                found = await self._handler(request)
            except RequestError as error:
                found = refusal(error.status, str(error))
            try:
                await _send(request, found)
            finally:
                self._sent(found)
        except OSError:  # the client is gone or too slow, or a file is missing
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError from None
        return found


async def _send(request: web.BaseRequest, found: web.StreamResponse) -> None:
    """Send a response, with a deadline for every chunk: a large file may take long, a stalled client may not.

    Raises:
        OSError: the client took in nothing for IDLE_SECONDS, or the file cannot be read to its end.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(IDLE_SECONDS) as deadline:
        await found.prepare(request)
        if _PATH in found:
            with found[_PATH].open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    await found.write(chunk)
                    deadline.reschedule(loop.time() + IDLE_SECONDS)
                if file.tell() != found.content_length:
                    raise OSError("the file changed")
        await found.write_eof()


def _type(path: Path) -> str:
    return _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
