"""The app of SuperNodes, as a file of `app_folder` names it to Flower.

Flower starts a process for each message to a client, which imports this: it must not bring along
what only the server needs.
"""

from __future__ import annotations

from flwr.clientapp import ClientApp

from ..flower.app import client_app
from .app_config import PREPARATION, AppConfig

__all__ = ["client"]


def client(module: str) -> ClientApp:
    """Return the app of every SuperNode, of the app folder in which the file `module` is."""
    config = AppConfig.beside(module)
    return client_app(config.run, config.values[PREPARATION])
