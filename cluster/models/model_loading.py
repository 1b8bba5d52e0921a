"""Loads the model of a Hugging Face folder, and refuses one whose encoder is not the whole encoder of its files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cluster.artifacts.errors import StageError, logger
from cluster.models import model_folder
from cluster.models.model_check import misfit
from cluster.telemetry.error_text import one_line
from cluster.telemetry.formatting import plural
from cluster.tokens.tokenizer import quiet_tokenizer

_BUFFERS = ("position_ids", "token_type_ids")
_TASK_HEADS = ("classifier.", "pre_classifier.", "qa_outputs.")


def load(kind: Any, source: Path | str, **changes: Any) -> tuple[Any, frozenset[str]]:
    """The model of a folder or hub id in fp32, and the names of the weights of its head that are drawn at random.

    ``kind`` is a class of transformers. Reads only safetensors, never pickle. :func:`~cluster.models.model_check.check`
    the folder first.

    Raises:
        StageError: it cannot be loaded, or its encoder lacks weights, leaves some over, or has them in another size.
    """
    try:
        with quiet_tokenizer():
            model, report = kind.from_pretrained(
                source,
                # Also from files in half precision, as teachers usually have.
                dtype=torch.float32,
                local_files_only=Path(source).is_dir(),
                use_safetensors=True,
                # The head of another task is replaced; other mismatches are refused below.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **changes,
            )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StageError(f"no model can be loaded from {source}: {one_line(error)}") from None
    unlike = {key for key, *_ in report["mismatched_keys"]}
    if wrong := _of_encoder(model, unlike):
        raise misfit(source, f"config.json and the weights differ in the size of {_and_more(wrong)}")
    if lost := _of_encoder(model, report["missing_keys"]):
        raise misfit(source, f"the weights lack {_and_more(lost)} of the encoder in config.json")
    if left := _of_encoder(model, report["unexpected_keys"]):
        raise misfit(source, f"config.json leaves out {_and_more(left)} of the encoder in the weights")
    _check_tied(model, source)
    if dropped := sorted(key for key in unlike | {*report["unexpected_keys"]} if key.startswith(_TASK_HEADS)):
        logger.info("%s: leaving out the head of another task, %s", source, dropped[0].partition(".")[0])
    return model, frozenset(unlike | {*report["missing_keys"]})


def load_whole(kind: Any, folder: Path, **changes: Any) -> Any:
    """:func:`load` in evaluation mode, with the head in the files.

    Raises:
        StageError: as :func:`load`, or the head lacks weights or has them in another size.
    """
    model, absent = load(kind, folder, **changes)
    if unlike := sorted(absent & model_folder.shapes(folder).keys()):
        said = plural(model.config.num_labels, "label")
        raise misfit(folder, f"config.json, with {said}, and the weights differ in the size of {_and_more(unlike)}")
    if absent:
        raise StageError(
            f"{folder}: the weights lack {_and_more(sorted(absent))} of the head: name the folder that holds the "
            "trained head"
        )
    return model.eval()


def _of_encoder(model: Any, names: Iterable[str]) -> list[str]:
    """The names of the encoder's weights, with or without its prefix; poolers count as heads."""
    encoder = re.compile(rf"(?:^|\.)(?:{model.base_model_prefix}|embeddings|encoder|transformer)\.")
    pooler = re.compile(r"(?:^|\.)pooler\.")
    return sorted(
        name for name in names if encoder.search(name) and not pooler.search(name) and not name.endswith(_BUFFERS)
    )


def _and_more(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _check_tied(model: Any, source: Path | str) -> None:
    """Refuse output embeddings of their own where the configuration shares them: versions of transformers differ."""
    last = model.get_output_embeddings()
    if last is None or not getattr(model.config, "tie_word_embeddings", True):
        return
    if last.weight is not model.get_input_embeddings().weight:
        raise misfit(
            source, "config.json shares output and word embeddings (tie_word_embeddings), the weights have two"
        )
