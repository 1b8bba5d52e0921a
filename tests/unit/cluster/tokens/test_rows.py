"""The Arrow row format: rows are read back without copies, and errors name damaged files."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import tokens_artifact
from tokens_artifact import write_rows

from cluster.artifacts import artifact, commit
from cluster.tokens import rows
from cluster.tokens.rows import Rows, RowsError, open_tokens

SEQ_LEN = 16


def _random(count: int, vocab_size: int, seed: int = 0) -> rows.Tokens:
    values = np.random.default_rng(seed).integers(0, vocab_size, (count, SEQ_LEN))
    return cast(rows.Tokens, values.astype(rows.token_type(vocab_size)))


def _write(path: Path, values: rows.Tokens, vocab_size: int = 1000) -> Path:
    write_rows(path, [values], seq_len=values.shape[1], vocab_size=vocab_size)
    return path


@pytest.mark.parametrize(("vocab_size", "arrow_type"), [(2**16, pa.uint16()), (2**16 + 1, pa.uint32())])
def test_ids_take_the_narrowest_type_and_come_back_whole(
    tmp_path: Path, vocab_size: int, arrow_type: pa.DataType
) -> None:
    values = _random(50, vocab_size)
    values[0, 0] = vocab_size - 1
    path = _write(tmp_path / "train-00000.arrow", values, vocab_size)
    column = pa.ipc.open_file(str(path)).read_all().schema.field(rows.COLUMN)
    assert column.type.value_type == arrow_type
    assert not column.nullable
    assert not column.type.value_field.nullable
    np.testing.assert_array_equal(Rows([path]).take(np.arange(50)), values)


def test_rows_of_several_files_and_batches_are_one_array_in_any_order(tmp_path: Path) -> None:
    parts = [_random(count, 1000, seed) for seed, count in enumerate((7, 1, 12))]
    paths = [_write(tmp_path / f"train-{number:05}.arrow", part) for number, part in enumerate(parts)]
    write_rows(tmp_path / "train-00003.arrow", [parts[0], parts[2]], seq_len=SEQ_LEN, vocab_size=1000)
    found = Rows([*paths, tmp_path / "train-00003.arrow"])
    whole = np.concatenate([*parts, parts[0], parts[2]])
    order: npt.NDArray[np.int64] = np.random.default_rng(1).permutation(len(whole))
    assert len(found) == len(whole)
    assert found.seq_len == SEQ_LEN
    np.testing.assert_array_equal(found.take(order), whole[order])
    np.testing.assert_array_equal(found.take(np.array([5, 5, 0])), whole[[5, 5, 0]])
    assert found.take(np.array([], dtype=np.int64)).shape == (0, SEQ_LEN)


def test_record_batches_without_rows_move_no_others(tmp_path: Path) -> None:
    values = _random(9, 1000)
    batches = [values[:0], values[:4], values[4:4], values[4:], values[:0]]
    write_rows(tmp_path / "train-00000.arrow", batches, seq_len=SEQ_LEN, vocab_size=1000)
    np.testing.assert_array_equal(Rows([tmp_path / "train-00000.arrow"]).take(np.arange(9)), values)


@pytest.mark.parametrize("wrong", [-1, 20])
def test_an_index_out_of_range_is_refused(tmp_path: Path, wrong: int) -> None:
    found = Rows([_write(tmp_path / "train-00000.arrow", _random(20, 1000))])
    with pytest.raises(IndexError):
        found.take(np.array([3, wrong]))


def test_reading_maps_the_file_and_allocates_only_what_is_taken(tmp_path: Path) -> None:
    path = _write(tmp_path / "train-00000.arrow", _random(200_000, 1000))
    before = pa.total_allocated_bytes()
    found = Rows([path])
    taken = found.take(np.arange(0, 200_000, 50_000))
    assert pa.total_allocated_bytes() - before < path.stat().st_size / 100
    assert taken.shape == (4, SEQ_LEN)


@contextmanager
def _open_files(more: int) -> Iterator[None]:
    """Limits how many more files this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_any_number_of_files_takes_no_file_descriptors(tmp_path: Path) -> None:
    paths = [_write(tmp_path / f"train-{number:05}.arrow", _random(2, 1000, number)) for number in range(60)]
    with _open_files(20):
        found = Rows(paths)
    np.testing.assert_array_equal(found.take(np.array([119])), _random(2, 1000, 59)[1:])


def test_a_system_limit_is_not_reported_as_damage(tmp_path: Path) -> None:
    path = _write(tmp_path / "train-00000.arrow", _random(2, 1000))
    with _open_files(0), pytest.raises(RowsError, match=r"train-00000\.arrow cannot be opened: .* raise ulimit -n"):
        Rows([path])


def _bytes_read() -> int:
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes:")))


def _forget(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_opening_reads_no_rows_from_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.arrow"
    write_rows(path, [_random(50_000, 1000)] * 5, seq_len=SEQ_LEN, vocab_size=1000)
    before = _bytes_read()
    _forget(path)
    path.read_bytes()
    if _bytes_read() == before:
        pytest.skip("this disk's reads are not counted")
    _forget(path)
    before = _bytes_read()
    Rows([path])
    assert _bytes_read() - before < path.stat().st_size / 10


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _overwritten(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [_cut, _empty, _overwritten, Path.unlink])
def test_a_damaged_file_is_refused_by_name_in_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = _write(tmp_path / "train-00000.arrow", _random(1000, 1000))
    damage(path)
    with pytest.raises(RowsError, match="make the tokens again") as refused:
        Rows([path])
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def _list(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.list_(kind, 2))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("text", pa.array(["no row"]), "has text: string, and rows are input_ids: fixed_size_list of uint16 or uint32"),
        ("tokens", _list([[1, 2]], pa.uint16()), "has tokens: fixed_size_list"),
        (rows.COLUMN, pa.array([[1, 2], [3]], pa.list_(pa.uint16())), "has input_ids: list<"),
        (rows.COLUMN, _list([[1, 2]], pa.int64()), "has input_ids: fixed_size_list<.*int64>"),
        (rows.COLUMN, _list([[1, 2], None], pa.uint16()), "has nulls in input_ids"),
        (rows.COLUMN, _list([[1, None]], pa.uint16()), "has nulls in input_ids"),
    ],
)
def test_a_file_with_another_schema_is_refused_with_what_it_has(
    tmp_path: Path, column: str, values: pa.Array, says: str
) -> None:
    path, table = tmp_path / "train-00000.arrow", pa.table({column: values})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(RowsError, match=f"train-00000.arrow {says}"):
        Rows([path])


@pytest.mark.parametrize(
    ("other", "vocab_size", "says"),
    [(_random(5, 1000)[:, :8], 1000, "8 uint16.* of 16 uint16"), (_random(5, 1000), 2**17, "16 uint32.* 16 uint16")],
)
def test_rows_of_two_forms_are_refused(tmp_path: Path, other: rows.Tokens, vocab_size: int, says: str) -> None:
    first = _write(tmp_path / "train-00000.arrow", _random(5, 1000))
    second = _write(tmp_path / "train-00001.arrow", other, vocab_size)
    with pytest.raises(RowsError, match=f"train-00001.arrow has rows of {says}"):
        Rows([first, second])


def test_no_files_are_refused() -> None:
    with pytest.raises(RowsError, match="empty"):
        Rows([])


def test_an_artifact_with_changed_rows_opens_only_where_hashes_are_not_asked_for(tmp_path: Path) -> None:
    path = tokens_artifact.make(tmp_path, documents=200, heldout=4)
    assert len(open_tokens(path, check="hashes").train) == len(open_tokens(path).train)
    file = path / "train-00000.arrow"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    open_tokens(path)
    with pytest.raises(commit.ArtifactError, match=f"{file} was changed after it was made"):
        open_tokens(path, check="hashes")


def test_rows_of_another_form_than_the_manifest_says_are_refused(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "tokens", kind="tokens", inputs={}, recipe={}) as draft:
        for part in (rows.TRAIN, rows.HELDOUT):
            _write(draft.path / f"{part}-00000.arrow", _random(5, 1000))
        draft.facts.update(seq_len=SEQ_LEN, vocab_size=2**17)
    with pytest.raises(RowsError, match="16 uint16, its manifest says 16 uint32"):
        open_tokens(tmp_path / "tokens")


def test_only_the_files_of_the_manifest_are_rows(tmp_path: Path) -> None:
    path = tokens_artifact.make(tmp_path, documents=200, heldout=4)
    count = len(open_tokens(path).train)
    shutil.copy(path / "train-00000.arrow", path / "train-00099.arrow")
    assert len(open_tokens(path, check="hashes").train) == count
