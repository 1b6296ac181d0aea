"""Model families, one file each, behind one `build`."""

from __future__ import annotations

from torch import nn

from heliotrope import plugin_loading, registry
from heliotrope.config import ModelConfig
from heliotrope.errors import ConfigError
from heliotrope.models.layers.dropout import seed_dropout
from heliotrope.models.personal import personal_names
from heliotrope.models.usable import why_unusable
from heliotrope.registry import Entry
from heliotrope.seeding import isolated_rng, seed
from heliotrope.tasks import Task

__all__ = ["build", "parameter_count"]


def build(cfg: ModelConfig, task: Task, run_seed: int) -> nn.Module:
    """Return the model of `cfg` for `task`, initialised from the run's seed, on the CPU.

    A plug-in's weights begin as it makes them; its `nn.Dropout` layers are drawn from seeds.
    Raises `ConfigError` if the model does not fit the task, or if a plug-in fails or gives a module
    that cannot be trained.
    """
    entry = registry.entry("model", cfg.name)
    with isolated_rng(seed(run_seed, "init")):
        if not entry.built_in:
            return _built_by_plugin(entry, cfg, task)
        model: nn.Module = entry.build(vars(cfg), task=task)
        return model


def _built_by_plugin(entry: Entry, cfg: ModelConfig, task: Task) -> nn.Module:
    what = f"model={cfg.name} ({entry.where})"
    try:
        model = entry.build(vars(cfg), task=task)
    except Exception as error:
        raise ConfigError(f"{what} cannot be built: {plugin_loading.raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{what} gave a {type(model).__name__}. Return a torch.nn.Module.")
    if (why := why_unusable(model, task)) is not None:
        raise ConfigError(f"{what} cannot be trained: {why}")
    try:
        personal_names(model)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    seed_dropout(model)
    return model


def parameter_count(model: nn.Module) -> int:
    """Return the number of trainable scalars."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
