"""What differs between a training run and the training of DistilBERT, as data for model cards and reports.

The paper is Sanh et al. 2019 (arXiv 1910.01108). Where it says nothing, the values are those of the authors' code
(``transformers-research-projects/distillation``): its README's command, and the dropout of its configuration
``training_configs/distilbert-base-uncased.json``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.telemetry.formatting import plain

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "loss": {
        "soft": 5.0,
        "masked": 2.0,
        "cosine": 1.0,
        "hidden": 0.0,
        "relation": 0.0,
        "temperature": 2.0,
        "soft_positions": "all",
        "inputs": "masked",
    },
    "masking": {"share": 0.15, "smoothing": 0.7, "mask": 0.8, "random": 0.1},
    "optimizer": {
        "learning_rate": 5e-4,
        "beta1": 0.9,
        "beta2": 0.98,
        "epsilon": 1e-6,
        "weight_decay": 0.0,
        "clip": 5.0,
        "warmup": 0.05,
    },
    "student": {"start": "teacher", "dropout": 0.1},
}
"""Values of the published recipe, by their keys in ours."""
ROWS_PER_STEP = 4096
SHAPE = ("DistilBertForMaskedLM", 6, 768)
"""Architecture, layers and hidden size of the published student."""


@dataclass(frozen=True)
class Difference:
    """One thing that the paper or its code does otherwise."""

    what: str
    paper: str
    here: str


OURS = (
    Difference(
        "text",
        "English Wikipedia and the Toronto Book Corpus, about 4 billion word pieces",
        "the text of these token rows; the Toronto Book Corpus cannot be redistributed",
    ),
    Difference("rows", "sequences of up to 512 tokens, padded to the longest of a batch", "full rows, without padding"),
    Difference("masked positions", "drawn from a whole batch", "drawn from every row, the same number in each"),
    Difference("order of the rows", "the same in every epoch", "another in every epoch"),
)
"""What differs in every run."""
TOKEN_TYPES = Difference("token types", "BERT's token-type row 0 is left out", "it is added to the position embeddings")
"""What differs in every student of a BERT."""


def differences(recipe: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, str]]:
    """The differences of a student: ``recipe`` is that of its run, ``facts`` are of its manifest."""
    found = [*_values(recipe), *_size(facts), *OURS]
    if facts["architecture"] == SHAPE[0]:
        found.append(TOKEN_TYPES)
    trained = f"{facts['steps']:,} steps, {facts['tokens']:,} tokens"
    length = Difference("length", "not published; three epochs are the default of the code", trained)
    return [asdict(difference) for difference in (*found, length)]


def _values(recipe: Mapping[str, Any]) -> Iterator[Difference]:
    for table, published in PUBLISHED.items():
        for key, value in published.items():
            if (here := recipe[table][key]) != value:
                yield Difference(f"{table}.{key}", plain(value), plain(here))
    for number, phase in enumerate(recipe["phases"], 1):
        for key, value in PUBLISHED["loss"].items() if phase["loss"] else ():
            if (here := phase["loss"][key]) not in (value, recipe["loss"][key]):
                yield Difference(f"loss.{key} of phase {number}", plain(value), plain(here))
    layers = recipe["student"]["layers"]
    if layers != "uniform":
        yield Difference("student.layers", "half of the teacher's, evenly spread", plain(layers))
    sizes = {phase["rows_per_step"] or recipe["rows_per_step"] for phase in recipe["phases"]}
    if (sizes := sizes or {recipe["rows_per_step"]}) != {ROWS_PER_STEP}:
        here = " and ".join(f"{size:,}" for size in sorted(sizes))
        yield Difference("rows_per_step", f"up to {ROWS_PER_STEP:,}", here)


def _size(facts: Mapping[str, Any]) -> Iterator[Difference]:
    here = tuple(facts[key] for key in ("architecture", "layers", "hidden"))
    if here != SHAPE:
        paper, ours = ("{}, {} layers of {}".format(*shape) for shape in (SHAPE, here))
        yield Difference("student", paper, ours)
