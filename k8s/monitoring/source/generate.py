"""Write the files that are generated from the dashboards and the alert rules, and committed.

::

    python -m k8s.monitoring.source.generate          writes below k8s/monitoring:

    dashboards/*.json                    from the dashboards, for Grafana
    prometheusrule.yaml                  from rules/*.yaml, for the Prometheus operator
    RUNBOOK.md                           from the annotations of the alerts, for people

A test compares the committed files with the generated ones.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from k8s.monitoring.source import grafana
from k8s.monitoring.source.results_dashboard import RESULTS
from k8s.monitoring.source.training_dashboard import TRAINING

BOARDS = (TRAINING, RESULTS)
FOLDER = Path(__file__).resolve().parents[1]
_HEADER = "# Generated from rules/*.yaml by python -m k8s.monitoring.source.generate.\n"
_RUNBOOK_INTRODUCTION = """# What to do when an alert fires

Generated from `rules/*.yaml` by `python -m k8s.monitoring.source.generate`.

Run `kubectl …` commands in the namespace: `kubectl config set-context --current --namespace stillhouse`. Run
`python -m …` and `stillhouse …` commands where the volume and the queue are, on the head of the Ray cluster that the
alert names (`cluster`):

    kubectl exec --container ray-head "$(kubectl get pod --output name \\
      --selector ray.io/node-type=head,ray.io/cluster=stillhouse)" -- python -m cluster.jobs list

If you may only submit, send the same through the port
([A run, from outside](../README.md#from-an-empty-cluster-to-a-finished-run)): `ray job submit -- python -m
cluster.jobs list`.
"""


def groups(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The rule groups of all files, in the order of the file names."""
    files = sorted((folder / "rules").glob("*.yaml"))
    return [group for file in files for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]


def alerts(folder: Path = FOLDER) -> Iterator[Mapping[str, Any]]:
    """Every alert rule."""
    return (rule for group in groups(folder) for rule in group["rules"] if "alert" in rule)


def generated(folder: Path = FOLDER) -> dict[str, str]:
    """The text of every generated file by its path below ``folder``."""
    boards = {f"dashboards/{board.uid.removeprefix('stillhouse-')}.json": grafana.as_json(board) for board in BOARDS}
    return {**boards, "prometheusrule.yaml": _HEADER + _prometheus_rule(folder), "RUNBOOK.md": _runbook(folder)}


def _prometheus_rule(folder: Path) -> str:
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "stillhouse", "labels": {"app.kubernetes.io/part-of": "stillhouse"}},
        "spec": {"groups": groups(folder)},
    }
    return str(yaml.safe_dump(document, sort_keys=False, width=118, allow_unicode=True))


def _runbook(folder: Path) -> str:
    sections = [
        f"## {rule['alert']}\n\n{rule['labels']['severity'].capitalize()}. {rule['annotations']['runbook']}\n"
        for rule in alerts(folder)
    ]
    return "\n".join([_RUNBOOK_INTRODUCTION, *sections])


def main() -> int:
    if not (FOLDER / "rules").is_dir():
        print(f"error: no {FOLDER / 'rules'}: run this in a checkout", file=sys.stderr)
        return 1
    for name, text in generated().items():
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
