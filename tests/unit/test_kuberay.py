"""The manifest that `cluster=kuberay` would send, against KubeRay's published definition.

tests/ray.io_rayjobs.yaml.gz is KubeRay's CustomResourceDefinition of RayJob at commit feeaf72,
licensed under the Apache License 2.0.
"""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator

from heliotrope.cli import main
from heliotrope.errors import ConfigError
from tests.support import ROOT

IMAGE = "cluster.image=registry.example/heliotrope:1"
EVERYTHING = (
    *(IMAGE, "cluster.namespace=training", "cluster.nodes=3", "cluster.cpus=4", "cluster.gpus=1"),
    *("cluster.memory=64Gi", "cluster.retries=5", "cluster.ttl_seconds=60"),
    *('cluster.volumes=["runs:/runs","data:/data","runs:/old"]', "cluster.secrets=[mlflow]"),
)


def _strict(schema: Any) -> Any:
    """Return a structural schema that refuses what the API server would silently drop."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    if "properties" in schema and "type" in schema and schema["type"] == "object":
        found.setdefault("additionalProperties", False)
    return found


def _validator() -> Draft4Validator:
    text = gzip.decompress((ROOT / "tests/ray.io_rayjobs.yaml.gz").read_bytes())
    definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    (version,) = (v for v in definition["spec"]["versions"] if v["name"] == "v1")
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # of every kind, checked elsewhere
    return Draft4Validator(schema)


def _manifest(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["submit", "cluster=kuberay", "dry_run=true", *words]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_a_manifest_fits_the_published_definition(capsys: pytest.CaptureFixture[str]) -> None:
    run = ("--", "federated", "seed=7", "hydra.run.dir=/runs/mine")
    validator = _validator()
    for words in ((*EVERYTHING, *run), (IMAGE, "--", "list")):
        manifest = _manifest(capsys, *words)
        assert not [error.message for error in validator.iter_errors(manifest)]
        json.dumps(manifest)
        manifest["spec"]["entrypiont"] = "a word that the definition has not"
        assert list(validator.iter_errors(manifest))


def test_its_keys_stand_in_every_pod(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--", "distributed", "seed=4", 'hydra.run.dir="/runs/it\'s mine"')
    manifest = _manifest(capsys, *EVERYTHING, *words)
    assert manifest["metadata"]["namespace"] == "training"
    spec = manifest["spec"]
    assert shlex.split(spec["entrypoint"])[:5] == ["python", "-m", "heliotrope", *words[1:3]]
    assert shlex.split(spec["entrypoint"])[-1] == "resume=true"
    assert (spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) == (5, 60)
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    (workers,) = cluster["workerGroupSpecs"]
    assert {workers[key] for key in ("replicas", "minReplicas", "maxReplicas")} == {2}
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        asked = {"cpu": 4, "memory": "64Gi", "nvidia.com/gpu": 1}
        assert container["resources"] == {"limits": asked, "requests": asked}
        assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert mounts == {"/runs": "runs", "/data": "data", "/old": "runs"}
        assert sorted(each["name"] for each in pod["volumes"]) == ["data", "runs"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--", "list"], "cluster.image is not set"),
        ([IMAGE, "cluster.nodes=0", "--", "list"], "cluster.nodes=0"),
        ([IMAGE, "cluster.retries=-1", "--", "list"], "cluster.retries=-1"),
        ([IMAGE, "cluster.volumes=[runs]", "--", "list"], "'runs' must be CLAIM:/PATH"),
        ([IMAGE, "--", "federated"], "is on none of the volumes that the pods mount (none)"),
        (
            [IMAGE, 'cluster.volumes=["runs:/runs"]', "--", "federated", "hydra.run.dir=/running"],
            "The run's directory /running would be lost",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "cluster=kuberay", "dry_run=true", *words]) == ConfigError.exit_code
    assert said in capsys.readouterr().err
