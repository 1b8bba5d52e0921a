import json

import models_with_heads
import numpy as np
import pytest
import tiny
import torch

from cluster.artifacts import errors, stage
from cluster.models.runtimes import open_export
from deploy.conversion import parity
from deploy.conversion.parity import Difference, Probe, Tolerance
from deploy.conversion.source_model import open_source_model
from deploy.targets import onnx_export

NAMES = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.wordpiece(tmp_path_factory.mktemp("tokenizer"))


def test_inputs_depend_only_on_the_seed(tokenizer):
    first, again, other = (parity.fixed_inputs(Probe(seed=seed), tokenizer, NAMES, 512) for seed in (0, 0, 1))
    assert all((a[name] == b[name]).all() for a, b in zip(first, again, strict=True) for name in NAMES)
    assert parity.describe(Probe(), first) == parity.describe(Probe(), again)
    assert parity.describe(Probe(), first)["sha256"] != parity.describe(Probe(), other)["sha256"]


def test_inputs_are_texts_with_padding_at_the_end(tokenizer):
    feeds = parity.fixed_inputs(Probe(lengths=(8, 30), rows=4), tokenizer, NAMES, 512)
    assert [feed["input_ids"].shape for feed in feeds] == [(1, 8), (4, 8), (1, 30), (4, 30)]
    assert feeds[3]["attention_mask"].sum(axis=1).tolist() == [30, 22, 15, 7]
    specials = set(tokenizer.all_special_ids)
    for feed in feeds:
        assert all(values.dtype == np.int64 for values in feed.values())
        for ids, mask, types in zip(*(feed[name] for name in NAMES), strict=True):
            filled = int(mask.sum())
            assert mask.tolist() == [1] * filled + [0] * (len(ids) - filled)
            assert (ids[0], ids[filled - 1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
            assert not specials & set(ids[1 : filled - 1].tolist())
            assert (ids[filled:] == tokenizer.pad_token_id).all()
            assert types.tolist() == [0] * (filled // 2) + [1] * (filled - filled // 2) + [0] * (len(ids) - filled)


def test_lengths_are_capped_at_the_model_s_limit(tokenizer):
    feeds = parity.fixed_inputs(Probe(lengths=(8, 64, 128), rows=2), tokenizer, NAMES[:2], 40)
    assert [feed["input_ids"].shape[1] for feed in feeds] == [8, 8, 40, 40]
    assert parity.describe(Probe(rows=2), feeds)["lengths"] == [8, 40]
    assert set(feeds[0]) == {"input_ids", "attention_mask"}


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path):
    mute = tiny.wordpiece(tmp_path)
    mute.sep_token = None
    with pytest.raises(errors.StageError, match="lacks a"):
        parity.fixed_inputs(Probe(), mute, NAMES, 64)


def test_difference_of_classes_by_hand():
    feed = {"attention_mask": np.array([[1, 1], [1, 0]])}
    wanted = {"logits": np.array([[1.0, -4.0], [2.0, 3.0]], dtype=np.float32)}
    found = {"logits": np.array([[1.0, -4.5], [3.25, 3.0]], dtype=np.float32)}
    difference = parity.compare(wanted, found, feed, {"logits": "classes"})["logits"]
    assert difference == Difference(max_abs=1.25, scale=4.0, agreed=1, choices=2)
    assert (difference.relative, difference.agreement) == (1.25 / 4, 0.5)


def test_parity_ignores_padding():
    feed = {"attention_mask": np.array([[1, 1, 0]])}
    words = np.array([[[5.0, 1.0], [1.0, 2.0], [9.0, 0.0]]], dtype=np.float32)
    others = words.copy()
    others[0, 2] = (-90.0, 90.0)
    assert parity.compare({"w": words}, {"w": others}, feed, {"w": "words"})["w"] == Difference(0.0, 5.0, 2, 2)
    starts, moved = np.array([[1.0, 2.0, 0.0]], dtype=np.float32), np.array([[1.0, 2.0, 9.0]], dtype=np.float32)
    assert parity.compare({"s": starts}, {"s": moved}, feed, {"s": "positions"})["s"] == Difference(0.0, 2.0, 1, 1)


def test_merging_equals_comparing_everything_at_once():
    chance = np.random.default_rng(0)
    wanted, found = (chance.standard_normal((6, 3)).astype(np.float32) for _ in range(2))
    mask = np.ones((6, 4), dtype=np.int64)
    layouts = {"logits": "classes"}

    def part(rows):
        return parity.compare(
            {"logits": wanted[rows]}, {"logits": found[rows]}, {"attention_mask": mask[rows]}, layouts
        )

    assert parity.merge(part(slice(0, 2)), part(slice(2, 6))) == part(slice(0, 6))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_is_refused_at_any_position(bad):
    feed = {"attention_mask": np.ones((2, 3), dtype=np.int64)}
    wanted = np.ones((2, 3), dtype=np.float32)
    broken = wanted.copy()
    broken[0, 1] = bad
    fine = parity.compare({"o": wanted}, {"o": wanted}, feed, {"o": "classes"})
    found = parity.compare({"o": wanted}, {"o": broken}, feed, {"o": "classes"})
    for merged in (found, parity.merge(fine, found), parity.merge(found, fine)):
        with pytest.raises(errors.StageError, match=r"model\.onnx is not the model"):
            parity.check(merged, Tolerance(relative=1e6, agreement=0.0), "model.onnx")


def test_a_refusal_shows_the_digits_that_differ():
    found = {"logits": Difference(max_abs=0.5035, scale=1.0, agreed=0, choices=0)}
    with pytest.raises(errors.StageError, match=r"0\.5035 .* tolerance\.relative allows 0\.5;"):
        parity.check(found, Tolerance(relative=0.5, agreement=0.7), "it")


def test_too_little_agreement_is_refused_and_enough_is_not():
    found = {"logits": Difference(max_abs=0.1, scale=1.0, agreed=7, choices=10)}
    parity.check(found, Tolerance(relative=0.1, agreement=0.7), "it")
    with pytest.raises(errors.StageError, match=r"70\.0% of 10 .* tolerance\.agreement"):
        parity.check(found, Tolerance(relative=0.1, agreement=0.71), "it")
    with pytest.raises(errors.StageError, match=r"0\.1 .* tolerance\.relative allows 0\.099"):
        parity.check(found, Tolerance(relative=0.099, agreement=0.7), "it")


def test_parity_json_is_true(tmp_path):
    model = models_with_heads.model_folder(tmp_path / "model", "bert", "question-answering")
    recipe = onnx_export.Export(probe=Probe(lengths=(8, 24), rows=3, seed=5))
    exported = stage.execute(onnx_export.STAGE, recipe, {"model": model}, tmp_path / "export")
    said = json.loads((exported.path / "parity.json").read_text())

    source = open_source_model(model)
    feeds = parity.fixed_inputs(
        Probe(lengths=tuple(said["inputs"]["lengths"]), rows=3, seed=5),
        source.tokenizer,
        source.inputs,
        source.positions,
    )
    assert said["inputs"] == parity.describe(recipe.probe, feeds)
    answer = open_export(exported.path)
    loaded = models_with_heads.load(model, "question-answering")
    for name in ("start_logits", "end_logits"):
        largest, scale, agreed = 0.0, 0.0, []
        for feed in feeds:
            with torch.no_grad():
                wanted = loaded(**{key: torch.from_numpy(values) for key, values in feed.items()})[name].numpy()
            found, kept = answer(feed)[name], feed["attention_mask"] == 1
            largest = max(largest, float(np.abs(wanted - found)[kept].max()))
            scale = max(scale, float(np.abs(wanted)[kept].max()))
            agreed += [np.argmax(w[k]) == np.argmax(f[k]) for w, f, k in zip(wanted, found, kept, strict=True)]
        numbers = said["outputs"][name]
        # The export's reference uses eager attention, this one the library's default: equal up to rounding.
        assert numbers["max_abs"] == pytest.approx(largest, abs=2e-6)
        assert numbers["scale"] == pytest.approx(scale, rel=1e-5)
        assert numbers["relative"] == numbers["max_abs"] / numbers["scale"]
        assert (numbers["agreement"], numbers["choices"]) == (np.mean(agreed), len(agreed))
    assert exported.facts["parity"]["relative"] == max(said["outputs"][name]["relative"] for name in said["outputs"])
