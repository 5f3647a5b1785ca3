"""The chart's values: each is in the schema and the reverse, and what cannot work is refused with the field's name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from talkoo_core.errors import Failed
from talkoo_sim.cluster.chart import CHART, lint, render, template

pytestmark = pytest.mark.usefixtures("helm")
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
PASSED_ON = "#/$defs/ofKubernetes"
"""Kubernetes' own types, which the API server judges."""
RESOURCES = ("resources", "keeperResources", "requests")
"""Kubernetes' own, whose parts may be absent."""
DIGEST = f"sha256:{'a' * 64}"


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]] | rest
    return schema


def differences(values: dict[str, Any], schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Properties that only one of the two knows, and such that may be absent though they have a value."""
    schema = resolved(schema)
    properties = schema.get("properties", {})
    yield from (f"{at}.{name} is not in the schema" for name in values.keys() - properties.keys())
    yield from (f"{at}.{name} is not in values.yaml" for name in set(schema.get("required", ())) - values.keys())
    if set(schema.get("required", ())) != properties.keys() and at.rpartition(".")[2] not in RESOURCES:
        yield f"{at}: {sorted(properties.keys() ^ set(schema.get('required', ())))} may be absent"
    for name, value in values.items():
        inner = resolved(properties.get(name, {}))
        if isinstance(value, dict) and "properties" in inner and name != "limits":
            yield from differences(value, inner, f"{at}.{name}")


def objects_of(schema: Any, at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of an object, but the conditions."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield at, schema
        for key, value in schema.items():
            if key not in ("if", "then", "else", "not", "required"):
                yield from objects_of(value, f"{at}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from objects_of(value, f"{at}/{index}")


def test_every_value_is_in_the_schema_and_every_property_of_it_in_the_values() -> None:
    assert not [*differences(VALUES, SCHEMA)]


def test_every_object_of_the_schema_is_closed() -> None:
    open_ones = {at for at, schema in objects_of(SCHEMA) if schema.get("additionalProperties", True) is True}
    assert open_ones == {"/$defs/ofKubernetes"}


def test_the_values_as_they_stand_are_fine() -> None:
    assert "0 chart(s) failed" in lint()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"replicas": 3}, "replicas"),
    "unknown value inside": ({"gateway": {"replcas": 3}}, "/gateway"),
    "organization in capitals": ({"organization": "North"}, "/organization"),
    "amount without unit": ({"federation": {"stake": "1000"}}, "/federation/stake"),
    "amount with seven decimals": ({"agents": {"stake": "1.0000001 TLK"}}, "/agents/stake"),
    "founders without ourselves": (
        {"federation": {"founders": [{"organization": "east", "namespace": "east", "release": "talkoo"}]}},
        "federation.founders: north is not among them",
    ),
    "account without balance": ({"federation": {"accounts": [{"namespace": "a"}]}}, "/federation/accounts/0"),
    "short digest": ({"images": {"control": {"digest": "sha256:abc"}}}, "/images/control/digest"),
    "pull policy": ({"images": {"pullPolicy": "Sometimes"}}, "/images/pullPolicy"),
    "memory in words": (
        {"scheduler": {"resources": {"requests": {"cpu": "1", "memory": "plenty"}}}},
        "/scheduler/resources/requests/memory",
    ),
    "no requests": ({"gateway": {"resources": {"requests": None}}}, "/gateway/resources"),
    "engine": ({"ledger": {"engine": "raft"}}, "/ledger/engine"),
    "peers of CometBFT under our own engine": (
        {"ledger": {"comet": {"peers": [f"{'a' * 40}@east:26656"]}}},
        "/ledger/comet/peers",
    ),
    "peer without id": (
        {"ledger": {"engine": "cometbft", "comet": {"peers": ["east:26656"]}}},
        "/ledger/comet/peers/0",
    ),
    "halt of an engine that has no halt": ({"ledger": {"engine": "cometbft", "haltHeight": 9}}, "/ledger/haltHeight"),
    "no etcd at all": ({"etcd": {"enabled": False}}, "/etcd/endpoints"),
    "two etcds": ({"etcd": {"endpoints": ["etcd:2379"]}}, "/etcd/endpoints"),
    "no blobs at all": ({"blobs": {"seaweedfs": {"enabled": False}}}, "/blobs/seaweedfs/enabled"),
    "S3 without keys": ({"blobs": {"url": "s3://bucket?endpoint=https://s3.example"}}, "/blobs/secretName"),
    "S3 without endpoint": ({"blobs": {"url": "s3://bucket", "secretName": "s3"}}, "/blobs/url"),
    "issuer": ({"certificates": {"issuer": "vault"}}, "/certificates/issuer"),
    "no gateway": ({"gateway": {"replicas": 0}}, "/gateway/replicas"),
    "less than no replicas between": (
        {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 4, "maxReplicas": 2}}},
        "gateway.autoscaling.maxReplicas",
    ),
    "duty": ({"agents": {"duty": 1.5}}, "/agents/duty"),
    "fewer than no slots": ({"agents": {"slots": -1}}, "/agents/slots"),
    "CIDR": ({"networkPolicies": {"memberCidrs": ["everywhere"]}}, "/networkPolicies/memberCidrs/0"),
    "secrets go though nobody cleans up": ({"cleanup": {"enabled": False, "deleteSecrets": True}}, "/cleanup/enabled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_and_the_field_is_named(name: str) -> None:
    values, field = REFUSED[name]
    with pytest.raises(Failed, match=field):
        template(values)


@pytest.mark.parametrize(
    ("amount", "utlk"),
    [("20 TLK", "20000000"), ("20.5 TLK", "20500000"), ("0.05 TLK", "50000"), ("007.000001 TLK", "7000001")],
)
def test_amounts_become_the_ledgers_integers(amount: str, utlk: str) -> None:
    assert f"stake_utlk = {utlk}\n" in template({"agents": {"stake": amount}})


def test_a_digest_wins_over_a_tag() -> None:
    values = {"images": {"control": {"tag": "9.9", "digest": DIGEST}}}
    (gateway,) = (
        each for each in render(values) if each["kind"] == "Deployment" and "gateway" in str(each["metadata"])
    )
    assert gateway["spec"]["template"]["spec"]["containers"][0]["image"].endswith(f"talkoo-control@{DIGEST}")
