"""The second step of distillation: losses computed by hand, and students of fine-tuned teachers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from finetune_tasks import finetune, sentiment, write_rows

from cluster.artifacts import artifact, errors
from eval.finetune.classification import ClassLoss
from eval.finetune.task_distillation import TaskDistillation, soft_targets


def softmax(values: list[float]) -> list[float]:
    powers = [float(np.exp(value)) for value in values]
    return [power / sum(powers) for power in powers]


def test_soft_targets_by_hand() -> None:
    student, teacher, temperature = [1.0, -2.0, 0.5], [3.0, 0.0, 0.2], 2.0
    p = softmax([value / temperature for value in teacher])
    q = softmax([value / temperature for value in student])
    expected = 4.0 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    found = soft_targets(torch.tensor([student, teacher]), torch.tensor([teacher, teacher]), temperature)
    assert found.tolist() == pytest.approx([expected, 0.0], abs=1e-6)


def test_the_loss_of_classes_and_of_scores_weighs_both_terms() -> None:
    step = TaskDistillation(temperature=1.0, soft=0.25, task=0.75)
    labels, taught = torch.tensor([0, 1, 1]), torch.tensor([[9.0, 9.0], [2.0, 1.0], [0.0, 4.0]])
    logits = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    loss = ClassLoss(False, labels, taught, step)(logits, np.array([2, 1]))
    expected = 0.0
    for own, label, other in [([0.0, 3.0], 1, [0.0, 4.0]), ([1.0, 1.0], 1, [2.0, 1.0])]:
        q, p = softmax(own), softmax(other)
        expected += 0.75 * -np.log(q[label]) + 0.25 * sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(loss) == pytest.approx(expected, abs=1e-5)
    scores = ClassLoss(True, torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [5.0]]), step)
    assert float(scores(torch.tensor([[4.0]]), np.array([1]))) == pytest.approx(0.75 * 4.0 + 0.25 * 1.0)


def run(folder: Path, model: Path, data: Path, teacher: Path | None = None, **values: Any) -> dict[str, Any]:
    return finetune(model, data, folder, teacher, **{"task": "sst2", **values})


def test_a_student_learns_from_its_teacher_alone(tmp_path: Path) -> None:
    teacher_data = sentiment(tmp_path / "data")
    teacher = tmp_path / "teacher"
    # Another architecture with another tokenizer: the student sees only outputs.
    run(teacher, tiny.roberta_teacher(tmp_path / "roberta", layers=2), teacher_data)
    # The student's own labels are all one class and have weight 0: it learns only from the teacher.
    rows = [json.loads(line) for line in (teacher_data / "train.jsonl").read_text().splitlines()]
    write_rows(tmp_path / "wrong" / "train.jsonl", [{**row, "label": 0} for row in rows])
    (tmp_path / "wrong" / "dev.jsonl").write_text((teacher_data / "dev.jsonl").read_text())
    step = {"temperature": 2.0, "soft": 1.0, "task": 0.0}
    student = tiny.distilbert(tmp_path / "model")
    scores = run(tmp_path / "student", student, tmp_path / "wrong", teacher, second_step=step)
    assert scores["score"] > 90.0
    assert scores["second_step"] == {**step, "layers": None, "teacher": artifact.read(teacher).identity}
    assert artifact.read(tmp_path / "student").facts["second_step"] == scores["second_step"]
    alone = run(tmp_path / "alone", student, tmp_path / "wrong")
    assert alone["score"] < 70.0
    assert alone["second_step"] is None


def test_teacher_and_second_step_go_together(tmp_path: Path) -> None:
    model, data = tiny.distilbert(tmp_path / "model"), sentiment(tmp_path / "data", 40)
    with pytest.raises(errors.StageError, match="second_step needs a teacher fine-tuned on sst2"):
        run(tmp_path / "out", model, data, second_step={})
    teacher = tmp_path / "teacher"
    run(teacher, model, data, epochs=1)
    with pytest.raises(errors.StageError, match=r"write \[second_step\], or leave --teacher out"):
        run(tmp_path / "out", model, data, teacher)
    with pytest.raises(errors.StageError, match="was fine-tuned on sst2: give a teacher of cola"):
        run(tmp_path / "out", model, data, teacher, task="cola", second_step={})


def test_a_teacher_of_scores_teaches_scores(tmp_path: Path) -> None:
    rows = [{"sentence1": text, "sentence2": "the mill", "label": float(n % 6)} for n, text in enumerate(tiny.ENGLISH)]
    for split in ("train", "dev"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    model, teacher = tiny.distilbert(tmp_path / "model"), tmp_path / "teacher"
    values = {"task": "stsb", "epochs": 1}
    run(teacher, model, tmp_path / "data", **values)
    for name, soft in (("little", 1e-9), ("much", 1.0)):
        run(tmp_path / name, model, tmp_path / "data", teacher, second_step={"soft": soft, "task": 1.0}, **values)
    plain, little, much = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors")["classifier.weight"]
        for name in ("teacher", "little", "much")
    )
    torch.testing.assert_close(plain, little, atol=1e-4, rtol=0.0)
    assert not torch.allclose(plain, much, atol=1e-4)
