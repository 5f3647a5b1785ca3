"""What the chart makes, object by object: least privilege, probes, bounds, and references that meet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from talkoo_sim.cluster.chart import Object, containers, pod_templates, render

pytestmark = pytest.mark.usefixtures("helm")

DIGEST = f"sha256:{'b' * 64}"
VARIANTS: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "all there is": {
        "ledger": {"engine": "cometbft", "rpc": {"enabled": True}},
        "gateway": {"autoscaling": {"enabled": True}, "service": {"type": "LoadBalancer"}},
        "certificates": {"issuer": "cert-manager"},
        "federation": {"accounts": [{"namespace": "default", "balance": "500 TLK"}]},
        "networkPolicies": {"memberCidrs": ["203.0.113.0/24"]},
        "scheduling": {"nodeSelector": {"pool": "small"}, "priorityClassName": "high"},
        "agents": {"runtimeClassName": "nvidia"},
        "cleanup": {"deleteSecrets": True},
    },
    "little": {
        "agents": {"enabled": False},
        "etcd": {"enabled": False, "endpoints": ["etcd.example:2379"]},
        "blobs": {"url": "s3://bucket?endpoint=https://s3.example:9000", "secretName": "s3"},
        "networkPolicies": {"enabled": False},
        "cleanup": {"enabled": False},
        "crds": {"install": False},
        "ledger": {"persistence": {"enabled": False}},
    },
}
PRIVILEGED_ON_PURPOSE = {("DaemonSet/talkoo-agent", "folder")}
"""Makes the node's folder for the agent: root, with CHOWN and nothing else."""
WITHOUT_MEMORY_LIMIT = {("DaemonSet/talkoo-agent", "agent")}
"""What a node lends is what agents.memoryBytes says; a limit would be a second truth."""
WITH_TOKEN = {"operator", "agent", "identity", "cleanup"}
"""Components that call the Kubernetes API."""


@pytest.fixture(params=VARIANTS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(VARIANTS[request.param])


def every_container(objects: list[Object]) -> Iterator[tuple[tuple[str, str], Object, Object]]:
    for name, pod in pod_templates(objects):
        for container in containers(pod):
            yield (name, container["name"]), pod, container


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def test_no_pod_may_more_than_the_restricted_standard_allows(objects: list[Object]) -> None:
    for name, pod in pod_templates(objects):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] == 10001, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys(), name
        assert not [v for v in pod["spec"].get("volumes", ()) if "hostPath" in v and name != "DaemonSet/talkoo-agent"]
    for which, _, container in every_container(objects):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, which
        assert security["readOnlyRootFilesystem"] is True, which
        assert security["capabilities"]["drop"] == ["ALL"], which
        if which not in PRIVILEGED_ON_PURPOSE:
            assert security["capabilities"].get("add") is None, which
            assert security.get("runAsNonRoot", True), which


def test_the_one_container_that_runs_as_root_may_only_give_a_folder_away() -> None:
    agent = one(render(), "DaemonSet", "talkoo-agent")
    (folder,) = (each for each in containers(agent["spec"]["template"]) if each["name"] == "folder")
    assert folder["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert [mount["name"] for mount in folder["volumeMounts"]] == ["state"]
    assert "AWS_SECRET_ACCESS_KEY" not in str(folder)


def test_only_who_calls_the_api_server_gets_a_token(objects: list[Object]) -> None:
    for name, pod in pod_templates(objects):
        component = pod["metadata"]["labels"]["app.kubernetes.io/component"]
        assert pod["spec"].get("automountServiceAccountToken", True) is (component in WITH_TOKEN), name
        assert ("serviceAccountName" in pod["spec"]) is (component in WITH_TOKEN), name
        assert pod["spec"]["enableServiceLinks"] is False, name


def test_every_container_asks_for_what_it_needs_and_is_bound(objects: list[Object]) -> None:
    for which, _, container in every_container(objects):
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), which
        assert ("memory" in resources.get("limits", {})) is (which not in WITHOUT_MEMORY_LIMIT), which


def test_what_stays_is_probed_on_a_port_that_it_has(objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] not in ("Deployment", "StatefulSet", "DaemonSet"):
            continue
        for container in each["spec"]["template"]["spec"]["containers"]:
            ports = {p["name"] for p in container["ports"]} | {p["containerPort"] for p in container["ports"]}
            assert {"startupProbe", "livenessProbe"} <= container.keys(), each["metadata"]["name"]
            for kind in {"startupProbe", "livenessProbe", "readinessProbe"} & container.keys():
                probe = container[kind]
                assert (probe.get("tcpSocket") or probe["httpGet"])["port"] in ports, each["metadata"]["name"]


def test_selectors_meet_their_pods_and_no_others(objects: list[Object]) -> None:
    pods = {name: pod["metadata"]["labels"] for name, pod in pod_templates(objects)}
    lasting = {name: labels for name, labels in pods.items() if not name.startswith(("Job/", "CronJob/", "Pod/"))}
    for each in objects:
        kind, name = each["kind"], each["metadata"]["name"]
        if kind in ("Deployment", "StatefulSet", "DaemonSet", "PodDisruptionBudget"):
            wanted = each["spec"]["selector"]["matchLabels"]
        elif kind == "Service":
            wanted = each["spec"]["selector"]
        else:
            continue
        met = {pod for pod, labels in lasting.items() if wanted.items() <= labels.items()}
        assert len(met) == 1, f"{kind}/{name} selects {met}"
        assert met.pop().endswith(f"/{name}")


def test_services_lead_to_ports_that_containers_have(objects: list[Object]) -> None:
    by_component = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for _, pod in pod_templates(objects)}
    for each in objects:
        if each["kind"] != "Service":
            continue
        pod = by_component[each["spec"]["selector"]["app.kubernetes.io/component"]]
        known = {port["name"]: port["containerPort"] for c in pod["spec"]["containers"] for port in c["ports"]}
        wanted = {port["targetPort"]: port["port"] for port in each["spec"]["ports"]}
        assert wanted.items() <= known.items(), each["metadata"]["name"]


def test_every_volume_is_mounted_and_every_mount_is_a_volume(objects: list[Object]) -> None:
    claims = {
        f"StatefulSet/{each['metadata']['name']}": {c["metadata"]["name"] for c in each["spec"]["volumeClaimTemplates"]}
        for each in objects
        if each["kind"] == "StatefulSet" and "volumeClaimTemplates" in each["spec"]
    }
    for name, pod in pod_templates(objects):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", ())} | claims.get(name, set())
        mounted = {mount["name"] for c in containers(pod) for mount in c.get("volumeMounts", ())}
        assert volumes == mounted, name


def test_config_maps_and_accounts_that_pods_name_are_made_by_the_chart(objects: list[Object]) -> None:
    made = {(each["kind"], each["metadata"]["name"]) for each in objects}
    by_identity = {("ConfigMap", "talkoo-federation")}
    for name, pod in pod_templates(objects):
        for volume in pod["spec"].get("volumes", ()):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made | by_identity, name
        if "serviceAccountName" in pod["spec"]:
            assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in made, name


def test_images_go_by_digest_where_one_is_given() -> None:
    names = ("control", "train", "storage", "comet")
    values = {"images": {name: {"digest": DIGEST} for name in names}, "ledger": {"engine": "cometbft"}}
    found = {container["image"] for _, _, container in every_container(render(values))}
    suffixes = ("control", "train", "storage", "control-comet")
    assert found == {f"ghcr.io/talkoo/talkoo-{name}@{DIGEST}" for name in suffixes}


def test_replicas_are_spread_over_nodes_and_zones(objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] != "Deployment":
            continue
        spread = each["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert {c["topologyKey"] for c in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
        for constraint in spread:
            assert constraint["labelSelector"]["matchLabels"] == each["spec"]["selector"]["matchLabels"]


def test_every_object_says_to_which_release_and_part_it_belongs(objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] == "CustomResourceDefinition":
            assert each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
            continue
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "talkoo", each["metadata"]["name"]
        assert labels["app.kubernetes.io/instance"] == "talkoo"
        assert re.fullmatch(r"talkoo-\d+\.\d+\.\d+", labels["helm.sh/chart"])


def test_a_chart_with_autoscaling_leaves_the_number_of_gateways_to_it() -> None:
    objects = render({"gateway": {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9}}})
    assert "replicas" not in one(objects, "Deployment", "talkoo-gateway")["spec"]
    scaler = one(objects, "HorizontalPodAutoscaler", "talkoo-gateway")["spec"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 9)
    assert scaler["scaleTargetRef"]["name"] == "talkoo-gateway"


def test_all_but_agents_go_where_the_values_say_so() -> None:
    values = {
        "scheduling": {"nodeSelector": {"pool": "small"}, "tolerations": [{"key": "small", "operator": "Exists"}]}
    }
    for name, pod in pod_templates(render(values)):
        wanted = None if name == "DaemonSet/talkoo-agent" else {"pool": "small"}
        assert pod["spec"].get("nodeSelector") == wanted, name


def test_rights_name_their_objects_and_no_role_has_a_wildcard(objects: list[Object]) -> None:
    for each in objects:
        if each["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in each["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], each["metadata"]["name"]
            if each["kind"] == "ClusterRole" and "secrets" in rule["resources"]:
                assert rule["resourceNames"] == ["talkoo-account"]
