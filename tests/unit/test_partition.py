"""Partitions: what every scheme keeps to, what each is for, and what is refused."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from heliotrope.config import PartitionConfig, chosen
from heliotrope.data import Partition, Traits, partition
from heliotrope.errors import PartitionError

LABELS = 10


def _chosen(name: str, **keys: Any) -> PartitionConfig:
    cfg: PartitionConfig = chosen("federated/partition", name, **keys)
    return cfg


def iid(clients: int | None) -> PartitionConfig:
    return _chosen("iid", clients=clients)


def dirichlet(clients: int, alpha: float = 0.3, min_size: int = 1) -> PartitionConfig:
    return _chosen("dirichlet", clients=clients, alpha=alpha, min_size=min_size)


def shards(clients: int, shards_per_client: int = 2) -> PartitionConfig:
    return _chosen("shards", clients=clients, shards_per_client=shards_per_client)


def quantity(clients: int, alpha: float = 0.5, min_size: int = 1) -> PartitionConfig:
    return _chosen("quantity", clients=clients, alpha=alpha, min_size=min_size)


def natural(clients: int | None = None) -> PartitionConfig:
    return _chosen("natural", clients=clients)


def divided(
    cfg: PartitionConfig, labels: npt.NDArray[Any], keys: npt.NDArray[Any] | None, seed: int
) -> Partition:
    return partition(cfg, Traits(len(labels), labels, keys=keys), seed)


def check_is_a_partition(part: Partition, examples: int) -> None:
    np.testing.assert_array_equal(np.sort(part.indices), np.arange(examples))
    assert part.indices.dtype == part.offsets.dtype == np.int64
    assert len(part.offsets) == len(part) + 1
    assert part.sizes.min() >= 1
    assert part.sizes.sum() == examples


def label_counts(part: Partition, targets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Count examples of each label at each client: int64 [clients, labels]."""
    owner = np.repeat(np.arange(len(part)), part.sizes)
    cells = owner * LABELS + targets[part.indices]
    return np.bincount(cells, minlength=len(part) * LABELS).reshape(len(part), LABELS)


SCHEMES: dict[str, Callable[[int], PartitionConfig]] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "dirichlet, extreme": lambda clients: dirichlet(clients, alpha=0.001),
    "dirichlet, even": lambda clients: dirichlet(clients, alpha=1e9),
    "shards": lambda clients: shards(clients, 1),
    "quantity": quantity,
    "quantity, extreme": lambda clients: quantity(clients, alpha=0.001),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_example_belongs_to_one_client_and_no_client_is_empty(
    scheme: str, rng: np.random.Generator
) -> None:
    for _ in range(20):
        examples = int(rng.integers(1, 400))
        clients = int(rng.integers(1, examples + 1))
        targets = rng.integers(0, LABELS, examples)
        part = divided(SCHEMES[scheme](clients), targets, None, int(rng.integers(2**31)))
        assert len(part) == clients, (examples, clients)
        check_is_a_partition(part, examples)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_run_seed_alone_decides(scheme: str, rng: np.random.Generator) -> None:
    targets = rng.integers(0, LABELS, 1000)
    seed = int(rng.integers(2**31))
    cfg = SCHEMES[scheme](20)
    first = divided(cfg, targets, None, seed)
    np.random.seed(0)  # noqa: NPY002 - the process-wide state must not matter
    again = divided(cfg, targets, None, seed)
    other = divided(cfg, targets, None, seed + 1)
    np.testing.assert_array_equal(first.indices, again.indices)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.indices, other.indices)


def test_a_client_is_a_sorted_view(rng: np.random.Generator) -> None:
    part = divided(dirichlet(7), rng.integers(0, LABELS, 200), None, 1)
    clients = list(part)
    assert [len(client) for client in clients] == part.sizes.tolist()
    for client in clients:
        assert np.shares_memory(client, part.indices)
        assert (np.diff(client) > 0).all()
    for outside in (-1, 7):
        with pytest.raises(IndexError, match=f"client {outside} of 7"):
            part[outside]
    copy = pickle.loads(pickle.dumps(part))  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(copy.indices, part.indices)


def test_a_million_clients() -> None:
    part = divided(iid(1_000_000), np.zeros(1_000_000, dtype=np.int64), None, 1)
    check_is_a_partition(part, 1_000_000)


# --- iid ----------------------------------------------------------------------------------


def test_iid_sizes_differ_by_at_most_one(rng: np.random.Generator) -> None:
    for examples, clients in ((1000, 7), (1000, 1000), (999, 500), (8, 3)):
        sizes = divided(iid(clients), np.zeros(examples), None, int(rng.integers(2**31))).sizes
        assert sizes.max() - sizes.min() <= 1


# --- dirichlet ----------------------------------------------------------------------------


def test_dirichlet_alpha_goes_from_one_label_a_client_to_all_alike(
    rng: np.random.Generator,
) -> None:
    targets = rng.integers(0, LABELS, 20_000)

    def largest_label_share(alpha: float) -> float:
        counts = label_counts(divided(dirichlet(50, alpha), targets, None, 1), targets)
        return float((counts.max(axis=1) / counts.sum(axis=1)).mean())

    shares = [largest_label_share(alpha) for alpha in (0.01, 0.3, 3, 1e6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8
    assert shares[-1] < 0.14


def test_dirichlet_treats_no_client_better_than_another(rng: np.random.Generator) -> None:
    # Fewer examples of each label than clients, so every count is a rounding.
    targets = np.repeat(np.arange(LABELS), 30)
    start = int(rng.integers(2**31))
    runs = 300
    sizes = np.zeros(60)
    for seed in range(start, start + runs):
        sizes += divided(dirichlet(60, alpha=1e6), targets, None, seed).sizes
    assert (abs(sizes / runs - 5) < 0.6).all()  # 5 standard errors are 0.46


@pytest.mark.parametrize("make", [dirichlet, quantity])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 1.0, 1000.0])
def test_min_size_is_kept_up_to_the_last_example(
    make: Any, alpha: float, rng: np.random.Generator
) -> None:
    targets = rng.integers(0, LABELS, 6000)
    for clients, min_size in ((10, 100), (300, 10), (300, 20), (6000, 1)):
        part = divided(make(clients, alpha, min_size), targets, None, int(rng.integers(2**31)))
        check_is_a_partition(part, 6000)
        assert part.sizes.min() >= min_size


def test_clients_raised_to_min_size_still_hold_few_labels(rng: np.random.Generator) -> None:
    targets = rng.integers(0, LABELS, 50_000)
    part = divided(dirichlet(500, alpha=0.01, min_size=20), targets, None, 1)
    raised = label_counts(part, targets)[part.sizes == 20]
    assert len(raised) > 100
    assert (raised > 0).sum(axis=1).mean() < 3


# --- shards -------------------------------------------------------------------------------


def test_shards_give_each_client_a_few_labels_in_equal_amounts(rng: np.random.Generator) -> None:
    targets = rng.permutation(np.repeat(np.arange(LABELS), 60))  # 20 shards of 30, 2 a label
    part = divided(shards(10, 2), targets, None, int(rng.integers(2**31)))
    counts = label_counts(part, targets)
    assert (part.sizes == 60).all()
    assert set(np.unique(counts)) <= {0, 30, 60}


def test_shards_that_cannot_be_equal_differ_by_one(rng: np.random.Generator) -> None:
    part = divided(shards(7, 1), rng.integers(0, LABELS, 100), None, 1)
    assert set(part.sizes.tolist()) == {14, 15}


# --- quantity -----------------------------------------------------------------------------


def test_quantity_varies_sizes_and_mixes_labels(rng: np.random.Generator) -> None:
    targets = np.sort(rng.integers(0, LABELS, 50_000))
    seed = int(rng.integers(2**31))
    uneven = divided(quantity(50, alpha=0.3), targets, None, seed)
    even = divided(quantity(50, alpha=1e6), targets, None, seed)
    assert uneven.sizes.std() > 500
    assert even.sizes.std() < 10
    largest = label_counts(uneven, targets)[uneven.sizes.argmax()]
    assert (abs(largest / largest.sum() - 0.1) < 0.03).all()


# --- natural ------------------------------------------------------------------------------


def test_natural_makes_one_client_of_each_group(rng: np.random.Generator) -> None:
    hospitals = np.array(["Zurich", "Basel", "Cleveland"])
    keys = hospitals[np.concatenate([[0, 1, 2], rng.integers(0, 3, 97)])]
    for clients in (None, 3):
        part = divided(natural(clients), np.zeros(100), keys, 1)
        check_is_a_partition(part, 100)
        assert [set(keys[client]) for client in part] == [{"Basel"}, {"Cleveland"}, {"Zurich"}]


# --- refusals -----------------------------------------------------------------------------

REFUSED = {
    "clients not set": (iid(None), ["federated.partition.clients=None"]),
    "more clients than examples": (iid(101), ["partition.clients=101", "100", "at most 100"]),
    "dirichlet min_size": (
        dirichlet(30, min_size=4),
        ["partition.min_size=4", "clients=30", "120", "100", "at most 3", "at most 25"],
    ),
    "quantity min_size": (quantity(30, min_size=4), ["partition.min_size=4", "at most 3"]),
    "more shards than examples": (
        shards(30, 4),
        ["partition.shards_per_client=4", "clients=30", "120 shards", "at most 3"],
    ),
    "infinite alpha": (dirichlet(3, alpha=float("inf")), ["partition.alpha=inf", "=iid"]),
    "no groups": (natural(), ["federated/partition=natural", "digits", "iid, dirichlet, shards"]),
    "unknown": (
        PartitionConfig(name="idd", clients=3),
        ["federated.partition.name=idd", "iid, dirichlet"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_requests_name_key_numbers_and_remedy(case: str) -> None:
    cfg, words = REFUSED[case]
    with pytest.raises(PartitionError) as caught:
        divided(cfg, np.zeros(100, dtype=np.int64), None, 1)
    for word in words:
        assert word in str(caught.value)


def test_natural_with_another_number_of_clients_is_refused() -> None:
    keys = np.arange(100) % 4
    with pytest.raises(PartitionError, match=r"clients=5, but .* 4 groups.*clients=null or 4"):
        divided(natural(clients=5), np.zeros(100), keys, 1)


# --- data without labels ------------------------------------------------------------------


def test_what_needs_no_labels_divides_any_data() -> None:
    keys = np.repeat([3, 5], 20)
    assert partition(natural(), Traits(40, keys=keys), 1).sizes.tolist() == [20, 20]
    assert partition(iid(4), Traits(40), 1).sizes.tolist() == [10] * 4
    assert partition(quantity(4, alpha=1.0), Traits(40), 1).sizes.sum() == 40
    for cfg in (dirichlet(4), shards(4, 1)):
        with pytest.raises(PartitionError, match=rf"partition={cfg.name} divides by labels, num"):
            partition(cfg, Traits(40), 1)


def test_numbers_to_be_predicted_are_divided_by_their_quantiles(rng: np.random.Generator) -> None:
    targets = rng.normal(size=10_000)
    for make in (lambda: dirichlet(20, alpha=0.1), lambda: shards(20, 1)):
        part = partition(make(), Traits(10_000, targets=targets), int(rng.integers(2**31)))
        check_is_a_partition(part, 10_000)
        apart = np.std([targets[client].mean() for client in part])
        alike = np.std([targets[client].mean() for client in partition(iid(20), Traits(10_000), 1)])
        assert apart > 4 * alike  # of 400 draws, all are more than 7.9


def test_equal_numbers_are_in_one_quantile(rng: np.random.Generator) -> None:
    targets = rng.integers(1, 6, 5000).astype(np.float32)  # ratings
    groups = Traits(5000, targets=targets).groups("auto", "dirichlet", 10)
    assert len(np.unique(groups)) <= 5
    assert all(len(np.unique(groups[targets == value])) == 1 for value in range(1, 6))


def test_keys_can_be_divided_like_labels(rng: np.random.Generator) -> None:
    keys = np.array(["a", "b", "c"])[rng.integers(0, 3, 3000)]
    labels = rng.integers(0, LABELS, 3000)
    cfg = _chosen("dirichlet", clients=10, alpha=0.05, by="key")
    part = partition(cfg, Traits(3000, labels, keys=keys), 5)
    check_is_a_partition(part, 3000)
    largest = [
        np.unique(keys[client], return_counts=True)[1].max() / len(client) for client in part
    ]
    assert np.mean(largest) > 0.7
    # Codes in the keys' order are divided alike: the names themselves play no part.
    codes = np.unique(keys, return_inverse=True)[1]
    again = partition(dirichlet(10, alpha=0.05), Traits(3000, codes), 5)
    np.testing.assert_array_equal(part.indices, again.indices)


def test_what_the_examples_lack_is_named() -> None:
    for by, there in (("target", "label"), ("key", "label")):
        cfg = _chosen("dirichlet", clients=4, by=by)
        with pytest.raises(PartitionError, match=rf"by={by}, .* have no {by}. Set .*by={there}"):
            partition(cfg, Traits(40, np.zeros(40)), 1)


def test_draws_are_those_of_earlier_versions() -> None:
    labels = np.arange(60) % 4
    expected = {
        "iid": "15b8cededc9e70b2",
        "dirichlet": "086b98e62d0e78c2",
        "shards": "efba754561a2c355",
        "quantity": "fb5855727b4b88d1",
    }
    for cfg in (iid(5), dirichlet(5, min_size=2), shards(5), quantity(5, min_size=2)):
        part = divided(cfg, labels, None, 7)
        digest = hashlib.sha256(part.indices.tobytes() + part.offsets.tobytes()).hexdigest()
        assert digest[:16] == expected[cfg.name], cfg.name
