import asyncio
import contextlib
import http.client
import json
import select
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from waiting import wait_until

from cluster.artifacts import artifact
from cluster.artifacts.errors import StageError
from cluster.serving import http_server, links
from cluster.serving.http_server import BODY_SECONDS, IDLE_SECONDS, MAX_CONNECTIONS
from eval.mobile import one_time_link, page_server
from eval.mobile.page_server import (
    MAX_RESULT_BYTES,
    ResultError,
    ResultInbox,
    link_id,
    serving,
)

FILES = {"index.html": "<!doctype html>", "page.js": "export {}", "models/a b.part": "abc", "libraries/ort.wasm": "w"}


@pytest.fixture
def page(tmp_path: Path) -> artifact.Artifact:
    with artifact.create(tmp_path / "page", kind="export", inputs={}, recipe={}) as draft:
        for name, text in FILES.items():
            (draft.path / name).parent.mkdir(exist_ok=True)
            (draft.path / name).write_text(text)
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "page" / "late.txt").write_text("not of the artifact")
    return artifact.read(tmp_path / "page")


class Clock:
    """Clock of the server's event loop: it stands still until a test moves it."""

    now = 0.0

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """Must come before the server: it replaces the clock of every event loop."""
    clock = Clock()
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda _: clock.now)
    return clock


@pytest.fixture
def served(page):
    def accept(posted):
        if posted != {"answer": 42}:
            raise ResultError("answer: 42 is wanted")
        return posted

    inbox = ResultInbox(page, {"job": "pocket"}, accept)
    with serving(inbox, "127.0.0.1", 0) as port:
        yield inbox, port


def ask(port: int, path: str, method: str = "GET", body: bytes | None = None, token: str | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if token is not None:
        headers["Cookie"] = f"other=1; stillhouse_token_{port}={token}"
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def post(port: int, token: str | None, body: bytes, kind: str = "application/json", path: str | None = None):
    return ask(port, path or f"/result?job={link_id(token or '')}", "POST", body, token, Content_Type=kind)[:2]


def test_the_link_gives_the_page_and_only_with_its_token(served):
    inbox, port = served
    for path in ("/", "/page.js", "/job", "/models/a%20b.part", "/?t=", "/?t=wrong", f"/?t={inbox.token}x"):
        status, text, _ = ask(port, path)
        assert status == 403, path
        assert "doctype" not in text
    assert ask(port, "/", token="wrong")[0] == 403
    assert not inbox.opened.is_set()
    status, _, headers = ask(port, f"/?t={inbox.token}")
    assert (status, headers["Location"]) == (303, "/")
    assert inbox.opened.is_set()
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"stillhouse_token_{port}={inbox.token};")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert ask(port, "/", token=inbox.token)[:2] == (200, FILES["index.html"])
    assert json.loads(ask(port, "/job", token=inbox.token)[1]) == {"job": "pocket", "id": inbox.id}


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/late.txt", "/manifest.json",
        "/models/", "/models", "/./index.html", "/index.html/", "/models/../index.html", "/\\..\\secret.txt",
    ],
)  # fmt: skip
def test_paths_outside_the_page_are_refused(served, path):
    inbox, port = served
    status, text, _ = ask(port, path, token=inbox.token)
    assert status == 404
    assert "secret" not in text


def test_responses_have_isolation_headers_and_content_types(served):
    inbox, port = served
    for path, kind in {
        "/": "text/html",
        "/page.js": "text/javascript",
        "/libraries/ort.wasm": "application/wasm",
    }.items():
        status, _, headers = ask(port, path, token=inbox.token)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert "Python" not in headers["Server"]
        status, text, _ = ask(port, path, token=inbox.token, If_None_Match=headers["ETag"])
        assert (status, text) == (304, "")


def test_the_server_accepts_one_result(served):
    inbox, port = served
    right = json.dumps({"answer": 42}).encode()
    assert post(port, None, right)[0] == 403
    assert post(port, "wrong", right)[0] == 403
    assert post(port, inbox.token, right, path="/elsewhere")[0] == 404
    assert post(port, inbox.token, right, kind="text/plain")[0] == 415
    assert post(port, inbox.token, b"{") == (400, "a result is JSON\n")
    assert post(port, inbox.token, b"[" * 100_000)[0] == 400
    assert post(port, inbox.token, b'{"answer": 41}') == (400, "answer: 42 is wanted\n")
    assert not inbox.done.is_set()
    assert post(port, inbox.token, right)[0] == 201
    assert inbox.done.wait(5)
    assert inbox.result == {"answer": 42}
    assert post(port, inbox.token, right)[0] == 409


def test_results_of_another_job_are_refused(served, page):
    """A phone may have unsent results of another job, and it sends its cookies to every port of this host."""
    inbox, port = served
    right = json.dumps({"answer": 42}).encode()
    for path in ("/result", "/result?job=", f"/result?job={link_id('another')}", f"/result?job={inbox.id}&job=x"):
        status, said = post(port, inbox.token, right, path=path)
        assert (status, "measured for another job" in said) == (400, True), path
    assert inbox.result is None
    second = ResultInbox(page, {"job": "second"}, inbox.accept)
    with serving(second, "127.0.0.1", 0) as other:
        cookies = f"stillhouse_token_{port}={inbox.token}; stillhouse_token_{other}={second.token}"
        told = {at: json.loads(ask(at, "/job", Cookie=cookies)[1])["id"] for at in (port, other)}
    assert told == {port: inbox.id, other: second.id}


@pytest.mark.parametrize(
    ("length", "status"), [(str(MAX_RESULT_BYTES + 1), 413), ("-1", 400), ("many", 400), (None, 411), ("²", 400)]
)
def test_a_body_has_a_length_and_a_limit(served, length, status):
    """The server refuses at once, without waiting for the body."""
    inbox, port = served
    said = f"Content-Length: {length}\r\n" if length else ""
    request = (
        f"POST /result?job={inbox.id} HTTP/1.1\r\nHost: x\r\n"
        f"Cookie: stillhouse_token_{port}={inbox.token}\r\n{said}\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode("latin-1"))
        answer = connection.makefile("rb").read()  # until the server closes the connection
    assert answer.split()[1] == str(status).encode()


def test_a_truncated_body_is_refused(served):
    inbox, port = served
    request = (
        f"POST /result?job={inbox.id} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Cookie: stillhouse_token_{port}={inbox.token}\r\nContent-Length: 100\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode() + b'{"answer": 42}')
        connection.shutdown(socket.SHUT_WR)
        assert not connection.makefile("rb").read().startswith(b"HTTP/1.1 2")
    assert inbox.result is None


def test_idle_connections_do_not_block_others(served):
    inbox, port = served
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    try:
        assert ask(port, "/", token=inbox.token)[0] == 200
    finally:
        for connection in idle:
            connection.close()


def test_connections_are_limited_and_freed(served):
    inbox, port = served
    with contextlib.ExitStack() as idle:
        held = [idle.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MAX_CONNECTIONS)]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as surplus:
            assert surplus.recv(1) == b"", "closed at once"
        held.pop().close()
        assert retry_until_accepted(port, inbox.token) == 200
    # As many connections again: the server has freed every place.
    with contextlib.ExitStack() as kept:
        for _ in range(MAX_CONNECTIONS):
            retry_until_accepted(port, inbox.token, kept)


def retry_until_accepted(port: int, token: str, kept: contextlib.ExitStack | None = None) -> int:
    """Request the page until the server has a place: it frees the place of a connection a moment after its end."""

    def try_once() -> int | None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/", headers={"Cookie": f"stillhouse_token_{port}={token}"})
            answer = connection.getresponse()
            answer.read()
        except (ConnectionError, http.client.BadStatusLine):
            connection.close()
            return None
        if kept is None:
            connection.close()
        else:
            kept.callback(connection.close)
        return answer.status

    return wait_until(try_once, what="the server accepts the connection")


def test_failed_requests_free_their_connections(served, monkeypatch, caplog):
    inbox, port = served

    def fail(*_):
        raise RuntimeError("a fault of the server")

    with monkeypatch.context() as patched:
        patched.setattr(page_server._Inbox, "_get", fail)
        for _ in range(MAX_CONNECTIONS + 1):
            status, text, headers = ask(port, "/", token=inbox.token)
            assert (status, text, headers["Server"]) == (500, "Internal Server Error\n", "stillhouse")
    assert retry_until_accepted(port, inbox.token) == 200
    assert "a fault of the server" in caplog.text


def test_failed_handshakes_free_their_connections(page, certificate, clock):
    inbox = ResultInbox(page, {}, dict)
    with serving(inbox, "127.0.0.1", 0, one_time_link.tls(*certificate)) as port, contextlib.ExitStack() as silent:
        for _ in range(MAX_CONNECTIONS):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with contextlib.suppress(ConnectionError):
                    connection.recv(4096)
        for _ in range(MAX_CONNECTIONS):
            silent.enter_context(socket.create_connection(("127.0.0.1", port)))

        def try_after_another_deadline() -> int | None:
            clock.advance(IDLE_SECONDS)
            with contextlib.suppress(OSError), contextlib.closing(https(port)) as connection:
                connection.request("GET", "/")
                return connection.getresponse().status
            return None

        assert wait_until(try_after_another_deadline, what="the server ends a silent handshake") == 403


@pytest.mark.parametrize("request_line", ["GET / HTTP/9", "nonsense", "GET http://[ HTTP/1.1", "PUT / HTTP/1.1"])
def test_malformed_requests_get_a_plain_refusal(served, request_line, caplog):
    _, port = served
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{request_line}\r\nHost: x\r\n\r\n".encode())
        answer = connection.makefile("rb").read().decode()
    assert answer.split()[1] in ("400", "405")
    assert "Cross-Origin-Opener-Policy: same-origin" in answer
    assert "Python" not in answer
    assert caplog.text == ""


def test_a_client_that_reads_nothing_is_disconnected(page, clock, monkeypatch):
    whole = bytes(2**25)
    (page.path / "libraries" / "ort.wasm").write_bytes(whole)
    monkeypatch.setitem(page.files["libraries/ort.wasm"], "bytes", len(whole))
    inbox = ResultInbox(page, {}, dict)
    with serving(inbox, "127.0.0.1", 0) as port, contextlib.ExitStack() as stalled:
        cookie = f"stillhouse_token_{port}={inbox.token}"
        request = f"GET /libraries/ort.wasm HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode()
        for _ in range(MAX_CONNECTIONS):
            connection = stalled.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(request)

        def try_after_another_deadline() -> int | None:
            clock.advance(IDLE_SECONDS)
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                return ask(port, "/", token=inbox.token)[0]
            return None

        assert wait_until(try_after_another_deadline, what="the server disconnects a stalled client") == 200


@pytest.mark.parametrize(("part", "deadline"), [("head", IDLE_SECONDS), ("body", BODY_SECONDS)])
def test_a_request_that_is_sent_too_slowly_is_ended(clock, served, part, deadline):
    inbox, port = served

    def advance(seconds: float) -> None:
        """Move the clock; a request on another connection then makes the event loop run its timers."""
        ask(port, "/")
        clock.advance(seconds)
        ask(port, "/")

    head = (
        f"POST /result?job={inbox.id} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Cookie: stillhouse_token_{port}={inbox.token}\r\nContent-Length: 10000\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + (b"\r\n" if part == "body" else b"X: "))
        for _ in range(9):
            advance(deadline / 10)
            assert not select.select([connection], [], [], 0)[0], "the server has closed the connection"
            connection.sendall(b"x")
        advance(deadline / 10 + 1)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
    assert inbox.result is None


def test_idle_and_slowly_read_connections_outlive_the_deadline_of_a_request(page, clock, monkeypatch):
    """BODY_SECONDS limits how long a client sends, not how long it reads a large file."""
    monkeypatch.setattr(http_server, "BODY_SECONDS", IDLE_SECONDS / 3)
    whole = bytes(2**24)
    (page.path / "libraries" / "ort.wasm").write_bytes(whole)
    monkeypatch.setitem(page.files["libraries/ort.wasm"], "bytes", len(whole))
    inbox = ResultInbox(page, {"job": "pocket"}, dict)
    with serving(inbox, "127.0.0.1", 0) as port, socket.create_connection(("127.0.0.1", port), 10) as connection:
        cookie = f"stillhouse_token_{port}={inbox.token}"
        request = f"GET /libraries/ort.wasm HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode()
        for _ in range(2):
            ask(port, "/")
            clock.advance(IDLE_SECONDS / 2)
            # In two pieces: the server reads the second one with less time than the response has.
            connection.sendall(request[:9])
            ask(port, "/")
            clock.advance(IDLE_SECONDS / 4)
            connection.sendall(request[9:])
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            # The server waits: the socket buffers do not hold the whole file.
            ask(port, "/")
            clock.advance(IDLE_SECONDS / 2)
            ask(port, "/")
            assert (answer.status, len(answer.read())) == (200, len(whole))


def test_the_error_names_the_port_in_use(served, page):
    _, port = served
    again = serving(ResultInbox(page, {}, dict), "127.0.0.1", port)
    with pytest.raises(StageError, match=rf"127\.0\.0\.1:{port}: .* set placement\.port"), again:
        pass


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return str(certificate), str(key)


def https(port: int) -> http.client.HTTPSConnection:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)


def test_https_cookies_are_secure(page, certificate):
    inbox = ResultInbox(page, {}, dict)
    with serving(inbox, "127.0.0.1", 0, one_time_link.tls(*certificate)) as port:
        silent = socket.create_connection(("127.0.0.1", port))  # never completes its handshake
        connection = https(port)
        connection.request("GET", f"/?t={inbox.token}")
        answer = connection.getresponse()
        assert "; Secure" in answer.headers["Set-Cookie"]
        answer.read()
        kept = connection.sock
    # The job closes its connections when it ends, without waiting for the client's timeout.
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert kept.recv(1) == b""
    connection.close()
    silent.close()


def test_half_of_a_certificate_is_refused(tmp_path):
    assert one_time_link.tls(None, None) is None
    with pytest.raises(StageError, match=r"set placement\.certificate and placement\.key"):
        one_time_link.tls("cert.pem", None)
    (tmp_path / "a.pem").write_text("no certificate")
    with pytest.raises(StageError, match="certificate and its key in PEM"):
        one_time_link.tls(str(tmp_path / "a.pem"), str(tmp_path / "a.pem"))


@pytest.mark.parametrize(
    ("address", "secure"),
    [
        ("http://localhost:8765", True), ("http://127.0.0.1:80", True), ("https://bench.example.org", True),
        ("http://[::1]:8765", True), ("http://192.168.1.20:8765", False), ("http://localhost.example.org", False),
    ],
)  # fmt: skip
def test_which_links_a_browser_trusts(address, secure):
    assert one_time_link.is_secure(address) == secure


def test_the_terminal_shows_the_qr_code_of_the_link():
    segno = pytest.importorskip("segno")
    link = one_time_link.link("http://192.168.1.20:8765/", "a-token")
    assert link == "http://192.168.1.20:8765/?t=a-token"
    lines = links.terminal(link)
    halves = {"█": (0, 0), "▀": (0, 1), "▄": (1, 0), " ": (1, 1)}
    drawn = [[halves[sign][half] for sign in line] for line in lines for half in (0, 1)]
    wanted = [list(line) for line in segno.make(link, error="l", micro=False).matrix_iter(border=2)]
    assert drawn[: len(wanted)] == wanted
    assert all(line.strip() for line in lines), "an empty line would be left out of a job's log"
