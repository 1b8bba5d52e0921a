"""The benchmark runner prints and saves every row, even if other benchmarks fail."""

import json
import subprocess
import sys
from pathlib import Path

import benchmark_runner
import measured_sides
import pytest
from benchmark_runner import BenchError, Row, Spread, not_measured, ratios

from eval.results.export_formats import FORMATS

HERE = Path(__file__).parent
FASTER = Row("faster", 3.25, "ratio", "ours 325 tokens/s, theirs 100 tokens/s")


def document(out: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(out.read_text(encoding="utf-8"))
    return found


def bench(folder: Path, name: str, body: str) -> None:
    text = f"from benchmark_runner import Row, not_measured\n\n\ndef rows():\n{body}"
    (folder / f"bench_{name}.py").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_rows_are_printed_and_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(folder, "first", '    yield Row("faster", 3.25, "ratio", "of it")\n')
    bench(folder, "second", '    yield not_measured("step_gpu_mfu", "share", "no GPU")\n')
    out = folder / "build" / "bench.json"
    assert benchmark_runner.run(["first", "second"], out) == 0
    found = document(out)
    assert set(found) == {"machine", "rows"}
    assert found["rows"] == [
        {"name": "faster", "value": 3.25, "unit": "ratio", "detail": "of it"},
        {"name": "step_gpu_mfu", "value": None, "unit": "share", "detail": "not measured (no GPU)"},
    ]
    printed = capsys.readouterr().out.splitlines()
    (faster,), (gpu,) = ([line for line in printed if line.startswith(name)] for name in ("faster", "step_gpu_mfu"))
    assert faster.split() == ["faster", "3.25", "ratio"]
    assert gpu.split() == ["step_gpu_mfu", "-", "share"]
    assert faster.index("ratio") == gpu.index("share"), "columns are aligned"


def test_a_failure_is_reported_and_loses_no_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(folder, "broken", '    yield Row("before", 1.0, "s", "")\n    raise OSError("the disk is full")\n')
    bench(folder, "sound", '    yield Row("after", 2.0, "s", "")\n')
    out = folder / "bench.json"
    assert benchmark_runner.run(["broken", "sound"], out) == 1
    assert [row["name"] for row in document(out)["rows"]] == ["before", "after"]
    assert "error: bench_broken" in (printed := capsys.readouterr()).err
    assert "the disk is full" in printed.err


def test_rows_are_on_the_disk_as_they_come(tmp_path: Path) -> None:
    report = benchmark_runner.Report(tmp_path / "bench.json")
    report.add(FASTER)
    assert [row["name"] for row in document(tmp_path / "bench.json")["rows"]] == ["faster"]
    report.add(not_measured("slower", "s", "no time"))
    assert [row["name"] for row in document(tmp_path / "bench.json")["rows"]] == ["faster", "slower"]


def test_the_machine_is_described(tmp_path: Path) -> None:
    report = benchmark_runner.Report(tmp_path / "bench.json")
    report.add(FASTER)
    machine = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))["machine"]
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert {"torch", "deepspeed", "transformers"} <= set(machine["libraries"])
    assert machine["load"]["before"] is not None
    assert machine["load"]["after"] is not None


def test_what_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark_runner.main(["stepp"])
    assert ended.value.code == 2
    assert "there is no tests/benchmarks/bench_stepp.py" in capsys.readouterr().err


def test_every_bench_file_can_be_chosen_and_yields_rows() -> None:
    assert {"step", "data", "telemetry"} <= set(benchmark_runner.names(HERE))
    for name in benchmark_runner.names(HERE):
        assert "def rows() -> Iterator[Row]:" in (HERE / f"bench_{name}.py").read_text(encoding="utf-8"), name


def test_ratios_cancel_what_both_sides_share() -> None:
    drifting = ratios((10.0, 20.0, 40.0), (5.0, 10.0, 20.0))
    assert drifting == Spread((2.0, 2.0, 2.0))
    assert str(Spread((3.0, 1.0, 2.0))) == "2 (1 to 3, 3 times)"
    with pytest.raises(ValueError):
        ratios((1.0,), (1.0, 2.0))


def test_the_error_of_a_dead_contender_has_its_last_output() -> None:
    with (
        measured_sides.Process("measured_sides", "nobody", "{}") as child,
        pytest.raises(BenchError, match="TypeError"),
    ):
        child.ask("step")


def test_peak_memory_is_seen_and_starts_again() -> None:
    measured_sides.held_bytes("cpu")
    before = measured_sides.held_bytes("cpu")
    large = bytearray(200_000_000)
    large[::4096] = b"x" * len(large[::4096])
    del large
    assert measured_sides.peak_bytes("cpu") - before > 190_000_000
    assert measured_sides.peak_bytes("cpu") - measured_sides.held_bytes("cpu") > 190_000_000
    assert measured_sides.peak_bytes("cpu") - before < 50_000_000


@pytest.mark.rare
@pytest.mark.long
def test_latency_is_measured_in_the_installed_runtimes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(HERE / "benchmark_runner.py"),
        "latency",
        "--quick",
        "--out",
        str(tmp_path / "bench.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {str(row["name"]): row for row in document(tmp_path / "bench.json")["rows"]}
    assert found["latency_bert_base_pytorch_8_tokens_1_thread"]["value"] == 1
    for length in (8, 16):
        fastest = found[f"latency_fastest_{length}_tokens_1_thread"]
        assert " wins: " in str(fastest["detail"])
        ratios = [row["value"] for name, row in found.items() if name.startswith("latency_student") and
                  name.endswith(f"_{length}_tokens_1_thread")]  # fmt: skip
        assert fastest["value"] == max(ratios)
    for form, making in FORMATS.items():
        measured = found.get(f"latency_student_{form}_8_tokens_1_thread")
        if measured is None:
            assert "not measured (not installed; " in str(found[f"latency_{form}"]["detail"]), making.title
        else:
            assert found[f"bytes_student_{form}"]["value"] > 0
