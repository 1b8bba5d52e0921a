"""Serve a page that measures a phone to whoever has the one-time link, and take one result from it.

A link is ``http://host:port/?t=<token>``. Opening it puts the token into a cookie, and nothing at all is answered
without it: not the page, not the models, not the job. The token is worth one result; with that accepted it is spent.

::

    GET  /?t=TOKEN    303 to the page, with the cookie
    GET  /…           a file of the page's manifest, by its exact name; there is no other way to a file
    GET  /job         what to measure: {"job": name, "id": …, "plan": {…}, "version": …}
    POST /result?job=ID   JSON of at most 1 MiB: 201 taken, 400 why it is no result, 409 there is one already

The id says which link the numbers were measured for: a phone keeps what it could not send, and may hold it still when
it opens the link of another job.
"""

import contextlib
import hashlib
import hmac
import io
import json
import mimetypes
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError

MOST_RESULT_BYTES = 2**20
SILENCE_SECONDS = 30.0
"""After which a connection is closed that says nothing."""
REQUEST_SECONDS = 60.0
"""In which a request has arrived, from its first byte to the last of its body; the answer may take longer."""
MOST_CONNECTIONS = 64
"""At once, each with a thread of its own; a browser has about six."""
_CHUNK_BYTES = 2**18

_TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".part": "application/octet-stream",
    ".webmanifest": "application/manifest+json",
    ".md": "text/plain; charset=utf-8",
}

_HEADERS = {
    # Isolated from other pages, which is what browsers ask for before they give threads.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class ResultError(ValueError):
    """What was posted is no result; the message goes back to the phone."""


@dataclass
class ResultInbox:
    """One token, what it stands for, and what came back."""

    page: artifact.Artifact
    job: Mapping[str, Any]
    accept: Callable[[Any], Any]
    """Makes a result of what was posted as JSON, or raises :class:`ResultError`."""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    result: Any = None
    opened: threading.Event = field(default_factory=threading.Event)
    """Set when somebody has opened the link."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the result is here and its sender has been told so."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def id(self) -> str:
        """Of this link, for everybody to see: the token cannot be told from it."""
        return link_id(self.token)

    def take(self, posted: Any) -> bool:
        """Accept a result; whether it was the first.

        Raises:
            ResultError: it is none.
        """
        result = self.accept(posted)
        with self.lock:
            if self.result is not None:
                return False
            self.result = result
            return True


def link_id(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]


class Server(ThreadingHTTPServer):
    """An HTTP server of one exchange."""

    daemon_threads = True
    request_queue_size = 128  # a browser opens many connections at once

    def __init__(self, address: tuple[str, int], exchange: ResultInbox, tls: ssl.SSLContext | None) -> None:
        self.exchange = exchange
        self.tls = tls
        self._open: set[socket.socket] = set()
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread that would give it back
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        # In the connection's own thread: a client that never completes its handshake holds up nobody.
        request.settimeout(SILENCE_SECONDS)
        self._open.add(request)
        answered = request
        try:
            if self.tls is not None:
                answered = self.tls.wrap_socket(request, server_side=True)
                self._open.add(answered)  # which the connection is from here on
            super().finish_request(answered, client_address)
        finally:
            self._open.discard(request)
            self._open.discard(answered)

    def server_close(self) -> None:
        """Close, also connections that are kept alive: with the job its page ends."""
        super().server_close()
        for request in [*self._open]:
            with contextlib.suppress(OSError):  # it has just closed by itself
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A phone that goes away is no error of ours, and a trace of it is no news."""


@contextlib.contextmanager
def serving(exchange: ResultInbox, host: str, port: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve inside the block; yields the port.

    Raises:
        StageError: the address cannot be had.
    """
    try:
        server = Server((host, port), exchange, tls)
    except OSError as error:
        raise StageError(
            f"the page cannot be served at {host}:{port}: {error.strerror}; set placement.port to another one"
        ) from None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Arriving(io.RawIOBase):
    """What a client sends: a byte now and then would otherwise hold its thread for ever."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline: float | None = None

    def next_request(self) -> None:
        """Before its first byte a request has all the time that silence has."""
        self._deadline = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(self._patience())
        try:
            count = self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(SILENCE_SECONDS)  # of answers, which the deadline is not for
        if self._deadline is None:
            self._deadline = time.monotonic() + REQUEST_SECONDS
        return count

    def _patience(self) -> float:
        if self._deadline is None:
            return SILENCE_SECONDS
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not arrive in time")
        return min(SILENCE_SECONDS, left)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "stillhouse"
    sys_version = ""
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()  # it waits for every byte anew
        self._arriving = _Arriving(self.connection)
        self.rfile = io.BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        self._arriving.next_request()
        super().handle_one_request()

    def do_GET(self) -> None:
        exchange, url = self.server.exchange, urlsplit(self.path)
        given = parse_qs(url.query).get("t")
        if given is not None:
            self._open(given[-1])
        elif not self._known():
            self._refuse(HTTPStatus.FORBIDDEN, "This page needs its link: open the link or the QR code of the job.")
        elif url.path == "/job":
            self._answer(HTTPStatus.OK, json.dumps({**exchange.job, "id": exchange.id}).encode(), "application/json")
        else:
            self._file("index.html" if url.path == "/" else url.path[1:])

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        if not self._known():
            self._refuse(HTTPStatus.FORBIDDEN, "this token is not the job's")
        elif url.path != "/result":
            self._refuse(HTTPStatus.NOT_FOUND, "post to /result")
        elif parse_qs(url.query).get("job") != [self.server.exchange.id]:
            self._refuse(
                HTTPStatus.BAD_REQUEST, "they were measured for another job: reload the page and measure again"
            )
        elif (posted := self._body()) is not None:
            self._take(posted)

    def _open(self, token: str) -> None:
        if not self._is_token(token):
            self._refuse(HTTPStatus.FORBIDDEN, "This link is not the one of a job that waits: ask for a new one.")
            return
        self.server.exchange.opened.set()
        secure = "; Secure" if self.server.tls is not None else ""
        # Lax: links in messages work, and no other site can post with it.
        cookie = f"{self._cookie}={token}; Path=/; HttpOnly; SameSite=Lax; Max-Age=86400{secure}"
        self._answer(HTTPStatus.SEE_OTHER, b"", "text/plain", {"Location": "/", "Set-Cookie": cookie})

    @property
    def _cookie(self) -> str:
        # Browsers give a cookie to every port of a host, and two jobs may wait on one.
        return f"stillhouse_token_{self.server.server_port}"

    def _known(self) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and self._is_token(cookie.value)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.server.exchange.token.encode())

    def _file(self, name: str) -> None:
        page = self.server.exchange.page
        if name not in page.files:
            self._refuse(HTTPStatus.NOT_FOUND, "no such file on this page")
            return
        path, entry = page.path / name, page.files[name]
        tag = f'"{entry["sha256"][:32]}"'
        # Parts are named by what is in them; everything else is asked for again, which costs nothing where it is equal.
        kept = "private, max-age=31536000, immutable" if name.endswith(".part") else "no-cache"
        headers = {"ETag": tag, "Cache-Control": kept}
        if self.headers.get("If-None-Match") == tag:
            self._answer(HTTPStatus.NOT_MODIFIED, b"", None, headers)
            return
        self._head(HTTPStatus.OK, int(entry["bytes"]), _type(path), headers)
        with path.open("rb") as file:
            while piece := file.read(_CHUNK_BYTES):
                self.wfile.write(piece)

    def _body(self) -> Any:
        """The JSON that was posted; None where it was refused."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "say how long the result is")
        if int(length) > MOST_RESULT_BYTES:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a result has at most {MOST_RESULT_BYTES} bytes")
        if self.headers.get_content_type() != "application/json":
            return self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a result is application/json")
        read = self.rfile.read(int(length))
        if len(read) < int(length):  # it may be JSON all the same
            return self._refuse(HTTPStatus.BAD_REQUEST, "the result was cut short")
        try:
            return json.loads(read)
        except (ValueError, RecursionError):
            return self._refuse(HTTPStatus.BAD_REQUEST, "a result is JSON")

    def _take(self, posted: Any) -> None:
        try:
            first = self.server.exchange.take(posted)
        except ResultError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        if first:
            try:
                self._answer(HTTPStatus.CREATED, b"taken\n", "text/plain")
            finally:
                self.server.exchange.done.set()
        else:
            self._refuse(HTTPStatus.CONFLICT, "this link has brought its result already")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        # The body of what is refused is not read, so the connection cannot be used again.
        self.close_connection = True
        self._answer(status, f"{reason}\n".encode(), "text/plain; charset=utf-8")

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str | None, headers: Mapping[str, str] | None = None
    ) -> None:
        self._head(status, len(body), content_type, {"Cache-Control": "no-store", **(headers or {})})
        self.wfile.write(body)

    def _head(self, status: HTTPStatus, length: int, content_type: str | None, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        about = {"Content-Type": content_type} if content_type else {}
        for name, value in {**_HEADERS, **about, **headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Requests are not logged: their first line holds the token."""


def _type(path: Path) -> str:
    return _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
