"""Reads the model card in a folder."""

import re

import yaml
from huggingface_hub import ModelCard

from cluster.artifacts.commit import ArtifactError
from cluster.storage import filesystem
from cluster.storage.filesystem import Location

NO_DATA = "---\n\n---\n"
_OPENED = re.compile(r"\s*---\s*\n\w+:")
"""The beginning of metadata, which the library takes for text where no line ends it."""
_REMEDY = "correct it, or delete the file for a new card"


def read(place: Location) -> ModelCard:
    """The card at this place, or an empty one. It has no results where those of ``model-index`` cannot be read.

    Raises:
        ArtifactError: it is no text, or its metadata is not what YAML allows.
    """
    try:
        text = filesystem.read_bytes(place).decode("utf-8-sig") if filesystem.is_file(place) else ""
        card = ModelCard(text if text.lstrip().startswith("---") else NO_DATA + text, ignore_metadata_errors=True)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{place} is not UTF-8 ({error.reason} at byte {error.start}): {_REMEDY}") from None
    except yaml.MarkedYAMLError as error:
        # Its first line comes after the opening ---.
        line = error.problem_mark.line + 2 if error.problem_mark else 1
        raise ArtifactError(f"{place}: line {line}: the metadata is not YAML ({error.problem}): {_REMEDY}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ArtifactError(f"{place}: the metadata is not a list of names and values ({error}): {_REMEDY}") from None
    if _OPENED.match(card.text):
        raise ArtifactError(f"{place}: no line --- ends the metadata: add it, or delete the file for a new card")
    return card
