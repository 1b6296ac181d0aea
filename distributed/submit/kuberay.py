"""`cluster=kuberay`: a RayJob of KubeRay's operator, sent by `kubectl`.

The operator starts a Ray cluster of pods for the job, and removes it when the job has ended. The
fields are those of KubeRay's CustomResourceDefinition of RayJob, ray.io/v1.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml  # type: ignore[import-untyped]

from heliotrope.errors import ConfigError, ResourceError

from .base import Cluster, Command, Job, Plan
from .kuberay_job import KubeRayJob

__all__ = ["kuberay"]

_ANSWER = "--request-timeout=10s"
_REMEDY = "See that kubectl reaches the cluster: kubectl config current-context, kubectl get pods."


def kuberay(
    *,
    image: str | None = None,
    namespace: str = "default",
    nodes: int = 1,
    cpus: int = 2,
    gpus: int = 0,
    memory: str = "8Gi",
    volumes: Sequence[str] = (),
    secrets: Sequence[str] = (),
    retries: int = 3,
    ttl_seconds: int = 3600,
) -> Cluster[Plan]:
    """Run as a RayJob on Kubernetes; runs are kept on a volume that all of its pods mount.

    Parameters
    ----------
    image
        Holds Python with Heliotrope, and plug-ins that the command names.
    namespace
        Of the job, and of the claims and secrets.
    nodes
        Pods of the Ray cluster, its head being one of them.
    cpus
        CPUs of each pod.
    gpus
        GPUs of each pod.
    memory
        Memory of each pod.
    volumes
        Persistent volume claims and where to mount them, such as [runs:/runs, data:/data].
    secrets
        Secrets whose entries become environment variables.
    retries
        How often a job that fails, or loses its pods, begins again and continues the run.
    ttl_seconds
        How long an ended job, with its logs, is kept.
    """
    if image is None:
        raise ConfigError(
            "cluster.image is not set: cluster=kuberay needs an image that holds Python with "
            "Heliotrope. Set cluster.image=REGISTRY/NAME:TAG."
        )
    for key, value, least in (
        ("nodes", nodes, 1),
        ("cpus", cpus, 1),
        ("gpus", gpus, 0),
        ("retries", retries, 0),
        ("ttl_seconds", ttl_seconds, 0),
    ):
        if value < least:
            raise ConfigError(f"cluster.{key}={value} must be at least {least}.")
    mounts = [_mount(volume) for volume in volumes]
    resources: dict[str, Any] = {"cpu": cpus, "memory": memory}
    if gpus:
        resources["nvidia.com/gpu"] = gpus
    container: dict[str, Any] = {
        "name": "ray",
        "image": image,
        "resources": {"limits": resources, "requests": dict(resources)},
    }
    if secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in secrets]
    pod: dict[str, Any] = {"containers": [container]}
    if mounts:
        container["volumeMounts"] = [
            {"name": claim, "mountPath": str(path)} for claim, path in mounts
        ]
        claims = dict.fromkeys(claim for claim, _ in mounts)
        pod["volumes"] = [
            {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims
        ]
    spec = {
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": ttl_seconds,
        "backoffLimit": retries,
        "rayClusterSpec": _cluster(pod, nodes),
    }
    return _KubeRay(spec, namespace, tuple(path for _, path in mounts))


def _mount(volume: str) -> tuple[str, PurePosixPath]:
    """Return the claim and the path of CLAIM:/PATH."""
    claim, _, path = volume.partition(":")
    if not claim or not path.startswith("/"):
        raise ConfigError(
            f"cluster.volumes: {volume!r} must be CLAIM:/PATH, a persistent volume claim of the "
            "namespace and where the pods mount it, such as 'cluster.volumes=[\"runs:/runs\"]'."
        )
    return claim, PurePosixPath(path)


def _cluster(pod: dict[str, Any], nodes: int) -> dict[str, Any]:
    """Return a RayCluster of so many equal pods, which asks for its token."""
    group = {"rayStartParams": {}, "template": {"spec": pod}}
    spec: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "headGroupSpec": group,
    }
    if nodes > 1:
        counts = dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), nodes - 1)
        spec["workerGroupSpecs"] = [{"groupName": "workers", **counts, **group}]
    return spec


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """YAML without references between equal parts."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's name
        return True


@dataclass(frozen=True)
class _KubeRay(Cluster[Plan]):
    """What all jobs of a configuration have, and where their pods keep files."""

    spec: dict[str, Any]
    namespace: str
    mounted: tuple[PurePosixPath, ...]

    def prepare(self, command: Command) -> Plan:
        self._check_directory(command.directory)
        manifest = {
            "apiVersion": "ray.io/v1",
            "kind": "RayJob",
            "metadata": {
                "generateName": f"heliotrope-{command.words[0]}-",
                "namespace": self.namespace,
            },
            "spec": {
                "entrypoint": shlex.join(["python", "-m", "heliotrope", *command.words]),
                **self.spec,
            },
        }
        return Plan(yaml.dump(manifest, Dumper=_Plain, sort_keys=False, width=100))

    def _check_directory(self, directory: Path | None) -> None:
        if directory is None or any(directory.is_relative_to(path) for path in self.mounted):
            return
        volumes = ", ".join(map(str, self.mounted)) or "none"
        raise ConfigError(
            f"The run's directory {directory} would be lost with its pod: it is on none of the "
            f"volumes that the pods mount ({volumes}). Set cluster.volumes=[CLAIM:/PATH], and "
            "hydra.run.dir, or hydra.sweep.dir, to a directory below that path; or keep it in a "
            "storage: submit storage=s3://BUCKET/runs."
        )

    def send(self, plan: Plan) -> Job:
        if shutil.which("kubectl") is None:
            raise ConfigError(
                "cluster=kuberay needs the command kubectl, which is not on PATH. Install it, or "
                "see with dry_run=true what would be sent."
            )
        answer = subprocess.run(
            ["kubectl", "create", _ANSWER, "--output=name", "--filename=-"],
            input=plan.text,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode:
            said = " ".join((answer.stderr or answer.stdout).split())
            lacking = "no matches for kind" in said
            remedy = "Install KubeRay's operator on the cluster." if lacking else _REMEDY
            raise ResourceError(f"kubectl could not create the job: {said}. {remedy}")
        return KubeRayJob(answer.stdout.strip().rpartition("/")[2], self.namespace)
