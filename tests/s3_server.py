"""A real S3 API server (moto's) in a process of its own, on a free port of this machine, for the tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SERVER = """
import sys
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

BUCKET = "barrel"
KEY, SECRET = "AKIASTILLHOUSETESTS0", "secret-of-the-tests-4242424242424242"


def environment(port: int) -> dict[str, str]:
    """What a process needs to find the server and to be let in."""
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
def serving() -> Iterator[int]:
    """The port of a server that lives as long as the block."""
    quiet = {**os.environ, "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(2**20)}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=quiet
    ) as server:
        assert server.stdout
        assert server.stdin
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait()
