"""Parts of a model card that several packages write: its sections, how to use the model, and what the Hub reads.

Folders are shown as seen from the working folder, where that is possible: cards are published, and an absolute path
names machines and people.
"""

import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult

from cluster.models.export_spec import Head

PAPER = "https://arxiv.org/abs/1910.01108"
"""DistilBERT. The Hub makes a tag of such links."""
USE, TEXT, RESULTS = "Use", "Training text", "Results"
"""Sections that a command replaces: their text between two headings belongs to it."""
MASK = "[MASK]"
"""The masked word in examples, whatever the model's own mask token is."""
EXAMPLES = (f"The capital of France is {MASK}.", f"She opened the {MASK} and read the first page.")
"""Example sentences where nobody states any, for models of English."""
LIBRARIES = ("stillhouse", "torch", "transformers", "tokenizers")

CITATION = """```bibtex
@article{sanh2019distilbert,
  title = {DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter},
  author = {Sanh, Victor and Debut, Lysandre and Chaumond, Julien and Wolf, Thomas},
  journal = {arXiv preprint arXiv:1910.01108},
  year = {2019}
}
```"""

_FILL_MASK = """from transformers import pipeline

fill_mask = pipeline("fill-mask", model={model})
for word in fill_mask({text!r}.replace("[MASK]", fill_mask.tokenizer.mask_token)):
    print(f"{{word['score']:.3f}}  {{word['sequence']}}")"""
_CLASSIFY = """from transformers import pipeline

classify = pipeline("text-classification", model={model}, top_k=3)
print(classify({text}))"""
_ANSWER = """import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({model})
model = AutoModelForQuestionAnswering.from_pretrained({model})
inputs = tokenizer("Who wrote it?", "The letter was written by Ada in 1843.", return_tensors="pt")
with torch.no_grad():
    found = model(**inputs)
first, last = found.start_logits.argmax(), found.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))"""


def use(model: str, head: Head | None, texts: int = 1, example: str = EXAMPLES[0]) -> str:
    """The section "Use": Python that runs; ``model`` is a name on the Hub or a folder."""
    one = {"text": "A text.", "text_pair": "Another."} if texts == 2 else "A text."
    quoted = json.dumps(model, ensure_ascii=False)  # Python's double quotes, too
    code = {
        "classification": _CLASSIFY.format(model=quoted, text=repr(one)),
        "regression": _CLASSIFY.format(model=quoted, text=repr(one)),
        "question-answering": _ANSWER.format(model=quoted),
    }.get(head or "", _FILL_MASK.format(model=quoted, text=example))
    return f"```python\n{code}\n```"


def shown(place: PurePath | Any) -> str:
    """A folder as seen from the working folder; the whole path or URL where it is not below that."""
    here = Path.cwd()
    if isinstance(place, Path) and place.absolute().is_relative_to(here):
        return place.absolute().relative_to(here).as_posix()
    return str(place)


def with_section(body: str, title: str, text: str, before: str | None = None) -> str:
    """``body`` with the section ``## title``: replaces an earlier one, else before the section ``before`` or last."""
    section = f"## {title}\n\n{text}\n"
    # A line of # in a code block is no heading of the card: only "## " and "# " outside of blocks end a section.
    earlier = _section(title)
    if earlier.search(body):
        return earlier.sub(lambda _: f"{section}\n", body, count=1).rstrip()
    if before is not None and (place := _section(before).search(body)):
        return f"{body[: place.start()]}{section}\n{body[place.start() :]}".rstrip()
    return f"{body.rstrip()}\n\n{section}".rstrip()


def _section(title: str) -> re.Pattern[str]:
    return re.compile(rf"^## {re.escape(title)}[ \t]*\n.*?(?=^## |^# |\Z)", flags=re.MULTILINE | re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """Text that a line of a table can hold."""
    return " ".join(text.split()).replace("|", "&#124;")


def versions(*more: str) -> str:
    """``Python 3.11.2, torch 2.13.0 …``: the libraries of this process."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in (*LIBRARIES, *more)]
    return ", ".join([f"Python {platform.python_version()}", *found])


def masked_word_results(validation: Mapping[str, Any]) -> list[EvalResult]:
    """The validation of a masked language model for the Hub's ``model-index``: accuracy as a share, loss in nats."""
    measured = (
        ("accuracy", "accuracy", "accuracy on hidden words"),
        ("hidden_loss", "loss", "loss on hidden words, nats"),
    )
    return [
        EvalResult(
            task_type="fill-mask",
            dataset_type="held-out-rows",
            dataset_name="Held-out rows of its training text",
            metric_type=kind,
            metric_name=name,
            metric_value=round(float(validation[key]), 4),
        )
        for key, kind, name in measured
        if validation.get(key) is not None
    ]
