"""Losses between layers against formulas written token by token: values, gradients, memory, half precision."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill.modeling import layer_losses, losses

ROWS, LENGTH, WIDTH, OF_TEACHER, HEADS = 3, 7, 12, 24, 4
PRODUCTS = ("queries", "keys", "values")
EVERY = (("queries", "queries"), ("keys", "keys"), ("values", "values"), ("queries", "keys"))


def products(width: int, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(ROWS, LENGTH, width).to(dtype).requires_grad_() for name in PRODUCTS}


def token_by_token(
    student: dict[str, Tensor], teacher: dict[str, Tensor], relation: tuple[str, str], counted: Tensor
) -> Tensor:
    """The relation loss by its formula, one head, row and token at a time."""

    def relation_of(given: dict[str, Tensor], row: int, head: int, token: int) -> Tensor:
        left, right = (given[name] for name in relation)
        width = left.shape[-1] // HEADS
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([left[row, token, part] @ right[row, other, part] for other in range(LENGTH)])
        chances = torch.exp(scores / math.sqrt(width))
        return chances / chances.sum()

    found = []
    for row in range(ROWS):
        for token in range(LENGTH):
            if not counted[row, token]:
                continue
            for head in range(HEADS):
                ours, theirs = (relation_of(given, row, head, token) for given in (student, teacher))
                found.append((theirs * (theirs.log() - ours.log())).sum())
    return torch.stack(found).mean()


def gradients(loss: Tensor, of: dict[str, Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(of.values()), allow_unused=True)
    return [torch.zeros(1) if one is None else one for one in found]


@pytest.mark.parametrize("all_count", [True, False])
@pytest.mark.parametrize("relations", [EVERY[:3], EVERY[3:], EVERY])
@pytest.mark.parametrize("implementation", ["fused", "naive", "compiled"])
def test_relations_equal_the_formula(
    implementation: str, relations: tuple[tuple[str, str], ...], all_count: bool
) -> None:
    ours, theirs = products(WIDTH, 1), products(OF_TEACHER, 2)
    counted = torch.ones(ROWS, LENGTH, dtype=torch.bool) if all_count else torch.rand(ROWS, LENGTH) > 0.3
    wanted = torch.stack([token_by_token(ours, theirs, relation, counted) for relation in relations]).mean()
    given = None if all_count else counted
    if implementation == "naive":
        found = losses.relation_loss(ours, theirs, relations, HEADS, given)
    else:
        found = layer_losses.relation_loss(ours, theirs, relations, HEADS, given, implementation == "compiled")
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    for mine, other in zip(gradients(found, ours), gradients(wanted, ours), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_blocks_do_not_change_relations(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = products(WIDTH, 1), products(OF_TEACHER, 2)
    counted = torch.rand(ROWS, LENGTH) > 0.3
    whole = layer_losses.relation_loss(ours, theirs, EVERY, HEADS, counted)
    wanted = gradients(whole, ours)
    # Five pairs of row and head to a block: blocks begin within a row, and the last one is shorter.
    monkeypatch.setattr(layer_losses, "_CACHED_RELATIONS", 5 * LENGTH**2)
    in_blocks = layer_losses.relation_loss(ours, theirs, EVERY, HEADS, counted)
    assert in_blocks.item() == pytest.approx(whole.item(), rel=1e-6)
    for mine, other in zip(gradients(in_blocks, ours), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("all_count", [True, False])
@pytest.mark.parametrize("implementation", [layer_losses.hidden_loss, losses.hidden_loss])
def test_the_hidden_loss_equals_the_formula(implementation: object, all_count: bool) -> None:
    assert callable(implementation)
    torch.manual_seed(3)
    # Layers of unlike scale count alike, and so do tokens.
    ours, theirs = torch.randn(20, WIDTH, requires_grad=True), torch.randn(20, WIDTH) * torch.rand(20, 1) * 30
    counted = torch.ones(20, dtype=torch.bool) if all_count else torch.rand(20) > 0.3
    terms = [
        sum((a - b) ** 2 for a, b in zip(mine, other, strict=True)) / sum(b**2 for b in other)
        for mine, other, counts in zip(ours, theirs, counted, strict=True)
        if counts
    ]
    wanted = torch.stack(terms).mean()
    found = implementation(ours, theirs, None if all_count else counted)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    (mine,), (other,) = torch.autograd.grad(found, [ours]), torch.autograd.grad(wanted, [ours])
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient() -> None:
    ours = products(WIDTH, 1)
    same = {name: product.detach() for name, product in ours.items()}
    loss = layer_losses.relation_loss(ours, same, EVERY, HEADS, None)
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert max(part.abs().max().item() for part in gradients(loss, ours)) < 1e-8
    hidden = torch.randn(5, WIDTH, requires_grad=True)
    loss = layer_losses.hidden_loss(hidden, hidden.detach(), None)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, hidden)[0].abs().max() == 0


def test_a_zero_hidden_state_of_the_teacher_is_finite() -> None:
    hidden = torch.randn(2, WIDTH, requires_grad=True)
    loss = layer_losses.hidden_loss(hidden, torch.zeros(2, WIDTH), None)
    assert loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_gradients_survive_half_precision(dtype: torch.dtype) -> None:
    """Divided by a million tokens, gradients would vanish in fp16; they are scaled by the loss scale before that."""
    scale = 2.0**16
    torch.manual_seed(4)
    ours, theirs = torch.randn(8, WIDTH), torch.randn(8, WIDTH)
    exact = ours.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(losses.hidden_loss(exact, theirs, None) * 1e-6, exact)
    half = ours.to(dtype).requires_grad_()
    (found,) = torch.autograd.grad(layer_losses.hidden_loss(half, theirs.to(dtype), None) * 1e-6 * scale, half)
    assert ((found.float() / scale - wanted).norm() / wanted.norm()).item() < 0.02

    full, of_teacher = products(WIDTH, 1), products(OF_TEACHER, 2)
    wanted_parts = gradients(losses.relation_loss(full, of_teacher, EVERY, HEADS, None) * 1e-6, full)
    halves = products(WIDTH, 1, dtype)
    taught = {name: product.to(dtype) for name, product in of_teacher.items()}
    loss = layer_losses.relation_loss(halves, taught, EVERY, HEADS, None)
    for mine, other in zip(gradients(loss * 1e-6 * scale, halves), wanted_parts, strict=True):
        assert mine.dtype == dtype
        assert ((mine.float() / scale - other).norm() / other.norm()).item() < 0.05


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor created inside the block."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_tensor_of_all_relations_is_ever_made() -> None:
    rows, heads, length = 16, 8, 128
    ours, theirs = torch.randn(rows, length, 32, requires_grad=True), torch.randn(rows, length, 32)
    relations, of_student, of_teacher = (("keys", "keys"),), {"keys": ours}, {"keys": theirs}
    with Largest() as fused_run:
        layer_losses.relation_loss(of_student, of_teacher, relations, heads, None).backward()
    with Largest() as naive_run:
        losses.relation_loss(of_student, of_teacher, relations, heads, None).backward()
    assert naive_run.elements == rows * heads * length**2
    assert fused_run.elements <= naive_run.elements / 8
