"""The command ``distill.plan``: what it prints, and its errors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tokens_artifact
import torch

from distill.cost_model.forecast import runs_on
from distill.plan import cli as plan_cli


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    plan_cli.main(arguments)
    return capsys.readouterr().out


def test_the_shipped_recipe_is_planned_for_the_paper_s_machine() -> None:
    command = [sys.executable, "-m", "distill.plan", "distilbert", "--hardware", "8xV100-16GB", "--explain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in (
        "12 layers of 768, 109.5 M parameters",
        "DistilBERT 720, RoBERTa 24,576; the passes of DistilBERT are",
        "with the suite's",
        "optimizer state",
        "sent by each GPU",
        "--set train.placement.rows_per_device=",
        "n = 64",
        "network-bound above",
        "kernels for sm_70" if not runs_on((7, 0), torch.cuda.get_arch_list()) else "GPU-hours",
        "a corpus of 4.0 G tokens, the paper's",
        "also: random-start",
    ):
        assert words in done.stdout, words
    assert max(map(len, done.stdout.splitlines())) <= 112


def test_the_first_lines_are_the_answer_with_ablations_suite_and_money(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["distilbert", "--hardware", "8xV100-16GB", "--price", "2.5"]
    answer = " ".join(_printed(capsys, *given).partition("\n\n")[0].split())
    found = re.fullmatch(
        r"(\S+) h for the student, (\S+) h with 6 ablations, (\S+) h with the suite's (\d+) fine-tunings: "
        r"(\S+) GPU-hours, which cost (\S+) at 2\.5 an hour",
        answer,
    )
    assert found is not None, answer
    student, ablations, everything, trainings, spent, cost = (float(text.replace(",", "")) for text in found.groups())
    assert student < ablations < everything
    assert trainings == 5 * (12 * 2 + 1 + 9 * 7), (
        "seeds, of two models, the second step, six ablations and the untrained layers"
    )
    assert cost == pytest.approx(2.5 * spent, rel=0.02)
    (numbers,) = json.loads(_printed(capsys, *given, "--json"))
    assert numbers["cost"] == pytest.approx(2.5 * numbers["device_hours"])
    assert numbers["hours"] == pytest.approx(sum(run["hours"] for run in numbers["runs"]) + numbers["suite_hours"])
    assert "Scaling" not in _printed(capsys, *given)


def test_the_text_of_the_sources_says_how_long_a_run_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["own-text", "--hardware", "2xcpu", "--json"]
    assert json.loads(_printed(capsys, *given))[0]["assumed"][1].startswith("a corpus of 4.0 G tokens")
    (tmp_path / "text").mkdir()
    for name in ("one", "two"):
        (tmp_path / "text" / f"{name}.txt").write_text("some words " * 20_000, encoding="utf-8")
    (found,) = json.loads(_printed(capsys, *given))
    assert found["assumed"][1].startswith("440 kB of text in the sources")
    assert found["runs"][0]["steps"] == round(3 * round(440_000 / 4.5 / 128) / 16)


def test_a_suite_that_is_not_in_the_hours_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = " ".join(_printed(capsys, "real-text", "--hardware", "2xcpu", "--teacher", "bert-base-uncased").split())
    assert "the suite is not in these hours: cola: no folder glue/cola" in printed
    assert "with the suite's" not in printed
    on_gpu = ["demo", "--hardware", "1xT4", "--set", "teacher.train.placement.device=auto"]
    assert "fine-tunings run on CPUs and are not in these hours" in " ".join(_printed(capsys, *on_gpu).split())


@pytest.mark.parametrize(
    ("recipe", "hardware"),
    [
        ("gpu-16gb", "T4"),
        ("gpu-16gb", "V100-16GB"),
        ("gpu-24gb", "RTX4090"),
        ("gpu-24gb", "RTX3090"),
        ("gpu-24gb", "A10G"),
    ],
)
def test_recipes_for_one_gpu_fit_as_written(recipe: str, hardware: str, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = json.loads(_printed(capsys, recipe, "--hardware", f"1x{hardware}", "--rows", "1_000_000", "--json"))
    run = found["runs"][0]
    assert run["as_written"]["fits"]
    assert run["refusals"] == []
    assert run["hours"] < 1.1 * run["best"]["hours"]


def test_a_pipeline_that_trains_its_teacher_plans_that_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = json.loads(_printed(capsys, "demo", "--hardware", "2xcpu", "--json"))
    assert [run["name"] for run in found["runs"]] == ["student", "masked-only", "no-teacher", "teacher"]
    assert [run["steps"] for run in found["runs"]] == [140, 140, 140, 170]
    assert found["assumed"] == []
    student, _, alone, _ = found["runs"]
    assert alone["planned"]["memory_bytes"]["teacher"] == 0 < student["planned"]["memory_bytes"]["teacher"]
    assert alone["hours"] < student["hours"]


def test_a_plan_of_given_tokens_and_teacher_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tokens_artifact.make(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("epochs = 2\nrows_per_step = 16\n", encoding="utf-8")
    given = ["--tokens", str(tokens), "--teacher", str(tmp_path / "teacher"), "--set", "placement.workers=2"]
    printed = _printed(capsys, str(recipe), "--hardware", "2xcpu", "--hardware", "2x8xA100-40GB", *given, "--json")
    first, second = json.loads(printed)
    rows = json.loads((tokens / "manifest.json").read_text(encoding="utf-8"))["facts"]["train_rows"]
    assert first["runs"][0]["steps"] == round(2 * rows / 16)
    assert first["assumed"] == []
    assert (first["hardware"], second["hardware"]) == ("2xcpu", "2x8xA100-40GB")
    assert second["network"] == "25GbE"
    assert any("leaves 14 of 16 idle" in line for line in second["runs"][0]["warnings"])
    planned = first["runs"][0]["planned"]
    assert planned["fits"]
    assert sum(planned["memory_bytes"].values()) < planned["device_memory_bytes"]


def test_machines_side_by_side_are_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 100\nprecision = 'fp16'\n", encoding="utf-8")
    machines = ("8xV100-16GB", "8xA100-80GB", "8xH100")
    printed = _printed(capsys, str(recipe), *(part for name in machines for part in ("--hardware", name)))
    heads = next(line for line in printed.splitlines() if "8xH100" in line)
    assert heads.split() == [*machines]
    line = next(line for line in printed.splitlines() if line.strip().startswith("tokens/s"))
    slow, medium, fast = (int(value.replace(",", "")) for value in line.split()[1:])
    assert slow < medium < fast
    assert "a teacher of the shape of bert-base-uncased" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["default", "--hardware", "8xV100-16GB"], "write steps = N or epochs = N"),
        (["default", "--hardware", "8xB100", "--set", "steps=5"], "no description of B100: did you mean"),
        (["default", "--hardware", "cpu", "--set", "steps=5", "--teacher", "nobody/knows"], "is not known here"),
        (["default", "--hardware", "cpu", "--set", "step=5"], "did you mean steps?"),
        (["nowhere.toml", "--hardware", "cpu"], "neither a file nor one that ships"),
        (
            ["default", "--hardware", "cpu", "--set", "steps=5", "--teacher", "bert-bse-uncased"],
            "mean bert-base-uncased?",
        ),
        (["latency", "--hardware", "cpu"], "latency is neither a pipeline nor a training"),
        (["demo#teacher", "--hardware", "cpu"], "for example demo#train"),
    ],
)
def test_errors_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plan_cli.main(arguments)
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert says in printed


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("--price", text) for text in ("-1", "2,48", "nan", "inf", "2 EUR", "")),
        *(("--rows", text) for text in ("0", "-1", "a", "1.5", "")),
        ("--seq-len", "0"),
    ],
)
def test_a_wrong_number_is_refused_with_an_example(option: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        plan_cli.main(["demo", "--hardware", "cpu", f"{option}={text}"])
    assert re.search(
        rf"argument {option}: {re.escape(text)}: write a (whole )?number from [01] on, such as ", _err(capsys)
    )


def _err(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "2.48", ".5", "5.", "1e3"])
def test_a_price_is_any_number(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = " ".join(_printed(capsys, "demo", "--hardware", "1xT4", "--price", text).split())
    assert f" at {float(text):g} an hour" in printed


def test_the_answer_says_what_is_wrong_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def answer(*given: str) -> str:
        return " ".join(_printed(capsys, *given).partition("\n\n")[0].split())

    for_paper = "These hours are for the paper's 4.0 G tokens, not for your text: source path text/*.txt: no such file"
    refused = "But this run will be refused, for the reason below."
    assert for_paper in answer("own-text", "--hardware", "1xT4")
    assert refused not in answer("own-text", "--hardware", "1xT4")
    assert refused in answer("own-text", "--hardware", "1xT4", "--seq-len", "99999")
    assert for_paper not in answer("own-text", "--hardware", "1xT4", "--rows", "1000")
    assert for_paper not in answer("distilbert", "--hardware", "8xV100-16GB")


def test_this_machine_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens_artifact.make(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("steps = 5\nrows_per_step = 16\nplacement = { device = 'cpu' }\n", encoding="utf-8")
    given = ["--tokens", str(tmp_path / "tokens"), "--teacher", str(tmp_path / "teacher")]
    (found,) = json.loads(_printed(capsys, str(recipe), "--hardware", "here", *given, "--json"))
    assert found["hardware"] == "this machine"
    step = found["runs"][0]["planned"]
    assert 0 < step["compute_seconds"] <= step["step_seconds"] < 60
    assert step["device_memory_bytes"] > 1e9
