"""deploy/ and the chart's README: fresh, whole, and usable with kubectl alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from talkoo_sim.cluster.binaries import kubectl
from talkoo_sim.cluster.chart import Object, containers, pod_templates
from talkoo_sim.cluster.commands import run

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("base", "overlays/kind", "overlays/single-node", "overlays/federation")
ORGANIZATIONS = ("north", "east", "south")


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def built(folder: str) -> list[Object]:
    text = run([kubectl(), "kustomize", ROOT / folder], timeout_s=60.0)
    return [each for each in yaml.safe_load_all(text) if each]


@pytest.mark.usefixtures("helm")
def test_manifests_are_what_the_chart_gives_now() -> None:
    done = tool("render_deploy.py", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_table_of_values_is_what_the_values_say_now() -> None:
    done = tool("generate_chart_docs.py", "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_leaf_of_the_values_has_its_row() -> None:
    chart = ROOT / "helm" / "talkoo"
    rows = set(re.findall(r"^\| `([A-Za-z.]+)` \|", (chart / "README.md").read_text(), re.MULTILINE))
    missing = [path for path in paths(yaml.safe_load((chart / "values.yaml").read_text())) if not covered(path, rows)]
    assert not missing


def paths(values: dict[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        name = f"{above}{key}"
        found += paths(value, f"{name}.") if isinstance(value, dict) and value else [name]
    return found


def covered(path: str, rows: set[str]) -> bool:
    """Itself, or the map on one line that it is in."""
    parts = path.split(".")
    return any(".".join(parts[:count]) in rows for count in range(1, len(parts) + 1))


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_builds_into_distinct_objects_with_namespaces(folder: str) -> None:
    objects = built(f"deploy/{folder}")
    names = Counter((o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects)
    assert [name for name, count in names.items() if count > 1] == []
    made = {o["metadata"]["name"] for o in objects if o["kind"] == "Namespace"} | {"default"}
    assert {o["metadata"].get("namespace", "default") for o in objects} <= made
    assert "helm" not in str([o["metadata"] for o in objects]).lower()


def test_kind_uses_images_that_were_built_on_the_laptop() -> None:
    images = {c["image"] for _, pod in pod_templates(built("deploy/overlays/kind")) for c in containers(pod)}
    assert images == {"talkoo-control:dev", "talkoo-train:dev", "talkoo-storage:dev"}


def test_on_a_single_node_every_pod_may_run_there() -> None:
    for name, pod in pod_templates(built("deploy/overlays/single-node")):
        assert "node-role.kubernetes.io/control-plane" in {t["key"] for t in pod["spec"]["tolerations"]}, name


def test_three_organizations_found_one_federation_and_share_no_namespace() -> None:
    objects = built("deploy/overlays/federation")
    settings = {
        o["metadata"]["namespace"]: tomllib.loads(o["data"]["settings.toml"])
        for o in objects
        if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "talkoo-identity"
    }
    assert {name: s["organization"] for name, s in settings.items()} == {name: name for name in ORGANIZATIONS}
    assert [f["organization"] for f in settings["east"]["founders"]] == [*ORGANIZATIONS]
    assert settings["north"]["founders"] == settings["east"]["founders"] == settings["south"]["founders"]
    watched = [
        tomllib.loads(o["data"]["settings.toml"])["watch_namespaces"]
        for o in objects
        if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "talkoo-operator"
    ]
    assert sorted(watched) == [["east-tasks"], ["north-tasks"], ["south-tasks"]]


@pytest.mark.parametrize("example", sorted(path.parent.name for path in ROOT.glob("examples/*/kustomization.yaml")))
def test_each_example_brings_what_its_task_names(example: str) -> None:
    objects = built(f"examples/{example}")
    files = {
        o["metadata"]["name"]: {**o.get("data", {}), **o.get("binaryData", {})}
        for o in objects
        if o["kind"] == "ConfigMap"
    }
    (task,) = (o for o in objects if o["kind"] == "TrainingTask")
    program, data = task["spec"]["program"], task["spec"]["data"]
    assert f"{program['module'].removesuffix('.py')}.py" in files[program["configMap"]]
    assert Path(data["path"]).name in files[data.get("configMap", program["configMap"])]
