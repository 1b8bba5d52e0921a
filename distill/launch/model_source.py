"""Whether the source of a model can be had: a folder, a teacher that ships, or a model of the Hugging Face Hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is that of its HTTP client
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from cluster.artifacts import shipped
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe_errors import nearest
from cluster.telemetry.error_text import first_line

_SECONDS = 10.0


def check(name: str) -> None:
    """Find out with one request what a stage would find out after minutes of attempts.

    Raises:
        StageError: no folder, none that ships, and the Hub does not have it or does not answer.
    """
    if Path(shipped.place(name)).exists():
        return
    ships = shipped.models()
    near = nearest(name, ships)
    instead = f"did you mean {near}?" if near else f"name the folder of a BERT, or {', '.join(ships)}, which ships"
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
            return
        huggingface_hub.HfApi().model_info(name, timeout=_SECONDS)
    except HFValidationError:
        reason = "it is no name of the Hugging Face Hub"
    except RepositoryNotFoundError:
        reason = "the Hugging Face Hub has no such model, or not for you without hf auth login"
    except HfHubHTTPError:
        return  # The Hub answers, and what it says of the files counts.
    except (HTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = f"the Hugging Face Hub cannot be reached ({first_line(error)})"
    else:
        return
    raise StageError(f"there is no folder {name} here, and {reason}: {instead}")
