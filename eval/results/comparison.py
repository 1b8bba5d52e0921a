"""The contents of ``report.json`` as plain values: our results compared with the teacher's and the paper's.

A value that was not measured is None; shares and ratios need two measurements under the same conditions.
"""

import dataclasses
import re
import statistics
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from cluster.tokens import word_count_gain
from eval.results import ablation_values, heldout_values, latency_values, model_rows, paper, score_values, verdicts
from eval.results.collect import ResultModel, Results
from eval.results.schema import STUDENT, TEACHER, PhoneMeasurement


def compare(results: Results) -> dict[str, Any]:
    """All values of a report."""
    models, sweep = _models(results), results.suite.ablations
    report: dict[str, Any] = {
        "name": results.name,
        "models": models,
        "tables": {
            "1": score_values.glue(results),
            "2": score_values.downstream(results),
            "3": latency_values.baselines(results),
            "4": ablation_values.ablations(results),
        },
        "other_tasks": score_values.others(results),
        "scores": score_values.everything(results),
        "bags": score_values.bags(results),
        "heldout": heldout_values.heldout(results.models, sweep.reference if sweep else None),
        "runs": _runs(results),
        "exports": _exports(results),
        "latency": latency_values.latency(results),
        "phones": _phones(results),
        "tuning": _tuning(results),
        "corpus": _corpus(results),
        "descent": _descent(results),
        "jobs": [dataclasses.asdict(job) for job in results.jobs],
        "paper": _paper(),
    }
    report["headline"] = _headline(report)
    report["claims"] = verdicts.claims(report)
    return report


def failed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Jobs that failed or were cancelled."""
    return [job for job in report["jobs"] if job["state"] in ("failed", "cancelled")]


def _models(results: Results) -> list[dict[str, Any]]:
    """The teacher, the main student, then the others by name."""
    measured: Mapping[str, Any] = next(
        (found for model in results.models.values() if "teacher_masked" in (found := _validation(model))), {}
    )
    # A student's validation measures the teacher on the same rows and masks; prefer it to the teacher's own.
    taught = {key.removeprefix("teacher_"): value for key, value in measured.items() if key.startswith("teacher_")}
    taught |= {key: value for key, value in measured.items() if key.startswith("counts_")} if taught else {}
    return [
        {"name": name, **_model(name, model, taught if name == TEACHER else {})}
        for name, model in results.models.items()
    ]


def _validation(model: ResultModel) -> dict[str, Any]:
    return {key: value for key, value in (model.facts.get("validation") or {}).items() if value is not None}


def _model(name: str, model: ResultModel, taught: Mapping[str, Any]) -> dict[str, Any]:
    """A model's size, training and last validation; ``taught`` has measurements to prefer."""
    facts, validation = model.facts, _validation(model)
    measured = {**validation, **taught}
    counts = {key: measured.get(f"counts_{key}") for key in ("masked", "hidden_loss", "accuracy")}
    saved = word_count_gain.saved_percent(measured.get("hidden_loss"), counts["hidden_loss"])
    kind = model_rows.kind(name, facts)
    names = ("architecture", "layers", "hidden", "parameters", "steps", "tokens", "device_hours", "device")
    return {
        **{key: facts.get(key) for key in names},
        "differences": facts.get("differences", []),
        "origin": facts.get("source"),
        "workers": facts.get("world_size"),
        "weight_bytes": model.weight_bytes,
        "identity": model.identity,
        "source": model.source,
        "kind": kind,
        "title": model_rows.title(name, kind),
        "masked_loss": measured.get("masked"),
        **{key: measured.get(key) for key in ("hidden_loss", "accuracy", "visible_accuracy", "replaced_accuracy")},
        "agreement": validation.get("agreement"),
        "counts": counts if counts["hidden_loss"] is not None else None,
        "over_counts": saved,
        "hardly_better": None if saved is None else saved < word_count_gain.LITTLE_PERCENT,
        "validation": validation,
    }


def _runs(results: Results) -> list[dict[str, Any]]:
    rows = []
    for run in sorted(results.runs, key=lambda run: (run.name != STUDENT, run.name)):
        train, validation = (
            [line for line in run.lines if line.get("kind") == kind] for kind in ("train", "validation")
        )
        rates = [line["tokens_per_second"] for line in train if line.get("tokens_per_second") is not None]
        model = results.models.get(run.name)
        facts = model.facts if model else {}
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
                "steps": last.get("step", facts.get("steps")),
                "tokens": last.get("tokens", facts.get("tokens")),
                "tokens_per_second": statistics.median(rates) if rates else None,
                "recipe": recipe,
                "source": model.source if model else None,
                "train": train,
                "validation": validation,
                "probes": [dataclasses.asdict(probe) for probe in run.probes],
            }
        )
    return rows


def _exports(results: Results) -> list[dict[str, Any]]:
    """Every export with the task of its model, and its score if measured."""
    tuned = {found.identity: path.partition("/")[2] for path, found in results.below("finetune").items()}
    rows = []
    for path, found in results.below("exports").items():
        model, _, name = path.partition("/")
        parity = found.facts.get("parity") or {}
        score = parity.get("score")
        rows.append(
            {
                "model": model,
                "format": found.facts.get("format", name),
                "task": score["task"] if score else tuned.get(found.inputs.get("model", "")),
                "source": f"exports/{path}",
                "bytes": found.facts.get("bytes"),
                "parity": parity,
                "score": score,
            }
        )
    return rows


def _tuning(results: Results) -> list[dict[str, Any]]:
    """Hours of fine-tuning by device, over all models, tasks and seeds."""
    hours: dict[str, list[float]] = {}
    for score in (score for tasks in results.scores.values() for score in tasks.values()):
        spent = [seed.seconds for seed in score.seeds if seed.seconds is not None]
        seconds = score.seconds if score.seconds is not None else sum(spent) if spent else None
        if seconds is not None:
            hours.setdefault(score.device or "", []).append(seconds / 3600)
    return [{"device": device or None, "runs": len(each), "hours": sum(each)} for device, each in hours.items()]


def _corpus(results: Results) -> dict[str, Any] | None:
    """Sources and licenses of the training text, and the languages it was filtered by; None without a corpus."""
    if (found := results.artifacts.get("corpus")) is None:
        return None
    languages = (found.recipe.get("cleaning") or {}).get("languages") or []
    return {key: found.facts.get(key) for key in ("documents", "bytes", "sources")} | {"languages": languages}


def _descent(results: Results) -> list[dict[str, Any]]:
    places = {found.identity: path for path, found in results.artifacts.items()}
    names = {model.identity: f"{name} (given)" for name, model in results.models.items() if model.source is None}
    return [
        {
            "path": path,
            "kind": found.kind,
            "identity": found.identity,
            "inputs": [
                {"role": role, "identity": known, "path": places.get(known), "name": names.get(known)}
                # A run is no artifact: the lineage of a student has the inputs of its run.
                for role, known in {**found.inputs, **found.facts.get("lineage", {})}.items()
            ],
            "recipe": found.recipe,
            "code": dict(found.manifest["code"]),
            "made_at": found.manifest["made"]["at"],
            "seconds": found.manifest["made"]["seconds"],
        }
        for path, found in results.artifacts.items()
    ]


def _paper() -> dict[str, Any]:
    _, bert, distilbert = paper.SPEEDS
    return {
        "source": paper.SOURCE,
        "claim": paper.CLAIM,
        "target_percent": paper.TARGET_PERCENT,
        "parameters_saved": 100 * (1 - distilbert.parameters / bert.parameters),
        "speed_conditions": paper.SPEED_CONDITIONS,
        "costs": [dataclasses.asdict(cost) | {"gpu_hours": cost.gpu_hours} for cost in paper.COSTS],
    }


def _headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the first sentence, each None unless measured."""
    models = {model["name"]: model for model in report["models"]}
    teacher, student = models.get(TEACHER, {}), models.get(STUDENT, {})
    means = {mean["key"]: mean for mean in report["tables"]["1"]["means"]}
    whole = means["nine"] if means["nine"]["kept"] is not None else means.get("measured", {})
    parameters, of = student.get("parameters"), teacher.get("parameters")
    latency = report["latency"] or {"first": [], "fit": None}
    own = [row for row in latency["first"] if row["model"] == STUDENT]
    same = [row for row in own if row["ratio_same_form"] is not None]
    best = [row for row in own if row["ratio_to_teacher"] is not None]
    fastest = max(best, key=lambda row: float(row["ratio_to_teacher"]), default=None)
    scores = {
        each["format"]: each["score"]
        for each in reversed(report["exports"])
        if each["model"] == STUDENT and each["score"]
    }
    return {
        "kept": whole.get("kept"),
        "tasks": whole["tasks"] if whole.get("kept") is not None else [],
        "subset": whole.get("subset", False),
        "student_layers": student.get("layers"),
        "teacher_layers": teacher.get("layers"),
        "parameter_share": 100 * parameters / of if parameters and of else None,
        "parameters_saved": 100 * (1 - parameters / of) if parameters and of else None,
        "fit": latency["fit"],
        # Eager PyTorch if both were measured in it.
        "same_form": min(same, key=lambda row: str(row["form"] != "pytorch"), default=None),
        "fastest": fastest,
        "fastest_score": scores.get(fastest["form"]) if fastest else None,
    }


def _phones(results: Results) -> dict[str, Any]:
    """Measurements by device, the links of jobs that wait for a phone, and the paper's phone."""
    return {
        "measured": [
            {"name": name, **dataclasses.asdict(phone), "title": _phone_title(phone)}
            for name, phone in results.phones.items()
        ],
        "waiting": [
            {
                "name": name,
                "section": f"link-{name}",
                "link": each.link,
                "until": f"{datetime.fromtimestamp(each.until, UTC):%Y-%m-%d %H:%M}",
            }
            for name, each in results.links.items()
        ],
        "paper": {"phone": paper.PHONE, "rows": list(_published_phones())},
    }


def _phone_title(phone: PhoneMeasurement) -> str:
    """A short description of the device, from what it reports."""
    device = phone.device
    if phone.way == "proxy":
        return str(device["processor"])
    if phone.way == "adb":
        model = " ".join(str(device[key]) for key in ("maker", "model") if device.get(key))
        system = f"Android {device['android']}" if device.get("android") else None
        return ", ".join(filter(None, (model, device.get("chip"), system)))
    # The first brackets of a user agent describe the device: (Linux; Android 14; Pixel 7).
    match = re.search(r"\(([^)]*)\)", device["user_agent"])
    return match[1] if match else str(device["platform"])


def _published_phones() -> Iterator[dict[str, Any]]:
    slowest = paper.PHONES[0].milliseconds
    for each in paper.PHONES:
        ratio = None if each.milliseconds == slowest else slowest / each.milliseconds
        yield {
            "model": each.model,
            "p50_ms": each.milliseconds,
            "bytes": each.bytes,
            "ratio_to_teacher": ratio,
            "less_time_percent": None if ratio is None else 100 * (1 - each.milliseconds / slowest),
        }
