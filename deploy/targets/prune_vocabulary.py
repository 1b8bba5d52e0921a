"""Drop the word pieces that a domain never uses: the embedding is a third of a student's parameters.

::

    stillhouse prune-vocabulary RECIPE --model DIR --tokens DIR [--data DIR] --out DIR

``--tokens`` is the domain: rows made with the model's tokenizer, whose counts say which pieces it uses. The stage keeps
those, the special tokens, and every single character, so that any text stays readable. It removes all others from the
tokenizer, the embeddings and a masked-word head, and renumbers the rest. ``--out`` is a model folder, which
``stillhouse score`` and every export accept.

A text of kept pieces is cut into the same pieces as before, because WordPiece takes the longest piece that fits and
never took the removed ones; its outputs are identical. ``parity.json`` records the proof: texts of the domain through
both tokenizers, and rows through both models.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from transformers import PreTrainedModel

from cluster.artifacts import artifact, commit, errors, stage
from cluster.models import model_folder, model_tokenizer, runtimes
from cluster.storage.filesystem import write_json
from cluster.tokens.rows import open_tokens
from cluster.tokens.tokenizer import quiet_tokenizer
from deploy.conversion import finalize, parity
from deploy.conversion.finalize import ToleranceRecipe, logger
from deploy.conversion.source_model import SourceModel, open_source_model
from deploy.targets import calibration_rows
from deploy.targets.calibration_rows import Calibration

TOKENIZER = "tokenizer.json"
CONTINUES = "##"
FORMAT = "pruned"

Ids = npt.NDArray[np.int64]


class ExactTolerance(parity.Tolerance):
    """How far a pruned model may be from its source: pruning rounds no weight."""

    relative: PositiveFloat = 1e-5
    """Largest difference between outputs, relative to the reference's largest value."""
    agreement: float = Field(1.0, ge=0.0, le=1.0)
    """Lowest share of positions where both choose the same class or word."""
    score: NonNegativeFloat = 0.1
    """Most points that the task's score may lose, if ``--data`` is given."""


class Pruning(ToleranceRecipe):
    """A pruning of the vocabulary."""

    min_count: PositiveInt = 1
    """Keep pieces that occur at least this often in the training rows."""
    calibration: Calibration = Calibration()
    """The rows to compare the models on; with a higher ``min_count``, those of kept pieces only."""
    tolerance: ExactTolerance = ExactTolerance()


def kept_ids(pieces: Mapping[str, int], counts: Ids, always: Sequence[int], min_count: int) -> Ids:
    """Old ids of the kept pieces, ascending; a piece's new id is its index here."""
    single = [number for piece, number in pieces.items() if len(piece.removeprefix(CONTINUES)) == 1]
    used = np.flatnonzero(counts >= min_count)
    return np.unique(np.concatenate((used, np.array([*single, *always], dtype=np.int64))))


def prune_tokenizer(tokenizer: dict[str, Any], kept: Ids) -> dict[str, Any]:
    """The contents of ``tokenizer.json`` with only the kept pieces, under their new ids."""
    new = {int(old): place for place, old in enumerate(kept)}
    pieces = {piece: new[number] for piece, number in tokenizer["model"]["vocab"].items() if number in new}
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
        "truncation": None,
        "padding": None,
    }


def prune_model(source: SourceModel, kept: Ids) -> PreTrainedModel:
    """The model with only the kept rows of every weight that has a row per piece."""
    config = source.config.__class__.from_dict(source.config.to_dict())
    new = {int(old): place for place, old in enumerate(kept)}
    for name in ("pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "bos_token_id", "eos_token_id"):
        if getattr(config, name, None) is not None:
            # By the tokenizer's name for it: the number in the config may be that of another tokenizer.
            own = getattr(source.tokenizer, name, None)
            setattr(config, name, None if own is None else new[own])
    before, config.vocab_size = config.vocab_size, len(kept)
    model = type(source.model)(config)
    wanted = model.state_dict()
    rows = torch.from_numpy(kept)
    weights = {
        name: values[rows] if values.shape != wanted[name].shape and len(values) == before else values
        for name, values in source.model.state_dict().items()
    }
    model.load_state_dict(weights)
    return model.eval()


def run(recipe: Pruning, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    source = open_source_model(inputs["model"])
    written = _wordpiece(source)
    counts = open_tokens(inputs["tokens"]).counts
    # First, because it checks the vocabulary of the tokens against the model's.
    feeds = calibration_rows.feeds(recipe.calibration, inputs["tokens"], source)
    # The tokenizer looks for added tokens before any piece, so they stay too.
    always = [*source.tokenizer.all_special_ids, *(token["id"] for token in written["added_tokens"])]
    kept = kept_ids(written["model"]["vocab"], counts, always, recipe.min_count)
    logger.info("keeping %d of %d pieces", len(kept), source.config.vocab_size)
    pruned = prune_model(source, kept)
    with quiet_tokenizer():
        pruned.save_pretrained(out)
    model_tokenizer.save_beside(source.tokenizer, pruned.config, out)
    (out / TOKENIZER).write_text(json.dumps(prune_tokenizer(written, kept), ensure_ascii=False), encoding="utf-8")
    proof, differences = _prove(source, pruned, out, kept, feeds)
    parity.check(differences, recipe.tolerance, "the pruned model")
    score = finalize.scored(source, recipe, "the pruned model", source.positions, inputs, out)
    outputs = parity.as_json(differences)
    write_json(out / parity.FILE, {"against": "PyTorch fp32", **proof, "outputs": outputs, "score": score})
    return {**_facts(source, pruned, out, kept), "parity": {**parity.summary(differences), "score": score}}


def _wordpiece(source: SourceModel) -> dict[str, Any]:
    path = source.folder / TOKENIZER
    written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"model": {"type": "none"}}
    if written["model"]["type"] != "WordPiece":
        raise errors.StageError(
            f"{source.folder} has no WordPiece vocabulary in {TOKENIZER}: removing pieces of another kind changes how "
            "text is cut, so keep this one whole"
        )
    return dict(written)


def _prove(
    source: SourceModel, pruned: PreTrainedModel, out: Path, kept: Ids, feeds: Sequence[parity.Feed]
) -> tuple[dict[str, Any], dict[str, parity.Difference]]:
    """Numbers of compared rows and texts, and the differences of the outputs for kept pieces.

    Raises:
        StageError: the pruned tokenizer cuts a text differently.
    """
    inside = [feed for feed in feeds if np.isin(feed["input_ids"], kept).all()]
    if not inside:
        raise errors.StageError("no row has only kept pieces, so the models cannot be compared: lower min_count")
    tokenizer = model_tokenizer.open_tokenizer(out, pruned.config)
    alike = sum(_same_pieces(source, tokenizer, kept, feed["input_ids"][0]) for feed in inside)
    answer = parity.torch_outputs(pruned, source.outputs)

    def renumbered(feed: runtimes.Feed) -> runtimes.Outputs:
        return answer({**feed, "input_ids": np.searchsorted(kept, feed["input_ids"])})

    reference = parity.torch_outputs(source.model, source.outputs)
    differences = parity.between(_kept_outputs(source, reference, kept), renumbered, inside, source.outputs)
    return {"rows": len(feeds), "rows_of_kept_pieces": len(inside), "texts_cut_alike": alike}, differences


def _same_pieces(source: SourceModel, tokenizer: Any, kept: Ids, ids: Ids) -> bool:
    """Whether the text of a row has only kept pieces; then both tokenizers must cut it alike."""
    text = source.tokenizer.decode(ids, skip_special_tokens=True)
    before, after = (np.array(each(text)["input_ids"]) for each in (source.tokenizer, tokenizer))
    if not np.isin(before, kept).all():
        return False
    if not np.array_equal(np.searchsorted(kept, before), after):
        raise errors.StageError(f"the pruned tokenizer cuts {text[:60]!r} differently: keep this vocabulary whole")
    return True


def _kept_outputs(source: SourceModel, call: runtimes.Call, kept: Ids) -> runtimes.Call:
    """A model whose masked-word logits are reduced to the kept pieces, as the pruned model has them."""
    if "words" not in source.outputs.values():
        return call
    return lambda feed: {name: values[..., kept] for name, values in call(feed).items()}


def _facts(source: SourceModel, pruned: PreTrainedModel, out: Path, kept: Ids) -> dict[str, Any]:
    known = {}
    if (source.folder / commit.MANIFEST).is_file():
        before = artifact.read(source.folder).facts
        known = {name: before[name] for name in ("task", "texts", "settings") if name in before}
    return {
        "format": FORMAT,
        "runtime": f"PyTorch {torch.__version__}",
        "bytes": model_folder.weight_bytes(out),
        "parameters": pruned.num_parameters(),
        "architecture": type(pruned).__name__,
        "head": source.head,
        "lengths": None,
        "pieces": len(kept),
        "pieces_before": int(source.config.vocab_size),
        "parameters_before": source.model.num_parameters(),
        "model_name": source.folder.name,
        "source": source.identity,
        **known,
    }


STAGE = stage.Stage(
    name="deploy.prune_vocabulary",
    run=run,
    recipe=Pruning,
    inputs={**finalize.INPUTS, "tokens": stage.Role(("tokens",))},
    produces="export",
)
