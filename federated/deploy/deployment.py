"""All that a federation on real machines needs, written from a checked configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from heliotrope.config import Run
from heliotrope.data import load
from heliotrope.errors import ConfigError, RunDirectoryError

from ..components import Components, build_components
from ..engine.context import divide
from ..flower.app import client_app
from ..flower.node_data import NodeData, write_node_data
from .app_folder import write_app_folder
from .certificates import (
    check_node_key,
    check_server_certificate,
    write_certificates,
    write_node_key,
)
from .conditions import check_deployable
from .layout import Layout
from .node_pool import node_name
from .server_data import can_be_apart, write_server_data
from .service_files import write_service_files

__all__ = ["Deployment", "prepare"]

_WAIT = 120.0  # seconds that the server waits for nodes to connect


@dataclass(frozen=True)
class Deployment:
    """A deployment that is written and checked.

    Parameters
    ----------
    run
        Its configuration.
    layout
        Where its files are.
    clients
        How many clients there are, each with a node.
    host
        Under which SuperNodes reach the SuperLink.
    """

    run: Run
    layout: Layout
    clients: int
    host: str


def prepare(run: Run, root: Path, hosts: Sequence[str], nodes: int | None = None) -> Deployment:
    """Write the files of a deployment below `root`; what `run.resume` finds there is kept.

    Parameters
    ----------
    run
        Checked for what only a simulation can do.
    root
        The folder.
    hosts
        By which SuperNodes reach the SuperLink; the certificate is for all, nodes use the first.
    nodes
        As many clients as there must be; None for any number.

    Raises
    ------
    ConfigError
        If the run cannot be deployed, a certificate has expired or is for another host, a key is
        not the node's, or `root` holds the rows of other settings.
    """
    layout = Layout(root.absolute())
    if layout.app.exists() and not run.resume:
        raise RunDirectoryError(
            f"output={root} holds a deployment. Set resume=true to go on with it, or choose "
            "another folder."
        )
    components = build_components(run)
    check_deployable(run, bool(components.context.personal))
    client_app(run)  # refuses what a deployed client cannot do
    clients = len(components.context.population)
    if nodes is not None and clients != nodes:
        raise ConfigError(
            f"nodes={nodes}, but the data is divided among {clients} clients, of which each needs "
            f"a node. Set nodes={clients}, or another federated/partition."
        )
    _write_data(run, layout, components)
    if not layout.certificates.exists():
        write_certificates(layout.certificates, hosts)
    check_server_certificate(layout.certificates, hosts[0])
    for client in range(clients):
        key = layout.key(client)
        if not key.with_suffix(".pub").exists():
            write_node_key(key.parent, node_name(client))
        if key.exists():  # and not on the client's machine alone, where it belongs
            check_node_key(key)
    write_app_folder(layout, run, components.preparation, _WAIT)
    write_service_files(layout, hosts[0], clients)
    return Deployment(run, layout, clients, hosts[0])


def _write_data(run: Run, layout: Layout, components: Components) -> None:
    """Write the data folders of the server and of each client; rows that are there must be these.

    Raises `DataError` if they are others.
    """
    dataset = load(run.data, run.seed, task=run.task_name)
    partition = divide(run, dataset)
    training = len(components.context.population.training())
    assert dataset.fitting is not None
    for client in range(len(partition)):
        who = NodeData(client, int(partition.identities[client]), training)
        rows = dataset.fitting.train.subset(partition[client])
        write_node_data(layout.node(client), who, rows)
    if can_be_apart(dataset) and not components.context.releases:
        write_server_data(layout.server, components, dataset)
