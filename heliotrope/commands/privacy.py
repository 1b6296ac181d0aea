"""`privacy`: what an experiment's protection will spend, and what a target would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hydra import compose, initialize_config_dir
from rich.progress import track
from rich.table import Table

from heliotrope import config, registry
from heliotrope.commands.ledger import show_ledger
from heliotrope.commands.overrides import checked
from heliotrope.commands.silos import PlansSilos, silo_table
from heliotrope.config import Mode, Run
from heliotrope.config.explain import composing
from heliotrope.data import Traits, load, partition
from heliotrope.data.private_fit import statistics_of
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import epsilon, noise_for
from heliotrope.privacy.accounts import Account
from heliotrope.privacy.keys import NoiseKeys
from heliotrope.privacy.mechanisms import GaussianMechanism
from heliotrope.privacy.told import promise
from heliotrope.system.console import plain_console

__all__ = ["Plan", "plan_of", "privacy_command"]

_TARGETS = (1.0, 3.0, 8.0)
_SCALES = ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4))  # of cohort and length, in the table


@dataclass(frozen=True)
class Plan:
    """What a mode of a run releases.

    Parameters
    ----------
    mode
        It.
    keys
        Of its protection.
    mechanism
        Of one release, with a noise multiplier of 1.
    length
        How long the run is, in rounds or epochs.
    releases
        Of each round or epoch: 1, or the steps of an epoch at this batch size.
    before
        What is spent on statistics before training.
    """

    mode: Mode
    keys: NoiseKeys
    mechanism: GaussianMechanism
    length: int
    releases: int
    before: tuple[tuple[GaussianMechanism, int], ...] = ()

    @property
    def unit(self) -> str:
        """What `length` counts."""
        return "round" if self.mode == "federated" else "epoch"

    @property
    def drawn(self) -> str:
        """What a release draws."""
        return "clients a round" if self.mode == "federated" else "examples a batch"

    @property
    def uses(self) -> int:
        """How many releases concern one participant, in the worst case."""
        drawn = self.mechanism
        return self.keys.uses(self.length * self.releases, drawn.cohort, drawn.population)

    def scaled(self, cohort: int, length: int) -> Plan | None:
        """Return the plan with as many times the cohort and the length; None if it is too large."""
        size = self.mechanism.cohort * cohort
        if size > self.mechanism.population:
            return None
        releases = self.releases
        if self.mode == "distributed":
            releases = -(-self.mechanism.population // size)
        mechanism = replace(self.mechanism, cohort=size)
        return replace(self, mechanism=mechanism, length=self.length * length, releases=releases)

    def noise(self, target: float, delta: float) -> float | None:
        """Return the noise multiplier with which the whole run stays within `target`, roughly.

        None if the statistics alone spend that.
        """
        if self.before and epsilon(self.before, delta).value >= target:
            return None
        return noise_for(self.mechanism, self.uses, delta, target, self.before, rough=True)


def plan_of(run: Run, mode: Mode) -> Plan | None:
    """Return what a mode of `run` would release; None if it is not protected, or in each silo.

    The data are loaded, since it counts whom they are of.
    """
    cfg = run.federated if mode == "federated" else run.distributed
    group: registry.Group = "privacy" if mode == "federated" else "record_privacy"
    keys: NoiseKeys | None = registry.entry(group, cfg.privacy.name).build(vars(cfg.privacy))
    if keys is None or isinstance(keys, PlansSilos):
        return None
    train = load(run.data, run.seed, task=run.task_name, fold=run.data_fold).train
    canaries = run.audit.canaries
    if mode == "distributed":
        count = len(train) + canaries
        batch = min(run.distributed.batch_size, count)
        drawn = keys.released(batch, count)
        steps, before = -(-count // batch), tuple(statistics_of(run, keys, count))
        return Plan(mode, keys, drawn, run.distributed.epochs, steps, before)
    clients = len(partition(run.federated.partition, Traits.of(train), run.seed)) + canaries
    drawn = keys.released(run.federated.clients_per_round, clients)
    before = tuple(statistics_of(run, keys, clients))
    return Plan(mode, keys, drawn, run.federated.rounds, 1, before)


def privacy_command(arguments: Sequence[str]) -> None:
    """`[key=value ...]`: print epsilon of the configured run, and the noise that targets take.

    `ledger=FILE [budget=E] [delta=D]`: print what runs with privacy.ledger=FILE have spent.
    """
    if any(argument.partition("=")[0] == "ledger" for argument in arguments):
        show_ledger(arguments)
        return
    modes: tuple[Mode, Mode] = ("federated", "distributed")
    plans = [plan_of(_run_of(arguments, mode), mode) for mode in modes]
    protected = [plan for plan in plans if plan is not None]
    silos = _silos_of(_run_of(arguments, "federated"))
    if not (protected or silos):
        raise ConfigError(
            "Neither mode is protected: set federated/privacy=central, or "
            "distributed/privacy=dpsgd, and federated.privacy.noise_multiplier or the like."
        )
    console = plain_console()
    if silos:
        console.print(silo_table(silos))
    for plan in protected:
        delta = plan.keys.delta_for(plan.mechanism.population)
        mechanism = plan.keys.with_noise(plan.mechanism, plan.uses, None, plan.before)
        end = f"{plan.unit} {plan.length}"
        spent = [*plan.before, (mechanism, plan.uses)]
        line = promise(plan.keys, mechanism, spent, delta, end)
        console.print(f"{plan.mode}: {line}")
        console.print(_table(plan, delta))


def _silos_of(run: Run) -> list[tuple[Account, int]]:
    """Return what each client will have spent, where that is counted by client; else nothing."""
    privacy = run.federated.privacy
    keys = registry.entry("privacy", privacy.name).build(vars(privacy))
    if not isinstance(keys, PlansSilos):
        return []
    return keys.silos(run, load(run.data, run.seed, task=run.task_name, fold=run.data_fold).train)


def _run_of(arguments: Sequence[str], mode: Mode) -> Run:
    config.register_for(arguments)
    folder = str(config.conf_dir())
    with composing(), initialize_config_dir(config_dir=folder, version_base="1.3"):
        return config.load(compose("config", overrides=checked(arguments)), mode)


def _table(plan: Plan, delta: float) -> Table:
    """Return the noise multipliers that reach targets, by cohort and length of the run."""
    targets = sorted({*_TARGETS, *filter(None, [plan.keys.target_epsilon])})
    title = f"noise multiplier for an epsilon, at delta {delta:.3g}"
    table = Table(plan.drawn, f"{plan.unit}s", title=title, title_justify="left")
    for target in targets:
        table.add_column(f"{target:g}", justify="right")
    plans = filter(None, (plan.scaled(*scale) for scale in _SCALES))
    cells = [(scaled, target) for scaled in plans for target in targets]
    found: dict[Plan, list[str]] = {}
    for scaled, target in track(cells, "finding noise", transient=True):
        least = scaled.noise(target, delta)
        found.setdefault(scaled, []).append("none" if least is None else f"{least:.2f}")
    for scaled, noise in found.items():
        table.add_row(f"{scaled.mechanism.cohort:,}", f"{scaled.length:,}", *noise)
    return table
