import json
import re
import shutil
from pathlib import Path

import models_with_heads
import phone_setup
import pytest

from cluster.artifacts import artifact, commit, registry
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import load
from cluster.storage import filesystem
from deploy.web_page.libraries import BROWSER, FILES, LIBRARIES, LICENSES, vendor, versions
from deploy.web_page.stage import WebPage


@pytest.fixture(scope="module")
def libraries(tmp_path_factory) -> Path:
    """Vendored libraries with a few bytes for each file."""
    folder = tmp_path_factory.mktemp("vendored") / "libraries"
    folder.mkdir()
    for names in FILES.values():
        for name in names:
            (folder / name).write_text(name)
    files = {path.name: filesystem.file_sha256(path) for path in folder.iterdir()}
    filesystem.write_json(folder / LIBRARIES, {"packages": versions(), "files": files})
    return folder


def an_export(folder: Path, head: str = "question-answering", runtime: str = "onnxruntime") -> Path:
    """An export with a tiny model's tokenizer and 50,000 bytes of weights."""
    described = {
        "format": "int8", "runtime": runtime, "files": {"any": "model.onnx"}, "head": head, "positions": 64, "pad": 0,
        "inputs": ["input_ids", "attention_mask"], "outputs": {"start_logits": "positions", "end_logits": "positions"},
        "vocab_size": 441, "parameters": 28_994, "rows": "any",
    }  # fmt: skip
    models_with_heads.tiny.wordpiece(folder.with_name(f"{folder.name}-tokenizer"))
    with artifact.create(folder, kind="export", inputs={}, recipe={}) as draft:
        for path in folder.with_name(f"{folder.name}-tokenizer").iterdir():
            shutil.copyfile(path, draft.path / path.name)
        (draft.path / "model.onnx").write_bytes(bytes(range(250)) * 200)
        filesystem.write_json(draft.path / "runtime.json", described)
    return folder


def test_a_page_contains_and_lists_all_its_files(libraries, tmp_path):
    export = an_export(tmp_path / "student")
    made = phone_setup.page(tmp_path, {"student": export, "teacher": export}, libraries)
    described = json.loads((made.path / "page.json").read_text())
    assert [(model["role"], model["title"]) for model in described["models"]] == [
        ("student", "Student"),
        ("teacher", "BERT-base"),
    ]
    for model in described["models"]:
        assert [part["bytes"] for part in model["parts"]] == [20_000, 20_000, 10_000]
        whole = b"".join((made.path / part["path"]).read_bytes() for part in model["parts"])
        assert whole == (export / "model.onnx").read_bytes()
        assert all(filesystem.file_sha256(made.path / part["path"]) == part["sha256"] for part in model["parts"])
        assert (made.path / model["tokenizer"]).is_file()
    # Equal parts of several models are one file.
    assert len([*made.path.glob("models/*.part")]) == len({part["sha256"] for part in described["models"][0]["parts"]})
    assert described["version"] == made.facts["version"]


def test_the_service_worker_caches_the_page_without_models(libraries, tmp_path):
    made = phone_setup.page(tmp_path, {"student": an_export(tmp_path / "student")}, libraries)
    text = (made.path / "service_worker.js").read_text()
    assert f'const VERSION = "{made.facts["version"]}"' in text
    listed = json.loads(text.partition("const SHELL = ")[2].partition(";")[0])
    assert {"./", "page.json", "page.js", "style.css", "libraries/ort-wasm-simd-threaded.wasm"} <= {*listed}
    assert [name for name in listed if name != "./" and name not in made.files] == []
    assert not any(name.endswith(".part") or "webgpu" in name or "asyncify" in name for name in listed)
    sizes = [(made.path / ("index.html" if name == "./" else name)).stat().st_size for name in listed]
    assert f"const TOTAL = {sum(sizes)};" in text


def test_another_title_is_another_version(libraries, tmp_path):
    export = an_export(tmp_path / "student")
    versions = {
        phone_setup.page(tmp_path / title, {"student": export}, libraries, student={"title": title}).facts["version"]
        for title in ("One", "Two")
    }
    assert len(versions) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head": "classification"}, "is an export for classification: the page asks questions"),
        ({"runtime": "litert"}, "is int8, which browsers do not run: give the int8 ONNX export"),
    ],
)
def test_models_that_a_page_cannot_show_are_refused(libraries, tmp_path, changes, reason):
    with pytest.raises(StageError, match=reason):
        phone_setup.page(tmp_path, {"student": an_export(tmp_path / "student", **changes)}, libraries)


def test_another_tokenizer_is_refused(libraries, tmp_path):
    export = an_export(tmp_path / "student")
    folder = tmp_path / "byte-level"
    models_with_heads.tiny.byte_level(folder)
    with artifact.create(tmp_path / "other", kind="export", inputs={}, recipe={}) as draft:
        for path in (*export.iterdir(), *folder.iterdir()):
            if path.name != commit.MANIFEST:
                shutil.copyfile(path, draft.path / path.name)
    with pytest.raises(StageError, match=r"student: its tokenizer is BPE: it needs WordPiece"):
        phone_setup.page(tmp_path, {"student": tmp_path / "other"}, libraries)


def test_libraries_that_were_changed_are_refused(libraries, tmp_path):
    export = an_export(tmp_path / "student")
    with pytest.raises(StageError, match=r"web_page\.libraries --out"):
        phone_setup.page(tmp_path, {"student": export}, tmp_path / "student")
    with pytest.raises(StageError, match=r"are not at .*nowhere"):
        phone_setup.page(tmp_path, {"student": export}, tmp_path / "nowhere")
    changed = tmp_path / "changed"
    shutil.copytree(libraries, changed)
    (changed / "tokenizers.min.mjs").write_text("other")
    with pytest.raises(StageError, match=r"tokenizers\.min\.mjs is missing or was changed"):
        phone_setup.page(tmp_path, {"student": export}, changed)
    (changed / LIBRARIES).write_text(json.dumps({"packages": {"onnxruntime-web": "1.0.0"}, "files": {}}))
    with pytest.raises(StageError, match="has other versions than"):
        phone_setup.page(tmp_path, {"student": export}, changed)
    (changed / LIBRARIES).write_text(json.dumps({"packages": versions()})[:-9])
    with pytest.raises(StageError, match=r"libraries\.json was cut or changed: delete it"):
        phone_setup.page(tmp_path, {"student": export}, changed)


def test_a_page_takes_no_file_that_is_no_library(libraries, tmp_path):
    """It would be published with the page."""
    export = an_export(tmp_path / "student")
    more = Path(shutil.copytree(libraries, tmp_path / "more"))
    (more / "notes.txt").write_text("mine")
    with pytest.raises(StageError, match=r"notes\.txt is no library of the page: delete it"):
        phone_setup.page(tmp_path, {"student": export}, more)
    (more / "notes.txt").unlink()
    (more / "ort.wasm.min.mjs").unlink()
    described = json.loads((more / LIBRARIES).read_text())
    del described["files"]["ort.wasm.min.mjs"]
    (more / LIBRARIES).write_text(json.dumps(described))
    with pytest.raises(StageError, match=r"ort\.wasm\.min\.mjs is missing or was changed"):
        phone_setup.page(tmp_path, {"student": export}, more)


def test_a_failure_of_npm_names_its_reason(tmp_path, monkeypatch):
    program = tmp_path / "npm"
    program.write_text("#!/bin/sh\necho 'npm error code E404\nnpm error 404 no such package' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(StageError, match="code E404; 404 no such package"):
        vendor(tmp_path / "libraries")


def test_a_page_marks_inputs_with_the_tokenizer_s_own_tokens(libraries, tmp_path):
    """Its vocabulary also has a [CLS] that means nothing to the model."""
    export = an_export(tmp_path / "student")
    folder = tmp_path / "other"
    with artifact.create(folder, kind="export", inputs={}, recipe={}) as draft:
        for path in export.iterdir():
            if path.name != commit.MANIFEST:
                shutil.copyfile(path, draft.path / path.name)
        settings = json.loads((draft.path / "tokenizer_config.json").read_text())
        word = next(iter(json.loads((draft.path / "tokenizer.json").read_text())["model"]["vocab"].keys() - {"[CLS]"}))
        filesystem.write_json(draft.path / "tokenizer_config.json", {**settings, "cls_token": word})
    described = json.loads((phone_setup.page(tmp_path, {"student": folder}, libraries).path / "page.json").read_text())
    assert described["models"][0]["marks"] == {"cls": word, "sep": "[SEP]"}


def test_every_package_is_pinned_and_its_license_is_named():
    lock = json.loads((BROWSER / "package-lock.json").read_text())
    licenses = (BROWSER / LICENSES).read_text()
    for name, version in versions().items():
        locked = lock["packages"][f"node_modules/{name}"]
        assert locked["version"] == version
        assert f"[{name}](" in licenses
        assert f"| {version} | {locked['license']} |" in licenses
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert {*FILES} == {*versions()}


def test_the_page_loads_nothing_from_other_hosts():
    """The browser's files contain no address of another host except the name of an XML namespace."""
    found = {
        (path.name, address)
        for path in BROWSER.iterdir()
        if path.suffix in (".js", ".html", ".css", ".webmanifest")
        for address in re.findall(r"(?:https?:)?//[\w.-]+\.[a-z]{2,}[^\s\"']*", path.read_text(encoding="utf-8"))
    }
    assert found == {("chart.js", "http://www.w3.org/2000/svg")}


def test_the_shipped_recipe_loads():
    assert load(WebPage, "page").teacher.title == "Teacher", "whichever model it is"
    assert registry.find("deploy.web_page").produces == "export"
