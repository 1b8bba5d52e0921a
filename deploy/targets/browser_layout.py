"""Copy an ONNX export into the layout that transformers.js and ONNX Runtime Web expect.

::

    stillhouse browser-layout RECIPE --export DIR --out DIR

The model file stays the same; transformers.js expects it in a folder, and a complete description of its tokenizer::

    onnx/model_quantized.onnx     or onnx/model.onnx of an fp32 export
    config.json  tokenizer.json  tokenizer_config.json  special_tokens_map.json
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.artifacts import stage
from cluster.artifacts.recipe import Recipe
from cluster.models import export_spec
from cluster.models.export_spec import ANY, Exported
from cluster.models.model_tokenizer import TYPES
from cluster.storage.filesystem import write_json
from cluster.tokens.tokenizer import TOKENIZER_CONFIG, load_tokenizer, save_tokenizer
from deploy.conversion import finalize, parity

FOLDER = "onnx"
NAMES = {"onnx": "model.onnx", "int8": "model_quantized.onnx", "int8-static": "model_quantized.onnx"}
"""Format to the file name that transformers.js expects for it: dtype ``fp32`` or ``q8``."""


class BrowserLayout(Recipe):
    """A layout for browsers; it has no settings."""


def run(recipe: BrowserLayout, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    source = finalize.read_onnx_export(inputs, NAMES)
    name = f"{FOLDER}/{NAMES[source.facts['format']]}"
    (out / FOLDER).mkdir(exist_ok=True)
    shutil.copyfile(source.path / finalize.ONNX, out / name)
    for file in ("config.json", parity.FILE):
        shutil.copyfile(source.path / file, out / file)
    described = replace(export_spec.read(source.path), files={ANY: name})
    _save_tokenizer(source.path, described, out)
    described.write(out)
    return {**source.facts, "bytes": described.bytes(out), "layout": "transformers.js"}


def _save_tokenizer(folder: Path, described: Exported, out: Path) -> None:
    """Name every special token and the tokenizer's class: transformers.js has no defaults for them."""
    tokenizer = load_tokenizer(folder)
    save_tokenizer(tokenizer, out, described.inputs, described.positions)
    config = json.loads((out / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    # BertTokenizer makes token types, the other nothing but what is in tokenizer.json.
    kind = "BertTokenizer" if TYPES in described.inputs else "PreTrainedTokenizerFast"
    config |= specials | {"tokenizer_class": kind}
    write_json(out / TOKENIZER_CONFIG, config)
    write_json(out / "special_tokens_map.json", specials)


STAGE = stage.Stage(
    name="deploy.browser_layout",
    run=run,
    recipe=BrowserLayout,
    inputs={"export": stage.Role(("export",))},
    produces="export",
)
