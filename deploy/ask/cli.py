"""Ask models on a page in a browser: teacher and student side by side, with their times.

::

    stillhouse ask DIR [DIR …] [--host HOST] [--port PORT] [--threads N]

DIR is the output folder of a pipeline, such as ``build/demo``: the page offers masked words, and every task that
teacher and student were fine-tuned on, in PyTorch and as exports. Or it is a model folder or an export; several of the
same task stand side by side. The models run here, as in ``stillhouse predict``. Ctrl-C ends the command.
"""

import argparse
import contextlib
import errno
import socket
import threading
from collections.abc import Sequence

from cluster.artifacts import cache
from cluster.artifacts.errors import StageError, errors_for_people
from cluster.artifacts.help_format import HelpFormatter
from cluster.serving import http_server, links
from cluster.storage import filesystem
from cluster.telemetry.formatting import plural
from deploy.ask.found_models import Comparison, find
from deploy.ask.server import LOCAL, AskServer
from deploy.ask.side_by_side import Models

HOST, PORT = "127.0.0.1", 8321


def main(arguments: Sequence[str] | None = None, prog: str = "python -m deploy.ask") -> None:
    """The command line; returns on Ctrl-C."""
    options = _parser(prog).parse_args(arguments)
    with errors_for_people(), contextlib.suppress(KeyboardInterrupt):
        places = [cache.fetch(filesystem.location(place)) for place in options.places]
        comparisons, models = find(places), Models(options.threads)
        with _listen(options.host, options.port) as listener:
            print("\n".join(_summary(comparisons)), flush=True)
            # Before the link, so that the page is ready at once, and a broken model is an error of the command.
            models.open(comparisons[0])
            _serve(AskServer(" ".join(place.name for place in places), comparisons, models), listener, options.host)


def _serve(server: AskServer, listener: socket.socket, host: str) -> None:
    """Serve until Ctrl-C."""
    port = listener.getsockname()[1]
    address = f"http://{links.reachable(host)}:{port}/"
    server.link = address if links.reachable(host) not in LOCAL else None
    try:
        with http_server.serving(server.answer, listener):
            print(f"\nready: open {address}", flush=True)
            if server.link is None:
                print("to open it on a phone in the same network: --host 0.0.0.0")
            else:
                print("\n".join(links.terminal(address)))
                print("every device in this network that knows the address can ask")
            print("Ctrl-C ends it", flush=True)
            _until_ctrl_c()
    finally:
        server.close()


def _until_ctrl_c() -> None:
    threading.Event().wait()


def _listen(host: str, port: int | None) -> socket.socket:
    """A socket at the port, by default at :data:`PORT`, or any free one where that is taken.

    Raises:
        StageError: the address is not available.
    """
    try:
        return http_server.listen(host, PORT if port is None else port)
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            return http_server.listen(host, 0)
        reason = str(error.strerror).partition(" (while")[0]
        advice = "choose another --port, or leave it out" if port is not None else "choose another --host"
        where = f"[{host}]" if ":" in host else host
        raise StageError(f"cannot serve at {where}:{PORT if port is None else port}: {reason}; {advice}") from None


def _summary(comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each task, with its models and forms."""
    topics: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        topics.setdefault(comparison.title, []).append(comparison)
    lines = [f"{plural(len(topics), 'task')} to ask:"]
    for title, members in topics.items():
        models = " and ".join(dict.fromkeys(model.title for one in members for model in one.models))
        lines.append(f"  {title:14} {models} ({', '.join(one.form for one in members)})")
    return lines


def _parser(prog: str) -> argparse.ArgumentParser:
    epilog = f"example: {prog} build/demo"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    places = "output folder of a pipeline, or model folders and exports; example: build/demo/teacher"
    parser.add_argument("places", metavar="DIR", nargs="+", help=places)
    host = "address to serve at (default: %(default)s); example: 0.0.0.0, which lets phones in"
    parser.add_argument("--host", default=HOST, help=host)
    port = f"port to serve at (default: {PORT}, or a free one where that is taken); example: 8080"
    parser.add_argument("--port", type=_port, help=port)
    threads = "CPU threads of each model (default: %(default)s); example: 4"
    parser.add_argument("--threads", type=_positive, default=1, help=threads)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number from 0 (any free port) to 65535")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: write a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    main()
