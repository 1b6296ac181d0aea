"""The configuration of a benchmark's model, for the runs of ours."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from heliotrope import config, plugin_loading
from heliotrope.config import ModelConfig
from heliotrope.registry import Source

__all__ = ["model_config"]

_REGISTERED = b"""
from heliotrope import plugin

_of_size = sequence


@plugin.model
def sequence(task, *, layer: str = "lstm", units: int = 32, size: int = 28):
    return _of_size(layer=layer, units=units, size=size, classes=task.num_outputs)
"""


def model_config(name: str, **keys: Any) -> ModelConfig:
    """Return the config of `model=NAME` with these keys; `sequence` is a plug-in."""
    if name == "sequence":
        path = Path(__file__).resolve().with_name("sequences.py")
        content = path.read_bytes() + _REGISTERED
        sha256 = hashlib.sha256(content).hexdigest()
        plugin_loading.install(Source(str(path), sha256, {path.name: content}))
        config.register()
    cfg: ModelConfig = config.chosen("model", name, **keys)
    return cfg
