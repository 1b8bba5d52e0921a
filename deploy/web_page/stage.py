"""Make the page that measures a phone: question-answering exports, the runtime they need, and nothing from elsewhere.

::

    python -m deploy.web_page.libraries --out build/browser
    python -m deploy.web_page RECIPE --student DIR [--teacher DIR] --libraries build/browser --out DIR

The page is a folder of static files that any server can give out and that keeps itself on the phone. Measuring
for a job is ``eval.mobile``, which serves it. It holds::

    index.html page.js worker.js …      what people see (deploy/browser)
    libraries/                          ONNX Runtime Web and the tokenizer (deploy.web_page.libraries)
    models/<role>/                      tokenizer files
    models/<digest>.part                pieces of model files, each fetched, checked and kept by itself
    page.json                           models, their sizes and parts, version of the page
    service_worker.js                   knows the version and every file but the parts

Threads need cross-origin isolation: ``Cross-Origin-Opener-Policy: same-origin`` and ``Cross-Origin-Embedder-Policy:
require-corp`` on every answer, over https or from localhost. Without these the page uses one thread and says so.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import export_spec
from cluster.storage import filesystem
from cluster.telemetry import progress
from deploy.web_page import libraries

PAGE = "page.json"
SERVICE_WORKER = "service_worker.js"
ROLES = ("student", "teacher")
"""In this order a phone loads them: with the student alone it can answer already."""

NOT_SERVED = ("package.json", "package-lock.json", libraries.LICENCES)


class Shown(Recipe):
    """One model, for people."""

    title: str = Field(min_length=1, max_length=40)
    weights: Literal["trained", "random"] = "trained"  # random ones have the speed of trained ones, but no answers


class WebPage(Recipe):
    """A page for measuring."""

    student: Shown = Shown(title="Student")
    teacher: Shown = Shown(title="Teacher")
    part_bytes: PositiveInt = 8 * 2**20  # what a lost connection costs at most


def run(recipe: WebPage, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    packages = libraries.check(inputs["libraries"])
    shutil.copytree(inputs["libraries"], out / "libraries", dirs_exist_ok=True)
    for path in sorted(libraries.BROWSER.iterdir()):
        if path.name not in NOT_SERVED:
            shutil.copyfile(path, out / path.name)
    given = {role: inputs[role] for role in ROLES if role in inputs}
    models = [
        add_model(role, getattr(recipe, role), export, out, recipe.part_bytes)
        for role, export in progress.progress(given.items(), "page", len(given), "models")
    ]
    runtime = f"onnxruntime-web {packages['onnxruntime-web']}"
    version = finish(out, {"models": models, "runtime": runtime})
    described = [{key: value for key, value in model.items() if key != "parts"} for model in models]
    return {"format": "page", "version": version, "runtime": runtime, "models": described}


def add_model(role: str, shown: Shown, folder: Path, out: Path, part_bytes: int) -> dict[str, Any]:
    """Put an export into the page; what the page must know of it.

    Raises:
        StageError: it does not answer questions, or a browser cannot run it.
    """
    export = artifact.verify(folder, "export")
    known = export_spec.read(export.path)
    path = _model_file(export.path, known)
    kept = out / "models" / role
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(export.path / name, kept / name)
    _check_tokenizer(role, kept / "tokenizer.json")
    return {
        "role": role,
        **shown.resolved(),
        "format": known.format,
        "identity": export.identity,
        "parameters": known.parameters,
        "bytes": path.stat().st_size,
        "positions": known.positions,
        "inputs": list(known.inputs),
        "tokenizer": f"models/{role}/tokenizer.json",
        "tokenizer_config": f"models/{role}/tokenizer_config.json",
        "parts": _cut(path, out, part_bytes),
    }


def _model_file(folder: Path, known: export_spec.Exported) -> Path:
    if known.head != "question-answering":
        raise errors.StageError(
            f"{folder} is an export for {known.head}: the page asks questions, so give an export of a model fine-tuned "
            "on SQuAD"
        )
    if known.runtime != "onnxruntime" or export_spec.ANY not in known.files:
        raise errors.StageError(f"{folder} is {known.format}, which browsers do not run: give the int8 ONNX export")
    return folder / known.files[export_spec.ANY]


def _check_tokenizer(role: str, path: Path) -> None:
    """The page cuts words as BERT does: it must know the place of every piece in the text."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    if model["type"] != "WordPiece" or not {"[CLS]", "[SEP]"} <= set(model["vocab"]):
        raise errors.StageError(
            f"{role}: its tokenizer is {model['type']}: it needs WordPiece with [CLS] and [SEP] (BERT, DistilBERT)"
        )


def _cut(path: Path, out: Path, part_bytes: int) -> list[dict[str, Any]]:
    """Cut a file into parts named by their digests, so that another version shares those that did not change."""
    parts = []
    with path.open("rb") as file:
        while piece := file.read(part_bytes):
            digest = hashlib.sha256(piece).hexdigest()
            name = f"models/{digest[:32]}.part"
            (out / name).write_bytes(piece)
            parts.append({"path": name, "bytes": len(piece), "sha256": digest})
    return parts


def finish(out: Path, described: Mapping[str, Any]) -> str:
    """Write ``page.json`` and the service worker, which know every other file; the version of the page."""
    template = (libraries.BROWSER / SERVICE_WORKER).read_text(encoding="utf-8")
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    # Names that begin with a dot are of the artifact in the making, not of the page.
    files = sorted(name for name in found if name not in (SERVICE_WORKER, PAGE) and not name.startswith("."))
    digests = {name: filesystem.file_sha256(out / name) for name in files}
    version = artifact.digest([digests, template, dict(described)])
    filesystem.write_json(out / PAGE, {"version": version, **described})
    # The runtime for GPUs is as large as all the rest: kept when a phone first asks for it.
    shell = [name for name in files if not name.endswith(".part") and "webgpu" not in name and "asyncify" not in name]
    (out / SERVICE_WORKER).write_text(_service_worker(template, version, ["./", PAGE, *shell], out), encoding="utf-8")
    return version


def _service_worker(template: str, version: str, kept: Sequence[str], out: Path) -> str:
    # "./" is index.html under another name: fetched once more, and so counted once more.
    total = sum((out / ("index.html" if name == "./" else name)).stat().st_size for name in kept)
    listed = ", ".join(json.dumps(name) for name in kept)
    return (
        template.replace("@VERSION@", version).replace("/* @SHELL@ */", listed).replace("/* @TOTAL@ */ 0", str(total))
    )


def check(recipe: WebPage, context: stage.StageContext) -> None:
    """
    Raises:
        StageError: the libraries are absent, of other versions, or changed.
    """
    libraries.check(context.inputs["libraries"])


def _libraries(folder: Path) -> str:
    libraries.check(folder)
    return artifact.folder_identity(folder)


STAGE = stage.Stage(
    name="deploy.web_page",
    run=run,
    recipe=WebPage,
    inputs={
        "student": stage.Role(("export",)),
        "teacher": stage.Role(("export",), optional=True),
        "libraries": stage.Role((stage.FOLDER,), identify=_libraries),
    },
    produces="export",
    check=check,
)
