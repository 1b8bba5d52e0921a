"""The ledger of the job queue: complete lines count, torn lines and late writes do not."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts.errors import StageError
from cluster.jobs import ledger
from cluster.jobs.ledger import Ledger, SupersededError


def _note(number: int) -> dict[str, Any]:
    return {"event": "drained", "on": True, "number": number}


def _numbers(folder: Path) -> list[int]:
    return [event["number"] for event in ledger.read(folder) if event["event"] == "drained"]


def test_the_next_owner_reads_the_ledger(tmp_path: Path) -> None:
    for number in range(3):
        ledger = Ledger(tmp_path / "new", "here")
        assert [event["number"] for event in ledger.events if event["event"] == "drained"] == list(range(number))
        ledger.append([_note(number)])
        ledger.close()
    assert _numbers(tmp_path / "new") == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "new").glob("*.jsonl")) == [
        "segment-00001.jsonl",
        "segment-00002.jsonl",
        "segment-00003.jsonl",
    ]


@pytest.mark.parametrize("torn", ['{"event": "drained", "number": 9', '{"event": "drained", "number": 9}'])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    ledger = Ledger(tmp_path, "here")
    ledger.append([_note(0)])
    ledger.close()
    with (tmp_path / "segment-00001.jsonl").open("a") as file:
        file.write(torn)
    assert _numbers(tmp_path) == [0]
    again = Ledger(tmp_path, "here")
    again.append([_note(1)])
    assert _numbers(tmp_path) == [0, 1]


def test_a_crash_before_the_first_line_of_a_segment_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "here")
    ledger.append([_note(0)])
    ledger.close()
    (tmp_path / "segment-00002.jsonl").write_text('{"event": "op')
    assert _numbers(tmp_path) == [0]
    again = Ledger(tmp_path, "here")
    again.append([_note(1)])
    assert _numbers(tmp_path) == [0, 1]


def test_a_superseded_owner_cannot_write(tmp_path: Path) -> None:
    old = Ledger(tmp_path, "here")
    old.append([_note(0)])
    new = Ledger(tmp_path, "here")
    with pytest.raises(SupersededError, match="another process owns"):
        old.append([_note(1)])
    with pytest.raises(SupersededError):
        old.check()
    # Not even if it checked before the new owner began, and wrote after.
    with (tmp_path / "segment-00001.jsonl").open("a") as file:
        file.write(json.dumps(_note(2)) + "\n")
    new.append([_note(3)])
    assert _numbers(tmp_path) == [0, 3]


def test_a_live_queue_of_another_cluster_keeps_the_ledger(tmp_path: Path) -> None:
    theirs = Ledger(tmp_path, "there")
    with pytest.raises(StageError, match=r"another cluster \(on .*, process \d+\)"):
        Ledger(tmp_path, "here")
    theirs.append([_note(0)])
    theirs.close()
    assert [event["number"] for event in Ledger(tmp_path, "here").events[1:]] == [0]


def test_a_line_that_no_crash_explains_is_named(tmp_path: Path) -> None:
    Ledger(tmp_path, "here").append([_note(0)])
    path = tmp_path / "segment-00001.jsonl"
    path.write_text(path.read_text() + "garbled\n" + json.dumps(_note(1)) + "\n")
    with pytest.raises(StageError, match=r"segment-00001.jsonl: line 3 is damaged"):
        ledger.read(tmp_path)


def test_a_ledger_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "segment-00001.jsonl").write_text('{"event": "opened", "format": 99}\n')
    with pytest.raises(StageError, match="format 99"):
        Ledger(tmp_path, "here")


FULL = """
import sys
from pathlib import Path
from cluster.jobs.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]), "here")
ledger.append([{"event": "drained", "on": True, "number": 0}])
try:
    ledger.append([{"event": "drained", "on": True, "number": 1, "text": "x" * 10_000}])
except OSError as error:
    print(error.errno)
ledger.append([{"event": "drained", "on": True, "number": 2}])
"""


def test_a_full_disk_leaves_no_partial_line(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.stdout == f"{errno.EFBIG}\n", done.stderr
    assert _numbers(tmp_path) == [0, 2]


NO_ROOM = """
import os
import sys
from pathlib import Path
from cluster.jobs.ledger import Ledger

for _ in range(3):
    try:
        Ledger(Path(sys.argv[1]), "here")
    except OSError as error:
        print(error.errno, len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="files that are open are counted in /proc")
def test_a_ledger_that_cannot_be_opened_leaves_nothing_behind_each_time(tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))

    done = subprocess.run(
        [sys.executable, "-B", "-c", NO_ROOM, str(tmp_path)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    tries = done.stdout.splitlines()
    assert len(tries) == 3, done.stderr
    assert len({*tries}) == 1
    assert tries[0].startswith(f"{errno.EFBIG} ")
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_a_deleted_ledger_is_reported(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "here")
    (tmp_path / "segment-00001.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="stillhouse jobs stop"):
        ledger.append([_note(0)])


def test_words_that_are_not_unicode_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "here")
    ledger.append([{"event": "drained", "on": True, "number": os.fsdecode(b"\xff-\xc3\xa4")}])
    assert str(_numbers(tmp_path)[0]) == os.fsdecode(b"\xff-\xc3\xa4")
