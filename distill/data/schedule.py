"""The phases of a run, each on rows of one length; a run without phases has a single one.

The phase and its batches are computed from the step number, so a resumed run needs no other state.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from cluster.tokens.rows import TokenSet
from distill.config import Training
from distill.data.batches import Batches, Masker

_EPOCHS = 2**20
"""Epoch numbers reserved per phase, so that phases on the same rows have other orders and masks."""


class PhaseError(ValueError):
    """The tokens artifacts do not match the phases."""


@dataclass(frozen=True)
class OpenPhase:
    """A phase with its rows and its first step."""

    number: int
    """Counts from 0."""
    training: Training
    """The recipe of this phase as a run without phases."""
    tokens: TokenSet
    first_step: int

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.first_step + self.training.total_steps(len(self.tokens.train))

    @property
    def seq_len(self) -> int:
        return self.tokens.seq_len

    @property
    def tokens_per_step(self) -> int:
        return self.training.rows_per_step * self.seq_len

    @cached_property
    def batches(self) -> Batches:
        masker = Masker(self.tokens, self.training)
        return Batches(self.tokens.train, masker, self.training, self.first_step, self.number * _EPOCHS)


class Schedule:
    """The phases of a run on its tokens artifacts.

    Raises:
        PhaseError: a length is missing or not used, or the vocabularies differ.
    """

    def __init__(self, training: Training, tokens: Iterable[TokenSet]) -> None:
        by_length = {found.seq_len: found for found in tokens}
        _check(training, by_length)
        lengths = [phase.seq_len for phase in training.phases] or list(by_length)
        found: list[OpenPhase] = []
        for number, (length, alone) in enumerate(zip(lengths, training.by_phase(), strict=True)):
            found.append(OpenPhase(number, alone, by_length[length], found[-1].end if found else 0))
        self.phases = tuple(found)

    @property
    def first(self) -> OpenPhase:
        return self.phases[0]

    @property
    def steps(self) -> int:
        return self.phases[-1].end

    @property
    def longest(self) -> int:
        """Tokens of the longest rows."""
        return max(phase.seq_len for phase in self.phases)

    def at(self, step: int) -> OpenPhase:
        """The phase of a step (0-based)."""
        return next(phase for phase in self.phases if step < phase.end)

    def tokens_after(self, steps: int) -> int:
        """Tokens of the first ``steps`` steps."""
        within = ((phase, min(steps, phase.end) - phase.first_step) for phase in self.phases)
        return sum(max(0, count) * phase.tokens_per_step for phase, count in within)


def _check(training: Training, by_length: dict[int, TokenSet]) -> None:
    first, *others = by_length.values()
    given = ", ".join(map(str, by_length))
    for other in others:
        if other.artifact.facts["vocabulary"] != first.artifact.facts["vocabulary"]:
            raise PhaseError(
                f"tokens {first.path} and {other.path} have different vocabularies: make the second with --tokenizer "
                f"{first.path}"
            )
    if not training.phases and others:
        raise PhaseError(
            f"tokens of {len(by_length)} lengths ({given}) for a run without phases: give one, or write phases"
        )
    for number, phase in enumerate(training.phases, 1):
        if phase.seq_len not in by_length:
            raise PhaseError(
                f"phase {number} reads rows of {phase.seq_len} tokens, and --tokens has rows of {given}: add an "
                f"artifact made with seq_len = {phase.seq_len}"
            )
    for length, found in by_length.items():
        if training.phases and length not in {phase.seq_len for phase in training.phases}:
            raise PhaseError(f"no phase reads the rows of {length} tokens of {found.path}: leave it out of --tokens")
