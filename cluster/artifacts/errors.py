"""Errors for people: one line on stderr with exit code 1; bugs keep their traceback."""

import contextlib
import errno
import logging
import sys
from collections.abc import Iterator

from safetensors import SafetensorError

from cluster.storage import filesystem

logger = logging.getLogger("stillhouse")

_ADVICE = {
    errno.EACCES: ": choose a place you may write to",
    errno.EPERM: ": choose a place you may write to",
    errno.EROFS: ": choose a place that can be written to",
    errno.ENOTDIR: ": a file is in the way, choose another place",
    errno.ENOSPC: ": free some space and run the same command again",
    errno.EDQUOT: ": free some space and run the same command again",
}


class StageError(ValueError):
    """A stage cannot run with what it was given: inputs, environment or data."""


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """Turns errors meant for people into one line on stderr and exit code 1; bugs keep their traceback."""
    try:
        with logging_to_stderr():
            yield
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show what the stages say, as plain lines on stderr, inside the block."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def explain(error: BaseException | None) -> str | None:
    """The one line for an error that people can mend (ValueError family, the operating system's); None for a bug."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        advice = _ADVICE.get(error.errno or 0, "")
        return f"{place}{error.strerror or error}{advice}"
    # Files of weights are written by a library with an error type of its own, a full disk included.
    if isinstance(error, ValueError | SafetensorError):
        return " ".join(str(error).split())
    return filesystem.explain_storage_error(error) if error else None
