"""The measuring page in a real headless Chromium with a phone's screen and a slowed processor."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import chromium
import numpy as np
import phone_setup
import pytest
from aiohttp import web
from page_checks import LUMINANCE, NAMELESS
from page_driver import READY, ask, open_page, text
from transformers import AutoTokenizer
from waiting import wait_until

from cluster.artifacts import artifact, stage
from cluster.models import runtimes
from cluster.serving import http_server
from eval.mobile import page_server
from eval.mobile.page_server import serving
from eval.mobile.stage import STAGE, Mobile

pytestmark = [phone_setup.needs_libraries, phone_setup.needs_chromium, pytest.mark.long]

QUESTION = "When did the train leave?"


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    return phone_setup.exports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def page(exports, tmp_path_factory) -> artifact.Artifact:
    return phone_setup.page(tmp_path_factory.mktemp("pages"), exports)


def test_a_job_waits_for_a_phone_and_gets_its_numbers(tab, page, tmp_path, caplog):
    """A complete benchmark: link, page, measurement, artifact."""
    caplog.set_level("INFO")
    asked = Mobile.of({"way": {"kind": "browser"}, **phone_setup.PLAN, "placement": {"host": "127.0.0.1", "port": 0}})
    out = tmp_path / "pocket"
    job = threading.Thread(target=stage.execute, args=(STAGE, asked, {"page": page.path}, out), daemon=True)
    job.start()
    tab.go(wait_for_link(caplog))
    tab.wait(READY)
    assert tab.run("location.search") == "", "the token does not stay in the address"
    assert "goes to the job “pocket”" in text(tab, "plan")
    tab.run("document.getElementById('measure').click()")
    job.join(120)
    tab.wait("document.getElementById('delivery').innerText.startsWith('Sent')")
    made = artifact.verify(out, "benchmark")
    assert made.facts["way"] == "browser"
    ways = [(row["model"], row["threads"], row["length"], row["samples"]) for row in made.facts["rows"]]
    assert ways == [(role, threads, 48, 4) for threads in (1, 2) for role in ("student", "teacher")]
    for row in made.facts["rows"]:
        assert min(row["p50_ms"], row["first_ms"], row["load_seconds"], row["tokenise"]["max_ms"]) > 0
        assert row["runtime"] == "onnxruntime-web 1.30.0 WebAssembly int8"
        assert row["ratio_to_teacher"] > 0
    assert made.facts["device"]["isolated"]
    assert made.facts["device"]["screen"] == "390 × 844 at 3"
    assert not {"link.svg", "link.json"} & {*made.files}, "the artifact must not contain the link"
    shown = text(tab, "results")
    assert "48 tokens · 2 threads" in shown
    assert " × as fast, " in shown
    assert "iPhone 7 Plus" in shown
    assert tab.run("document.querySelectorAll('#results svg rect.bar').length") == 4
    assert "No job waits" not in text(tab, "delivery")
    assert tab.complaints() == []


def wait_for_link(caplog) -> str:
    found = wait_until(lambda: re.search(r"http://127\.0\.0\.1:\d+/\?t=\S+", caplog.text), what="the link")
    return found[0]


def test_a_typed_question_is_answered_as_the_models_do(tab, page, exports):
    passage = "A train leaves the station every morning."
    with open_page(tab, page):
        ask(tab, passage, QUESTION)
        for role, export in exports.items():
            scores = span_scores(export, passage)
            script = (
                "(() => { let at = 0; const found = [];"
                " for (const node of document.getElementById('passage').childNodes) {"
                f" if (node.classList?.contains('{role}')) found.push([at, at + node.textContent.length]);"
                " at += node.textContent.length; } return [found[0][0], found.at(-1)[1]]; })()"
            )
            start, end = tab.run(script)
            assert tab.run(f"document.querySelector('.answer.{role} .said').innerText") == passage[start:end]
            # int8 products round differently on other processors, so nearly equal answers may swap.
            assert scores[start, end] > max(scores.values()) - 0.1
        assert re.search(r"ms model \+ [\d.]+ ms tokenizing · \d\d tokens", text(tab, "answers"))
        assert tab.complaints() == []


def span_scores(export: Path, passage: str) -> dict[tuple[int, int], float]:
    """Score of every answer by its characters, from the export in ONNX Runtime on this processor."""
    tokenizer = AutoTokenizer.from_pretrained(export)
    encoded = tokenizer(QUESTION, passage, return_offsets_mapping=True, return_tensors="np")
    feed = {
        name: encoded[name].astype(np.int64) for name in json.loads((export / "runtime.json").read_text())["inputs"]
    }
    found = runtimes.open_export(export)(feed)
    characters = encoded["offset_mapping"][0].tolist()
    places = [place for place, part in enumerate(encoded.sequence_ids(0)) if part == 1]
    scores: dict[tuple[int, int], float] = {}
    for first in places:
        for last in places[places.index(first) : places.index(first) + 30]:
            span = (characters[first][0], characters[last][1])
            score = float(found["start_logits"][0, first] + found["end_logits"][0, last])
            scores[span] = max(score, scores.get(span, score))
    return scores


@pytest.mark.parametrize(
    "odd",
    [
        "don't stop: the mill's wheel-house, 3.5 %!",
        "  Ünïcode naïve CAFÉ\n\tand tabs ",
        "10°C costs €5 (or £4) + tax",
        "北京 has 李 people",
        "[SEP] [MASK] <b>",
        "🙂 smile, ok?",
        "",
    ],
)
def test_javascript_tokenizes_like_the_tokenizer(tab, page, exports, odd):
    """Pieces with their offsets, and the ids that the model was trained with."""
    with open_page(tab, page):
        script = (
            "(async () => { const { Tokenizer } = await import('./libraries/tokenizers.min.mjs');"
            "const { piecesOf } = await import('./words.js');"
            "const [a, b] = await Promise.all(['tokenizer', 'tokenizer_config'].map(async (name) =>"
            " (await fetch(`models/student/${name}.json`)).json()));"
            f"const text = {json.dumps(odd)}; const {'{ ids, places }'} = piecesOf(new Tokenizer(a, b), text);"
            "return [ids, places.map(([from, to]) => text.slice(from, to))]; })()"
        )
        ids, words = tab.run(script)
    plain = AutoTokenizer.from_pretrained(exports["student"])
    # Special tokens typed by a user are ordinary text.
    wanted = plain(odd.replace("[SEP]", "[ SEP ]").replace("[MASK]", "[ MASK ]"), add_special_tokens=False)["input_ids"]
    assert ids == wanted
    assert all(word.strip() == word and word for word in words)


def test_the_page_works_offline_and_sends_results_later(tab, page):
    """Reload without a server, answer and measure; the page sends the results when the server is back."""
    inbox = phone_setup.result_inbox(page)
    with serving(inbox, "127.0.0.1", 0) as port:
        tab.go(f"http://127.0.0.1:{port}/?t={inbox.token}")
        tab.wait(READY)
        tab.wait("document.getElementById('offline').hidden === false")
    tab.reload()
    tab.wait(READY)
    assert tab.run("self.crossOriginIsolated"), "threads stay"
    ask(tab, "The mill by the river has ground barley.", "What was ground?")
    tab.run("document.getElementById('measure').click()")
    tab.wait("document.getElementById('delivery').innerText.startsWith('Not sent yet')")
    tab.reload()
    tab.wait("document.getElementById('delivery').innerText.startsWith('Not sent yet')")
    assert " × as fast, " in text(tab, "results")
    with serving(inbox, "127.0.0.1", port):
        assert inbox.done.wait(60)
        tab.wait("document.getElementById('delivery').innerText.startsWith('Sent')")
    assert len(inbox.result.rows) == 4


RECORD_STATES = """
[window.states, window.news] = [[], []];
navigator.serviceWorker?.addEventListener('message', ({ data }) => window.news.push(data.bytes));
new MutationObserver(() => {
  const said = document.getElementById('state')?.textContent;
  if (said && said !== window.states.at(-1)) window.states.push(said);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""
PAGES_KEPT = """
(async () => {
  const names = (await caches.keys()).filter((name) => name.startsWith('stillhouse-page-'));
  const entries = await Promise.all(names.map(async (name) => (await (await caches.open(name)).keys()).length));
  return entries.reduce((sum, count) => sum + count, 0);
})()
"""


def test_caching_the_page_shows_its_progress(tab, page):
    tab("addScriptToEvaluateOnNewDocument", "Page", source=RECORD_STATES)
    with open_page(tab, page):
        states = tab.run("window.states")
        kept, news = tab.run(PAGES_KEPT), tab.run("window.news")
        assert tab.complaints() == []
    worker = (page.path / "service_worker.js").read_text()
    total = int(re.search(r"const TOTAL = (\d+);", worker)[1])
    assert kept == len(json.loads(worker.partition("const SHELL = ")[2].partition(";")[0]))
    said = [found for state in states if (found := re.fullmatch(r"Saving .*… ([\d.]+) MB of (\d+) MB", state))]
    numbers = [float(found[1]) for found in said]
    # The page stops listening when the worker is active: on a busy machine that is before the last messages arrive.
    assert numbers, states
    assert numbers == sorted(numbers)
    assert {found[2] for found in said} == {f"{total / 1e6:.0f}"}
    assert len(news) > 10
    assert news[-1] == total, "every byte is counted once"
    steps = [after - before for before, after in itertools.pairwise([0, *news])]
    assert min(steps[:-1]) >= 2**18, "no more messages than a person can see"
    assert tab.run("document.getElementById('state').getAttribute('aria-live')") == "polite"
    tab.reload()  # the server has stopped
    tab.wait(READY)
    assert tab.run("self.crossOriginIsolated")


@pytest.mark.parametrize("fault", ["refused", "cut short"])
def test_an_incomplete_download_is_not_cached(tab, page, monkeypatch, fault):
    whole = page_server._Inbox._file

    def spoilt(server: page_server._Inbox, name: str, known_tag: str | None) -> web.StreamResponse:
        response = whole(server, name, known_tag)
        if name == "libraries/LICENCES.md" and fault == "refused":
            return http_server.refusal(HTTPStatus.SERVICE_UNAVAILABLE, "not now")
        if name == "libraries/LICENCES.md":
            response.content_length = (response.content_length or 0) + 1000
        return response

    monkeypatch.setattr(page_server._Inbox, "_file", spoilt)
    with open_page(tab, page):
        assert "does not work offline" in text(tab, "state")
        assert tab.run("document.getElementById('offline').hidden")
        assert tab.run(PAGES_KEPT) == 0


def test_loading_resumes_after_a_lost_connection(tab, page):
    inbox = phone_setup.result_inbox(page)
    described = json.loads((page.path / "page.json").read_text())
    lost = page.path / described["models"][1]["parts"][1]["path"]
    kept = lost.with_suffix(".kept")
    lost.rename(kept)  # the response begins and breaks off
    try:
        with serving(inbox, "127.0.0.1", 0) as port:
            tab.go(f"http://127.0.0.1:{port}/?t={inbox.token}")
            tab.wait("document.getElementById('state').innerText.startsWith('No connection')")
            assert tab.run("document.getElementById('answer').disabled") is False, "the student answers meanwhile"
            kept.rename(lost)
            tab.wait(READY)
    finally:
        if kept.exists():
            kept.rename(lost)


def test_a_damaged_part_is_reported_and_downloaded_again(tab, exports, tmp_path):
    page = phone_setup.page(tmp_path, exports)
    described = json.loads((page.path / "page.json").read_text())
    part = page.path / described["models"][0]["parts"][0]["path"]
    whole = part.read_bytes()
    part.write_bytes(bytes(len(whole)))
    inbox = phone_setup.result_inbox(page)
    with serving(inbox, "127.0.0.1", 0) as port:
        tab.go(f"http://127.0.0.1:{port}/?t={inbox.token}")
        tab.wait("document.getElementById('problem').hidden === false")
        assert "arrived damaged" in text(tab, "problem")
        assert tab.run("document.documentElement.scrollWidth - innerWidth") <= 0, "the name of the part is long"
        part.write_bytes(whole)
        tab.run("setTimeout(() => document.getElementById('again').click())")
        tab.wait(READY)


def test_results_of_one_job_are_never_sent_to_another(tab, page):
    """Unsent results of one job are not sent to the next job, which gets its own."""
    first = phone_setup.result_inbox(page)
    with serving(first, "127.0.0.1", 0) as port:
        tab.go(f"http://127.0.0.1:{port}/?t={first.token}")
        tab.wait(READY)
    tab.run("document.getElementById('measure').click()")
    tab.wait("document.getElementById('delivery').innerText.startsWith('Not sent yet')")
    second = phone_setup.result_inbox(page)
    with serving(second, "127.0.0.1", port):
        tab.go(f"http://127.0.0.1:{port}/?t={second.token}")
        tab.wait(READY)
        tab.wait("document.getElementById('delivery').innerText.includes('measured for another job')")
        assert second.result is None
        tab.run("document.getElementById('measure').click()")
        assert second.done.wait(60)
        tab.wait("document.getElementById('delivery').innerText.startsWith('Sent')")


def test_the_page_shows_why_no_backend_works(tab, page):
    with open_page(tab, page):
        script = (
            "(async () => { const { measureAll } = await import('./measuring.js');"
            "const { models } = await (await fetch('page.json')).json();"
            "const given = { setups: [{ backend: 'abacus', threads: 1 }], models, text: {}, device: {},"
            f" plan: {json.dumps(phone_setup.PLAN)} }};"
            "return measureAll(given, () => {}, { asked: false }).then(String, (error) => error.message); })()"
        )
        assert tab.run(script).startswith("The models do not run on this device: ")


def test_licenses_open_from_the_cached_page(tab, page):
    with open_page(tab, page):
        tab.wait("navigator.serviceWorker.controller !== null")
        tab.run("document.querySelector('details').open = true; document.querySelector('details a').click()")
        tab.wait("location.pathname.endsWith('LICENCES.md') && document.readyState === 'complete'")
        assert "onnxruntime-web" in tab.run("document.body.innerText")


def test_without_the_token_the_server_shows_a_refusal(tab, page):
    inbox = phone_setup.result_inbox(page)
    with serving(inbox, "127.0.0.1", 0) as port:
        tab.go(f"http://127.0.0.1:{port}/")
        assert tab.run("document.body.innerText").startswith("This page needs its link")


def test_the_page_still_answers_after_stopping(tab, page):
    with open_page(tab, page) as (inbox, _):
        tab.run("document.getElementById('measure').click()")
        tab.wait("document.getElementById('stop').hidden === false")
        tab.run("document.getElementById('stop').click()")
        tab.wait(READY)
        assert tab.run("document.getElementById('results').hidden")
        assert inbox.result is None
        ask(tab, "Rain fell all night.", "When did rain fall?")


@pytest.fixture
def measured(tab, page) -> Iterator[chromium.Tab]:
    """A page that shows everything it can."""
    with open_page(tab, page) as (inbox, _):
        tab.run("document.getElementById('ask').requestSubmit()")
        tab.wait("document.querySelectorAll('.answer').length === 2")
        tab.wait(READY)
        tab.run("document.getElementById('measure').click()")
        assert inbox.done.wait(60)
        tab.wait(READY)
        tab.run("document.querySelector('details').open = true")
        yield tab


def test_the_page_is_accessible(measured):
    for theme in ("light", "dark"):
        measured.theme(theme)
        measured.wait(f"matchMedia('(prefers-color-scheme: {theme})').matches")
        contrasts = measured.run(LUMINANCE)
        assert len(contrasts) > 50
        assert [entry for entry in contrasts if entry[1] < 4.5] == [], theme
    assert measured.run(NAMELESS) == []
    assert measured.run("document.documentElement.lang") == "en"
    assert measured.run("[...document.querySelectorAll('h1, h2, h3')].map((head) => head.tagName)[0]") == "H1"
    small = (
        "[...document.querySelectorAll('button, input, select')].filter((one) => one.checkVisibility())"
        ".filter((one) => one.getBoundingClientRect().height < 36).map((one) => one.outerHTML)"
    )
    assert measured.run(small) == [], "too small for a finger"
    for width in (320, 390, 768, 1280):
        measured.screen(width, 800, mobile=width < 700)
        assert measured.run("document.documentElement.scrollWidth - innerWidth") <= 0, f"scrolls sideways at {width}"


def test_the_keyboard_reaches_everything_and_shows_where_it_is(measured):
    """Tab moves through the controls in page order, and each shows a focus ring."""
    measured.run("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    reached = []
    for _ in range(20):
        measured.key("Tab")
        name, ring = measured.run(
            "[document.activeElement.id || document.activeElement.className || document.activeElement.tagName,"
            " getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(name)
        assert ring == "solid" or name == "BODY", name
    wanted = ["skip", "text", "edit", "passage", "question", "answer", "chip", "measure"]
    order = [reached.index(name) for name in wanted]
    assert order[0] == 0
    assert sorted(order[1:-1]) == order[1:-1], reached
    assert {"scroll", "SUMMARY"} <= {*reached}
