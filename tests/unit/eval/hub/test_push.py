"""What goes to the Hub, and how its answers look, against a stand-in of its HTTP interface."""

import contextlib
import io
import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hub_server
import huggingface_hub
import numpy
import pytest
from hub_server import TOKEN, HubServer
from huggingface_hub import HfApi
from safetensors.numpy import save

from cluster.artifacts import artifact
from cluster.artifacts.commit import CARD, MANIFEST, ArtifactError
from cluster.artifacts.errors import StageError
from cluster.models import example_inputs
from cluster.models.example_inputs import ExampleInput
from eval.hub import publication
from eval.hub import push as push_command
from eval.hub.push import push

NAME = "team/tiny-bert"
CARD_TEXT = """---
library_name: transformers
license: {license}
pipeline_tag: fill-mask
---

# tiny-bert

## Use

```python
pipeline("fill-mask", model="{folder}")
```

## Training text

| source | license |
|---|---|
| wiki | CC BY-SA 4.0 |

## Limits

Its text was in /srv/texts/wiki.
"""


def made(
    folder: Path,
    kind: str = "student",
    examples: Sequence[ExampleInput] = (),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    config = {"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert", "n_layers": 1, "vocab_size": 30}
    weights = {"distilbert.transformer.layer.0.lin.weight": numpy.zeros((40, 40), numpy.float32)}
    with artifact.create(
        folder, kind=kind, inputs={}, recipe={"step": None}, paths={"run": "/mine/runs/student"}, placement={"a": 1}
    ) as draft:
        (draft.path / "config.json").write_text(json.dumps(config))
        (draft.path / "model.safetensors").write_bytes(save(weights))
        draft.facts["task"] = "rte"
        if settings:
            (draft.path / "tokenizer_config.json").write_text(json.dumps(dict(settings)))
        if examples:
            example_inputs.write(draft.path, examples)
    (folder / CARD).write_text(CARD_TEXT.format(license="apache-2.0", folder=folder))
    (folder / "notes.txt").write_text("not for others")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "student")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub_server.serving() as found:
        yield found


def api(hub: HubServer, token: str = TOKEN) -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


def test_a_student_arrives_whole_in_a_private_repository(folder: Path, hub: HubServer) -> None:
    found = publication.of(folder, NAME)
    assert push(found, NAME, public=False, api=api(hub)) == f"{hub.url}/{NAME}"
    repository = hub.repositories[NAME]
    assert repository.private
    assert set(repository.files) == {"config.json", "model.safetensors", CARD, MANIFEST}
    assert repository.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert len(repository.commits) == 1
    assert f'model="{NAME}"' in repository.files[CARD].decode()


def test_the_manifest_loses_who_made_it_and_keeps_its_identity(folder: Path, tmp_path: Path, hub: HubServer) -> None:
    push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    text = hub.repositories[NAME].files[MANIFEST].decode()
    assert socket.gethostname() not in re.findall(r'"host": "(.*?)"', text)
    assert "/mine" not in text
    assert sorted(json.loads(text)["made"]) == ["at", "seconds"]
    copy = tmp_path / "downloaded"
    copy.mkdir()
    for name, data in hub.repositories[NAME].files.items():
        (copy / name).write_bytes(data)
    assert artifact.verify(copy).identity == artifact.read(folder).identity


def test_a_dry_run_says_everything_and_sends_nothing(
    folder: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    push_command.main([str(folder), NAME, "--dry-run"])
    shown = capsys.readouterr().out
    for text in (f"{NAME}: private (--public", "model.safetensors", "license: apache-2.0", "pipeline_tag: fill-mask"):
        assert text in shown
    assert "| wiki | CC BY-SA 4.0 |" in shown
    assert "README.md: /srv/texts/wiki" in shown
    assert "notes.txt" not in shown
    assert hub.requests == []


def test_examples_of_ones_own_data_are_shown_before_they_become_readable(tmp_path: Path) -> None:
    ticket = ExampleInput("Dear Ms Grey, your order has not arrived.", "She lives at Mill Lane.", "late")
    folder = made(tmp_path / "tuned", "finetune", [ticket])
    shown = "\n".join(publication.of(folder, NAME).lines())
    assert "word for word (examples.json):\n  Dear Ms Grey, your order has not arrived. | She lives at" in shown


def test_pushing_again_makes_no_second_commit_and_sends_no_file_twice(folder: Path, hub: HubServer) -> None:
    found = publication.of(folder, NAME)
    push(found, NAME, public=False, api=api(hub))
    push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    assert len(hub.repositories[NAME].commits) == 1
    assert sum(line.startswith("PUT /lfs/") for line in hub.requests) == 1


def test_a_commit_whose_answer_is_lost_is_not_doubled(folder: Path, hub: HubServer) -> None:
    hub.failures["/commit/"] = 0
    with pytest.raises(StageError, match=r"cannot be reached .*run the same command again"):
        push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    assert len(hub.repositories[NAME].commits) == 1
    push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    assert len(hub.repositories[NAME].commits) == 1


@pytest.mark.parametrize(
    ("status", "says"),
    [(403, "does not let this token write"), (409, "at the same time"), (503, "failed with 503: run the same command")],
)
def test_what_the_hub_refuses_is_one_line_and_a_retry_completes_it(
    folder: Path, hub: HubServer, status: int, says: str
) -> None:
    hub.failures["/commit/"] = status
    with pytest.raises(StageError, match=says) as refused:
        push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    assert "\n" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    assert len(hub.repositories[NAME].commits) == 1
    assert sum(line.startswith("PUT /lfs/") for line in hub.requests) == 1


def test_a_wrong_token_is_one_line(folder: Path, hub: HubServer) -> None:
    with pytest.raises(StageError, match="does not accept the token: log in with hf auth login") as refused:
        push(publication.of(folder, NAME), NAME, public=False, api=api(hub, "hf_wrong"))
    assert "hf_wrong" not in str(refused.value)
    assert hub.repositories == {}


def test_a_hub_that_is_not_there_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server.serving() as gone:
        pass
    with pytest.raises(StageError, match=r"cannot be reached \(ConnectError\)"):
        push(publication.of(folder, NAME), NAME, public=False, api=api(gone))


def test_a_public_repository_takes_nothing_without_public(folder: Path, hub: HubServer) -> None:
    hub.repositories[NAME] = hub_server.Repository(private=False)
    with pytest.raises(StageError, match="exists and is public: give --public"):
        push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    push(publication.of(folder, NAME), NAME, public=True, api=api(hub))
    assert hub.repositories[NAME].files


def test_a_private_repository_does_not_look_public(folder: Path, hub: HubServer) -> None:
    """The Hub keeps the visibility of what exists; its earlier commits were never shown here."""
    hub.repositories[NAME] = hub_server.Repository(private=True)
    with pytest.raises(StageError, match=f"exists and is private: make it public at {hub.url}/{NAME}/settings"):
        push(publication.of(folder, NAME), NAME, public=True, api=api(hub))
    assert not hub.repositories[NAME].commits


@pytest.mark.parametrize("text", ["hf_" + 34 * "x", "-----BEGIN OPENSSH PRIVATE KEY-----", "https://me:secret@host/x"])
def test_a_password_in_a_text_is_refused_without_showing_it(folder: Path, text: str) -> None:
    with (folder / CARD).open("a") as card:
        card.write(f"\ntoken: {text}\n")
    with pytest.raises(StageError, match=r"README.md holds what looks like a password .* nothing is sent") as refused:
        publication.of(folder, NAME)
    assert text not in str(refused.value)


def test_folders_in_settings_are_shown_before_they_become_readable(tmp_path: Path) -> None:
    """Older tokenizers name their files in tokenizer_config.json."""
    settings = {"special_tokens_map_file": "/srv/bert/special_tokens_map.json", "source": "file:///data/text"}
    found = publication.of(made(tmp_path / "student", settings=settings), NAME).paths()
    shown = "tokenizer_config.json, special_tokens_map_file: /srv/bert/special_tokens_map.json"
    assert [shown, "tokenizer_config.json, source: file:///data/text"] == found[-2:]


@pytest.mark.parametrize(
    ("card", "says"),
    [
        (b"---\nlicense: mit\ntags: [a: b: c\n---\n# x\n", r"README.md: line 3: the metadata is not YAML"),
        (b"---\n- mit\n---\n# x\n", "README.md: the metadata is not a list of names and values"),
        (b"---\nlicense: mit\n# x\n", "README.md: no line --- ends the metadata"),
        (b"---\nlicense: mit\nmodel-index: 3\n---\n# x\n", "README.md: its model-index cannot be read"),
        (b"---\nlicense: mit\n---\n\xff", "README.md is not UTF-8"),
    ],
)
def test_a_card_that_cannot_be_read_is_named(folder: Path, card: bytes, says: str) -> None:
    (folder / CARD).write_bytes(card)
    with pytest.raises(ArtifactError, match=says):
        publication.of(folder, NAME)


@pytest.mark.parametrize("status", [0, 500])
def test_an_upload_that_breaks_is_continued(folder: Path, hub: HubServer, status: int) -> None:
    hub.failures["PUT /lfs/"] = status
    push(publication.of(folder, NAME), NAME, public=False, api=api(hub))
    assert hub.repositories[NAME].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_offline_is_one_line(folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match="HF_HUB_OFFLINE is set: unset it"):
        push(publication.of(folder, NAME), NAME, public=False, api=api(hub))


def test_the_end_of_the_terminal_is_no(folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    code, said = ended(str(folder), NAME)
    assert (code, said.splitlines()[-1]) == (1, "error: nothing was sent")
    assert hub.requests == []


def test_a_card_that_the_hub_does_not_accept_is_one_line(folder: Path, hub: HubServer) -> None:
    with pytest.raises(ValueError, match='"license" must be one of'):
        push(publication.of(folder, NAME, "mine"), NAME, public=False, api=api(hub))
    assert not hub.repositories[NAME].commits


def refused(tmp_path: Path, folder: Path, what: str) -> Path:
    """The folder, with something wrong."""
    if what == "teacher":
        return made(tmp_path / "teacher", "teacher")
    if what == "changed":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-1] + b"\1")
    elif what == "no manifest":
        (folder / MANIFEST).unlink()
    elif what == "no card":
        (folder / CARD).unlink()
    elif what == "no license":
        (folder / CARD).write_text("---\nlibrary_name: transformers\n---\n\n# x\n")
    return folder


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("teacher", "is a teacher artifact: name a student"),
        ("changed", "was changed after it was made"),
        ("no manifest", "has no manifest.json"),
        ("no card", "has no README.md: stillhouse card REPORT"),
        ("no license", "states no license: give --license ID"),
    ],
)
def test_what_is_not_for_the_hub_is_refused(tmp_path: Path, folder: Path, what: str, says: str) -> None:
    with pytest.raises((ArtifactError, StageError), match=says):
        publication.of(refused(tmp_path, folder, what), NAME)


def test_a_license_may_be_given(tmp_path: Path, folder: Path) -> None:
    place = refused(tmp_path, folder, "no license")
    assert publication.of(place, NAME, "mit").license == "mit"
    assert "mit" not in (place / CARD).read_text(), "the folder stays as it is"


def ended(*arguments: str) -> tuple[Any, str]:
    """Exit code and stderr of the command."""
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as ending:
        push_command.main(arguments)
    return ending.value.code, said.getvalue()


def test_without_a_terminal_it_asks_nothing(folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    code, said = ended(str(folder), NAME)
    assert (code, said.count("\n")) == (1, 1)
    assert "give --yes" in said
    assert hub.requests == []


@pytest.mark.parametrize("name", ["tiny-bert", "a/b/c", "team/-bad-"])
def test_a_name_that_is_none_is_refused(folder: Path, name: str) -> None:
    code, said = ended(str(folder), name, "--dry-run")
    assert (code, said.count("\n")) == (1, 1)
    assert "write OWNER/NAME" in said


def test_no_token_is_one_line(folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(StageError, match="no token of the Hub: log in with hf auth login, or set HF_TOKEN"):
        push(publication.of(folder, NAME), NAME, public=False, api=HfApi(endpoint=hub.url))


def test_an_example_that_names_any_folder_names_the_repository(folder: Path) -> None:
    """A card was filled from another working folder, or before the model was moved."""
    (folder / CARD).write_text(CARD_TEXT.format(license="mit", folder="build/demo/students/student"))
    assert f'model="{NAME}"' in publication.of(folder, NAME).card.text


def test_an_export_without_a_card_gets_a_short_one(tmp_path: Path, hub: HubServer) -> None:
    folder = made(tmp_path / "int8", "export")
    (folder / CARD).unlink()
    described = {"format": "int8", "runtime": "onnxruntime", "files": {"any": "model.onnx"}, "head": "masked-words"}
    described |= {"inputs": [], "outputs": [], "positions": 8, "pad": 0, "vocab_size": 30, "parameters": 1}
    (folder / "runtime.json").write_text(json.dumps(described))
    with pytest.raises(StageError, match="states no license"):
        publication.of(folder, NAME)
    push(publication.of(folder, NAME, "mit"), NAME, public=False, api=api(hub))
    assert f"hf download {NAME} --local-dir tiny-bert" in hub.repositories[NAME].files[CARD].decode()
