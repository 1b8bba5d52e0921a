"""Opens the models of a comparison, asks them the same, and times their answers so that their order does not matter."""

import functools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.artifacts.errors import StageError
from cluster.models import export_spec, model_folder, runtimes
from cluster.models.predictions import Predictions
from cluster.telemetry.formatting import megabytes, millions
from deploy import predict
from deploy.ask.found_models import Comparison, FoundModel
from deploy.predict import MASK, LoadedModel

TOP = 5
"""Words and answers to show."""
MOST_LABELS = 12
ROUNDS = 5
"""Timed calls of each model, in turns."""
SECONDS = 2.0
"""No round begins later than this after the first."""
WARM_UP = 3
"""Calls of each model before it counts as ready."""
MOST_OPEN = 3
"""Comparisons whose models stay in memory."""


class StoppedError(Exception):
    """The command ends, so nobody waits for this answer."""


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to answer."""

    found: FoundModel
    model: LoadedModel
    note: str
    """Size, parameters and runtime, for people."""

    @property
    def top(self) -> int:
        return MOST_LABELS if self.found.head == "classification" else TOP


@dataclass(frozen=True)
class ModelAnswer:
    """What a model says about an input, and how long it takes."""

    model: OpenModel
    said: Predictions | None
    """None where it cannot use the input."""
    refusal: str | None
    """Why it cannot, for people."""
    milliseconds: float | None = None
    """Median of the timed calls, tokenizing included; None without an answer."""
    calls: int = 0


class Models:
    """Opens models when they are first asked, and keeps the latest; not for several threads at once."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._open: dict[str, tuple[OpenModel, ...]] = {}
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make the running question end soon; any thread may call this."""
        self._stopped.set()

    def open(self, comparison: Comparison) -> tuple[OpenModel, ...]:
        """The models of a comparison, warmed up.

        Raises:
            ArtifactError: a model was changed after it was made.
            StageError: a model cannot be loaded.
        """
        opened = self._open.pop(comparison.key, None)
        if opened is None:
            while len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            opened = tuple(_open(found, self.threads) for found in comparison.models)
            self._warm_up(comparison, opened)
        self._open[comparison.key] = opened  # the latest is last
        return opened

    def ask(self, comparison: Comparison, text: str, second: str | None) -> list[ModelAnswer]:
        """The answer of every model, and its time.

        Raises:
            ArtifactError, StageError: as :meth:`open`.
            StoppedError: after :meth:`stop`.
        """
        answers = [self._first(model, text, second) for model in self.open(comparison)]
        usable = [answer.model for answer in answers if answer.said is not None]
        times = self._time([functools.partial(model.model, text, second, model.top) for model in usable])
        timed = dict(zip((model.found.folder for model in usable), times, strict=True))
        return [_with_time(answer, timed.get(answer.model.found.folder, [])) for answer in answers]

    def _first(self, model: OpenModel, text: str, second: str | None) -> ModelAnswer:
        """The answer; also the call that prepares a runtime for inputs of this length, which is not timed."""
        if self._stopped.is_set():
            raise StoppedError
        try:
            return ModelAnswer(model, model.model(text, second, model.top), None)
        except StageError as error:
            return ModelAnswer(model, None, str(error))

    def _time(self, calls: Sequence[Callable[[], object]]) -> list[list[float]]:
        """Seconds of up to :data:`ROUNDS` calls of each, in turns; every other round in reverse order."""
        found: list[list[float]] = [[] for _ in calls]
        began = time.perf_counter()
        for number in range(ROUNDS):
            if number and time.perf_counter() - began > SECONDS:
                break
            order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
            for place in order:
                if self._stopped.is_set():
                    raise StoppedError
                started = time.perf_counter()
                calls[place]()
                found[place].append(time.perf_counter() - started)
        return found

    def _warm_up(self, comparison: Comparison, opened: Sequence[OpenModel]) -> None:
        text, second = _any_input(comparison)
        for _ in range(WARM_UP):
            for model in opened:
                self._first(model, text, second)


def _open(found: FoundModel, threads: int) -> OpenModel:
    model = predict.load(found.folder, threads)
    if export_spec.is_export(found.folder):
        size, runtime = model.described.bytes(found.folder), runtimes.described(model.described)
    else:
        import torch

        size, runtime = model_folder.weight_bytes(found.folder), f"PyTorch {torch.__version__.partition('+')[0]} fp32"
    note = f"{millions(model.described.parameters)} parameters · {megabytes(size)} · {runtime}"
    return OpenModel(found, model, note)


def _any_input(comparison: Comparison) -> tuple[str, str | None]:
    """An input to warm up with: an example, else any words."""
    if comparison.examples:
        return comparison.examples[0].text, comparison.examples[0].second
    if comparison.head == "masked-words":
        return f"a {MASK}", None
    return "a word", "more words" if comparison.head == "question-answering" else None


def _with_time(answer: ModelAnswer, seconds: Sequence[float]) -> ModelAnswer:
    if not seconds:
        return answer
    return ModelAnswer(answer.model, answer.said, None, 1000 * statistics.median(seconds), len(seconds))
