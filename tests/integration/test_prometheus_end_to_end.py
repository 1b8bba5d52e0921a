"""A real Prometheus and Alertmanager observe a real run and a scripted service: every panel has data, every declared
series is scraped, and an alert is sent and resolved."""

import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import monitoring_series
import prometheus_servers as servers
import pytest
import simulated_service
import tokens_artifact
import yaml
from metrics_endpoint import scraped
from prometheus_client import start_http_server
from prometheus_servers import Webhook, free_port
from train_processes import command, environment
from waiting import wait_until

from cluster.telemetry import exporter, metrics
from cluster.telemetry.metrics_log import read_metrics
from k8s.monitoring.source import dashboards_picture, generate, picture_data
from k8s.monitoring.source.grafana import Board, Panel
from k8s.monitoring.source.picture_data import Source, Window

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(servers.MISSING), reason=servers.WHY),
]

SCRIPTED, REAL = "scripted", "real"
STALLED = "StillhouseTrainingStalled"
STEPS = 24
OF_OTHERS = {"stillhouse_loss_scale", "stillhouse_model_flops_utilization_ratio", "stillhouse_probe"}
"""Series that a run in fp32 on a CPU does not have."""


@dataclass
class Seen:
    """The servers, and a real run that they scraped from its beginning to its end."""

    source: Source
    webhook: Webhook
    run: Path
    script: "Ticking"

    def value(self, expr: str) -> float | None:
        found = self.source.get("query", {"query": expr})["result"]
        return float(found[0]["value"][1]) if found else None


class Ticking(threading.Thread):
    """Advances the script every half second; its training stops while ``stalls`` is set."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._script = simulated_service.Script(time.time() - 3 * 3600)
        self._script.advance(time.time())
        self.stalls, self._over = threading.Event(), threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            self._script.advance(time.time())
            if self.stalls.is_set():
                metrics.STEP_TIME.labels(simulated_service.RUN).set(time.time() - 3600)

    def stop(self) -> None:
        self._over.set()
        self.join()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    tokens_artifact.make(folder)
    ours, foreign, real = free_port(), free_port(), free_port()
    for metric, value in ((metrics.STEP_TIME, time.time() - 3600), (metrics.STEP_SECONDS, 1.0)):
        metric.labels("of-an-earlier-test").set(value)
    monitoring_series.forget()
    script, webhook = Ticking(), Webhook()
    exporter.serve(ours)
    start_http_server(foreign, registry=simulated_service.FOREIGN)
    script.start()
    targets = {SCRIPTED: [ours, foreign], REAL: [real]}
    with (
        webhook.listening(),
        servers.alertmanager(folder, webhook) as alerts_to,
        servers.prometheus(folder, targets, _shorten_durations(folder / "rules"), alerts_to) as source,
    ):
        _train(folder, real)
        yield Seen(source, webhook, folder / "run", script)
    script.stop()


def _shorten_durations(folder: Path) -> Path:
    """The shipped rules with a second in place of every ``for`` duration."""
    folder.mkdir()
    for path in (generate.FOLDER / "rules").glob("*.yaml"):
        rules = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in rules["groups"]:
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "1s"
        (folder / path.name).write_text(yaml.safe_dump(rules), encoding="utf-8")
    return folder


def _train(folder: Path, port: int) -> None:
    """Train on two workers while Prometheus scrapes them."""
    settings = [f"steps={STEPS}", f"placement.metrics_port={port}", "placement.validate_every=12"]
    done = subprocess.run(
        command(folder, folder / "run", 2, *settings), capture_output=True, text=True, env=environment(), timeout=200
    )
    assert done.returncode == 0, done.stderr


def _panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{board.uid}: {panel.title}") for board in generate.BOARDS for panel in board.panels
    ]


def _window() -> Window:
    return Window(time.time(), 120, rate_seconds=10)


@pytest.mark.parametrize("panel", _panels())
def test_a_panel_has_something_to_show(observed: Seen, panel: Panel) -> None:
    def every_query_is_answered() -> bool:
        answers = [observed.source.lines(replace(panel, queries=(query,)), _window()) for query in panel.queries]
        return all(any(math.isfinite(value) for line in lines for value in line.values) for lines in answers)

    wait_until(every_query_is_answered, what=panel.title)


@pytest.mark.parametrize("board", generate.BOARDS, ids=lambda board: board.uid)
def test_the_choices_of_a_dashboard_have_values(observed: Seen, board: Board) -> None:
    for variable, query in zip(board.variables, picture_data.variables(board), strict=True):
        found = observed.source.get("query", {"query": picture_data.filled(query.expr, _window())})["result"]
        label = variable.query.rpartition(", ")[2].rstrip(")")
        assert {one["metric"].get(label, "") for one in found} - {""}, variable.name


def test_every_declared_series_is_in_prometheus(observed: Seen) -> None:
    names = set(observed.source.get("label/__name__/values", {}))
    wanted = {f"{name}_count" if _is_histogram(name) else name for name in monitoring_series.declared()}
    assert sorted(wanted - names) == []
    assert sorted(monitoring_series.recorded() - names) == []


def _is_histogram(name: str) -> bool:
    (family,) = monitoring_series.declared()[name].describe()
    return bool(family.type == "histogram")


def test_prometheus_agrees_with_the_log_of_a_real_run(observed: Seen) -> None:
    """Compares values of the last scraped step; the log may have later ones."""
    steps = [line for line in read_metrics(observed.run / "metrics.jsonl") if line["kind"] == "train"]
    assert steps[-1]["step"] == STEPS

    def last(name: str, more: str = "") -> float | None:
        return observed.value(f'last_over_time({name}{{cluster="{REAL}", run="run"{more}}}[10m])')

    assert last("stillhouse_steps") == STEPS
    step = int(last("stillhouse_step") or 0)
    assert 0 < step <= STEPS
    assert last("stillhouse_tokens_total") == steps[step - 1]["tokens"]
    assert last("stillhouse_rows_total") == step * 8
    assert last("stillhouse_loss_nats", ', term="soft"') == pytest.approx(steps[step - 1]["soft"])
    assert last("stillhouse_workers") == last("stillhouse_node_workers") == 2


def test_a_real_step_is_the_sum_of_its_parts(observed: Seen) -> None:
    """The measured parts of a step of both workers add up to nearly the whole step."""
    of = f'cluster="{REAL}", run="run"'
    parts = {
        one["metric"]["part"]: float(one["value"][1])
        for one in observed.source.get(
            "query", {"query": f'last_over_time(stillhouse_step_part_seconds{{{of}, worker="mean"}}[10m])'}
        )["result"]
    }
    assert set(parts) == {"data", "teacher", "student_forward", "backward", "optimizer", "communication"}
    assert all(seconds > 0 for seconds in parts.values())
    slowest = f'last_over_time(stillhouse_step_part_seconds{{{of}, worker="slowest"}}[10m])'
    mean = f'last_over_time(stillhouse_step_part_seconds{{{of}, worker="mean"}}[10m])'
    assert (observed.value(f"min({slowest} / on (part) {mean})") or 0.0) >= 1
    step = max(line["step_seconds"] for line in read_metrics(observed.run / "metrics.jsonl") if line["kind"] == "train")
    assert sum(parts.values()) < 1.5 * step


def test_a_real_run_fills_what_training_declares(observed: Seen) -> None:
    found = observed.source.get("series", {"match[]": f'{{__name__=~"stillhouse.*", cluster="{REAL}", run="run"}}'})
    filled = {one["__name__"] for one in found}
    of_runs = {name for name, metric in monitoring_series.declared().items() if "run" in metric._labelnames}
    missing = {name for name in of_runs - filled if not name.startswith(tuple(OF_OTHERS))}
    assert sorted(missing) == []


def test_an_alert_is_sent_and_resolved(observed: Seen) -> None:
    who = {"run": simulated_service.RUN, "cluster": SCRIPTED}
    assert observed.webhook.states(STALLED) == [], "no run had stalled"
    observed.script.stalls.set()
    wait_until(lambda: "firing" in observed.webhook.states(STALLED, **who))
    notification = next(one for one in observed.webhook.received if one["labels"]["alertname"] == STALLED)
    assert notification["labels"]["severity"] == "critical"
    assert re.match(rf"{simulated_service.RUN} .* no step for 1h 0m", notification["annotations"]["summary"])
    observed.script.stalls.clear()
    wait_until(lambda: observed.webhook.states(STALLED, **who)[-1:] == ["resolved"])


def test_a_quiet_service_has_no_other_alerts(observed: Seen) -> None:
    firing = observed.source.get("query", {"query": f'ALERTS{{alertstate="firing", alertname!="{STALLED}"}}'})["result"]
    assert [one["metric"]["alertname"] for one in firing if one["metric"].get("cluster") != REAL] == []


def test_both_dashboards_are_drawn(observed: Seen, tmp_path: Path) -> None:
    assert dashboards_picture.draw(observed.source, _window(), tmp_path / "both.png") == 0, "panels without data"
    assert (tmp_path / "both.png").stat().st_size > 100_000


def test_an_endpoint_serves_only_declared_series() -> None:
    port = free_port()
    exporter.serve(port)
    names = {line.partition("{")[0] for line in scraped(port)}
    names = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name in names}
    assert sorted(names - {*monitoring_series.declared()}) == []
