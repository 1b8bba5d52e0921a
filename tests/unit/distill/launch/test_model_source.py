"""A model that cannot be had is refused with one request, before anything is made."""

from collections.abc import Iterator
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
import tiny_pipeline
from hub_server import HubServer, Repository

from cluster.artifacts.errors import StageError
from distill.launch import model_source
from distill.launch.pipeline_recipe import Pipeline, PipelinePlan

NOWHERE = "http://127.0.0.1:9"
"""Nothing listens there."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    with hub_server.serving() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
        yield found


def test_a_model_of_the_hub_is_there(hub: HubServer) -> None:
    hub.repositories["some/model"] = Repository(private=False)
    model_source.check("some/model")
    assert "GET /api/models/some/model" in hub.requests


def test_a_folder_and_a_shipped_teacher_need_no_hub(hub: HubServer, tmp_path: Path) -> None:
    model_source.check(str(tmp_path))
    model_source.check("small-english")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "nobody/knows",
            "no such model, or not for you without hf auth login: name the folder of a BERT, or small-english",
        ),
        ("smal-english", "no such model, or not for you without hf auth login: did you mean small-english?"),
        ("models/deep/bert", "it is no name of the Hugging Face Hub: name the folder of a BERT"),
    ],
)
def test_what_nobody_has_is_refused(name: str, line: str, hub: HubServer) -> None:
    with pytest.raises(StageError, match=f"^there is no folder {name} here, and ") as refused:
        model_source.check(name)
    assert line in str(refused.value)
    assert len([line for line in hub.requests if "/models/" in line]) <= 1


def test_a_pipeline_asks_before_it_makes_anything(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    values = tiny_pipeline.values(tmp_path)
    plan = PipelinePlan(Pipeline.of({**values, "teacher": {"source": "some/model"}}), tmp_path / "out")
    with pytest.raises(StageError, match=r"the Hugging Face Hub cannot be reached \(.*\): name the folder of a BERT"):
        plan.check_sources()
    (tmp_path / "out" / "teacher").mkdir(parents=True)
    (tmp_path / "out" / "teacher" / "manifest.json").write_text("{}", encoding="utf-8")
    plan.check_sources()
