"""Datasets: a file by its hash in the blob store, put there or checked once, and never another file after that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from talkoo_core.errors import Corrupt, InvalidInput, TalkooError
from talkoo_operator.accounts import Accounts
from talkoo_operator.api import API_SERVER_AWAY, DATASETS, TASKS, KubernetesApi
from talkoo_operator.inputs import entry_of, is_ready
from talkoo_operator.objects import AT_ONCE_S, Objects, Outrun
from talkoo_operator.queue import Key
from talkoo_operator.status import with_ready

RETRY_S, REVIEW_S = 10.0, 30.0
MAX_USERS = 100
"""Names of TrainingTasks in a status."""
Object = dict[str, Any]


class DatasetController:
    """Bytes go over the organization's gateway, which checks them too."""

    def __init__(self, api: KubernetesApi, accounts: Accounts, now: Callable[[], float]) -> None:
        self._api = api
        self._accounts = accounts
        self._objects = Objects(api, DATASETS, "Dataset", now)

    async def work(self, key: Key) -> float | None:
        dataset = await self._objects.read(key)
        if dataset is None or "deletionTimestamp" in dataset["metadata"]:
            return None
        status = dict(dataset.get("status", {}))
        pause_s = REVIEW_S
        try:
            if not is_ready(status):
                status |= await self._stored(key[0], dataset["spec"])
                words = f"{status['bytes']} bytes are in the blob store, and their hash was checked"
                status = with_ready(status, True, "Stored", words, *self._objects.when(dataset))
        except TalkooError as error:
            if error.code == API_SERVER_AWAY:
                raise
            wrong = isinstance(error, InvalidInput | Corrupt)
            status = with_ready(
                status, False, "Refused" if wrong else "NotStored", error.message, *self._objects.when(dataset)
            )
            pause_s = RETRY_S
        status["usedBy"] = await self._users(key)
        try:
            await self._objects.write(dataset, status)
        except Outrun:
            return AT_ONCE_S
        return pause_s

    async def _stored(self, namespace: str, spec: Object) -> Object:
        """Raises NotFound, InvalidInput or Corrupt. A crash in its midst is harmless: the same bytes are put again."""
        client = self._accounts.reader
        wanted = str(spec.get("sha256", ""))
        if "configMap" in spec:
            source = spec["configMap"]
            content = entry_of(await self._api.config_map(namespace, source["name"]), source["name"], source["key"])
            found = hashlib.sha256(content).hexdigest()
            if wanted and found != wanted:
                raise InvalidInput(
                    f"the entry {source['key']} of the ConfigMap {source['name']} has the SHA-256 {found}, not the "
                    f"{wanted} of spec.sha256; correct one of them"
                )
            await client.put_blob(content)
        else:
            content, found = await client.blob(wanted), wanted
        return {"sha256": found, "bytes": len(content), "fileName": _file_name(spec)}

    async def _users(self, key: Key) -> list[str]:
        """TrainingTasks of the same namespace that name it."""
        tasks = await self._api.objects(TASKS, (key[0],))
        named = [t["metadata"]["name"] for t in tasks if t["spec"].get("data", {}).get("dataset") == key[1]]
        return sorted(named)[:MAX_USERS]


def _file_name(spec: Object) -> str:
    return str(spec.get("fileName") or spec.get("configMap", {}).get("key", ""))
