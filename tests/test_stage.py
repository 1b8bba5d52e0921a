"""The one command line of every stage: what it prints, how it ends, and what it never destroys."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import toy_stage
from toy_stage import Toy

from cluster import artifact, stage
from cluster.artifact import ArtifactError
from cluster.recipe import RecipeError
from cluster.stage import StageError

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path.cwd())])}


def _artifact(out: Path, kind: str = "corpus") -> Path:
    with artifact.create(out, kind=kind, inputs={}, recipe={}) as draft:
        (draft.path / "text.txt").write_text(out.name)
    return out


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "toy_stage", *map(str, arguments)]


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The line of a command that ends with exit code 1."""
    with pytest.raises(SystemExit) as ended:
        stage.main(toy_stage.STAGE, [*map(str, arguments)])
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
    # Placement says where, not what.
    again = _run("default", "--corpus", corpus, "--out", out, "--set", "text=hello", "--set", "placement.threads=2")
    assert (again.returncode, again.stdout) == (0, f"{out}\n")
    assert again.stderr == f"{out} is already complete\n"
    assert artifact.verify(out) == before


def test_a_bug_keeps_its_traceback_and_the_partial_its_files(corpus: Path) -> None:
    out = corpus.with_name("made")
    ended = _run("default", "--corpus", corpus, "--out", out, "--set", "behaviour=bug")
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert ended.stderr.endswith("RuntimeError: a bug in the toy\n")
    assert not out.exists()
    assert (artifact.staging(out) / "text.txt").read_text() == "toy"


def test_usage_errors_exit_2(corpus: Path) -> None:
    for arguments in (["default", "--out", "o"], ["default", "--corpus", str(corpus)], ["--tokens", "t"]):
        with pytest.raises(SystemExit) as ended:
            stage.main(toy_stage.STAGE, arguments)
        assert ended.value.code == 2


def test_an_interrupt_exits_130_in_one_line_and_the_next_attempt_continues(corpus: Path) -> None:
    out = corpus.with_name("made")
    arguments = ("default", "--corpus", corpus, "--out", out, "--set", "behaviour=interrupt")
    for attempt in (1, 2):
        ended = _run(*arguments)
        assert ended.returncode == 130
        assert ended.stderr == "interrupted: run the same command again to continue\n"
        assert (artifact.staging(out) / "attempts.txt").stat().st_size == attempt


def test_a_killed_stage_is_continued_by_the_same_command(corpus: Path) -> None:
    out = corpus.with_name("made")
    arguments = ("default", "--corpus", corpus, "--out", out, "--set", "deaths=1")
    assert _run(*arguments).returncode == -signal.SIGKILL
    assert not out.exists()
    assert _run(*arguments).returncode == 0
    assert artifact.verify(out).facts["attempts"] == 2


def test_the_same_command_twice_at_once_is_refused_in_one_line(corpus: Path) -> None:
    out = corpus.with_name("made")
    arguments = ("default", "--corpus", corpus, "--out", out, "--set", "behaviour=wait")
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
    stage.main(toy_stage.STAGE, ["default", "--corpus", str(corpus), "--out", str(out)])
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
        (["behaviour=refuse"], "the toy refuses: write behaviour = work"),
        (["behavior=work"], "default: unknown key behavior; did you mean behaviour?"),
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
    assert "nowhere does not exist" in line
    assert not artifact.staging(out).exists()


def test_an_out_of_another_kind_or_that_is_no_artifact_is_left_alone(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


def test_a_recipe_that_is_not_there_is_one_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_role_may_identify_itself_and_a_growing_stage_makes_no_artifact(corpus: Path) -> None:
    def grow(recipe: Toy, inputs: Mapping[str, Path], out: Path) -> dict[str, str]:
        out.mkdir(exist_ok=True)
        (out / "log.txt").write_text(recipe.text)
        return {}

    growing = stage.Stage(
        run=grow,
        recipe=Toy,
        inputs={"run": stage.Role((stage.FOLDER,))},
        produces="run",
        grows=True,
        identify={"run": lambda path: path.name},
    )
    assert stage.identities(growing, {"run": corpus}) == {"run": "corpus"}
    out = corpus.with_name("run")
    assert stage.execute(growing, Toy(text="1"), {"run": corpus}, out) is None
    assert stage.execute(growing, Toy(text="2"), {"run": corpus}, out) is None
    assert [path.name for path in out.iterdir()] == ["log.txt"]


def test_other_ranks_work_on_the_artifact_but_do_not_complete_it(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = corpus.with_name("made")
    artifact.staging(out).mkdir()
    monkeypatch.setenv("RANK", "1")
    assert stage.execute(toy_stage.STAGE, Toy(), {"corpus": corpus}, out) is None
    assert (artifact.staging(out) / "text.txt").is_file()
    assert not out.exists()


def test_only_modules_with_a_stage_are_stages() -> None:
    assert stage.find("toy_stage") is toy_stage.STAGE
    with pytest.raises(StageError, match=r"no stage cluster\.nowhere"):
        stage.find("cluster.nowhere")
    with pytest.raises(StageError, match=r"cluster\.artifact is not a stage"):
        stage.find("cluster.artifact")


def test_errors_for_people_and_bugs_are_told_apart() -> None:
    assert stage.explain(RecipeError("a\n  b")) == "a b"
    assert stage.explain(FileNotFoundError(2, "No such file", "there")) == "there: No such file"
    assert stage.explain(OSError("out of luck")) == "out of luck"
    assert stage.explain(KeyError("key")) is None
    assert stage.explain(None) is None
