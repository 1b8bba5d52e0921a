"""Make the page that measures a phone: question-answering exports and the runtime that they need.

::

    python -m deploy.web_page.libraries --out build/browser
    stillhouse web-page RECIPE --student DIR [--teacher DIR] --libraries build/browser --out DIR

The page is a folder of static files for any web server, for example ``stillhouse mobile``. Phones store it for offline
use::

    index.html page.js worker.js …      from deploy/browser
    libraries/                          ONNX Runtime Web and the tokenizer
    models/<role>/                      tokenizer files
    models/<digest>.part                parts of the model files, each fetched, checked and stored separately
    page.json                           models, their sizes and parts, version of the page
    service_worker.js                   has the version and the names of all files except the parts

Threads need cross-origin isolation: the server sends ``Cross-Origin-Opener-Policy: same-origin`` and
``Cross-Origin-Embedder-Policy: require-corp`` over https or from localhost. Otherwise the page uses one thread and
shows that.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from cluster.artifacts import artifact, errors, stage
from cluster.artifacts.recipe import Recipe
from cluster.models import export_spec
from cluster.storage import filesystem
from cluster.telemetry import progress
from cluster.tokens.tokenizer import load_tokenizer
from deploy.web_page import libraries

PAGE = "page.json"
SERVICE_WORKER = "service_worker.js"
ROLES = ("student", "teacher")
"""A phone loads them in this order, and answers as soon as it has the student."""

NOT_SERVED = ("package.json", "package-lock.json", libraries.LICENSES)


class Shown(Recipe):
    """How the page shows a model."""

    title: str = Field(min_length=1, max_length=40)
    """Title of the model on the page."""
    weights: Literal["trained", "random"] = "trained"
    """Random weights have the speed of trained ones, but give no answers."""


class WebPage(Recipe):
    """A page that measures phones."""

    student: Shown = Shown(title="Student")
    teacher: Shown = Shown(title="Teacher")
    part_bytes: PositiveInt = 8 * 2**20
    """Bytes of a downloaded part; a lost connection costs at most one part."""


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
    """Add an export to the page; returns its entry in ``page.json``.

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
    marks = _marks(role, export.path)
    return {
        "role": role,
        **shown.resolved(),
        "format": known.format,
        "identity": export.identity,
        "parameters": known.parameters,
        "bytes": path.stat().st_size,
        "positions": known.positions,
        "inputs": list(known.inputs),
        "no_answer": known.no_answer,
        "marks": marks,
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
        raise errors.StageError(
            f"{folder} is {known.format}, which browsers do not run: give the int8 ONNX export, "
            "which stillhouse quantize makes"
        )
    return folder / known.files[export_spec.ANY]


def _marks(role: str, folder: Path) -> dict[str, str | None]:
    """The tokens that begin an input and end a text.

    Raises:
        StageError: the tokenizer is not BERT's: the page needs the place of every word piece in the text.
    """
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokenizer = load_tokenizer(folder)
    marks = {"cls": tokenizer.cls_token, "sep": tokenizer.sep_token}
    if model["type"] != "WordPiece" or not {*marks.values()} <= set(model["vocab"]):
        raise errors.StageError(
            f"{role}: its tokenizer is {model['type']}: it needs WordPiece with [CLS] and [SEP] (BERT, DistilBERT)"
        )
    return marks


def _cut(path: Path, out: Path, part_bytes: int) -> list[dict[str, Any]]:
    """Cut a file into parts named by their digests, so that two versions of a page share equal parts."""
    parts = []
    with path.open("rb") as file:
        while piece := file.read(part_bytes):
            digest = hashlib.sha256(piece).hexdigest()
            name = f"models/{digest[:32]}.part"
            (out / name).write_bytes(piece)
            parts.append({"path": name, "bytes": len(piece), "sha256": digest})
    return parts


def finish(out: Path, described: Mapping[str, Any]) -> str:
    """Write ``page.json`` and the service worker; returns the version of the page, a digest of all other files."""
    template = (libraries.BROWSER / SERVICE_WORKER).read_text(encoding="utf-8")
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    # Files whose names begin with a dot belong to the unfinished artifact, not to the page.
    files = sorted(name for name in found if name not in (SERVICE_WORKER, PAGE) and not name.startswith("."))
    digests = {name: filesystem.file_sha256(out / name) for name in files}
    version = artifact.digest([digests, template, dict(described)])
    filesystem.write_json(out / PAGE, {"version": version, **described})
    # Not the runtime for GPUs, which is as large as all the rest: a phone stores it when it first uses it.
    shell = [name for name in files if not name.endswith(".part") and "webgpu" not in name and "asyncify" not in name]
    # The phone fetches index.html twice, also as "./", so its size counts twice.
    total = sum((out / name).stat().st_size for name in ("index.html", PAGE, *shell))
    listed = ", ".join(json.dumps(name) for name in ("./", PAGE, *shell))
    filled = template.replace("@VERSION@", version).replace("/* @SHELL@ */", listed)
    (out / SERVICE_WORKER).write_text(filled.replace("/* @TOTAL@ */ 0", str(total)), encoding="utf-8")
    return version


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
    example="page",
    check=check,
)
