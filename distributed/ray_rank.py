"""A worker on Ray, and the training data in each node's shared memory, read there in place.

The driver imports this module before torch is there, to start the workers early.
"""

from __future__ import annotations

import logging
import threading
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ray
from numpy.typing import NDArray

from .attempt import Attempt, Place

if TYPE_CHECKING:
    from heliotrope.data import Dataset

__all__ = ["RayRank", "Shared", "shared"]

_log = logging.getLogger(__name__)

# Name, class names, mean and std of the scaling, and of each split the inputs and targets.
_Arrays = dict[str, tuple[NDArray[Any], NDArray[Any]]]
Shared = tuple[str, tuple[str, ...], tuple[float, float], _Arrays]


class RayRank:
    """A worker process on the cluster."""

    def __init__(self) -> None:
        """Import what takes seconds while the driver still loads the data.

        DDP imports torch._dynamo when it is first used, though nothing is compiled.
        """
        import_module("torch._dynamo")
        import_module(".rank", __package__)
        self._store: Any = None
        self._stop = threading.Event()

    def meeting_point(self) -> tuple[str, int]:
        """Open the store in which the ranks meet; return its host and port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._store.port

    def train(self, attempt: Attempt, place: Place, data: Shared, at: tuple[str, int]) -> str:
        """Train as rank `place.rank`; return `Trained` as JSON."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        from .rank import run_process

        try:
            store = self._store or TCPStore(*at, is_master=False)
            trained = run_process(attempt, place, _dataset(data), self._stop.is_set, store)
            return trained.to_json()
        except Exception:
            _log.exception("failed")
            raise

    def stop(self) -> None:
        """Ask the training, which goes on in another thread, to stop."""
        self._stop.set()


def shared(dataset: Dataset) -> Shared:
    """Return the dataset as arrays, which Ray shares without a copy; natural keys stay behind."""
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    arrays = {name: (s.inputs.numpy(), s.targets.numpy()) for name, s in splits.items()}
    scaling = (dataset.scaling.mean, dataset.scaling.std)
    return dataset.name, dataset.class_names, scaling, arrays


def _dataset(data: Shared) -> Dataset:
    import torch

    from heliotrope.data import Dataset, Scaling, Split

    name, class_names, scaling, arrays = data
    with warnings.catch_warnings():  # the shared arrays are read-only, and only read
        warnings.simplefilter("ignore", UserWarning)
        splits = {
            split: Split(torch.from_numpy(inputs), torch.from_numpy(targets))
            for split, (inputs, targets) in arrays.items()
        }
    return Dataset(
        name=name,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=class_names,
        scaling=Scaling(*scaling),
    )
