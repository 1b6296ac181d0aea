"""The app folder that `flwr run` sends to a SuperLink, and it to the SuperNodes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import tomli_w

from heliotrope import __version__
from heliotrope.config import Run, TrackingConfig
from heliotrope.data.preparation import Preparation

from .app_config import DATA, DIRECTORY, PREPARATION, RESUME, RUN, WAIT
from .layout import Layout

__all__ = ["write_app_folder"]

_SIDES = ("server", "client")
_CODE = '''"""The {side} app of this deployment: its code is that of Heliotrope on each machine."""

from heliotrope.modes import mode_module

app = mode_module("federated", "deploy.{side}_app").{side}(__file__)
'''


def write_app_folder(
    layout: Layout, run: Run, preparation: Preparation, wait_seconds: float
) -> None:
    """Write pyproject.toml and the two modules that it names.

    Parameters
    ----------
    layout
        Says where it is, and where the server's files are on the server's machine.
    run
        Goes to all nodes as JSON, without `tracking`, whose addresses may hold passwords.
    preparation
        How each node prepares its rows.
    wait_seconds
        That the server waits for nodes before the first round.
    """
    folder = layout.app
    sent = replace(run, tracking=TrackingConfig(), resume=False)
    pyproject = {
        "project": {
            "name": folder.name,
            "version": "1.0.0",
            "description": f"Heliotrope: {run.name}",
            "license": "Apache-2.0",
            "dependencies": [f"heliotrope=={__version__}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "heliotrope",
                    "components": {f"{side}app": f"{_module(side)}:app" for side in _SIDES},
                    "config": {
                        RUN: json.dumps(asdict(sent)),
                        PREPARATION: json.dumps(preparation.to_json()),
                        DIRECTORY: str(layout.run),
                        DATA: str(layout.server),
                        RESUME: run.resume,
                        WAIT: float(wait_seconds),
                    },
                }
            }
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(tomli_w.dumps(pyproject))
    for side in _SIDES:
        (folder / f"{_module(side)}.py").write_text(_CODE.format(side=side))


def _module(side: str) -> str:
    return f"heliotrope_{side}_app"
