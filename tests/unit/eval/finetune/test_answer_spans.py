"""Answer spans in passages: windows cover all tokens, texts are recovered exactly, the loss ignores padding."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoTokenizer

from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import ROOT
from cluster.models.span_decoding import SPAN_TOKENS, candidates
from eval.finetune.answer_spans import QUERY_TOKENS, SpanLoss, Windows, encode_questions, targets
from eval.finetune.batching import Features
from eval.finetune.task_distillation import TaskDistillation
from eval.tasks.definitions import TASKS
from eval.tasks.questions import Question, questions_from_folder

DATA = ROOT / ".." / "shared" / "data"
BUILDERS = pytest.mark.parametrize("build", [tiny.wordpiece, tiny.byte_level], ids=lambda build: build.__name__)


def questions(count: int) -> list[Question]:
    """Questions about words in passages with accents, other scripts, symbols and unusual blanks."""
    chance = random.Random(4)
    pieces = [word for line in tiny.ENGLISH[:12] for word in line.split()]
    pieces += ["Café", "24–10", "東京", "(U.S.)", "naïve", "$5.00", "don't", "\u00a0two", "🙂", "ﬁne"]
    found = []
    for number in range(count):
        words = chance.choices(pieces, k=chance.randrange(5, 120))
        context = "".join(word + chance.choice([" ", "  ", "\n"]) for word in words)
        first = chance.randrange(len(words))
        answer = words[first].strip()
        start = context.index(answer)
        found.append(Question(f"q{number}", "What is said here?", context, (answer,), (start,)))
    return found


@BUILDERS
def test_windows_are_what_the_tokenizer_says_and_cover_the_passage(build: Any, tmp_path: Path) -> None:
    tokenizer = build(tmp_path / "model")
    asked = questions(12)
    found = encode_questions(tokenizer, asked, max_length=64, stride=16)
    for number, question in enumerate(asked):
        own = [row for row, window in enumerate(found.windows) if window.question == number]
        whole = tokenizer(question.text, question.context)
        ids = [found.features.batch(np.array([row]))["input_ids"][0].tolist() for row in own]
        assert all(len(row) <= 64 for row in ids)
        if len(own) == 1:
            batch = {name: value[0].tolist() for name, value in found.features.batch(np.array(own)).items()}
            assert batch == {name: value for name, value in whole.items() if name != "attention_mask"}
        passages = [found.windows[row] for row in own]
        inside = [
            row[window.offset : window.offset + len(window.characters)]
            for row, window in zip(ids, passages, strict=True)
        ]
        for before, after in itertools.pairwise(inside):
            # Each begins 16 tokens after the one before it.
            assert before[16:] == after[: len(before) - 16]
        passage = tokenizer(question.context, add_special_tokens=False)["input_ids"]
        assert [*(token for part in inside[:-1] for token in part[:16]), *inside[-1]] == passage


@BUILDERS
def test_a_model_that_knows_gives_the_answer_exactly(build: Any, tmp_path: Path) -> None:
    asked = questions(60)
    found = encode_questions(build(tmp_path / "model"), asked, max_length=64, stride=20)
    for number, question in enumerate(asked):
        best = candidates(question.context, windows_with_answer(found, number, asked))
        spans = best.spans
        assert spans[0].text == question.context[spans[0].begin : spans[0].end]
        # A token may extend beyond the answer ("(U.S.)" begins with a bracket), but must cover it.
        assert question.answers[0] in spans[0].text
        assert len({span.text for span in spans}) == len(spans) <= 20
        assert sum(share for _, share in best.ranked(nullable=True)) == pytest.approx(1.0)


def windows_with_answer(found: Windows, number: int, asked: list[Question]) -> list[tuple[Any, Any]]:
    """Windows of a question, with logits that point at the answer in every window that contains all of it."""
    places = targets(found, asked)
    seen = []
    for row, window in enumerate(found.windows):
        if window.question == number:
            logits = np.zeros((2, int(found.features.lengths[row])), dtype=np.float32)
            logits[[0, 1], places[row]] = 9.0
            seen.append((window, logits))
    return seen


def test_spans_are_ordered_short_enough_and_inside_the_passage(tmp_path: Path) -> None:
    question = Question("q", "what?", " ".join(["the"] * 45), (), ())
    found = encode_questions(tiny.wordpiece(tmp_path), [question], max_length=64, stride=16)
    (window,) = found.windows
    logits = np.full((2, int(found.features.lengths[0])), -20.0, dtype=np.float32)
    logits[0, window.offset + 2] = 5.0
    # The likeliest end is before the beginning, the next too far: neither may be.
    logits[1, window.offset + 1] = 9.0
    logits[1, window.offset + 2 + SPAN_TOKENS] = 8.0
    logits[1, window.offset + 4] = 3.0
    # Logits outside the passage are not answers; those of [CLS] are for "no answer".
    logits[:, 1] = 50.0
    logits[:, 0] = 3.5
    best = candidates(question.context, [(window, logits)])
    assert (best.spans[0].text, best.spans[0].logit) == ("the the the", 8.0)
    assert best.null_difference == pytest.approx(7.0 - 8.0)


def test_the_question_is_cut_and_a_window_too_small_refused(tmp_path: Path) -> None:
    tokenizer = tiny.wordpiece(tmp_path)
    long = Question("q", "the " * 90, "river mill", ("mill",), (6,))
    found = encode_questions(tokenizer, [long], max_length=80, stride=8)
    assert found.windows[0].offset == 1 + QUERY_TOKENS + 1
    assert targets(found, [long]).tolist() == [[QUERY_TOKENS + 3, QUERY_TOKENS + 3]]
    with pytest.raises(StageError, match="max_length = 66 leaves no room"):
        encode_questions(tokenizer, [long], max_length=66, stride=8)


def test_an_answer_that_is_not_whole_in_a_window_is_no_target(tmp_path: Path) -> None:
    context = " ".join(["the"] * 10 + ["river", "mill"] + ["the"] * 10)
    question = Question("q", "the", context, ("river mill",), (40,))
    found = encode_questions(tiny.wordpiece(tmp_path), [question], max_length=4 + 11, stride=10)
    # Windows of 11 tokens from 0, 10 and 20: the answer, tokens 10 and 11, is whole in the second one only.
    assert targets(found, [question]).tolist() == [[0, 0], [3, 4], [0, 0]]


def test_the_loss_does_not_see_padding() -> None:
    features = Features.of([[1, 2, 3], [1, 2, 3, 4, 5]], None, pad=0)
    taught = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    loss = SpanLoss(features, torch.tensor([[1, 2], [0, 0]]), taught, TaskDistillation(soft=0.3, task=0.7))
    logits = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    together = loss(logits, np.array([0, 1]))
    apart = loss(logits[:1, :, :3], np.array([0])) + loss(logits[1:], np.array([1]))
    torch.testing.assert_close(together, apart)
    (gradient,) = torch.autograd.grad(together, logits)
    assert torch.all(gradient[0, :, 3:] == 0)
    assert torch.all(gradient[0, :, :3] != 0)
    # By hand: the mean over both ends of cross entropy and of KL at temperature 2, times its square.
    row, teacher = logits[0, :, :3].detach(), taught[:3].T
    task = -(row.log_softmax(-1)[0, 1] + row.log_softmax(-1)[1, 2]) / 2
    p, q = (teacher / 2).softmax(-1), (row / 2).softmax(-1)
    soft = 4.0 * (p * (p / q).log()).sum() / 2
    torch.testing.assert_close(loss(logits[:1, :, :3], np.array([0])).detach(), 0.7 * task + 0.3 * soft)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data next to the checkout")
def test_real_squad_answers_come_back_from_their_tokens() -> None:
    """All answers of 200 questions of the real dev set are recovered from their tokens."""
    data = questions_from_folder(TASKS["squad"], DATA / "squad")
    assert (len(data.train), len(data.dev[0])) == (10711, 10570)
    assert (data.train.is_subset, data.dev[0].is_subset) == (True, False)
    asked = list(data.dev[0].sample(200).items)
    found = encode_questions(AutoTokenizer.from_pretrained(DATA / "models" / "bert-base-uncased"), asked, 384, 128)
    exactly = sum(
        candidates(each.context, windows_with_answer(found, n, asked)).spans[0].text == each.answers[0]
        for n, each in enumerate(asked)
    )
    # A few answers are parts of tokens ("1990" of "1990s").
    assert exactly >= 197
