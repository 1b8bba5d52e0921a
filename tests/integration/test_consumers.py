"""What is saved here works for others: transformers 4 and 5, sentence-transformers, tokenizers and onnxruntime.

They run in environments of their own, which ``make consumers`` installs, and answer as the models do here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import finetune_tasks
import model_exports
import paths
import pytest
import tiny
import torch
import train_processes
from transformers import AutoModel, AutoTokenizer, BertTokenizerFast

from cluster.artifacts import registry, stage
from cluster.models import model_tokenizer
from cluster.tokens.tokenizer import load_tokenizer
from distill.config import Student
from distill.modeling import masked_lm, student

ENVIRONMENTS = ("transformers4", "transformers5")
SCRIPT = paths.SUPPORT / "consumers" / "answers.py"
TEXTS = ["river", "", "word " * 600, "🙂 🏳️‍🌈 café 漢字", "The mill by the river has ground barley.", "warm honey"]
TYPES = ["input_ids", "attention_mask", "token_type_ids"]

pytestmark = pytest.mark.toolchain


@pytest.fixture(scope="module")
def models(training_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, students of BERT and RoBERTa, what is fine-tuned from them, and exports."""
    root = tmp_path_factory.mktemp("models")
    made = {"teacher": _teacher(root), "student": _student(training_folder, root), "roberta": _roberta(root)}
    data = finetune_tasks.sentiment(root / "sst2", 60)
    finetune_tasks.write_squad(root / "squad" / "train.json", finetune_tasks.colours(40))
    finetune_tasks.write_squad(root / "squad" / "dev.json", finetune_tasks.colours(10))
    for name in ("student", "roberta", "teacher"):
        made[f"{name}-sst2"] = root / f"{name}-sst2"
        finetune_tasks.finetune(made[name], data, made[f"{name}-sst2"], task="sst2", epochs=1)
    made["student-squad"] = root / "student-squad"
    finetune_tasks.finetune(made["student"], root / "squad", made["student-squad"], task="squad", epochs=1)
    for name in ("student-sst2", "roberta-sst2", "teacher-sst2", "student-squad"):
        made[f"{name}-onnx"] = model_exports.onnx(made[name], root / f"{name}-onnx")
    made["int8"] = model_exports.int8(made["student-sst2-onnx"], made["student-sst2"], root / "int8")
    for name in ("int8", "roberta-sst2-onnx"):
        made[f"{name}-browser"] = model_exports.make(
            "deploy.browser_layout", root / f"{name}-browser", {"export": made[name]}
        ).path
    return made


def _teacher(root: Path) -> Path:
    """From a model whose tokenizer reads more than the model and pads every text, as in sentence-transformers."""
    source = tiny.bert_teacher(root / "source", layers=2)
    tokenizer = BertTokenizerFast(vocab=load_tokenizer(source).get_vocab(), model_max_length=512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["river"]})
    tokenizer.backend_tokenizer.enable_padding(length=48)
    tokenizer.backend_tokenizer.enable_truncation(48)
    tokenizer.save_pretrained(source)
    recipe = registry.find("distill.teacher").read({"source": str(source)})
    stage.execute(registry.find("distill.teacher"), recipe, {}, root / "teacher")
    return root / "teacher"


def _student(folder: Path, root: Path) -> Path:
    done = train_processes.train(folder, root / "run", 1, "steps=2", "placement.save_every=2")
    assert done.returncode == 0, done.stderr
    exporting = registry.find("distill.export")
    stage.execute(exporting, exporting.read({}), {"run": root / "run"}, root / "student")
    return root / "student"


def _roberta(root: Path) -> Path:
    source = tiny.roberta_teacher(root / "roberta-source", layers=2)
    teacher, _ = masked_lm.load(source)
    made = student.make(teacher, Student(), seed=1)
    made.save_pretrained(root / "roberta")
    model_tokenizer.save_beside(load_tokenizer(source), made.config, root / "roberta")
    return root / "roberta"


def ask(folders: list[Path], texts: Path, environment: str | None = None) -> dict[str, dict[str, Any]]:
    """What :mod:`consumers.answers` prints in an environment, by default in ours."""
    path = [] if environment is None else [str(paths.ROOT / "build" / "consumers" / environment)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), str(texts), *map(str, folders)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    wanted = environment and environment.removeprefix("transformers")
    assert wanted is None or found["version"].startswith(f"{wanted}.")
    return {Path(folder).name: values for folder, values in found["found"].items()}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    path.write_text(json.dumps(TEXTS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def ours(models: dict[str, Path], texts: Path) -> dict[str, dict[str, Any]]:
    return ask([*models.values()], texts)


def flat(values: Any) -> list[float]:
    return [number for each in values for number in flat(each)] if isinstance(values, list) else [float(values)]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_others_answer_as_we_do(
    models: dict[str, Path], texts: Path, ours: dict[str, dict[str, Any]], environment: str
) -> None:
    if not (paths.ROOT / "build" / "consumers" / environment / ".ready").is_file():
        pytest.skip(f"{environment} is not installed: make consumers installs it")
    theirs = ask([*models.values()], texts, environment)
    for name in models:
        for way, wanted in ours[name].items():
            found = theirs[name][way]
            if way == "reads":
                assert found == wanted, name
            else:
                assert flat(found) == pytest.approx(flat(wanted), abs=1e-4), (name, way)
        plain, whole = theirs[name]["ids"]
        assert plain == whole, name
        assert len(plain[2]) > 600, name
    if environment == "transformers4":
        assert all(0 < score < 1 for score in theirs["student-squad"]["answer"])
    for name in ("teacher", "student", "roberta"):
        longest, vectors = theirs[name]["sentences"]
        assert longest == ours[name]["reads"]["longest"]
        torch.testing.assert_close(torch.tensor(vectors), _mean_states(models[name]), rtol=0, atol=1e-4)


def _mean_states(folder: Path) -> torch.Tensor:
    """The mean of each text's last hidden states."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    rows = tokenizer([text.strip() for text in TEXTS], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**rows).last_hidden_state
    mask = rows["attention_mask"][..., None]
    return (states * mask).sum(1) / mask.sum(1)


def test_every_tokenizer_says_what_its_model_takes_and_reads(
    models: dict[str, Path], ours: dict[str, dict[str, Any]]
) -> None:
    for name in models:
        names, longest = ours[name]["reads"]["names"], ours[name]["reads"]["longest"]
        assert names == (TYPES if name.startswith("teacher") else TYPES[:2]), name
        assert longest == 64, name
