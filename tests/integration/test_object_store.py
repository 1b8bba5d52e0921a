"""From text to rows in buckets: all files by URL, resumed, and the same rows as in folders."""

import bz2
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import s3_server
import tiny
import tiny_pipeline

from cluster.artifacts import artifact, cache
from cluster.tokens.rows import open_tokens

pytestmark = [pytest.mark.long]

BUCKET = f"s3://{s3_server.BUCKET}"


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=tiny_pipeline.environment(), capture_output=True, text=True, check=False)
    assert s3_server.SECRET not in done.stdout + done.stderr
    return done


def _texts(folder: Path) -> None:
    """The same documents in files with three compressions."""
    lines = [json.dumps({"text": f"{number} {line}"}) + "\n" for number in range(30) for line in tiny.ENGLISH]
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines[0::3]).encode()))
    (folder / "b.jsonl.bz2").write_bytes(bz2.compress("".join(lines[1::3]).encode()))
    with pa.output_stream(folder / "c.jsonl.zst", compression="zstd") as sink:
        sink.write("".join(lines[2::3]).encode())


def _both(source: str, tokenizer: str, out: str) -> tuple[str, str]:
    """Make corpus and tokens of a source at ``out``."""
    sources = f'sources=[{{kind="jsonl", path="{source}", name="lines"}}]'
    (recipe := Path("recipe.toml")).write_text(sources.replace("sources=", "sources = ") + "\nshard_bytes = 20000\n")
    done = _run("cluster.corpus", str(recipe), "--out", f"{out}/corpus")
    assert done.returncode == 0, done.stderr
    settings = ["--set", "seq_len=32", "--set", "heldout=0.1", "--out", f"{out}/tokens"]
    done = _run("cluster.tokens", "default", "--corpus", f"{out}/corpus", "--tokenizer", tokenizer, *settings)
    assert done.returncode == 0, done.stderr
    return f"{out}/corpus", f"{out}/tokens"


def _contents(place: str) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in artifact.verify(place).manifest["files"].items()}


def test_text_becomes_rows_between_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    _texts(tmp_path / "texts")
    (tmp_path / "tokenizer").mkdir()
    tiny.wordpiece(tmp_path / "tokenizer")
    local = _both(str(tmp_path / "texts"), str(tmp_path / "tokenizer"), str(tmp_path / "out"))
    with s3_server.serving(tmp_path / "server.log") as port:
        files = s3_server.use(port, monkeypatch)
        files.put(str(tmp_path / "texts"), f"{s3_server.BUCKET}/texts", recursive=True)
        files.put(str(tmp_path / "tokenizer"), f"{s3_server.BUCKET}/tokenizer", recursive=True)
        remote = _both(f"{BUCKET}/texts", f"{BUCKET}/tokenizer", f"{BUCKET}/out")
        assert [_contents(place) for place in remote] == [_contents(place) for place in local]
        again = _run("cluster.corpus", "recipe.toml", "--out", remote[0])
        assert again.returncode == 0, again.stderr
        assert "is already complete" in again.stderr
        names = [name.removeprefix(f"{s3_server.BUCKET}/out/") for name in files.find(f"{s3_server.BUCKET}/out")]
        assert not [name for name in names if "splits" in name or "shards/" in name or "/." in name], names
        mapped = open_tokens(cache.fetch(artifact.read(remote[1]).location))
        expected = open_tokens(Path(local[1]))
        np.testing.assert_array_equal(mapped.train.take(np.arange(50)), expected.train.take(np.arange(50)))


@pytest.mark.rare
def test_interrupted_tokens_in_a_bucket_resume_with_the_missing_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _texts(tmp_path / "texts")
    (tmp_path / "tokenizer").mkdir()
    tiny.wordpiece(tmp_path / "tokenizer")
    with s3_server.serving(tmp_path / "server.log") as port:
        files = s3_server.use(port, monkeypatch)
        whole = _both(str(tmp_path / "texts"), str(tmp_path / "tokenizer"), f"{BUCKET}/out")
        last = sorted(files.glob(f"{s3_server.BUCKET}/out/corpus/documents-*.parquet"))[-1]
        good = files.cat_file(last)
        files.pipe_file(last, bytes(len(good)))
        command = ["default", "--corpus", whole[0], "--tokenizer", str(tmp_path / "tokenizer"), "--set", "heldout=0.1"]
        command += ["--set", "seq_len=32", "--set", "placement.actors=1", "--out", f"{BUCKET}/again"]
        failed = _run("cluster.tokens", *command)
        assert failed.returncode == 1
        assert f"error: s3://{last} cannot be read" in failed.stderr
        written = {name: files.info(name)["LastModified"] for name in files.glob(f"{s3_server.BUCKET}/again/*.arrow")}
        assert len(written) >= 2
        files.pipe_file(last, good)
        resumed = _run("cluster.tokens", *command)
        assert resumed.returncode == 0, resumed.stderr
        assert _contents(f"{BUCKET}/again") == _contents(whole[1])
        assert {name: files.info(name)["LastModified"] for name in written} == written
