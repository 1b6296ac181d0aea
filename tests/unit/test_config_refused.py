"""Values that are refused before any work: the message names key, value and remedy."""

from __future__ import annotations

import copy

import pytest
import yaml
from omegaconf import OmegaConf

from heliotrope import config
from heliotrope.config import Mode
from heliotrope.errors import ConfigError
from tests.support import compose, composed

_FSDP = ("distributed.strategy=fsdp", "distributed.launcher=torchrun")

# Overrides of a valid config, and what the message must name: the key, the value, the remedy.
REFUSED: list[tuple[Mode, tuple[str, ...], tuple[str, ...]]] = [
    (
        "federated",
        ("data.fit=trainig",),
        ("data.fit=trainig", "training, per_client, private, none"),
    ),
    (
        "distributed",
        ("data.fit=per_client",),
        ("data.fit=per_client", "needs clients", "data.fit=training"),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.bad_rows=drop"),
        ("data.bad_rows=drop", "refuse, skip"),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.delimiter=ab"),
        ("data.delimiter=ab must be one character, or 'data.delimiter=\\t' for a tab",),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.encoding=lateen"),
        ("data.encoding=lateen", "such as utf-8, latin-1"),
    ),
    (
        "federated",
        ("data=table", "data.path=a.csv", "data.target=b", "data.decimal=x"),
        ("data.decimal=x must be data.decimal=. or 'data.decimal=\",\"'",),
    ),
    ("federated", ("data=shakespeare", "data.length=0"), ("data.length=0", "at least 1")),
    (
        "distributed",
        ("distributed.checkpoint_every_steps=0",),
        ("distributed.checkpoint_every_steps=0", "at least 1"),
    ),
    (
        "distributed",
        ("distributed.collective_timeout=0",),
        ("distributed.collective_timeout=0", "at least 1"),
    ),
    ("distributed", ("distributed.workers=two",), ("distributed.workers=two", "such as [1,4]")),
    ("distributed", ("distributed.workers=1.5",), ("distributed.workers=1.5", "whole number")),
    ("distributed", ("distributed.workers=[4,1]",), ("distributed.workers=[4, 1]", "the fewest")),
    ("distributed", ("distributed.workers=[0,1]",), ("distributed.workers=[0, 1]", "at least 1")),
    (
        "distributed",
        ("distributed.workers=[1,4]", "distributed.launcher=torchrun"),
        ("distributed.workers=[1, 4]", "distributed.launcher=ray"),
    ),
    ("distributed", ("distributed.keep_last=0",), ("distributed.keep_last=0", "at least 1")),
    (
        "distributed",
        ("distributed.keep_best=2",),
        ("distributed.keep_best=2", "Set distributed.best_metric"),
    ),
    (
        "distributed",
        ("distributed.best_metric=test/loss",),
        ("distributed.best_metric=test/loss", "Set distributed.keep_best"),
    ),
    ("federated", ("seed=-1",), ("seed=-1", "at least 0")),
    ("federated", ("device=gpu",), ("device=gpu", "auto, cpu, cuda")),
    ("federated", ("device=cud",), ("device=cud", "Did you mean 'cuda'?")),
    ("federated", ("evaluation_batch_size=0",), ("evaluation_batch_size=0", "at least 1")),
    ("federated", ("optimizer.lr=0",), ("optimizer.lr=0", "greater than 0")),
    ("federated", ("optimizer.lr=-0.1",), ("optimizer.lr=-0.1", "greater than 0")),
    ("federated", ("optimizer.lr=nan",), ("optimizer.lr=nan", "finite")),
    ("federated", ("optimizer.lr=inf",), ("optimizer.lr=inf", "finite")),
    ("federated", ("optimizer.weight_decay=-1",), ("optimizer.weight_decay=-1", "at least 0")),
    ("federated", ("optimizer.momentum=1.5",), ("optimizer.momentum=1.5", "[0, 1]")),
    ("federated", ("optimizer.nesterov=true",), ("optimizer.nesterov", "Set optimizer.momentum")),
    (
        "federated",
        ("optimizer=adam", "optimizer.betas=[0.9,1.0]"),
        ("optimizer.betas=[0.9, 1.0]", "two numbers in [0, 1)"),
    ),
    (
        "federated",
        ("optimizer=adam", "optimizer.betas=[0.9,0.99,0.999]"),
        ("optimizer.betas=[0.9, 0.99, 0.999]", "two numbers"),
    ),
    ("federated", ("optimizer=adamw", "optimizer.eps=0"), ("optimizer.eps=0", "greater than 0")),
    ("federated", ("data.validation_fraction=1",), ("data.validation_fraction=1", "[0, 1)")),
    ("federated", ("target.metric=test/accuracy",), ("target.metric", "Set target.value")),
    ("federated", ("target.value=0.9",), ("target.value", "Set target.metric")),
    ("federated", ("model.name=cnn",), ("model.name=cnn", "Set model=cnn")),
    ("federated", ("model.name=cn",), ("model.name=cn", "Did you mean 'cnn'?")),
    (
        "federated",
        ("federated.strategy.name=krum",),
        ("federated.strategy.name=krum", "Set federated/strategy=krum"),
    ),
    ("federated", ("+optimizer.momentun=1",), ("optimizer.momentun=1", "'optimizer.momentum'")),
    ("federated", ("+federated.roundz=1",), ("federated.roundz=1", "'federated.rounds'")),
    ("federated", ("federated.rounds=0",), ("federated.rounds=0", "at least 1")),
    ("federated", ("federated.batch_size=0",), ("federated.batch_size=0", "at least 1")),
    ("federated", ("federated.quorum=0",), ("federated.quorum=0", "(0, 1]")),
    ("federated", ("federated.quorum=1.1",), ("federated.quorum=1.1", "(0, 1]")),
    ("federated", ("federated.holdout_fraction=1",), ("federated.holdout_fraction=1", "[0, 1)")),
    (
        "federated",
        ("federated.evaluate_clients=5",),
        ("federated.evaluate_clients=5 has no effect", "Set federated.holdout_fraction"),
    ),
    (
        "federated",
        (
            "federated.holdout_fraction=0.2",
            "federated.evaluate_clients=5",
            "federated.evaluate_fraction=0.5",
        ),
        ("federated.evaluate_clients=5", "federated.evaluate_fraction=0.5", "Set one to null"),
    ),
    (
        "federated",
        ("federated.holdout_fraction=0.2", "federated.evaluate_fraction=0"),
        ("federated.evaluate_fraction=0", "(0, 1]"),
    ),
    (
        "federated",
        (
            "federated.holdout_fraction=0.2",
            "federated.evaluate_every=2",
            "federated.client_rows_every=3",
        ),
        ("client_rows_every=3", "evaluate_every=2", "Set federated.client_rows_every=4"),
    ),
    ("federated", ("federated.pool=rays",), ("federated.pool=rays", "Did you mean 'ray'?")),
    (
        "federated",
        ("federated.client_training=parallel",),
        ("federated.client_training=parallel", "sequential", "batched"),
    ),
    ("federated", ("federated.reduce=all",), ("federated.reduce=all", "auto, worker, none")),
    (
        "federated",
        ("federated.workers=2",),
        ("federated.workers=2", "Set federated.pool=ray or federated.workers=1"),
    ),
    (
        "federated",
        ("federated.clients_per_round=11",),
        ("federated.clients_per_round=11", "10 clients", "Lower the one or raise the other"),
    ),
    (
        "federated",
        ("federated.partition.clients=4",),
        ("federated.clients_per_round=10", "4 clients", "federated.partition.clients"),
    ),
    ("federated", ("federated.partition.clients=0",), ("federated.partition.clients=0", "least 1")),
    (
        "federated",
        ("federated.partition.clients=null",),
        ("federated.partition.clients", "Set it to the number of clients"),
    ),
    ("federated", ("federated.clip_update_norm=0",), ("clip_update_norm=0", "greater than 0")),
    ("federated", ("federated.partition.alpha=0",), ("federated.partition.alpha=0", "than 0")),
    ("federated", ("federated.partition.min_size=0",), ("partition.min_size=0", "at least 1")),
    (
        "federated",
        ("federated/partition=shards", "federated.partition.shards_per_client=0"),
        ("federated.partition.shards_per_client=0", "at least 1"),
    ),
    (
        "federated",
        ("federated/strategy=fedprox", "federated.strategy.proximal_mu=-1"),
        ("federated.strategy.proximal_mu=-1", "at least 0"),
    ),
    (
        "federated",
        ("federated/strategy=fedadam", "federated.strategy.eta=0"),
        ("federated.strategy.eta=0", "greater than 0"),
    ),
    (
        "federated",
        ("federated/strategy=fedyogi", "federated.strategy.beta_2=1"),
        ("federated.strategy.beta_2=1", "[0, 1)"),
    ),
    (
        "federated",
        ("federated/strategy=fedavgm", "federated.strategy.server_momentum=nan"),
        ("federated.strategy.server_momentum=nan", "finite"),
    ),
    ("distributed", ("distributed.epochs=0",), ("distributed.epochs=0", "at least 1")),
    ("distributed", ("distributed.workers=0",), ("distributed.workers=0", "at least 1")),
    ("distributed", ("distributed.max_failures=-1",), ("max_failures=-1", "at least 0")),
    ("distributed", ("distributed.cpus_per_worker=0",), ("cpus_per_worker=0", "at least 1")),
    (
        "distributed",
        ("distributed.launcher=tourchrun",),
        ("distributed.launcher=tourchrun", "Did you mean 'torchrun'?"),
    ),
    (
        "distributed",
        ("distributed.launcher=inline",),
        ("distributed.workers=2", "Set distributed.workers=1 or distributed.launcher=ray"),
    ),
    (
        "distributed",
        ("distributed.batch_size=1",),
        ("distributed.batch_size=1", "distributed.workers=2", "Raise the batch size"),
    ),
    (
        "distributed",
        ("distributed.accumulation_steps=5",),
        (
            "distributed.accumulation_steps=5",
            "batch_size=32",
            "Set distributed.accumulation_steps=4",
        ),
    ),
    (
        "distributed",
        ("distributed.accumulation_steps=32",),
        (
            "distributed.accumulation_steps=32",
            "16 examples",
            "Set distributed.accumulation_steps=16",
        ),
    ),
    ("distributed", ("distributed.lr_schedule=cosin",), ("lr_schedule=cosin", "'cosine'")),
    ("distributed", ("distributed.lr_warmup_steps=-1",), ("lr_warmup_steps=-1", "at least 0")),
    ("distributed", ("distributed.lr_schedule=step",), ("Set it", "distributed.lr_decay_steps")),
    ("distributed", ("distributed.lr_decay_steps=5",), ("Set distributed.lr_schedule=step",)),
    (
        "distributed",
        ("distributed.lr_horizon=5",),
        ("distributed.lr_horizon=5", "no effect", "distributed.lr_schedule=constant"),
    ),
    (
        "distributed",
        ("distributed.lr_horizon=0", "distributed.lr_schedule=linear"),
        ("distributed.lr_horizon=0", "at least 1"),
    ),
    ("distributed", ("distributed.lr_decay_factor=0",), ("lr_decay_factor=0", "(0, 1]")),
    (
        "distributed",
        ("distributed.lr_schedule=one_cycle", "distributed.lr_warmup_steps=3"),
        ("distributed.lr_warmup_steps=3", "one_cycle", "Set distributed.lr_warmup_steps=0"),
    ),
    ("federated", ("loss.label_smoothing=1",), ("loss.label_smoothing=1", "[0, 1)")),
    ("federated", ("loss.l1=-1",), ("loss.l1=-1", "at least 0")),
    ("federated", ("loss.l2=-1",), ("loss.l2=-1", "at least 0")),
    ("distributed", ("distributed.mixup=-1",), ("distributed.mixup=-1", "at least 0")),
    ("distributed", ("distributed.ema_decay=1",), ("distributed.ema_decay=1", "[0, 1)")),
    ("distributed", ("distributed.precision=fp8",), ("distributed.precision=fp8", "fp32, bf16")),
    (
        "distributed",
        ("optimizer=adafactor", "optimizer.beta2_decay=0.5"),
        ("optimizer.beta2_decay=0.5", "at most 0"),
    ),
    (
        "distributed",
        ("distributed.early_stopping.patience=0",),
        ("distributed.early_stopping.patience=0", "at least 1"),
    ),
    (
        "distributed",
        ("distributed.early_stopping.mode=maximum",),
        ("distributed.early_stopping.mode=maximum", "Did you mean 'max'?"),
    ),
    ("distributed", ("distributed.strategy=fdsp",), ("strategy=fdsp", "Did you mean 'fsdp'?")),
    (
        "distributed",
        ("distributed.strategy=fsdp", "distributed.launcher=inline", "distributed.workers=1"),
        ("distributed.strategy=fsdp", "distributed.workers=1", "Set distributed.workers=2"),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.ema_decay=0.9"),
        ("distributed.ema_decay=0.9 yet", "Set it to null"),
    ),
    (
        "distributed",
        ("distributed.strategy=fsdp", "optimizer=adafactor"),
        ("optimizer=adafactor yet", "Set optimizer=adamw"),
    ),
    (
        "federated",
        ("federated.lanes=2", "federated.client_timeout=5.0"),
        ("federated.lanes=2", "federated.client_timeout=5", "Set federated.lanes=1"),
    ),
    (
        "distributed",
        ("distributed.sharded_checkpoints=true",),
        ("distributed.sharded_checkpoints=true", "Set distributed.strategy=fsdp"),
    ),
    (
        "distributed",
        ("distributed.mesh.replicate=2", "distributed.workers=4"),
        ("distributed.mesh={replicate: 2}", "strategy=ddp", "Set distributed.strategy=fsdp"),
    ),
    (
        "distributed",
        (*_FSDP, "distributed.mesh={replicate: 2, shard: 2}", "distributed.workers=6"),
        ("distributed.mesh={replicate: 2, shard: 2} is a mesh of 4", "Set distributed.workers=4"),
    ),
    (
        "distributed",
        (*_FSDP, "distributed.mesh.replicate=3", "distributed.workers=4"),
        ("distributed.mesh={replicate: 3}", "distributed.workers=4", "distributed.workers=6"),
    ),
    (
        "distributed",
        (*_FSDP, "distributed.mesh.replicate=2", "distributed.workers=2"),
        ("distributed.mesh={replicate: 2}", "whole weights", "Set distributed.strategy=ddp"),
    ),
    (
        "distributed",
        ("distributed.strategy=fsdp", "distributed.mesh.replicate=2", "distributed.workers=[2,4]"),
        ("distributed.mesh={replicate: 2}", "[2, 4]", "Set distributed.workers=4"),
    ),
    (
        "distributed",
        (*_FSDP, "distributed.mesh.shard=0"),
        ("distributed.mesh.shard=0 must be at least 1",),
    ),
    (
        "distributed",
        ("distributed.diloco.local_steps=8",),
        ("distributed.diloco.local_steps=8", "strategy=ddp", "Set distributed.strategy=diloco"),
    ),
    (
        "distributed",
        ("distributed.strategy=local_sgd", "distributed.diloco.lr=0.5"),
        ("distributed.diloco.lr=0.5", "strategy=local_sgd", "Set distributed.strategy=diloco"),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.diloco.local_steps=0"),
        ("distributed.diloco.local_steps=0 must be at least 1",),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.diloco.exchange=int4"),
        ("distributed.diloco.exchange=int4", "Did you mean 'int8'?"),
    ),
    (
        "distributed",
        ("distributed.strategy=diloco", "distributed.diloco.momentum=0.0"),
        ("distributed.diloco.nesterov=true", "Set distributed.diloco.momentum"),
    ),
    (
        "distributed",
        ("distributed.strategy=local_sgd", "distributed.precision=fp16"),
        ("local_sgd does not support distributed.precision=fp16 yet", "distributed.precision=bf16"),
    ),
]


@pytest.mark.parametrize(
    ("mode", "overrides", "named"), REFUSED, ids=[" ".join(row[1]) for row in REFUSED]
)
def test_bad_values_are_refused_with_key_value_and_remedy(
    mode: Mode, overrides: tuple[str, ...], named: tuple[str, ...]
) -> None:
    # Groups through Hydra, values set afterwards: to compose anew for each takes 0.1 s.
    cfg = copy.deepcopy(composed(*(part for part in overrides if "." not in part.split("=")[0])))
    OmegaConf.set_readonly(cfg, False)
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if "." in key:
            OmegaConf.update(cfg, key, yaml.safe_load(value), force_add=override[0] == "+")
    with pytest.raises(ConfigError) as caught:
        config.load(cfg, mode)
    for part in named:
        assert part in str(caught.value)


def test_the_other_mode_is_not_checked() -> None:
    compose("distributed", "federated.rounds=0")
    compose("federated", "distributed.epochs=0")


@pytest.mark.parametrize(
    ("mode", "override"),
    [
        ("federated", "optimizer.momentum=0"),
        ("federated", "federated.quorum=1"),
        ("federated", "federated.batch_size=null"),
        ("federated", "federated.clients_per_round=10"),
        ("federated", "data.validation_fraction=0"),
        ("distributed", "distributed.batch_size=2"),
        ("distributed", "distributed.max_failures=0"),
    ],
)
def test_values_on_the_edge_are_taken(mode: Mode, override: str) -> None:
    compose(mode, override)
