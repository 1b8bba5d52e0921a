"""The command line of the job queue.

::

    python -m cluster.jobs start --ledger DIR [--metrics-port N] [--limit-user NAME=N] [--limit-kind KIND=N]
    python -m cluster.jobs submit MODULE RECIPE --<role> DIR … --out DIR [--set key=value] [--after ID] [--gpus 1] …
    python -m cluster.jobs list | show ID | logs ID | wait ID … | cancel ID … | retry ID … | drain | stop

It talks to the queue of the cluster at ``RAY_ADDRESS``: ``host:6379`` on a machine of the cluster, ``ray://host:10001``
from any other. Answers go to stdout, progress and errors to stderr.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from cluster.actors import ray_cluster
from cluster.artifacts import cli, errors, registry, stage
from cluster.jobs import client
from cluster.jobs.job import OPEN, Job, login

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LOOK_SECONDS = 0.5
_LAST_BYTES = 4000
"""Of a log, in what is shown of a job."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster.jobs") -> None:
    """Run a command: exits 1 on errors for people and where a job that was waited for failed, 2 on usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with errors.errors_for_people():
        options = _parse(given, prog)
        if not os.environ.get(ray_cluster.ADDRESS):
            raise errors.StageError(
                f"no cluster is named: set {ray_cluster.ADDRESS} to its head's host:6379 (on a machine of the cluster) "
                "or to ray://host:10001; without a cluster, run the stage itself with python -m MODULE"
            )
        # Answers have stdout to themselves: there Ray tells whoever is connected what becomes of nodes and workers.
        options.answers = sys.stdout
        with contextlib.redirect_stdout(sys.stderr), ray_cluster.connect():
            good = options.command(options)
    if not good:
        sys.exit(1)


def _parse(given: Sequence[str], prog: str) -> argparse.Namespace:
    if given[:1] == ["submit"] and len(given) > 1 and not given[1].startswith("-"):
        return _submit_parser(given[1], prog).parse_args(given[2:])
    return _parser(prog).parse_args(given)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="The job queue of a Ray cluster.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], bool], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(command=run)
        added.add_argument("--ledger", type=Path, metavar="DIR", help=f"where it is kept (default: ${client.LEDGER})")
        return added

    start = command("start", _start, "Start the queue, or change its limits.")
    start.add_argument("--metrics-port", type=int, metavar="N", help="serve metrics on this port of the queue's node")
    start.add_argument(
        "--limit-user", type=_limit, action="append", metavar="NAME=N", help="jobs at a time; *=N: of any"
    )
    start.add_argument(
        "--limit-kind", type=_limit, action="append", metavar="KIND=N", help="jobs at a time; *=N: of any"
    )
    submit = command("submit", _explain_submit, "Submit a stage call: MODULE RECIPE --<role> DIR … --out DIR")
    submit.add_argument("module", metavar="MODULE", help="submit MODULE --help says more")
    shown = command("list", _list, "List the jobs that wait or run.")
    shown.add_argument("--all", action="store_true", help="those that ended, too")
    shown.add_argument("--user", help="only of this user")
    shown.add_argument("--json", action="store_true", help="as JSON")
    one = command("show", _show, "Show everything about a job.")
    one.add_argument("--json", action="store_true", help="as JSON")
    logs = command("logs", _logs, "Print what a job has printed.")
    logs.add_argument("--follow", "-f", action="store_true", help="until it has ended")
    for added in (one, logs):
        added.add_argument("job", metavar="ID", help="id, its beginning, or the name of one job")
    for name, run, summary in (
        ("wait", _wait, "Wait until jobs have ended; exits 1 if one failed."),
        ("cancel", _cancel, "End jobs, waiting or running."),
        ("retry", _retry, "Try failed or cancelled jobs again, and those that failed because of them."),
    ):
        command(name, run, summary).add_argument("jobs", metavar="ID", nargs="+")
    drain = command("drain", _drain, "Start nothing new; what runs ends.")
    drain.add_argument("--off", action="store_true", help="go on")
    command("stop", _stop, "End the queue, for instance to start a newer version; its jobs go on.")
    return parser


def _submit_parser(module: str, prog: str) -> argparse.ArgumentParser:
    """The command line of the stage itself, and what the queue wants to know."""
    called = registry.find(module)
    parser = cli.parser_for(called, f"{prog} submit {module}")
    of = parser.add_argument_group("as a job")
    of.add_argument("--name", help="what it is called (default: that of --out)")
    of.add_argument("--after", action="append", default=[], metavar="ID", help="a job that must be done first")
    of.add_argument("--cpus", type=float, default=1, metavar="N")
    of.add_argument("--gpus", type=float, default=0, metavar="N", help="below 1: a share of one")
    of.add_argument("--resource", type=_amount, action="append", default=[], metavar="NAME=N", help="of Ray's nodes")
    of.add_argument("--alone", action="store_true", help="a node to itself, for measurements of time")
    of.add_argument("--priority", type=int, default=0, metavar="N", help="higher ones start first")
    of.add_argument("--deadline", type=_seconds, metavar="TIME", help="give it up so long after now: 90s, 30m, 2h, 1d")
    of.add_argument("--kind", default="", help="what limits count it as (default: the stage's kind, or what it makes)")
    of.add_argument("--user", default=login(), help="whose it is (default: %(default)s)")
    of.add_argument("--wait", action="store_true", help="until it has ended, showing what it prints")
    of.add_argument("--ledger", type=Path, metavar="DIR", help=f"of the queue (default: ${client.LEDGER})")
    parser.set_defaults(command=lambda options: _submit(called, options))
    return parser


def _start(options: argparse.Namespace) -> bool:
    found = _queue(options)
    if options.limit_user is not None or options.limit_kind is not None:
        asked = (options.limit_user, options.limit_kind)
        found.limit(*(None if limits is None else dict(limits) for limits in asked))
    if options.metrics_port is not None:
        found.serve(options.metrics_port)
    print(found.ledger, file=options.answers)
    return True


def _submit(called: stage.Stage[Any], options: argparse.Namespace) -> bool:
    recipe, inputs, out = cli.asked(called, options)
    job = Job(
        name=options.name or out.name,
        stage=called.name,
        recipe=recipe.resolved(),
        inputs=cast(dict[str, Path], inputs),
        out=cast(Path, out),
        after=tuple(options.after),
        cpus=options.cpus,
        gpus=options.gpus,
        resources=dict(options.resource),
        alone=options.alone,
        priority=options.priority,
        deadline=options.deadline,
        kind=options.kind,
        user=options.user,
    )
    found = _queue(options)
    printed = found.enter([job])
    submitted = next(iter(printed))
    print(submitted, file=options.answers, flush=True)
    if not options.wait:
        return True
    outcome = next(found.follow({submitted: job.name}, printed))
    print(client.sentence(outcome), file=sys.stderr)
    return outcome.state in ("done", "skipped")


def _explain_submit(options: argparse.Namespace) -> bool:
    raise errors.StageError("write submit MODULE RECIPE --<role> DIR … --out DIR, the module first")


def _list(options: argparse.Namespace) -> bool:
    found = _queue(options)
    lines = [
        line for line in found.list() if (options.all or line["state"] in OPEN) and options.user in (None, line["user"])
    ]
    if options.json:
        print(json.dumps(lines, indent=2, ensure_ascii=False), file=options.answers)
        return True
    about = found.about()
    width = shutil.get_terminal_size().columns if options.answers.isatty() else None
    print(table(lines, time.time(), width), file=options.answers)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(about["counts"].items())) or "no jobs yet"
    print(f"{counts}; ledger {about['ledger']}{'; drained' if about['draining'] else ''}", file=sys.stderr)
    if about["trouble"]:
        print(f"trouble: {about['trouble']}", file=sys.stderr)
    return True


def _show(options: argparse.Namespace) -> bool:
    found = _queue(options)
    shown = found.show(options.job)
    if options.json:
        print(json.dumps(shown, indent=2, ensure_ascii=False), file=options.answers)
    else:
        print(details(shown, found.log(options.job, -_LAST_BYTES)["text"], time.time()), file=options.answers)
    return True


def _logs(options: argparse.Namespace) -> bool:
    found, offset = _queue(options), 0
    while True:
        part = found.log(options.job, offset)
        options.answers.write(part["text"])
        options.answers.flush()
        if not part["text"] and not (options.follow and part["state"] in OPEN):
            return True
        if not part["text"]:
            time.sleep(_LOOK_SECONDS)
        offset = part["offset"]


def _wait(options: argparse.Namespace) -> bool:
    found = _queue(options)
    outcomes = found.wait([found.id_of(text) for text in options.jobs])
    for outcome in outcomes:
        print(client.sentence(outcome), file=options.answers)
    return all(outcome.state in ("done", "skipped") for outcome in outcomes)


def _cancel(options: argparse.Namespace) -> bool:
    for name in _queue(options).cancel(options.jobs):
        print(name, file=options.answers)
    return True


def _retry(options: argparse.Namespace) -> bool:
    for name in _queue(options).retry(options.jobs):
        print(name, file=options.answers)
    return True


def _drain(options: argparse.Namespace) -> bool:
    _queue(options).drain(not options.off)
    return True


def _stop(options: argparse.Namespace) -> bool:
    return client.stop()


def _queue(options: argparse.Namespace) -> client.Queue:
    return client.start(options.ledger) if options.ledger is not None else client.queue()


def _limit(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if not name or not re.fullmatch(r"\d+", number):
        raise argparse.ArgumentTypeError(f"{text}: write NAME=N, for example alice=4, or *=8 for anybody")
    return name, int(number)


def _amount(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        return name, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=N, for example quiet=1") from None


def _seconds(text: str) -> float:
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)) is None:
        raise argparse.ArgumentTypeError(f"{text}: write 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


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
        "stage": job["stage"],
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
