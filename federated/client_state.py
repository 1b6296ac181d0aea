"""What clients keep between the rounds they are drawn for, by client, and never send.

A model says which of its weights belong to one client alone by `personal`, the beginnings of their
names, and gives the model of one client by `for_one`. Such weights are client state: training
starts from the global weights and the client's own, and gives back both apart. In a simulation
the state of all clients is in a `StateStore`, which a checkpoint of the run holds; a deployed
client has its own with it.

Shapes: K clients, P clients of a page.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heliotrope.errors import CheckpointError, ConfigError
from heliotrope.models.personal import personal_names

__all__ = ["ClientStates", "PersonalWeights", "StateStore", "model_of_client"]

_Weights = Mapping[str, Tensor]

_PREFIX = "client_state/"  # in a checkpoint, of the pages' names
_IDENTITIES = "client_identities"
_PAGE_BYTES = 1 << 20
_PAGE_CLIENTS = 4096


def model_of_client(model: nn.Module) -> nn.Module:
    """Return what one client trains: `model`, or where a part of it is personal, its `for_one()`.

    Raises
    ------
    ConfigError
        If weights are personal, but the model has no `for_one`, or that gives a model with others;
        or if `personal` names none, see `personal_names`.
    """
    personal = personal_names(model)
    if not personal:
        return model
    for_one = getattr(model, "for_one", None)
    if not callable(for_one):
        raise ConfigError(
            f"{type(model).__name__} has personal weights, but no method for_one that returns the "
            "model of one client. Give it one, or leave personal out."
        )
    made: nn.Module = for_one()
    differing = sorted(set(personal) ^ set(personal_names(made)))
    if differing:
        raise ConfigError(
            f"{differing[0]} is personal in {type(model).__name__} or in what its for_one returns, "
            "but not in both. Give both the same `personal`."
        )
    return made


@dataclass(frozen=True, eq=False)
class PersonalWeights:
    """The weights of a client's model that are its state, [*shape] each, as they begin."""

    built: _Weights

    @classmethod
    def of(cls, model: nn.Module) -> PersonalWeights:
        """Return those of one client's `model`; of most models there are none."""
        state = model.state_dict()
        return cls({name: state[name].detach().cpu().clone() for name in personal_names(model)})

    def __bool__(self) -> bool:
        return bool(self.built)

    def start(self, weights: _Weights, state: _Weights) -> _Weights:
        """Return all weights of a client: the global ones and its own; without any, as built."""
        if not self.built:
            return weights
        own = {name: value for name, value in state.items() if name in self.built}
        return {**self.built, **weights, **own}

    def finish(self, trained: _Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return of a client's weights those that are sent, and its state."""
        sent = {name: value for name, value in trained.items() if name not in self.built}
        return sent, {name: trained[name] for name in self.built}


@dataclass(frozen=True, eq=False)
class ClientStates:
    """The state of K clients: arrays [K, *shape], a row each."""

    clients: tuple[int, ...]
    arrays: _Weights

    def of(self, client: int) -> _Weights:
        """Return the state of one client, [*shape] each; raises `ValueError` if it is not here."""
        row = self.clients.index(client)
        return {name: value[row] for name, value in self.arrays.items()}

    def take(self, clients: Collection[int]) -> ClientStates:
        """Return the same of those that are among `clients`."""
        wanted = set(clients)
        rows = [row for row, client in enumerate(self.clients) if client in wanted]
        kept = tuple(self.clients[row] for row in rows)
        return ClientStates(kept, {name: value[rows] for name, value in self.arrays.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        # Arrays of NumPy cross to other processes without torch's own shared memory.
        arrays = {name: value.cpu().numpy() for name, value in self.arrays.items()}
        return _states, (self.clients, arrays)

    @classmethod
    def joined(cls, parts: Sequence[ClientStates]) -> ClientStates:
        """Return the states of one or more `parts` as one."""
        clients = tuple(client for part in parts for client in part.clients)
        names = parts[0].arrays
        return cls(clients, {n: torch.cat([part.arrays[n].cpu() for part in parts]) for n in names})


def _states(clients: tuple[int, ...], arrays: Mapping[str, Any]) -> ClientStates:
    return ClientStates(clients, {name: torch.from_numpy(value) for name, value in arrays.items()})


class StateStore:
    """The state of all clients of a simulation, in pages of clients with neighbouring numbers.

    A page is made when one of its clients has first been trained; before, they are as built. It is
    replaced and never changed, so that a snapshot is one of references.

    Parameters
    ----------
    personal
        The weights that each client begins with.
    beside
        What it keeps beside weights, as that begins: by name, [*shape].
    identities
        Who each client is, int64 [clients], as `heliotrope.data.Partition` has it.
    """

    def __init__(
        self,
        personal: PersonalWeights,
        beside: _Weights | None = None,
        identities: NDArray[np.int64] | None = None,
    ) -> None:
        self._identities = torch.from_numpy(
            np.empty(0, np.int64) if identities is None else identities
        )
        self._personal = tuple(personal.built)
        built = {**personal.built, **(beside or {})}
        self._built = {name: value.detach().cpu().clone() for name, value in built.items()}
        size = sum(value.nbytes for value in self._built.values())
        self._rows = max(1, min(_PAGE_CLIENTS, _PAGE_BYTES // max(1, size)))
        self._pages: dict[int, dict[str, Tensor]] = {}

    def take(self, clients: Sequence[int]) -> ClientStates:
        """Return the state of each of `clients`."""
        return self._taken(clients, tuple(self._built))

    def personal_of(self, clients: Sequence[int]) -> ClientStates | None:
        """Return the personal weights of each of `clients`; None if the model has none."""
        return self._taken(clients, self._personal) if self._personal else None

    def _taken(self, clients: Sequence[int], names: Sequence[str]) -> ClientStates:
        found = [self._of(client) for client in clients]
        return ClientStates(
            tuple(clients), {name: torch.stack([state[name] for state in found]) for name in names}
        )

    def _of(self, client: int) -> _Weights:
        page = self._pages.get(client // self._rows)
        if page is None:
            return self._built
        return {name: value[client % self._rows] for name, value in page.items()}

    def put(self, states: ClientStates) -> None:
        """Keep these states in place of those that the clients had."""
        clients = np.asarray(states.clients, dtype=np.int64)
        for number in np.unique(clients // self._rows).tolist():
            of_states = torch.from_numpy(np.flatnonzero(clients // self._rows == number))
            rows = torch.from_numpy(clients)[of_states] % self._rows
            old = self._pages.get(number)
            page = {}
            for name, built in self._built.items():
                values = built.expand(self._rows, *built.shape) if old is None else old[name]
                page[name] = values.clone()
                page[name][rows] = states.arrays[name].cpu()[of_states]
            self._pages[number] = page

    def snapshot(self) -> dict[str, Tensor]:
        """Return the pages by name, [P, *shape] each, for a checkpoint, and who the clients are."""
        pages = {
            f"{_PREFIX}{number}/{name}": value
            for number, page in self._pages.items()
            for name, value in page.items()
        }
        return {**pages, _IDENTITIES: self._identities} if len(self._identities) else pages

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Go on from the arrays of a checkpoint, among which are those of `snapshot`.

        Raises `CheckpointError` if it holds the state of others, or state that there is not here.
        """
        saved = arrays.get(_IDENTITIES, self._identities)
        if not torch.equal(saved, self._identities):
            raise CheckpointError(
                f"the checkpoint holds the state of {len(saved):,} clients, which are not the "
                f"{len(self._identities):,} of the data that are there now: some would go on with "
                "what others have kept. Put the data back as they were, or use another "
                "hydra.run.dir."
            )
        self._pages = {}
        for key, value in arrays.items():
            if not key.startswith(_PREFIX):
                continue
            number, _, name = key.removeprefix(_PREFIX).partition("/")
            built = self._built.get(name)
            if built is None or value.shape != (self._rows, *built.shape):
                raise CheckpointError(
                    f"the checkpoint holds client state {name} of shape {list(value.shape)}, which "
                    "this configuration has not. Set model.* and federated.strategy.* as in the "
                    "run that wrote it, or use another hydra.run.dir."
                )
            self._pages.setdefault(int(number), {})[name] = value
