"""Start the system's Prometheus and Alertmanager on free ports, and receive Alertmanager's notifications."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from waiting import wait_until

from k8s.monitoring.source.picture_data import Source

PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
WHY = f"needs {', '.join(MISSING)} (on Debian: apt-get install prometheus prometheus-alertmanager)"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Webhook:
    """Receives every alert that Alertmanager sends, in order."""

    port: int = field(default_factory=free_port)
    received: list[Mapping[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        received = self.received

        class Listener(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the library's name
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.extend(message["alerts"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", self.port), Listener)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def states(self, alert: str, **labels: str) -> list[str]:
        """``firing`` and ``resolved`` notifications of an alert in order of arrival."""
        wanted = {"alertname": alert, **labels}.items()
        return [one["status"] for one in self.received if wanted <= one["labels"].items()]


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: Webhook) -> Iterator[int]:
    """Run Alertmanager, which notifies ``webhook``; yields its port."""
    port = free_port()
    settings = {
        "route": {"receiver": "people", "group_by": ["alertname"], "group_wait": "1s", "group_interval": "1s"},
        "receivers": [
            {"name": "people", "webhook_configs": [{"url": f"http://127.0.0.1:{webhook.port}/", "send_resolved": True}]}
        ],
    }
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}", "--cluster.listen-address="]
    command += [f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{port}"]
    with _running(command, folder / "alertmanager.log", f"http://127.0.0.1:{port}/-/ready"):
        yield port


@contextlib.contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, list[int]], rules: Path | None = None, alerts_to: int | None = None
) -> Iterator[Source]:
    """Run Prometheus, which scrapes these ports every second; ``targets`` maps the label ``cluster`` to ports."""
    port = free_port()
    static = [
        {"targets": [f"127.0.0.1:{port}" for port in ports], "labels": {"cluster": cluster}}
        for cluster, ports in targets.items()
    ]
    settings: dict[str, Any] = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "scrape_configs": [{"job_name": "stillhouse", "static_configs": static}],
    }
    if rules is not None:
        settings["rule_files"] = [f"{rules}/*.yaml"]
    if alerts_to is not None:
        settings["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts_to}"]}]}]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with _running(command, folder / "prometheus.log", f"http://127.0.0.1:{port}/-/ready"):
        yield Source(f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def _running(command: list[str], log: Path, ready: str) -> Iterator[None]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as program:
        try:
            wait_until(lambda: program.poll() is not None or _answers(ready), what=f"{log}: ready")
            assert program.poll() is None, log.read_text(encoding="utf-8")
            yield
        finally:
            program.terminate()


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1):
            return True
    except OSError:
        return False
