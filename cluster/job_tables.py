"""Jobs for people: a line of each, and everything about one."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

_COLUMNS = ("id", "name", "state", "kind", "user", "prio", "tries", "age", "ran", "where", "why")
_LAST_LINES = 20


def table(lines: Sequence[Mapping[str, Any]], now: float, width: int | None) -> str:
    """Jobs as columns; the last one says why a job waits or failed, cut where a terminal of this width ends."""
    rows = [_COLUMNS, *(_row(line, now) for line in lines)]
    widths = [max(len(row[number]) for row in rows) for number in range(len(_COLUMNS) - 1)]
    found = []
    for row in rows:
        start = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        found.append(f"{start}  {row[-1]}"[: None if width is None else max(width, len(start))].rstrip())
    return "\n".join(found)


def details(shown: Mapping[str, Any], printed: str, now: float) -> str:
    """Everything about one job: what it is, its history, and the last lines it printed."""
    job = shown["request"]["job"]
    needs = [
        f"{job['cpus']:g} CPUs",
        f"{job['gpus']:g} GPUs",
        *(f"{n:g} {name}" for name, n in job["resources"].items()),
    ]
    facts = {
        "id": shown["id"],
        "name": shown["name"],
        "state": " ".join(filter(None, [shown["state"], f"({shown['failure']})" if shown["failure"] else ""])),
        "why": shown["error"] or shown["why"],
        "by": f"{shown['user']}, {_ago(now - shown['submitted'])} ago, priority {shown['priority']}",
        "stage": job["module"],
        **{f"  --{role}": place for role, place in job["inputs"].items()},
        "  --out": job["out"],
        "needs": ", ".join(needs) + (", a node to itself" if job["alone"] else ""),
        "after": ", ".join(job["after"]),
        "deadline": _clock(shown["due"]) if shown["due"] else "",
        "log": shown["log"],
    }
    lines = [f"{word:<10} {value}" for word, value in facts.items() if value]
    lines += ["", *(f"{_clock(at)}  {what}" for at, what in shown["history"])]
    if last := printed.splitlines()[-_LAST_LINES:]:
        lines += ["", *(f"| {line}" for line in last)]
    return "\n".join(lines)


def _row(line: Mapping[str, Any], now: float) -> tuple[str, ...]:
    return (
        line["id"],
        line["name"],
        line["state"],
        line["kind"],
        line["user"],
        str(line["priority"]),
        str(line["attempts"]),
        _ago(now - line["submitted"]),
        _ago(line["seconds"]) if line["started"] else "-",
        line["host"] or "-",
        line["error"] or (line["why"] if line["state"] == "waiting" else ""),
    )


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
