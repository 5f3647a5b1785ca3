"""The task file: strict YAML (or the same as a dict) into a checked `TaskFile`.

Anything unknown, missing or of the wrong type is `InvalidInput` with the file's line, what was wrong and what to write.
Reads no other file and needs neither torch nor a gateway.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from talkoo_core.amounts import PPM, parse_tlk
from talkoo_core.errors import InvalidInput, NotFound, TalkooError
from talkoo_core.ids import check_name

API_VERSION = "talkoo.dev/v1alpha1"
KIND = "TrainingTask"
MODES = ("ddp",)
OPTIMIZERS = ("sgd", "adam", "adamw")
MAX_FILE_BYTES = 1 << 20
MAX_STEPS = 10_000_000
MAX_BATCH = 1 << 20
MAX_NODES = 64
MAX_FLOPS_PER_SAMPLE = 2**63 - 1
MAX_MEMORY_BYTES = 1 << 50
MAX_CONFIG_BYTES = 16 * 1024
MAX_DEPTH = 32

FieldPath = tuple[str, ...]
_QUANTITY = re.compile(r"(\d{1,15})(?:\.(\d{1,6}))?(k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task as its owner wrote it, in the ledger's units. Paths are still relative to the file's folder."""

    name: str
    mode: str
    program_path: str
    module: str
    config_json: str
    data_path: str
    data_sha256: str
    """Hex, or empty: whatever the file's hash is."""
    optimizer: str
    optimizer_options_json: str
    global_batch: int
    steps: int
    steps_per_segment: int
    seed: int
    min_nodes: int
    max_nodes: int
    memory_bytes: int
    budget_utlk: int
    price_utlk_per_gflop: int
    audit_rate_ppm: int
    model_name: str
    licence: str
    request_price_utlk: int
    parent_version: str
    program_config_map: str = ""
    data_config_map: str = ""
    """On a cluster the files are the entries of these ConfigMaps; on a laptop the paths count."""
    data_set: str = ""
    """On a cluster: a Dataset that holds the data, instead of a file or a ConfigMap."""
    flops_per_sample: int = 0
    """Operations of one sample as their owner gives them; 0: they are counted."""


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def read_task_file(path: Path) -> TaskFile:
    """Read and check a YAML task file. Raises NotFound or InvalidInput with `<file>:<line>` in front."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}; write a task file (see docs/quickstart.md)") from None
    except IsADirectoryError:
        raise InvalidInput(f"{path} is a folder; name the task file in it, e.g. {path / 'task.yaml'}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not a text file; write the task as YAML in UTF-8") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise InvalidInput(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; is it a task file?")
    document, lines = _load_yaml(text, str(path))
    return _Reader(str(path), lines).task(document)


def read_task_mapping(document: Mapping[str, Any]) -> TaskFile:
    """The same from a dict. Raises InvalidInput."""
    return _Reader("", {}).task(document)


def _load_yaml(text: str, source: str) -> tuple[Any, dict[FieldPath, int]]:
    """Plain values and the line of each key. Duplicate keys, tags and more than one document are refused."""
    import yaml

    lines: dict[FieldPath, int] = {}
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise InvalidInput(f"{source}: the file is empty; start with `apiVersion: {API_VERSION}`")
        _note_lines(node, (), lines, source)
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f":{mark.line + 1}" if mark else ""
        raise InvalidInput(f"{source}{where}: not YAML: {error.problem or error.context}", code="bad_yaml") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"{source}: not YAML: {' '.join(str(error).split())}", code="bad_yaml") from None
    finally:
        loader.dispose()


def _note_lines(node: Any, path: FieldPath, lines: dict[FieldPath, int], source: str) -> None:
    import yaml

    if len(path) > MAX_DEPTH:
        raise InvalidInput(f"{source}:{node.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels; flatten it")
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise InvalidInput(
                f"{source}:{line}: {'.'.join(here)} is written twice, first in line {lines[here]}; keep one",
                code="duplicate_field",
            )
        lines[here] = line
        _note_lines(value, here, lines, source)


class _Reader:
    """Takes fields out of nested mappings; what is left over at the end was unknown."""

    def __init__(self, source: str, lines: dict[FieldPath, int]) -> None:
        self._source = source
        self._lines = lines

    def task(self, document: Any) -> TaskFile:
        top = self._mapping(document, (), ("apiVersion", "kind", "metadata", "spec"))
        self._constant(top, "apiVersion", API_VERSION)
        self._constant(top, "kind", KIND)
        metadata = self._child(top, (), "metadata", ("name", "namespace", "labels", "annotations"))
        where = ("spec",)
        spec = self._child(top, (), "spec", _SPEC_FIELDS)
        program = self._child(spec, where, "program", _PROGRAM_FIELDS)
        data = self._child(spec, where, "data", ("path", "configMap", "dataset", "sha256"))
        optimizer = self._mapping(self._need(spec, where, "optimizer"), (*where, "optimizer"), None)
        nodes = self._child(spec, where, "nodes", ("min", "max", "memory"))
        model = self._child(spec, where, "model", ("name", "licence", "requestPrice", "parent"))
        steps = self._integer(spec, where, "steps", 1, MAX_STEPS)
        batch = self._integer(spec, where, "globalBatch", 1, MAX_BATCH)
        least = self._integer(nodes, (*where, "nodes"), "min", 1, MAX_NODES, 1)
        name = self._name(metadata, ("metadata",), "name")
        task = TaskFile(
            name=name,
            mode=self._choice(spec, where, "mode", MODES, "ddp"),
            program_path=self._text(program, (*where, "program"), "path", "."),
            module=self._module(program, (*where, "program")),
            config_json=self._config(program, (*where, "program")),
            data_path=self._text(data, (*where, "data"), "path", "" if data.get("dataset") else None),
            data_sha256=self._sha256(data, (*where, "data")),
            optimizer=self._choice(optimizer, (*where, "optimizer"), "name", OPTIMIZERS),
            optimizer_options_json=self._options(optimizer, (*where, "optimizer")),
            global_batch=batch,
            steps=steps,
            steps_per_segment=self._integer(spec, where, "stepsPerSegment", 1, MAX_STEPS, min(steps, 30)),
            seed=self._integer(spec, where, "seed", 0, 2**63 - 1, 0),
            min_nodes=least,
            max_nodes=self._integer(nodes, (*where, "nodes"), "max", 1, MAX_NODES, least),
            memory_bytes=self._quantity(nodes, (*where, "nodes"), "memory", "256Mi"),
            budget_utlk=self._amount(spec, where, "budget"),
            price_utlk_per_gflop=self._amount(spec, where, "price"),
            audit_rate_ppm=self._rate(spec, where, "auditRate", 0),
            model_name=self._name(model, (*where, "model"), "name"),
            licence=self._text(model, (*where, "model"), "licence", "", empty=True),
            request_price_utlk=self._amount(model, (*where, "model"), "requestPrice", 0),
            parent_version=self._text(model, (*where, "model"), "parent", "", empty=True),
            program_config_map=self._text(program, (*where, "program"), "configMap", "", empty=True),
            data_config_map=self._text(data, (*where, "data"), "configMap", "", empty=True),
            data_set=self._text(data, (*where, "data"), "dataset", "", empty=True),
            flops_per_sample=self._integer(program, (*where, "program"), "flopsPerSample", 1, MAX_FLOPS_PER_SAMPLE, 0),
        )
        self._check_whole(task)
        return task

    def _check_whole(self, task: TaskFile) -> None:
        if task.max_nodes < task.min_nodes:
            raise self._wrong(
                ("spec", "nodes", "max"), f"is {task.max_nodes}, less than nodes.min ({task.min_nodes}); raise it"
            )
        if task.global_batch < task.max_nodes:
            raise self._wrong(
                ("spec", "globalBatch"),
                f"is {task.global_batch}: fewer samples than nodes.max ({task.max_nodes}); each node needs one",
            )
        if task.steps_per_segment > task.steps:
            raise self._wrong(
                ("spec", "stepsPerSegment"), f"is {task.steps_per_segment}, more than the task's {task.steps} steps"
            )

    # -- errors ------------------------------------------------------------------------------------------------------

    def _wrong(self, path: FieldPath, message: str, code: str = "bad_field") -> InvalidInput:
        line = next((self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), None)
        where = f"{self._source}:{line}: " if line and self._source else f"{self._source}: " if self._source else ""
        return InvalidInput(f"{where}{'.'.join(path) or 'the task'} {message}", code=code)

    # -- structure ---------------------------------------------------------------------------------------------------

    def _mapping(self, value: Any, path: FieldPath, known: tuple[str, ...] | None) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._wrong(path, f"must be a mapping of fields, not {_shown(value)}", "wrong_type")
        for key in value:
            if not isinstance(key, str):
                raise self._wrong(path, f"has the field {key!r}, which is not a word; quote it", "wrong_type")
            if known is not None and key not in known:
                raise self._unknown((*path, key), key, known)
        return value

    def _unknown(self, path: FieldPath, key: str, known: tuple[str, ...]) -> InvalidInput:
        close = difflib.get_close_matches(key.lower(), [name.lower() for name in known], n=1, cutoff=0.6)
        if close:
            match = next(name for name in known if name.lower() == close[0])
            return self._wrong(path, f"is not a field; did you mean {match}?", "unknown_field")
        return self._wrong(path, f"is not a field; the fields there are {', '.join(known)}", "unknown_field")

    def _need(self, mapping: Mapping[str, Any], path: FieldPath, key: str) -> Any:
        if mapping.get(key) is None:
            raise self._wrong((*path, key), "is missing; add it", "missing_field")
        return mapping[key]

    def _child(
        self, mapping: Mapping[str, Any], path: FieldPath, key: str, known: tuple[str, ...]
    ) -> Mapping[str, Any]:
        return self._mapping(self._need(mapping, path, key), (*path, key), known)

    def _constant(self, top: Mapping[str, Any], key: str, wanted: str) -> None:
        if self._need(top, (), key) != wanted:
            raise self._wrong((key,), f"must be {wanted}, not {_shown(top[key])}")

    # -- values ------------------------------------------------------------------------------------------------------

    def _text(
        self, mapping: Mapping[str, Any], path: FieldPath, key: str, default: str | None = None, *, empty: bool = False
    ) -> str:
        value = mapping.get(key)
        if value is None and default is not None:
            return default
        value = self._need(mapping, path, key)
        if not isinstance(value, str):
            raise self._wrong((*path, key), f"must be a text, not {_shown(value)}; quote it", "wrong_type")
        if not value and not empty:
            raise self._wrong((*path, key), "is empty; fill it in")
        if len(value) > 1024:
            raise self._wrong((*path, key), "is longer than 1024 characters; shorten it")
        return value

    def _name(self, mapping: Mapping[str, Any], path: FieldPath, key: str) -> str:
        text = self._text(mapping, path, key)
        try:
            return check_name(text, "the name")
        except TalkooError as error:
            raise self._wrong((*path, key), f"is wrong: {error.message}", "bad_name") from None

    def _module(self, program: Mapping[str, Any], path: FieldPath) -> str:
        text = self._text(program, path, "module").removesuffix(".py")
        if not _IDENTIFIER.fullmatch(text):
            raise self._wrong((*path, "module"), f"must be the stem of a Python file, e.g. digits, not {text!r}")
        return text

    def _choice(
        self, mapping: Mapping[str, Any], path: FieldPath, key: str, among: tuple[str, ...], default: str | None = None
    ) -> str:
        text = self._text(mapping, path, key, default)
        if text not in among:
            raise self._wrong((*path, key), f"must be {' or '.join(among)}, not {text!r}")
        return text

    def _integer(
        self, mapping: Mapping[str, Any], path: FieldPath, key: str, least: int, most: int, default: int | None = None
    ) -> int:
        value = mapping.get(key)
        if value is None and default is not None:
            return default
        value = self._need(mapping, path, key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong((*path, key), f"must be a whole number, not {_shown(value)}", "wrong_type")
        if not least <= value <= most:
            raise self._wrong((*path, key), f"is {value}; it must be from {least} to {most}")
        return value

    def _amount(self, mapping: Mapping[str, Any], path: FieldPath, key: str, default: int | None = None) -> int:
        value = mapping.get(key)
        if value is None and default is not None:
            return default
        value = self._need(mapping, path, key)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self._wrong((*path, key), f"must be an amount like 1.5 TLK, not {_shown(value)}", "wrong_type")
        try:
            return parse_tlk(str(value))
        except TalkooError as error:
            raise self._wrong((*path, key), f"is wrong: {error.message}", "bad_amount") from None

    def _quantity(self, mapping: Mapping[str, Any], path: FieldPath, key: str, default: str) -> int:
        value = mapping.get(key, default)
        match = _QUANTITY.fullmatch(str(value)) if isinstance(value, str | int) else None
        if match is None or isinstance(value, bool):
            raise self._wrong((*path, key), f"must be a size like 512Mi or 2Gi, not {_shown(value)}", "bad_quantity")
        size = int(Decimal(f"{match[1]}.{match[2] or 0}") * _UNITS[match[3]])
        if not 1 <= size <= MAX_MEMORY_BYTES:
            raise self._wrong((*path, key), f"is {size} bytes; it must be from 1 byte to {MAX_MEMORY_BYTES >> 40} Ti")
        return size

    def _rate(self, mapping: Mapping[str, Any], path: FieldPath, key: str, default_ppm: int) -> int:
        value = mapping.get(key)
        if value is None:
            return default_ppm
        text = str(value).strip()
        try:
            rate = Decimal(text[:-1]) / 100 if text.endswith("%") else Decimal(text)
        except InvalidOperation:
            rate = Decimal(-1)
        if isinstance(value, bool) or not rate.is_finite() or not 0 <= rate <= 1:
            raise self._wrong((*path, key), f"must be a share from 0 to 1 like 0.3, not {_shown(value)}", "bad_rate")
        return int(rate * PPM)

    def _sha256(self, data: Mapping[str, Any], path: FieldPath) -> str:
        text = self._text(data, path, "sha256", "", empty=True).lower()
        if text and not _SHA256.fullmatch(text):
            raise self._wrong((*path, "sha256"), "must be 64 hex digits, as `sha256sum` prints them")
        return text

    def _config(self, program: Mapping[str, Any], path: FieldPath) -> str:
        config = program.get("config") or {}
        config = self._mapping(config, (*path, "config"), None)
        try:
            text = canonical_json(config)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._wrong((*path, "config"), f"must hold only JSON values ({error})", "wrong_type") from None
        if len(text.encode()) > MAX_CONFIG_BYTES:
            raise self._wrong((*path, "config"), f"is over {MAX_CONFIG_BYTES >> 10} KiB; put large things into a file")
        return text

    def _options(self, optimizer: Mapping[str, Any], path: FieldPath) -> str:
        """Every option but the name; numbers as text, since the ledger holds no float."""
        options: dict[str, Any] = {}
        for key, value in optimizer.items():
            if key != "name":
                options[key] = self._option((*path, key), value)
        return canonical_json(options)

    def _option(self, path: FieldPath, value: Any) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, list | tuple):
            return [self._option(path, item) for item in value]
        try:  # YAML 1.1 reads 1e-3 as a text
            number = Decimal(str(value))
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            raise self._wrong(path, f"must be a number, not {_shown(value)}", "wrong_type")
        return str(value)


_PROGRAM_FIELDS = ("path", "configMap", "module", "config", "flopsPerSample")
_SPEC_FIELDS = (
    "mode",
    "program",
    "data",
    "optimizer",
    "globalBatch",
    "steps",
    "stepsPerSegment",
    "seed",
    "nodes",
    "budget",
    "price",
    "auditRate",
    "model",
    "suspend",
    "cancel",
    "priority",
    "deadlineSeconds",
    "retries",
    "retryBackoffSeconds",
    "ttlSecondsAfterFinished",
)
"""Those from `suspend` on are for a cluster (docs/crds.md); a laptop submits at once, once, and keeps what it made."""


def _shown(value: object) -> str:
    """A value as an error shows it: short, with its type named as YAML's users name it."""
    words = {bool: "true/false", dict: "a mapping", list: "a list", type(None): "nothing"}
    if type(value) in words and not isinstance(value, bool):
        return words[type(value)]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
