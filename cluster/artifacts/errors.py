"""Errors that users can correct become one line on stderr; bugs keep their traceback."""

import contextlib
import errno
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator

from safetensors import SafetensorError

from cluster.storage import filesystem

logger = logging.getLogger("stillhouse")
STDOUT = 1
"""File descriptor of the program's output, also where ``sys.stdout`` is redirected."""

_ADVICE = {
    errno.EACCES: ": choose a place you may write to",
    errno.EPERM: ": choose a place you may write to",
    errno.EROFS: ": choose a place that can be written to",
    errno.ENOTDIR: ": a file is in the way, choose another place",
    errno.ENOSPC: ": free some space and run the same command again",
    errno.EDQUOT: ": free some space and run the same command again",
}


class StageError(ValueError):
    """A stage cannot run with these inputs, in this environment, or on this data."""


@contextlib.contextmanager
def errors_for_people() -> Iterator[None]:
    """Turn an error that :func:`explain` knows into one line on stderr and exit code 1.

    Exits 130 on Ctrl-C, and 141 when the reader of stdout has closed the pipe, as other programs do.
    """
    try:
        with logging_to_stderr():
            yield
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            # Python would fail again when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
            raise SystemExit(128 + signal.SIGPIPE) from None
        if (line := explain(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(1) from None


def _reader_is_gone() -> bool:
    """Whether this program's output goes to a pipe that nobody reads."""
    poll = select.poll()
    poll.register(STDOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


@contextlib.contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Write the log messages of the stages to stderr as plain lines inside the block."""
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
    """The line for an error that the user can correct (ValueError, the operating system, a store); None for a bug."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}{_ADVICE.get(error.errno or 0, '')}"
    # safetensors raises its own class for every failed write, a full disk included.
    if isinstance(error, ValueError | SafetensorError):
        return " ".join(str(error).split())
    return filesystem.explain_storage_error(error) if error else None


def describe(error: BaseException) -> str:
    """One line for any error: :func:`explain`, or the class and the message of a bug."""
    return explain(error) or f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
