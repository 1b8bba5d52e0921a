"""Result folders of pipelines and suites: complete artifacts with invented numbers."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.artifacts import artifact
from cluster.storage import filesystem
from cluster.telemetry import metrics_log
from eval.results.collect import collect
from eval.results.comparison import compare

LOSS_WEIGHTS = {"soft": 5.0, "masked": 2.0, "cosine": 1.0}
"""The weights of the losses of a distilled student."""
PARAMETERS = {"teacher": 22_700_000, "student": 17_400_000}
LAYERS = {"teacher": 6, "student": 3}
CORPUS = {
    "documents": 1_234,
    "bytes": 56_700_000,
    "sources": {
        "wiki": {"documents": 1_200, "bytes": 56_000_000, "licence": "CC BY-SA 4.0", "weight": None},
        "notes": {"documents": 34, "bytes": 700_000, "licence": "", "weight": None},
    },
}


def _of(known: Mapping[str, int], name: str) -> int:
    """Other students have the main student's size."""
    return known.get(name, known["student"])


def make(path: Path, kind: str, facts: Mapping[str, Any], files: Mapping[str, Any], **inputs: Path) -> None:
    """Make a complete artifact with these facts and files, whose contents are bytes or JSON values."""
    given = {role: artifact.read(place).identity for role, place in inputs.items()}
    with artifact.create(path, kind=kind, inputs=given, recipe={"of": path.name}) as draft:
        draft.facts.update(facts)
        for name, contents in files.items():
            data = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
            (draft.path / name).write_bytes(data)


def make_model(
    out: Path,
    name: str,
    kind: str,
    validation: Mapping[str, Any] | None,
    told: Mapping[str, Any] | None = None,
    heldout: Mapping[str, list[float]] | None = None,
    **inputs: Path,
) -> None:
    """A teacher or student; ``told`` are more facts, ``heldout`` its validation by row."""
    facts = {
        "architecture": "BertForMaskedLM" if kind == "teacher" else "DistilBertForMaskedLM",
        "parameters": _of(PARAMETERS, name),
        "layers": _of(LAYERS, name),
        "hidden": 384,
    }
    if kind == "teacher":
        facts |= {"source": "models/minilm-l6-mlm"}
    else:
        trained = {"steps": 600, "tokens": 19_660_800, "device_hours": 1.84, "world_size": 2, "device": "EPYC, 1 core"}
        lineage = {role: artifact.read(place).identity for role, place in inputs.items()}
        differences = [{"what": "student.dropout", "paper": "0.1", "here": "0"}]
        facts |= {**trained, "validation": validation, "lineage": lineage, "differences": differences}
    # As in distill.export: the input is a run, and the facts name the artifacts of its lineage.
    files: dict[str, Any] = {"config.json": {}, "model.safetensors": b"\0" * (_of(PARAMETERS, name) // 1000)}
    if heldout is not None:
        facts |= {"heldout": "the same rows and masks"}
        files["heldout.parquet"] = table_bytes(heldout)
    make(out, kind, {**facts, **(told or {})}, files)


def table_bytes(columns: Mapping[str, list[float]]) -> bytes:
    """A Parquet file of these columns."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(columns)), sink)
    return bytes(sink.getvalue())


def spread(values: list[float]) -> dict[str, float]:
    return {"median": sorted(values)[len(values) // 2], "low": min(values), "high": max(values)}


def scores(task: str, seeds: list[float], metric: str = "accuracy", **changed: Any) -> dict[str, Any]:
    """``scores.json`` of fine-tuning; ``more`` has the scores of the same seeds by other metrics."""
    more: dict[str, list[float]] = {metric: seeds, **changed.pop("more", {})}
    return {
        "task": task,
        "task_version": 1,
        "metric": metric,
        "score": sorted(seeds)[len(seeds) // 2],
        "low": min(seeds),
        "high": max(seeds),
        "metrics": {name: spread(values) for name, values in more.items()},
        "seeds": [
            {
                "seed": number,
                "score": score,
                "metrics": {name: values[number] for name, values in more.items()},
                "seconds": 360.0,
            }
            for number, score in enumerate(seeds)
        ],
        "train_examples": 2490,
        "dev_examples": 5000,
        "dev_files": ["dev.parquet"],
        "subset": False,
        "majority": 52.7,
        "below_majority": False,
        "device": "cpu",
        "settings": {"epochs": 3, "learning_rate": 5e-05, "batch": 32},
        "second_step": None,
        **changed,
    }


def make_finetuned(path: Path, found: Mapping[str, Any], more: Mapping[str, Any] | None = None, **inputs: Path) -> None:
    """A fine-tuned model: its manifest has the values of ``scores.json`` without the seeds."""
    texts = 1 if found["task"] in ("imdb", "cola", "sst2", "provenance", "squad", "squad2") else 2
    facts = {key: value for key, value in found.items() if key != "seeds"} | {"texts": texts}
    files = {"scores.json": found, "examples.parquet": table_bytes(examples(found)), **(more or {})}
    make(path, "finetune", facts, files, **inputs)


def examples(found: Mapping[str, Any]) -> dict[str, list[float]]:
    """Values of the examples of ``scores.json``: the easier ones are right, for every model the same."""

    def values(score: float) -> list[float]:
        right, rest = divmod(score / 100 * found["dev_examples"], 1)
        return ([100.0] * int(right) + [100 * rest] + [0.0] * found["dev_examples"])[: found["dev_examples"]]

    return {"score": values(found["score"])} | {key: values(of["median"]) for key, of in found["metrics"].items()}


def write_run(folder: Path, teacher: bool) -> None:
    folder.mkdir(parents=True)
    recipe = {
        "recipe": {"precision": "bf16", "rows_per_step": 256, "loss": {"soft": 5.0 if teacher else 0.0}},
        "inputs": {},
    }
    (folder / "recipe.json").write_text(json.dumps(recipe))
    log = metrics_log.MetricsLog(folder / "metrics.jsonl")
    for step in range(10, 610, 10):
        masked = 3.9 + 5 * math.exp(-step / 90) + (0 if teacher else 0.35) + 0.03 * math.sin(step)
        soft, cosine = (masked * 0.8, 0.1 + math.exp(-step / 120)) if teacher else (None, None)
        total = 5 * masked * 0.8 + 2 * masked + 0.1 if teacher else masked
        terms = {"total": total, "soft": soft, "masked": masked, "cosine": cosine}
        log.write(kind="train", step=step, **terms, tokens=step * 32768, tokens_per_second=5900.0 + step % 7)
        if step % 100 == 0:
            rated = {
                "accuracy": 0.42 - 0.06 * (masked - 3.9),
                "agreement": 0.62 - 0.05 * (masked - 3.9) if teacher else None,
            }
            taught = {"teacher_masked": 3.44, "teacher_accuracy": 0.45} if teacher else {}
            log.write(kind="validation", step=step, **terms, **rated, **taught)
    log.close()


RUNTIMES = {
    "pytorch": "PyTorch 2.13.0", "onnx": "ONNX Runtime 1.31.1 fp32", "int8": "ONNX Runtime 1.31.1 int8",
    "ort-int8": "ONNX Runtime 1.31.1 int8", "openvino-int8": "OpenVINO 2026.4.0 int8",
    "executorch-fp32": "ExecuTorch 1.5.1 fp32", "executorch-int8": "ExecuTorch 1.5.1 int8",
    "litert-int8": "LiteRT 2.3.0 int8",
}  # fmt: skip


def timing(
    model: str, form: str, p50: float, eager: Mapping[str, float], length: int | None = None, **changed: Any
) -> dict[str, Any]:
    """A row of ``latency.json``: at a fixed length, or over 1,500 pairs; ``eager`` are the p50 in PyTorch."""
    inputs, parameters = (50 if length else 1500), _of(PARAMETERS, model)
    return {
        "model": model,
        "title": model,
        "form": form,
        "weights": "own",
        "tokenizer": "own",
        "runtime": RUNTIMES[form],
        "workload": "lengths" if length else "pairs",
        "length": length,
        "tokens": length or 31.2,
        "inputs": inputs,
        "batch": 1,
        "threads": 1,
        "seconds": p50 * inputs / 1000,
        "tokenise_seconds": None if length else 0.3,
        "p50_ms": p50,
        "p90_ms": p50 * 1.05,
        "p99_ms": p50 * 1.2,
        "mean_ms": p50 * 1.01,
        "min_ms": p50 * 0.97,
        "max_ms": p50 * 2,
        "first_ms": p50 * 3,
        "load_seconds": 0.61,
        "model_memory_bytes": parameters * (1 if "int8" in form else 4),
        "peak_memory_bytes": 150_000_000 + parameters * (1 if "int8" in form else 4),
        "parameters": parameters,
        "bytes": parameters * (1 if "int8" in form else 4),
        "joules": None,
        "ratio_to_teacher": eager["teacher"] / p50 if "teacher" in eager else None,
        "ratio_to_bert_base": eager["bert_base"] / p50 if "bert_base" in eager else None,
        **changed,
    }


MACHINE = {
    "processor": "AMD EPYC 9R14",
    "cores": 2,
    "flags": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16"],
    "governor": None,
    "libraries": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
}


def latency(rows: list[dict[str, Any]] | None = None, **changed: Any) -> dict[str, Any]:
    """``latency.json`` of a quiet machine, by default of two lengths and two exports of the student."""
    speeds = {
        30: {("teacher", "pytorch"): 10.0, ("student", "pytorch"): 5.0, ("student", "onnx"): 4.0,
             ("student", "int8"): 1.6},
        128: {("teacher", "pytorch"): 40.0, ("student", "pytorch"): 21.0, ("student", "onnx"): 17.5,
              ("student", "int8"): 7.25},
    }  # fmt: skip
    if rows is None:
        rows = [
            timing(*which, p50, {"teacher": found["teacher", "pytorch"]}, length)
            for length, found in speeds.items()
            for which, p50 in found.items()
        ]
    condition = {"threads": 1, "workload": "30 tokens", "pinned_cores": [1], "others_share_of_machine": 0.01}
    settings = {"lengths": [30, 128], "batch": 1, "threads": [1], "warmup": 5, "repeats": 50, "seed": 0}
    return {
        "machine": MACHINE,
        "settings": settings,
        "conditions": [condition, {**condition, "others_share_of_machine": 0.03}],
        "data": {},
        "energy": {"absent": "this machine has no energy counters (RAPL)"},
        "rows": rows,
        "fit": True,
        "unfit": None,
    } | changed


FORMS = {"onnx": 0.68, "int8": 0.22, "ort-int8": 0.23, "openvino-int8": 0.2, "executorch-int8": 0.165,
         "litert-int8": 0.175}  # fmt: skip
"""Exports of a suite, with their latency relative to eager PyTorch."""
LOSSES = {"onnx": 0.0, "int8": -0.4, "ort-int8": -0.4, "openvino-int8": -0.9}
"""Loss of each scored export, in points."""


def everywhere() -> dict[str, Any]:
    """``latency.json`` of BERT-base and every export of teacher and student: pairs and 384 tokens, one core and two."""
    rows = []
    for threads, gain in ((1, 1.0), (2, 0.55)):
        for length, rate in ((None, 1.0), (384, 9.0)):
            eager = {who: gain * rate * ms for who, ms in (("bert_base", 93.0), ("teacher", 18.0), ("student", 9.4))}
            told = {"threads": threads, "joules": 0.4}
            known = {"title": "BERT-base", "weights": "random", "parameters": 109_482_240, "bytes": 437_928_960}
            rows.append(timing("bert_base", "pytorch", eager["bert_base"], eager, length, **told, **known))
            for who in ("teacher", "student"):
                rows.append(timing(who, "pytorch", eager[who], eager, length, **told))
                for form, share in FORMS.items():
                    # At 384 tokens another runtime is the fastest.
                    slower = 1.4 if length and form == "executorch-int8" else 1.0
                    rows.append(timing(who, form, eager[who] * share * slower, eager, length, **told))
    return latency(rows, energy={"absent": None})


JOBS: list[dict[str, Any]] = [
    {"name": "corpus", "state": "done", "error": None, "seconds": 12.5, "log": "logs/corpus.log"},
    {"name": "train student", "state": "skipped", "error": None, "seconds": 0.0, "log": "logs/student.log"},
    {
        "name": "finetune/no-teacher/mrpc",
        "state": "failed",
        "error": "the loss is nan by step 40 | lower <learning_rate>",
        "seconds": 40.2,
        "log": "logs/mrpc.log",
    },
]


def pipeline(out: Path) -> Path:
    """Results of a small pipeline: two tasks for teacher and student, one of them for another student too."""
    make(out / "corpus", "corpus", CORPUS, {"part-00000.parquet": b"x" * 900})
    make(out / "tokens", "tokens", {}, {"train-00000.arrow": b"x" * 800}, corpus=out / "corpus")
    make_model(out / "teacher", "teacher", "teacher", None)
    parents = {"teacher": out / "teacher", "tokens": out / "tokens"}
    taught = {
        "masked": 3.912,
        "hidden_loss": 4.207,
        "accuracy": 0.412,
        "teacher_masked": 3.44,
        "teacher_accuracy": 0.45,
    }
    make_model(out / "students/student", "student", "student", {**taught, "agreement": 0.604}, **parents)
    alone = {"masked": 4.263, "accuracy": 0.371, "agreement": None}
    make_model(out / "students/no-teacher", "no-teacher", "student", alone, tokens=out / "tokens")
    measured = {
        "teacher": {"rte": [66.0, 67.0, 68.0], "sst2": [91.0]},
        "student": {"rte": [63.0, 64.0, 66.0], "sst2": [89.0]},
        "no-teacher": {"rte": [55.0, 56.0, 58.0]},
    }
    for model, tasks in measured.items():
        source = out / "teacher" if model == "teacher" else out / "students" / model
        for task, seeds in tasks.items():
            found = scores(task, seeds, subset=task == "sst2")
            make_finetuned(out / "finetune" / model / task, found, model=source)
    for form, size in (("onnx", 69_700_000), ("int8", 17_600_000)):
        parity = {"max_abs": 0.0081, "relative": 0.0034, "agreement": 0.996}
        facts = {"format": form, "bytes": size, "parity": parity}
        make(out / "exports/student" / form, "export", facts, {"model.onnx": b"x"}, model=out / "students/student")
    make(out / "latency", "benchmark", {}, {"latency.json": latency()})
    write_run(out / "runs/student", teacher=True)
    write_run(out / "runs/no-teacher", teacher=False)
    (out / "jobs.json").write_text(json.dumps(JOBS))
    return out


# Teacher, student, student of the second step: about what a six-layer teacher of 22 M and its half score.
GLUE = {
    "cola": (47.1, 38.2, 39.0),
    "mnli": (80.4, 76.9, 77.8),
    "mrpc": (86.9, 84.8, 85.3),
    "qnli": (88.0, 84.1, 85.0),
    "qqp": (87.2, 85.9, 86.4),
    "rte": (62.5, 58.1, 59.9),
    "sst2": (90.8, 88.2, 88.9),
    "stsb": (86.4, 83.7, 84.6),
    "wnli": (53.5, 56.3, 56.3),
}
ABLATIONS = {"no-soft": -2.2, "no-cosine": -0.9, "no-masked": 0.1, "random-start": -6.4, "no-teacher": -8.8}
ARCHITECTURES = {
    "elmo": ("ELMo", 179_000_000, 3.1),
    "bert_base": ("BERT-base", 109_482_240, 2.0),
    "distilbert": ("DistilBERT", 66_362_880, 1.03),
    "roberta_base": ("RoBERTa-base", 124_645_632, 2.02),
    "distilroberta": ("DistilRoBERTa", 82_118_400, 1.05),
}
SUITE = {
    "models": {"teacher": "teacher", "student": "students/student"},
    "ablations": {"reference": "all-losses", "students": list(ABLATIONS)},
    "second_step": "student-second-step",
}


_AGENT = "Mozilla/5.0 (Linux; Android 14; Pixel 7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Mobile"
PHONES: dict[str, dict[str, Any]] = {
    "in-the-hand": {
        "way": "browser",
        "device": {"user_agent": _AGENT, "platform": "Linux armv8l"},
        "runtime": "onnxruntime-web 1.30.0 WebAssembly int8",
        "ms": {"student": 640.0, "teacher": 1280.0},
        "problems": [{"backend": "webgpu", "threads": 1, "error": "no adapter"}],
    },
    "on-a-cable": {
        "way": "adb",
        "device": {"maker": "Google", "model": "Pixel 7", "chip": "GS201", "android": "14"},
        "runtime": "LiteRT benchmark_model",
        "ms": {"student": 130.0, "teacher": 454.0},
        "unfit": "the phone reached thermal status 3 and slowed its cores: let it cool, and measure fewer rounds",
    },
    "this-host": {
        "way": "proxy",
        "device": {"processor": "AMD EPYC"},
        "runtime": "ONNX Runtime 1.31.1",
        "ms": {"student": 122.0, "teacher": 240.0},
        "problems": [{"model": "teacher", "length": 384, "threads": 4, "error": "does not fit into 1024 MB"}],
    },
}


def phone(
    way: str, device: dict[str, Any], runtime: str, ms: dict[str, float], unfit: str | None = None, **more: Any
) -> dict[str, Any]:
    """``mobile.json`` of two models."""
    rows = [
        {
            "model": model, "runtime": runtime, "threads": 1, "length": 384, "p50_ms": time, "p90_ms": 1.1 * time,
            "p99_ms": 1.3 * time, "ratio_to_teacher": ms["teacher"] / time, "bytes": PARAMETERS[model],
            "less_time_percent": 100 * (1 - time / ms["teacher"]), "parameters": PARAMETERS[model],
        }
        for model, time in ms.items()
    ]  # fmt: skip
    about = {"way": way, "proxy": way == "proxy", "device": device, "fit": unfit is None, "unfit": unfit}
    settings = {"way": {"kind": way, **({"memory_megabytes": 1024} if way == "proxy" else {})}}
    return {"problems": [], "settings": settings, **about, **more, "rows": rows}


def seeds_around(score: float, step: float = 0.4) -> list[float]:
    """Five seeds whose median is ``score``."""
    return [round(score + step * offset, 3) for offset in (-1.5, -0.5, 0.0, 0.75, 1.25)]


def suite(out: Path) -> Path:
    """Complete results: nine tasks, IMDb, SQuAD, second step, ablations, baselines and probes."""
    pipeline(out)
    filesystem.write_json(out / "suite.json", SUITE)
    for task, (teacher, student, taught) in GLUE.items():
        majority = {"wnli": 56.3, "cola": 0.0, "stsb": 0.0}.get(task, 52.7)
        for model, score in (("teacher", teacher), ("student", student), ("student-second-step", taught)):
            place = out / "finetune" / model / task
            if not place.exists():
                told = {"majority": majority, "below_majority": score < majority, "subset": task in ("mnli", "qqp")}
                make_finetuned(place, scores(task, seeds_around(score), **told))
    for model, imdb, exact, f1 in (
        ("teacher", 91.3, 72.4, 81.5),
        ("student", 90.1, 68.0, 77.9),
        ("student-second-step", 90.5, 69.8, 79.3),
    ):
        make_finetuned(out / f"finetune/{model}/imdb", scores("imdb", [imdb], dev_examples=25000))
        found = scores("squad", seeds_around(f1), "f1", more={"exact": seeds_around(exact)}, majority=0.0)
        make_finetuned(out / f"finetune/{model}/squad", found)
    for name, change in {"all-losses": 0.0, **ABLATIONS}.items():
        masked = {"masked": 4.1 - change / 20, "accuracy": 0.39}
        if name != "no-teacher":
            make_model(out / "students" / name, name, "student", masked, tokens=out / "tokens")
            write_run(out / "runs" / name, teacher=True)
        for task in ("rte", "mrpc", "stsb", "cola"):
            place = out / "finetune" / name / task
            if not place.exists():
                found = scores(task, seeds_around(GLUE[task][1] - 2 + change))
                make_finetuned(place, found)
    make(out / "baselines", "benchmark", {}, {"latency.json": baselines()})
    for name, found in PHONES.items():
        make(out / "mobile" / name, "benchmark", {}, {"mobile.json": phone(**found)})
    shutil.rmtree(out / "latency")
    make(out / "latency", "benchmark", {}, {"latency.json": everywhere()})
    shutil.rmtree(out / "exports")
    for model in ("teacher", "student"):
        for form in FORMS:
            make_export(out, model, form)
    write_probes(out / "runs/student", {"rte": 58.1, "mrpc": 84.8, "stsb": 83.7})
    return out


def make_export(out: Path, model: str, form: str) -> None:
    """An export of a model fine-tuned on STS-B, with or without a score."""
    score = sorted(seeds_around(GLUE["stsb"][0 if model == "teacher" else 1]))[1]
    parity: dict[str, Any] = {"max_abs": 0.0081, "relative": 0.0034, "agreement": 0.996, "score": None}
    if form in LOSSES:
        parity["score"] = {
            "task": "stsb", "metric": "mean of pearson and spearman", "model": score, "export": score + LOSSES[form],
            "difference": LOSSES[form], "examples": 1500, "subset": False,
        }  # fmt: skip
    facts = {"format": form, "bytes": PARAMETERS[model] * (1 if "int8" in form else 4), "parity": parity}
    tuned = out / "finetune" / model / "stsb"
    make(out / "exports" / model / form, "export", facts, {"model.onnx": b"x"}, model=tuned)


def baselines(**changed: Any) -> dict[str, Any]:
    """``latency.json`` of architectures over a whole pass of pairs."""
    rows = [
        timing(
            model, "pytorch", 46.0 * rate, {"bert_base": 92.0}, None,
            title=title, weights="random", parameters=parameters, bytes=4 * parameters, seconds=70 * rate,
            ratio_to_bert_base=2.0 / rate,
        )
        for model, (title, parameters, rate) in ARCHITECTURES.items()
    ]  # fmt: skip
    return latency(rows) | changed


def write_probes(run: Path, scored: Mapping[str, float]) -> None:
    """Scores of six checkpoints that approach the finished student's."""
    with (run / "probes.jsonl").open("w") as lines:
        for step in range(100, 700, 100):
            for task, score in scored.items():
                now = score - 9 * math.exp(-step / 180)
                found = {"metric": "accuracy", "score": now, "low": now - 0.8, "high": now + 0.7, "seeds": 3}
                place = f"probes/student/step-{step:08d}/{task}"
                lines.write(json.dumps({"step": step, "task": task, **found, "artifact": place}) + "\n")


def replace_scores(
    out: Path, model: str, task: str, found: Mapping[str, Any], more: Mapping[str, Any] | None = None, **inputs: Path
) -> None:
    """Replace a model's ``scores.json`` of a task; ``more`` has further files."""
    folder = out / "finetune" / model / task
    shutil.rmtree(folder)
    make_finetuned(folder, found, more, **inputs)


def compared(out: Path) -> dict[str, Any]:
    """The contents of the report of a result folder, without its pages."""
    return compare(collect(out))


def row_of(rows: list[dict[str, Any]], key: str) -> dict[str, Any]:
    return next(row for row in rows if row["key"] == key)
