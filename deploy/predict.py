"""Predict with a model: classes, a score, answers from a passage, or the words of a mask.

::

    stillhouse predict EXPORT "text" … [--second TEXT] [--passage TEXT | --passage-file FILE] [--top 5] [--json]

Takes any export that runs on this machine, and any model folder (in PyTorch). The head decides about the input:

- classification and regression: a text, and the second text of a pair in ``--second``;
- question answering: a question, and the passage that holds the answer. A model of SQuAD 2.0 may find that there is no
  answer: its logit exceeds that of the best span;
- masked words: a text with [MASK] in it.

From Python::

    model = deploy.predict.load(Path("exports/student/int8"))
    model("a text", "its partner")[0].text
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cluster.artifacts import cache
from cluster.artifacts.errors import StageError, errors_for_people
from cluster.artifacts.help_format import HelpFormatter
from cluster.models import export_spec, model_check, model_folder, model_tokenizer, runtimes, span_decoding
from cluster.models.export_spec import Exported
from cluster.models.predictions import NoAnswer, Prediction, Predictions, check_text
from cluster.storage import filesystem
from deploy.conversion import finalize, parity, source_model

MASK = "[MASK]"
"""Stands for the mask token of any tokenizer, such as RoBERTa's ``<mask>``."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to predict."""

    described: Exported
    tokenizer: PreTrainedTokenizerBase
    labels: Sequence[str]
    """Names in the order of the outputs."""
    call: runtimes.Call
    multi_label: bool = False
    """Whether several labels can be true at once, each with a probability of its own."""

    def __call__(self, text: str, second: str | None = None, top: int = 5) -> Predictions:
        """Predictions, the likeliest first; ``second`` is the second text of a pair, or the passage.

        Raises:
            StageError: an input that the model cannot use: no text, one text instead of two, a question without a
                passage, no mask.
        """
        if self.described.head == "question-answering":
            return self._answers(text, second, top)
        if self.described.head == "masked-words":
            return self._words(text, second, top)
        self._check_pair(second)
        feed, tokens = self._feed(text, second)
        logits = self.call(feed)["logits"][0]
        if self.described.head == "regression":
            found = [Prediction(f"{logits[0]:.3f}", None)]
        else:
            likeliest = _most_probable if self.multi_label else _likeliest
            found = [Prediction(self.labels[place], share) for place, share in likeliest(logits, top)]
        return Predictions(tuple(found), tokens, feed["input_ids"].shape[1])

    def _answers(self, question: str, passage: str | None, top: int) -> Predictions:
        if passage is None:
            raise StageError("this model answers questions about a passage: give one with --passage")
        tokens = self._tokens(question, "question") + self._tokens(passage, "passage", empty=True)
        found = span_decoding.answer(self.call, self.described, self.tokenizer, question, passage)
        nullable = self.described.no_answer
        best = [
            Prediction(span.text, share, span.begin, span.end) if span.text else Prediction("", share)
            for span, share in found.ranked(nullable)
        ]
        margin = found.null_difference if found.spans else None
        no_answer = NoAnswer(found.is_null, margin, span_decoding.NULL_THRESHOLD) if nullable else None
        return Predictions(tuple(best[:top]), tokens, tokens, no_answer)

    def _words(self, text: str, second: str | None, top: int) -> Predictions:
        mask = self.tokenizer.mask_token
        if mask is None:
            raise StageError("the tokenizer of this model has no mask token, so there is nothing to fill")
        if second is not None:
            raise StageError("this model fills a mask in one text: leave the second one out")
        feed, tokens = self._feed(text.replace(MASK, str(mask)) if isinstance(text, str) else text, None)
        masked = np.flatnonzero(feed["input_ids"][0] == self.tokenizer.mask_token_id)
        if len(masked) == 0:
            if MASK in text or str(mask) in text:
                read = self.described.positions
                raise StageError(f"{MASK} comes after the {read} tokens that the model reads: shorten the text")
            raise StageError(f"nothing to fill: write {MASK} in the text for the missing word")
        logits = self.call(feed)["logits"][0]
        found = [(number, *each) for number, place in enumerate(masked, 1) for each in _likeliest(logits[place], top)]
        words = [Prediction(self.tokenizer.decode([word]).strip(), share, mask=place) for place, word, share in found]
        return Predictions(tuple(words), tokens, feed["input_ids"].shape[1])

    def _check_pair(self, second: str | None) -> None:
        if self.described.texts == 1 and second is not None:
            raise StageError("this model was fine-tuned on single texts: leave the second one out")
        if self.described.texts == 2 and second is None:
            raise StageError("this model was fine-tuned on pairs of texts: give the second one with --second")

    def _tokens(self, text: str, name: str, empty: bool = False) -> int:
        """Tokens of a text without special tokens.

        Raises:
            StageError: it is no text, or ``empty`` is false and it has no words.
        """
        check_text(text, name)
        count = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not (count or empty):
            raise StageError(f"the {name} has no words: write some")
        return count

    def _feed(self, text: str, second: str | None) -> tuple[parity.Feed, int]:
        """Inputs ``[1, length]``, cut to the model's positions, and the tokens before the cut."""
        tokens = self._tokens(text, "text") + (0 if second is None else self._tokens(second, "second text"))
        encoded = self.tokenizer(
            text,
            second,
            truncation=True,
            max_length=self.described.positions,
            return_token_type_ids="token_type_ids" in self.described.inputs,
        )
        feed = {name: np.array([encoded[name]], dtype=np.int64) for name in self.described.inputs}
        return feed, tokens + self.tokenizer.num_special_tokens_to_add(pair=second is not None)


def load(folder: Path, threads: int = 1) -> LoadedModel:
    """Open an export, or a model folder.

    Raises:
        ArtifactError: it was changed after it was made.
        StageError: neither, it does not run on this machine, or its runtime is not installed.
    """
    # The runtimes report a cut file unclearly, and predict from a changed one.
    model_check.check(folder)
    if export_spec.is_export(folder):
        config = model_folder.configuration(folder)
        tokenizer = model_tokenizer.open_tokenizer(folder, config)
        described, call = export_spec.read(folder), runtimes.open_export(folder, threads)
        return LoadedModel(described, tokenizer, model_folder.labels(config), call, _is_multi_label(config))
    # PyTorch sets this for the whole process.
    torch.set_num_threads(threads)
    opened = source_model.open_source_model(folder)
    described = finalize.describe(opened, "pytorch", "pytorch", "model.safetensors")
    call = parity.torch_outputs(opened.model, opened.outputs)
    labels = model_folder.labels(opened.config)
    return LoadedModel(described, opened.tokenizer, labels, call, _is_multi_label(opened.config))


def _is_multi_label(config: PretrainedConfig) -> bool:
    return getattr(config, "problem_type", None) == "multi_label_classification"


def _likeliest(logits: npt.NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """Places and probabilities of the largest logits ``[choices]``."""
    weights = np.exp(logits - logits.max(), dtype=np.float64)
    best = np.argsort(-logits, kind="stable")[:top]
    return [(int(place), float(weights[place] / weights.sum())) for place in best]


def _most_probable(logits: npt.NDArray[np.float32], top: int) -> list[tuple[int, float]]:
    """Places of the largest logits ``[labels]`` and the probability of each label by itself."""
    best = np.argsort(-logits, kind="stable")[:top]
    return [(int(place), float(1.0 / (1.0 + np.exp(-logits[place], dtype=np.float64)))) for place in best]


def main(arguments: Sequence[str] | None = None, prog: str = "python -m deploy.predict") -> None:
    """The command line."""
    options = _parser(prog).parse_args(arguments)
    with errors_for_people():
        passage = options.passage if options.passage_file is None else _text_of(Path(options.passage_file))
        model = load(cache.fetch(filesystem.location(options.export)), options.threads)
        if passage is not None and model.described.head != "question-answering":
            raise StageError(
                "this model reads no passage: --passage is for question answering; for pairs write --second"
            )
        second = options.second if passage is None else passage
        for text in options.texts:
            _print(text, model(text, second, options.top), options.json)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise StageError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first") from None


def _parser(prog: str) -> argparse.ArgumentParser:
    epilog = f'example: {prog} out/exports/student/int8 "The capital of [MASK] is Paris."'
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    parser.add_argument("export", metavar="EXPORT", help="export, or folder of a model; example: out/students/student")
    text = 'text, question, or text with [MASK]; several are answered one by one; example: "a [MASK] day"'
    parser.add_argument("texts", metavar="TEXT", nargs="+", help=text)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--second", metavar="TEXT", help="second text of a pair (default: none); example: its partner")
    passage = "passage that answers a question (default: none); example: Rome is in Italy."
    other.add_argument("--passage", metavar="TEXT", help=passage)
    file = "passage from a UTF-8 file (default: none); example: passage.txt"
    other.add_argument("--passage-file", metavar="FILE", help=file)
    top = "most predictions to show (default: %(default)s); example: 3"
    parser.add_argument("--top", metavar="N", type=_positive, default=5, help=top)
    threads = "threads of the processor (default: %(default)s); example: 4"
    parser.add_argument("--threads", metavar="N", type=_positive, default=1, help=threads)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line (default: text)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number of at least 1")
    return int(text)


def _print(text: str, found: Predictions, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"input": text, **asdict(found)}, ensure_ascii=False))
        return
    for each in found:
        share = "" if each.probability is None else f"  {each.probability:6.1%}"
        which = f"{MASK} {each.mask}: " if each.mask is not None and found[-1].mask != 1 else ""
        print(f"{which}{each.text if each.text or found.no_answer is None else '(no answer)'}{share}")
    if not found:
        print("(nothing found)")
    if found.no_answer_note is not None:
        print(found.no_answer_note)
    if found.cut_note is not None:
        print(found.cut_note, file=sys.stderr)


if __name__ == "__main__":
    main()
