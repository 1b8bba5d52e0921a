"""Artifacts: complete or absent, never overwritten, identified by their contents; errors name damaged files."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts import artifact, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import ArtifactError
from cluster.storage import filesystem

RECIPE = {"loss": {"temperature": 2.0}, "seed": 1}

KILLED = """
import os, signal, sys
from cluster.artifacts import artifact

with artifact.create(sys.argv[1], kind="tokens", inputs={}, recipe={"seed": 1}) as draft:
    (draft.path / "first.bin").write_bytes(b"1" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)
"""

HELD = """
import sys
from cluster.artifacts import artifact

with artifact.create(sys.argv[1], kind="tokens", inputs={}, recipe={"seed": 1}) as draft:
    (draft.path / "rows.bin").write_bytes(b"first")
    print("held", flush=True)
    sys.stdin.readline()
"""


class CrashError(Exception):
    """Ends an attempt."""


def _make(out: Path, text: str = "rows", facts: dict[str, Any] | None = None, **given: Any) -> Artifact:
    call = {"kind": "tokens", "inputs": {"corpus": "c0"}, "recipe": RECIPE, **given}
    with artifact.create(out, **call) as draft:
        (draft.path / "rows.arrow").write_text(text)
        (draft.path / "shards").mkdir(exist_ok=True)
        (draft.path / "shards" / "0.json").write_text("{}")
        draft.facts.update(facts or {"rows": 3})
    return artifact.read(out)


def _interrupt(out: Path, name: str, **given: Any) -> list[str]:
    """Make an attempt that ends with an exception; returns the files that it found."""
    call = {"kind": "tokens", "inputs": {"corpus": "c0"}, "recipe": RECIPE, **given}
    found: list[str] = []
    with contextlib.suppress(CrashError), artifact.create(out, **call) as draft:
        found += sorted(path.name for path in draft.path.iterdir() if not path.name.startswith("."))
        (draft.path / name).write_text(name)
        raise CrashError
    return found


def test_a_created_artifact_is_read_back_and_leaves_no_other_files(tmp_path: Path) -> None:
    found = _make(tmp_path / "tokens")
    assert found == artifact.verify(tmp_path / "tokens", "tokens")
    assert sorted(found.manifest["files"]) == ["rows.arrow", "shards/0.json"]
    assert (found.kind, found.facts, found.recipe, found.inputs) == ("tokens", {"rows": 3}, RECIPE, {"corpus": "c0"})
    assert found.bytes == len("rows") + len("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]
    assert sorted(path.name for path in found.path.iterdir()) == ["manifest.json", "rows.arrow", "shards"]


def test_an_exception_leaves_nothing_at_out_and_the_same_attempt_continues(tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    assert _interrupt(out, "first.bin") == []
    assert not out.exists()
    assert _interrupt(out, "second.bin") == ["first.bin"]
    finished = _make(out)
    assert {"first.bin", "second.bin"} <= set(finished.manifest["files"])


@pytest.mark.parametrize(
    "other", [{"recipe": {**RECIPE, "seed": 2}}, {"inputs": {"corpus": "c1"}}, {"kind": "dataset"}], ids=str
)
def test_another_attempt_clears_what_an_interrupted_one_left(tmp_path: Path, other: dict[str, Any]) -> None:
    out = tmp_path / "tokens"
    _interrupt(out, "first.bin")
    assert _interrupt(out, "second.bin", **other) == []
    assert "first.bin" not in _make(out, **other).manifest["files"]


def test_a_killed_process_leaves_nothing_at_out_and_its_files_to_continue_with(tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(ArtifactError, match="does not exist"):
        artifact.read(out)
    with artifact.create(out, kind="tokens", inputs={}, recipe={"seed": 1}) as draft:
        assert (draft.path / "first.bin").read_bytes() == b"1" * 1000
    assert list(artifact.verify(out).manifest["files"]) == ["first.bin"]


def test_two_processes_never_make_one_artifact_at_once(tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    command = [sys.executable, "-c", HELD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="another process is making") as refused:
            _make(out)
        first.communicate("\n")
    assert "\n" not in str(refused.value)
    assert first.returncode == 0
    assert (artifact.verify(out).path / "rows.bin").read_bytes() == b"first"


def test_existing_artifacts_are_never_overwritten(tmp_path: Path) -> None:
    before = _make(tmp_path / "tokens", "first")
    with pytest.raises(ArtifactError, match="never overwritten"):
        _make(tmp_path / "tokens", "second")
    assert artifact.verify(tmp_path / "tokens") == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="never overwritten"):
        _make(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "mine"


def test_an_artifact_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    making = artifact.create(out, kind="tokens", inputs={}, recipe={})
    (making.__enter__().path / "rows.arrow").write_text("late")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OSError):
        making.__exit__(None, None, None)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_facts_that_json_cannot_hold_make_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nan"):
        _make(tmp_path / "tokens", facts={"loss": float("nan")})
    assert not (tmp_path / "tokens").exists()


def test_identity_does_not_depend_on_place_time_or_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = _make(tmp_path / "tokens", placement={"actors": 1})
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    there = _make(tmp_path / "deep" / "other-name", placement={"actors": 8})
    assert here.manifest["made"]["host"] != there.manifest["made"]["host"]
    assert here.manifest["made"]["at"] < there.manifest["made"]["at"]
    assert here.identity == there.identity
    assert here.identity == artifact.read(here.path).identity


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {"loss": {"temperature": 2.5}, "seed": 1}},
        {"inputs": {"corpus": "c1"}},
        {"inputs": {}},
        {"kind": "dataset"},
        {"facts": {"rows": 4}},
        {"text": "ROWS"},
    ],
    ids=str,
)
def test_identity_depends_on_kind_inputs_recipe_and_files(tmp_path: Path, change: dict[str, Any]) -> None:
    assert _make(tmp_path / "one").identity != _make(tmp_path / "two", **change).identity


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        manifest = json.loads((path / commit.MANIFEST).read_text())
        change(manifest)
        (path / commit.MANIFEST).write_text(json.dumps(manifest))

    return edit


def _half_manifest(path: Path) -> None:
    text = (path / commit.MANIFEST).read_text()
    (path / commit.MANIFEST).write_text(text[: len(text) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda path: (path / commit.MANIFEST).unlink(), "has no manifest.json"),
    "cut manifest": (_half_manifest, "manifest.json cannot be read"),
    "manifest of bytes": (lambda path: (path / commit.MANIFEST).write_bytes(b"\xff\xfe"), "cannot be read"),
    "another program's manifest": (lambda path: (path / commit.MANIFEST).write_text("[]"), "is not a manifest"),
    "another format": (_edit(lambda manifest: manifest.update(format=2)), "format 2, this is 1"),
    "no format": (_edit(lambda manifest: manifest.pop("format")), "format None, this is 1"),
    "cut file": (lambda path: (path / "rows.arrow").write_text("row"), "rows.arrow has 3 bytes, its manifest says 4"),
    "missing file": (lambda path: (path / "shards" / "0.json").unlink(), "0.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_by_name_in_one_line(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    out = _make(tmp_path / "tokens").path
    damage(out)
    with pytest.raises(ArtifactError, match=message) as refused:
        artifact.read(out, "tokens")
    assert str(out) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_missing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist: expected a corpus artifact"):
        artifact.read(tmp_path / "nowhere", "corpus")
    _make(tmp_path / "tokens")
    with pytest.raises(ArtifactError, match="is a tokens artifact, expected a corpus artifact"):
        artifact.read(tmp_path / "tokens", "corpus")
    with pytest.raises(ArtifactError, match="expected an export artifact"):
        artifact.read(tmp_path / "tokens", "export")


def test_verify_finds_changes_that_keep_the_size(tmp_path: Path) -> None:
    out = _make(tmp_path / "tokens").path
    (out / "rows.arrow").write_text("swor")
    artifact.read(out)
    with pytest.raises(ArtifactError, match=r"rows\.arrow was changed"):
        artifact.verify(out)


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    found = _make(tmp_path / "tokens")
    assert artifact.difference(found, inputs={"corpus": "c0"}, recipe=RECIPE) is None
    hotter = {"loss": {"temperature": 3.0}, "seed": 1}
    expected = "recipe value loss.temperature: 2.0 there, 3.0 asked for"
    assert artifact.difference(found, inputs={"corpus": "c0"}, recipe=hotter) == expected
    assert artifact.difference(found, inputs={"corpus": "c1"}, recipe=RECIPE) == "input corpus is another one"
    assert artifact.difference(found, inputs={"corpus": "c0", "teacher": "t"}, recipe=RECIPE) is not None
    there, asked = ({"sources": [{"path": "a", "limit": limit}]} for limit in (1000, None))
    assert artifact.first_difference(there, asked) == "sources.0.limit: 1000 there, nothing asked for"
    assert artifact.first_difference({"a": [1]}, {"a": [1, 2]}) == "a: [1] there, [1, 2] asked for"


def _folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / name).mkdir(parents=True)
        (path / name / "data.tsv").write_text(text)
    return path


def test_identity_of_a_folder_follows_names_and_contents_not_place_or_time(tmp_path: Path) -> None:
    first = _folder(tmp_path / "one", a="1", b="2")
    copy = _folder(tmp_path / "two", b="2", a="1")
    os.utime(copy / "a" / "data.tsv", (0, 0))
    assert artifact.folder_identity(first) == artifact.folder_identity(copy)
    others = [
        _folder(tmp_path / "changed", a="1", b="3"),
        _folder(tmp_path / "renamed", a="1", c="2"),
        _folder(tmp_path / "swapped", a="2", b="1"),
        _folder(tmp_path / "less", a="1"),
    ]
    assert len({artifact.folder_identity(path) for path in [first, *others]}) == 5
    one_file = first / "a" / "data.tsv"
    assert artifact.folder_identity(one_file) == artifact.folder_identity(copy / "a" / "data.tsv")
    with pytest.raises(ArtifactError, match="does not exist"):
        artifact.folder_identity(tmp_path / "nowhere")


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    filesystem.write_json(path, {"b": 1, "a": "é"})
    before = path.read_bytes()
    assert before.decode().index('"a"') < before.decode().index('"b"')
    with pytest.raises(TypeError):
        filesystem.write_json(path, {"a": 1, "b": object()})
    with pytest.raises(ValueError):
        filesystem.write_json(path, {"a": float("inf")})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def test_temporary_files_of_an_attempt_are_removed(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "made", kind="tokens", inputs={}, recipe={}) as draft:
        (draft.path / "rows").write_text("rows")
        (draft.path / ".rows.77.tmp").write_text("ro")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["manifest.json", "rows"]


def test_the_identity_of_a_folder_has_the_files_of_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "task" / "dev.tsv").write_text("one")
    alone = artifact.folder_identity(tmp_path / "task")
    (tmp_path / "task" / "more").symlink_to(tmp_path / "elsewhere")
    assert artifact.folder_identity(tmp_path / "task") == alone
    (tmp_path / "elsewhere" / "test.tsv").write_text("two")
    assert artifact.folder_identity(tmp_path / "task") != alone
