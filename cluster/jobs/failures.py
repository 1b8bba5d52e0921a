"""Why an attempt at a job failed, and whether the queue tries again.

- Cluster (worker or node died, store or network did not answer, GPU broke): retries with growing delays, up to a limit.
- Memory: one retry with half the micro-batch.
- Busy (another process makes the artifact, or other work took the node): retries until the job's deadline.
- User (recipe, data, any other exception in the stage): no retry.
"""

import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import filelock

from cluster.storage import lease

Cause: TypeAlias = Literal["death", "node", "outage", "memory", "busy"]
"""Why the queue may retry: worker died, node lost, service or device failed, out of memory, artifact or node taken."""

_OUTAGES = {
    getattr(errno, name)
    for name in ["EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO"]
    if hasattr(errno, name)
}
# By class name, because these libraries may not be installed.
_NETWORK_ERRORS = {
    "requests.exceptions": {"ConnectionError", "Timeout"},
    "urllib3.exceptions": {"TimeoutError", "ProtocolError", "NewConnectionError"},
    "httpx2": {"TransportError"},
    "aiohttp.client_exceptions": {"ClientConnectionError"},
    "botocore.exceptions": {"ConnectionError", "HTTPClientError"},
}
_BROKEN_GPU = ("uncorrectable ECC error", "unspecified launch failure", "CUDA error: unknown error")


@dataclass(frozen=True)
class RetryPolicy:
    """How often, and after which delays, the queue retries a job."""

    max_deaths: int = 5
    """Attempts that may lose their worker on a node that is alive."""
    max_outages: int = 5
    """Attempts that a store, a network or a GPU may fail."""
    max_node_losses: int = 20
    """Attempts that may lose their node: more, because the job is seldom the reason."""
    first_seconds: float = 5.0
    """Delay before the second attempt; every further delay doubles."""
    longest_seconds: float = 300.0

    def delay(self, failed: int) -> float:
        """Seconds to wait after ``failed`` failed attempts."""
        return float(min(self.first_seconds * 2 ** min(failed - 1, 30), self.longest_seconds))


def next_attempt(cause: Cause, detail: str, times: int, policy: RetryPolicy) -> tuple[float, None] | tuple[None, str]:
    """Seconds until the next attempt, or the error that ends the job.

    ``times`` counts the job's attempts that failed for this cause, the present one included.
    """
    limits: dict[Cause, tuple[int, str]] = {
        "memory": (2, "ran out of memory twice, the second time with half the micro-batch where it has one"),
        "death": (policy.max_deaths, f"its worker died {times} times"),
        "outage": (policy.max_outages, f"a service it needs failed {times} times"),
        "node": (policy.max_node_losses, f"its node was lost {times} times"),
    }
    if cause in limits and times >= limits[cause][0]:
        return None, f"{limits[cause][1]}: {detail}"
    return policy.delay(times), None


def is_memory(error: BaseException) -> bool:
    """Whether the exception, or one that caused it, says that main or GPU memory ran out."""
    return any(_says_memory(link) for link in _chain(error))


def is_busy(error: BaseException) -> bool:
    """Whether another process is making the artifact."""
    return any(isinstance(link, filelock.Timeout | lease.LeaseError) for link in _chain(error, hidden=True))


def is_outage(error: BaseException) -> bool:
    """Whether a service or device outside the stage failed and may work later."""
    return any(_says_outage(link) for link in _chain(error, hidden=True))


def _chain(error: BaseException, hidden: bool = False) -> Iterator[BaseException]:
    """The exception and its causes; with ``hidden`` also contexts that ``raise … from None`` suppresses."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (link.__context__ if hidden or not link.__suppress_context__ else None)


def _says_memory(error: BaseException) -> bool:
    torch: Any = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator and the CUDA libraries raise plain RuntimeErrors.
    words = ("can't allocate memory", "CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _says_outage(error: BaseException) -> bool:
    if type(error).__name__ == "OfflineModeIsEnabled":
        return False  # the user switched the network off
    if isinstance(error, ConnectionError | TimeoutError) or (isinstance(error, OSError) and error.errno in _OUTAGES):
        return not isinstance(error, filelock.Timeout)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _BROKEN_GPU):
        return True
    return any(kind.__name__ in _NETWORK_ERRORS.get(kind.__module__, ()) for kind in type(error).__mro__)
