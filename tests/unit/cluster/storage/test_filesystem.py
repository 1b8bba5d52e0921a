"""Locations: paths and URLs behave alike, files are complete or absent, errors are one line without secrets."""

import contextlib
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import s3_server
import s3fs
from upath import UPath

from cluster.artifacts import errors
from cluster.storage import filesystem, patterns
from cluster.storage.filesystem import Location, StorageError

TREE = ("a/b.jsonl", "a-b.jsonl", "a/c/d.jsonl.gz", "notes.txt", "z.jsonl")


def _fill(root: Location) -> None:
    for name in (*TREE, "../text-2/other.jsonl"):
        place = root.parent / name.removeprefix("../") if name.startswith("..") else root / name
        filesystem.write_json(place, name)


def _names(root: Location, found: list[filesystem.FileInfo]) -> list[str]:
    return [str(info.location).removeprefix(f"{root}/") for info in found]


def test_paths_and_file_urls_are_paths_and_other_urls_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystem.location("text/a") == tmp_path / "text" / "a"
    for text in (
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a b",
        tmp_path / "a b",
        UPath(tmp_path / "a b"),
    ):
        found = filesystem.location(text)
        assert isinstance(found, Path)
        assert not isinstance(found, UPath)
        assert found == tmp_path / "a b"
    remote = filesystem.location("S3://barrel/text/")
    assert not filesystem.is_local(remote)
    assert (str(remote / "a"), remote.name) == ("s3://barrel/text/a", "text")
    assert filesystem.location(remote) is remote


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abfs://box/text", "Install adlfs"),
        ("nowhere://box/text", "use a path, s3:// or gs://"),
        (Path("s3://barrel/text"), "s3:/barrel/text is neither a path nor a URL"),
        ("s3://AKIA1:hunter2@barrel/text", "the s3:// URL holds a password"),
        ("s3://AKIA1:hun/hunter2@barrel/text", "the s3:// URL holds a password"),
        ("sftp://me:hunter2@host/text", "the sftp:// URL holds a password"),
        ("https://host/text.gz?X-Amz-Signature=hunter2", "https://host/text.gz?… is signed"),
    ],
)
def test_invalid_locations_are_refused_in_one_line_without_secrets(text: str | Path, message: str) -> None:
    with pytest.raises(StorageError) as refused:
        filesystem.location(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # Python's mark for a module that cannot be imported
    with pytest.raises(StorageError, match=r"gs://barrel/text: .*gcsfs.*: pip install 'stillhouse\[gs\]'"):
        filesystem.location("gs://barrel/text")


def test_files_are_found_alike_in_folders_and_object_stores(root: Location) -> None:
    _fill(root)
    assert _names(root, filesystem.files(root)) == [
        "a/b.jsonl",
        "a/c/d.jsonl.gz",
        "a-b.jsonl",
        "notes.txt",
        "z.jsonl",
    ]
    suffixes = (".jsonl", ".jsonl.gz")
    assert _names(root, filesystem.files(root, suffixes)) == ["a/b.jsonl", "a/c/d.jsonl.gz", "a-b.jsonl", "z.jsonl"]
    assert _names(root, patterns.pattern(f"{root}/*.jsonl").files()) == ["a-b.jsonl", "z.jsonl"]
    assert _names(root, patterns.pattern(f"{root}/**/*.jsonl").files()) == ["a/b.jsonl", "a-b.jsonl", "z.jsonl"]
    assert _names(root, filesystem.files(root / "notes.txt", suffixes)) == ["notes.txt"]
    assert filesystem.files(root / "nowhere") == []
    listed = filesystem.listing(root)
    assert [*listed] == ["a/b.jsonl", "a/c/d.jsonl.gz", "a-b.jsonl", "notes.txt", "z.jsonl"]
    assert listed["notes.txt"].bytes == len('"notes.txt"\n')
    assert filesystem.read_json(listed["a/c/d.jsonl.gz"].location) == "a/c/d.jsonl.gz"


def test_a_stamp_follows_the_contents_and_listings_are_never_old(root: Location) -> None:
    filesystem.write_json(root / "a.json", 1)
    before = filesystem.files(root)
    assert filesystem.files(root) == before
    filesystem.write_json(root / "a.json", 2)
    filesystem.write_json(root / "b.json", 1)
    after = filesystem.files(root)
    assert [info.location.name for info in after] == ["a.json", "b.json"]
    assert after[0].bytes == before[0].bytes
    assert after[0].stamp != before[0].stamp


def test_a_file_is_put_in_place_whole_or_not_at_all(root: Location) -> None:
    place = root / "deep" / "facts.json"
    with filesystem.writing(place) as temporary:
        temporary.write_text("first")
        assert not filesystem.exists(place)
    with contextlib.suppress(RuntimeError), filesystem.writing(place) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert place.read_bytes() == b"first"
    assert [*filesystem.listing(root)] == ["deep/facts.json"]


def test_two_writers_of_one_file_do_not_conflict(root: Location) -> None:
    place = root / "shard"
    with filesystem.writing(place) as one:
        one.write_text("the same")
        with filesystem.writing(place) as other:
            other.write_text("the same")
        assert place.read_bytes() == b"the same"
    assert place.read_bytes() == b"the same"
    assert [*filesystem.listing(root)] == ["shard"]


def test_what_is_read_is_seekable_and_libraries_get_a_file(root: Location) -> None:
    with filesystem.writing(root / "text.parquet") as temporary:
        temporary.write_bytes(bytes(range(200)))
    with filesystem.open_read(root / "text.parquet") as file:
        file.seek(-10, os.SEEK_END)
        assert file.read(2) == bytes([190, 191])
    with filesystem.local(root / "text.parquet") as path:
        assert path.suffix == ".parquet"
        assert path.read_bytes() == bytes(range(200))
    assert path.exists() == filesystem.is_local(root), "a copy lasts as long as the block"


def test_trees_and_files_are_removed_and_their_neighbors_are_not(root: Location) -> None:
    _fill(root)
    filesystem.remove(root / "z.jsonl")
    filesystem.remove(root / "z.jsonl")
    filesystem.remove_tree(root / "a")
    filesystem.remove_tree(root / "a")
    assert [*filesystem.listing(root)] == ["a-b.jsonl", "notes.txt"]
    filesystem.remove_tree(root)
    assert not filesystem.exists(root)
    assert [*filesystem.listing(root.parent / "text-2")] == ["other.jsonl"]


def test_only_what_has_the_exact_name_is_removed(root: Location) -> None:
    for name in ("run[v1]", "runv", "run1", "a*", "ab", "q?", "qq"):
        filesystem.write_json(root / name / "deep" / "x*.json", name)
        filesystem.write_json(root / name / "deep" / "xyz.json", name)
    filesystem.remove(root / "run[v1]" / "deep" / "x*.json")
    assert [*filesystem.listing(root / "run[v1]")] == ["deep/xyz.json"]
    for name in ("run[v1]", "a*", "q?"):
        filesystem.remove_tree(root / name)
    assert {name.split("/")[0] for name in filesystem.listing(root)} == {"ab", "qq", "run1", "runv"}
    assert len(filesystem.listing(root)) == 8


def test_more_objects_than_one_request_deletes_are_removed(
    bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "_BULK", 3)
    for number in range(8):
        bucket.pipe_file(f"barrel/many/{number}", b"x")
    filesystem.remove_tree(filesystem.location("s3://barrel/many"))
    assert bucket.find("barrel") == []


WRITER = """
import itertools, sys
from cluster.storage import filesystem

place = filesystem.location(sys.argv[1])
for version in itertools.count():
    filesystem.write_json(place, {"version": version, "filling": str(version % 7) * (version % 7 * 5000)})
    print(version, flush=True)
"""


def test_a_file_that_another_process_replaces_is_read_whole_and_never_missing(root: Location) -> None:
    place = root / "lease.json"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        try:
            assert next(writer.stdout) == "0\n"
            seen = set[int]()
            while len(seen) < 40:
                found = filesystem.read_json(place)
                assert "lease.json" in filesystem.listing(root)
                assert [info.location.name for info in filesystem.files(root)] == ["lease.json"]
                seen.add(found["version"])
                assert found["filling"] == str(found["version"] % 7) * (found["version"] % 7 * 5000)
        finally:
            writer.kill()


def test_an_object_that_is_replaced_between_two_requests_is_named_without_wrong_advice(
    bucket: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, opened = filesystem.location("s3://barrel/a.parquet"), filesystem.open_read
    bucket.pipe_file("barrel/a.parquet", b"old")

    def replaced(place: Location) -> BinaryIO:
        file = opened(place)
        bucket.pipe_file("barrel/a.parquet", b"new")
        return file

    monkeypatch.setattr(filesystem, "open_read", replaced)
    with pytest.raises(StorageError, match=r"s3://barrel/a\.parquet was changed while") as refused:
        filesystem.file_sha256(place)
    assert "network" not in str(refused.value)


def test_names_that_the_store_s_library_reads_as_instructions_are_refused(bucket: s3fs.S3FileSystem) -> None:
    for name in ("a::b", "a?versionId=b"):
        with pytest.raises(StorageError, match="rename"):
            filesystem.location(f"s3://barrel/{name}/c")
    bucket.pipe_file("barrel/text/a::b.jsonl", b"x")
    with pytest.raises(StorageError, match="rename"):
        filesystem.files(filesystem.location("s3://barrel/text"))


def test_objects_carry_their_hash_and_those_of_others_are_read(bucket: s3fs.S3FileSystem) -> None:
    ours, theirs = filesystem.location("s3://barrel/ours"), filesystem.location("s3://barrel/theirs")
    with filesystem.writing(ours) as temporary:
        temporary.write_bytes(b"spirit")
    bucket.pipe_file("barrel/theirs", b"spirit")
    found = bucket.metadata("barrel/ours")["sha256"]
    assert found == filesystem.stated_sha256(ours) == filesystem.stated_sha256(theirs) == filesystem.file_sha256(theirs)
    bucket.pipe_file("barrel/theirs", b"Spirit")
    assert filesystem.stated_sha256(theirs) != found


@pytest.mark.usefixtures("bucket")
def test_one_of_many_concurrent_creations_succeeds() -> None:
    place = filesystem.location("s3://barrel/once")

    def attempt(number: int) -> bool:
        try:
            filesystem.create_text(place, str(number))  # type: ignore[arg-type]
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = [number for number, success in enumerate(pool.map(attempt, range(8))) if success]
    assert len(won) == 1
    assert place.read_text() == str(won[0])


@pytest.mark.usefixtures("bucket")
def test_errors_name_missing_buckets_and_objects() -> None:
    nowhere = filesystem.location("s3://no-such-barrel/text")
    for attempt in (lambda: filesystem.write_json(nowhere, 1), lambda: filesystem.listing(nowhere)):
        with pytest.raises(StorageError, match=r"s3://no-such-barrel/text: .*bucket.*: create the bucket"):
            attempt()
    with pytest.raises(FileNotFoundError) as missing:
        filesystem.read_json(filesystem.location("s3://barrel/none.json"))
    assert errors.explain(missing.value) == "s3://barrel/none.json: No such file or directory"


LOOK = "import sys; from cluster.storage import filesystem; filesystem.write_json(filesystem.location(sys.argv[1]), 1)"


def _refusal(environment: dict[str, str], url: str) -> str:
    """Run a process that writes to ``url``; returns its one line of output."""
    code = f"from cluster.artifacts import errors\nwith errors.errors_for_people():\n    {LOOK}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    ended = subprocess.run(
        [sys.executable, "-c", code, url], env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert s3_server.SECRET not in ended.stderr
    return ended.stderr


def test_wrong_credentials_and_none_are_one_line(tmp_path: Path) -> None:
    with s3_server.serving(
        tmp_path / "requests.log", INITIAL_NO_AUTH_ACTION_COUNT="0"
    ) as port:  # a server that checks credentials
        known = s3_server.environment(port)
        wrong = _refusal(known, "s3://barrel/a")
        absent = _refusal({key: known[key] for key in known if "KEY" not in key}, "s3://barrel/a")
    for line in (wrong, absent):
        assert line.startswith("error: s3://barrel/a: ")
        assert line.endswith("credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)\n")
    assert "Unable to locate credentials" in absent


@pytest.mark.long
def test_a_store_out_of_reach_is_one_line() -> None:
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        unreachable = _refusal(s3_server.environment(taken.getsockname()[1]), "s3://barrel/a")
    assert "Could not connect" in unreachable
