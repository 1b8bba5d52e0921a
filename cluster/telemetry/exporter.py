"""Serves the metrics of this process to Prometheus.

A process that ends does not wait for a last scrape: ``metrics.jsonl`` holds every step.
"""

import contextlib
from collections.abc import Iterator

from prometheus_client import REGISTRY, start_http_server

from cluster.telemetry.progress import say


def serve(port: int) -> None:
    """Serve all metrics on ``/metrics`` until this process ends.

    Raises:
        OSError: the port is taken.
    """
    start_http_server(port, registry=REGISTRY)


@contextlib.contextmanager
def serving(port: int | None) -> Iterator[None]:
    """Serve all metrics on ``/metrics`` inside the block; without a port, nothing.

    A taken port gives a warning, not an error: two jobs of one recipe may meet on a node.
    """
    with contextlib.ExitStack() as stack:
        if port is not None:
            try:
                server, thread = start_http_server(port, registry=REGISTRY)
            except OSError as error:
                say(f"warning: placement.metrics_port {port}: {error.strerror}: this process serves no metrics")
            else:
                stack.callback(thread.join)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
        yield
