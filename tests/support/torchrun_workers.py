"""Run a function of a test module on several workers, which torchrun starts once for many cases."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_processes import environment


def run_on_workers(workers: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Results of ``function(*arguments)`` on every worker, by rank. Arguments and results are JSON values.

    Every process imports the function's module and takes the function by name, so it must be a top-level function.
    """
    name = f"{function.__code__.co_filename}:{function.__name__}"
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "arguments.json")
        given.write_text(json.dumps(arguments), encoding="utf-8")
        starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
        done = subprocess.run(
            [sys.executable, *starter, __file__, name, folder],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(workers)]


def main(name: str, folder: str) -> None:
    from distill.engine import process_group

    workers = process_group.join(threads=1)
    path, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("together", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = json.loads(Path(folder, "arguments.json").read_text(encoding="utf-8"))
    found = getattr(module, function)(*arguments)
    Path(folder, f"{workers.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
