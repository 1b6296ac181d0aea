"""The config of a deployment's apps: `[tool.flwr.app.config]` of `app_folder`'s pyproject.toml."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heliotrope.config import Run, from_yaml
from heliotrope.data.preparation import Preparation, from_json

__all__ = ["DATA", "DIRECTORY", "PREPARATION", "RESUME", "RUN", "WAIT", "AppConfig"]

RUN, PREPARATION = "run", "preparation"
DIRECTORY, DATA, RESUME, WAIT = "directory", "data", "resume", "wait-seconds"
"""Keys of the config: the last four are the server's."""


@dataclass(frozen=True)
class AppConfig:
    """The values of the config, by key."""

    values: dict[str, Any]

    @classmethod
    def beside(cls, module: str) -> AppConfig:
        """Return that of the app whose module is the file `module`."""
        with Path(module).with_name("pyproject.toml").open("rb") as file:
            return cls(tomllib.load(file)["tool"]["flwr"]["app"]["config"])

    @property
    def preparation(self) -> Preparation:
        """How rows are prepared, as fitted by all clients together."""
        return from_json(json.loads(self.values[PREPARATION]))

    @property
    def run(self) -> Run:
        """The run, resolved; its plug-ins are loaded."""
        return from_yaml(self.values[RUN], f"{RUN} of the app's config")
