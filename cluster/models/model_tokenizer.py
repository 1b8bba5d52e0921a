"""The tokenizer of a model folder: opened and checked against its model, or saved beside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.artifacts.errors import StageError
from cluster.models import model_folder
from cluster.tokens.tokenizer import load_tokenizer, save_tokenizer, vocabulary_size

if TYPE_CHECKING:
    from transformers import PretrainedConfig

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
TYPES = "token_type_ids"


def open_tokenizer(folder: Path, config: "PretrainedConfig") -> Any:
    """The tokenizer of a model folder, which fits a model of this configuration and makes what that takes.

    Raises:
        StageError: the folder has none, or it does not fit.
    """
    # Without files transformers silently makes an empty tokenizer.
    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise StageError(f"{folder} has no tokenizer: save the model's tokenizer.json there")
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, config, folder)
    # Its files may name others: generic tokenizers of transformers 4 make token types for any model.
    tokenizer.model_input_names = list(input_names(tokenizer, config))
    return tokenizer


def check_tokenizer(tokenizer: Any, config: "PretrainedConfig", source: Path | str) -> None:
    """
    Raises:
        StageError: the tokenizer of ``source`` has more ids than the model, or another padding id where the model
            counts its positions from that.
    """
    remedy = "save the tokenizer that the model was trained with"
    if (ids := vocabulary_size(tokenizer)) > config.vocab_size:
        raise StageError(f"{source}: its tokenizer has {ids} entries, its model {config.vocab_size}: {remedy}")
    counts = model_folder.FAMILIES.get(config.model_type, False)
    if counts and tokenizer.pad_token_id != config.pad_token_id:
        raise StageError(
            f"{source}: its tokenizer pads with {tokenizer.pad_token_id}, and its model counts positions from padding "
            f"id {config.pad_token_id}: {remedy}, or correct pad_token_id in {model_folder.CONFIG}"
        )


def input_names(tokenizer: Any, config: "PretrainedConfig") -> tuple[str, ...]:
    """What the tokenizer makes and the model takes, in the order of the model's arguments."""
    types = (TYPES,) if model_folder.has_token_types(config) and TYPES in tokenizer.model_input_names else ()
    return ("input_ids", "attention_mask", *types)


def save_beside(tokenizer: Any, config: "PretrainedConfig", folder: Path) -> None:
    """Save the tokenizer of a model of this configuration: it makes what the model takes, as long as it reads."""
    save_tokenizer(tokenizer, folder, input_names(tokenizer, config), model_folder.positions(config))
