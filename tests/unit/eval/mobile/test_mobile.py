import json
import re
from pathlib import Path

import phone_setup
import pytest

from cluster.actors import ray_cluster
from cluster.artifacts import artifact, stage
from cluster.artifacts.errors import StageError
from cluster.artifacts.recipe import load
from cluster.jobs import client
from cluster.jobs.job import Job
from cluster.models.export_spec import Exported
from eval.mobile import adb_benchmark, android_device
from eval.mobile.adb_benchmark import PROGRAMS, ProgramRun, file_for, read_times
from eval.mobile.stage import STAGE, Mobile
from eval.report.phone_tables import table
from eval.results.collect import collect
from eval.results.comparison import compare

# Real output of the programs on a phone; benchmark_model prints microseconds.
LITERT = """INFO: Initialized session in 92.318ms.
INFO: count=2 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 median=200386 p95=235158
INFO: count=10 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 p5=140545 median=141253 p95=187533
INFO: Inference timings in us: Init: 92318, First inference: 235158, Warmup (avg): 211669, Inference (avg): 145528
"""
EXECUTORCH = """I 00:00:00.012 executorch:executor_runner.cpp:213] Model file student.pte is loaded.
I 00:00:01.471 executorch:executor_runner.cpp:396] Model executed successfully 10 time(s) in 1455.280000 ms.
I 00:00:01.471 executorch:executor_runner.cpp:405] 2 outputs:
"""
ONNXRUNTIME = """Session creation time cost: 0.0923 s
First inference time cost: 235 ms
Total inference time cost: 1.45528 s
Total inference requests: 10
Average inference time cost total: 145.528000 ms
Total inference run time: 1.45531 s
"""


def known(runtime: str, files: dict[str, str], positions: int = 64) -> Exported:
    names = ("input_ids", "attention_mask")
    outputs = {"start_logits": "positions", "end_logits": "positions"}
    return Exported("int8", runtime, files, "question-answering", names, outputs, positions, 0, 441, 28_994)  # type: ignore[arg-type]


def an_export(folder: Path, description: Exported, size: int) -> Path:
    with artifact.create(folder, kind="export", inputs={}, recipe={}) as draft:
        for name in description.files.values():
            (draft.path / name).write_bytes(b"x" * size)
        description.write(draft.path)
    return folder


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """A fake adb program; the phone's storage is the folder ``phone`` next to it."""
    return phone_setup.fake_adb(tmp_path)


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    """A folder with a library and a benchmark program that reports the size of its model as the time."""
    folder = tmp_path / "binary"
    folder.mkdir()
    (folder / "libruntime.so").write_text("")
    (folder / "benchmark_model").write_text(
        "#!/bin/sh\n"
        'for given; do case "$given" in --graph=*) graph="${given#--graph=}";; esac; done\n'
        '[ "$LD_LIBRARY_PATH" = . ] && [ -f libruntime.so ] || { echo "libruntime.so not found"; exit 127; }\n'
        '[ -f "$graph" ] || { echo "ERROR: Could not open \'$graph\'."; exit 1; }\n'
        'size=$(wc -c < "$graph")\n'
        'echo "$@" >> "$PHONE/asked"\n'
        'echo "Inference timings in us: Init: 5000, First inference: 9, Warmup (avg): 9, Inference (avg): $size" >&2\n'
    )
    return folder


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    def export(role: str, size: int) -> Path:
        return an_export(tmp_path / role, known("litert", {"48": f"{role}_48.tflite", "64": f"{role}_64.tflite"}), size)

    return {"student": export("student", 2000), "teacher": export("teacher", 7000)}


def recipe(kind: str, **changes) -> Mobile:
    return Mobile.of({"way": {"kind": kind}, "lengths": [48], "threads": [1, 2], "repeats": 2, **changes})


def test_a_phone_over_adb_is_measured_pinned_and_left_clean(phone, binary, models, tmp_path):
    asked = recipe("adb", placement={"adb": str(phone)})
    made = stage.execute(STAGE, asked, {**models, "binary": binary}, tmp_path / "out")
    facts = made.facts
    assert (facts["way"], facts["proxy"], facts["fit"], facts["unfit"]) == ("adb", False, True, None)
    assert [(row["model"], row["threads"], row["p50_ms"]) for row in facts["rows"]] == [
        ("student", 1, 2.0), ("teacher", 1, 7.0), ("student", 2, 2.0), ("teacher", 2, 7.0),
    ]  # fmt: skip
    student = facts["rows"][0]
    assert (student["ratio_to_teacher"], student["samples"], student["load_seconds"]) == (3.5, 2, 0.005)
    assert (student["runtime"], student["length"]) == ("LiteRT benchmark_model", 48)
    # The fast cores are 6 and 7: one thread has the last, two have both.
    assert [row["pinned_cores"] for row in facts["rows"]] == [[7], [7], [6, 7], [6, 7]]
    assert (tmp_path / "phone" / "pinned").read_text().split() == ["80"] * 4 + ["c0"] * 4
    starts = (tmp_path / "phone" / "asked").read_text().splitlines()
    assert [Path(line.split()[0]).stem for line in starts[:4]] == [
        "--graph=student-student_48",
        "--graph=teacher-teacher_48",
    ] * 2
    assert all("--num_runs=10" in line and "--num_threads=1" in line for line in starts[:4])
    device = facts["device"]
    assert (device["model"], device["chip"], device["android"]) == ("Pixel 7", "GS201", "14")
    assert device["core_khz"]["7"] == 2_850_000
    assert len(device["thermal"]) == 1 + 2 * 2
    assert device["thermal"][0]["celsius"] == {"BIG": 41.5, "VIRTUAL-SKIN": 33.2}, "not the 99° of the cache"
    assert (device["thermal"][0]["status"], device["thermal"][0]["battery_celsius"]) == (0, 30.5)
    assert {path.name for path in (made.path / "logs").iterdir()} >= {"student-student_48-48-1.txt"}
    assert [*(tmp_path / "phone/data/local/tmp").iterdir()] == []
    assert json.loads((made.path / "mobile.json").read_text())["rows"] == facts["rows"]


@pytest.mark.long
def test_a_hot_phone_is_measured_and_marked(phone, binary, models, tmp_path):
    (tmp_path / "phone" / "hot").write_text("2")
    asked = recipe("adb", repeats=1, threads=[1], placement={"adb": str(phone)})
    made = stage.execute(STAGE, asked, {**models, "binary": binary}, tmp_path / "out")
    assert not made.facts["fit"]
    assert "thermal status 2" in made.facts["unfit"]


def test_a_failing_program_is_reported_and_nothing_stays_on_the_phone(phone, binary, models, tmp_path):
    (binary / "libruntime.so").unlink()
    asked = recipe("adb", placement={"adb": str(phone)})
    with pytest.raises(StageError, match=r"127 .* libruntime\.so not found"):
        stage.execute(STAGE, asked, {**models, "binary": binary}, tmp_path / "out")
    assert [*(tmp_path / "phone/data/local/tmp").iterdir()] == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("state", "unauthorized", r"is unauthorized: unlock it and allow debugging"),
        ("state", "offline", r"is offline: plug it in again"),
        ("gone", "", r"adb sees no phone: plug one in"),
    ],
)
def test_the_error_explains_why_a_phone_does_not_answer(phone, tmp_path, file, text, reason):
    (tmp_path / "phone" / file).write_text(text)
    with pytest.raises(StageError, match=reason):
        android_device.connect(str(phone), None)


def test_a_phone_is_chosen_by_its_serial(phone):
    assert android_device.connect(str(phone), "R5CT30ABCDE").serial == "R5CT30ABCDE"
    with pytest.raises(StageError, match=r"adb sees R5CT30ABCDE, not X: set placement\.serial"):
        android_device.connect(str(phone), "X")
    with pytest.raises(StageError, match="apt-get install adb"):
        android_device.connect(str(phone.parent / "no-adb"), None)


def test_a_phone_that_hangs_times_out(tmp_path, monkeypatch):
    hanging = tmp_path / "adb"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(android_device, "TIMEOUT_SECONDS", 0.2)
    found = android_device.AndroidPhone(str(hanging), "R5CT30ABCDE")
    with pytest.raises(StageError, match="R5CT30ABCDE: no answer within 0 s"):
        found.shell("true")
    assert found.query("true") == ""


def test_a_command_that_fails_on_the_phone_fails_here(phone):
    found = android_device.connect(str(phone), None)
    assert found.shell("echo well") == "well\n"
    with pytest.raises(StageError, match="adb shell on R5CT30ABCDE: no such thing"):
        found.shell("echo no such thing >&2; exit 3")
    assert found.query("exit 3") == ""


def test_cores_are_chosen_by_their_clocks():
    clocks = {0: 1800, 1: 1800, 2: 2300, 3: 2850}
    assert android_device.cores_for(clocks, 2, "fast") == [2, 3]
    assert android_device.cores_for(clocks, 1, "slow") == [1]
    assert android_device.cores_for(clocks, 2, "any") is android_device.cores_for({}, 2, "fast") is None
    assert android_device.mask([0, 3]) == "9"
    with pytest.raises(StageError, match="threads = 5, but the phone has 4 cores"):
        android_device.cores_for(clocks, 5, "fast")


@pytest.mark.parametrize(
    ("runtime", "printed", "load"),
    [("litert", LITERT, 0.092318), ("executorch", EXECUTORCH, None), ("onnxruntime", ONNXRUNTIME, 0.0923)],
)
def test_output_of_the_benchmark_programs_is_parsed(runtime, printed, load):
    mean, seconds = read_times(PROGRAMS[runtime], printed, 10)
    assert mean == pytest.approx(145.528)
    assert seconds == (None if load is None else pytest.approx(load))
    with pytest.raises(StageError, match="Segmentation fault"):
        read_times(PROGRAMS[runtime], "Loading\nSegmentation fault\n", 10)


def test_programs_get_threads_calls_and_length():
    run = ProgramRun("student model.onnx", threads=4, length=48, warmup=2, calls=10)
    asked = {name: adb_benchmark.command("p", program, run, "f0") for name, program in PROGRAMS.items()}
    assert all(line.startswith("LD_LIBRARY_PATH=. taskset f0 ./p ") for line in asked.values())
    assert "'--graph=student model.onnx' --num_threads=4" in asked["litert"]
    assert "--num_executions=10 --cpu_threads=4" in asked["executorch"]
    assert "-f batch:1 -f length:48 -x 4" in asked["onnxruntime"]
    assert asked["onnxruntime"].endswith("-r 10 'student model.onnx'")


def test_the_file_for_a_length_is_found_or_the_lengths_are_named():
    fixed, free = known("litert", {"48": "a.tflite", "64": "b.tflite"}), known("executorch", {"any": "m.pte"})
    assert file_for("student", fixed, PROGRAMS["litert"], 64) == "b.tflite"
    with pytest.raises(StageError, match="is for lengths 48, 64, not 50"):
        file_for("student", fixed, PROGRAMS["litert"], 50)
    assert file_for("student", free, PROGRAMS["executorch"], 64) == "m.pte"
    with pytest.raises(StageError, match=r"measures the longest: set lengths = \[64\]"):
        file_for("student", free, PROGRAMS["executorch"], 48)
    assert file_for("student", known("onnxruntime", {"any": "m.onnx"}), PROGRAMS["onnxruntime"], 48) == "m.onnx"


@pytest.mark.parametrize(
    ("kind", "roles", "reason"),
    [
        ("browser", ("student",), "way browser needs --page DIR"),
        ("adb", ("student",), "way adb needs --binary DIR"),
        ("proxy", (), "way proxy needs --student DIR"),
        ("proxy", ("student", "page"), "way proxy has no use for --page: it takes --student, --teacher"),
        ("browser", ("page",), r"is an export for another use: make the page with stillhouse web-page"),
    ],
)
def test_each_transport_names_the_inputs_it_needs(tmp_path, models, kind, roles, reason):
    given = {"student": models["student"], "page": models["teacher"]}
    with pytest.raises(StageError, match=reason):
        stage.execute(STAGE, recipe(kind), {role: given[role] for role in roles}, tmp_path / "out")


@pytest.fixture
def a_page(tmp_path: Path) -> Path:
    """An artifact with the facts of a page."""
    with artifact.create(tmp_path / "page", kind="export", inputs={}, recipe={}) as draft:
        (draft.path / "index.html").write_text("<!doctype html>")
        model = {"role": "student", "title": "Student", "positions": 64}
        draft.facts.update({"format": "page", "version": "v1", "runtime": "r", "models": [model]})
    return tmp_path / "page"


def test_an_unopened_link_expires(a_page, tmp_path, caplog):
    caplog.set_level("INFO")
    place = {"host": "127.0.0.1", "port": 0, "wait_seconds": 0.2, "address": "http://192.168.1.20:8765"}
    with pytest.raises(StageError, match=r"within 0 seconds, .* raise placement\.wait_seconds"):
        stage.execute(STAGE, recipe("browser", placement=place), {"page": a_page}, tmp_path / "out")
    assert re.search(r"http://192\.168\.1\.20:8765/\?t=\S{32}\n", caplog.text)
    assert "browsers allow one thread" in caplog.text
    assert not (tmp_path / "out").exists()


def test_over_adb_the_phone_opens_the_link_itself(a_page, phone, tmp_path):
    place = {"host": "127.0.0.1", "port": 0, "wait_seconds": 0.2, "reach": "adb", "adb": str(phone)}
    with pytest.raises(StageError, match="not opened"):
        stage.execute(STAGE, recipe("browser", placement=place), {"page": a_page}, tmp_path / "out")
    started = (tmp_path / "phone" / "started").read_text()
    assert re.search(r"start -a android\.intent\.action\.VIEW -d http://localhost:(\d+)/\?t=\S{32}", started)
    port = re.search(r"localhost:(\d+)", started)[1]
    assert (tmp_path / "phone" / "reversed").read_text() == f"tcp:{port} tcp:{port}"


def test_a_length_beyond_the_positions_is_refused(a_page, tmp_path):
    with pytest.raises(StageError, match=r"65 tokens .* Student .* \(64\)"):
        stage.execute(STAGE, recipe("browser", lengths=[65]), {"page": a_page}, tmp_path / "out")


def test_the_shipped_recipes_load():
    kinds = {kind: load(Mobile, f"mobile-{kind}").way.kind for kind in ("browser", "adb", "proxy")}
    assert all(name == kind for name, kind in kinds.items())


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, Path]:
    return phone_setup.exports(tmp_path_factory.mktemp("exports"))


@pytest.mark.long
def test_a_proxy_is_measured_in_turns_and_called_a_proxy(exports, tmp_path):
    made = stage.execute(STAGE, recipe("proxy", threads=[1, 4096]), exports, tmp_path / "out")
    facts = made.facts
    assert (facts["way"], facts["proxy"]) == ("proxy", True)
    (problem,) = facts["problems"]
    assert problem["threads"] == 4096
    assert re.fullmatch(r"only \d+ cores may be used here", problem["error"])
    assert [(row["model"], row["threads"], row["samples"]) for row in facts["rows"]] == [
        ("student", 1, 2),
        ("teacher", 1, 2),
    ]
    for row in facts["rows"]:
        assert row["runtime"].startswith("ONNX Runtime")
        assert row["bytes"] == (exports[row["model"]] / "model.onnx").stat().st_size
        assert 0 <= row["model_memory_bytes"] < row["peak_memory_bytes"]
        assert min(row["first_ms"], row["load_seconds"]) > 0
    assert facts["fit"] == (facts["unfit"] is None)
    assert facts["device"]["processor"]


def test_a_proxy_without_cores_for_any_number_of_threads_is_refused(tmp_path):
    export = an_export(tmp_path / "export", known("onnxruntime", {"any": "model.onnx"}), 10)
    with pytest.raises(StageError, match=r"threads = 4096, but this process may use \d+ cores"):
        stage.execute(STAGE, recipe("proxy", threads=[4096, 8192]), {"student": export}, tmp_path / "out")


@pytest.mark.long
def test_a_proxy_is_a_job_of_kind_mobile(exports, tmp_path, monkeypatch):
    monkeypatch.delenv(ray_cluster.ADDRESS, raising=False)
    asked = recipe("proxy", threads=[1]).resolved()
    place = tmp_path / "out" / "mobile" / "host"
    job = Job("host", "eval.mobile", asked, exports, place, alone=True)
    with ray_cluster.connect(2):
        (done,) = client.run([job], tmp_path / "ledger")
        (known,) = client.queue().list()
    assert (done.state, done.error) == ("done", None)
    assert known["kind"] == "mobile"
    assert artifact.verify(place, "benchmark").facts["proxy"]
    told = table(compare(collect(tmp_path / "out")))
    assert [row.cells[0].text for row in told.rows[:2]] == ["proxy, no phone"] * 2


@pytest.mark.long
def test_a_model_that_does_not_fit_into_the_memory_is_a_finding(exports, tmp_path):
    asked = recipe("proxy", threads=[1], way={"kind": "proxy", "memory_megabytes": 1})
    made = stage.execute(STAGE, asked, exports, tmp_path / "out")
    assert made.facts["rows"] == []
    assert [problem["error"] for problem in made.facts["problems"]] == ["does not fit into 1 MB"] * 2


@pytest.mark.long
def test_the_error_names_an_export_that_does_not_open(exports, tmp_path):
    broken = an_export(tmp_path / "broken", known("onnxruntime", {"any": "model.onnx"}), 10)
    with pytest.raises(StageError, match=r"--student .*broken: InvalidArgument"):
        stage.execute(STAGE, recipe("proxy", threads=[1]), {"student": broken}, tmp_path / "out")
