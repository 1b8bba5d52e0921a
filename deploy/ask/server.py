"""Answers the requests of the page: its files, what can be asked, and questions.

::

    GET  /             the page, and its files by exact name
    GET  /page.json    the comparisons, with examples
    GET  /link.svg     the QR code of the page, where another device can reach it
    POST /open         {"comparison": KEY}: the models, loaded and warmed up
    POST /ask          {"comparison": KEY, "text": …, "second": … or null}: the answer and the time of each model

An error of the user is a refusal with one line. Texts are neither kept nor logged. One model runs at a time. A question
whose client has left is not asked. A page that only this machine reaches answers to no other name, so that no site can
read it with a name that leads here.
"""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web

from cluster.artifacts import errors
from cluster.serving import http_server, links
from cluster.serving.http_server import RequestError, response
from deploy.ask.found_models import Comparison
from deploy.ask.side_by_side import ModelAnswer, Models, OpenModel, StoppedError

MAX_BODY_BYTES = 2**20
MAX_CHARACTERS = 100_000
"""Of a text: about forty pages."""
MAX_WAITING = 8
"""Requests that wait for a model."""
LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names of this machine that lead nowhere else."""
PAGE, SHARED = Path(__file__).parent / "page", Path(__file__).parents[1] / "browser"
FILES = {
    "index.html": PAGE, "ask.js": PAGE, "ask.css": PAGE,
    **dict.fromkeys(("style.css", "icon.svg", "elements.js", "numbers.js", "answers.js"), SHARED),
}  # fmt: skip
"""Files of the page and their folders; the look and its parts are those of the page for phones."""

T = TypeVar("T")


class AskServer:
    """What the page shows and asks; :meth:`answer` is a handler for :func:`cluster.serving.http_server.serving`."""

    def __init__(self, name: str, comparisons: Sequence[Comparison], models: Models) -> None:
        self._comparisons = {comparison.key: comparison for comparison in comparisons}
        self._models = models
        self._name = name
        self._worker = ThreadPoolExecutor(1, "models")
        self._waiting = 0
        self.link: str | None = None
        """The address of the page for other devices; None where they cannot reach it."""

    def close(self) -> None:
        """End the running question, and refuse others."""
        self._models.stop()
        self._worker.shutdown(cancel_futures=True)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.link is None and (host := _host(request)) not in LOCAL:
            name = LOCAL[0]
            raise RequestError(HTTPStatus.FORBIDDEN, f"{host} is no name of this page: open it at {name}")
        path = request.rel_url.raw_path
        if request.method == "POST":
            return await self._post(request, path)
        if request.method == "GET":
            return self._get(path)
        raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, "use GET or POST")

    def _get(self, path: str) -> web.StreamResponse:
        if path == "/page.json":
            return response(text=json.dumps(self._described()), kind="application/json")
        if path == "/link.svg" and self.link is not None:
            return response(text=links.svg(self.link), kind="image/svg+xml")
        name = "index.html" if path == "/" else path[1:]
        if name not in FILES:
            raise RequestError(HTTPStatus.NOT_FOUND, "this page has no such file")
        file = FILES[name] / name
        return http_server.file_response(file, file.stat().st_size, {"Cache-Control": "no-store"})

    def _described(self) -> dict[str, Any]:
        return {
            "name": self._name,
            "threads": self._models.threads,
            "link": self.link,
            "comparisons": [_comparison_json(comparison) for comparison in self._comparisons.values()],
        }

    async def _post(self, request: web.BaseRequest, path: str) -> web.Response:
        if path not in ("/open", "/ask"):
            raise RequestError(HTTPStatus.NOT_FOUND, "post to /open or /ask")
        # Other sites may not use the models: browsers ask first before they send JSON to another site.
        asked = _parse(await http_server.json_body(request, MAX_BODY_BYTES, "a question"))
        comparison = self._comparisons.get(str(asked.get("comparison")))
        if comparison is None:
            raise RequestError(HTTPStatus.NOT_FOUND, "these models are not here any more: reload the page")
        if path == "/open":
            opened = await self._run(request, lambda: self._models.open(comparison))
            return _json([_model_json(model) for model in opened])
        text, second = _text(asked.get("text"), "text"), asked.get("second")
        other = None if second is None else _text(second, "second text")
        answers = await self._run(request, lambda: self._models.ask(comparison, text, other))
        return _json([_answer_json(answer) for answer in answers])

    async def _run(self, request: web.BaseRequest, call: Callable[[], T]) -> T:
        """Run a call after those that wait, unless its client leaves meanwhile."""

        def run() -> T:
            if request.transport is None:
                raise ConnectionResetError("the client left")
            return call()

        if self._waiting >= MAX_WAITING:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "too many questions are waiting: ask again in a moment")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, run)
        except StoppedError:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending") from None
        except ConnectionResetError:
            raise
        except Exception as error:
            if (line := errors.explain(error)) is None:
                raise
            raise RequestError(HTTPStatus.BAD_REQUEST, line) from None
        finally:
            self._waiting -= 1


def _host(request: web.BaseRequest) -> str:
    """The name that a client knows this page by, without the port."""
    return re.sub(r":\d*$", "", request.headers.get("Host", LOCAL[0])).lower()


def _parse(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RequestError(HTTPStatus.BAD_REQUEST, "a question is a JSON object")
    return found


def _text(given: Any, name: str) -> str:
    if not isinstance(given, str):
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the {name} is not text: write some")
    if len(given) > MAX_CHARACTERS:
        said = f"the {name} has {len(given):,} characters, this page takes {MAX_CHARACTERS:,}: shorten it"
        raise RequestError(HTTPStatus.BAD_REQUEST, said)
    return given


def _json(value: Any) -> web.Response:
    return response(text=json.dumps(value), kind="application/json")


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "key": comparison.key,
        "title": comparison.title,
        "form": comparison.form,
        "head": comparison.head,
        "examples": [asdict(example) for example in comparison.examples],
        "examples_from": comparison.examples_from,
        "models": [{"role": model.role, "title": model.title, "tuning": model.tuning} for model in comparison.models],
    }


def _model_json(model: OpenModel) -> dict[str, Any]:
    described = model.model.described
    return {"note": model.note, "texts": described.texts, "positions": described.positions}


def _answer_json(answer: ModelAnswer) -> dict[str, Any]:
    said = answer.said
    return {
        "refusal": answer.refusal,
        "milliseconds": answer.milliseconds,
        "calls": answer.calls,
        "predictions": None if said is None else [asdict(each) for each in said],
        "no_answer": None if said is None or said.no_answer is None else said.no_answer.chosen,
        "notes": [] if said is None else [note for note in (said.no_answer_note, said.cut_note) if note is not None],
    }
