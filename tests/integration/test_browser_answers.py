"""The page answers as ``cluster.models.span_decoding`` does, and says no answer, what was cut, and why it refuses."""

import json
from pathlib import Path

import chromium
import finetune_tasks
import model_exports
import models_with_heads
import page_driver
import phone_setup
import pytest
import tiny

from cluster.artifacts import artifact
from deploy import predict

pytestmark = [phone_setup.needs_libraries, phone_setup.needs_chromium, pytest.mark.long]

WORDS = " ".join(tiny.ENGLISH)
CASES = [
    ("what was ground?", "The mill by the river has ground barley."),
    ("when?", "Übermorgen, café\u0301 naïveté's\u200b end; 北京 10°C €5\x0bx \ufeff y."),
    ("who", "a"),
    ("what is it?", "of the and in the was"),
    ("what is it?", "was in the honey the of and"),
    ("ΣΑΣ?", "ΟΔΥΣΣΕΥΣ, Ǆ \u0378 honey"),
    ("what did she pour into the copper still?", WORDS[:400]),
    ("what did she pour into the copper still?", WORDS[300:2000]),
    ("what " * 40, WORDS[:700]),
]
"""Questions and passages: inside words, without accents, in one and in many windows."""

ASK = """
(async () => {{
  const {{ Engine }} = await import("./engine.js");
  const {{ models }} = await (await fetch("page.json")).json();
  const engine = new Engine();
  await engine.call("start", {{ backend: "wasm", threads: 1 }});
  for (const model of models) await engine.call("open", {{ model }});
  const found = [];
  for (const [question, passage] of {cases})
    for (const {{ role }} of models) {{
      const answer = await engine.call("answer", {{ role, question, passage }});
      found.push([answer.span && passage.slice(answer.span.start, answer.span.end), answer.margin, answer.none]);
    }}
  engine.close();
  return found;
}})()
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    """A student of SQuAD 2.0 that learned it, and a random teacher, in fp32, so that both runtimes compute the same."""
    root = tmp_path_factory.mktemp("exports")
    asked = finetune_tasks.colours(240, silent=True)
    finetune_tasks.write_squad(root / "data" / "train-v2.0.json", asked[:200])
    finetune_tasks.write_squad(root / "data" / "dev-v2.0.json", asked[200:])
    tiny.distilbert(root / "start", layers=2)
    values = {"task": "squad2", "epochs": 8, "learning_rate": 4e-3, "batch": 16, "max_length": 40}
    finetune_tasks.finetune(root / "start", root / "data", root / "student-model", **values)
    models_with_heads.model_folder(root / "teacher-model", "bert", "question-answering")
    return {role: model_exports.onnx(root / f"{role}-model", root / role) for role in ("student", "teacher")}


@pytest.fixture(scope="module")
def page(exports, tmp_path_factory) -> artifact.Artifact:
    return phone_setup.page(tmp_path_factory.mktemp("pages"), exports)


def test_javascript_and_python_give_the_same_answers(tab, page, exports):
    with page_driver.open_page(tab, page):
        found = iter(tab.run(ASK.format(cases=json.dumps(CASES))))
        assert tab.complaints() == []
    models = {role: predict.load(folder) for role, folder in exports.items()}
    kinds = set()
    for question, passage in CASES:
        for role, model in models.items():
            wanted = model(question, passage)
            said, margin, none = next(found)
            assert (said or "") == wanted[0].text, (role, question, passage)
            assert none == (wanted.no_answer is not None and wanted.no_answer.chosen)
            if wanted.no_answer is not None:
                kinds.add(none)
                assert margin == pytest.approx(wanted.no_answer.margin, abs=1e-3)
    assert kinds == {True, False}, "the student both answers and finds no answer"


def shown(tab: chromium.Tab, role: str) -> str:
    return str(tab.run(f"document.querySelector('.answer.{role}').innerText")).replace("\u00a0", " ")


def test_the_page_says_no_answer_with_its_margin(tab, page, exports):
    student = predict.load(exports["student"])
    question, passage = next(case for case in CASES if student(*case).no_answer.chosen)
    margin = student(question, passage).no_answer.margin
    with page_driver.open_page(tab, page):
        page_driver.ask(tab, passage, question)
        assert "No answer in this passage" in shown(tab, "student")
        assert f"{margin:.2f} logits above the best span" in shown(tab, "student")
        assert tab.run("document.querySelectorAll('mark.student').length") == 0
        assert "logits" not in shown(tab, "teacher")
        question, passage = next(case for case in CASES if not student(*case).no_answer.chosen)
        page_driver.ask(tab, passage, question)
        tab.wait("document.querySelectorAll('mark.student').length > 0")
        assert "logits above “no answer”" in shown(tab, "student")
        assert tab.complaints() == []


def test_the_page_says_when_it_cut_a_passage(tab, page):
    with page_driver.open_page(tab, page):
        page_driver.ask(tab, "mill river " * 2500, "What was ground?")
        for role in ("student", "teacher"):
            assert "Read the first 4,096 of 5,000 tokens" in shown(tab, role)
        assert tab.run("document.getElementById('passage').offsetHeight") < 500, "the answers stay in reach"
        page_driver.ask(tab, "mill river", "What was ground?")
        tab.wait("!document.getElementById('answers').innerText.includes('Read the first')")


@pytest.mark.parametrize(
    ("passage", "question", "says"),
    [
        ("The mill.", "   ", "question has no words"),
        (" \n ", "What?", "passage has no words"),
        ("The mill.", "what " * 90, "question fills all 64 tokens"),
    ],
)
def test_the_page_refuses_what_a_model_cannot_use_and_goes_on(tab, page, passage, question, says):
    with page_driver.open_page(tab, page):
        page_driver.submit(tab, passage, question)
        tab.wait("document.querySelector('.refused') !== null")
        assert says in page_driver.text(tab, "answers")
        assert tab.run("document.getElementById('problem').hidden"), "nothing is broken"
        page_driver.ask(tab, "The mill by the river.", "What?")
        assert tab.run("document.querySelector('.refused')") is None
        assert tab.complaints() == []
