"""The job queue of a Ray cluster: submit, list, wait for, cancel and retry jobs.

::

    stillhouse jobs start --ledger DIR [--metrics-port N] [--limit-user NAME=N] [--limit-kind KIND=N]
    stillhouse jobs submit STAGE RECIPE --<role> DIR … --out DIR [--set key=value] [--after ID] [--gpus 1] …
    stillhouse jobs list | show ID | logs ID | wait ID … | cancel ID … | retry ID … | drain | stop

``RAY_ADDRESS`` names the cluster: ``host:6379`` from one of its machines, ``ray://host:10001`` from any other. Results
go to stdout, progress and errors to stderr.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.actors import ray_cluster
from cluster.artifacts import cli, errors, registry, stage
from cluster.artifacts.help_format import HelpFormatter
from cluster.jobs import client
from cluster.jobs.job import GOOD, OPEN, Job, current_user
from cluster.telemetry import terminal
from cluster.telemetry.formatting import duration

_SCHEDULING = ("cpus", "gpus", "alone", "priority", "deadline", "kind", "user")
"""Options of ``submit`` with the name of an attribute of the job."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_POLL_SECONDS = 0.5
_LAST_BYTES, _LAST_LINES = 4000, 20
"""End of the log in ``show``."""
_UNLIMITED = 10_000
"""Columns of a list in a pipe: a line never wraps."""
_COLUMNS = ("id", "name", "state", "kind", "user", "prio", "tries", "age", "ran", "where", "why")
_SHOWN = ("id", "name", "state", "kind", "user", "priority", "attempts")
_COLOURS = {"done": "green", "skipped": "green", "failed": "red", "running": "cyan", "cancelled": "dim"}


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster.jobs") -> None:
    """Run a command. Exits 1 on errors and if a job that it waited for failed, 2 on usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with errors.errors_for_people():
        options = _parse(given, prog)
        if not os.environ.get(ray_cluster.ADDRESS):
            raise errors.StageError(
                f"no cluster is named: set {ray_cluster.ADDRESS} to its head's host:6379 (on a machine of the cluster) "
                "or to ray://host:10001; without a cluster, run the stage itself with stillhouse STAGE"
            )
        # Ray prints the fate of nodes and workers on stdout; results must not mix with that.
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
    epilog = f"example: {prog} submit eval.finetune finetune --model out/teacher --data glue/rte --out out/scores"
    description = "The job queue of the Ray cluster at RAY_ADDRESS."
    parser = argparse.ArgumentParser(prog=prog, formatter_class=HelpFormatter, description=description, epilog=epilog)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], bool], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        added.set_defaults(command=run)
        _add_ledger(added)
        return added

    start = command("start", _start, "Start the queue, or change the limits of the running one.")
    port = "port for Prometheus on the queue's node (default: unchanged; at first none); example: 9401"
    start.add_argument("--metrics-port", type=int, metavar="N", help=port)
    for word, example in (("user", "alice=4"), ("kind", "eval.finetune=2")):
        limit = (
            f"most jobs of a {word} that run at a time, *=N for any not named; repeatable; replaces the earlier limits "
            f"(default: unchanged; at first none); example: {example}"
        )
        name = f"{word.upper()}=N"
        start.add_argument(f"--limit-{word}", type=_limit, action="append", metavar=name, help=limit)
    submit = command("submit", _explain_submit, "Submit a stage call: STAGE RECIPE --<role> DIR … --out DIR")
    called = "stage to run, which submit STAGE --help explains; example: eval.finetune"
    submit.add_argument("stage", metavar="STAGE", help=called)
    listed = command("list", _list, "List the jobs that wait or run.")
    listed.add_argument("--all", action="store_true", help="include jobs that have ended (default: only open ones)")
    listed.add_argument("--user", help="only jobs of this user (default: of all users); example: alice")
    shown = command("show", _show, "Show everything about a job.")
    for added in (listed, shown):
        added.add_argument("--json", action="store_true", help="print JSON (default: text)")
    logs = command("logs", _logs, "Print the output of a job.")
    logs.add_argument("--follow", "-f", action="store_true", help="until the job ends (default: the output so far)")
    for added in (shown, logs):
        added.add_argument("job", metavar="ID", help="id, its beginning, or the name of one job; example: 3f9a")
    for name, run, summary in (
        ("wait", _wait, "Wait until jobs have ended; exits 1 if one failed."),
        ("cancel", _cancel, "Cancel jobs, waiting or running."),
        ("retry", _retry, "Submit failed or cancelled jobs again, and those that failed because of them."),
    ):
        command(name, run, summary).add_argument(
            "jobs", metavar="ID", nargs="+", help="ids, their beginnings, or names of one job each; example: 3f9a"
        )
    drain = command("drain", _drain, "Start no more jobs; running jobs continue.")
    drain.add_argument("--off", action="store_true", help="start jobs again (default: stop starting them)")
    command(
        "stop", lambda _: client.stop(), "End the queue, for instance to start a newer version; its jobs keep running."
    )
    return parser


def _submit_parser(name: str, prog: str) -> argparse.ArgumentParser:
    """The arguments of the stage, and the options of the job."""
    called = registry.find(name)
    parser = cli.parser_for(called, f"{prog} submit {name}")
    add = parser.add_argument_group("job").add_argument
    add("--name", help="name in lists and messages (default: the last part of --out); example: rte-seed-2")
    add("--after", action="append", default=[], metavar="ID", help="job to be done first, repeatable (default: none)")
    add("--cpus", type=float, metavar="N", help=f"CPUs on one node (default: {called.cpus:g}); example: 4")
    add("--gpus", type=float, default=0, metavar="N", help="GPUs, or a share of one (default: 0); example: 0.25")
    add(
        "--resource",
        type=_amount,
        action="append",
        default=[],
        metavar="NAME=N",
        help="custom resource of Ray's nodes, repeatable (default: none); example: benchmark=1",
    )
    alone = f"no other job on its node, for time measurements (default: {'alone' if called.alone else 'share it'})"
    add("--alone", action=argparse.BooleanOptionalAction, help=alone)
    add("--priority", type=int, default=0, metavar="N", help="higher ones start first (default: 0); example: 5")
    add("--deadline", type=_seconds, metavar="TIME", help="cancel it after this time (default: never); example: 2h")
    add("--kind", default="", help="kind for --limit-kind (default: that of the stage); example: nightly")
    add("--user", default=current_user(), help="user for --limit-user (default: %(default)s); example: alice")
    add("--wait", action="store_true", help="print its output until it ends (default: return at once)")
    _add_ledger(parser)
    parser.set_defaults(command=lambda options: _submit(called, options))
    return parser


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    text = f"folder of the queue's ledger, on storage all nodes see (default: ${client.LEDGER}); example: /shared/jobs"
    parser.add_argument("--ledger", type=Path, metavar="DIR", help=text)


def _start(options: argparse.Namespace) -> bool:
    found = _queue(options)
    limits = {"users": options.limit_user, "kinds": options.limit_kind}
    if given := {word: dict(limit) for word, limit in limits.items() if limit is not None}:
        found.limit(**given)
    if options.metrics_port is not None:
        found.serve(options.metrics_port)
    print(found.ledger, file=options.answers)
    return True


def _submit(called: stage.Stage[stage.R], options: argparse.Namespace) -> bool:
    recipe, inputs, out = cli.stage_call(called, options)
    job = Job(
        name=options.name or out.name,
        stage=called.name,
        recipe=recipe.resolved(),
        inputs=cast(dict[str, Path], inputs),
        out=cast(Path, out),
        after=tuple(options.after),
        resources=dict(options.resource),
        **{name: getattr(options, name) for name in _SCHEDULING},
    )
    found = _queue(options)
    offsets = found.submit_with_offsets([job])
    submitted = next(iter(offsets))
    print(submitted, file=options.answers, flush=True)
    if not options.wait:
        return True
    outcome = next(found.follow(offsets, {submitted: job.name}))
    print(client.sentence(outcome), file=sys.stderr)
    return outcome.state in GOOD


def _explain_submit(options: argparse.Namespace) -> bool:
    raise errors.StageError("write submit STAGE RECIPE --<role> DIR … --out DIR, with the stage first")


def _list(options: argparse.Namespace) -> bool:
    found = _queue(options)
    jobs = [
        job for job in found.list() if (options.all or job["state"] in OPEN) and options.user in (None, job["user"])
    ]
    if options.json:
        print(json.dumps(jobs, indent=2, ensure_ascii=False), file=options.answers)
        return True
    about = found.about()
    console = _console(options)
    options.answers.write(terminal.render(console, job_table(jobs, time.time(), expand=console.is_terminal)))
    counts = ", ".join(f"{count} {state}" for state, count in sorted(about["counts"].items())) or "no jobs yet"
    print(f"{counts}; ledger {about['ledger']}{'; drained' if about['draining'] else ''}", file=sys.stderr)
    if about["trouble"]:
        print(f"problem: {about['trouble']}", file=sys.stderr)
    return True


def _show(options: argparse.Namespace) -> bool:
    found = _queue(options)
    shown = found.show(options.job)
    if options.json:
        print(json.dumps(shown, indent=2, ensure_ascii=False), file=options.answers)
        return True
    log = found.log(options.job, -_LAST_BYTES)["text"].splitlines()[-_LAST_LINES:]
    history = [(_clock(at), what) for at, what in shown["history"]]
    lines = [Text(f"  | {terminal.safe(line)}") for line in log]
    facts = terminal.pairs(_facts(shown, time.time()))
    options.answers.write(terminal.render(_console(options), facts, Text(), terminal.pairs(history), Text(), *lines))
    return True


def _console(options: argparse.Namespace) -> Console:
    return terminal.console_for(options.answers, piped=_UNLIMITED)


def _logs(options: argparse.Namespace) -> bool:
    found, offset = _queue(options), 0
    while True:
        part = found.log(options.job, offset)
        options.answers.write(part["text"])
        options.answers.flush()
        if not part["text"] and not (options.follow and part["state"] in OPEN):
            return True
        if not part["text"]:
            time.sleep(_POLL_SECONDS)
        offset = part["offset"]


def _wait(options: argparse.Namespace) -> bool:
    found = _queue(options)
    outcomes = found.wait([found.id_of(text) for text in options.jobs])
    for outcome in outcomes:
        print(client.sentence(outcome), file=options.answers)
    return all(outcome.state in GOOD for outcome in outcomes)


def _cancel(options: argparse.Namespace) -> bool:
    options.answers.writelines(f"{name}\n" for name in _queue(options).cancel(options.jobs))
    return True


def _retry(options: argparse.Namespace) -> bool:
    options.answers.writelines(f"{name}\n" for name in _queue(options).retry(options.jobs))
    return True


def _drain(options: argparse.Namespace) -> bool:
    _queue(options).drain(not options.off)
    return True


def _queue(options: argparse.Namespace) -> client.Queue:
    return client.start(options.ledger) if options.ledger is not None else client.queue()


def _limit(text: str) -> tuple[str, int]:
    if (found := re.fullmatch(r"(.+)=(\d+)", text)) is None:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=N, for example alice=4, or *=8 for any")
    return found[1], int(found[2])


def _amount(text: str) -> tuple[str, float]:
    if (found := re.fullmatch(r"(.+)=(\d+(?:\.\d+)?)", text)) is None:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=N, for example quiet=1")
    return found[1], float(found[2])


def _seconds(text: str) -> float:
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)) is None:
        raise argparse.ArgumentTypeError(f"{text}: write 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def job_table(jobs: Sequence[Mapping[str, Any]], now: float, expand: bool) -> Table:
    """One line per job; ``expand`` cuts the last column, why a job waits or failed, at the width of the terminal."""
    table = Table(*_COLUMNS, box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim", expand=expand)
    for column in table.columns:
        column.no_wrap = True
    table.columns[-1].ratio = 1
    for job in jobs:
        age, ran = duration(now - job["submitted"]), duration(job["seconds"]) if job["started"] else "-"
        has_worker = job["state"] != "waiting" and job["host"]
        why = job["error"] or ("" if has_worker or job["state"] not in OPEN else job["why"])
        cells = [*(str(job[name]) for name in _SHOWN), age, ran, job["host"] or "-", why]
        row = [Text(terminal.safe(cell)) for cell in cells]
        row[2].stylize(_COLOURS.get(job["state"], ""))
        table.add_row(*row)
    return table


def _facts(shown: Mapping[str, Any], now: float) -> list[tuple[str, str]]:
    job = shown["request"]["job"]
    amounts = {"CPUs": job["cpus"], "GPUs": job["gpus"], **job["resources"]}
    needs = [f"{amount:g} {name}" for name, amount in amounts.items()] + ["a node to itself"] * job["alone"]
    facts = {
        "id": shown["id"],
        "name": shown["name"],
        "state": shown["state"] + (f" ({shown['failure']})" if shown["failure"] else ""),
        "why": shown["error"] or shown["why"],
        "by": f"{shown['user']}, {duration(now - shown['submitted'])} ago, priority {shown['priority']}",
        "stage": job["stage"],
        **{f"--{role}": place for role, place in job["inputs"].items()},
        "--out": job["out"],
        "needs": ", ".join(needs),
        "after": ", ".join(job["after"]),
        "deadline": _clock(shown["due"]) if shown["due"] else "",
        "log": shown["log"],
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _clock(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
