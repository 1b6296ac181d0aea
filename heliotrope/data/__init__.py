"""Datasets: collected, verified, prepared, and divided among clients.

``load`` gives both modes the same `Dataset`; ``partition`` says which training examples each
federated client holds.
"""

from heliotrope.data.dataset import Dataset, Scaling, Split
from heliotrope.data.loading import LOADERS, load
from heliotrope.data.partition import Partition, partition

__all__ = ["LOADERS", "Dataset", "Partition", "Scaling", "Split", "load", "partition"]
