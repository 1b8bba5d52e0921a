"""Artifacts in an object store: the manifest is written last, one process writes at a time, and attempts resume."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3_server
import s3fs
from upath import UPath

from cluster.artifacts import artifact, commit
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import ArtifactError
from cluster.storage import filesystem, lease
from cluster.storage.lease import LeaseError

RECIPE = {"seed": 1}

KILLED = """
import os, signal, sys
from cluster.artifacts import artifact
from cluster.storage import filesystem

with artifact.create(sys.argv[1], kind="tokens", inputs={}, recipe={"seed": 1}) as draft:
    filesystem.write_json(draft.location / "first.json", 1)
    os.kill(os.getpid(), signal.SIGKILL)
"""

HELD = """
import sys
from cluster.artifacts import artifact
from cluster.storage import filesystem

with artifact.create(sys.argv[1], kind="tokens", inputs={}, recipe={"seed": 1}) as draft:
    filesystem.write_json(draft.location / "rows.json", "first")
    print("held", flush=True)
    sys.stdin.readline()
"""


RENEWED = """
import itertools, sys
from cluster.storage import filesystem

place = filesystem.location(sys.argv[1])
for beat in itertools.count():
    filesystem.write_json(place, {"host": "other" * (beat % 50), "beat": beat})
    print(beat, flush=True)
"""


class CrashError(Exception):
    """Ends an attempt."""


class Clock:
    """Replaces the module ``time`` of :mod:`lease`: sleeping takes no time and renews the lease if a test asks."""

    def __init__(self, during_sleep: Callable[[], None] = lambda: None) -> None:
        self._now = 0.0
        self._during_sleep = during_sleep

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        self._during_sleep()


@pytest.fixture
def out(bucket: s3fs.S3FileSystem) -> UPath:
    found = filesystem.location("s3://barrel/made/tokens")
    assert isinstance(found, UPath)
    return found


def _make(out: filesystem.Location, text: str = "rows", **given: Any) -> Artifact:
    with artifact.create(out, **{"kind": "tokens", "inputs": {}, "recipe": RECIPE, **given}) as draft:
        filesystem.write_json(draft.location / "rows.json", text)
        filesystem.write_json(draft.location / "shards" / "0.json", {})
        draft.facts["rows"] = 3
    return artifact.read(out)


def _interrupt(out: UPath, name: str, **given: Any) -> list[str]:
    """Make an attempt that ends with an exception; returns the files that it found."""
    found: list[str] = []
    call = {"kind": "tokens", "inputs": {}, "recipe": RECIPE, **given}
    with contextlib.suppress(CrashError), artifact.create(out, **call) as draft:
        found += [name for name in filesystem.listing(draft.location) if not name.startswith(".")]
        filesystem.write_json(draft.location / name, name)
        raise CrashError
    return found


def test_an_artifact_is_the_same_in_a_folder_and_in_an_object_store(out: UPath, tmp_path: Path) -> None:
    there, here = _make(out), _make(tmp_path / "tokens")
    assert artifact.verify(out, "tokens") == there
    assert there.identity == here.identity
    assert there.files == here.files
    assert [*filesystem.listing(out)] == ["manifest.json", "rows.json", "shards/0.json"]


def test_a_folder_without_a_manifest_is_not_an_artifact(out: UPath) -> None:
    with artifact.create(out, kind="tokens", inputs={}, recipe=RECIPE) as draft:
        filesystem.write_json(draft.location / "rows.json", 1)
        with pytest.raises(ArtifactError, match=r"s3://barrel/made/tokens is not an artifact"):
            artifact.read(out)
    assert artifact.read(out).kind == "tokens"


def test_an_interrupted_attempt_is_continued_and_another_one_clears_it(out: UPath) -> None:
    assert _interrupt(out, "first.json") == []
    assert _interrupt(out, "second.json") == ["first.json"]
    assert _interrupt(out, "third.json", recipe={"seed": 2}) == []
    assert sorted(_make(out, recipe={"seed": 2}).files) == ["rows.json", "shards/0.json", "third.json"]


def test_clearing_an_attempt_leaves_what_its_name_matches_as_a_pattern(out: UPath) -> None:
    for ours, theirs in (("run[v1]", "runv"), ("a*", "ab"), ("q?", "qq")):
        neighbor = _make(out.parent / theirs, "theirs")
        assert _interrupt(out.parent / ours, "first.json") == []
        made = _make(out.parent / ours, "ours", recipe={"seed": 2})
        assert artifact.verify(out.parent / theirs) == neighbor
        assert sorted(artifact.verify(out.parent / ours).files) == ["rows.json", "shards/0.json"]
        assert [*filesystem.listing(made.location)] == ["manifest.json", "rows.json", "shards/0.json"]


def test_a_lease_is_read_while_its_holder_renews_it(out: UPath) -> None:
    held = lease.Lease(out)
    # As a holder on another machine does, only faster.
    with subprocess.Popen([sys.executable, "-c", RENEWED, f"{out}/.lease-00001"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        try:
            beats = {lease._content(out / ".lease-00001")["beat"] for _ in range(200)}  # type: ignore[index]
            assert len(beats) > 10
        finally:
            holder.kill()
    held.release()


def test_existing_artifacts_are_never_overwritten(out: UPath, bucket: s3fs.S3FileSystem) -> None:
    before = _make(out)
    with pytest.raises(ArtifactError, match="never overwritten"):
        _make(out, "other")
    assert artifact.verify(out) == before
    bucket.pipe_file("barrel/notes/mine.txt", b"mine")
    with pytest.raises(ArtifactError, match="never overwritten"):
        _make(out.parent.parent / "notes")
    assert bucket.find("barrel/notes") == ["barrel/notes/mine.txt"]


def test_the_lease_of_a_dead_process_is_taken_at_once(out: UPath) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(lease.NAME.fullmatch(name) for name in filesystem.listing(out))
    assert _interrupt(out, "second.json") == ["first.json"]
    assert [name for name in filesystem.listing(out) if lease.NAME.fullmatch(name)] == []


def test_two_processes_never_make_one_artifact_at_once(out: UPath) -> None:
    command = [sys.executable, "-c", HELD, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        with pytest.raises(LeaseError, match=rf"another process is making {out} right now \(on ") as refused:
            _make(out)
        first.communicate("\n")
    assert "\n" not in str(refused.value)
    assert first.returncode == 0
    assert filesystem.read_json(artifact.verify(out).location / "rows.json") == "first"


ELSEWHERE = {"host": "elsewhere", "machine": "another", "process": os.getpid(), "started": 1, "beat": 0}


def test_a_lease_of_another_machine_that_is_not_renewed_is_taken(out: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "time", clock := Clock())
    _interrupt(out, "first.json")
    filesystem.write_json(out / ".lease-00007", ELSEWHERE)
    assert _interrupt(out, "second.json") == ["first.json"]
    assert clock.monotonic() == lease.PATIENCE_SECONDS


def test_a_lease_of_another_machine_that_is_renewed_is_respected(out: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = itertools.count()

    def renew() -> None:
        filesystem.write_json(out / ".lease-00001", {**ELSEWHERE, "beat": next(beats)})

    _interrupt(out, "first.json")
    renew()
    monkeypatch.setattr(lease, "time", Clock(renew))
    with pytest.raises(LeaseError, match=r"another process is making .* \(on elsewhere\)"):
        _make(out)


def test_a_process_that_lost_its_lease_completes_nothing(out: UPath) -> None:
    making = artifact.create(out, kind="tokens", inputs={}, recipe=RECIPE)
    making.__enter__()
    filesystem.remove(out / ".lease-00001")
    filesystem.write_json(out / ".lease-00002", ELSEWHERE)
    with pytest.raises(LeaseError, match="another process took over"):
        making.__exit__(None, None, None)
    assert not filesystem.exists(out / commit.MANIFEST)


def test_an_existing_manifest_is_kept(out: UPath) -> None:
    making = artifact.create(out, kind="tokens", inputs={}, recipe=RECIPE)
    making.__enter__()
    (out / commit.MANIFEST).write_bytes(b"theirs")
    with pytest.raises(ArtifactError, match="was completed by another process"):
        making.__exit__(None, None, None)
    assert (out / commit.MANIFEST).read_bytes() == b"theirs"


def test_damage_is_refused_by_name_in_one_line(out: UPath, bucket: s3fs.S3FileSystem) -> None:
    _make(out)
    bucket.pipe_file("barrel/made/tokens/rows.json", b'"swor"\n')
    artifact.read(out)
    with pytest.raises(ArtifactError, match=r"s3://barrel/made/tokens/rows\.json was changed"):
        artifact.verify(out)
    bucket.pipe_file("barrel/made/tokens/rows.json", b"cut")
    with pytest.raises(ArtifactError, match=r"rows\.json has 3 bytes, its manifest says 7"):
        artifact.read(out)
    bucket.rm("barrel/made/tokens/rows.json")
    with pytest.raises(ArtifactError, match=r"rows\.json is missing"):
        artifact.read(out)
    bucket.pipe_file("barrel/made/tokens/manifest.json", b'{"kind"')
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        artifact.read(out)
    with pytest.raises(ArtifactError, match="s3://barrel/none does not exist"):
        artifact.read("s3://barrel/none", "corpus")


def test_publishing_resumes_after_an_interruption(out: UPath, bucket: s3fs.S3FileSystem, tmp_path: Path) -> None:
    made = _make(tmp_path / "tokens")
    bucket.make_bucket_versioned("barrel", True)
    versions = s3fs.S3FileSystem(version_aware=True, skip_instance_cache=True)
    out = out / tmp_path.name
    given = {"kind": made.kind, "inputs": made.inputs, "recipe": made.recipe}
    with contextlib.suppress(CrashError), artifact.publishing(out, **given):
        filesystem.upload(made.path / "rows.json", out / "rows.json")
        bucket.pipe_file((out / "shards" / "0.json").path, b"{")
        raise CrashError
    with artifact.publishing(out, **given) as publish:
        publish(made)
    assert artifact.verify(out).manifest == made.manifest
    assert len(versions.object_version_info((out / "rows.json").path)) == 1, "copied once"
    assert len(versions.object_version_info((out / "shards" / "0.json").path)) == 2, "the damaged file is copied again"


def test_a_copy_that_fails_leaves_no_manifest(out: UPath, tmp_path: Path) -> None:
    made = _make(tmp_path / "tokens")
    (made.path / "shards" / "0.json").unlink()
    publishing = artifact.publishing(out, kind=made.kind, inputs=made.inputs, recipe=made.recipe)
    with pytest.raises(FileNotFoundError) as missing, publishing as publish:
        publish(made)
    assert missing.value.filename == str(made.path / "shards" / "0.json")
    assert [*filesystem.listing(out)] == [".draft.json", "rows.json"]


def test_a_manifest_holds_no_secret(out: UPath) -> None:
    text = json.dumps(dict(_make(out).manifest))
    assert s3_server.SECRET not in text
    assert s3_server.KEY not in text
