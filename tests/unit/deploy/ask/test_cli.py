"""The command ``stillhouse ask``: its lines, its port, its errors, and its end."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import altered_models
import ask_setup
import models_with_heads
import pytest

from cluster.artifacts.errors import StageError
from deploy.ask import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    source = models_with_heads.model_folder(root / "source", "distilbert", "classification", labels=("bad", "good"))
    return ask_setup.tuned(root / "sst2", None, source, "sst2").path


def test_the_command_serves_until_ctrl_c_and_ends_quietly(model: Path) -> None:
    command = [sys.executable, "-m", "deploy.ask", str(model), "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ}) as process:
        assert process.stdout is not None
        printed = ""
        while "Ctrl-C" not in printed:
            line = process.stdout.readline()
            assert line, process.communicate()
            printed += line
        address = re.search(r"ready: open (http://127\.0\.0\.1:\d+/)", printed)
        assert address is not None
        with urllib.request.urlopen(address[1], timeout=60) as answer:
            assert b"<title>Stillhouse" in answer.read()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)
    assert (process.returncode, rest[0].strip(), rest[1].strip()) == (0, "", "")
    assert "sst2" in printed
    assert "--host 0.0.0.0" in printed


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield int(other.getsockname()[1])


def test_a_taken_default_port_gives_a_free_one_and_a_taken_named_port_an_error(
    taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "PORT", taken)
    with cli._listen("127.0.0.1", None) as listener:
        assert listener.getsockname()[1] not in (0, taken)
    with pytest.raises(StageError, match=rf"127\.0\.0\.1:{taken}: Address already in use; choose another --port"):
        cli._listen("127.0.0.1", taken)
    with pytest.raises(StageError, match=r"192\.0\.2\.99:\d+: .*; choose another --host"):
        cli._listen("192.0.2.99", None)


def test_what_cannot_be_asked_is_an_error_of_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = altered_models.damaged(model, tmp_path / "changed")
    (tmp_path / "empty").mkdir()
    for place, says in (
        (changed, "model.safetensors was changed after it was made"),
        (tmp_path / "empty", "holds no models"),
        (tmp_path / "absent", "does not exist"),
    ):
        with pytest.raises(SystemExit, match="1"):
            cli.main([str(place), "--port", "0"])
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert says in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("option", [["--port", "70000"], ["--port", "web"], ["--threads", "0"], []])
def test_wrong_usage_exits_2(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["DIR", *option] if option else [])
    assert "usage: " in capsys.readouterr().err


def test_a_host_for_phones_has_a_qr_code_of_the_address_in_the_network(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_until_ctrl_c", interrupt)
    monkeypatch.setattr(cli.links, "own_address", lambda: "192.168.1.20")
    cli.main([str(model), "--host", "0.0.0.0", "--port", "0"])
    printed = capsys.readouterr().out
    address = re.search(r"ready: open (http://192\.168\.1\.20:\d+/)", printed)
    assert address is not None
    assert "\n".join(cli.links.terminal(address[1])) in printed
    assert "every device in this network" in printed
