"""Datasets: collected, verified, prepared, and divided among clients.

``load`` gives both modes the same `Dataset`; ``partition`` says which training examples each
federated client holds.
"""

from heliotrope.data.dataset import Dataset, Exchange
from heliotrope.data.examples import Examples
from heliotrope.data.fields import Affine, Batch, Dense, Field, Rows
from heliotrope.data.info import Info
from heliotrope.data.loading import load
from heliotrope.data.partition import Partition, partition
from heliotrope.data.preparation import Preparation
from heliotrope.data.traits import Traits
from heliotrope.data.windows import Ragged, Windows

__all__ = [
    "Affine",
    "Batch",
    "Dataset",
    "Dense",
    "Examples",
    "Exchange",
    "Field",
    "Info",
    "Partition",
    "Preparation",
    "Ragged",
    "Rows",
    "Traits",
    "Windows",
    "load",
    "partition",
]
