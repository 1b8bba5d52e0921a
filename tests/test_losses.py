"""The triple loss and its gradients against a naive version written here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.distillation import Loss
from distill.losses import cosine_loss, soft_target_loss, triple_loss
from distill.masked_lm import Outputs

TOKENS, VOCAB, HIDDEN = 12, 30, 8


def naive_triple_loss(
    student: Tensor,
    teacher: Tensor,
    hidden: Tensor,
    taught: Tensor,
    positions: list[int],
    labels: list[int],
    loss: Loss,
) -> Tensor:
    """Word by word, as the formulas read."""
    t = loss.temperature
    places = positions if loss.soft_positions == "masked" else range(len(student))
    soft = torch.zeros(())
    for place in places:
        p = torch.exp(teacher[place] / t) / torch.exp(teacher[place] / t).sum()
        q = torch.exp(student[place] / t) / torch.exp(student[place] / t).sum()
        soft = soft + (p * (torch.log(p) - torch.log(q))).sum()
    soft = soft / len(places) * t * t
    masked = torch.zeros(())
    for place, label in zip(positions, labels, strict=True):
        q = torch.exp(student[place]) / torch.exp(student[place]).sum()
        masked = masked - torch.log(q[label])
    masked = masked / len(labels)
    cosine = torch.zeros(())
    for ours, theirs in zip(hidden, taught, strict=True):
        cosine = cosine + 1 - (ours * theirs).sum() / (ours.norm() * theirs.norm())
    cosine = cosine / len(hidden)
    return loss.soft * soft + loss.masked * masked + loss.cosine * cosine


@pytest.fixture
def case() -> dict[str, Tensor]:
    torch.manual_seed(3)
    shapes = {"student": VOCAB, "teacher": VOCAB, "hidden": HIDDEN, "taught": HIDDEN}
    return {name: torch.randn(TOKENS, width) * 2 for name, width in shapes.items()}


@pytest.mark.parametrize("soft_positions", ["all", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize(
    "weights", [(5.0, 2.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 0.3, 0.3)]
)
def test_triple_loss_and_gradients_equal_the_naive_version(
    case: dict[str, Tensor], weights: tuple[float, float, float], temperature: float, soft_positions: str
) -> None:
    soft, masked, cosine = weights
    loss = Loss(soft=soft, masked=masked, cosine=cosine, temperature=temperature, soft_positions=soft_positions)
    positions, labels = [1, 4, 7], [3, 29, 11]

    ours = [case[name].clone().requires_grad_() for name in ("student", "hidden")]
    everywhere = loss.needs_all_logits
    chosen = torch.tensor(positions)
    outputs = Outputs(ours[1], ours[0] if everywhere else ours[0][chosen])
    taught = Outputs(case["taught"], case["teacher"] if everywhere else case["teacher"][chosen])
    label_rows = chosen if everywhere else None
    found = triple_loss(outputs, taught, torch.tensor(labels), label_rows, loss)

    theirs = [case[name].clone().requires_grad_() for name in ("student", "hidden")]
    wanted = naive_triple_loss(theirs[0], case["teacher"], theirs[1], case["taught"], positions, labels, loss)
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    found.total.backward()
    wanted.backward()
    for our, their in zip(ours, theirs, strict=True):
        gradient = torch.zeros_like(our) if our.grad is None else our.grad
        expected = torch.zeros_like(their) if their.grad is None else their.grad
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_terms_of_a_batch_are_reported_unweighted(case: dict[str, Tensor]) -> None:
    outputs, taught = Outputs(case["hidden"], case["student"]), Outputs(case["taught"], case["teacher"])
    labels, rows = torch.tensor([3, 5]), torch.tensor([0, 2])
    found = triple_loss(outputs, taught, labels, rows, Loss())
    assert found.total.item() == pytest.approx(5 * found.soft.item() + 2 * found.masked.item() + found.cosine.item())
    assert found.stack().tolist() == [found.total, found.soft, found.masked, found.cosine]
    assert not found.stack().requires_grad


def test_equal_distributions_lose_nothing(case: dict[str, Tensor]) -> None:
    assert soft_target_loss(case["student"], case["student"], 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine_loss(case["hidden"], case["hidden"] * 3).item() == pytest.approx(0.0, abs=1e-6)


def test_soft_loss_of_known_distributions() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.5]]))
    student = torch.log(torch.tensor([[0.25, 0.75]]))
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert soft_target_loss(student, teacher, 1.0).item() == pytest.approx(wanted, rel=1e-6)


def test_half_precision_logits_are_compared_in_fp32(case: dict[str, Tensor]) -> None:
    student, teacher = case["student"].half(), case["teacher"].half()
    half = soft_target_loss(student, teacher, 2.0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(soft_target_loss(student.float(), teacher.float(), 2.0).item(), rel=1e-6)


def test_chunks_of_positions_change_nothing() -> None:
    torch.manual_seed(4)
    student, teacher = torch.randn(50, VOCAB, requires_grad=True), torch.randn(50, VOCAB)
    whole = soft_target_loss(student, teacher, 2.0)
    by_row = torch.stack([soft_target_loss(student[i : i + 1], teacher[i : i + 1], 2.0) for i in range(50)]).mean()
    assert whole.item() == pytest.approx(by_row.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (whole, by_row)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_fp16_gradients_survive_the_number_of_positions() -> None:
    """With the loss scale applied to a loss over 4,096 positions, as DeepSpeed does, none is flushed to zero."""
    torch.manual_seed(5)
    student, teacher = torch.randn(4096, VOCAB), torch.randn(4096, VOCAB)
    half = student.half().requires_grad_()
    (soft_target_loss(half, teacher.half(), 2.0) * 2**16).backward()
    full = student.half().float().requires_grad_()
    (soft_target_loss(full, teacher.half().float(), 2.0) * 2**16).backward()
    assert half.grad is not None
    assert full.grad is not None
    assert (half.grad.float() - full.grad).norm() / full.grad.norm() < 1e-3


def test_shapes_are_those_the_loss_says(case: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="must agree"):
        soft_target_loss(case["student"], case["teacher"][:-1], 2.0)


def test_a_recipe_without_any_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="every weight is 0"):
        Loss(soft=0.0, masked=0.0, cosine=0.0)


def test_numbers_stay_finite_where_the_teacher_is_certain() -> None:
    teacher = torch.full((1, VOCAB), -1e4)
    teacher[0, 3] = 1e4
    found = soft_target_loss(torch.zeros(1, VOCAB), teacher, 2.0)
    assert found.item() == pytest.approx(4 * np.log(VOCAB), rel=1e-6)
