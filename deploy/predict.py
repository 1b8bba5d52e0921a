"""Predict with a model: classes, a score, answers from a passage, or the words of a mask.

::

    stillhouse predict EXPORT "text" … [--second TEXT] [--passage TEXT | --passage-file FILE] [--top 5] [--json]

Takes any export that runs on this machine, and any model folder (in PyTorch). The head decides about the input:

- classification and regression: a text, and the second text of a pair in ``--second``;
- question answering: a question, and the passage that holds the answer;
- masked words: a text with [MASK] in it.

From Python::

    model = deploy.predict.load(Path("exports/student/int8"))
    model("a text", "its partner")[0].text
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from cluster.artifacts import artifact, cache, commit
from cluster.artifacts.errors import StageError, errors_for_people
from cluster.models import export_spec, runtimes, span_decoding
from cluster.models.export_spec import Exported
from cluster.storage import filesystem
from deploy.conversion import finalize, parity, source_model

MASK = "[MASK]"
"""Stands for the mask token of any tokenizer, such as RoBERTa's ``<mask>``."""


@dataclass(frozen=True)
class Prediction:
    """One prediction of a model."""

    text: str
    """A label, a number, an answer, or a word."""
    probability: float | None
    """None for a score."""
    begin: int | None = None
    """For an answer: first and end character in the passage."""
    end: int | None = None
    mask: int | None = None
    """For a word: the number of the mask that it fills, from 1."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to predict."""

    described: Exported
    tokenizer: PreTrainedTokenizerBase
    labels: Mapping[int, str]
    call: runtimes.Call

    def __call__(self, text: str, second: str | None = None, top: int = 5) -> list[Prediction]:
        """Predictions, the likeliest first; ``second`` is the second text of a pair, or the passage.

        Raises:
            StageError: a question without a passage; for masked words, a second text or no mask.
        """
        if self.described.head == "question-answering":
            if second is None:
                raise StageError("this model answers questions about a passage: give one with --passage")
            found = span_decoding.best_answers(self.call, self.described, self.tokenizer, text, second, top)
            return [Prediction(span.text, share, span.begin, span.end) for span, share in found]
        if self.described.head == "masked-words":
            return self._words(text, second, top)
        logits = self.call(self._feed(text, second))["logits"][0]
        if self.described.head == "regression":
            return [Prediction(f"{logits[0]:.3f}", None)]
        return [Prediction(self.labels[place], share) for place, share in _likeliest(logits, top)]

    def _words(self, text: str, second: str | None, top: int) -> list[Prediction]:
        if second is not None:
            raise StageError("this model fills a mask in one text: leave the second one out")
        text = text.replace(MASK, str(self.tokenizer.mask_token))
        feed = self._feed(text, None)
        masked = np.flatnonzero(feed["input_ids"][0] == self.tokenizer.mask_token_id)
        if len(masked) == 0:
            if str(self.tokenizer.mask_token) in text:
                read = self.described.positions
                raise StageError(f"{MASK} comes after the {read} tokens that the model reads: shorten the text")
            raise StageError(f"nothing to fill: write {MASK} in the text for the missing word")
        logits = self.call(feed)["logits"][0]
        found = [(number, *each) for number, place in enumerate(masked, 1) for each in _likeliest(logits[place], top)]
        return [Prediction(self.tokenizer.decode([word]).strip(), share, mask=mask) for mask, word, share in found]

    def _feed(self, text: str, second: str | None) -> parity.Feed:
        """Inputs ``[1, length]``, cut to the model's positions."""
        encoded = self.tokenizer(
            text,
            second,
            truncation=True,
            max_length=self.described.positions,
            return_token_type_ids="token_type_ids" in self.described.inputs,
        )
        return {name: np.array([encoded[name]], dtype=np.int64) for name in self.described.inputs}


def load(folder: Path, threads: int = 1) -> LoadedModel:
    """Open an export, or a model folder.

    Raises:
        ArtifactError: it was changed after it was made.
        StageError: neither, it does not run on this machine, or its runtime is not installed.
    """
    if (folder / commit.MANIFEST).is_file():
        # The runtimes report a cut file unclearly, and predict from a changed one.
        artifact.verify(folder)
    if export_spec.is_export(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = source_model.tokenizer_of(folder, config)
        return LoadedModel(export_spec.read(folder), tokenizer, config.id2label, runtimes.open_export(folder, threads))
    # PyTorch sets this for the whole process.
    torch.set_num_threads(threads)
    opened = source_model.open_source_model(folder)
    described = finalize.describe(opened, "pytorch", "pytorch", "model.safetensors")
    return LoadedModel(
        described, opened.tokenizer, opened.config.id2label, parity.torch_outputs(opened.model, opened.outputs)
    )


def _likeliest(logits: npt.NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """Places and probabilities of the largest logits ``[choices]``."""
    weights = np.exp(logits - logits.max(), dtype=np.float64)
    best = np.argsort(-logits, kind="stable")[:top]
    return [(int(place), float(weights[place] / weights.sum())) for place in best]


def main(arguments: Sequence[str] | None = None, prog: str = "python -m deploy.predict") -> None:
    """The command line."""
    options = _parser(prog).parse_args(arguments)
    with errors_for_people():
        second = options.second
        if options.passage_file is not None:
            second = _text_of(Path(options.passage_file))
        model = load(cache.fetch(filesystem.location(options.export)), options.threads)
        for text in options.texts:
            _print(text, model(text, second, options.top), options.json)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("export", metavar="EXPORT", help="an export, or a model folder")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="text, question, or text with [MASK]")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--second", metavar="TEXT", help="the second text of a pair")
    other.add_argument("--passage", metavar="TEXT", dest="second", help="the passage that answers a question")
    other.add_argument("--passage-file", metavar="FILE", help="the same, from a file")
    parser.add_argument("--top", type=_positive, default=5, help="most predictions to show (5)")
    parser.add_argument("--threads", type=_positive, default=1, help="threads of the processor (1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number of at least 1")
    return int(text)


def _print(text: str, found: Sequence[Prediction], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"input": text, "predictions": [asdict(each) for each in found]}, ensure_ascii=False))
        return
    for each in found or [Prediction("(nothing found)", None)]:
        share = "" if each.probability is None else f"  {each.probability:6.1%}"
        which = f"{MASK} {each.mask}: " if each.mask is not None and found[-1].mask != 1 else ""
        print(f"{which}{each.text}{share}")


if __name__ == "__main__":
    main()
