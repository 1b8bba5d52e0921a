"""Run moto's S3 server in a separate process on a free port."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import s3fs

SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

BUCKET = "barrel"
KEY, SECRET = "AKIASTILLHOUSETESTS0", "secret-of-the-tests-4242424242424242"


def environment(port: int) -> dict[str, str]:
    """Environment variables with the server's address and credentials."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def serving(log: Path, **settings: str) -> Iterator[int]:
    """Run a server that logs every request to ``log``; yields its port.

    ``settings`` are moto's environment variables.
    """
    with (
        log.open("w") as lines,
        subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=lines,
            text=True,
            env={**os.environ, **settings},
        ) as server,
    ):
        assert server.stdout
        assert server.stdin
        try:
            port = int(next(line for line in server.stdout if line.startswith("port ")).split()[1])
            s3fs.S3FileSystem.clear_instance_cache()  # cached instances use the server of another test
            yield port
        finally:
            server.stdin.close()
            server.wait()
            s3fs.S3FileSystem.clear_instance_cache()


def use(port: int, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """Point this process and its children to the server; returns its file system, with an empty bucket."""
    for name, value in environment(port).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    if files.exists(BUCKET):
        files.rm(BUCKET, recursive=True)
    files.mkdir(BUCKET)
    return files
