"""The Arrow row format: what is written is what is read, without copies, and damage is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from cluster import rows
from cluster.rows import Rows, RowsError

SEQ_LEN = 16


def _random(count: int, vocab_size: int, seed: int = 0) -> rows.Tokens:
    values = np.random.default_rng(seed).integers(0, vocab_size, (count, SEQ_LEN))
    return cast(rows.Tokens, values.astype(rows.token_type(vocab_size)))


def _write(path: Path, values: rows.Tokens, vocab_size: int = 1000) -> Path:
    assert rows.write(path, [values], seq_len=values.shape[1], vocab_size=vocab_size) == len(values)
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
    rows.write(tmp_path / "train-00003.arrow", [parts[0], parts[2]], seq_len=SEQ_LEN, vocab_size=1000)
    found = Rows([*paths, tmp_path / "train-00003.arrow"])
    whole = np.concatenate([*parts, parts[0], parts[2]])
    order: npt.NDArray[np.int64] = np.random.default_rng(1).permutation(len(whole))
    assert len(found) == len(whole)
    assert found.seq_len == SEQ_LEN
    np.testing.assert_array_equal(found.take(order), whole[order])
    np.testing.assert_array_equal(found.take(np.array([5, 5, 0])), whole[[5, 5, 0]])


@pytest.mark.parametrize("wrong", [-1, 20])
def test_a_row_that_is_not_there_is_no_other_row(tmp_path: Path, wrong: int) -> None:
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


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_column(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_table(pa.table({"text": ["no row"]}))


def _ragged(path: Path) -> None:
    table = pa.table({rows.COLUMN: pa.array([[1, 2], [3]], pa.list_(pa.uint16()))})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("damage", [_cut, _empty, _other_column, _ragged, Path.unlink])
def test_a_damaged_file_is_refused_by_name_in_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = _write(tmp_path / "train-00000.arrow", _random(1000, 1000))
    damage(path)
    with pytest.raises(RowsError) as refused:
        Rows([path])
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_of_two_lengths_are_refused(tmp_path: Path) -> None:
    first = _write(tmp_path / "train-00000.arrow", _random(5, 1000))
    second = _write(tmp_path / "train-00001.arrow", _random(5, 1000)[:, :8])
    with pytest.raises(RowsError, match=r"\[8, 16\]"):
        Rows([first, second])


def test_no_files_are_refused() -> None:
    with pytest.raises(RowsError, match="empty"):
        Rows([])
