"""The names of our own choices, and the functions that make them: `module:function`.

The keys of a choice are the function's typed keyword parameters: see `heliotrope.registry`.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["BUILT_IN", "Group"]

Group = Literal[
    "model",
    "data",
    "task",
    "metric",
    "partition",
    "strategy",
    "privacy",
    "attack",
    "secure_aggregation",
    "record_privacy",
    "optimizer",
    "schedule",
    "cluster",
    "sampler",
    "pruner",
]

_SOURCES = "heliotrope.data.sources"
_PARTITIONS = "heliotrope.data.partition"
_OPTIMIZERS = "heliotrope.training.optimizers"
_SCHEDULES = "heliotrope.config.schedule"
_OURS, _FLOWERS = "federated.strategies.ours", "federated.strategies.flowers"

_STRATEGIES = (  # that Flower has too
    "fedavg",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedavgm",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "qfedavg",
)
_ONLY_OURS = (
    *("fedadam_corrected", "scaffold"),
    *("geometric_median", "centered_clipping", "norm_bounding", "fltrust"),
)

_PRIVACY = ("none", "central", "adaptive", "ftrl", "local", "record")

BUILT_IN: dict[Group, dict[str, str]] = {
    "model": {
        name: f"heliotrope.models.{name}:{name}"
        for name in (
            *("mlp", "cnn", "logistic", "embedding_bag", "gru", "char_lstm", "gpt"),
            *("matrix_factorization", "two_towers"),
        )
    },
    "data": {
        **{
            name: f"{_SOURCES}.{name}:{name}"
            for name in (
                *("digits", "heart", "diabetes", "spam", "shakespeare", "movielens", "emoji"),
                *("table", "arrays", "token_stream"),
            )
        },
        **{name: f"{_SOURCES}.images:{name}" for name in ("mnist", "fashion_mnist")},
        **{name: f"{_SOURCES}.folders:{name}" for name in ("images", "texts")},
    },
    "task": {
        name: f"heliotrope.tasks.{name}:{name}"
        for name in ("classification", "regression", "next_token", "rating", "contrastive")
    },
    "metric": {
        name: f"heliotrope.tasks.measured:{name}"
        for name in ("auroc", "calibration_error", "top_5_accuracy")
    },
    "partition": {
        name: f"{_PARTITIONS}:{name}"
        for name in ("iid", "dirichlet", "shards", "quantity", "natural")
    },
    # The papers' algorithms, and Flower's own classes, whose names begin with flower_.
    "strategy": {
        **{name: f"{_OURS}:{name}" for name in (*_STRATEGIES, *_ONLY_OURS)},
        **{f"flower_{name}": f"{_FLOWERS}:flower_{name}" for name in _STRATEGIES},
    },
    "privacy": {name: f"federated.privacy.choices:{name}" for name in _PRIVACY},
    "attack": {
        name: f"federated.attacks.choices:{name}"
        for name in (
            *("none", "label_flip", "sign_flip", "scaling", "alie", "ipm", "mimic"),
            "backdoor",
        )
    },
    "secure_aggregation": {
        name: f"federated.secure_aggregation.choices:{name}" for name in ("none", "secagg")
    },
    "record_privacy": {name: f"distributed.privacy.choices:{name}" for name in ("none", "dpsgd")},
    "optimizer": {name: f"{_OPTIMIZERS}:{name}" for name in ("sgd", "adam", "adamw", "adafactor")},
    "schedule": {
        name: f"{_SCHEDULES}:{name}"
        for name in ("constant", "linear", "cosine", "step", "one_cycle")
    },
    "cluster": {  # of `heliotrope submit`
        "local": "distributed.submit.local:local",
        "slurm": "distributed.submit.slurm:slurm",
        "ray": "distributed.submit.ray_jobs:ray",
        "kuberay": "distributed.submit.kuberay:kuberay",
    },
    "sampler": {name: f"heliotrope.search.samplers:{name}" for name in ("tpe", "random")},
    "pruner": {name: f"heliotrope.search.pruners:{name}" for name in ("none", "median", "halving")},
}
