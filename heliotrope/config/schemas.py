"""The schemas and choices of a configuration, in Hydra's ConfigStore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigNode, ConfigStore
from omegaconf import DictConfig, OmegaConf

from heliotrope.config.cluster import ClusterConfig
from heliotrope.config.distributed import DistributedConfig
from heliotrope.config.federated import FederatedConfig
from heliotrope.config.groups import GROUPS, choice_names, chosen
from heliotrope.config.run import Run

__all__ = ["conf_dir", "defaults", "register"]


def conf_dir() -> Path:
    """Return the folder of YAML values: `heliotrope/conf` in a wheel, `conf` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def register() -> None:
    """Put every schema into Hydra's ConfigStore.

    The types and defaults of a choice are `x_schema`, which a YAML file `x` extends; without such
    a file they are the choice `x` as well.
    """
    store = ConfigStore.instance()
    store.store(name="run_schema", node=Run)
    store.store(group="cluster", name="cluster_schema", node=ClusterConfig)
    store.store(group="distributed", name="distributed_schema", node=DistributedConfig)
    store.store(group="federated", name="federated_schema", node=FederatedConfig)
    for group in GROUPS:
        written = {path.stem for path in (conf_dir() / group).glob("*.yaml")}
        names = choice_names(group)
        files = [f"{name}_schema.yaml" for name in names]
        files += [f"{name}.yaml" for name in names if name not in written]
        *folders, last = group.split("/")
        folder = store.repo
        for part in folders:
            folder = folder.setdefault(part, {})
        folder[last] = _Choices(group, files)


def defaults(group: str, name: str) -> DictConfig:
    """Return a choice as it is without overrides: of its YAML file, if it has one."""
    values: Any = OmegaConf.structured(chosen(group, name))
    path = conf_dir() / group / f"{name}.yaml"
    if path.exists():
        written = cast(DictConfig, OmegaConf.load(path))
        written.pop("defaults")
        values = OmegaConf.merge(values, written)
    return cast(DictConfig, values)


class _Choices(dict[str, Any]):
    """The choices of a group, each converted when Hydra asks for it.

    There are many, and each takes a millisecond; a command uses a few.
    """

    def __init__(self, group: str, files: Iterable[str]) -> None:
        super().__init__(dict.fromkeys(files))
        self._group = group

    def __getitem__(self, file: str) -> ConfigNode:
        node: ConfigNode | None = super().__getitem__(file)
        if node is None:
            name = file.removesuffix(".yaml").removesuffix("_schema")
            values = OmegaConf.structured(chosen(self._group, name))
            node = ConfigNode(file, values, self._group, package=None, provider=None)
            self[file] = node
        return node
