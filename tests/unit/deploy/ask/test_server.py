"""What the page's server answers, and what it refuses."""

import contextlib
import http.client
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altered_models
import ask_setup
import models_with_heads
import pytest
from waiting import wait_until

from cluster.serving import http_server, links
from deploy import predict
from deploy.ask import server as ask_server
from deploy.ask.found_models import find
from deploy.ask.server import MAX_BODY_BYTES, MAX_CHARACTERS, MAX_WAITING, AskServer
from deploy.ask.side_by_side import Models

MASKED, SST2, MRPC, SQUAD = (
    "masked-words/Masked words/PyTorch", "classification/sst2/PyTorch", "classification/mrpc/PyTorch",
    "question-answering/squad/PyTorch",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ask_setup.pipeline(tmp_path_factory.mktemp("pipeline") / "demo")


@pytest.fixture(scope="module")
def served(pipeline: Path) -> Iterator[tuple[AskServer, int]]:
    server = AskServer("demo", find([pipeline]), Models(threads=1))
    with http_server.serving(server.answer, http_server.listen("127.0.0.1", 0)) as port:
        yield server, port
        server.close()


def request(port: int, path: str, body: bytes | None = None, method: str | None = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, body, named)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def ask(port: int, comparison: str, text: Any, second: Any = None, path: str = "/ask") -> tuple[int, Any]:
    body = json.dumps({"comparison": comparison, "text": text, "second": second}).encode()
    status, said, _ = request(port, path, body, Content_Type="application/json")
    return status, json.loads(said) if status == 200 else said


INPUTS = [
    (MASKED, "The [MASK] ground barley.", None),
    (MASKED, "The [MASK] ground [MASK].", None),
    (SST2, "The mill by the river.", None),
    (MRPC, "The mill.", "The river."),
    (SQUAD, "What was ground?", "The mill by the river has ground barley. 🙂 " * 30),
    (SST2, "river " * 200, None),
]


@pytest.mark.parametrize(("key", "text", "second"), INPUTS)
def test_both_models_answer_as_predict_does(served: Any, pipeline: Path, key: str, text: str, second: str) -> None:
    _server, port = served
    status, found = ask(port, key, text, second)
    assert status == 200
    models = next(one for one in find([pipeline]) if one.key == key).models
    assert len(models) == 2
    for model, answer in zip(models, found, strict=True):
        wanted = predict.load(model.folder)(text, second, 12 if model.head == "classification" else 5)
        told = [(each["text"], each["probability"], each["begin"], each["mask"]) for each in answer["predictions"]]
        assert told == [(each.text, each.probability, each.begin, each.mask) for each in wanted]
        assert answer["refusal"] is None
        assert answer["milliseconds"] > 0
        assert answer["calls"] >= 1
        assert answer["notes"] == [note for note in (wanted.no_answer_note, wanted.cut_note) if note]


def test_a_text_that_was_cut_is_said_as_predict_says_it(served: Any, pipeline: Path, capsys: Any) -> None:
    predict.main([str(pipeline / "finetune" / "teacher" / "sst2"), "river " * 200])
    line = capsys.readouterr().err.strip()
    assert line.startswith("read 64 of 202 tokens")
    assert {note for answer in ask(served[1], SST2, "river " * 200)[1] for note in answer["notes"]} == {line}


@pytest.mark.parametrize(
    ("key", "text", "second", "says"),
    [
        (SST2, "", None, "the text has no words: write some"),
        (SST2, " \n ", None, "the text has no words: write some"),
        (MASKED, "The mill ground barley.", None, "nothing to fill: write [MASK] in the text for the missing word"),
        (MASKED, "river " * 200 + "[MASK]", None, "[MASK] comes after the 64 tokens that the model reads"),
        (SST2, "a\0b", None, "NUL character"),
        (SST2, "a \ud800 b", None, "not UTF-8 at character 2"),
        (SST2, "one", "two", "fine-tuned on single texts"),
        (MRPC, "one", "", "the second text has no words"),
        (SQUAD, "", "The mill.", "the question has no words"),
        (SQUAD, "what " * 90, "The mill.", "the question fills all 64 tokens"),
    ],
)
def test_inputs_that_a_model_cannot_use_are_refused_in_one_line(
    served: Any, key: str, text: str, second: str, says: str
) -> None:
    status, found = ask(served[1], key, text, second)
    assert status == 200
    for answer in found:
        assert says in answer["refusal"]
        assert "\n" not in answer["refusal"]
        assert (answer["predictions"], answer["milliseconds"], answer["calls"]) == (None, None, 0)


def test_long_texts_are_read_or_refused(served: Any) -> None:
    _, port = served
    status, found = ask(port, SST2, "a" * 50_000 + " b" * 25_000)
    assert (status, len(found)) == (200, 2)
    status, said = ask(port, SST2, "b " * (MAX_CHARACTERS // 2) + "c")
    assert (status, said) == (400, "the text has 100,001 characters, this page takes 100,000: shorten it\n")
    too_long = b" " * (MAX_BODY_BYTES + 1)
    assert request(port, "/ask", too_long, Content_Type="application/json")[0] == 413
    assert ask(port, SST2, "The mill.")[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"{}", "application/json", 404),
        (b"{}", "text/plain", 415),
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (json.dumps({"comparison": SST2}).encode(), "application/json", 400),
        (json.dumps({"comparison": SST2, "text": 7}).encode(), "application/json", 400),
        (json.dumps({"comparison": SST2, "text": "a", "second": ["b"]}).encode(), "application/json", 400),
        (json.dumps({"comparison": [SST2], "text": "a"}).encode(), "application/json", 404),
    ],
)
def test_malformed_questions_are_refused_and_the_server_goes_on(
    served: Any, body: bytes, kind: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, port = served
    found, said, _ = request(port, "/ask", body, Content_Type=kind)
    assert found == status
    assert said.count("\n") == 1
    assert caplog.text == ""
    assert ask(port, SST2, "The mill.")[0] == 200


def test_the_page_has_its_files_and_no_others(served: Any) -> None:
    _, port = served
    for path, kind in {"/": "text/html", "/ask.js": "text/javascript", "/style.css": "text/css"}.items():
        status, text, headers = request(port, path)
        assert (status, headers["Content-Type"].partition(";")[0]) == (200, kind)
        assert text
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/../server.py", "/%2e%2e/server.py", "/page.js", "/index.html/", "//etc/passwd", "/link.svg"):
        assert request(port, path)[0] == 404, path
    assert request(port, "/", method="PUT")[0] == 405
    assert request(port, "/elsewhere", b"{}", Content_Type="application/json")[0] == 404


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for name, folder in ask_server.FILES.items():
        if name != "icon.svg":
            assert "//www" not in (folder / name).read_text(encoding="utf-8").replace("http://www.w3.org", ""), name


def test_texts_are_not_logged(served: Any, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level("DEBUG")
    _, port = served
    ask(port, SST2, "confidential honey")
    ask(port, SST2, "confidential\0honey")
    printed = capfd.readouterr()
    assert "confidential" not in caplog.text + printed.out + printed.err


def test_the_description_names_models_tasks_and_examples(served: Any) -> None:
    server, port = served
    described = json.loads(request(port, "/page.json")[1])
    assert (described["name"], described["threads"], described["link"]) == ("demo", 1, None)
    assert next(one["key"] for one in described["comparisons"]) == MASKED
    one = next(one for one in described["comparisons"] if one["key"] == SST2)
    assert [model["title"] for model in one["models"]] == ["Teacher", "Student"]
    assert one["examples"][0] == {"text": "The mill ground barley.", "second": None, "answer": "good"}
    server.link = "http://192.168.1.20:8321/"
    try:
        status, image, headers = request(port, "/link.svg")
    finally:
        server.link = None
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "image/svg+xml")
    assert "<svg" in image


def test_a_changed_model_is_an_error_on_the_page_and_the_others_answer(pipeline: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pipeline, tmp_path / "out"))
    shutil.rmtree(out / "finetune" / "student" / "mrpc")
    altered_models.damaged(pipeline / "finetune" / "student" / "mrpc", out / "finetune" / "student" / "mrpc")
    server = AskServer("out", find([out]), Models(threads=1))
    with http_server.serving(server.answer, http_server.listen("127.0.0.1", 0)) as port:
        status, said = ask(port, MRPC, "", path="/open")
        assert status == 400
        assert "student/mrpc/model.safetensors was changed after it was made" in said
        assert ask(port, SST2, "The mill.")[0] == 200
        server.close()


@contextlib.contextmanager
def held(server: AskServer) -> Iterator[None]:
    """Inside the block the models are busy."""
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go_on.wait(60)

    server._worker.submit(hold)
    assert begun.wait(60)
    try:
        yield
    finally:
        go_on.set()


def test_a_question_whose_client_has_left_is_not_asked(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A page that is reloaded again and again would fill the queue."""
    server, port = served
    asked: list[str] = []
    ask_models = server._models.ask
    monkeypatch.setattr(
        server._models, "ask", lambda key, text, second: asked.append(text) or ask_models(key, text, second)
    )
    body = json.dumps({"comparison": SST2, "text": "left", "second": None}).encode()
    head = f"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with held(server):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_WAITING)]
        for client in clients:
            client.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: server._waiting == MAX_WAITING, what="all wait")
        for client in clients:
            client.close()
        # The server reads the end of a connection in the order of its events.
        assert request(port, "/page.json")[0] == 200
    wait_until(lambda: server._waiting == 0, what="the queue is empty")
    assert ask(port, SST2, "stays")[0] == 200
    assert asked == ["stays"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:9000", 200), ("127.0.0.1", 200), ("[::1]:8321", 200), ("site.example:8321", 403)],
)
def test_a_page_of_this_machine_has_no_other_name(served: Any, host: str, status: int) -> None:
    """A site whose name leads to 127.0.0.1 could read the examples, which are text of the user."""
    _, port = served
    assert request(port, "/page.json", Host=host)[0] == status


def test_a_page_for_phones_may_have_any_name(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, port = served
    monkeypatch.setattr(server, "link", "http://192.0.2.7:8321/")
    assert request(port, "/", Host="desk.local")[0] == 200


def test_an_address_of_the_new_kind_serves(served: Any) -> None:
    server, _ = served
    try:
        listener = http_server.listen("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with http_server.serving(server.answer, listener) as port:
        connection = http.client.HTTPConnection("::1", port, timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        connection.close()
    assert links.reachable("::1") == "[::1]"


def test_only_so_many_questions_wait(tmp_path: Path) -> None:
    """The first holds the models, the others wait, one too many is sent away."""
    folder = models_with_heads.model_folder(tmp_path / "model", "distilbert", "classification")
    models = Models(threads=1)
    server = AskServer("model", find([folder]), models)
    (key,) = (one.key for one in find([folder]))
    with http_server.serving(server.answer, http_server.listen("127.0.0.1", 0)) as port:
        results: list[int] = []
        waiting = [threading.Thread(target=lambda: results.append(ask(port, key, "a")[0])) for _ in range(MAX_WAITING)]
        with held(server):
            for thread in waiting:
                thread.start()
            wait_until(lambda: server._waiting == MAX_WAITING, what="all wait")
            assert ask(port, key, "a") == (503, "too many questions are waiting: ask again in a moment\n")
        for thread in waiting:
            thread.join(60)
        assert results == [200] * MAX_WAITING
        server.close()
