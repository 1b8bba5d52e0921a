"""Inspection: correct numbers, problems first, and output that any terminal or pipe can take."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import paths
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import result_folders
import tiny
import tokens_artifact
import torch
from rich.cells import cell_len
from rich.console import Console
from safetensors.torch import load_file, save_file
from tokens_artifact import write_rows

from cluster.artifacts import artifact, stage
from cluster.artifacts.artifact import Artifact
from cluster.artifacts.commit import ArtifactError
from cluster.corpus import shard_writer
from cluster.corpus import stage as corpus_stage
from cluster.inspect import models, picture, token_rows
from cluster.inspect.cli import look
from cluster.inspect.findings import Bars, Curves, Findings, Histogram, InspectError, Section, Table
from cluster.inspect.terminal import page as page_of
from cluster.jobs import ledger
from cluster.jobs.job import Job, make_requests
from cluster.storage import filesystem
from cluster.tokens import rows
from cluster.tokens import stage as tokens_stage
from distill.modeling import masked_lm

FOOTER = "Read more of our stories on the front page of this site."


def _page(found: Findings, width: int = 100) -> str:
    return page_of(found, Console(file=io.StringIO(), width=width, height=24, color_system=None)).rstrip()


def _look(path: Path, num_samples: int = 2, verify: bool = False) -> Findings:
    return look(filesystem.location(path), num_samples, verify)


def _corpus(out: Path, texts: dict[str, list[str]], **facts: Any) -> Path:
    """A corpus artifact with these texts by source."""
    with artifact.create(
        out, kind="corpus", inputs={}, recipe={"near_duplicates": None, "decontamination": {}}
    ) as draft:
        names = [label for label, own in texts.items() for _ in own]
        labels = pa.array(names, pa.string()).dictionary_encode()
        column = pa.array([text for several in texts.values() for text in several], pa.large_string())
        pq.write_table(pa.table([labels, column], schema=shard_writer.SCHEMA), draft.path / "documents-00000.parquet")
        sources = {
            label: {"documents": len(own), "bytes": len("".join(own)), "licence": "CC BY", "weight": None}
            for label, own in texts.items()
        }
        draft.facts.update(
            documents=len(column),
            bytes=sum(len("".join(own)) for own in texts.values()),
            read=len(column),
            sources=sources,
            dropped={},
            duplicates={"exact": 0, "near": 0, "overlap": {}},
            examples=[],
            files=[],
        )
        draft.facts.update(facts)
    return out


def _english(count: int, seed: int = 0) -> list[str]:
    choice = np.random.default_rng(seed)
    return [" ".join(choice.choice(tiny.ENGLISH, 4)) + f" {number}." for number in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens and a teacher for their vocabulary."""
    folder = tmp_path_factory.mktemp("made")
    tokens_artifact.make(folder, documents=300)
    return folder


@pytest.fixture(scope="module")
def teacher(made: Path) -> Path:
    """A teacher artifact made from the tokens in the same folder."""
    source, found = made / "bert", artifact.read(made / "tokens")
    model, _ = masked_lm.load(source)
    paths = {"tokens": str(found.path)}
    inputs = {"tokens": found.identity}
    with artifact.create(made / "full", kind="teacher", inputs=inputs, recipe={"source": "x"}, paths=paths) as draft:
        for path in source.iterdir():
            shutil.copy(path, draft.path)
        draft.facts.update(masked_lm.facts(model))
    return made / "full"


def test_a_corpus_shows_its_sources_what_was_left_out_and_texts(tmp_path: Path) -> None:
    example = {"file": "a.jsonl", "where": "line 61", "reason": "not UTF-8", "text": r"caf\xe9"}
    path = _corpus(
        tmp_path / "corpus",
        {"wiki": _english(30), "books": _english(10, seed=1)},
        read=100,
        dropped={"short": 50, "overlap with rte": 9, "not UTF-8": 1},
        duplicates={"exact": 3, "near": 0, "overlap": {"rte": 9}},
        examples=[example],
    )
    found = _look(path)
    page = _page(found)
    assert len(found.remarks) == 1
    assert re.search(r"60.0 %.* short", found.remarks[0])
    for line in (
        r"not UTF-8   a.jsonl: line 61  caf\xe9",
        "short             50  50.0 %",
        "exact duplicates  3",
        "near duplicates   not looked for: no table [near_duplicates]",
    ):
        assert line in page
    table = next(block for section in found.sections for block in section.blocks if isinstance(block, Table))
    assert [row[:3] for row in table.rows] == [("wiki", "CC BY", "30"), ("books", "CC BY", "10")]
    assert "wiki, " in page
    assert "books, " in page, "a sample of each source"
    histogram = next(panel for panel in found.panels if isinstance(panel, Histogram))
    assert {name: int(counts.sum()) for name, counts in histogram.counts.items()} == {"wiki": 30, "books": 10}


def test_remarks_list_problems_of_a_corpus(tmp_path: Path) -> None:
    texts = {"web": [f"{text}\n{FOOTER}" for text in _english(30)], "tables": ["1 | 2 | 3"] * 40}
    remarks = "\n".join(_look(_corpus(tmp_path / "corpus", texts)).remarks)
    assert "39 documents are duplicates" in remarks
    assert "9 characters" in remarks
    assert f"30 of 30 documents of web have the line '{FOOTER}'" in remarks


def test_an_artifact_of_an_older_version_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "old", kind="corpus", inputs={}, recipe={}) as draft:
        draft.facts.update(documents=1, bytes=10)
        shutil.copy(_corpus(tmp_path / "new", {"a": ["text"]}) / "documents-00000.parquet", draft.path)
    with pytest.raises(InspectError, match=r"old has no fact sources.* make it again"):
        _look(tmp_path / "old")


def test_tokens_show_rows_with_their_special_tokens(made: Path) -> None:
    found = _look(made / "tokens", num_samples=3)
    page = _page(found)
    assert page.count("    [CLS] ") == 3
    assert "[SEP]" in page.partition("ROWS")[2]
    assert "  [UNK]       0 (0 %)" in page
    assert "tokens" in found.headline
    often = next(panel for panel in found.panels if isinstance(panel, Bars))
    counts = np.load(made / "tokens" / rows.COUNTS)
    assert next(iter(often.values.values())) == pytest.approx(100 * np.sort(counts[5:])[-1] / counts.sum())


def _tokens(out: Path, table: np.ndarray[Any, Any], heldout: np.ndarray[Any, Any], model: Path) -> Path:
    """A tokens artifact with these rows, two rows to a record batch."""
    with artifact.create(out, kind="tokens", inputs={}, recipe={}) as draft:
        facts = dict(artifact.read(model).facts)
        size = facts["vocab_size"]
        for part, taken in ((rows.TRAIN, table), (rows.HELDOUT, heldout)):
            batches = np.split(taken, range(2, len(taken), 2))
            write_rows(draft.path / f"{part}-00000.arrow", batches, seq_len=table.shape[1], vocab_size=size)
        np.save(draft.path / rows.COUNTS, np.bincount(table.reshape(-1), minlength=size))
        shutil.copy(model / "tokenizer.json", draft.path)
        draft.facts.update(facts, seq_len=table.shape[1], train_rows=len(table), heldout_rows=len(heldout))
    return out


def test_remarks_list_problems_of_tokens(tmp_path: Path, made: Path) -> None:
    facts = artifact.read(made / "tokens").facts
    table = np.full((6, 8), facts["unk_id"])
    table[:, 0] = facts["cls_id"]
    table[0, 1:] = np.arange(20, 27)
    table[1, 0] = 30
    remarks = "\n".join(_look(_tokens(tmp_path / "tokens", table, table[:1], made / "tokens")).remarks)
    assert "of the tokens are unknown to the tokenizer" in remarks
    assert "1 rows do not begin with the start token" in remarks
    assert "3 of 6 (50.0 %) training rows repeat another one" in remarks
    assert "1 of 1 (100 %) held-out rows are training rows as well" in remarks
    assert "of the vocabulary never occur" in remarks


def test_lengths_of_documents_are_found_across_rows_and_record_batches(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = artifact.read(made / "tokens").facts
    lengths = [3, 0, 20, 7, 1, 33, 2, 2, 16]
    stream = [token for length in lengths for token in [*[50] * length, facts["sep_id"]]]
    width = 7
    table = np.full((len(stream) // width, width + 1), facts["cls_id"])
    table[:, 1:] = np.array(stream[: len(table) * width]).reshape(-1, width)
    path = _tokens(tmp_path / "tokens", table, table[:1], made / "tokens")
    complete = int((table == facts["sep_id"]).sum())
    seen = token_rows.look(artifact.read(path), rows.TRAIN, 1)
    assert (seen.whole, seen.lengths) == (True, lengths[:complete])
    # If record batches are skipped, documents cut by the gap do not count as short ones.
    monkeypatch.setattr(token_rows, "BUDGET", 3 * 2 * (width + 1))
    part = token_rows.look(artifact.read(path), rows.TRAIN, 1)
    assert not part.whole
    assert part.rows < len(table)
    assert set(part.lengths) <= set(lengths)


def test_weights_are_read_as_torch_reads_them_and_broken_ones_are_named(tmp_path: Path, teacher: Path) -> None:
    weights = load_file(teacher / "model.safetensors")
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(half, tmp_path / "half.safetensors")
    for tensor in models.read(tmp_path / "half.safetensors"):
        np.testing.assert_array_equal(tensor.values, half[tensor.name].float().flatten().numpy())
    page = _page(_look(teacher))
    assert f"{sum(tensor.numel() for tensor in weights.values()):,} numbers in model.safetensors" in page
    parts = [line.partition("  ")[0] for line in page.partition("WEIGHTS")[2].replace("\n  ", "\n").splitlines()]
    assert parts[3:9] == ["embeddings", "layer 0", "layer 1", "layer 2", "layer 3", "head"]
    name = next(name for name in weights if "layer.2" in name and name.endswith("query.weight"))
    weights[name][0, :3] = float("nan")
    broken = tmp_path / "broken"
    facts = dict(artifact.read(teacher).facts)
    with artifact.create(broken, kind="teacher", inputs={}, recipe={}) as draft:
        save_file(weights, draft.path / "model.safetensors")
        shutil.copy(teacher / "config.json", draft.path)
        draft.facts.update(facts)
    assert _look(broken).remarks == [f"3 of 1,024 weights of {name} are not finite"]


def test_descent_follows_inputs_where_they_are_and_says_where_they_are_not(tmp_path: Path, teacher: Path) -> None:
    place = tmp_path / "out"
    shutil.copytree(teacher.parent / "tokens", place / "tokens")
    shutil.copytree(teacher, place / "teacher")
    tokens_there = artifact.read(place / "tokens")
    assert str(tokens_there.path.parent.parent) not in str(teacher)
    identity = tokens_there.identity[:12]
    # The recorded path is followed first.
    assert f"tokens  {identity}: " in _page(_look(place / "teacher"))
    moved = dict(artifact.read(place / "teacher").manifest) | {
        "made": {"at": 0, "host": "h", "seconds": 1.0, "paths": {}}
    }
    (place / "teacher" / "manifest.json").write_text(json.dumps(moved))
    assert str(place / "tokens") in _page(_look(place / "teacher"), 300), "found in a neighboring folder"
    shutil.rmtree(place / "tokens")
    assert "not found near this artifact" in _page(_look(place / "teacher"))
    moved["made"]["paths"] = {"tokens": str(place / "tokens")}
    (place / "teacher" / "manifest.json").write_text(json.dumps(moved))
    assert "no longer there" in _page(_look(place / "teacher"))
    _corpus(place / "tokens", {"a": _english(3)})
    assert "another corpus is there now" in _page(_look(place / "teacher"))


def _run(folder: Path, losses: list[float], identity: str) -> Path:
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps({"recipe": {"steps": 30}, "inputs": {"tokens": identity}}))
    numbers = {"soft": 0.1, "masked": 2.0, "cosine": None, "learning_rate": 1e-3, "gradient_norm": 1.0}
    numbers |= {"loss_scale": 1.0, "skipped_steps": 0, "step_seconds": 2.0, "tokens_per_second": 512.0, "steps": 30}
    lines = [
        json.dumps({"kind": "train", "step": step, "total": loss, "tokens": 1024 * step, **numbers})
        for step, loss in enumerate(losses, 1)
    ]
    lines.append(
        json.dumps({"kind": "validation", "step": len(losses), "total": 2.5, "accuracy": 0.25, "agreement": None})
    )
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "train", "st']))
    checkpoint = folder / "checkpoints" / "step_00000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights.safetensors").write_bytes(b"weights")
    digest = filesystem.file_sha256(checkpoint / "weights.safetensors")
    facts = {"step": 10, "tokens": 10_240, "files": {"weights.safetensors": digest}}
    (checkpoint / "checkpoint.json").write_text(json.dumps(facts))
    return folder


def test_a_run_of_no_step_shows_its_validation(tmp_path: Path, made: Path) -> None:
    folder = _run(tmp_path / "run", [], artifact.read(made / "tokens").identity)
    found = _look(folder)
    assert found.headline == "Validated at step 0, without a step of training."
    page = _page(found, 300)
    assert "validation at 0" in page
    assert "accuracy 0.25" in page


def test_a_run_shows_how_far_it_got_and_what_it_can_go_on_from(tmp_path: Path, made: Path) -> None:
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    identity = artifact.read(made / "tokens").identity
    folder = _run(tmp_path / "run", [9.0 - 0.2 * step for step in range(20)], identity)
    found = _look(folder, verify=True)
    page = _page(found, 300)
    assert found.remarks == []
    assert "20 of 30 steps (66.7 %)" in found.headline
    assert "20 of 30, 20 s left" in page
    assert "accuracy 0.25" in page
    assert "step_00000010  hashes compared" in page
    assert str(tmp_path / "tokens") in page
    assert [type(panel) for panel in found.panels] == [Curves, Curves, Curves]
    (folder / "checkpoints" / "step_00000010" / "weights.safetensors").write_bytes(b"weightz")
    assert "weights.safetensors is damaged or missing" in _look(folder, verify=True).remarks[0]


@pytest.mark.parametrize(
    ("losses", "says"),
    [([3.0, float("nan"), 3.0], "not finite at step 2"), ([2.0] * 5 + [9.0] * 12, "it has risen again")],
)
def test_remarks_list_problems_of_a_run(tmp_path: Path, losses: list[float], says: str) -> None:
    assert says in _look(_run(tmp_path / "run", losses, "0" * 64)).remarks[0]


def _results(folder: Path) -> dict[str, Path]:
    """A data set, a benchmark, a fine-tuned model's scores and a report."""
    paths = {kind: folder / kind for kind in ("dataset", "benchmark", "report")}
    with artifact.create(paths["dataset"], kind="dataset", inputs={}, recipe={}) as draft:
        for part, words in (("train", ["a good film", "a bad film"]), ("dev", ["a good film"])):
            pq.write_table(pa.table({"sentence": words, "label": [0, 1][: len(words)]}), draft.path / f"{part}.parquet")
        (draft.path / "labels.json").write_text('["good", "bad"]')
    rows = [
        result_folders.timing("student", "pytorch", 4.0, {"teacher": 7.04}, 30, bytes=4000),
        result_folders.timing("student", "int8", 1.0, {}),
    ]
    with artifact.create(paths["benchmark"], kind="benchmark", inputs={}, recipe={}) as draft:
        draft.facts.update(result_folders.latency(rows, unfit="other work took half of the cores"))
    with artifact.create(paths["report"], kind="report", inputs={}, recipe={}) as draft:
        (draft.path / "summary.txt").write_text("The student keeps 97 %.\n")
        draft.facts.update(sentence="The student keeps 97 %.", failed_jobs=2)
    return paths


def test_data_sets_benchmarks_and_reports_say_what_is_in_them(tmp_path: Path) -> None:
    found = {kind: _look(path) for kind, path in _results(tmp_path).items()}
    assert len(found["dataset"].remarks) == 1
    assert "1 texts are in two of the parts dev, train" in found["dataset"].remarks[0]
    assert "bad   1  50.0 %" in _page(found["dataset"])
    assert len(found["benchmark"].remarks) == 1
    assert "other work took half of the cores" in found["benchmark"].remarks[0]
    lines = [" ".join(line.split()) for line in _page(found["benchmark"]).splitlines()]
    assert "student PyTorch 2.13.0 30 1 4 4.2 4.8 4 kB 1.76×" in lines
    assert "student ONNX Runtime 1.31.1 int8 pairs 1 1 1.05 1.2 17.4 MB –" in lines
    assert "  The student keeps 97 %." in _page(found["report"])
    assert found["report"].remarks == ["2 jobs failed"]
    with pytest.raises(InspectError, match="nothing to draw"):
        picture.draw(found["report"], tmp_path / "report.png")
    pipeline = _look(tmp_path)
    assert pipeline.headline.startswith("3 artifacts and 0 runs")


def test_a_report_is_not_cut(tmp_path: Path) -> None:
    lines = ["  keeps        " + "of the teacher's score, " * 4 + "all of it", "short"]
    with artifact.create(tmp_path / "report", kind="report", inputs={}, recipe={}) as draft:
        (draft.path / "summary.txt").write_text("\n".join(lines))
        draft.facts.update(sentence="Half the layers.", failed_jobs=0)
    page = _page(_look(tmp_path / "report"), 60)
    assert " ".join(lines[0].split()) in " ".join(page.split())
    assert "…" not in page
    assert re.search(r"\n {17}\w", page), "the rest of a line stands below its second column"


def test_probes_show_the_scores_of_checkpoints(tmp_path: Path) -> None:
    points = [
        {"step": step, "task": "rte", "metric": "accuracy", "score": 50.0 + step / 10, "low": 50.0, "high": 70.0,
         "seeds": 3}
        for step in (50, 100)
    ]  # fmt: skip
    for name, found in (("some", points), ("none", [])):
        with artifact.create(tmp_path / name, kind="probes", inputs={}, recipe={}) as draft:
            draft.facts.update(points=found)
    page = _page(_look(tmp_path / "some"))
    assert re.search(r"rte +accuracy +100 +60\.0 +50\.0–70\.0 +3", page)
    assert "Score of the checkpoints: rte" in page
    assert "No checkpoint was scored." in _page(_look(tmp_path / "none"))


def test_a_queue_shows_its_jobs_failed_ones_first(tmp_path: Path) -> None:
    jobs = [Job(name, "toy.stage", {}, {}, tmp_path / name) for name in ("first", "second")]
    requests = make_requests(jobs)
    opened = ledger.Ledger(tmp_path / "queue", "cluster")
    opened.append([{"event": "submitted", "at": 1.0, "requests": [request.resolved() for request in requests]}])
    ends = (("done", None), ("failed", "out of memory"))
    for request, (state, error) in zip(requests, ends, strict=True):
        end = {"event": "ended", "state": state, "error": error, "failure": error and "memory", "seconds": 2.5}
        opened.append([{"at": 2.0, "id": request.id, **end}])
    opened.close()
    found = _look(tmp_path / "queue")
    assert found.headline == "2 jobs: 1 failed, 1 done"
    page = _page(found)
    assert page.index("second") < page.index("first")
    assert re.search(r"second +out of memory", page)
    assert re.search(r"first +toy\.stage +done +0 +2\.5 s", page)


def test_a_benchmark_of_a_phone_says_which_and_what_it_could_not_do(tmp_path: Path) -> None:
    for name, given in result_folders.PHONES.items():
        with artifact.create(tmp_path / name, kind="benchmark", inputs={}, recipe={}) as draft:
            draft.facts.update(result_folders.phone(**given))
    found = {name: _look(tmp_path / name) for name in result_folders.PHONES}
    assert found["in-the-hand"].remarks == ["not measured: backend webgpu, threads 1: no adapter"]
    assert "proxy" in found["this-host"].remarks[0]
    assert "GS201" in _page(found["on-a-cable"])


def test_pages_and_scores_can_be_inspected(tmp_path: Path) -> None:
    with artifact.create(tmp_path / "page", kind="export", inputs={}, recipe={}) as draft:
        (draft.path / "index.html").write_bytes(b"x" * 2000)
        draft.facts.update(format="page", version="v1", models=[{"role": "student", "title": "Small"}])
    with artifact.create(tmp_path / "scores", kind="benchmark", inputs={}, recipe={}) as draft:
        draft.facts.update(task="rte", score=61.5)
    page, scores = _look(tmp_path / "page"), _look(tmp_path / "scores")
    assert page.headline == "page, 2 kB"
    assert "Small" in _page(page)
    assert "61.5" in _page(scores)


def test_a_folder_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InspectError, match="neither an artifact nor a run"):
        _look(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        _look(tmp_path / "nowhere")


@pytest.mark.parametrize("width", [40, 77, 110])
def test_every_line_fits_and_nothing_reaches_the_terminal_that_moves_a_cursor(
    tmp_path: Path, made: Path, teacher: Path, width: int
) -> None:
    strange = [f"日本語のテキスト {number} \x1b[31mred\x07 \u202eleft " + "long" * 60 for number in range(9)]
    folder = _corpus(tmp_path / ("deep" * 40) / "corpus", {"名前" * 30: strange, "b": _english(9)})
    for found in (
        _look(folder),
        _look(made / "tokens"),
        _look(teacher),
        *map(_look, _results(tmp_path / "r").values()),
    ):
        page = _page(found, width)
        assert max(map(cell_len, page.splitlines())) <= width
        assert page.replace("\n", "").isprintable()


def test_a_picture_shows_any_text_without_a_warning(tmp_path: Path) -> None:
    texts = {"$a_b$ 名": ["日本 $x^2$ " * 20 + str(number) for number in range(30)], "b": _english(30)}
    found = _look(_corpus(tmp_path / "corpus", texts))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture.draw(found, tmp_path / "corpus.png")
    start = (tmp_path / "corpus.png").read_bytes()[:24]
    assert start[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(start[16:20], "big") > 1500


def test_an_artifact_in_an_object_store_is_looked_at_by_its_url(tmp_path: Path, made: Path) -> None:
    store = fsspec.filesystem("memory")
    try:
        for path in (made / "tokens").iterdir():
            store.pipe_file(f"/bucket/tokens/{path.name}", path.read_bytes())
        here, there = _look(made / "tokens"), look(filesystem.location("memory://bucket/tokens"), 2, verify=True)
        assert there.place == "memory://bucket/tokens"
        assert (there.title, there.headline, there.remarks) == (here.title, here.headline, here.remarks)
        wanted = [section for section in here.sections if section.title in ("DOCUMENTS", "TOKENS", "ROWS")]
        assert [_page(Findings("", "", sections=[section])) for section in wanted] == [
            _page(Findings("", "", sections=[section]))
            for section in there.sections
            if section.title in _titles(wanted)
        ]
    finally:
        store.rm("/bucket", recursive=True)


def _titles(sections: list[Section]) -> list[str]:
    return [section.title for section in sections]


def test_verifying_names_a_file_that_was_changed(tmp_path: Path, made: Path) -> None:
    path = tmp_path / "tokens"
    shutil.copytree(made / "tokens", path)
    counts = np.load(path / rows.COUNTS)
    counts[10:12] += [1, -1]
    np.save(path / rows.COUNTS, counts)
    assert "hashes not compared" in _page(_look(path))
    with pytest.raises(ArtifactError, match=f"{path / rows.COUNTS} was changed"):
        _look(path, verify=True)


def _command(*arguments: str, pipe: str = "") -> subprocess.CompletedProcess[str]:
    command = " ".join([f"{sys.executable} -m cluster.inspect", *arguments, pipe])
    root = paths.ROOT
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=root, capture_output=True, text=True, check=False
    )


def test_a_closed_pipe_ends_the_command_quietly(tmp_path: Path, made: Path) -> None:
    piped = _command(str(made / "tokens"), "--picture", str(tmp_path / "a.png"), pipe="| cat")
    assert piped.returncode == 0
    assert piped.stdout.startswith("tokens ")
    assert "\x1b" not in piped.stdout
    assert (tmp_path / "a.png").stat().st_size > 10_000
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cluster.inspect", str(made / "tokens")]
    closed = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert closed.returncode == 141
    assert "Traceback" not in closed.stderr
    assert "Broken pipe" not in closed.stderr


def test_errors_of_the_command_are_one_line(tmp_path: Path) -> None:
    missing = _command(str(tmp_path / "nowhere"))
    assert (missing.returncode, missing.stderr.count("\n"), missing.stdout) == (1, 1, "")
    assert missing.stderr.startswith(f"error: {tmp_path / 'nowhere'} does not exist")
    usage = _command(str(tmp_path), "--picture", "a.jpg")
    assert usage.returncode == 2
    assert "a.jpg does not end in .png" in usage.stderr


def test_the_name_of_the_module_hides_nothing_of_python() -> None:
    script = "import cluster.inspect, inspect; assert inspect.signature; print(inspect.__file__)"
    root = paths.ROOT
    printed = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert "cluster" not in Path(printed).parts


def test_real_artifacts_have_the_facts_that_inspect_reads(tmp_path: Path) -> None:
    """Real artifacts of corpus and tokens have the facts that the inspection reads."""
    texts, model = tiny.corpus(tmp_path / "texts", documents=400), tmp_path / "model"
    tiny.wordpiece(model)
    recipe = {"sources": [{"kind": "jsonl", "path": str(texts)}], "placement": {"actors": 1}}
    stage.execute(corpus_stage.STAGE, corpus_stage.Corpus.of(recipe), {}, tmp_path / "corpus")
    given = {"corpus": tmp_path / "corpus", "tokenizer": model}
    wanted = tokens_stage.Tokens.of({"seq_len": 32, "heldout": 0.1, "placement": {"actors": 1}})
    made = stage.execute(tokens_stage.STAGE, wanted, given, tmp_path / "tokens")
    assert isinstance(made, Artifact)
    assert "400 documents" in _page(_look(tmp_path / "corpus", verify=True))
    found = _look(tmp_path / "tokens", verify=True)
    page = _page(found)
    # The only problem of these texts: they repeat sentences.
    assert [remark for remark in found.remarks if "repeat" not in remark and "as well" not in remark] == []
    assert f"{artifact.read(tmp_path / 'corpus').identity[:12]}: corpus of 400 documents" in page
    lengths = next(panel for panel in found.panels if isinstance(panel, Histogram))
    seen, documents = int(sum(counts.sum() for counts in lengths.counts.values())), made.facts["documents"]
    assert documents - made.facts["heldout_documents"] - 2 <= seen <= documents
