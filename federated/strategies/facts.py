"""What a server strategy is told of the model and the data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

__all__ = ["ModelFacts"]


@dataclass(frozen=True)
class ModelFacts:
    """Which arrays of a model are what, and how much a round weighs at most.

    Parameters
    ----------
    parameters
        Names of floating-point parameters: what a server optimizer may step.
    buffers
        The other names of the state dict, such as BatchNorm's statistics and counters.
    most_weight
        Of all clients together, such as their number of examples.
    clients
        How many there are to be drawn.
    trained
        One name of each parameter that clients train and send.
    aliases
        Their other names, and what each is an alias of.
    """

    parameters: frozenset[str]
    buffers: frozenset[str]
    most_weight: int
    clients: int
    trained: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        most_weight: int,
        clients: int,
        sent: Collection[str] | None = None,
    ) -> ModelFacts:
        """Return the facts of a model; a parameter that two layers share has all its names.

        `sent` are the names that clients send, if not all.
        """
        named = dict(model.named_parameters(remove_duplicate=False))
        parameters = frozenset(name for name, p in named.items() if p.is_floating_point())
        names = frozenset(model.state_dict() if sent is None else sent)
        first = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        trained = frozenset(first.values()) & names
        same = {n: first[id(p)] for n, p in named.items() if n in names and id(p) in first}
        aliases = {name: of for name, of in same.items() if name != of}
        return cls(parameters & names, names - parameters, most_weight, clients, trained, aliases)
