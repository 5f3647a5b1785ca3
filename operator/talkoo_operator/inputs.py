"""A TrainingTask's program and data, from ConfigMaps into a folder, as the SDK takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from talkoo.taskfile import TaskFile, read_task_mapping
from talkoo_core.errors import InvalidInput, NotFound
from talkoo_operator.api import GROUP, VERSION, KubernetesApi

KIND = "TrainingTask"


def task_file(task: Mapping[str, Any]) -> TaskFile:
    """The object's specification, checked as a task file is. Raises InvalidInput."""
    document = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": task["metadata"]["name"]},
        "spec": task["spec"],
    }
    made = read_task_mapping(document)
    if not made.program_config_map:
        raise InvalidInput(
            "spec.program.configMap is missing: a cluster does not see your files; put the program's files into a "
            "ConfigMap (kubectl create configmap NAME --from-file=FOLDER) and name it there",
            code="missing_field",
        )
    return made


async def fetch_inputs(api: KubernetesApi, namespace: str, task: TaskFile, folder: Path) -> TaskFile:
    """Write program and data below `folder`; the task file that comes back has its paths there.

    Raises NotFound (a ConfigMap or entry that may still come) or InvalidInput.
    """
    program = await api.config_map(namespace, task.program_config_map)
    data_name = Path(task.data_path).name
    source = task.data_config_map or task.program_config_map
    entries = await api.config_map(namespace, source) if task.data_config_map else program
    if data_name not in entries:
        there = ", ".join(sorted(entries)) or "none"
        raise NotFound(f"the ConfigMap {source} has no entry {data_name}; it has {there}", code="no_entry")
    await asyncio.to_thread(_write, folder / "program", {k: v for k, v in program.items() if k != data_name})
    await asyncio.to_thread(_write, folder / "data", {data_name: entries[data_name]})
    return replace(task, program_path="program", data_path=f"data/{data_name}")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
