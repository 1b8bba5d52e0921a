"""Placement must not change the losses: ZeRO stages, workers, micro-batches, heads, stops and resumes.

There are too many placements to run all. Every pair of choices occurs in some run (in the long tests every triple),
and the same processes make all runs with the same number of workers, one after the other.
"""

import itertools
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torchrun_workers
from torch.nn import functional
from train_processes import FORTY_STEPS, RECIPE, command, curve, environment, train
from transformers import AutoModelForMaskedLM
from waiting import wait_until

from cluster.artifacts import registry, stage
from cluster.telemetry.metrics_log import read_metrics
from cluster.tokens.rows import open_tokens
from distill.checkpointing.run_folder import Run
from distill.config import Distillation, Loss
from distill.data.batches import Batch, Batches, Masker
from distill.modeling import masked_lm, student

# Largest relative differences of a loss and of a gradient norm. Observed: 1.6e-7 and 3.4e-7 in fp32, 1.8e-4 and
# 1.7e-3 in bf16.
TOLERANCES = {"fp32": (1e-6, 1e-6), "bf16": (5e-4, 5e-3)}

Choices: TypeAlias = Mapping[str, Sequence[Any]]
Placed: TypeAlias = dict[str, Any]

# Trainings. Each has its own reference.
_LAYERS = {"soft": 0.0, "masked": 0.0, "cosine": 0.0, "hidden": 1.0, "relation": 1.0, "relation_heads": 4}
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "all": {"soft_positions": "all"},
    "masked": {"soft_positions": "masked"},
    "sampled": {"soft_positions": "sampled"},
    "layers": {**_LAYERS, "inputs": "clean"},
    "everything": {"hidden": 1.0, "relation": 1.0, "relations": ["values", "attention"], "layer_positions": "unmasked"},
}
IDENTITY: Choices = {"precision": ("fp32", "bf16"), "loss": tuple(LOSSES)}
PLACEMENT: Choices = {
    "workers": (1, 2),
    "zero_stage": (0, 1, 2, 3),
    "rows_per_device": (1, 2, 8),
    "head": ("fused", "naive"),
    "teacher": ("replica", "sharded", "offloaded"),
}
RESUMED: Choices = {name: PLACEMENT[name] for name in ("workers", "zero_stage")}
REFERENCE: Placed = {"workers": 1, "zero_stage": 1, "rows_per_device": 8, "head": "naive", "teacher": "replica"}


def covering(choices: Choices, strength: int) -> list[Placed]:
    """A greedy covering array: few settings that contain every combination of ``strength`` choices."""
    every = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    # The recipe refuses this: DeepSpeed would accumulate gradients in half precision.
    every = [placed for placed in every if not (placed.get("precision") == "bf16" and placed["zero_stage"] == 0)]
    ways = [set(itertools.combinations(placed.items(), strength)) for placed in every]
    missing = set().union(*ways)
    found = []
    while missing:
        best = max(range(len(every)), key=lambda number: len(ways[number] & missing))
        found.append(every[best])
        missing -= ways[best]
    return found


def run_name(placed: Placed) -> str:
    return "-".join(map(str, placed.values()))


def run_training(folder: Path, out: Path, placed: Placed) -> None:
    """Train with this placement. Every worker calls this."""
    often = {"log_every": 1, "save_every": 6, "keep_checkpoints": 6}
    where = {name: value for name, value in placed.items() if name not in (*IDENTITY, "workers")}
    recipe = {
        **RECIPE,
        "precision": placed["precision"],
        "loss": LOSSES[placed["loss"]],
        "placement": {**RECIPE["placement"], **often, **where},
    }
    inputs = {"tokens": folder / "tokens", "teacher": folder / "teacher"}
    stage.execute(registry.find("distill.train"), Distillation.of(recipe), inputs, out)


def run_trainings(folder: str, runs: dict[str, Placed]) -> None:
    for out, placed in runs.items():
        run_training(Path(folder), Path(out), placed)


def run_on_workers(folder: Path, runs: Mapping[Path, Placed]) -> None:
    """Train each placement into its folder: on one worker in this process, on more workers under torchrun."""
    for workers in sorted({placed["workers"] for placed in runs.values()}):
        ours = {str(out): placed for out, placed in runs.items() if placed["workers"] == workers}
        if workers == 1:
            run_trainings(str(folder), ours)
        else:
            torchrun_workers.run_on_workers(workers, run_trainings, str(folder), ours)


def rounding_scales(line: Mapping[str, float]) -> dict[str, float]:
    """For each loss term, the magnitude of its operands, which determines the rounding error.

    The soft loss is a difference of log-probabilities as large as the masked loss; the cosine loss is one minus a
    number near one. Both are small compared with their operands when a student starts from its teacher. So is the
    relation loss, a difference of log-probabilities of tokens in a row.
    """
    masked = line["masked"] or 1.0
    return {
        "total": line["total"],
        "masked": masked,
        "soft": masked,
        "cosine": 1.0,
        "hidden": line["hidden"] or 1.0,
        "relation": 1.0,
    }


def differences(run: Path, reference: Path) -> tuple[float, float]:
    """Largest relative differences of the losses and of the gradient norms, to compare with ``TOLERANCES``."""
    ours, theirs = (list(read_metrics(path / "metrics.jsonl")) for path in (run, reference))
    assert [(line["kind"], line["step"]) for line in ours] == [(line["kind"], line["step"]) for line in theirs]
    pairs = list(zip(ours, theirs, strict=True))
    losses = max(
        abs(mine[term] - other[term]) / scale for mine, other in pairs for term, scale in rounding_scales(other).items()
    )
    norms = [(mine["gradient_norm"], other["gradient_norm"]) for mine, other in pairs if mine["kind"] == "train"]
    return losses, max(abs(mine / other - 1) for mine, other in norms)


class Runs:
    """A folder of runs, each named after its placement, and the reference runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def at(self, placed: Placed) -> Path:
        return self.folder / run_name(placed)

    def make(self, every: Sequence[Placed]) -> None:
        run_on_workers(self.folder, {self.at(placed): placed for placed in every if not self.at(placed).exists()})

    def reference(self, placed: Placed) -> Path:
        """The run of the same recipe on one worker with one micro-batch per step and the naive head."""
        wanted = {**{name: placed[name] for name in IDENTITY}, **REFERENCE}
        self.make([wanted])
        return self.at(wanted)

    def deviating(self, outs: Mapping[Path, Placed]) -> dict[str, tuple[float, float]]:
        """Runs whose differences from their reference exceed the tolerance, with the differences."""
        far = {}
        for out, placed in outs.items():
            found = differences(out, self.reference(placed))
            if any(mine > most for mine, most in zip(found, TOLERANCES[placed["precision"]], strict=True)):
                far[out.name] = found
        return far


@pytest.fixture(scope="module")
def runs(training_folder: Path) -> Runs:
    return Runs(training_folder)


def deviating_layouts(runs: Runs, every: list[Placed]) -> dict[str, tuple[float, float]]:
    runs.make(every)
    return runs.deviating({runs.at(placed): placed for placed in every})


def deviating_resumes(
    runs: Runs, sources: list[Placed], steps: Sequence[int], choices: Choices
) -> dict[str, tuple[float, float]]:
    """Resume copies of the sources from a checkpoint with another placement; every pair of choices occurs."""
    runs.make(sources)
    outs = {}
    for resumed in covering({"source": range(len(sources)), "step": steps, **choices}, 2):
        source = sources[resumed["source"]]
        then = {**source, **{name: resumed[name] for name in choices}}
        if then["precision"] == "bf16" and then["zero_stage"] == 0:
            continue
        out = runs.folder / f"resumed-{run_name(resumed)}"
        shutil.copytree(runs.at(source), out)
        for step in range(resumed["step"] + 1, 7):
            shutil.rmtree(out / "checkpoints" / f"step_{step:08}")
        outs[out] = then
    run_on_workers(runs.folder, outs)
    return runs.deviating(outs)


def test_every_pair_of_choices_meets() -> None:
    """The covering array contains every possible pair."""
    found = covering({**IDENTITY, **PLACEMENT}, 2)
    assert len(found) < 25
    for one, other in itertools.combinations({**IDENTITY, **PLACEMENT}.items(), 2):
        for pair in itertools.product(one[1], other[1]):
            met = any((placed[one[0]], placed[other[0]]) == pair for placed in found)
            assert met or pair == ("bf16", 0)


def test_placement_does_not_change_the_curve(runs: Runs) -> None:
    assert deviating_layouts(runs, covering({**IDENTITY, **PLACEMENT}, 2)) == {}


@pytest.mark.rare
@pytest.mark.long
def test_placement_on_up_to_four_workers_does_not_change_the_curve(runs: Runs) -> None:
    more = {**PLACEMENT, "workers": (1, 2, 4)}
    every = [{"precision": "fp32", "loss": "all", **placed} for placed in covering(more, 3)]
    halves = [{"precision": "bf16", "loss": "all", **placed} for placed in covering(more, 2)]
    assert deviating_layouts(runs, [*every, *(placed for placed in halves if placed["zero_stage"])]) == {}


# Placements before a run is resumed.
FIRST = {"rows_per_device": 2, "head": "fused", "teacher": "replica", "save_every": 1}
ONE = {"precision": "fp32", "loss": "all", "workers": 1, "zero_stage": 0, **FIRST}
TWO = {**ONE, "precision": "bf16", "workers": 2, "zero_stage": 3}
FOUR = {**ONE, "workers": 4, "zero_stage": 1}


@pytest.mark.long
def test_a_run_resumes_on_one_or_two_workers_and_any_stage(runs: Runs) -> None:
    assert deviating_resumes(runs, [ONE], (1, 4), RESUMED) == {}


@pytest.mark.rare
@pytest.mark.long
def test_a_run_resumes_from_any_checkpoint_on_up_to_four_workers_and_any_stage(runs: Runs) -> None:
    assert deviating_resumes(runs, [ONE, TWO, FOUR], range(1, 6), {**RESUMED, "workers": (1, 2, 4)}) == {}


@pytest.mark.rare
@pytest.mark.long
@pytest.mark.parametrize(("precision", "zero_stage"), [("fp32", 0), ("bf16", 2)])
def test_compilation_does_not_change_the_curve(runs: Runs, precision: str, zero_stage: int) -> None:
    compiled = {**ONE, "precision": precision, "zero_stage": zero_stage, "execution": "compiled"}
    assert deviating_layouts(runs, [compiled]) == {}


def products(layer: Any, given: torch.Tensor, names: Sequence[str], heads: int) -> dict[str, torch.Tensor]:
    """Queries, keys and values of a layer of DistilBERT or BERT: ``[rows, heads, length, width]``."""
    attention = layer.attention
    if hasattr(attention, "q_lin"):
        modules = {"queries": attention.q_lin, "keys": attention.k_lin, "values": attention.v_lin}
    else:
        modules = {"queries": attention.self.query, "keys": attention.self.key, "values": attention.self.value}
    return {name: modules[name](given).unflatten(-1, (heads, -1)).transpose(1, 2) for name in names}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", [0, 3])
def test_losses_are_the_means_over_all_rows_of_a_step(runs: Runs, step: int, loss: str) -> None:
    """Compare with transformers alone: full logits in fp64, all rows of the step in one batch."""
    placed = {**ONE, "loss": loss}
    runs.make([placed])
    out = runs.at(placed)
    recipe = Distillation.of({**RECIPE, "loss": LOSSES[loss]})
    tokens = open_tokens(runs.folder / "tokens")
    batch = Batches(tokens.train, Masker(tokens, recipe), recipe).take(step, 0, recipe.rows_per_step)
    teacher = AutoModelForMaskedLM.from_pretrained(runs.folder / "teacher")
    learner = student.make(teacher, recipe.student, recipe.seed)
    if step:
        learner = masked_lm.load_trained(out, Run(out).checkpoint(step).load().weights)
    with torch.no_grad():
        outputs, wanted = (
            model.eval().double()(batch.input_ids, output_hidden_states=True) for model in (learner, teacher)
        )
        terms = dict.fromkeys(("hidden", "relation"), torch.zeros(()))
        if recipe.loss.compares_layers:
            terms = layer_terms(learner, teacher, outputs.hidden_states, wanted.hidden_states, batch, recipe.loss)
    hidden = [found.hidden_states[-1].flatten(0, 1) for found in (outputs, wanted)]
    terms["cosine"] = 1 - functional.cosine_similarity(*hidden, dim=-1).mean()
    terms |= dict.fromkeys(("soft", "masked"), torch.zeros(()))
    if recipe.loss.needs_head:
        logits, targets = (found.logits.flatten(0, 1)[batch.positions] for found in (outputs, wanted))
        divergence = functional.kl_div((logits / 2).log_softmax(-1), (targets / 2).softmax(-1), reduction="batchmean")
        terms |= {"soft": divergence * 4, "masked": functional.cross_entropy(logits[: len(batch.labels)], batch.labels)}
    terms = {term: value if getattr(recipe.loss, term) else torch.zeros(()) for term, value in terms.items()}
    terms["total"] = torch.stack([getattr(recipe.loss, term) * value for term, value in terms.items()]).sum()
    line = [line for line in read_metrics(out / "metrics.jsonl") if line["kind"] == "train"][step]
    far = {
        term: (line[term], float(terms[term]))
        for term, size in rounding_scales(line).items()
        if line[term] != pytest.approx(float(terms[term]), rel=0, abs=1e-6 * size)
    }
    assert far == {}


def layer_terms(
    learner: Any, teacher: Any, ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], batch: Batch, loss: Loss
) -> dict[str, torch.Tensor]:
    """The hidden and the relation loss of a student of half the layers; the states begin with the embeddings."""
    counted = torch.ones(batch.input_ids.numel(), dtype=torch.bool)
    if loss.layer_positions == "unmasked":
        counted[batch.positions[: len(batch.labels)]] = False
    errors = []
    for number in range(len(ours) - 1):
        mine, other = (states.flatten(0, 1)[counted] for states in (ours[number + 1], theirs[2 * number + 2]))
        errors.append(((mine - other).square().sum(-1) / other.square().sum(-1)).mean())
    divergences, heads = [], loss.relation_heads or teacher.config.num_attention_heads
    for kind in loss.relations:
        names = ("queries", "keys") if kind == "attention" else (kind, kind)
        chances = []
        for layer, states in (
            (learner.distilbert.transformer.layer[-1], ours),
            (teacher.bert.encoder.layer[-1], theirs),
        ):
            found = products(layer, states[-2], names, heads)
            left, right = (found[name] for name in names)
            chances.append((left @ right.transpose(2, 3) / left.shape[-1] ** 0.5).softmax(-1))
        of_tokens = (chances[1] * (chances[1].log() - chances[0].log())).sum(-1).mean(1)
        divergences.append(of_tokens.flatten()[counted].mean())
    return {"hidden": torch.stack(errors).mean(), "relation": torch.stack(divergences).mean()}


@pytest.mark.long
def test_a_killed_run_resumes_with_the_same_curve(
    runs: Runs, tmp_path: Path, curve_of_forty_steps: list[float]
) -> None:
    folder = runs.folder
    run = tmp_path / "killed"
    process = subprocess.Popen(
        command(folder, run, 1, *FORTY_STEPS), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until((run / "checkpoints" / "step_00000010" / "checkpoint.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / "checkpoints" / "step_00000040").exists()
    again = train(folder, run, 1, *FORTY_STEPS)
    assert again.returncode == 0, again.stderr
    assert curve(run) == pytest.approx(curve_of_forty_steps, rel=TOLERANCES["fp32"][0])
