"""The cache: filled once, verified when filled and when a file has changed; only damaged files are fetched again."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import s3_server
import s3fs
import tokens_artifact
import train_processes
from train_processes import curve, train
from upath import UPath

from cluster.artifacts import artifact, cache, commit
from cluster.artifacts.commit import ArtifactError
from cluster.storage import filesystem

FILES = {f"rows-{number}.arrow": bytes([number]) * 1000 for number in range(6)}

FETCH = """
import sys
from cluster.artifacts import artifact, cache

found = artifact.read(sys.argv[1])  # libraries and connections are ready then
print("ready", flush=True)
sys.stdin.readline()
print(cache.fetch(found.location))
"""


@pytest.fixture
def tokens(bucket: s3fs.S3FileSystem) -> filesystem.Location:
    """An artifact in the object store."""
    out = filesystem.location("s3://barrel/tokens")
    with artifact.create(out, kind="tokens", inputs={}, recipe={}) as draft:
        for name, content in FILES.items():
            with filesystem.writing(draft.location / name) as temporary:
                temporary.write_bytes(content)
    return out


def _fetched(s3_requests: Path) -> Counter[str]:
    """How often the server sent each row file."""
    return Counter(re.findall(r'"GET /barrel/tokens/(rows-\d\.arrow)', s3_requests.read_text()))


def _inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_a_cached_artifact_equals_the_one_in_the_store(tokens: filesystem.Location, tmp_path: Path) -> None:
    path = cache.fetch(tokens)
    assert path.is_relative_to(tmp_path / "cache")
    assert path.name == "tokens"
    assert artifact.verify(path, "tokens").manifest == artifact.read(tokens).manifest
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    before = _inodes(path)
    assert cache.fetch(tokens) == path
    assert _inodes(path) == before, "nothing is fetched twice"
    assert cache.fetch(tmp_path) == tmp_path, "a local path is returned unchanged"


def test_two_processes_fill_an_entry_once(tokens: filesystem.Location, s3_requests: Path) -> None:
    before = _fetched(s3_requests)
    command = [sys.executable, "-c", FETCH, str(tokens)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("\n")
            process.stdin.flush()
        found = [process.communicate()[0] for process in (one, other)]
    assert one.returncode == other.returncode == 0
    assert found[0] == found[1]
    assert _fetched(s3_requests) - before == dict.fromkeys(FILES, 1)
    assert len(artifact.verify(cache.fetch(tokens)).files) == len(FILES)


def test_only_damaged_files_of_the_cache_are_fetched_again(tokens: filesystem.Location, tmp_path: Path) -> None:
    path = cache.fetch(tokens)
    before = _inodes(path)
    (path / "rows-1.arrow").write_bytes(b"x" * 1000)
    with (path / "rows-2.arrow").open("r+b") as file:
        file.truncate(10)
    (path / "rows-3.arrow").rename(tmp_path / "rows-3.arrow")  # not deleted, or the new file may get its inode
    os.utime(path / "rows-4.arrow")  # only its time has changed: verified and kept
    (path / commit.MANIFEST).write_text("{}")
    assert cache.fetch(tokens) == path
    assert artifact.verify(path, "tokens").manifest == artifact.read(tokens).manifest
    after = _inodes(path)
    assert {name for name in FILES if after[name] == before[name]} == {"rows-0.arrow", "rows-4.arrow", "rows-5.arrow"}


def test_an_interrupted_fetch_is_continued(tokens: filesystem.Location) -> None:
    """Leftovers of a killed process: complete files, half of a file, and no record of a verification."""
    path = cache.fetch(tokens)
    (path.parent / ".tokens.verified.json").unlink()
    (path / commit.MANIFEST).unlink()
    (path / "rows-5.arrow").rename(path / ".rows-5.arrow.0123.tmp")
    before = _inodes(path)
    assert cache.fetch(tokens) == path
    after = _inodes(artifact.verify(path).path)
    assert {name for name in before if before[name] == after.get(name)} == {
        f"rows-{number}.arrow" for number in range(5)
    }
    assert set(after) == {*FILES, commit.MANIFEST}


def test_damage_in_the_store_is_refused_in_one_line(tokens: filesystem.Location, bucket: s3fs.S3FileSystem) -> None:
    bucket.pipe_file("barrel/tokens/rows-3.arrow", b"x" * 1000)
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"s3://barrel/tokens/rows-3\.arrow is not what it was") as refused:
            cache.fetch(tokens)
        assert "\n" not in str(refused.value)
    kept = [path for path in cache.root().rglob("*.arrow") if path.read_bytes() not in FILES.values()]
    assert kept == []
    assert [*cache.root().rglob(commit.MANIFEST)] == []


def test_another_artifact_at_the_same_url_is_another_entry(tokens: filesystem.Location) -> None:
    first = cache.fetch(tokens)
    filesystem.remove_tree(tokens)
    with artifact.create(tokens, kind="tokens", inputs={}, recipe={"seed": 2}) as draft:
        filesystem.write_json(draft.location / "rows-0.arrow", "new")
    second = cache.fetch(tokens)
    assert first != second
    assert artifact.verify(second).recipe == {"seed": 2}
    assert artifact.verify(first).recipe == {}


def test_one_artifact_under_two_names_is_kept_under_both(
    tokens: filesystem.Location, bucket: s3fs.S3FileSystem, s3_requests: Path
) -> None:
    bucket.copy("barrel/tokens", "barrel/copy", recursive=True)
    copy = filesystem.location("s3://barrel/copy")
    first, second = cache.fetch(tokens), cache.fetch(copy)
    assert (first.name, second.name) == ("tokens", "copy")
    before = s3_requests.read_text().count(".arrow")
    assert (cache.fetch(tokens), cache.fetch(copy)) == (first, second)
    assert s3_requests.read_text().count(".arrow") == before


def test_folders_and_files_that_are_no_artifacts_follow_the_store(bucket: s3fs.S3FileSystem) -> None:
    bucket.pipe({"barrel/task/dev.tsv": b"1", "barrel/task/deep/train.tsv": b"2", "barrel/task-2/dev.tsv": b"3"})
    folder = filesystem.location("s3://barrel/task")
    first = cache.fetch(folder)
    assert {str(path.relative_to(first)) for path in first.rglob("*") if path.is_file()} == {
        "dev.tsv",
        "deep/train.tsv",
    }
    assert cache.fetch(folder) == first
    bucket.pipe_file("barrel/task/dev.tsv", b"4")
    second = cache.fetch(folder)
    assert (second / "dev.tsv").read_bytes() == b"4"
    assert artifact.folder_identity(first) != artifact.folder_identity(second)
    one = cache.fetch(folder / "dev.tsv")
    assert (one.name, one.read_bytes()) == ("dev.tsv", b"4")
    with pytest.raises(ArtifactError, match="s3://barrel/none does not exist"):
        cache.fetch(filesystem.location("s3://barrel/none"))


@pytest.mark.rare
@pytest.mark.long
def test_training_on_two_workers_reads_rows_and_teacher_by_their_urls(
    bucket: s3fs.S3FileSystem, tmp_path: Path
) -> None:
    tokens_artifact.make(tmp_path)
    assert train(tmp_path, tmp_path / "local", 2).returncode == 0
    for name in ("tokens", "teacher"):
        bucket.put(str(tmp_path / name), f"barrel/{name}", recursive=True)
    command = train_processes.command(tmp_path, tmp_path / "remote", 2)
    for name in ("tokens", "teacher"):
        command[command.index(str(tmp_path / name))] = f"s3://barrel/{name}"
        shutil.rmtree(tmp_path / name)
    ended = subprocess.run(command, capture_output=True, text=True, env=train_processes.environment(), check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("fetching s3://barrel/tokens: ") == 1, "one rank fetched, the other waited"
    assert curve(tmp_path / "remote") == curve(tmp_path / "local")
    told = ended.stdout + ended.stderr + (tmp_path / "remote" / "recipe.json").read_text()
    assert s3_server.SECRET not in told


def test_a_folder_that_changes_while_it_is_fetched_is_not_taken(
    bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a [1]/x", "a [1]/.hidden.tmp", "a [1]/y", "a 1/z"):
        bucket.pipe_file(f"barrel/{name}", b"old")
    place = filesystem.location("s3://barrel/a [1]")
    download = filesystem.download

    def changing(source: UPath, path: Path) -> None:
        bucket.pipe_file("barrel/a [1]/y", b"new")
        download(source, path)

    monkeypatch.setattr(filesystem, "download", changing)
    with pytest.raises(ArtifactError, match="changed while"):
        cache.fetch(place)
    monkeypatch.setattr(filesystem, "download", download)
    fetched = cache.fetch(place)
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == {
        "x": b"old", ".hidden.tmp": b"old", "y": b"new"
    }  # fmt: skip
    assert cache.fetch(place) == fetched
