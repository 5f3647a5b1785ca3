"""Write docs/crds.md from the schemas in helm/talkoo/crd-files; `--check` only says whether it is fresh."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
CRDS = ROOT / "helm" / "talkoo" / "crd-files"
PAGE = ROOT / "docs" / "crds.md"
ORDER = ("trainingtasks", "datasets", "modelversions", "gpunodes", "federations", "proposals")
HEAD = """# The resources, field by field

Generated from the schemas by `python tools/generate_crd_docs.py`; `make check` holds it against them. How to work with
them is told in [kubernetes-tasks.md](kubernetes-tasks.md). All are of the group `talkoo.dev/v1alpha1`; *fixed* fields
cannot be changed once the object is there.
"""
CONDITION = (
    "`type`, `status`, `reason`, `message`, `lastTransitionTime`, `observedGeneration`, as everywhere in Kubernetes"
)


def page() -> str:
    parts = [HEAD]
    found = {path.stem: path for path in CRDS.glob("*.yaml")}
    for plural in (*ORDER, *sorted(set(found) - set(ORDER))):
        if plural in found:
            parts.append(kind(yaml.safe_load(found[plural].read_text(encoding="utf-8"))))
    return "\n".join(parts)


def kind(crd: dict[str, Any]) -> str:
    """One resource."""
    spec = crd["spec"]
    names, version = spec["names"], spec["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    scope = "In a namespace" if spec["scope"] == "Namespaced" else "Of the whole cluster"
    short = ", ".join(f"`{name}`" for name in names.get("shortNames", ()))
    lines = [f"## {names['kind']}", "", f"{schema.get('description', '')} {scope}; short name {short or 'none'}.", ""]
    for part in ("spec", "status"):
        if part not in schema["properties"]:
            continue
        lines += [f"### {names['kind']} {part}", "", "| field | type | meaning |", "|---|---|---|"]
        lines += rows(schema["properties"][part], "")
        lines.append("")
    rules = [rule["message"] for rule in [*_rules(schema), *_rules(schema["properties"].get("spec", {}))]]
    if rules:
        lines += [f"### {names['kind']} refuses", "", *(f"- {rule}" for rule in rules), ""]
    return "\n".join(lines)


def rows(schema: dict[str, Any], above: str) -> Iterator[str]:
    """A row for each field, those of an object below it."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{above}{name}"
        if name == "conditions" and field.get("type") == "array":
            yield f"| `{path}` | list | {CONDITION} |"
            continue
        yield f"| `{path}` | {_type(field)} | {_meaning(field, name in required)} |"
        inner = field.get("items", field)
        yield from rows(inner, f"{path}[]." if field.get("type") == "array" else f"{path}.")


def _type(field: dict[str, Any]) -> str:
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}s"
    if field.get("format") == "date-time":
        return "time"
    words = {
        "object": "object",
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true/false",
    }
    return words.get(str(field.get("type")), "anything")


def _meaning(field: dict[str, Any], required: bool) -> str:
    parts = [str(field.get("description", "")).rstrip(".")]
    if "enum" in field:
        parts.append("one of " + ", ".join(f"`{value}`" for value in field["enum"]))
    bounds = [str(field[edge]) if edge in field else "" for edge in ("minimum", "maximum")]
    if any(bounds):
        parts.append(
            f"from {bounds[0]} to {bounds[1]}"
            if all(bounds)
            else f"at least {bounds[0]}"
            if bounds[0]
            else f"at most {bounds[1]}"
        )
    if "maxItems" in field:
        parts.append(f"at most {field['maxItems']}")
    if required:
        parts.append("required")
    if field.get("default") not in (None, {}):
        parts.append(f"default `{field['default']!s}`")
    if any("oldSelf" in rule["rule"] for rule in _rules(field)):
        parts.append("*fixed*")
    return "; ".join(part.replace("|", "\\|") for part in parts if part)


def _rules(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return list(schema.get("x-kubernetes-validations", ()))


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print("docs/crds.md is fresh" if fresh else "docs/crds.md is stale; run `python tools/generate_crd_docs.py`")
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
