"""A TrainingTask's program and data, from ConfigMaps into a folder, as the SDK takes them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from talkoo.client_async import AsyncClient
from talkoo.taskfile import TaskFile, read_task_mapping
from talkoo_core.errors import InvalidInput, NotFound, Unavailable
from talkoo_operator.api import DATASETS, GROUP, VERSION, KubernetesApi

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


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a TrainingTask is submitted with."""

    task: TaskFile
    program: Mapping[str, bytes]
    """Files by name."""
    data_name: str
    data: bytes

    def digest(self) -> str:
        """The same for tasks that have the same program and data."""
        parts = [self.task.module, self.task.data_sha256, self.data_name, *(name for name in sorted(self.program))]
        contents = [self.data, *(self.program[name] for name in sorted(self.program))]
        whole = hashlib.sha256(repr(parts).encode())
        for content in contents:
            whole.update(hashlib.sha256(content).digest())
        return whole.hexdigest()

    async def lay_out(self, folder: Path) -> TaskFile:
        """Write program and data below `folder`; the task file that comes back has its paths there."""
        await asyncio.to_thread(_write, folder / "program", self.program)
        await asyncio.to_thread(_write, folder / "data", {self.data_name: self.data})
        return replace(self.task, program_path="program", data_path=f"data/{self.data_name}")


async def fetch_inputs(api: KubernetesApi, client: AsyncClient, namespace: str, task: TaskFile) -> Inputs:
    """Raises NotFound (a ConfigMap, entry or Dataset that may still come), Unavailable (a Dataset that is not ready) or
    InvalidInput.
    """
    program = await api.config_map(namespace, task.program_config_map)
    if task.data_set:
        data_name, content, sha256 = await _of_dataset(api, client, namespace, task.data_set)
        task = replace(task, data_sha256=task.data_sha256 or sha256)
    else:
        data_name = Path(task.data_path).name
        source = task.data_config_map or task.program_config_map
        entries = await api.config_map(namespace, source) if task.data_config_map else program
        content = entry_of(entries, source, data_name)
    return Inputs(task, {name: each for name, each in program.items() if name != data_name}, data_name, content)


def entry_of(entries: Mapping[str, bytes], config_map: str, name: str) -> bytes:
    """Raises NotFound with what is there."""
    if name not in entries:
        there = ", ".join(sorted(entries)) or "none"
        raise NotFound(f"the ConfigMap {config_map} has no entry {name}; it has {there}", code="no_entry")
    return entries[name]


async def _of_dataset(api: KubernetesApi, client: AsyncClient, namespace: str, name: str) -> tuple[str, bytes, str]:
    """File name, content and hash."""
    dataset = await api.object(DATASETS, namespace, name)
    status = dataset.get("status", {})
    if not is_ready(status):
        raise Unavailable(
            f"the Dataset {name} is not ready: {status.get('message', 'the operator has not looked at it yet')}",
            code="dataset_not_ready",
        )
    return status["fileName"], await client.blob(status["sha256"]), status["sha256"]


def is_ready(status: Mapping[str, Any]) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
