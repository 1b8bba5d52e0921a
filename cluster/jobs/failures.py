"""Why a job did not end well, and what follows from it.

The cluster's fault (its worker or its node died, a store or a network did not answer, a GPU broke) is tried again, some
times, later and later; the user's fault (recipe, data, any other exception in the stage) is not. Where memory ran out
the job is tried once more with half the micro-batch. Where another process is making the same artifact, or others were
faster to take the node, the job waits for that, as long as its deadline lets it.
"""

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import filelock

from cluster.storage import lease

Cause: TypeAlias = Literal["death", "node", "outage", "memory", "busy"]
"""Why an attempt came to nothing: its worker died, its node was lost, something it needs did not answer, memory ran
out, or another process was at it."""

_OUTAGES = {
    getattr(errno, name)
    for name in ["EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO"]
    if hasattr(errno, name)
}
# Errors of libraries that need not be installed, by the names of their classes.
_UNANSWERED = {
    "requests.exceptions": {"ConnectionError", "Timeout"},
    "urllib3.exceptions": {"TimeoutError", "ProtocolError", "NewConnectionError"},
    "httpx2": {"TransportError"},
    "aiohttp.client_exceptions": {"ClientConnectionError"},
    "botocore.exceptions": {"ConnectionError", "HTTPClientError"},
}
_BROKEN_GPU = ("uncorrectable ECC error", "unspecified launch failure", "CUDA error: unknown error")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and when an attempt that came to nothing is repeated."""

    deaths: int = 5
    """Attempts whose workers died while their nodes lived, after which a job is given up."""
    outages: int = 5
    """Attempts in which a store, a network or a GPU failed, after which a job is given up."""
    losses: int = 20
    """Attempts whose nodes were lost, after which a job is given up: more, because nodes are seldom lost to a job."""
    first: float = 5.0
    """Seconds before the second attempt; doubled for every further one."""
    longest: float = 300.0

    def seconds(self, times: int) -> float:
        """How long to wait after an attempt came to nothing for the so-manieth time."""
        return float(min(self.first * 2 ** min(times - 1, 30), self.longest))


def after(cause: Cause, detail: str, times: int, patience: RetryPolicy) -> tuple[float, None] | tuple[None, str]:
    """What follows after an attempt came to nothing: the seconds to wait before the next one, or why there is none.

    ``times`` is how often that has happened to the job, this time included.
    """
    if cause == "memory" and times > 1:
        return None, f"ran out of memory twice, the second time with half the micro-batch where it has one: {detail}"
    if cause == "death" and times >= patience.deaths:
        return None, f"its worker died {times} times: {detail}"
    if cause == "outage" and times >= patience.outages:
        return None, f"what it needs failed {times} times: {detail}"
    if cause == "node" and times >= patience.losses:
        return None, f"its node was lost {times} times: {detail}"
    return patience.seconds(times), None


def is_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the machine or of a GPU ran out."""
    return any(_says_memory(link) for link in _chain(error))


def is_busy(error: BaseException) -> bool:
    """Whether an exception says that another process is making the artifact right now."""
    return any(isinstance(link, filelock.Timeout | lease.LeaseError) for link in _chain(error, hidden=True))


def is_outage(error: BaseException) -> bool:
    """Whether an exception says that something outside the stage was away, or broke, and may be there later."""
    return any(_says_outage(link) for link in _chain(error, hidden=True))


def _chain(error: BaseException, hidden: bool = False) -> Iterator[BaseException]:
    """The exception and those that caused it; ``hidden``, also those it was raised in place of."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (link.__context__ if hidden or not link.__suppress_context__ else None)


def _says_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # These are plain RuntimeErrors: torch's allocator on a CPU, and the libraries below it on a GPU.
    words = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _says_outage(error: BaseException) -> bool:
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False  # somebody has switched the network off
    if isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _OUTAGES):
        return not isinstance(error, filelock.Timeout)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN_GPU):
        return True
    return any(kind.__name__ in _UNANSWERED.get(kind.__module__, ()) for kind in type(error).__mro__)
