"""The app of the SuperLink, as a file of `app_folder` names it to Flower."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from heliotrope.config import Run
from heliotrope.errors import HeliotropeError
from heliotrope.runs.directory import RunDirectory
from heliotrope.runs.display import Display
from heliotrope.runs.events import Tracker
from heliotrope.system.resources import available_cpus, threads_of

from ..components import Components, build_components
from ..pools.base import Pool
from ..simulation import train_clients
from .app_config import DATA, DIRECTORY, RESUME, WAIT, AppConfig
from .conditions import check_deployable
from .node_pool import NodePool
from .server_data import server_components

__all__ = ["FAILURE", "server"]

FAILURE = "deploy-failure.txt"
"""In the run's directory, why the server app has ended without a result, and its exit code."""

_NAME = "deploy-run"  # in the run's directory, the name by which nodes know their state


def server(module: str) -> ServerApp:
    """Return the app of the SuperLink, of the app folder in which the file `module` is."""
    app, config = ServerApp(), AppConfig.beside(module)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        directory = Path(str(context.run_config[DIRECTORY]))
        failure = directory / FAILURE
        failure.unlink(missing_ok=True)
        try:
            run = config.run
            run.resume = bool(context.run_config[RESUME])
            data = Path(str(context.run_config[DATA]))
            # Some data's server needs the clients' rows too: see `can_be_apart`.
            components = (
                server_components(run, data, config.preparation)
                if data.exists()
                else build_components(run)
            )
            _serve(run, directory, components, grid, float(context.run_config[WAIT]))
        except HeliotropeError as error:
            directory.mkdir(parents=True, exist_ok=True)
            failure.write_text(f"{error.exit_code} {error}\n")
            raise

    return app


def _serve(run: Run, directory: Path, components: Components, grid: Grid, seconds: float) -> None:
    RunDirectory(directory).refuse_if_taken(run, "federated")
    check_deployable(run, bool(components.context.personal))
    torch.set_num_threads(threads_of(available_cpus()))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each look for replies

    @contextmanager
    def pool(run_dir: RunDirectory, _: Tracker, display: Display) -> Iterator[Pool]:
        nodes = NodePool(components.context, grid, _run_name(run_dir.path, run.resume))
        nodes.await_nodes(seconds, display.say)
        yield nodes

    train_clients(run, directory, components, pool, ("flwr",))


def _run_name(directory: Path, resume: bool) -> str:
    """Return the name of a run, which stays the same when it is resumed."""
    path = directory / _NAME
    if not (resume and path.exists()):
        path.write_text(secrets.token_hex(8))
    return path.read_text()
