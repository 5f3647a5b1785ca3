"""Write the manifests of deploy/ from the chart, or with --check say which are stale. Needs helm.

They are plain objects, so that `kubectl apply -k` works without helm: no hooks, no labels of helm's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from talkoo_core.errors import TalkooError
from talkoo_sim.cluster.chart import render

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
HEADER = "# Written by tools/render_deploy.py from helm/talkoo; change the chart or values.yaml, not this file.\n"
MANAGED_BY = "app.kubernetes.io/managed-by"
CRD = "CustomResourceDefinition"
FOLDERS = {"base": "talkoo", **{f"overlays/federation/{name}": name for name in ("north", "east", "south")}}
"""Folder with a values.yaml → the namespace of its release."""
Object = dict[str, Any]


def rendered(folder: str) -> dict[Path, str]:
    """Each file that comes from the chart with the folder's values, as it should be."""
    namespace = FOLDERS[folder]
    values = yaml.safe_load((DEPLOY / folder / "values.yaml").read_text(encoding="utf-8"))
    objects = [plain(each, namespace) for each in render(values, "--no-hooks", namespace=namespace)]
    files = {DEPLOY / folder / "talkoo.yaml": [each for each in objects if each["kind"] != CRD]}
    if folder == "base":
        files[DEPLOY / "crds" / "crds.yaml"] = [each for each in objects if each["kind"] == CRD]
    return {path: HEADER + yaml.safe_dump_all(made, width=120) for path, made in files.items()}


def plain(each: Object, namespace: str) -> Object:
    """Without what only helm reads, and with its namespace."""
    metadata = each["metadata"]
    for mapping in _label_maps(each):
        mapping.pop("helm.sh/chart", None)
        if MANAGED_BY in mapping:
            mapping[MANAGED_BY] = "kustomize"
    metadata.get("annotations", {}).pop("helm.sh/resource-policy", None)
    if not metadata.get("annotations", True):
        del metadata["annotations"]
    if each["kind"] not in CLUSTER_SCOPED:
        metadata.setdefault("namespace", namespace)
    return each


CLUSTER_SCOPED = {
    CRD,
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def _label_maps(each: Object) -> list[dict[str, str]]:
    """The object's own labels, and those of its pods."""
    spec = each.get("spec", {})
    templates = [spec.get("template"), spec.get("jobTemplate", {}).get("spec", {}).get("template")]
    owners = [each, *(template for template in templates if template)]
    return [owner["metadata"]["labels"] for owner in owners if owner["metadata"].get("labels")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is stale")
    check = parser.parse_args().check
    stale = []
    try:
        for folder in FOLDERS:
            for path, wanted in rendered(folder).items():
                if path.is_file() and path.read_text(encoding="utf-8") == wanted:
                    continue
                stale.append(path)
                if not check:
                    path.write_text(wanted, encoding="utf-8")
    except TalkooError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    if check:
        for path in stale:
            print(f"stale: {path.relative_to(DEPLOY.parent)}; run tools/render_deploy.py")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
