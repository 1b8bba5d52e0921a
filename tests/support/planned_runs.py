"""Distillation runs to plan: BERT-base as the teacher, and students with half of its layers."""

from typing import Any

from distill.config import Distillation, Training
from distill.cost_model.forecast import PlannedRun
from distill.modeling import model_shape
from distill.modeling.model_shape import ModelShape

BERT = model_shape.KNOWN["bert-base-uncased"]
HALF = model_shape.student_shape(BERT, 6)


def make_training(**values: Any) -> Distillation:
    return Distillation.of({"steps": 1000, "precision": "fp16", **values})


def make_run(training: Training | None = None, seq_len: int = 512, teacher: ModelShape = BERT) -> PlannedRun:
    student = model_shape.student_shape(teacher, teacher.layers // 2)
    return PlannedRun("student", training or make_training(), teacher, student, seq_len, prefix="train.")
