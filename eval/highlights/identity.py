"""Which run a report is about: name, date, duration, machine and code."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.telemetry.formatting import elapsed, plural
from eval.results.schema import STUDENT, TEACHER

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Identity:
    """Texts; each is empty where nothing recorded it."""

    name: str
    made: str = ""
    took: str = ""
    """From the start of the first artifact to the end of the last."""
    machine: str = ""
    code: str = ""

    def __str__(self) -> str:
        return " · ".join(part for part in (self.made, self.took, self.machine, self.code) if part)


def identity(report: Report) -> Identity:
    """From the manifests of all artifacts, and the machine of the benchmark or of the training."""
    made = report["descent"]
    if not made:
        return Identity(report["name"], machine=_machine(report))
    first, last = min(each["made_at"] - each["seconds"] for each in made), max(each["made_at"] for each in made)
    newest = max(made, key=lambda each: float(each["made_at"]))["code"]
    commit = f" ({newest['commit'][:7]})" if newest["commit"] else ""
    return Identity(
        report["name"],
        f"{datetime.fromtimestamp(last, UTC):%-d %b %Y, %H:%M} UTC",
        elapsed(last - first),
        _machine(report),
        f"Stillhouse {newest['version']}{commit}",
    )


def _machine(report: Report) -> str:
    for table in (report["latency"], report["tables"]["3"]):
        machine = (table or {}).get("machine")
        if machine and machine.get("processor"):
            cores = f", {plural(machine['cores'], 'core')}" if machine.get("cores") else ""
            return f"{machine['processor']}{cores}"
    models = {model["name"]: model for model in report["models"]}
    trained = models.get(STUDENT) or models.get(TEACHER) or {}
    workers = f"{trained['workers']} × " if (trained.get("workers") or 1) > 1 else ""
    return f"{workers}{trained['device']}" if trained.get("device") else ""
