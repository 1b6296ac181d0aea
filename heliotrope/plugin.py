"""The door for a user's own code: `plugins=[mine.py]` registers what it decorates.

::

    from heliotrope import plugin

    @plugin.model
    def tiny(task, *, width: int = 32):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, task.num_outputs))

    python -m federated experiment=quickstart plugins=[mine.py] model=tiny model.width=64

Where plug-ins come from, and which are executed, is in `heliotrope.plugin_loading`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from heliotrope import registry
from heliotrope.errors import ConfigError, closest
from heliotrope.plugin_loading import executing
from heliotrope.registry import Group

__all__ = ["data", "metric", "model", "optimizer", "partition", "schedule", "strategy", "task"]

_Built = TypeVar("_Built", bound=Callable[..., Any])
_Register = TypeVar("_Register", bound=Callable[..., Any])


def _bare(register: _Register) -> _Register:
    """Refuse a decorator that is called, or that stands above what has no name."""

    @functools.wraps(register)
    def decorate(*given: Any, **named: Any) -> Any:
        if len(given) == 1 and not named and callable(given[0]) and hasattr(given[0], "__name__"):
            return register(given[0])
        name = register.__name__
        raise ConfigError(
            f"{_line_of_plugin()}: @plugin.{name} is given nothing but what it decorates, whose "
            f"name is the choice. Write @plugin.{name}, without brackets, above a def or a class."
        )

    return cast(_Register, decorate)


@_bare
def model(build: _Built) -> _Built:
    """Register a function, or a class of `torch.nn.Module`, as a model family under its name.

    Its keyword parameters, typed, are the keys `model.KEYWORD` of the configuration. A first
    parameter called `task` gets the task (`task.input_shape`, `task.num_outputs`). The weights
    begin as it makes them, drawn from the run's seed.

    Raises `ConfigError` naming file, line and remedy if a parameter has no type, or the name is
    taken.
    """
    return _registered("model", build)


@_bare
def data(build: _Built) -> _Built:
    """Register a function, or a class of `torch.utils.data.Dataset`, as a dataset under its name.

    Its keyword parameters, typed, are the keys `data.KEYWORD`. It returns a map-style dataset of
    (input, target), or a tuple of two: for training and for testing; or what our own sources
    return, `heliotrope.data.sources.unprepared.Unprepared`. See `heliotrope.data.sources.own`.

    Raises `ConfigError` as `model` does.
    """
    return _registered("data", build)


@_bare
def task(build: _Built) -> _Built:
    """Register a class of `heliotrope.tasks.Task`, or a function that gives one.

    It is given `facts` (`heliotrope.tasks.DataFacts`): what it predicts, and what the model is
    called with, are fields of `facts.example`. `task=NAME` chooses it, its typed keyword parameters
    are `task.KEYWORD`. A parameter `label_smoothing` gets `loss.label_smoothing`.

    Raises `ConfigError` as `model` does.
    """
    return _registered("task", build)


@_bare
def metric(build: _Built) -> _Built:
    """Register a class with the methods of `heliotrope.metrics.Metric`, or what gives one.

    `metrics=[NAME]` measures it beside those of the task. A parameter `task` gets the task; others
    keep their defaults.

    Raises `ConfigError` as `model` does.
    """
    return _registered("metric", build)


@_bare
def partition(build: _Built) -> _Built:
    """Register a function that divides the training examples, as `federated/partition=NAME`.

    It returns the client of each example, int64 [N], counted from 0. It is given, if it names them,
    `traits` (`heliotrope.data.Traits`: `examples`, their number N; `labels`, `targets`, `keys`, [N]
    each or None) and `generator`, NumPy's, seeded from the run.

    Raises `ConfigError` as `model` does.
    """
    return _registered("partition", build)


@_bare
def strategy(build: _Built) -> _Built:
    """Register a class of `flwr.serverapp.strategy.Strategy`, or what gives one.

    `federated/strategy=NAME` chooses it. It is asked each round to train every client of a cohort
    that is drawn already, and is sent each one's weights; with an attribute
    `mean_is_enough = True`, replies may be means of several clients' weights, whose `num-examples`
    are theirs together. What it keeps
    between rounds is saved, see `federated.strategies.state`. If it names `facts`, it is given
    `federated.strategies.ModelFacts`; the keys of a class are those of an `__init__` of its own.

    Raises `ConfigError` as `model` does.
    """
    target: Callable[..., Any] = build
    if isinstance(build, type) and "__init__" not in vars(build):
        # Flower's own parameters are no keys: who is asked is decided outside of a strategy.
        def target() -> Any:
            return build()

        target.__doc__ = build.__doc__
    registry.register("strategy", build.__name__, target, _where(build), executing())
    return build


@_bare
def optimizer(build: _Built) -> _Built:
    """Register a class of `torch.optim.Optimizer`, or a function that gives one.

    It is given `params`, and needs a key `lr: float`, which schedules change. Clients use it one by
    one.

    Raises `ConfigError` as `model` does, and if it has no `lr`.
    """
    return _registered("optimizer", build)


@_bare
def schedule(build: _Built) -> _Built:
    """Register a function of `done`, in [0, 1), or `step`: what the learning rate is multiplied by.

    `distributed.lr_schedule=NAME` and `federated.lr_schedule=NAME` choose it. `step` counts
    optimizer steps or rounds after the warm-up. It has no keys.

    Raises `ConfigError` as `model` does.
    """
    return _registered("schedule", build)


def _registered(group: Group, build: _Built) -> _Built:
    registry.register(group, build.__name__, build, _where(build), executing())
    return build


def _where(build: Callable[..., Any]) -> str:
    if isinstance(build, type) and "__init__" not in vars(build):  # that of a base is elsewhere
        return _line_of_plugin()
    code = getattr(build, "__code__", None) or getattr(build.__init__, "__code__", None)
    return f"{code.co_filename}, line {code.co_firstlineno}" if code else "a plug-in"


def _line_of_plugin() -> str:
    """Return file and line from which this module is called."""
    frame = sys._getframe()  # noqa: SLF001 - the public way, inspect.stack, reads every file
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


if not TYPE_CHECKING:  # a type checker finds what is misspelt by itself

    def __getattr__(name: str) -> NoReturn:
        nearest = closest(name, __all__).strip().replace("Did", "did")
        raise AttributeError(
            f"there is no plugin.{name}{f' ({nearest})' if nearest else ''}, "
            f"but {', '.join(__all__)}"
        )
