"""The fused triple loss and the reference against a naive version in this file: values and gradients."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill.config import Loss
from distill.modeling import fused_head
from distill.modeling.fused_head import DistillationTargets, HeadLosses, chunk_positions, guesses, head_losses
from distill.modeling.losses import Losses, cosine_loss, masked_word_loss, soft_target_loss
from distill.modeling.masked_lm import Projection

POSITIONS, LABELS, VOCAB, HIDDEN = 70, 9, 30, 8
WEIGHTS = [(5.0, 2.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.3)]


def word_by_word(student: Tensor, teacher: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Soft and masked-word losses by their formulas."""
    t = loss.temperature
    soft = torch.zeros(())
    for ours, theirs in zip(student, teacher, strict=True):
        p = torch.exp(theirs / t) / torch.exp(theirs / t).sum()
        q = torch.exp(ours / t) / torch.exp(ours / t).sum()
        soft = soft + (p * (torch.log(p) - torch.log(q))).sum()
    masked = torch.zeros(())
    for ours, label in zip(student, labels.tolist(), strict=False):
        masked = masked - torch.log(torch.exp(ours[label]) / torch.exp(ours).sum())
    return loss.soft * soft / len(student) * t * t + loss.masked * masked / len(labels)


class Case:
    """Heads of a student and a teacher of different widths, and their inputs."""

    def __init__(self, dtype: torch.dtype = torch.float32, positions: int = POSITIONS, vocab: int = VOCAB) -> None:
        torch.manual_seed(3)
        self.features = torch.randn(positions, HIDDEN).to(dtype).requires_grad_()
        self.weight = torch.randn(vocab, HIDDEN).to(dtype).requires_grad_()
        self.bias = torch.randn(vocab).to(dtype).requires_grad_()
        of_teacher = torch.randn(positions, HIDDEN + 4), torch.randn(vocab, HIDDEN + 4), torch.randn(vocab)
        features, weight, bias = (part.to(dtype) for part in of_teacher)
        self.taught = DistillationTargets(features, Projection(weight, bias))
        self.labels = torch.randint(0, vocab, (LABELS,))

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.weight, self.bias

    def fused(self, loss: Loss, chunk: int = 16, compiled: bool = False) -> HeadLosses:
        projection = Projection(self.weight, self.bias)
        return head_losses(self.features, projection, self.taught, self.labels, loss, chunk, compiled)

    def logits(self) -> tuple[Tensor, Tensor]:
        return Projection(self.weight, self.bias).logits(self.features), self.taught.projection.logits(
            self.taught.features
        )


@pytest.mark.parametrize("chunk", [16, 64, 1024])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_fused_head_equals_the_naive_version(weights: tuple[float, float], temperature: float, chunk: int) -> None:
    case, loss = Case(), Loss(soft=weights[0], masked=weights[1], cosine=1.0, temperature=temperature)
    found = case.fused(loss, chunk).weighted
    wanted = word_by_word(*case.logits(), case.labels, loss)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    ours, theirs = torch.autograd.grad(found, case.learned), torch.autograd.grad(wanted, case.learned)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS[:2])
def test_the_compiled_head_equals_the_eager_one(weights: tuple[float, float]) -> None:
    loss = Loss(soft=weights[0], masked=weights[1])
    eager, compiled = (Case().fused(loss, compiled=compiled).weighted for compiled in (False, True))
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-6)
    cases = [Case(), Case()]
    gradients = [
        torch.autograd.grad(case.fused(loss, compiled=compiled).weighted, case.learned)
        for case, compiled in zip(cases, (False, True), strict=True)
    ]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


def test_terms_are_reported_unweighted_and_only_their_sum_has_a_gradient() -> None:
    case = Case()
    found = case.fused(Loss())
    student, teacher = case.logits()
    assert found.soft.item() == pytest.approx(soft_target_loss(student, teacher, 2.0).item(), rel=1e-6)
    assert found.masked.item() == pytest.approx(masked_word_loss(student[:LABELS], case.labels).item(), rel=1e-6)
    assert found.weighted.item() == pytest.approx(5 * found.soft.item() + 2 * found.masked.item(), rel=1e-6)
    assert [part.requires_grad for part in found] == [True, False, False]


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor created inside the block."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_no_tensor_of_positions_by_vocabulary_is_ever_made() -> None:
    case = Case(positions=512, vocab=200)
    with Largest() as fused_run:
        case.fused(Loss(), chunk=32).weighted.backward()
    with Largest() as naive_run:
        student, teacher = case.logits()
        soft_target_loss(student, teacher, 2.0).backward()
    assert naive_run.elements == 512 * 200
    assert fused_run.elements <= 32 * 200


def test_a_chunk_is_chosen_from_memory() -> None:
    v100, laptop = 16 * 2**30, 2 * 2**30
    assert chunk_positions(30522, 2, v100, "cuda") > 512
    assert chunk_positions(30522, 2, 8 * v100, "cuda") == 2048
    assert 64 <= chunk_positions(30522, 4, laptop, "cpu") < 128
    assert chunk_positions(500, 4, laptop, "cpu") == 512
    for memory in (laptop, v100):
        chunk = chunk_positions(250_000, 2, memory, "cuda")
        assert chunk % 16 == 0
        assert chunk == 64 or chunk * 250_000 * 20 <= memory // 32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_survive_the_number_of_positions(dtype: torch.dtype) -> None:
    """If gradients were divided by 4,096 positions before loss scaling, fp16 would flush most of them to zero."""
    found: list[Iterator[Tensor]] = []
    for kind in (dtype, torch.float32):
        half = Case(dtype, positions=4096)
        for tensor in (*half.learned, half.taught.features, half.taught.projection.weight):
            tensor.data = tensor.data.to(kind)
        case = half
        case.taught = DistillationTargets(
            half.taught.features, Projection(*(part.to(kind) for part in parts_of(half.taught)))
        )
        found.append(iter(torch.autograd.grad(case.fused(Loss(), 256).weighted * 2**10, case.learned)))
    for ours, theirs in zip(*found, strict=True):
        error = float((ours.float() - theirs).norm() / theirs.norm())
        assert error < (2e-3 if dtype == torch.float16 else 2e-2)


def parts_of(taught: DistillationTargets) -> tuple[Tensor, Tensor]:
    return taught.projection.weight, taught.projection.bias


def test_fp16_sums_over_many_positions_do_not_overflow() -> None:
    """4,096 labels of one word: before the division, its gradient is far above 65,504."""
    torch.manual_seed(1)
    features = torch.full((4096, HIDDEN), 8.0).half().requires_grad_()
    projection = Projection(torch.zeros(VOCAB, HIDDEN).half().requires_grad_(), torch.zeros(VOCAB).half())
    loss = Loss(soft=0.0, masked=2.0)
    found = head_losses(features, projection, None, torch.full((4096,), 7), loss, chunk=4096)
    (gradient,) = torch.autograd.grad(found.weighted, projection.weight)
    assert gradient.isfinite().all()
    assert gradient[7, 0].item() == pytest.approx(-2 * 8 * (1 - 1 / VOCAB), rel=1e-3)


def test_guesses_are_those_of_the_whole_logits() -> None:
    case = Case()
    right = torch.randint(0, VOCAB, (POSITIONS,))
    found = guesses(case.features, Projection(case.weight, case.bias), right, 16)
    logits = case.logits()[0]
    assert torch.equal(found.words, logits.argmax(-1))
    torch.testing.assert_close(found.nats, torch.nn.functional.cross_entropy(logits, right, reduction="none"))


def test_a_soft_loss_without_a_teacher_is_refused() -> None:
    case = Case()
    with pytest.raises(ValueError, match="needs a teacher"):
        head_losses(case.features, Projection(case.weight, case.bias), None, case.labels, Loss(), 16)


def test_a_batch_says_its_terms_detached() -> None:
    terms = [torch.tensor(float(n), requires_grad=True) for n in range(6)]
    found = Losses(*terms).stack()
    assert found.tolist() == [0, 1, 2, 3, 4, 5]
    assert not found.requires_grad


def test_equal_distributions_lose_nothing() -> None:
    student, _ = Case().logits()
    assert soft_target_loss(student, student, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert cosine_loss(student, student * 3).item() == pytest.approx(0.0, abs=1e-6)


def test_cosine_of_known_vectors() -> None:
    ours, theirs = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    assert cosine_loss(ours, theirs).item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_fused_cosine_equals_the_reference(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    ours, theirs = torch.randn(300, 64).to(dtype).requires_grad_(), torch.randn(300, 64).to(dtype)
    found, wanted = fused_head.cosine_loss(ours, theirs), cosine_loss(ours, theirs)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss * 2**10, ours)[0].float() for loss in (found, wanted)]
    tight = dtype == torch.float32
    torch.testing.assert_close(*gradients, rtol=1e-5 if tight else 2e-3, atol=1e-6 if tight else 1e-4)


def test_soft_loss_of_known_distributions() -> None:
    teacher = torch.log(torch.tensor([[0.5, 0.5]]))
    student = torch.log(torch.tensor([[0.25, 0.75]]))
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert soft_target_loss(student, teacher, 1.0).item() == pytest.approx(wanted, rel=1e-6)


def test_half_precision_logits_are_compared_in_fp32() -> None:
    student, teacher = (logits.detach().half() for logits in Case().logits())
    half = soft_target_loss(student, teacher, 2.0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(soft_target_loss(student.float(), teacher.float(), 2.0).item(), rel=1e-6)


def test_shapes_are_those_the_loss_says() -> None:
    student, teacher = Case().logits()
    with pytest.raises(ValueError, match="must agree"):
        soft_target_loss(student, teacher[:-1], 2.0)


def test_a_recipe_without_any_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="every weight is 0"):
        Loss(soft=0.0, masked=0.0, cosine=0.0)


def test_numbers_stay_finite_where_the_teacher_is_certain() -> None:
    teacher = torch.full((1, VOCAB), -1e4)
    teacher[0, 3] = 1e4
    assert soft_target_loss(torch.zeros(1, VOCAB), teacher, 2.0).item() == pytest.approx(4 * np.log(VOCAB), rel=1e-6)
    projection = Projection(teacher.t().contiguous(), torch.zeros(VOCAB))
    taught = DistillationTargets(torch.ones(1, 1), projection)
    features = torch.zeros(1, 1, requires_grad=True)
    plain = Projection(torch.zeros(VOCAB, 1), torch.zeros(VOCAB))
    found = fused_head.head_losses(features, plain, taught, torch.tensor([3]), Loss(masked=0.0), 16)
    assert found.soft.item() == pytest.approx(4 * np.log(VOCAB), rel=1e-6)
