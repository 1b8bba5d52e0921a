"""The manifests agree with the program: recipes load, scraped ports are served, and stop signals arrive."""

import importlib.util
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from manifests import K8S, OVERLAYS, Document, all_pods, cluster_spec, of_kind, overlay, pods
from service_rules import environment

from cluster.artifacts import recipe
from distill.launch.pipeline_recipe import Pipeline, PipelinePlan

ROOT = K8S.parent
README = K8S / "README.md"
MOUNTED = "/etc/stillhouse/recipes/"


def _entrypoints(name: str) -> list[str]:
    return [document["spec"]["entrypoint"] for document in of_kind(overlay(name), "RayJob")]


def _pipeline(entrypoint: str, folder: Path, documents: list[Document]) -> tuple[Pipeline, Path]:
    """The pipeline of an entrypoint with its recipe from the ConfigMap, and its output folder.

    Raises:
        ValueError: the entrypoint does not launch a pipeline, or its recipe is invalid.
    """
    python, option, module, path, *rest = shlex.split(entrypoint)
    if (python, option) != ("python", "-m") or importlib.util.find_spec(module) is None:
        raise ValueError(f"{entrypoint}: no module {module}")
    recipes = next(d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"] == "stillhouse-recipes")
    if not path.startswith(MOUNTED) or path.removeprefix(MOUNTED) not in recipes["data"]:
        raise ValueError(f"{entrypoint}: no recipe {path}")
    file = folder / path.removeprefix(MOUNTED)
    file.write_text(recipes["data"][file.name], encoding="utf-8")
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    sets = [value for name, value in zip(rest[::2], rest[1::2], strict=True) if name == "--set"]
    return recipe.load(Pipeline, str(file), sets), Path(given["--out"])


def _checked(entrypoint: str, folder: Path) -> None:
    pipeline, _ = _pipeline(entrypoint, folder, overlay("v100-8"))
    PipelinePlan(pipeline, folder / "out").check()


@pytest.mark.long  # all stages that check their recipes are imported
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_entrypoint_of_a_run_is_a_pipeline_on_shared_storage(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    (entrypoint,) = _entrypoints(name)
    pipeline, out = _pipeline(entrypoint, tmp_path, documents)
    PipelinePlan(pipeline, tmp_path / "out").check()
    for pod in (found for found in all_pods(documents) if found.role in ("head", "worker")):
        mounts = {mount["mountPath"]: mount["name"] for mount in pod.main["volumeMounts"]}
        claims = {v["name"] for v in pod.spec["volumes"] if "persistentVolumeClaim" in v}
        assert mounts["/" + out.parts[1]] in claims, f"{pod.where} does not see {out}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("distill.launch", "distill.lunch", "no module distill.lunch"),
        ("/distilbert.toml", "/bert.toml", "no recipe .*/bert.toml"),
        ("suite.probes.metrics_port", "suite.probes.metric_port", "did you mean"),
        ("tokens.placement.metrics_port", "tokens.placement.port", "unknown key placement.port"),
    ],
)
def test_an_entrypoint_that_cannot_run_is_found(before: str, after: str, found: str, tmp_path: Path) -> None:
    (entrypoint,) = _entrypoints("v100-8")
    assert before in entrypoint
    with pytest.raises(ValueError, match=found):
        _checked(entrypoint.replace(before, after), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", ["v100-8", "modern"])
def test_ports_that_are_scraped_are_those_the_program_serves(name: str, tmp_path: Path) -> None:
    documents = overlay(name)
    pipeline, _ = _pipeline(_entrypoints(name)[0], tmp_path, documents)
    assert pipeline.suite is not None
    served = {
        "training": pipeline.train["placement"]["metrics_port"],
        "pool": pipeline.corpus["placement"]["metrics_port"],
        "probes": pipeline.suite["probes"]["metrics_port"],
    }
    assert pipeline.tokens["placement"]["metrics_port"] == served["pool"]
    for document in of_kind(documents, "RayCluster", "RayJob"):
        ports = {port["name"]: port["containerPort"] for pod in pods(document) for port in pod.main.get("ports", [])}
        (head,) = [pod for pod in pods(document) if pod.role == "head"]
        queue = int(environment(head, documents)["STILLHOUSE_JOBS_PORT"])
        assert {**served, "queue": queue}.items() <= ports.items()
        assert len(set(ports.values())) == len(ports)


def test_recipes_are_those_that_ship() -> None:
    """All but those for one machine, which say nothing about a cluster."""
    mounted = {path.name: path.read_bytes() for path in (K8S / "base" / "pipelines").glob("*.toml")}
    shipped = {path.name: path.read_bytes() for path in (ROOT / "distill" / "recipes").glob("*.toml")}
    assert shipped.keys() - mounted.keys() == {"own-text.toml", "gpu-16gb.toml", "gpu-24gb.toml"}
    differing = [name for name, text in mounted.items() if shipped.get(name) != text]
    assert differing == [], "copy them again, with cp distill/recipes/NAME k8s/base/pipelines/"


@pytest.mark.parametrize("name", OVERLAYS)
def test_versions_are_those_of_the_project_and_the_token_is_required(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (ray,) = [found.partition("==")[2] for found in project["dependencies"] if found.startswith("ray[")]
    documents = overlay(name)
    for document in of_kind(documents, "RayCluster", "RayJob"):
        spec = cluster_spec(document)
        assert spec is not None
        assert spec["rayVersion"] == ray
        assert spec["authOptions"] == {"mode": "token", "secretName": "stillhouse-ray-token"}
    images = {c["image"] for pod in all_pods(documents) for c in pod.containers if "stillhouse" in c["image"]}
    assert images == {f"stillhouse:{project['version']}-{name.partition('-')[0].removesuffix('8')}"}


def test_ray_knows_the_settings_it_is_given() -> None:
    """Ray silently ignores a misspelt variable."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    sources = ("_private/ray_constants.py", "train/v2/_internal/constants.py", "_common/usage/usage_constants.py")
    known = "".join((folder / source).read_text(encoding="utf-8") for source in sources)
    compiled = (folder / "_raylet.so").read_bytes()
    given = [line.partition("=")[0] for line in (K8S / "base" / "ray.env").read_text(encoding="utf-8").splitlines()]
    names = [name for name in given if name.startswith("RAY_")]
    assert len(names) >= 4
    unknown = [n for n in names if f'"{n}"' not in known and n.removeprefix("RAY_").encode() + b"\0" not in compiled]
    assert unknown == []


def test_a_stop_reaches_ray_through_the_command_line_of_the_operator() -> None:
    """The operator runs ``bash -c -- "ulimit …; ray start --block …"``: SIGTERM must reach the last command."""
    told = "from signal import *; signal(SIGTERM, lambda *_: exit(7)); print('up', flush=True); pause()"
    command = f"ulimit -n 512; {shlex.quote(sys.executable)} -c {shlex.quote(told)}"
    with subprocess.Popen(["/bin/bash", "-c", "--", command], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "up\n"
        started.send_signal(signal.SIGTERM)
        assert started.wait(20) == 7


def _code(text: str) -> Iterator[str]:
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))


def test_the_readme_names_existing_objects() -> None:
    text = README.read_text(encoding="utf-8")
    commands = list(_code(text))
    applied = {path for line in commands for path in re.findall(r"-k (k8s/\S+)", line)}
    assert applied >= {f"k8s/overlays/{name}" for name in OVERLAYS} - {"k8s/overlays/modern"}
    assert [path for path in applied if not (ROOT / path / "kustomization.yaml").is_file()] == []
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [path for path in linked if not (K8S / path).exists()] == []
    documents: list[dict[str, Any]] = [document for name in OVERLAYS for document in overlay(name)]
    secrets = set(re.findall(r"secret(?:Name|KeyRef)[^}]*?name'?: '?([\w-]+)|'secretName': '([\w-]+)'", str(documents)))
    wanted = {one or other for one, other in secrets}
    assert wanted == {"stillhouse-ray-token", "stillhouse-redis"}
    wanted |= set(
        re.findall(r"secretName: ([\w-]+)", (K8S / "components/phones/kustomization.yaml").read_text("utf-8"))
    )
    assert len(wanted) == 3
    assert [name for name in wanted if f"create secret generic {name} " not in text] == []
    for heading in ("Sizing", "Alerts", "Upgrades", "Threat model", "Drains"):
        assert f"\n## {heading}\n" in text
