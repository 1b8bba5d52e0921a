"""Results set beside the teacher's and the paper's: the contents of ``report.json``, as plain values.

Nothing is guessed: a value that was not measured is None, and a share or ratio is only computed from two measurements
made under the same conditions.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from eval import paper
from eval.results import STUDENT, TEACHER, Results, Score, weight_bytes


def compare(results: Results) -> dict[str, Any]:
    """Everything a report says, without its words: models, scores, runs, exports, latency, descent, jobs, paper."""
    models = _models(results)
    scores = _scores(results)
    speeds = _timings(results)
    return {
        "headline": _headline(models, scores, speeds, results.latency.settings if results.latency else {}),
        "models": models,
        "scores": scores,
        "runs": _runs(results),
        "exports": _exports(results),
        "latency": None
        if results.latency is None
        else {"machine": results.latency.machine, "settings": results.latency.settings, "rows": speeds},
        "descent": _descent(results),
        "jobs": [dataclasses.asdict(job) for job in results.jobs],
        "paper": _paper(),
    }


def _models(results: Results) -> list[dict[str, Any]]:
    """The teacher, the main student, then the others by name."""
    students = results.below("students")
    names = sorted(students, key=lambda name: (name != STUDENT, name))
    found = [{"name": name, **_model(students[name].facts, weight_bytes(students[name]))} for name in names]
    if TEACHER in results.artifacts:
        teacher = results.artifacts[TEACHER]
        measured: Mapping[str, Any] = next(
            (model["validation"] for model in found if "teacher_masked" in model["validation"]), {}
        )
        values = _model(teacher.facts, weight_bytes(teacher))
        # On the rows and masks the student was measured on, where it was; else where the teacher was trained.
        values["masked_loss"] = measured.get("teacher_masked", values["masked_loss"])
        values["accuracy"] = measured.get("teacher_accuracy", values["accuracy"])
        found.insert(0, {"name": TEACHER, **values})
    return found


def _model(facts: Mapping[str, Any], weights: int | None) -> dict[str, Any]:
    validation = {key: value for key, value in (facts.get("validation") or {}).items() if value is not None}
    told = ("architecture", "layers", "hidden", "parameters", "source", "steps", "tokens", "device_hours")
    return {
        **{key: facts.get(key) for key in told},
        "device": facts.get("device"),
        "workers": facts.get("world_size"),
        "weight_bytes": weights,
        "masked_loss": validation.get("masked"),
        "accuracy": validation.get("accuracy"),
        "agreement": validation.get("agreement"),
        "validation": validation,
    }


def _scores(results: Results) -> dict[str, Any]:
    """Per task every model's score, the student's share of the teacher's, and the paper's numbers."""
    tasks = sorted({task for found in results.scores.values() for task in found}, key=_place_in_paper)
    rows = [
        _task(task, {model: found[task] for model, found in results.scores.items() if task in found}) for task in tasks
    ]
    known = {paper.key(task) for task in tasks}
    return {
        "models": _order(results.scores),
        "tasks": rows,
        "macro": _macro(rows),
        "unmeasured": [published.title for key, published in paper.SCORES.items() if key not in known],
    }


def _task(task: str, scores: Mapping[str, Score]) -> dict[str, Any]:
    published = paper.find(task)
    teacher = scores.get(TEACHER)
    first = next(iter(scores.values()))
    return {
        "task": task,
        "title": published.title if published else task,
        "metric": first.metric,
        "scores": {model: dataclasses.asdict(score) for model, score in scores.items()},
        "kept": {model: share(score, teacher) for model, score in scores.items() if model != TEACHER},
        "majority": first.majority,
        "dev_examples": first.dev_examples,
        "subset": any(score.subset for score in scores.values()),
        "paper": published and {**dataclasses.asdict(published), "kept": published.kept},
    }


def share(score: Score, teacher: Score | None) -> float | None:
    """Percent of the teacher's score that is kept; None unless both were measured on the same examples."""
    if teacher is None or teacher.score <= 0:
        return None
    same = (score.metric, score.dev_examples, score.dev_files) == (
        teacher.metric,
        teacher.dev_examples,
        teacher.dev_files,
    )
    return 100 * score.score / teacher.score if same else None


def _macro(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Means over the tasks on which teacher and student can be compared, and the paper's over the same tasks."""
    shared = [row for row in rows if row["kept"].get(STUDENT) is not None]
    if not shared:
        return None
    whole = [model for model in shared[0]["kept"] if all(row["kept"].get(model) is not None for row in shared)]
    means = {model: _mean(row["scores"][model]["score"] for row in shared) for model in (TEACHER, *whole)}
    published = [row["paper"] for row in shared]
    macro: dict[str, Any] = {
        "tasks": [row["title"] for row in shared],
        "scores": means,
        "kept": {model: 100 * means[model] / means[TEACHER] for model in whole},
        "paper": None,
    }
    if all(published):
        bert, distilbert = (_mean(entry[key] for entry in published) for key in ("bert_base", "distilbert"))
        macro["paper"] = {"bert_base": bert, "distilbert": distilbert, "kept": 100 * distilbert / bert}
    return macro


def _runs(results: Results) -> list[dict[str, Any]]:
    students = {name: found.facts for name, found in results.below("students").items()}
    rows = []
    for run in sorted(results.runs, key=lambda run: (run.name != STUDENT, run.name)):
        train = [line for line in run.lines if line.get("kind") == "train"]
        validation = [line for line in run.lines if line.get("kind") == "validation"]
        rates = [line["tokens_per_second"] for line in train if line.get("tokens_per_second") is not None]
        facts = students.get(run.name) or (results.artifacts[TEACHER].facts if run.name == TEACHER else {})
        recipe = (run.recipe or {}).get("recipe", {})
        last = train[-1] if train else {}
        rows.append(
            {
                "name": run.name,
                "precision": recipe.get("precision"),
                "rows_per_step": recipe.get("rows_per_step"),
                "device": facts.get("device"),
                "workers": facts.get("world_size"),
                "device_hours": facts.get("device_hours"),
                "steps": last.get("step"),
                "tokens": last.get("tokens"),
                "tokens_per_second": statistics.median(rates) if rates else None,
                "recipe": recipe,
                "train": train,
                "validation": validation,
            }
        )
    return rows


def _exports(results: Results) -> list[dict[str, Any]]:
    rows = []
    for path, found in results.below("exports").items():
        model, _, form = path.partition("/")
        told = {"bytes": found.facts.get("bytes"), "parity": found.facts.get("parity")}
        rows.append({"model": model, "format": form, **told})
    return rows


def _timings(results: Results) -> list[dict[str, Any]]:
    """Latency rows by length, with the ratio to the teacher in the same form at the same length."""
    timings = results.latency.rows if results.latency else []
    teachers = {(row.form, row.length): row.p50_ms for row in timings if row.who == TEACHER}
    rows = []
    for row in sorted(timings, key=lambda row: row.length):
        teacher = teachers.get((row.form, row.length)) if row.who != TEACHER else None
        same = None if teacher is None else teacher / row.p50_ms
        rows.append({**dataclasses.asdict(row), "who": row.who, "form": row.form, "ratio_same_form": same})
    return rows


def _descent(results: Results) -> list[dict[str, Any]]:
    places = {found.identity: path for path, found in results.artifacts.items()}
    return [
        {
            "path": path,
            "kind": found.kind,
            "identity": found.identity,
            "inputs": [
                {"role": role, "identity": known, "path": places.get(known)}
                # A student is made from a run, which is no artifact: its lineage says what the run was made from.
                for role, known in {**found.inputs, **found.facts.get("lineage", {})}.items()
            ],
            "code": dict(found.manifest["code"]),
            "made_at": found.manifest["made"]["at"],
            "seconds": found.manifest["made"]["seconds"],
        }
        for path, found in results.artifacts.items()
    ]


def _paper() -> dict[str, Any]:
    return {
        "source": paper.SOURCE,
        "claim": paper.CLAIM,
        "target_percent": paper.TARGET_PERCENT,
        "speeds": [
            {**dataclasses.asdict(speed), "pair_ms": 1000 * speed.seconds / paper.PAIRS} for speed in paper.SPEEDS
        ],
        "speed_conditions": paper.SPEED_CONDITIONS,
        "cost": {"gpu": paper.GPU, "gpus": paper.GPUS, "hours": paper.HOURS, "gpu_hours": paper.GPU_HOURS},
    }


def _headline(
    models: list[dict[str, Any]], scores: Mapping[str, Any], timings: list[dict[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The numbers of the first sentence, each None unless measured."""
    found = {model["name"]: model for model in models}
    teacher, student = found.get(TEACHER, {}), found.get(STUDENT, {})
    macro = scores["macro"]
    parameters, of = student.get("parameters"), teacher.get("parameters")
    speeds = [row for row in timings if row["who"] == STUDENT]
    same = [row for row in speeds if row["ratio_same_form"] is not None]
    best = [row for row in speeds if row["ratio_to_teacher"] is not None]
    return {
        "kept": macro and macro["kept"][STUDENT],
        "tasks": macro["tasks"] if macro else [],
        "student_layers": student.get("layers"),
        "teacher_layers": teacher.get("layers"),
        "ablation": _ablation(models),
        "parameter_share": 100 * parameters / of if parameters and of else None,
        "batch": settings.get("batch"),
        "same_form": min(same, key=lambda row: row["length"], default=None),
        "fastest": max(best, key=lambda row: (-row["length"], row["ratio_to_teacher"]), default=None),
    }


def _ablation(models: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How much lower the student's held-out masked-LM loss is than that of the best other student, in nats."""
    student = next((model for model in models if model["name"] == STUDENT), None)
    others = [model for model in models if model["name"] not in (TEACHER, STUDENT) and model["masked_loss"] is not None]
    if student is None or student["masked_loss"] is None or not others:
        return None
    best = min(others, key=lambda model: model["masked_loss"])
    return {"name": best["name"], "gain": best["masked_loss"] - student["masked_loss"]}


def _order(models: Iterable[str]) -> list[str]:
    return sorted(models, key=lambda name: (name != TEACHER, name != STUDENT, name))


def _place_in_paper(task: str) -> tuple[int, str]:
    keys = list(paper.SCORES)
    return (keys.index(paper.key(task)) if paper.find(task) else len(keys), task)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
