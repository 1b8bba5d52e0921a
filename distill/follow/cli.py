"""Draw the metrics of a run in TensorBoard, Weights & Biases, MLflow or Trackio.

::

    stillhouse follow RUN --to tensorboard

RUN is a run folder, finished or still growing, or a teacher that was trained here. A finished run is drawn at once; a
growing one until its last step, or until Ctrl-C. Drawn again, only what is new is added. A run whose recipe says
``[train.placement] follow = ["tensorboard"]`` starts this itself.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.artifacts import errors
from cluster.artifacts.errors import StageError
from cluster.artifacts.help_format import HelpFormatter
from cluster.telemetry.formatting import plural
from cluster.telemetry.progress import say
from distill.follow import follower, trackers
from distill.follow.followed_run import FollowedRun
from distill.follow.trackers import NAMES, TrackerName


def main(arguments: Sequence[str] | None = None, prog: str = "stillhouse follow") -> None:
    """The command line."""
    epilog = f"example: {prog} out/runs/student --to tensorboard"
    parser = argparse.ArgumentParser(
        prog=prog, formatter_class=HelpFormatter, description=(__doc__ or "").partition("\n")[0], epilog=epilog
    )
    run = "a run folder, or a teacher that was trained here; example: out/runs/student"
    parser.add_argument("run", metavar="RUN", type=Path, help=run)
    to = f"the tracker: {', '.join(NAMES)}; example: tensorboard"
    parser.add_argument("--to", metavar="TRACKER", choices=NAMES, required=True, help=to)
    once = "draw what is there, and do not wait for more (default: until the run ends)"
    parser.add_argument("--once", action="store_true", help=once)
    parser.add_argument("--accompany", metavar="SECONDS", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    followed = FollowedRun(options.run.absolute())
    with errors.errors_for_people():
        if options.accompany is not None:
            sys.exit(follower.accompany(followed, options.to, options.accompany))
        followed.check()
        trackers.check([options.to])
        try:
            _follow(followed, options.to, once=options.once)
        except follower.TrackerError as error:
            again = f"run the same command again, or delete {followed.file(options.to, 'json')} for a new curve"
            raise StageError(f"{options.to}: {error}: {again}") from None


def _follow(run: FollowedRun, name: TrackerName, *, once: bool) -> None:
    with follower.only_follower(run, name, 0):
        drawing = follower.Follower(run, name)
        try:
            count = drawing.draw()
            if not drawing.finished and not once:
                say(f"{run.title}: drawn to step {drawing.step}, following it; Ctrl-C ends")
            while not drawing.finished and not once:
                time.sleep(follower.POLL_SECONDS)
                count += drawing.draw()
        finally:
            drawing.close()
    print(f"{run.title}: {plural(count, 'new line')} to step {drawing.step} in {name}")
