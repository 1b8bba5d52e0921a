"""Fixtures that several test files share.

A test never changes what a session-scoped fixture made. The slowest files run first, so that no process of pytest-xdist
works alone at the end, and files that share the Ray cluster run one after the other.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import paths
import pytest
import s3_server
import s3fs
from filelock import FileLock

from cluster.storage import filesystem
from cluster.storage.filesystem import Location

# As in the Makefile: tests and their workers run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Ray gives its workers almost the lowest priority (niceness 15): beside other busy processes they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")

SLOWEST_FIRST = (
    "integration/test_launch.py",
    "unit/cluster/tokens/test_tokens.py",
    "integration/test_invariance.py",
    "unit/distill/train/test_train.py",
    "unit/distill/train/test_run_logger.py",
)
RAY = "ray_of_three_cpus"
_ray_files = pytest.StashKey[set[Path]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files: the slowest, then those that share the Ray cluster, then the others."""
    sharing = {item.path for item in items if RAY in getattr(item, "fixturenames", ())}
    config.stash[_ray_files] = sharing
    ranks = {paths.TESTS / name: rank for rank, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: (ranks.get(item.path, len(ranks)), item.path not in sharing))


class SharedRay:
    """A Ray cluster of three CPUs in this process, started when it is first used."""

    def __init__(self) -> None:
        self._running: ExitStack | None = None

    def start(self) -> None:
        from cluster.actors import ray_cluster

        if self._running is None:
            self._running = ExitStack()
            patch = self._running.enter_context(pytest.MonkeyPatch.context())
            # Ray's workers import the tests' modules and find the toy stage by name.
            patch.setenv("PYTHONPATH", str(paths.SUPPORT), prepend=os.pathsep)
            patch.delenv(ray_cluster.ADDRESS, raising=False)
            self._running.enter_context(ray_cluster.connect(3))

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None


@pytest.fixture(scope="session")
def _shared_ray() -> Iterator[SharedRay]:
    shared = SharedRay()
    yield shared
    shared.stop()


@pytest.fixture(scope="module", autouse=True)
def _no_ray_in_other_files(request: pytest.FixtureRequest, _shared_ray: SharedRay) -> None:
    """Stop the shared cluster before the first file that does not use it."""
    if request.path not in request.config.stash[_ray_files]:
        _shared_ray.stop()


@pytest.fixture(scope="module")
def ray_of_three_cpus(_shared_ray: SharedRay) -> None:
    """Connect this process to a Ray cluster of three CPUs. No test may start a job queue on it."""
    _shared_ray.start()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder by name once for all processes of pytest-xdist: the first one makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, complete = root / name, root / f"{name}.complete"
        with FileLock(root / f"{name}.lock"):
            if not complete.exists():
                folder.mkdir()
                fill(folder)
                complete.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def _tokens_and_teacher(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    import tokens_artifact

    return made_once("tokens-and-teacher", tokens_artifact.make)


@pytest.fixture(scope="module")
def training_folder(_tokens_and_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per test file with the artifacts ``tokens`` and ``teacher``, and the teacher's model in ``bert``."""
    return shutil.copytree(_tokens_and_teacher, tmp_path_factory.mktemp("training") / "folder")


@pytest.fixture(scope="session")
def curve_of_forty_steps(
    _tokens_and_teacher: Path, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> list[float]:
    """Losses of an uninterrupted run with ``train_processes.FORTY_STEPS``. They do not depend on the placement."""
    from train_processes import FORTY_STEPS, curve, train

    def fill(folder: Path) -> None:
        done = train(_tokens_and_teacher, folder / "run", 1, *FORTY_STEPS)
        assert done.returncode == 0, done.stderr

    return curve(made_once("forty-steps", fill) / "run")


@pytest.fixture(scope="session")
def s3_requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log of requests to the S3 server, one per line."""
    return tmp_path_factory.mktemp("s3") / "requests.log"


@pytest.fixture(scope="session")
def _s3_port(s3_requests: Path) -> Iterator[int]:
    with s3_server.serving(s3_requests) as port:
        yield port


@pytest.fixture
def bucket(_s3_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> s3fs.S3FileSystem:
    """The file system of an S3 server with an empty bucket. This process and its children use the server."""
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    return s3_server.use(_s3_port, monkeypatch)


@pytest.fixture(params=["local", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder on this machine and one in an object store, for tests that must pass in both."""
    if request.param == "local":
        return tmp_path / "text"
    request.getfixturevalue("bucket")
    return filesystem.location("s3://barrel/text")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Set torch to one thread: earlier tests may have changed the number."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
