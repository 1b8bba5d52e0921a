"""The differences from the paper: every changed value is listed, and the docs have those that are always there."""

from typing import Any

import paths
import pytest

from cluster.artifacts.recipe import load, merge
from distill.config import Distillation
from distill.launch.pipeline_recipe import Pipeline
from distill.train import paper_differences
from distill.train.paper_differences import OURS, PUBLISHED, TOKEN_TYPES

PAPERS = {"architecture": "DistilBertForMaskedLM", "layers": 6, "hidden": 768, "steps": 10, "tokens": 5_000}
ALWAYS = [*(difference.what for difference in OURS), TOKEN_TYPES.what, "length"]


def _listed(recipe: dict[str, Any], **facts: Any) -> dict[str, tuple[str, str]]:
    resolved = Distillation.of(merge({"steps": 1}, recipe)).identity()
    found = paper_differences.differences(resolved, {**PAPERS, **facts})
    return {one["what"]: (one["paper"], one["here"]) for one in found}


def test_the_defaults_differ_by_dropout() -> None:
    assert list(_listed({})) == ["student.dropout", *ALWAYS]
    assert _listed({})["student.dropout"] == ("0.1", "0")


def test_the_recipe_that_claims_to_be_the_paper_s_differs_only_where_every_run_does() -> None:
    pipeline = load(Pipeline, "distilbert")
    resolved = Distillation.of(pipeline.train).identity()
    found = paper_differences.differences(resolved, PAPERS)
    assert [one["what"] for one in found] == ALWAYS


@pytest.mark.parametrize(
    "key", [f"{table}.{key}" for table, published in PUBLISHED.items() for key in published if table != "student"]
)
def test_every_changed_value_is_listed(key: str) -> None:
    table, name = key.split(".")
    published = PUBLISHED[table][name]
    others = {"soft_positions": {"soft_positions": "masked"}, "inputs": {"inputs": "clean", "masked": 0.0}}
    changed = others[name] if name in others else {name: published * 0.5 if published else 0.01}
    assert key in _listed({table: changed})


def test_start_layers_rows_of_a_step_and_another_student_are_listed() -> None:
    recipe = {"rows_per_step": 64, "student": {"start": "random", "layers": [0, 1]}}
    found = _listed(recipe, architecture="RobertaForMaskedLM", layers=2)
    assert {"student.start", "student.layers", "rows_per_step", "student"} <= set(found)
    assert found["rows_per_step"][1] == "64"
    assert TOKEN_TYPES.what not in found  # a student of RoBERTa keeps them


def test_the_docs_have_every_difference() -> None:
    text = (paths.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for what in ALWAYS:
        assert f"| {what} |" in text
    for word in ("student.dropout", *PUBLISHED, "rows_per_step"):
        assert f"`{word}" in text
