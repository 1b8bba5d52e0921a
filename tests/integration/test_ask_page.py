"""The page of ``stillhouse ask`` in a real Chromium: by keyboard, by screen reader, on a phone, and with bad input."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altered_models
import ask_setup
import chromium
import phone_setup
import pytest
from page_checks import LUMINANCE, NAMELESS, SMALL

from cluster.serving import http_server
from deploy import predict
from deploy.ask.found_models import find
from deploy.ask.server import AskServer
from deploy.ask.side_by_side import Models

pytestmark = [phone_setup.needs_chromium, pytest.mark.long]

READY = "document.getElementById('answer').getAttribute('aria-disabled') === 'false'"
DONE = "document.getElementById('answers').getAttribute('aria-busy') === 'false'"
FOCUSED = (
    "(({ id, name, tagName, className, value }) =>"
    " id || (name === 'topics' ? `topics ${value}` : className || tagName))(document.activeElement)"
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return ask_setup.pipeline(tmp_path_factory.mktemp("pipeline") / "demo")


@pytest.fixture(scope="module")
def address(pipeline) -> Iterator[str]:
    server = AskServer("demo", find([pipeline]), Models(threads=1))
    with http_server.serving(server.answer, http_server.listen("127.0.0.1", 0)) as port:
        yield f"http://127.0.0.1:{port}/"
        server.close()


@pytest.fixture
def opened(tab, address) -> chromium.Tab:
    tab.go(address)
    tab.wait(READY)
    return tab


def text(tab: chromium.Tab, selector: str) -> str:
    return str(tab.run(f"document.querySelector({json.dumps(selector)}).innerText")).replace("\u00a0", " ")


def texts(tab: chromium.Tab, selector: str) -> list[str]:
    script = f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText)"
    return [str(each).replace("\u00a0", " ") for each in tab.run(script)]


def choose(tab: chromium.Tab, task: str) -> None:
    tab.run(f"document.querySelector('#topics input[value=\"{task}\"]').click()")
    tab.wait(READY)


def submit(tab: chromium.Tab, text: str, **others: str) -> None:
    """Fill the fields as a person would paste, and press the button."""
    for name, value in {"text": text, **others}.items():
        tab.run(f"document.getElementById('{name}').value = {json.dumps(value)}")
    tab.run("document.getElementById('ask').requestSubmit()")
    tab.wait(DONE)


def replace_by_keyboard(tab: chromium.Tab, text: str) -> None:
    """Select all of the field that has the focus, and type."""
    tab("dispatchKeyEvent", "Input", type="keyDown", key="a", code="KeyA", modifiers=2, commands=["selectAll"])
    tab("dispatchKeyEvent", "Input", type="keyUp", key="a", code="KeyA", modifiers=2)
    tab.type(text)


def tab_to(tab: chromium.Tab, name: str) -> None:
    for _ in range(30):
        if tab.run(FOCUSED) == name:
            return
        tab.key("Tab")
    raise AssertionError(f"the keyboard does not reach {name}")


def shares(found: Any) -> list[tuple[str, str]]:
    return [(each.text, f"{100 * each.probability:.1f} %") for each in found]


def shown(tab: chromium.Tab, role: str) -> list[tuple[str, str]]:
    return list(zip(texts(tab, f".{role} .what"), texts(tab, f".{role} .share"), strict=True))


def test_by_keyboard_alone_both_models_answer_as_predict_does(opened, pipeline):
    """Masked words, then another task; no mouse and no script touches the page."""
    tab_to(opened, "text")
    replace_by_keyboard(opened, "The ")
    tab_to(opened, "mask")
    opened.key(" ", " ")
    assert opened.run(FOCUSED) == "text", "the button returns to the sentence"
    opened.type(" ground barley.")
    assert opened.run("document.getElementById('text').value") == "The [MASK] ground barley."
    opened.key("Enter", "\r")
    opened.wait("document.querySelectorAll('.answer').length === 2")
    for role, folder in (("teacher", "teacher"), ("student", "students/student")):
        wanted = predict.load(pipeline / folder)("The [MASK] ground barley.")
        assert shown(opened, role) == shares(wanted)
        assert "median of" in text(opened, f".{role} .time")
    assert "The student is" in text(opened, ".headline")
    opened.run("document.activeElement.blur()")
    tab_to(opened, "topics Masked words")
    for task in ("mrpc", "squad", "sst2"):
        opened.key("ArrowRight")
        assert opened.run(FOCUSED) == f"topics {task}"
        opened.wait(READY)
    tab_to(opened, "text")
    replace_by_keyboard(opened, "The copper still leaks.")
    tab_to(opened, "answer")
    opened.key("Enter", "\r")
    opened.wait("document.querySelectorAll('.answer').length === 2")
    for role in ("teacher", "student"):
        wanted = predict.load(pipeline / "finetune" / role / "sst2")("The copper still leaks.")
        assert shown(opened, role) == shares(wanted)
    assert text(opened, ".truth") == "In the data: bad", "the same text as an example's has its label"
    assert opened.complaints() == []


def test_pairs_and_exports_answer_as_predict_does(opened, pipeline):
    choose(opened, "mrpc")
    assert opened.run("document.getElementById('second').checkVisibility()")
    submit(opened, "The mill.", second="The river.")
    wanted = predict.load(pipeline / "finetune" / "student" / "mrpc")("The mill.", "The river.")
    assert shown(opened, "student") == shares(wanted)
    choose(opened, "sst2")
    assert not opened.run("document.getElementById('second').checkVisibility()")
    opened.run("document.querySelectorAll('#forms input')[1].click()")
    opened.wait(f"{READY} && document.getElementById('models').innerText.includes('ONNX Runtime')")
    submit(opened, "The river.")
    assert shown(opened, "teacher") == shares(predict.load(pipeline / "exports" / "teacher" / "onnx")("The river."))


def test_answers_are_marked_in_the_passage(opened, pipeline):
    """Python counts characters, JavaScript counts an emoji as two."""
    choose(opened, "squad")
    passage = "🙂🙂 The mill by the river has ground barley since the spring."
    submit(opened, "What was ground?", **{"passage-text": passage})
    for role in ("teacher", "student"):
        wanted = predict.load(pipeline / "finetune" / role / "squad")("What was ground?", passage)
        assert shown(opened, role) == shares(wanted)
        assert "".join(texts(opened, f"#passage mark.{role}")) == wanted[0].text
    assert text(opened, "#passage") == passage
    assert opened.complaints() == []


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        ("Masked words", "", "The text has no words: write some."),
        ("Masked words", "The mill ground barley.", "Nothing to fill: write [MASK] in the text for the missing word."),
        ("sst2", " \n", "The text has no words: write some."),
        ("sst2", "x" * 100_001, "The text has 100,001 characters, this page takes 100,000: shorten it."),
    ],
)
def test_bad_input_is_one_line_and_the_page_goes_on(opened, task, given, says):
    choose(opened, task)
    submit(opened, given)
    assert texts(opened, ".refused") == [says]
    assert opened.run("document.querySelectorAll('.answer').length") == 0
    submit(opened, "The [MASK].")
    assert opened.run("document.querySelectorAll('.answer').length") == 2
    assert opened.run("document.querySelector('.refused')") is None


def test_two_masks_have_two_lists_and_a_long_text_is_said_to_be_cut(opened):
    submit(opened, "The [MASK] ground [MASK].")
    assert texts(opened, ".student h4") == ["[MASK] 1", "[MASK] 2"]
    assert opened.run("document.querySelectorAll('.student .bars li').length") == 10
    choose(opened, "sst2")
    submit(opened, "b " * 50_000)
    assert texts(opened, ".warn") == ["Read 64 of 50002 tokens, the rest has no effect: shorten the text."] * 2


@pytest.mark.parametrize(("second", "says"), [("ground", "Same answer."), ("whole", "Different answers.")])
def test_models_agree_if_they_do_at_every_mask(opened, second, says):
    def answer(*words: str) -> dict[str, Any]:
        given = [{"text": text, "probability": 0.5, "mask": number} for number, text in enumerate(words, 1)]
        return {"predictions": given, "refusal": None, "milliseconds": 1.0, "calls": 5, "no_answer": None, "notes": []}

    answers = json.dumps([answer("mill", "ground"), answer("mill", second)])
    opened.run(f"window.fetch = async () => new Response({json.dumps(answers)})")
    submit(opened, "The [MASK] is [MASK].")
    assert text(opened, ".headline").startswith(says)


def test_text_from_right_to_left_is_shown_so(opened):
    submit(opened, "שלום [MASK] עולם")
    script = "getComputedStyle(document.getElementById('text')).direction"
    assert opened.run(script) == "rtl"
    submit(opened, "The [MASK] is open.")
    assert opened.run(script) == "ltr"


def test_a_changed_model_is_named_and_the_other_tasks_work(tab, pipeline, tmp_path):
    out = Path(shutil.copytree(pipeline, tmp_path / "out"))
    shutil.rmtree(out / "finetune" / "student" / "mrpc")
    altered_models.damaged(pipeline / "finetune" / "student" / "mrpc", out / "finetune" / "student" / "mrpc")
    server = AskServer("out", find([out]), Models(threads=1))
    with http_server.serving(server.answer, http_server.listen("127.0.0.1", 0)) as port:
        tab.go(f"http://127.0.0.1:{port}/")
        tab.wait(READY)
        tab.run("document.querySelector('#topics input[value=mrpc]').click()")
        tab.wait("document.getElementById('problem').hidden === false")
        assert "student/mrpc/model.safetensors was changed after it was made" in text(tab, "#problem")
        assert tab.run(READY) is False
        choose(tab, "sst2")
        assert tab.run("document.getElementById('problem').hidden")
        submit(tab, "The mill.")
        assert len(texts(tab, ".answer")) == 2
        server.close()
    submit(tab, "The mill.")
    assert "The server does not answer" in text(tab, ".refused")


def test_an_example_is_asked_with_one_press(opened):
    answers = "document.querySelectorAll('.answer').length === 2"
    assert len(texts(opened, "#examples button")) == 6
    opened.run("document.querySelector('#examples button').click()")
    opened.wait(answers)
    assert text(opened, ".truth").startswith("In the text: ")
    assert "held out" in text(opened, "#examples-from")
    top = opened.run("document.getElementById('answers-title').getBoundingClientRect().top")
    assert 0 <= top < 844, "a phone shows the answers"


def test_tab_order_is_screen_order_and_every_stop_shows_itself(opened):
    opened.run("document.querySelector('details').open = true")
    choose(opened, "squad")
    submit(opened, "What was ground?", **{"passage-text": "The mill has ground barley."})
    opened.run("document.activeElement.blur(); document.body.tabIndex = -1; document.body.focus()")
    found = []
    for _ in range(12):
        opened.key("Tab")
        stop = opened.run(
            f"[{FOCUSED}, document.activeElement.getBoundingClientRect().top + scrollY,"
            " getComputedStyle(document.activeElement.closest('.choice label') ?? document.activeElement).outlineStyle]"
        )
        if stop[0] == "BODY":
            break
        found.append(stop)
    names = [name for name, _, _ in found]
    assert names == ["skip", "topics squad", "passage-text", "text", "answer", "chip", "passage", "SUMMARY"]
    tops = [top for _, top, _ in found[1:]]
    assert tops == sorted(tops), "one column: down the screen"
    assert {ring for *_, ring in found} == {"solid"}


def spoken(tab: chromium.Tab) -> list[tuple[str, str]]:
    """Roles and names in the order of a screen reader."""
    tab("enable", "Accessibility")
    nodes = {node["nodeId"]: node for node in tab("getFullAXTree", "Accessibility")["nodes"]}

    def walk(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if not node.get("ignored"):
            yield node["role"]["value"], node.get("name", {}).get("value", "")
        for child in node.get("childIds", ()):
            yield from walk(nodes[child])

    return list(walk(next(node for node in nodes.values() if "parentId" not in node)))


def test_a_screen_reader_hears_the_page_in_the_order_of_the_screen(opened):
    submit(opened, "The [MASK] ground barley.")
    heard = spoken(opened)
    roles = {"heading", "radiogroup", "group", "radio", "textbox", "button", "status", "list", "region"}
    named = [(role, name) for role, name in heard if role in roles and name]
    wanted = [
        ("heading", "Stillhouse"),
        ("group", "Task"),
        ("radio", "Masked words"),
        ("heading", "Ask"),
        ("textbox", "Sentence"),
        ("button", "Insert [MASK]"),
        ("button", "Ask"),
        ("group", "Examples"),
        ("heading", "Answers"),
        ("group", "Teacher"),
        ("list", "Teacher: words"),
        ("group", "Student"),
        ("list", "Student: words"),
    ]
    places = [named.index(each) for each in wanted]
    assert places == sorted(places)
    live = opened.run("[...document.querySelectorAll('[aria-live], [role=alert]')].map((one) => one.id)")
    assert live == ["state", "problem", "answers"]
    teacher = next(place for place, each in enumerate(heard) if each == ("list", "Teacher: words"))
    words = texts(opened, ".teacher .what")
    assert [name for role, name in heard[teacher:] if role == "StaticText" and name in words][:5] == words


def test_the_page_fits_and_can_be_read_by_everyone(opened):
    choose(opened, "squad")
    submit(opened, "What was ground?", **{"passage-text": "The mill has ground barley." + " " + "x" * 300})
    opened.run("document.querySelector('details').open = true")
    for theme in ("light", "dark"):
        opened.theme(theme)
        opened.wait(f"matchMedia('(prefers-color-scheme: {theme})').matches")
        contrasts = opened.run(LUMINANCE)
        assert len(contrasts) > 30
        assert [entry for entry in contrasts if entry[1] < 4.5] == [], theme
    assert opened.run(NAMELESS) == []
    assert opened.run(SMALL) == []
    for width in (320, 390, 768, 1440):
        opened.screen(width, 900, mobile=width < 700)
        assert opened.run("document.documentElement.scrollWidth - innerWidth") <= 0, f"scrolls sideways at {width}"
    sides = opened.run("['teacher', 'student'].map((one) => document.querySelector(`.answer.${one}`).offsetTop)")
    assert sides[0] == sides[1], "side by side on a wide screen"
    assert opened.complaints() == []
