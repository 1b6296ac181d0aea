"""The jobs of a sweep, composed once: Hydra composes all to check them, and each to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl  # not public: what sweepers call
from omegaconf import DictConfig

from heliotrope.commands.trials import basic_sweeper

__all__ = ["composed_once"]

_MOST = 100  # that are kept, of somewhat less than 1 MB each; others are composed again


@contextmanager
def composed_once(expect: Callable[[DictConfig, int], None]) -> Iterator[None]:
    """Let a sweep inside the block keep what it composes as it checks its jobs, until they run.

    `expect` is told the first job as soon as it is composed, and how many there are in all: what is
    wrong with the others is not known then.
    """
    kept: dict[tuple[str, ...], DictConfig] = {}
    told = False
    basic, compose = basic_sweeper(), ConfigLoaderImpl.load_sweep_config

    def check(sweeper: Any, batch: Sequence[Sequence[str]]) -> None:
        nonlocal told
        loader = sweeper.hydra_context.config_loader
        kept.clear()
        for overrides in batch:
            composed = compose(loader, sweeper.config, list(overrides))
            if len(kept) < _MOST:
                kept[tuple(overrides)] = composed
            if not told:
                told = True
                expect(composed, sum(map(len, sweeper.overrides)))

    def load(
        self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        found = kept.pop(tuple(sweep_overrides), None)
        return compose(self, master_config, sweep_overrides) if found is None else found

    before = basic.validate_batch_is_legal
    basic.validate_batch_is_legal = check
    setattr(ConfigLoaderImpl, "load_sweep_config", load)  # noqa: B010 - mypy minds the other way
    try:
        yield
    finally:
        basic.validate_batch_is_legal = before
        setattr(ConfigLoaderImpl, "load_sweep_config", compose)  # noqa: B010
