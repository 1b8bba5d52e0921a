"""Patterns: what exists under the exact name comes first; wildcards mean the same in folders and object stores."""

import glob
import random
from pathlib import Path

import pytest

from cluster.storage import filesystem, patterns
from cluster.storage.filesystem import Location, StorageError


def _fill(root: Location, *names: str) -> None:
    for name in names:
        filesystem.write_json(root / name, name)


def _matches(root: Location, text: str, *suffixes: str) -> list[str]:
    found = patterns.pattern(f"{root}/{text}").files(suffixes or ("",))
    return [str(filesystem.relative(info.location, root)) for info in found]


def test_what_exists_under_the_exact_name_comes_first(root: Location) -> None:
    _fill(
        root, "run [v1]/a.txt", "run v/b.txt", "run 1/c.txt", "x[1].txt", "x1.txt", "q?.txt", "qq.txt", "s*/y", "sz/y"
    )
    assert _matches(root, "run [v1]") == ["run [v1]/a.txt"]
    assert _matches(root, "run [v1]/*.txt") == ["run [v1]/a.txt"]
    assert _matches(root, "run [v1]/a.txt") == ["run [v1]/a.txt"]
    assert _matches(root, "run [v1]/b.txt") == []
    assert _matches(root, "run [1v]/*.txt") == ["run 1/c.txt", "run v/b.txt"]
    assert _matches(root, "x[1].txt") == ["x[1].txt"]
    assert _matches(root, "x[0-9].txt") == ["x1.txt"]
    assert _matches(root, "q?.txt") == ["q?.txt"]
    assert _matches(root, "s*/y") == ["s*/y"]
    assert _matches(root, "s?/*") == ["s*/y", "sz/y"]
    for text in ("absent", "absent/*.txt", "absent/**/*.txt", "q?.txt/*"):
        assert _matches(root, text) == [], text


def test_hidden_files_are_found_only_where_their_dot_is_written(root: Location) -> None:
    _fill(root, "a.txt", "._a.txt", ".work.partial/b.txt", ".work.partial/.c.txt", "deep/.git/d.txt", "deep/e.txt")
    assert _matches(root, "") == _matches(root, "**/*.txt") == ["a.txt", "deep/e.txt"]
    assert _matches(root, "*.txt") == ["a.txt"]
    assert _matches(root, ".*.txt") == _matches(root, "._a.txt") == ["._a.txt"]
    assert _matches(root, ".work.partial") == _matches(root, ".work.partial/*.txt") == [".work.partial/b.txt"]
    assert _matches(root, ".w*/*.txt") == [".work.partial/b.txt"]
    assert len(filesystem.listing(root)) == 6, "a listing for removal has them all"


@pytest.mark.parametrize("seed", range(3))
def test_wildcards_mean_what_glob_means(root: Location, tmp_path: Path, seed: int) -> None:
    choice = random.Random(seed)
    letters = ["a", "b", "ab", ".a", "a.b", "c"]
    names = {"/".join(choice.choices(letters, k=choice.randint(1, 4))) for _ in range(25)}
    # A name is a file or a folder.
    names = {name for name in names if not any(other.startswith(f"{name}/") for other in names)}
    _fill(root, *names)
    for name in names:
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).touch()
    parts = ["*", "?", "a*", "[ab]", "[!a]*", "**", ".*", "*.b", "a"]
    for _ in range(40):
        pattern = "/".join(choice.choices(parts, k=choice.randint(1, 4)))
        found = glob.glob(pattern, root_dir=tmp_path / "copy", recursive=True)
        # For ``a/**``, glob also gives a file ``a``, as "a/".
        files = {name for name in found if not name.endswith("/") and (tmp_path / "copy" / name).is_file()}
        if not (tmp_path / "copy" / pattern).is_dir():
            assert set(_matches(root, pattern)) == files, pattern


def test_a_pattern_covers_what_it_would_find(root: Location) -> None:
    _fill(root, "in/a.parquet")
    for text, covered in (
        ("in", True),
        ("in/*.parquet", False),
        ("in/*/*.parquet", True),
        ("in/**/documents-*", True),
        ("in/a.parquet", False),
        ("other", False),
    ):
        found = patterns.pattern(f"{root}/{text}")
        assert found.covers(root / "in" / "out" / "documents-0.parquet", (".parquet",)) == covered, text
    assert not patterns.pattern(f"{root}/in").covers(root / "in" / "out" / "documents-0.parquet", (".jsonl",))
    assert not patterns.pattern(f"{root}/in").covers(root / "in.old" / "documents-0.parquet", (".parquet",))


def test_linked_folders_are_read_once_in_circles_too_and_never_removed(tmp_path: Path) -> None:
    _fill(tmp_path, "disk/part1/b.txt", "in/part0/a.txt")
    (tmp_path / "in" / "part1").symlink_to(tmp_path / "disk" / "part1")
    (tmp_path / "in" / "c.txt").symlink_to(tmp_path / "disk" / "part1" / "b.txt")
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "disk" / "part1" / "back").symlink_to(tmp_path / "in" / "part0")
    (tmp_path / "in" / "part0" / "over").symlink_to(tmp_path / "disk")
    expected = ["in/c.txt", "in/part0/a.txt", "in/part0/over/part1/b.txt", "in/part1/b.txt", "in/part1/back/a.txt"]
    assert _matches(tmp_path, "in") == _matches(tmp_path, "in/**/*.txt") == expected
    assert [*filesystem.listing(tmp_path / "in")] == ["c.txt", "part0/a.txt"]
    filesystem.remove_tree(tmp_path / "in")
    assert [*filesystem.listing(tmp_path / "disk")] == ["part1/b.txt"]


def test_a_link_to_a_missing_file_is_not_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere.txt")
    for text in ("", "*.txt"):
        with pytest.raises(StorageError, match=r"a\.txt is a link to .*nowhere"):
            _matches(tmp_path, text)
    assert _matches(tmp_path, "", ".jsonl") == []
