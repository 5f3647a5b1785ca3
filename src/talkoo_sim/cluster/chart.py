"""The chart, rendered by the real helm."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from talkoo_sim.cluster.binaries import binary
from talkoo_sim.cluster.commands import run
from talkoo_sim.go_tools import TESTS

CHART = TESTS.parent / "helm" / "talkoo"
TIMEOUT_S = 60.0
Object = dict[str, Any]


def template(
    values: Mapping[str, Any] | None = None, *arguments: str, release: str = "talkoo", namespace: str = "talkoo"
) -> str:
    """What helm would send, as text. Raises Failed with helm's own words, NotFound without helm."""
    return _template(json.dumps(values or {}), arguments, release, namespace)


@functools.lru_cache(maxsize=32)
def _template(values: str, arguments: tuple[str, ...], release: str, namespace: str) -> str:
    """The same values give the same text: helm is asked once."""
    command: list[str | Path] = [binary("helm"), "template", release, CHART, "--namespace", namespace, *arguments]
    return run([*command, "--values", "-"], stdin=values, timeout_s=TIMEOUT_S)


def render(values: Mapping[str, Any] | None = None, *arguments: str, **names: str) -> list[Object]:
    """The same as objects."""
    return [each for each in yaml.safe_load_all(template(values, *arguments, **names)) if each]


def lint(values: Mapping[str, Any] | None = None) -> str:
    """`helm lint --strict`. Raises Failed."""
    command: list[str | Path] = [binary("helm"), "lint", "--strict", CHART, "--values", "-"]
    return run(command, stdin=json.dumps(values or {}), timeout_s=TIMEOUT_S)


def pod_templates(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """`kind/name` and the pod (metadata and spec) of everything that makes pods."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each
        elif each["kind"] == "CronJob":
            yield name, each["spec"]["jobTemplate"]["spec"]["template"]
        elif each["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job"):
            yield name, each["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]
