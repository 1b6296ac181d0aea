"""Divide the training examples among clients: every example to exactly one, none left empty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from heliotrope import plugin_loading, registry
from heliotrope.config import PartitionConfig
from heliotrope.data.apportion import cut, dirichlet_shares, donations, even_owners
from heliotrope.data.traits import Traits
from heliotrope.errors import HeliotropeError, PartitionError
from heliotrope.registry import Entry
from heliotrope.seeding import numpy_generator, seed

__all__ = ["Partition", "dirichlet", "iid", "natural", "partition", "quantity", "shards"]

_KEY = "federated.partition"
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Which examples each client holds, as one array in client order (CSR).

    Arrays rather than a list of arrays: a million clients cost 16 MB, are built without a
    loop, and reach other processes in one piece.

    Parameters
    ----------
    indices
        int64 ``[N]``: positions into the training split, each once; ascending within a client.
    offsets
        int64 ``[clients + 1]``: client c holds ``indices[offsets[c] : offsets[c + 1]]``.
    named
        int64 ``[clients]``: see `identities`; None if clients have no names but their numbers.
    """

    indices: _Ints
    offsets: _Ints
    named: _Ints | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> _Ints:
        """Return the positions client `client` holds, ascending: a view, not a copy."""
        if not 0 <= client < len(self):
            raise IndexError(f"client {client} of {len(self)}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    def __iter__(self) -> Iterator[_Ints]:
        return (self[client] for client in range(len(self)))

    @cached_property
    def identities(self) -> _Ints:
        """Who each client is in seeded draws: int64 ``[clients]``.

        A hash of its natural key: it stays the same when other clients come or leave, which may
        change the client's number. Without natural keys it is the number.
        """
        return np.arange(len(self), dtype=np.int64) if self.named is None else self.named

    @cached_property
    def owners(self) -> _Ints:
        """The client of each training example: int64 ``[N]``."""
        owners = np.empty_like(self.indices)
        owners[self.indices] = np.repeat(np.arange(len(self)), self.sizes)
        return owners

    @property
    def sizes(self) -> _Ints:
        """Examples of each client: int64 ``[clients]``."""
        return np.diff(self.offsets)


def partition(cfg: PartitionConfig, traits: Traits, run_seed: int) -> Partition:
    """Divide the training examples as `cfg` asks; the same for the same `run_seed`.

    Parameters
    ----------
    cfg
        The scheme and its keys.
    traits
        What the examples can be divided by.
    run_seed
        The run's seed; draws come from the stream "partition".

    Raises
    ------
    PartitionError
        If the request is impossible; names the key, the numbers and the remedy.
    """
    generator = numpy_generator(run_seed, "partition")
    known = registry.names("partition")
    if cfg.name not in known:
        raise PartitionError(f"{_KEY}.name={cfg.name} is not one of {', '.join(known)}.")
    entry = registry.entry("partition", cfg.name)
    given = {"traits": traits, "generator": generator}
    if entry.built_in:
        divided = entry.build(vars(cfg), **given)
        owner, named = divided if isinstance(divided, tuple) else (divided, None)
    else:
        owner, named = _of_plug_in(entry, cfg, given), None
    clients = cfg.clients or int(owner.max()) + 1
    offsets = np.zeros(clients + 1, dtype=np.int64)
    np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
    return Partition(np.argsort(owner, kind="stable"), offsets, named)


def _of_plug_in(entry: Entry, cfg: PartitionConfig, given: Mapping[str, Any]) -> _Ints:
    what, examples = f"{_KEY}.name={entry.name} ({entry.where})", given["traits"].examples
    try:
        owner = np.asarray(entry.build(vars(cfg), **given))
    except HeliotropeError:
        raise
    except Exception as error:
        raise PartitionError(f"{what} fails: {plugin_loading.raised(error)}") from error
    if owner.shape != (examples,) or owner.dtype.kind not in "iu":
        raise PartitionError(
            f"{what} gave {owner.dtype} {list(owner.shape)}. Return the client of each of the "
            f"{examples:,} training examples, whole numbers [{examples}]."
        )
    if (cfg.clients is not None and owner.max() >= cfg.clients) or owner.min() < 0:
        wrong = int(owner.min() if owner.min() < 0 else owner.max())
        raise PartitionError(
            f"{what} gave an example to client {wrong}. Number the clients from 0 on, below "
            f"{_KEY}.clients={cfg.clients}."
        )
    return owner.astype(np.int64)


# Each scheme returns the owner of each example: int64 [N], a client in [0, clients). It is given
# the `traits` of the N examples and the `generator` of its draws, if it names them.


def iid(traits: Traits, generator: np.random.Generator, *, clients: int = 10) -> _Ints:
    """Shuffled, and cut into parts whose sizes differ by at most one.

    Parameters
    ----------
    clients
        Their number.
    """
    _check_clients(clients, traits.examples, 1)
    return generator.permutation(even_owners(clients, traits.examples))


def shards(
    traits: Traits,
    generator: np.random.Generator,
    *,
    clients: int = 10,
    shards_per_client: int = 2,
    by: str = "auto",
) -> _Ints:
    """Sorted by label and cut into equal shards, of which each client gets some.

    Sizes of shards differ by at most one where they cannot be equal. Examples of one label
    stay in the order of the data. Source: McMahan et al. (2017), section 3.

    Parameters
    ----------
    clients
        Their number.
    shards_per_client
        Shards that each client gets.
    by
        What is taken for the label: label, target (a number to be predicted), key (a natural
        group), or the first of these that there is (auto).

    Raises
    ------
    PartitionError
        If there are more shards than examples, or the examples have no such label.
    """
    examples = traits.examples
    _check_clients(clients, examples, 1)
    labels = traits.sortable(by, "shards")
    shards = clients * shards_per_client
    if shards > examples:
        raise PartitionError(
            f"{_KEY}.shards_per_client={shards_per_client} for {_KEY}.clients={clients} "
            f"makes {shards:,} shards of {examples:,} examples. Set "
            f"{_KEY}.shards_per_client to at most {examples // clients}, or use fewer "
            "clients."
        )
    owner_of_shard = generator.permutation(shards) // shards_per_client
    owner = np.empty(examples, dtype=np.int64)
    by_label = np.argsort(labels, kind="stable")
    owner[by_label] = owner_of_shard[even_owners(shards, examples)]
    return owner


def quantity(
    traits: Traits,
    generator: np.random.Generator,
    *,
    clients: int = 10,
    alpha: float = 0.5,
    min_size: int = 1,
) -> _Ints:
    """Sizes drawn from Dirichlet(alpha), labels mixed.

    Clients drawn below `min_size` are raised to it, see `donations`.

    Parameters
    ----------
    clients
        Their number.
    alpha
        The smaller, the less equal are the sizes.
    min_size
        Examples that each client has at least.
    """
    _check_clients(clients, traits.examples, min_size)
    (shares,) = dirichlet_shares(alpha, clients, 1, generator)
    sizes = cut(shares, traits.examples, generator)
    sizes += np.maximum(min_size - sizes, 0) - donations(sizes, min_size)
    return generator.permutation(np.repeat(np.arange(clients), sizes))


def dirichlet(
    traits: Traits,
    generator: np.random.Generator,
    *,
    clients: int = 10,
    alpha: float = 0.3,
    min_size: int = 1,
    by: str = "auto",
    quantiles: int = 10,
) -> _Ints:
    """For each label, the clients' shares of its examples are drawn from Dirichlet(alpha).

    Sources: Yurochkin et al. (2019), section 4; Hsu et al. (2019) use the same prior the other
    way round. Where those redraw everything until each client has `min_size` examples, which
    for many clients and a small alpha never happens, here the clients below it are raised to it:
    the others give (`donations`) examples picked at random, which are sorted by label before
    they are dealt out, so that those who receive hold few labels, as a small alpha intends.

    Parameters
    ----------
    clients
        Their number.
    alpha
        The smaller, the fewer labels does a client hold.
    min_size
        Examples that each client has at least.
    by
        What is taken for the label: label, target (a number to be predicted), key (a natural
        group), or the first of these that there is (auto).
    quantiles
        Ranges of about equal numbers of examples that targets are divided into.
    """
    _check_clients(clients, traits.examples, min_size)
    labels = traits.groups(by, "dirichlet", quantiles)
    owner = np.empty(len(labels), dtype=np.int64)
    classes = np.unique(labels)
    shares = dirichlet_shares(alpha, clients, len(classes), generator)
    for label, label_shares in zip(classes, shares, strict=True):
        examples = generator.permutation(np.flatnonzero(labels == label))
        counts = cut(label_shares, len(examples), generator)
        owner[examples] = np.repeat(np.arange(clients), counts)

    sizes = np.bincount(owner, minlength=clients)
    gives = donations(sizes, min_size)
    if gives.any():
        # In random order within each owner, the first gives[owner] of each are given away.
        order = generator.permutation(len(labels))
        order = order[np.argsort(owner[order], kind="stable")]
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        given = order[rank < gives[owner[order]]]
        given = given[np.argsort(labels[given], kind="stable")]
        receivers = generator.permutation(clients)
        owner[given] = np.repeat(receivers, np.maximum(min_size - sizes[receivers], 0))
    return owner


def natural(traits: Traits, *, clients: int | None = None) -> tuple[_Ints, _Ints]:
    """One client for each value of the data's own grouping key, such as a hospital.

    Returns each example's owner, [N], and each client's identity, [clients]. That is of the key
    as text: a column of numbers may be read as text once a client with another key joins.

    Parameters
    ----------
    clients
        Their number, if it must be that; null: as many as the key has values.

    Raises
    ------
    PartitionError
        If the data has no such key, or another number of its values.
    """
    if traits.keys is None:
        raise PartitionError(
            "federated/partition=natural makes a client of each group in the data, and "
            "this dataset has no groups; the image datasets (digits, mnist, fashion_mnist) have "
            "none. Choose federated/partition=iid, dirichlet, shards or quantity, or a dataset "
            "with groups."
        )
    groups, owner = np.unique(traits.keys, return_inverse=True)
    if clients is not None and clients != len(groups):
        raise PartitionError(
            f"{_KEY}.clients={clients}, but the training data has {len(groups)} groups and "
            f"federated/partition=natural makes a client of each. Set {_KEY}.clients=null or "
            f"{len(groups)}."
        )
    named = np.array([seed(0, "client", str(key)) for key in groups.tolist()], dtype=np.int64)
    return owner.astype(np.int64, copy=False), named


def _check_clients(clients: int | None, examples: int, min_size: int) -> None:
    """Refuse a number of clients that cannot each have `min_size` examples."""
    if clients is None or clients < 1:
        raise PartitionError(
            f"{_KEY}.clients={clients}. Set it to the number of clients, at least 1."
        )
    if clients > examples:
        raise PartitionError(
            f"{_KEY}.clients={clients} is more than the {examples:,} training examples, and "
            f"each client needs at least one. Set {_KEY}.clients to at most {examples}."
        )
    if clients * min_size > examples:
        raise PartitionError(
            f"{_KEY}.min_size={min_size} for {_KEY}.clients={clients} needs "
            f"{clients * min_size:,} training examples; there are {examples:,}. Set "
            f"{_KEY}.min_size to at most {examples // clients}, or {_KEY}.clients to at most "
            f"{examples // min_size}."
        )
