"""The command line of every stage: its output and exit codes, and files it must not destroy."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import paths
import pytest
import s3_server
import s3fs
import toy_stage
from toy_stage import Toy
from upath import UPath

from cluster.artifacts import artifact, cache, cli, commit, errors, registry, stage
from cluster.artifacts.commit import ArtifactError
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import RecipeError
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(paths.SUPPORT), str(Path.cwd())])}


def _artifact(out: Path, kind: str = "corpus") -> Path:
    with artifact.create(out, kind=kind, inputs={}, recipe={}) as draft:
        (draft.path / "text.txt").write_text(out.name)
    return out


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "toy_stage", *map(str, arguments)]


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that exits with code 1; returns its error line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(toy_stage.STAGE.name, [*map(str, arguments)])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert shown.err == f"{lines[0]}\n"
    assert not shown.out.endswith("tokens\n")
    return lines[0].removeprefix("error: ")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return _artifact(tmp_path / "corpus")


def test_a_stage_prints_where_its_artifact_is_and_does_nothing_the_second_time(corpus: Path) -> None:
    out = corpus.with_name("made")
    first = _run("default", "--corpus", corpus, "--out", out, "--set", "text=hello")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines() == ["the toy says hello", str(out)]
    before = artifact.verify(out, "dataset")
    assert (out / "text.txt").read_text() == "hello"
    assert before.inputs == {"corpus": artifact.read(corpus).identity}
    assert before.manifest["made"]["paths"] == {"corpus": str(corpus)}
    # The placement is not part of the identity.
    again = _run("default", "--corpus", corpus, "--out", out, "--set", "text=hello", "--set", "placement.threads=2")
    assert (again.returncode, again.stdout) == (0, f"{out}\n")
    assert again.stderr == f"{out} is already complete\n"
    assert artifact.verify(out) == before


def test_a_bug_keeps_its_traceback_and_the_partial_its_files(corpus: Path) -> None:
    out = corpus.with_name("made")
    ended = _run("default", "--corpus", corpus, "--out", out, "--set", "behavior=bug")
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert ended.stderr.endswith("RuntimeError: a bug in the toy\n")
    assert not out.exists()
    assert (commit.staging(out) / "text.txt").read_text() == "toy"


def test_usage_errors_exit_2(corpus: Path) -> None:
    for arguments in (["default", "--out", "o"], ["default", "--corpus", str(corpus)], ["--tokens", "t"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(toy_stage.STAGE.name, arguments)
        assert ended.value.code == 2


def test_an_interrupt_exits_130_in_one_line_and_the_next_attempt_continues(corpus: Path) -> None:
    out = corpus.with_name("made")
    arguments = ("default", "--corpus", corpus, "--out", out, "--set", "behavior=interrupt")
    for attempt in (1, 2):
        ended = _run(*arguments)
        assert ended.returncode == 130
        assert ended.stderr == "interrupted: run the same command again to continue\n"
        assert (commit.staging(out) / "attempts.txt").stat().st_size == attempt


def test_a_killed_stage_is_continued_by_the_same_command(corpus: Path) -> None:
    out = corpus.with_name("made")
    arguments = ("default", "--corpus", corpus, "--out", out, "--set", "deaths=1")
    assert _run(*arguments).returncode == -signal.SIGKILL
    assert not out.exists()
    assert _run(*arguments).returncode == 0
    assert artifact.verify(out).facts["attempts"] == 2


def test_the_same_command_twice_at_once_is_refused_in_one_line(corpus: Path) -> None:
    out = corpus.with_name("made")
    arguments = ("default", "--corpus", corpus, "--out", out, "--set", "behavior=wait")
    with subprocess.Popen(
        _command(*arguments), env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout
        assert [first.stdout.readline(), first.stdout.readline()] == ["the toy says toy\n", "waiting\n"]
        second = _run(*arguments)
        first.communicate("\n")
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: another process is making {out} right now")
    assert second.stderr.count("\n") == 1
    assert first.returncode == 0
    assert artifact.verify(out).facts["attempts"] == 1


def test_a_changed_recipe_is_refused_with_the_value_that_changed(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = corpus.with_name("made")
    cli.main(toy_stage.STAGE.name, ["default", "--corpus", str(corpus), "--out", str(out)])
    before = artifact.verify(out)
    capsys.readouterr()
    line = _refusal(capsys, "default", "--corpus", corpus, "--out", out, "--set", "share=0.25")
    assert line.startswith(f"{out} was made differently (recipe value share: 0.5 there, 0.25 asked for)")
    other = _artifact(corpus.with_name("other"), "dataset")
    line = _refusal(capsys, "default", "--corpus", other, "--out", out)
    assert "(input corpus is another one)" in line
    assert artifact.verify(out) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["behavior=refuse"], "the toy refuses: write behavior = work"),
        (["behaviour=work"], "default: unknown key behaviour; did you mean behavior?"),
        (["share=1.5"], "default: share: input should be less than 1, not 1.5"),
        (["share"], "--set share: write key=value"),
    ],
)
def test_errors_for_people_are_one_line(
    corpus: Path, capsys: pytest.CaptureFixture[str], settings: list[str], message: str
) -> None:
    flags = [word for setting in settings for word in ("--set", setting)]
    out = corpus.with_name("made")
    assert _refusal(capsys, "default", "--corpus", corpus, "--out", out, *flags).startswith(message)
    assert not out.exists()


def test_inputs_of_another_kind_are_refused(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = corpus.with_name("made")
    tokens = _artifact(corpus.with_name("tokens"), "tokens")
    line = _refusal(capsys, "default", "--corpus", tokens, "--out", out)
    assert line == f"{tokens} is a tokens artifact, expected corpus or dataset"
    line = _refusal(capsys, "default", "--corpus", corpus.with_name("nowhere"), "--out", out)
    assert "nowhere does not exist" in line
    line = _refusal(capsys, "default", "--corpus", corpus, "--folder", corpus.with_name("nowhere"), "--out", out)
    assert "nowhere does not exist: --folder takes folder" in line
    assert not commit.staging(out).exists()


def test_an_existing_out_of_another_kind_is_left_alone(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = _artifact(corpus.with_name("other"), "tokens")
    line = _refusal(capsys, "default", "--corpus", corpus, "--out", other)
    assert line.startswith(f"{other} is a tokens artifact, expected a dataset artifact")
    folder = corpus.with_name("folder")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    line = _refusal(capsys, "default", "--corpus", corpus, "--out", folder)
    assert line.startswith(f"{folder} is not a dataset artifact")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert artifact.verify(other).kind == "tokens"


def test_a_place_that_cannot_be_written_is_one_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = corpus.with_name("file")
    file.write_text("a regular file")
    for out in (file / "made", Path("/proc/nowhere/made")):
        assert str(out.parent) in _refusal(capsys, "default", "--corpus", corpus, "--out", out)
    assert file.read_text() == "a regular file"


def test_a_missing_recipe_is_a_one_line_error(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _refusal(capsys, "nowhere.toml", "--corpus", corpus, "--out", corpus.with_name("made"))
    assert line.startswith("recipe nowhere.toml is neither a file nor one that ships")


def test_roles_are_checked_in_process_too(corpus: Path) -> None:
    out = corpus.with_name("made")
    with pytest.raises(StageError, match=r"toy_stage needs --corpus DIR \(corpus or dataset\)"):
        stage.execute(toy_stage.STAGE, Toy(), {}, out)
    with pytest.raises(StageError, match="has no input teacher: it takes corpus, folder"):
        stage.execute(toy_stage.STAGE, Toy(), {"corpus": corpus, "teacher": corpus}, out)
    with pytest.raises(ArtifactError, match="does not exist"):
        stage.execute(toy_stage.STAGE, Toy(), {"corpus": out}, out)


def test_a_folder_is_known_by_its_contents_and_an_artifact_by_its_identity(corpus: Path) -> None:
    folder = corpus.with_name("folder")
    folder.mkdir()
    (folder / "dev.tsv").write_text("1")
    inputs = {"corpus": corpus, "folder": folder}
    found = stage.execute(toy_stage.STAGE, Toy(), inputs, corpus.with_name("made"))
    assert found
    assert found.inputs["folder"] == artifact.folder_identity(folder)
    (folder / "dev.tsv").write_text("2")
    with pytest.raises(ArtifactError, match="input folder is another one"):
        stage.execute(toy_stage.STAGE, Toy(), inputs, found.path)
    given = stage.identities(toy_stage.STAGE, {"corpus": corpus, "folder": corpus})
    assert given["folder"] == artifact.read(corpus).identity


def test_what_is_made_inside_an_input_folder_is_no_part_of_the_input(corpus: Path) -> None:
    folder = corpus.with_name("folder")
    folder.mkdir()
    (folder / "dev.tsv").write_text("1")
    inputs, out = {"corpus": corpus, "folder": folder}, folder / "deep" / "made"
    with pytest.raises(StageError):
        stage.execute(toy_stage.STAGE, Toy(behavior="refuse"), inputs, out)
    given = artifact.read(corpus).identity, artifact.folder_identity(folder, ["deep"])
    draft = json.loads((folder / "deep" / ".made.partial" / ".draft.json").read_text())
    assert (draft["inputs"]["corpus"], draft["inputs"]["folder"]) == given
    made = stage.execute(toy_stage.STAGE, Toy(), inputs, out)
    assert made
    assert (made.inputs["corpus"], made.inputs["folder"]) == given
    assert stage.execute(toy_stage.STAGE, Toy(), inputs, out) == made


def test_a_role_may_identify_itself_and_a_growing_stage_makes_no_artifact(corpus: Path) -> None:
    def grow(recipe: Toy, inputs: Mapping[str, Path], out: Path) -> dict[str, str]:
        out.mkdir(exist_ok=True)
        (out / "log.txt").write_text(recipe.text)
        return {}

    growing = stage.Stage(
        name="growing",
        run=grow,
        recipe=Toy,
        inputs={"run": stage.Role((stage.FOLDER,), identify=lambda path: path.name)},
        produces="run",
        grows=True,
    )
    assert stage.identities(growing, {"run": corpus}) == {"run": "corpus"}
    out = corpus.with_name("run")
    assert stage.execute(growing, Toy(text="1"), {"run": corpus}, out) is None
    assert stage.execute(growing, Toy(text="2"), {"run": corpus}, out) is None
    assert [path.name for path in out.iterdir()] == ["log.txt"]


def test_a_stage_validates_the_recipes_it_reads(tmp_path: Path) -> None:
    def validate(recipe: Toy) -> None:
        if recipe.text == recipe.gate:
            raise ValueError("text and gate are equal: change one")

    checked = replace(toy_stage.STAGE, validate=validate)
    assert checked.read({"text": "a"}) == Toy(text="a")
    with pytest.raises(RecipeError, match=r"^\[toy\]: text and gate are equal"):
        checked.read({"text": "a", "gate": "a"}, "[toy]")
    (tmp_path / "toy.toml").write_text('text = "a"')
    with pytest.raises(RecipeError, match=r"toy\.toml: text and gate"):
        checked.load(str(tmp_path / "toy.toml"), ["gate=a"])


def test_hooks_do_nothing_by_default(tmp_path: Path) -> None:
    plain = stage.Stage(name="plain", run=toy_stage.run, recipe=Toy, produces="dataset")
    context = stage.StageContext(tmp_path)
    plain.check(Toy(), context)
    plain.toolchain()
    assert list(plain.side_jobs(Toy(), context)) == []
    assert plain.halved(Toy()) is None


def test_other_ranks_work_on_the_artifact_but_do_not_complete_it(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = corpus.with_name("made")
    commit.staging(out).mkdir()
    monkeypatch.setenv("RANK", "1")
    assert stage.execute(toy_stage.STAGE, Toy(), {"corpus": corpus}, out) is None
    assert (commit.staging(out) / "text.txt").is_file()
    assert not out.exists()


def test_only_modules_with_a_stage_are_stages() -> None:
    assert registry.find("toy_stage") is toy_stage.STAGE
    with pytest.raises(StageError, match=r"no stage cluster\.nowhere"):
        registry.find("cluster.nowhere")
    with pytest.raises(StageError, match=r"did you mean distill\.train\?"):
        registry.find("distill.trian")


def test_user_errors_and_bugs_are_distinguished() -> None:
    assert errors.explain(RecipeError("a\n  b")) == "a b"
    assert errors.explain(FileNotFoundError(2, "No such file", "there")) == "there: No such file"
    assert errors.explain(OSError("out of luck")) == "out of luck"
    assert errors.explain(KeyError("key")) is None
    assert errors.explain(None) is None


def test_a_stage_that_knows_nothing_of_urls_reads_and_writes_them(bucket: s3fs.S3FileSystem, tmp_path: Path) -> None:
    corpus = "s3://barrel/corpus"
    with artifact.create(corpus, kind="corpus", inputs={}, recipe={}) as draft:
        filesystem.write_json(draft.location / "text.json", "text")
    bucket.pipe_file("barrel/task/dev.tsv", b"1")
    arguments = ["default", "--corpus", corpus, "--folder", "s3://barrel/task", "--out", "s3://barrel/made"]
    first = subprocess.run(_command(*arguments), cwd=tmp_path, env=_here(), capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout) == (0, "the toy says toy\ns3://barrel/made\n"), first.stderr
    made = artifact.verify("s3://barrel/made", "dataset")
    assert made.facts["attempts"] == 1
    task = tmp_path / "task"
    task.mkdir()
    (task / "dev.tsv").write_text("1")
    assert made.inputs == {"corpus": artifact.read(corpus).identity, "folder": artifact.folder_identity(task)}
    assert made.manifest["made"]["paths"] == {"corpus": corpus, "folder": "s3://barrel/task"}
    told = json.dumps(dict(made.manifest)) + first.stdout + first.stderr
    assert s3_server.SECRET not in told
    assert s3_server.KEY not in told
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "task"}, "nothing but the cache was written here"
    # The local copy has become an entry of the cache: it is not downloaded.
    kept = cache.fetch(made.location)
    assert artifact.verify(kept).manifest == made.manifest
    assert not any((tmp_path / "cache" / "making").iterdir())

    again = subprocess.run(_command(*arguments), cwd=tmp_path, env=_here(), capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "s3://barrel/made is already complete\n")
    other = [*arguments, "--set", "text=other"]
    refused = subprocess.run(_command(*other), cwd=tmp_path, env=_here(), capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: s3://barrel/made was made differently (recipe value text: ")


def _here() -> dict[str, str]:
    """The environment of the fixtures."""
    return {**ENVIRONMENT, **{key: os.environ[key] for key in os.environ if key.startswith(("AWS_", "STILLHOUSE_"))}}


@pytest.mark.usefixtures("bucket")
def test_an_interrupted_stage_is_continued_and_then_published(corpus: Path) -> None:
    out = filesystem.location("s3://barrel/made")
    with pytest.raises(RuntimeError, match="a bug in the toy"):
        stage.execute(toy_stage.STAGE, Toy(behavior="bug"), {"corpus": corpus}, out)
    with pytest.raises(ArtifactError, match="is not an artifact: it has no"):
        artifact.read(out)
    with pytest.raises(RuntimeError):
        stage.execute(toy_stage.STAGE, Toy(behavior="bug"), {"corpus": corpus}, out)
    work = cache.workplace(cast(UPath, out))
    assert (commit.staging(work) / "attempts.txt").read_text() == "xx"
    made = stage.execute(toy_stage.STAGE, Toy(), {"corpus": corpus}, out)
    assert made is not None
    assert made.facts["attempts"] == 1, "another recipe starts anew"


@pytest.mark.usefixtures("bucket")
def test_an_unpublished_artifact_is_published_if_still_wanted(corpus: Path) -> None:
    for recipe in (Toy(), Toy(text="other")):
        out = filesystem.location(f"s3://barrel/{recipe.text}")
        before = stage.execute(toy_stage.STAGE, Toy(), {"corpus": corpus}, cache.workplace(cast(UPath, out)))
        made = stage.execute(toy_stage.STAGE, recipe, {"corpus": corpus}, out)
        assert before is not None
        assert made is not None
        assert made.recipe["text"] == recipe.text
        assert (made.manifest == before.manifest) == (recipe == Toy())


@pytest.mark.usefixtures("bucket")
def test_a_remote_stage_reads_and_writes_urls_directly() -> None:
    def run(recipe: Toy, inputs: Mapping[str, Location], out: Location) -> dict[str, Any]:
        there = filesystem.read_json(inputs["corpus"] / "text.json")
        found = [name for name in filesystem.listing(out) if not name.startswith(".")]
        filesystem.write_json(out / f"copy-{len(found)}.json", there)
        if recipe.behavior == "bug":
            raise RuntimeError
        return {"found": found}

    inputs = {"corpus": stage.Role(("corpus",))}
    working = stage.Stage(name="working", run=run, recipe=Toy, inputs=inputs, produces="dataset", remote=True)
    given = {"corpus": filesystem.location("s3://barrel/corpus")}
    with artifact.create(given["corpus"], kind="corpus", inputs={}, recipe={}) as draft:
        filesystem.write_json(draft.location / "text.json", "text")
    out = filesystem.location("s3://barrel/made")
    with pytest.raises(RuntimeError):
        stage.execute(working, Toy(behavior="bug"), given, out)
    with pytest.raises(RuntimeError):
        stage.execute(working, Toy(behavior="bug"), given, out)
    made = stage.execute(working, Toy(), given, out)
    assert made is not None
    assert made.facts == {"found": []}, "another recipe starts anew"
    assert [*filesystem.listing(out)] == ["copy-0.json", "manifest.json"]
    assert filesystem.read_json(out / "copy-0.json") == "text"
    assert not cache.root().exists(), "nothing was copied to this machine"


@pytest.mark.usefixtures("bucket")
def test_a_run_folder_cannot_be_in_an_object_store(capsys: pytest.CaptureFixture[str], corpus: Path) -> None:
    growing = stage.Stage(name="growing", run=toy_stage.run, recipe=Toy, produces="run", grows=True)
    with pytest.raises(StageError, match="s3://barrel/run: a run grows while it is made"):
        stage.execute(growing, Toy(), {}, filesystem.location("s3://barrel/run"))
    line = _refusal(capsys, "default", "--corpus", "s3://barrel/none", "--out", corpus.with_name("made"))
    assert line.startswith("s3://barrel/none does not exist")
    line = _refusal(capsys, "default", "--corpus", corpus, "--out", "s3://key:word@barrel/made")
    assert line.startswith("the s3:// URL holds a password")
