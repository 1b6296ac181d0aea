"""The two apps of a deployment, as the files of `app_folder` name them to Flower."""

from __future__ import annotations

import secrets
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from heliotrope.config import Run, from_yaml
from heliotrope.errors import ConfigError, HeliotropeError
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Tracker
from heliotrope.system.resources import available_cpus, threads_of

from ..components import build_components
from ..flower.app import client_app
from ..pools.base import Pool
from ..simulation import train_clients
from .node_pool import NodePool

__all__ = ["DIRECTORY", "FAILURE", "RESUME", "WAIT", "client", "server"]

RUN, PREPARATION = "run", "preparation"
DIRECTORY, RESUME, WAIT = "directory", "resume", "wait-seconds"
"""Keys of the app's config, see `app_folder`: the last three are the server's."""

FAILURE = "deploy-failure.txt"
"""In the run's directory, why the server app has ended without a result, and its exit code."""

_NAME = "deploy-run"  # in the run's directory, the name by which nodes know their state


@dataclass(frozen=True)
class _Config:
    """The config of an app: its `[tool.flwr.app.config]`."""

    values: dict[str, Any]

    @classmethod
    def beside(cls, module: str) -> _Config:
        """Return that of the app whose module is the file `module`."""
        with Path(module).with_name("pyproject.toml").open("rb") as file:
            return cls(tomllib.load(file)["tool"]["flwr"]["app"]["config"])

    @property
    def run(self) -> Run:
        """The run, resolved; its plug-ins are loaded."""
        return from_yaml(self.values[RUN], f"{RUN} of the app's config")


def client(module: str) -> ClientApp:
    """Return the app of every SuperNode, of the app folder in which the file `module` is."""
    config = _Config.beside(module)
    return client_app(config.run, config.values[PREPARATION])


def server(module: str) -> ServerApp:
    """Return the app of the SuperLink, of the app folder in which the file `module` is."""
    app, config = ServerApp(), _Config.beside(module)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        directory = Path(str(context.run_config[DIRECTORY]))
        failure = directory / FAILURE
        failure.unlink(missing_ok=True)
        try:
            run = config.run
            run.resume = bool(context.run_config[RESUME])
            _serve(run, directory, grid, float(context.run_config[WAIT]))
        except HeliotropeError as error:
            directory.mkdir(parents=True, exist_ok=True)
            failure.write_text(f"{error.exit_code} {error}\n")
            raise

    return app


def _serve(run: Run, directory: Path, grid: Grid, seconds: float) -> None:
    RunDirectory(directory).refuse_if_taken(run, "federated")
    components = build_components(run)
    check_deployable(run, bool(components.context.personal))
    torch.set_num_threads(threads_of(available_cpus()))

    @contextmanager
    def pool(run_dir: RunDirectory, _: Tracker, display: Display) -> Iterator[Pool]:
        nodes = NodePool(components.context, grid, _run_name(run_dir.path, run.resume))
        nodes.await_nodes(seconds, display.say)
        yield nodes

    train_clients(run, directory, components, pool, ("flwr",))


def check_deployable(run: Run, personal: bool) -> None:
    """Raise `ConfigError` for what is simulated only; `personal`: a part of the weights is state.

    What `client_app` refuses is refused there.
    """
    cfg = run.federated
    refused = {
        "attack": "simulated attackers alter data that a node has for itself",
        "secure_aggregation": "the server of a deployment does not play its rounds yet",
    }
    for group, why in refused.items():
        if (name := getattr(cfg, group).name) != "none":
            raise ConfigError(
                f"federated/{group}={name} cannot be deployed: {why}. Simulate it with python -m "
                f"federated, or set federated/{group}=none."
            )
    if run.audit.canaries:
        raise ConfigError(
            "audit.canaries are planted among the clients of a simulation, and no node has them. "
            "Set audit.canaries=0."
        )
    if personal:
        raise ConfigError(
            f"model={run.model.name} keeps weights for each client, which a deployment cannot "
            "evaluate on the central splits yet. Simulate it with python -m federated, or choose "
            "another model."
        )


def _run_name(directory: Path, resume: bool) -> str:
    """Return the name of a run, which stays the same when it is resumed."""
    path = directory / _NAME
    if not (resume and path.exists()):
        path.write_text(secrets.token_hex(8))
    return path.read_text()
