"""Serves the metrics of this process to Prometheus."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from cluster.telemetry.progress import say


class _Scrapes(Collector):
    """Knows when metrics were asked for; a collector without metrics."""

    def __init__(self) -> None:
        self._asked = threading.Condition()
        self.clear()

    def clear(self) -> None:
        self._at: float | None = None
        self._gaps: deque[float] = deque(maxlen=4)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        with self._asked:
            now = time.monotonic()
            if self._at is not None:
                self._gaps.append(now - self._at)
            self._at = now
            self._asked.notify_all()
        return ()

    def await_next(self) -> None:
        """Until metrics are asked for, if they have been at intervals: two of these at most."""
        with self._asked:
            if self._gaps and self._asked.wait(min(2 * max(self._gaps), LONGEST_LINGER)):
                self._asked.wait(ANSWER_SECONDS)  # the answer is not sent yet


LONGEST_LINGER, ANSWER_SECONDS = 60.0, 0.5
_scrapes = _Scrapes()
REGISTRY.register(_scrapes)


def serve(port: int) -> None:
    """Serve all metrics of this process on ``/metrics``, for as long as it lives.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port, registry=REGISTRY)
    _scrapes.clear()


def linger() -> None:
    """Let Prometheus, where it comes at intervals, see the last numbers of a process that is about to end.

    Without this the last step of a run, or the loss that ended it, would be seen by chance only.
    """
    _scrapes.await_next()


@contextlib.contextmanager
def serving(port: int | None) -> Iterator[None]:
    """Serve all metrics of this process on ``/metrics`` inside the block; with no port, nothing.

    A port that is taken is warned of and ends no work: two jobs of one recipe may meet on a node.
    """
    started = None if port is None else _started(port)
    if started is None:
        yield
        return
    server, thread = started
    _scrapes.clear()
    try:
        yield
        linger()
    except Exception:  # whoever interrupts does not want to wait
        linger()
        raise
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _started(port: int) -> tuple[WSGIServer, threading.Thread] | None:
    try:
        return start_http_server(port, registry=REGISTRY)
    except OSError as error:
        say(f"warning: placement.metrics_port {port}: {error.strerror}: this process serves no metrics")
        return None
