"""What the queue says of a job, and why the job waits."""

from collections.abc import Mapping
from typing import Any

from cluster import job_nodes
from cluster.job_book import Entry
from cluster.job_keeper import Keeper
from cluster.scheduling import Amounts


def line(keeper: Keeper, entry: Entry, now: float, nodes: Mapping[str, Amounts]) -> dict[str, Any]:
    """A job in short, as JSON."""
    job = entry.request.job
    return {
        "id": entry.id,
        "name": job.name,
        "state": entry.state,
        "why": _why(keeper, entry, now, nodes),
        "kind": job.kind,
        "user": job.user,
        "priority": entry.priority,
        "attempts": entry.attempts,
        "submitted": entry.at,
        "started": entry.started,
        "ended": entry.ended,
        "due": entry.due,
        "seconds": now - entry.started if entry.state == "running" and entry.started else entry.seconds,
        "host": entry.about["host"] if entry.about else "",
        "error": entry.error,
        "failure": entry.failure,
    }


def _why(keeper: Keeper, entry: Entry, now: float, nodes: Mapping[str, Amounts]) -> str:
    """Why a job waits, in words; of others, why their last attempt but one came to nothing."""
    if entry.state != "waiting":
        return "its worker is being started" if entry.state == "running" and not entry.about else entry.why
    if (before := keeper.book.awaited(entry)) is not None:
        return f"comes after {before.request.job.name}"
    if entry.until > now:
        return f"tried again in {entry.until - now:.0f} s: {entry.why}"
    if entry.id in keeper.crew.stopping():
        return "its last worker is being ended"
    if keeper.book.draining:
        return "the queue is drained"
    if (limit := keeper.book.held_by(entry)) is not None:
        return limit
    if (refusal := job_nodes.refusal(entry.request.job, nodes)) is not None:
        return refusal
    return "next for its node" if entry.id in keeper.promised else "waits for room"
