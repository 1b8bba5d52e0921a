"""Text that model cards share: sections, examples that run, and paths that say nothing of this machine."""

import ast
from pathlib import Path
from typing import Any

import models_with_heads
import pytest
from card_snippets import snippet_output

from cluster.models import card_text

BODY = "# A\n\nOpening.\n\n## Use\n\nOld.\n\n## Limits\n\nKept.\n"


def test_a_section_is_replaced_in_its_place() -> None:
    assert card_text.with_section(BODY, "Use", "New.") == "# A\n\nOpening.\n\n## Use\n\nNew.\n\n## Limits\n\nKept."


@pytest.mark.parametrize(
    ("before", "order"), [("Limits", ["Use", "More", "Limits"]), (None, ["Use", "Limits", "More"])]
)
def test_a_new_section_goes_before_another_or_to_the_end(before: str | None, order: list[str]) -> None:
    found = card_text.with_section(BODY, "More", "Text.", before=before)
    assert [line.removeprefix("## ") for line in found.splitlines() if line.startswith("## ")] == order
    assert card_text.with_section(found, "More", "Text.", before=before) == found


def test_a_folder_is_shown_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert card_text.shown(tmp_path / "out/students/student") == "out/students/student"
    assert card_text.shown(Path("out")) == "out"
    assert card_text.shown(Path("/elsewhere/model")) == "/elsewhere/model"


def test_a_folder_with_quotes_makes_no_wrong_example() -> None:
    for head in ("masked-words", "classification", "question-answering"):
        code = card_text.use('my "best"\\model', head).removeprefix("```python\n").removesuffix("```")  # type: ignore[arg-type]
        strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert 'my "best"\\model' in strings


def test_a_cell_stays_in_its_line() -> None:
    assert card_text.table(("source",), [("a\n## b | c",)]).splitlines()[2:] == ["| a ## b &#124; c |"]


def test_what_was_not_measured_is_no_result() -> None:
    assert card_text.masked_word_results({"accuracy": None, "hidden_loss": None}) == []
    (loss,) = card_text.masked_word_results({"hidden_loss": 3.14159})
    assert (loss.metric_type, loss.metric_value) == ("loss", 3.1416)


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "head", "texts", "says"),
    [
        ("roberta", "masked-words", 1, "  "),
        ("bert", "classification", 1, "LABEL_"),
        ("distilbert", "classification", 2, "LABEL_"),
        ("distilbert", "question-answering", 1, "\n"),
    ],
)
def test_the_example_of_a_card_runs(tmp_path: Path, family: str, head: Any, texts: int, says: str) -> None:
    models_with_heads.model_folder(tmp_path / "model", family, head)
    assert says in snippet_output(card_text.use("model", head, texts), tmp_path)
