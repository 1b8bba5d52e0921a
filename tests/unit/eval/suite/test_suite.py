"""A suite as a table of jobs: the jobs for a recipe and the available models, and refused recipes."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import model_exports
import pytest
from result_folders import make, make_model

from cluster.artifacts import registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import RecipeError, load
from cluster.artifacts.stage import StageContext, TrainingRun
from cluster.jobs.job import Outcome
from cluster.storage.filesystem import file_sha256, write_json
from deploy.web_page import libraries
from eval.benchmark.stage import BenchmarkRecipe
from eval.suite import checks
from eval.suite.plan import SuitePlan, side_jobs
from eval.suite.recipe import TABLE_3, Suite
from eval.suite.stage import STAGE, _report_job, models, record

TASKS: dict[str, Any] = {"rte": {}, "stsb": {"epochs": 2}, "provenance": {"seeds": [1]}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for task in ("rte", "stsb"):
        (tmp_path / "data" / task).mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Artifacts of a pipeline with a sweep."""
    out = tmp_path / "out"
    for name in (
        "teacher",
        "students/student",
        "students/no-soft",
        "students/all-losses",
        "students/.no-cosine.partial",
    ):
        (out / name).mkdir(parents=True)
    return out


def _plan(data: Path, out: Path, **values: Any) -> SuitePlan:
    suite = STAGE.read({"data": f"{data}/{{task}}", "tasks": TASKS, **values})
    plan = SuitePlan(suite, models(suite, {}, out), out)
    checks.check(suite, StageContext(out, models=tuple(plan.models)))
    return plan


def _jobs(plan: SuitePlan) -> dict[str, Any]:
    found = {job.name: job for job in plan.jobs()}
    assert len(found) == len(plan.jobs())
    return found


def test_every_model_is_fine_tuned_on_every_task_after_its_dependencies(data: Path, out: Path) -> None:
    found = _jobs(_plan(data, out, finetune={"seeds": [1, 2]}, job_cpus=2, priority=3))
    assert list(found) == [
        "datasets/provenance",
        *(f"bag_of_words/{task}" for task in TASKS),
        *(f"finetune/{model}/{task}" for task in TASKS for model in ("teacher", "student")),
    ]
    job = found["finetune/student/stsb"]
    assert job.recipe == {"task": "stsb", "seeds": [1, 2], "epochs": 2, "placement": {"threads": 2}}
    assert job.inputs == {"model": out / "students" / "student", "data": data / "stsb"}
    assert (job.out, job.cpus, job.priority, job.after) == (out / "finetune" / "student" / "stsb", 2, 3, ())
    made = found["finetune/teacher/provenance"]
    assert made.after == ("datasets/provenance",)
    assert made.inputs["data"] == found["datasets/provenance"].out


def test_a_bag_of_words_reads_the_examples_of_the_models(data: Path, out: Path) -> None:
    (data / "squad").mkdir()
    tasks = {**TASKS, "squad": {}, "rte": {"train_limit": 100, "seeds": [1, 2]}}
    found = _jobs(_plan(data, out, tasks=tasks, finetune={"dev_limit": 50}))
    bags = {name: job for name, job in found.items() if name.startswith("bag_of_words/")}
    assert list(bags) == ["bag_of_words/rte", "bag_of_words/stsb", "bag_of_words/provenance"]
    rte, _, made = bags.values()
    assert (rte.stage, rte.recipe) == ("eval.bag_of_words", {"task": "rte", "train_limit": 100, "dev_limit": 50})
    assert (rte.inputs, rte.out) == ({"data": data / "rte"}, out / "bag_of_words" / "rte")
    assert made.after == ("datasets/provenance",)
    assert not any(name.startswith("bag_of_words/") for name in _jobs(_plan(data, out, bag_of_words="none")))


def test_the_second_step_is_taught_by_the_fine_tuned_teacher(data: Path, out: Path) -> None:
    plan = _plan(data, out, second_step={"tasks": ["rte"]})
    job = _jobs(plan)["finetune/student-second-step/rte"]
    assert job.inputs["model"] == out / "students" / "student"
    assert job.inputs["teacher"] == out / "finetune" / "teacher" / "rte"
    assert job.after == ("finetune/teacher/rte",)
    assert job.recipe["second_step"] == {}
    assert plan.described()["second_step"] == "student-second-step"


def test_a_sweep_measures_the_others_like_its_reference(data: Path, out: Path) -> None:
    sweep = {"reference": "all-losses", "tasks": ["rte"], "finetune": {"seeds": [7]}}
    plan = _plan(data, out, sweep=sweep)
    found = _jobs(plan)
    swept = [found[f"finetune/{name}/rte"] for name in ("all-losses", "no-soft")]
    assert [job.recipe["seeds"] for job in swept] == [[7], [7]]
    assert "seeds" not in found["finetune/student/rte"].recipe
    assert "finetune/no-soft/stsb" not in found
    assert plan.described() == {
        "models": {
            "teacher": "teacher",
            "student": "students/student",
            "all-losses": "students/all-losses",
            "no-soft": "students/no-soft",
        },
        "ablations": {"reference": "all-losses", "students": ["no-soft"]},
        "second_step": None,
    }


def test_a_sweep_of_models_that_are_named_measures_each_of_them_once(data: Path, tmp_path: Path) -> None:
    given = {name: str(tmp_path / name) for name in ("large", "all-losses", "no-soft")}
    for place in given.values():
        Path(place).mkdir()
    sweep = {"reference": "all-losses", "students": ["no-soft"], "tasks": ["rte"], "finetune": {"seeds": [7]}}
    plan = _plan(data, tmp_path / "out", models=given, sweep=sweep)
    assert sorted(name for name in _jobs(plan) if name.startswith("finetune/")) == [
        *(f"finetune/{name}" for name in ("all-losses/rte", "large/provenance", "large/rte", "large/stsb")),
        "finetune/no-soft/rte",
    ]
    assert plan.described()["ablations"] == {"reference": "all-losses", "students": ["no-soft"]}


def test_timed_jobs_run_alone(data: Path, out: Path) -> None:
    found = _jobs(_plan(data, out, exports={"task": "stsb"}, baselines={}))
    assert [name for name, job in found.items() if registry.find(job.stage).alone] == ["latency", "baselines"]
    exported = [f"export-{model}-stsb-{form}" for model in ("teacher", "student") for form in ("onnx", "int8")]
    assert set(found["latency"].inputs) == {"teacher", "student", "pairs", *exported}
    assert found["exports/student/int8"].after == ("exports/student/onnx",)
    assert found["exports/student/onnx"].after == ("finetune/student/stsb",)
    assert found["baselines"].inputs["pairs"] == data / "stsb"
    assert found["baselines"].stage == found["latency"].stage == "eval.latency"
    assert found["baselines"].recipe["turn"] == 25
    assert found["baselines"].after == ("finetune/teacher/stsb", "finetune/student/stsb")


def test_exports_come_in_every_format_for_every_task(data: Path, out: Path) -> None:
    (data / "squad").mkdir()
    asked = {
        "task": ["stsb", "squad"],
        "models": ["student"],
        "formats": ["ort-int8", "onnx"],
        "values": {"int8": {"weight_bits": 7}},
        "score_limit": 30,
        "latency": {"models": ["bert_base"]},
    }
    (data / "bert").mkdir()
    baselines = {"folders": {"bert_base": str(data / "bert"), "distilbert": str(data / "bert")}}
    plan = _plan(data, out, tasks={"stsb": {}, "squad": {}}, exports=asked, baselines=baselines)
    found = _jobs(plan)
    made = [name for name in found if name.startswith("exports/")]
    assert made == [f"exports/student/{form}" for form in ("onnx", "int8", "ort-int8")] + [
        f"exports/student/squad-{form}" for form in ("onnx", "int8", "ort-int8")
    ]
    job = found["exports/student/squad-ort-int8"]
    assert (job.stage, job.recipe) == ("deploy.ort_mobile", {"score": {"limit": 30}})
    assert job.inputs == {
        "export": out / "exports/student/squad-int8",
        "model": out / "finetune/student/squad",
        "data": data / "squad",
    }
    assert job.after == ("exports/student/squad-int8",)
    assert found["exports/student/int8"].recipe == {"weight_bits": 7, "score": {"limit": 30}}
    latency = found["latency"]
    assert latency.after == tuple(made)
    assert latency.inputs == {
        "student-stsb": out / "finetune/student/stsb",
        "student-squad": out / "finetune/student/squad",
        "export-student-stsb-ort-int8": out / "exports/student/ort-int8",
        "export-student-stsb-onnx": out / "exports/student/onnx",
        "export-student-squad-ort-int8": out / "exports/student/squad-ort-int8",
        "export-student-squad-onnx": out / "exports/student/squad-onnx",
        "pairs": data / "stsb",
        "questions": data / "squad",
        "bert_base": data / "bert",
    }


def test_the_fine_tunings_are_numbers_for_plans(data: Path, out: Path) -> None:
    suite = STAGE.read(
        {"data": f"{data}/{{task}}", "tasks": TASKS, "finetune": {"seeds": [1, 2]}, "second_step": {"tasks": ["rte"]}}
    )
    found = STAGE.workload(suite, StageContext(out, models=("teacher", "student")))
    assert len(found) == 2 * len(TASKS) + 1
    first = found[0]
    assert (first.model, first.examples, first.tokens, first.taught) == ("teacher", 2 * 5 * 2_490, 71, False)
    assert sum(each.trainings for each in found) == 2 * (2 + 2 + 1) + 2
    assert [each.model for each in found if each.taught] == ["student"]
    (data / "rte").rmdir()
    with pytest.raises(StageError, match="rte: no folder"):
        STAGE.workload(suite, StageContext(out, models=("teacher",)))


def test_without_a_task_the_models_themselves_are_exported(data: Path, out: Path) -> None:
    names = ("teacher", "student")
    found = _jobs(_plan(data, out, tasks={}, exports={}))
    assert [*found] == [*(f"exports/{model}/{form}" for model in names for form in ("onnx", "int8")), "latency"]
    assert found["exports/student/onnx"].inputs == {"model": out / "students" / "student"}
    assert found["exports/student/onnx"].after == ()
    assert found["exports/student/int8"].after == ("exports/student/onnx",)
    assert found["latency"].inputs == {
        **{model: out / place for model, place in zip(names, ("teacher", "students/student"), strict=True)},
        **{f"export-{model}-{form}": out / f"exports/{model}/{form}" for model in names for form in ("onnx", "int8")},
    }


@model_exports.needs("openvino", "nncf")
def test_calibrated_exports_get_the_pipelines_rows(data: Path, out: Path) -> None:
    asked = {"task": "stsb", "formats": ["openvino-int8"]}
    with pytest.raises(StageError, match=r"openvino-int8, .* token rows"):
        _plan(data, out, exports=asked).jobs()
    for name in ("tokens-512", "tokens-128"):
        (out / name).mkdir()
    job = _jobs(_plan(data, out, exports=asked))["exports/teacher/openvino-int8"]
    assert (job.inputs["tokens"], job.recipe) == (out / "tokens-128", {"precision": "int8"})
    (out / "tokens").mkdir()
    assert _jobs(_plan(data, out, exports=asked))["exports/teacher/openvino-int8"].inputs["tokens"] == out / "tokens"
    named = _plan(data, out, exports={**asked, "tokens": str(data)})
    assert _jobs(named)["exports/teacher/openvino-int8"].inputs["tokens"] == data


def test_a_toolchain_that_is_missing_is_named_before_anything_starts(
    data: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name in ("executorch", "ai-edge-quantizer"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name in ("ai-edge-litert", "litert-torch") else version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    line = r"exports\.formats has executorch-int8: executorch is not installed: pip install 'stillhouse\[executorch\]'"
    with pytest.raises(StageError, match=line):
        _plan(data, out, exports={"task": "stsb", "formats": ["onnx", "executorch-int8"]}).jobs()
    with pytest.raises(StageError, match=r"ai-edge-quantizer is not installed: pip install --no-deps"):
        _plan(data, out, exports={"task": "stsb", "formats": ["litert-fp32"]}).jobs()


def test_phones_measure_the_exports_of_answers(data: Path, out: Path) -> None:
    for name in ("squad", "browser", "programs"):
        (data / name).mkdir()
    files = {name for names in libraries.FILES.values() for name in names}
    for name in files:
        (data / "browser" / name).write_text(name, encoding="utf-8")
    digests = {name: file_sha256(data / "browser" / name) for name in files}
    write_json(data / "browser" / "libraries.json", {"packages": libraries.versions(), "files": digests})
    phones = {
        "host": {"format": "ort-int8", "measure": {"threads": [1]}},
        "pocket": {"libraries": str(data / "browser"), "measure": {"way": {"kind": "browser"}}},
        "cable": {"task": "stsb", "binary": str(data / "programs"), "measure": {"way": {"kind": "adb"}}},
    }
    asked = {"task": ["stsb", "squad"], "formats": ["onnx"], "mobile": phones}
    found = _jobs(_plan(data, out, tasks={"stsb": {}, "squad": {}}, exports=asked))
    host = found["mobile/host"]
    assert (host.stage, host.alone, host.out) == ("eval.mobile", True, out / "mobile/host")
    assert host.recipe == {"way": {"kind": "proxy"}, "threads": [1]}
    assert host.inputs == {role: out / f"exports/{role}/squad-ort-int8" for role in ("teacher", "student")}
    assert host.after == ("exports/teacher/squad-ort-int8", "exports/student/squad-ort-int8")
    pocket, page = found["mobile/pocket"], found["pages/pocket"]
    assert (pocket.inputs, pocket.after, pocket.alone) == ({"page": out / "pages/pocket"}, ("pages/pocket",), False)
    assert page.after == ("exports/teacher/squad-int8", "exports/student/squad-int8")
    assert (page.stage, page.inputs["libraries"]) == ("deploy.web_page", data / "browser")
    assert found["mobile/cable"].inputs == {
        "teacher": out / "exports/teacher/int8",
        "student": out / "exports/student/int8",
        "binary": data / "programs",
    }
    write_json(data / "browser" / "libraries.json", {"packages": {"tokenizers": "0.0.1"}, "files": {}})
    with pytest.raises(StageError, match=r"other versions than .*package\.json"):
        _plan(data, out, tasks={"stsb": {}, "squad": {}}, exports=asked).jobs()
    # Latency on servers is measured only for the requested formats.
    assert not [name for name in found["latency"].inputs if "int8" in name]


def test_the_papers_table_is_the_shipped_recipe() -> None:
    assert load(BenchmarkRecipe, "baselines") == BenchmarkRecipe.of(TABLE_3)


def test_models_may_be_given_or_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "mine").mkdir()
    suite = Suite.of({"data": f"{data}/{{task}}", "tasks": {"rte": {}}, "models": {"large": str(tmp_path / "large")}})
    plan = SuitePlan(suite, models(suite, {"student": tmp_path / "mine"}, tmp_path / "out"), tmp_path / "out")
    assert list(_jobs(plan)) == ["bag_of_words/rte", "finetune/student/rte", "finetune/large/rte"]
    assert plan.described()["models"] == {"large": str(tmp_path / "large"), "student": str(tmp_path / "mine")}
    absent = Suite.of({"models": {"large": str(tmp_path / "nowhere")}})
    with pytest.raises(StageError, match=r"the model large: no folder .*nowhere"):
        models(absent, {}, tmp_path / "out")


def test_tasks_from_the_hub_need_no_folder(out: Path) -> None:
    suite = Suite.of({"hub": "nyu-mll/glue:{task}", "tasks": {"rte": {}, "imdb": {"data": "stanfordnlp/imdb"}}})
    found = _jobs(SuitePlan(suite, models(suite, {}, out), out))
    assert found["finetune/student/rte"].recipe["data"] == "nyu-mll/glue:rte"
    assert found["finetune/student/imdb"].recipe["data"] == "stanfordnlp/imdb"
    assert set(found["finetune/student/rte"].inputs) == {"model"}


def test_probe_jobs_get_their_settings(data: Path, out: Path) -> None:
    suite = Suite.of(
        {
            "data": f"{data}/{{task}}",
            "tasks": TASKS,
            "probes": {"tasks": ["rte", "provenance"], "finetune": {"train_limit": 10}, "every": 50, "metrics_port": 0},
        }
    )
    assert side_jobs(suite, StageContext(out, training=TrainingRun("no-soft", 100))) == []
    made, probes = (side_jobs(suite, StageContext(out, training=run))[0] for run in (None, TrainingRun("student", 100)))
    assert (made.name, made.inputs, made.after) == ("datasets/provenance", {"corpus": out / "corpus"}, ("corpus",))
    assert (probes.name, probes.inputs) == ("probes/student", {"run": out / "runs" / "student"})
    assert probes.recipe == {
        "tasks": {
            "rte": {"finetune": {"train_limit": 10, "task": "rte"}, "folder": str(data / "rte")},
            "provenance": {
                "finetune": {"seeds": [1], "train_limit": 10, "task": "provenance"},
                "folder": str(out / "datasets" / "provenance"),
            },
        },
        "steps": 100,
        "every": 50,
        "placement": {"cpus": 1, "gpus": 0.0, "priority": 0, "metrics_port": 0},
    }


def test_endings_replace_those_of_the_suite_before_and_no_others(tmp_path: Path) -> None:
    write_json(
        tmp_path / "jobs.json", [{"name": "corpus"}, {"name": "finetune/student/cola"}, {"name": "runs/no-soft"}]
    )
    record(tmp_path, [Outcome("finetune/student/rte", "done"), Outcome("report", "failed", error="it rained")])
    written = json.loads((tmp_path / "jobs.json").read_text())
    assert [entry["name"] for entry in written] == ["corpus", "runs/no-soft", "finetune/student/rte", "report"]
    assert written[-1]["error"] == "it rained"


def _phone(**values: Any) -> dict[str, Any]:
    return {"tasks": {"rte": {}}, "data": "x", "exports": {"task": "rte", "mobile": {"host": values}}}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tasks": {"rte": {}}}, "no data for rte"),
        ({"tasks": {"rte": {}}, "data": "x", "hub": "y"}, "data and hub: write one of them"),
        ({"tasks": {"rte": {"placement": {"threads": 4}}}, "data": "x"}, "job_cpus and job_gpus"),
        ({"tasks": {"rted": {}}, "data": "x"}, "no task rted: did you mean rte?"),
        ({"exports": {"task": "rte"}}, "exports.task names rte, which is not among tasks"),
        (
            {"exports": {"score_limit": 9}},
            "exports.score_limit needs a fine-tuned model: name its task in exports.task",
        ),
        ({"exports": {"mobile": {"host": {}}}}, "exports.mobile needs a fine-tuned model"),
        ({"tasks": {"rte": {}}, "data": "x", "exports": {"task": "rte", "models": ["teacher"]}}, "must have student"),
        ({"sweep": {"finetune": {"seeds": [1]}}}, "sweep.finetune would measure the others otherwise than student"),
        ({"tasks": {"rte": {}}, "data": "x", "baselines": {}}, "put stsb = {} among the tasks"),
        ({"second_step": {"finetune": {"epochs": 20}}}, "unknown key second_step.finetune"),
        (
            {"tasks": {"rte": {}}, "data": "x", "second_step": {"loss": {"warmth": 2}}},
            r"\[second_step.loss\]: unknown key second_step.warmth",
        ),
        ({"folders": {"squad": "x"}}, "folders names squad, which is not among tasks"),
        (
            {"tasks": {"stsb": {}}, "data": "x", "baselines": {"measure": {"turns": 2}}},
            r"\[baselines.measure\]: unknown key turns; did you mean turn",
        ),
        ({"tasks": {"rte": {}}, "data": "x", "exports": {"task": "rte", "formats": ["int9"]}}, "exports.formats"),
        (
            {"tasks": {"rte": {}}, "data": "x", "exports": {"task": "rte", "values": {"ort": {}}}},
            "exports.values is about ort, which is not among exports.formats",
        ),
        (
            {"tasks": {"rte": {}}, "data": "x", "exports": {"task": "rte", "values": {"int8": {"weight_bit": 7}}}},
            r"\[exports.values.int8\]: unknown key weight_bit; did you mean weight_bits",
        ),
        (_phone(task="rtf"), "exports.mobile.host has the task rtf, which is not among exports.task"),
        (_phone(binary="x"), 'way.kind = "proxy" has no use for binary: leave it out'),
        (_phone(measure={"way": {"kind": "browser"}}), 'way.kind = "browser" needs libraries: name its folder'),
        (_phone(measure={"way": {"kind": "brwser"}}, libraries="x"), r"\[exports.mobile.host.measure\]: .*brwser"),
        (_phone(measure={"way": "browser"}, libraries="x", task="rte"), r"mobile.host: its page asks questions"),
        (
            _phone(measure={"way": {"kind": "browser"}}, libraries="x", format="openvino-int8"),
            'way.kind = "browser" does not run openvino-int8: set format to one of onnx, int8',
        ),
        (
            {"tasks": {"rte": {}}, "data": "x", "exports": {"task": "rte", "mobile": {"../host": {}}}},
            "exports.mobile.../host: a folder is called after it",
        ),
        (_phone(measure={"repeat": 2}), r"\[exports.mobile.host.measure\]: unknown key repeat; did you mean repeats"),
    ],
)
def test_suites_that_are_refused(change: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        STAGE.read(change)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sweep": {"reference": "all"}}, "sweep.reference needs the model all: there is teacher, student"),
        ({"folders": {"rte": "/nowhere/rte"}}, "rte: no folder /nowhere/rte"),
        ({"baselines": {"folders": {"elmo": "/nowhere"}}}, "baselines.folders: no folder /nowhere for elmo"),
        (
            {"baselines": {}, "tasks": {"stsb": {"data": "nyu-mll/glue:stsb"}}},
            "baselines are timed on the pairs of stsb: name its folder",
        ),
        ({"sweep": {"students": ["no-mask"]}}, "sweep.students needs the model no-mask: there is teacher, student"),
        ({"sweep": {"students": []}}, "sweep has no students to compare: name some of models in sweep.students"),
        (
            {
                "exports": {
                    "task": "rte",
                    "mobile": {"cable": {"binary": "/nowhere", "measure": {"way": {"kind": "adb"}}}},
                }
            },
            "exports.mobile.cable: no folder /nowhere: correct it",
        ),
        ({"baselines": {"folders": {"bert": "."}}}, "baselines.folders names bert, which is not measured"),
    ],
)
def test_missing_inputs_of_a_suite_are_found_before_anything_runs(
    data: Path, out: Path, change: dict[str, Any], line: str
) -> None:
    with pytest.raises(StageError, match=line):
        _plan(data, out, **change).jobs()


def test_a_report_that_came_back_and_is_outdated_again_is_kept_once(tmp_path: Path) -> None:
    make_model(tmp_path / "teacher", "teacher", "teacher", None)
    for _ in range(2):
        make(tmp_path / "report", "report", {"kept_percent": 90.0}, {"report.md": b"of other results"})
        _report_job(tmp_path)
        assert not (tmp_path / "report").exists()
        (aside,) = tmp_path.glob("report-*")
        assert (aside / "report.md").read_bytes() == b"of other results"
