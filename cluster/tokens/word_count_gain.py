"""How much more a masked language model knows than word counts, and when that is hardly anything."""

LITTLE_PERCENT = 10.0
"""A model that saves less than this share of the nats of word counts on hidden words knows hardly more than they do.

One neighboring word alone is worth more than twice as much: on the Wall Street Journal, perplexity falls from 962 with
word counts to 170 with pairs of words, which saves 25 % of 6.87 nats (Jurafsky and Martin, Speech and Language
Processing, chapter "N-gram Language Models")."""


def saved_percent(loss: float | None, counts: float | None) -> float | None:
    """Percent of the nats of word counts that a model saves on the same hidden words; None unless both are known."""
    return None if loss is None or not counts else 100.0 * (1.0 - loss / counts)


def knows_little(loss: float | None, counts: float | None) -> bool:
    """Whether a model was measured to know hardly more than word counts."""
    saved = saved_percent(loss, counts)
    return saved is not None and saved < LITTLE_PERCENT


def warning(model: str, loss: float | None, counts: float | None) -> str | None:
    """A line that names a model which knows hardly more than word counts; None for any other."""
    if loss is None or counts is None or not knows_little(loss, counts):
        return None
    return (
        f"{model} knows hardly more than word counts: {loss:.2f} nats on hidden words, counts alone have {counts:.2f}; "
        "train it longer, on more text, or take another one"
    )
