"""Divide the training examples among clients: every example to exactly one, none left empty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heliotrope.config_federated import (
    DirichletConfig,
    NaturalConfig,
    PartitionConfig,
    QuantityConfig,
    ShardsConfig,
)
from heliotrope.data.apportion import cut, dirichlet_shares, donations, even_owners
from heliotrope.errors import PartitionError
from heliotrope.seeding import numpy_generator

__all__ = ["Partition", "partition"]

_KEY = "federated.partition"
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Which examples each client holds, as one array in client order (CSR).

    Two arrays rather than a list of arrays: a million clients cost 8 MB, are built without a
    loop, and reach other processes in one piece.

    Parameters
    ----------
    indices
        int64 ``[N]``: positions into the training split, each once; ascending within a client.
    offsets
        int64 ``[clients + 1]``: client c holds ``indices[offsets[c] : offsets[c + 1]]``.
    """

    indices: _Ints
    offsets: _Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> _Ints:
        """Return the positions client `client` holds, ascending: a view, not a copy."""
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[_Ints]:
        return (self[client] for client in range(len(self)))

    @property
    def sizes(self) -> _Ints:
        """Examples of each client: int64 ``[clients]``."""
        return np.diff(self.offsets)


def partition(
    cfg: PartitionConfig,
    targets: npt.NDArray[Any],
    keys: npt.NDArray[Any] | None,
    run_seed: int,
) -> Partition:
    """Divide the training examples as `cfg` asks; the same for the same `run_seed`.

    Parameters
    ----------
    cfg
        The scheme: `iid`, `dirichlet`, `shards`, `quantity` or `natural`.
    targets
        Class indices ``[N]`` of the training split.
    keys
        The natural group of each example ``[N]``, or None.
    run_seed
        The run's seed; draws come from the stream "partition".

    Raises
    ------
    PartitionError
        If the request is impossible; names the key, the numbers and the remedy.
    """
    generator = numpy_generator(run_seed, "partition")
    match cfg:
        case NaturalConfig():
            owner, clients = _natural(cfg, keys)
        case DirichletConfig():
            clients = _clients(cfg, len(targets), cfg.min_size)
            owner = _dirichlet(cfg, clients, targets, generator)
        case QuantityConfig():
            clients = _clients(cfg, len(targets), cfg.min_size)
            owner = _quantity(cfg, clients, len(targets), generator)
        case ShardsConfig():
            clients = _clients(cfg, len(targets), 1)
            owner = _shards(cfg, clients, targets, generator)
        case PartitionConfig(name="iid"):
            clients = _clients(cfg, len(targets), 1)
            owner = _iid(clients, len(targets), generator)
        case _:
            raise PartitionError(
                f"{_KEY}.name={cfg.name} is not one of iid, dirichlet, shards, quantity, natural."
            )
    offsets = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
    return Partition(np.argsort(owner, kind="stable"), offsets)


# Each scheme returns the owner of each example: int64 [N], a client in [0, clients).


def _iid(clients: int, examples: int, generator: np.random.Generator) -> _Ints:
    """Shuffle, and cut into parts whose sizes differ by at most one."""
    return generator.permutation(even_owners(clients, examples))


def _shards(
    cfg: ShardsConfig,
    clients: int,
    targets: npt.NDArray[Any],
    generator: np.random.Generator,
) -> _Ints:
    """Sort by label, cut into equal shards, deal `shards_per_client` to each client.

    Sizes of shards differ by at most one where they cannot be equal. Examples of one label
    stay in the order of the data. Source: McMahan et al. (2017), section 3.
    """
    shards = clients * cfg.shards_per_client
    if shards > len(targets):
        raise PartitionError(
            f"{_KEY}.shards_per_client={cfg.shards_per_client} for {_KEY}.clients={clients} "
            f"makes {shards:,} shards of {len(targets):,} examples. Set "
            f"{_KEY}.shards_per_client to at most {len(targets) // clients}, or use fewer "
            "clients."
        )
    owner_of_shard = generator.permutation(shards) // cfg.shards_per_client
    owner = np.empty(len(targets), dtype=np.int64)
    by_label = np.argsort(targets, kind="stable")
    owner[by_label] = owner_of_shard[even_owners(shards, len(targets))]
    return owner


def _quantity(
    cfg: QuantityConfig, clients: int, examples: int, generator: np.random.Generator
) -> _Ints:
    """Draw the clients' shares of all examples from Dirichlet(alpha); labels are mixed.

    Clients drawn below `min_size` are raised to it, see `donations`.
    """
    (shares,) = dirichlet_shares(cfg.alpha, clients, 1, generator)
    sizes = cut(shares, examples, generator)
    sizes += np.maximum(cfg.min_size - sizes, 0) - donations(sizes, cfg.min_size)
    return generator.permutation(np.repeat(np.arange(clients), sizes))


def _dirichlet(
    cfg: DirichletConfig,
    clients: int,
    targets: npt.NDArray[Any],
    generator: np.random.Generator,
) -> _Ints:
    """For each label, draw the clients' shares of its examples from Dirichlet(alpha).

    Sources: Yurochkin et al. (2019), section 4; Hsu et al. (2019) use the same prior the other
    way round. Where those redraw everything until each client has `min_size` examples, which
    for many clients and a small alpha never happens, here the clients below it are raised to it:
    the others give (`donations`) examples picked at random, which are sorted by label before
    they are dealt out, so that those who receive hold few labels, as a small alpha intends.
    """
    owner = np.empty(len(targets), dtype=np.int64)
    labels = np.unique(targets)
    shares = dirichlet_shares(cfg.alpha, clients, len(labels), generator)
    for label, label_shares in zip(labels, shares, strict=True):
        examples = generator.permutation(np.flatnonzero(targets == label))
        counts = cut(label_shares, len(examples), generator)
        owner[examples] = np.repeat(np.arange(clients), counts)

    sizes = np.bincount(owner, minlength=clients)
    gives = donations(sizes, cfg.min_size)
    if gives.any():
        # In random order within each owner, the first gives[owner] of each are given away.
        order = generator.permutation(len(targets))
        order = order[np.argsort(owner[order], kind="stable")]
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        given = order[rank < gives[owner[order]]]
        given = given[np.argsort(targets[given], kind="stable")]
        receivers = generator.permutation(clients)
        owner[given] = np.repeat(receivers, np.maximum(cfg.min_size - sizes[receivers], 0))
    return owner


def _natural(cfg: NaturalConfig, keys: npt.NDArray[Any] | None) -> tuple[_Ints, int]:
    """One client for each value of the key, in the order of the sorted values."""
    if keys is None:
        raise PartitionError(
            "federated/partition=natural makes a client of each group in the data, and "
            "this dataset has no groups; the image datasets (digits, mnist, fashion_mnist) have "
            "none. Choose federated/partition=iid, dirichlet, shards or quantity, or a dataset "
            "with groups."
        )
    groups, owner = np.unique(keys, return_inverse=True)
    if cfg.clients is not None and cfg.clients != len(groups):
        raise PartitionError(
            f"{_KEY}.clients={cfg.clients}, but the training data has {len(groups)} groups and "
            f"federated/partition=natural makes a client of each. Set {_KEY}.clients=null or "
            f"{len(groups)}."
        )
    return owner.astype(np.int64, copy=False), len(groups)


def _clients(cfg: PartitionConfig, examples: int, min_size: int) -> int:
    """Return the number of clients after checking that each can have `min_size` examples."""
    if cfg.clients is None or cfg.clients < 1:
        raise PartitionError(
            f"{_KEY}.clients={cfg.clients}. Set it to the number of clients, at least 1."
        )
    if cfg.clients > examples:
        raise PartitionError(
            f"{_KEY}.clients={cfg.clients} is more than the {examples:,} training examples, and "
            f"each client needs at least one. Set {_KEY}.clients to at most {examples}."
        )
    if cfg.clients * min_size > examples:
        raise PartitionError(
            f"{_KEY}.min_size={min_size} for {_KEY}.clients={cfg.clients} needs "
            f"{cfg.clients * min_size:,} training examples; there are {examples:,}. Set "
            f"{_KEY}.min_size to at most {examples // cfg.clients}, or {_KEY}.clients to at most "
            f"{examples // min_size}."
        )
    return cfg.clients
