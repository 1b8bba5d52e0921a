"""Connects to a Ray cluster, or starts a private one on this machine."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator

from cluster.artifacts.errors import StageError
from cluster.telemetry.error_text import first_line, one_line

ADDRESS = "RAY_ADDRESS"
PROBE_SECONDS = 10.0


@contextlib.contextmanager
def connect(cpus: int | None = None) -> Iterator[None]:
    """Connect this process to Ray inside the block, unless it is connected.

    Joins the cluster at ``RAY_ADDRESS``, which every Ray job sets; without it, starts a cluster on this machine with
    ``cpus`` CPUs (all by default) and stops it at the end. Inside the block SIGTERM interrupts this command.

    Raises:
        StageError: the cluster at ``RAY_ADDRESS`` cannot be reached or refuses this process.
    """
    import ray  # slow to import, and reads the environment, which the caller may change first

    if ray.is_initialized():
        yield
        return
    if is_private():
        _start(cpus)
    else:
        _join(os.environ[ADDRESS])
    try:
        with _sigterm_interrupts():
            yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Inside the block SIGTERM (``ray job stop``) interrupts like Ctrl-C; Ray's handler would abort the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_connected() -> bool:
    """Whether this process is part of a Ray cluster, or would join one."""
    import ray

    return bool(ray.is_initialized()) or not is_private()


def is_private() -> bool:
    """Whether :func:`connect` starts the cluster of this process, and stops it at the end of its block."""
    return os.environ.get(ADDRESS, "") in ("", "local")


def _join(address: str) -> None:
    import ray

    if address.startswith(("http://", "https://")):
        raise StageError(
            f"{ADDRESS}={address} is the address of a dashboard: submit this command with `ray job submit`, "
            f"or set {ADDRESS} to the head's host:6379"
        )
    if "://" not in address and address != "auto":
        _probe(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if "version" in str(error).lower():
            raise StageError(
                f"the Ray cluster at {ADDRESS}={address} runs other versions than this command: install those of the "
                f"cluster here ({one_line(error)})"
            ) from None
        raise StageError(
            f"the Ray cluster at {ADDRESS}={address} cannot be joined ({first_line(error)}): check the address, and "
            "RAY_AUTH_MODE and the token if it needs one"
        ) from None


def _probe(address: str) -> None:
    """Check that a head answers: without one, Ray waits two minutes and then ends the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise StageError(
            f"no Ray cluster answers at {ADDRESS}={address} ({error}): start it, correct the address to host:port, "
            f"or unset {ADDRESS} to run on this machine alone"
        ) from None


def _start(cpus: int | None) -> None:
    """Start a cluster on this machine without dashboard and usage reports, protected by a random token."""
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    if "RAY_AUTH_MODE" not in os.environ:
        # Otherwise Ray writes a token into the home folder, which changes how later clusters behave.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        Config.initialize("")  # Ray read the environment at import; this reads it again
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # Ray's coming default; silences a warning per start
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
