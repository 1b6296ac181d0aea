"""Plug-ins: finding, trusting and executing the code that `plugins=[...]` names."""

from heliotrope.plugin_loading.execution import (
    executing,
    exit_said,
    install,
    loaded,
    raised,
    refusing_exits,
)
from heliotrope.plugin_loading.loading import (
    load,
    load_installed,
    named,
    named_in,
    recall,
)

__all__ = [
    "executing",
    "exit_said",
    "install",
    "load",
    "load_installed",
    "loaded",
    "named",
    "named_in",
    "raised",
    "recall",
    "refusing_exits",
]
