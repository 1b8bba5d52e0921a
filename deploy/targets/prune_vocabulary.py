"""Drop the word pieces that a domain never uses: the embedding is a third of a student.

::

    stillhouse prune-vocabulary RECIPE --model DIR --tokens DIR [--data DIR] --out DIR

``--tokens`` is the domain: rows made with the model's tokenizer, whose counts say which pieces are used. Kept are
those, the special tokens, and every single character, so that any text can still be read. The others go from the
tokenizer, the embeddings and a masked-word head, and the rest gets new ids. ``--out`` is a model folder again, for
``eval.score`` and every export.

A text that used only kept pieces is cut into the same pieces as before, because WordPiece takes the longest piece
that fits and those that went were never taken; its outputs are the very same numbers. ``parity.json`` holds the proof:
texts of the domain through both tokenizers, and rows through both models.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from transformers import AutoTokenizer, PreTrainedModel

from cluster.artifacts import artifact, commit, errors, stage
from cluster.models import runtimes
from cluster.storage.filesystem import write_json
from cluster.tokens.rows import open_tokens
from cluster.tokens.tokenizer import quiet_tokenizer
from deploy.conversion import finalize, parity, task_score
from deploy.conversion.finalize import ToleranceRecipe, logger
from deploy.conversion.source_model import Original, open_original
from deploy.targets import calibration_rows
from deploy.targets.calibration_rows import Calibration

TOKENIZER = "tokenizer.json"
CONTINUES = "##"
FORMAT = "pruned"

Ids = npt.NDArray[np.int64]


class Same(parity.Tolerance):
    """How far a pruned model may be: nothing was rounded."""

    relative: PositiveFloat = 1e-5
    agreement: float = Field(1.0, ge=0.0, le=1.0)
    score: NonNegativeFloat = 0.1


class Pruning(ToleranceRecipe):
    """What is dropped, and how it is proven."""

    min_count: PositiveInt = 1
    """Pieces seen at least so often in the training rows stay."""
    calibration: Calibration = Calibration()
    """The rows the proof is made on; with a higher ``min_count`` those are taken that use kept pieces only."""
    tolerance: Same = Same()


def kept_ids(pieces: Mapping[str, int], counts: Ids, always: Sequence[int], min_count: int) -> Ids:
    """Old ids of the pieces that stay, ascending: a new id is a place among them."""
    single = [number for piece, number in pieces.items() if len(piece.removeprefix(CONTINUES)) == 1]
    used = np.flatnonzero(counts >= min_count)
    return np.unique(np.concatenate((used, np.array([*single, *always], dtype=np.int64))))


def prune_tokenizer(tokenizer: dict[str, Any], kept: Ids) -> dict[str, Any]:
    """The contents of ``tokenizer.json`` with the kept pieces under their new ids."""
    new = {int(old): place for place, old in enumerate(kept)}
    pieces = {piece: new[number] for piece, number in tokenizer["model"]["vocab"].items() if number in new}
    padding = tokenizer.get("padding")
    added = [{**token, "id": new[token["id"]]} for token in tokenizer["added_tokens"]]
    after = json.loads(json.dumps(tokenizer["post_processor"]))
    for token in (after or {}).get("special_tokens", {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    for side in ("sep", "cls"):
        if side in (after or {}):
            after[side] = [after[side][0], new[after[side][1]]]
    return {
        **tokenizer,
        "model": {**tokenizer["model"], "vocab": pieces},
        "added_tokens": added,
        "post_processor": after,
        "padding": {**padding, "pad_id": new[padding["pad_id"]]} if padding else padding,
    }


def prune_model(original: Original, kept: Ids) -> PreTrainedModel:
    """The model with the kept rows of everything that has one for each piece."""
    config = original.config.__class__.from_dict(original.config.to_dict())
    new = {int(old): place for place, old in enumerate(kept)}
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, name, None) is not None:
            setattr(config, name, new[getattr(config, name)])
    before, config.vocab_size = config.vocab_size, len(kept)
    model = type(original.model)(config)
    wanted = model.state_dict()
    rows = torch.from_numpy(kept)
    weights = {
        name: values[rows] if values.shape != wanted[name].shape and len(values) == before else values
        for name, values in original.model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model.eval()


def run(recipe: Pruning, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    original = open_original(inputs["model"])
    written = _wordpiece(original)
    counts = open_tokens(inputs["tokens"]).counts
    # Before anything is dropped: it also holds the tokens against the model's vocabulary.
    feeds = calibration_rows.feeds(recipe.calibration, inputs["tokens"], original)
    # What was added to a vocabulary is taken before any piece is looked up, so it stays, too.
    always = [*original.tokenizer.all_special_ids, *(token["id"] for token in written["added_tokens"])]
    kept = kept_ids(written["model"]["vocab"], counts, always, recipe.min_count)
    logger.info("keeping %d of %d pieces", len(kept), original.config.vocab_size)
    pruned = prune_model(original, kept)
    with quiet_tokenizer():
        pruned.save_pretrained(out)
        original.tokenizer.save_pretrained(out)
    (out / TOKENIZER).write_text(json.dumps(prune_tokenizer(written, kept), ensure_ascii=False), encoding="utf-8")
    proof, differences = _prove(original, pruned, out, kept, feeds)
    parity.check(differences, recipe.tolerance, "the pruned model")
    scored = None
    if "data" in inputs:
        scored = task_score.compare(recipe.score, original.folder, out, original.positions, inputs["data"])
        task_score.check(scored, recipe.tolerance.score, "the pruned model")
    outputs = {name: found.as_json() for name, found in differences.items()}
    write_json(out / parity.FILE, {"against": "PyTorch fp32", **proof, "outputs": outputs, "score": scored})
    return {**_facts(original, pruned, out, kept), "parity": {**parity.summary(differences), "score": scored}}


def _wordpiece(original: Original) -> dict[str, Any]:
    path = original.folder / TOKENIZER
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"model": {"type": "none"}}
    if written["model"]["type"] != "WordPiece":
        raise errors.StageError(
            f"{original.folder} has no WordPiece vocabulary in {TOKENIZER}: of other kinds no piece can go without "
            "changing how text is cut, so keep this one whole"
        )
    return dict(written)


def _prove(
    original: Original, pruned: PreTrainedModel, out: Path, kept: Ids, feeds: Sequence[parity.Feed]
) -> tuple[dict[str, Any], dict[str, parity.Difference]]:
    """What was proven on how much, and how far the outputs of the kept pieces differ.

    Raises:
        StageError: a text is cut otherwise than before.
    """
    inside = [feed for feed in feeds if np.isin(feed["input_ids"], kept).all()]
    if not inside:
        raise errors.StageError("no row uses kept pieces only, so nothing can be proven: lower min_count")
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    alike = sum(_same_pieces(original, tokenizer, kept, feed["input_ids"][0]) for feed in inside)
    answer = parity.torch_outputs(pruned, original.outputs)

    def renumbered(feed: runtimes.Feed) -> runtimes.Outputs:
        return answer({**feed, "input_ids": np.searchsorted(kept, feed["input_ids"])})

    reference = parity.torch_outputs(original.model, original.outputs)
    differences = parity.between(_of_kept(original, reference, kept), renumbered, inside, original.outputs)
    return {"rows": len(feeds), "rows_of_kept_pieces": len(inside), "texts_cut_alike": alike}, differences


def _same_pieces(original: Original, tokenizer: Any, kept: Ids, ids: Ids) -> bool:
    """Whether the text of a row is of kept pieces, which both tokenizers cut alike then."""
    text = original.tokenizer.decode(ids, skip_special_tokens=True)
    before, after = (np.array(each(text)["input_ids"]) for each in (original.tokenizer, tokenizer))
    if not np.isin(before, kept).all():
        return False
    if not np.array_equal(np.searchsorted(kept, before), after):
        raise errors.StageError(f"the pruned tokenizer cuts {text[:60]!r} otherwise: keep this vocabulary whole")
    return True


def _of_kept(original: Original, call: runtimes.Call, kept: Ids) -> runtimes.Call:
    """Of a masked-word head what it says of kept pieces; the others have no place in the pruned model's output."""
    if "words" not in original.outputs.values():
        return call
    return lambda feed: {name: values[..., kept] for name, values in call(feed).items()}


def _facts(original: Original, pruned: PreTrainedModel, out: Path, kept: Ids) -> dict[str, Any]:
    known = {}
    if (original.folder / commit.MANIFEST).is_file():
        before = artifact.read(original.folder).facts
        known = {name: before[name] for name in ("task", "settings") if name in before}
    return {
        "format": FORMAT,
        "runtime": f"PyTorch {torch.__version__}",
        "bytes": sum(path.stat().st_size for path in out.glob("*.safetensors")),
        "parameters": pruned.num_parameters(),
        "architecture": type(pruned).__name__,
        "head": original.head,
        "lengths": None,
        "pieces": len(kept),
        "pieces_before": int(original.config.vocab_size),
        "parameters_before": original.model.num_parameters(),
        "model_name": original.folder.name,
        "source": original.identity,
        **known,
    }


STAGE = stage.Stage(
    name="deploy.prune_vocabulary",
    run=run,
    recipe=Pruning,
    inputs={**finalize.INPUTS, "tokens": stage.Role(("tokens",))},
    produces="export",
)
