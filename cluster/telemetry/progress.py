"""Progress for people on stderr: bars on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeVar

from tqdm import tqdm

from cluster.telemetry.formatting import count, duration
from cluster.telemetry.loss_terms import LOSS_TERMS

logger = logging.getLogger("stillhouse")

PLAIN_SECONDS = 10.0

T = TypeVar("T")


def training_note(line: Mapping[str, Any], agreement: float | None = None) -> dict[str, str]:
    """What a progress bar shows of a training step: the terms of its loss, and agreement with the teacher.

    ``agreement`` is that of the last validation. Fp16 steps skipped in a row are shown from the second one on.
    """
    note = {term: f"{line[term]:.3g}" for term in LOSS_TERMS if line.get(term)} or {"loss": f"{line['total']:.3f}"}
    if agreement is not None:
        note["agreement"] = f"{100 * agreement:.0f} %"
    note["tokens/s"] = f"{line['tokens_per_second']:,.0f}"
    if (skipped := line.get("skipped_in_a_row", 0)) > 1:
        note["skipped in a row"] = str(skipped)
    return note


def say(line: str) -> None:
    """A line for people, above any progress bar."""
    with tqdm.external_write_mode(file=sys.stderr):
        logger.info("%s", line)


def counted(number: int, unit: str) -> str:
    """``1 split read``, ``3 splits read``: ``unit`` is plural, and its first word loses its s."""
    first, space, rest = unit.partition(" ")
    return f"{number:,} {first.removesuffix('s') if number == 1 else first}{space}{rest}"


class Rates:
    """Amounts per second since the object was made."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._amounts: dict[str, float] = {}

    def add(self, **amounts: float) -> dict[str, str]:
        """Add new amounts; returns the rates so far: ``{"tokens/s": "3.1 M", "bytes/s": "12.5 M"}``."""
        for name, amount in amounts.items():
            self._amounts[name] = self._amounts.get(name, 0.0) + amount
        seconds = max(time.monotonic() - self._started, 1e-9)
        return {f"{name}/s": count(amount / seconds) for name, amount in self._amounts.items()}


class Pace:
    """Seconds that a piece of work takes, from the second one on: the first also loads, compiles and fills caches."""

    def __init__(self) -> None:
        self._warm: tuple[float, int] | None = None
        self.seconds: float | None = None
        """None while only the first piece is done."""

    def reached(self, done: int) -> None:
        """Note how much is done now."""
        now = time.monotonic()
        if self._warm is None:
            self._warm = now, done
        elif done > self._warm[1]:
            self.seconds = (now - self._warm[0]) / (done - self._warm[1])


class _Bar(tqdm):  # type: ignore[type-arg]
    """A bar whose rate and remaining time are those of a :class:`Pace`."""

    pace: Pace | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        shown = dict(super().format_dict)
        seconds = self.pace.seconds if self.pace else None
        # Tqdm takes None for the rate since the start, and shows 0 as a question mark.
        return {**shown, "rate": 1 / max(seconds, 1e-9) if seconds is not None else 0}


class Progress:
    """A bar on a terminal, a plain line every ten seconds elsewhere.

    Use it as a context manager; :meth:`advance` moves it and may show current numbers.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self._what, self._total, self._unit, self._done = what, total, unit, done
        self._started = self._said = time.monotonic()
        self._first = done
        self._pace = Pace()
        self._bar: _Bar | None = None
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._bar = _Bar(total=total, desc=what, unit=f" {unit}", initial=done, dynamic_ncols=True, leave=True)
            self._bar.pace = self._pace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is, or log how much was done."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._first:
            taken = duration(time.monotonic() - self._started)
            logger.info("%s: %s in %s", self._what, counted(self._done, self._unit), taken)

    def advance(self, by: int = 1, note: Mapping[str, str] | None = None) -> None:
        self._done += by
        if by:
            self._pace.reached(self._done)
        if self._bar is not None:
            self._bar.update(by)
            if note:
                self._bar.set_postfix(dict(note), refresh=False)
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            words = "".join(f", {key} {value}" for key, value in (note or {}).items())
            share = f"{self._done:,} of {counted(self._total, self._unit)}" if self._total else None
            logger.info("%s: %s%s%s", self._what, share or counted(self._done, self._unit), words, self._left())

    def reach(self, done: int, note: Mapping[str, str] | None = None) -> None:
        """Move to ``done``; also back, where work starts again from an earlier point."""
        if done < self._done:
            self._first = self._done = done
            self._started = time.monotonic()
            self._pace = Pace()
            if self._bar is not None:
                self._bar.pace = self._pace
                self._bar.reset(self._total)
                self._bar.update(done)
        self.advance(done - self._done, note)

    def _left(self) -> str:
        """Time for the rest, where a total and a pace are known."""
        if not self._total or self._done == self._total or self._pace.seconds is None:
            return ""
        return f", {duration(round(self._pace.seconds * (self._total - self._done)))} left"


def progress(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Pass items through, showing progress."""
    with Progress(what, total, unit) as shown:
        for item in items:
            yield item
            shown.advance()
