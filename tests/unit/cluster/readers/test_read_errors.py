"""What a file that cannot be read needs: fetching it again is advised only where bytes are damaged."""

import bz2
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as parquet_encryption
import pytest

from cluster.artifacts.errors import StageError
from cluster.corpus.stage import Corpus
from cluster.readers import columnar_files, read_errors, splits, text_files, whole_files
from cluster.storage import filesystem

LINES = b"".join(json.dumps({"text": f"Line {number}."}).encode() + b"\n" for number in range(500))


def _read(kind: str, path: Path) -> None:
    recipe = Corpus.of({"sources": [{"kind": kind, "path": str(path)}]})
    for piece in splits.make_splits(recipe.sources):
        for span in piece.spans:
            for _ in text_files.read(recipe.sources[0], span):
                pass


def _parquet_bytes(**settings: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"Line {number}." for number in range(500)]}), buffer, **settings)
    return buffer.getvalue()


def _zip() -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return buffer.getvalue()


def _tar() -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        archive.addfile(entry := tarfile.TarInfo("a.jsonl"), io.BytesIO(b""))
        assert entry.name
    return buffer.getvalue()


def _other_checksum() -> bytes:
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 1
    return bytes(packed)


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip that is cut": ("a.jsonl.gz", lambda: gzip.compress(LINES)[:-20]),
    "gzip with a wrong checksum": ("a.jsonl.gz", _other_checksum),
    "bzip2 that is cut": ("a.jsonl.bz2", lambda: bz2.compress(LINES)[:-20]),
    "zstd that is cut": ("a.jsonl.zst", lambda: pa.compress(LINES, "zstd", asbytes=True)[:-20]),
    "other bytes": ("a.jsonl.gz", lambda: bytes(range(64))),
    "Parquet without its footer": ("a.parquet", lambda: _parquet_bytes()[:-8]),
    "Parquet with holes": ("a.parquet", lambda: b"PAR1" + bytes(200) + _parquet_bytes()[204:]),
    "half a Parquet file": ("a.parquet", lambda: _parquet_bytes()[: len(_parquet_bytes()) // 2]),
}
OTHER: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "zip": ("a.jsonl", _zip, "unzip"),
    "tar": ("a.jsonl", _tar, "tar -xf"),
    "tar in gzip": ("a.jsonl.gz", lambda: gzip.compress(_tar()), "tar -xf"),
    "xz": ("a.jsonl", lambda: b"\xfd7zXZ\x00\x00\x04" + bytes(50), "xz -d"),
    "xz as gzip": ("a.jsonl.gz", lambda: b"\xfd7zXZ\x00\x00\x04" + bytes(50), "xz -d"),
    "lz4": ("a.jsonl", lambda: b"\x04\x22\x4d\x18" + bytes(50), "lz4 -d"),
    "UTF-16": ("a.jsonl", lambda: LINES.decode().encode("utf-16"), "iconv -f utf-16"),
    "UTF-16 in gzip": ("a.jsonl.gz", lambda: gzip.compress(LINES.decode().encode("utf-16")), "iconv -f utf-16"),
    "UTF-16 without a mark": ("a.txt", lambda: "größer ".encode("utf-16-be") * 9, "iconv -f utf-16be"),
    "lines in UTF-16 without a mark": ("a.jsonl", lambda: LINES.decode().encode("utf-16-le"), "iconv -f utf-16le"),
    "gzip in gzip": ("a.jsonl.gz", lambda: gzip.compress(gzip.compress(LINES)), "unpack it once"),
    "gzip before other bytes": ("a.jsonl.gz", lambda: gzip.compress(LINES) + b"other bytes", "gzip -t"),
    "gzip with padding": ("a.jsonl.gz", lambda: gzip.compress(LINES) + bytes(512), "gzip -t"),
    "carriage returns": ("a.jsonl", lambda: LINES.replace(b"\n", b"\r"), "tr '\\r' '\\n'"),
    "an array": ("a.jsonl", lambda: json.dumps([{"text": "x"}] * 3).encode(), "jq -c"),
    "an array in lines": ("a.jsonl", lambda: json.dumps([{"text": "x"}] * 3, indent=1).encode(), "jq -c"),
    "an object in lines": ("a.jsonl", lambda: json.dumps({"text": "x"}, indent=1).encode(), "jq -c"),
    "Parquet as lines": ("a.jsonl", _parquet_bytes, 'kind = "parquet"'),
    "text as Parquet": ("a.parquet", lambda: LINES, "source of another kind"),
    "gzip as Parquet": ("a.parquet", lambda: gzip.compress(LINES), "unpack it"),
    "text as Arrow": ("a.arrow", lambda: LINES, "source of another kind"),
    "Parquet as Arrow": ("a.arrow", _parquet_bytes, 'kind = "parquet"'),
}


@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=[*DAMAGED])
def test_damaged_files_are_to_be_fetched_again(tmp_path: Path, name: str, content: Callable[[], bytes]) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(StageError, match=rf"{name}.*damaged, fetch it again"):
        _read(name.split(".")[1], tmp_path / name)


@pytest.mark.parametrize(("name", "content", "advice"), OTHER.values(), ids=[*OTHER])
def test_whole_files_of_another_form_are_named_with_what_converts_them(
    tmp_path: Path, name: str, content: Callable[[], bytes], advice: str
) -> None:
    (tmp_path / name).write_bytes(content())
    with pytest.raises(StageError) as error:
        _read(name.split(".")[1].replace("txt", "text"), tmp_path / name)
    assert name in str(error.value)
    assert advice in str(error.value)
    assert "damaged" not in str(error.value)


class _Keys(parquet_encryption.KmsClient):
    def wrap_key(self, key: bytes, master: str) -> str:
        return key.hex()

    def unwrap_key(self, wrapped: str, master: str) -> bytes:
        return bytes.fromhex(wrapped)


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_encrypted_parquet_is_named(tmp_path: Path, plaintext_footer: bool) -> None:
    """With a readable footer, pyarrow ends the process when it is asked where the column is."""
    factory = parquet_encryption.CryptoFactory(lambda settings: _Keys())
    settings = parquet_encryption.EncryptionConfiguration(
        footer_key="one", column_keys={"other": ["text"]}, plaintext_footer=plaintext_footer
    )
    keys = factory.file_encryption_properties(parquet_encryption.KmsConnectionConfig(), settings)
    table = pa.table({"text": ["One."]})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=keys) as writer:
        writer.write_table(table)
    with pytest.raises(StageError, match="encrypted") as error:
        _read("parquet", tmp_path / "a.parquet")
    assert "damaged" not in str(error.value)


def test_a_feature_that_pyarrow_lacks_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(StageError, match="pyarrow lacks") as error,
        read_errors.reading("a.parquet"),
    ):
        raise pa.ArrowNotImplementedError("Support for codec 'lzo' not built")
    assert "damaged" not in str(error.value)


def test_missing_unreadable_and_changed_files_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    listed = filesystem.info(path)
    with pytest.raises(StageError, match=r"a\.jsonl is no longer there"):
        whole_files.text(str(tmp_path / "b" / "a.jsonl"))
    with pytest.raises(StageError, match="permissions"), read_errors.reading(str(path)):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(StageError, match="changed while it was read"), read_errors.unchanged(listed):
        path.write_bytes(LINES[:100])
    with pytest.raises(StageError, match="removed while it was read"), read_errors.unchanged(filesystem.info(path)):
        _read_removed(path)


def _read_removed(path: Path) -> None:
    path.unlink()
    whole_files.text(str(path))


def test_a_network_failure_while_an_object_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of a store pass through pyarrow and keep their meaning."""

    class _Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > len(self.getvalue()) // 3:
                raise OSError("Connection reset by peer")
            return super().read(size)

    for name, data in (("a.parquet", _parquet_bytes(row_group_size=50)), ("a.jsonl.gz", gzip.compress(LINES, 0))):
        monkeypatch.setattr(filesystem, "open_read", lambda place, data=data: _Broken(data))
        read = _read_parquet if name.endswith("parquet") else whole_files.text
        with pytest.raises(filesystem.StorageError, match="check the address, the network") as error:
            read(f"memory://bucket/{name}")
        assert "damaged" not in str(error.value)


def _read_parquet(place: str) -> None:
    with columnar_files.open_parquet(place) as file:
        file.read()
