"""What a run with DP-SGD has spent and may spend: its ledger, epoch by epoch.

An epoch's steps are charged as one block, before the first of them: a line of the ledger that must
be on disk costs milliseconds, a step may take less. So a run that ends in the middle of an epoch
has paid for all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.privacy.accountant import Mechanism, RunningBound, Spent, rounds_within
from heliotrope.privacy.charges import ProjectCharges
from heliotrope.privacy.ledger import PLANNED, Ledger, Release, release_stamp, salted
from heliotrope.privacy.project import TRAINING, added
from heliotrope.privacy.told import promise, result
from heliotrope.runs.private_sums import decided_by, settings_of_sums

from .dpsgd import DpSgd

__all__ = ["Account"]


class Account:
    """The ledger of a run, and what follows from it.

    Noise is fixed once for the run: where it is found for a target, the ledger notes it before the
    first step, also for those who go on with the run. To be closed.

    Parameters
    ----------
    privacy
        The keys.
    run, examples
        The run, and its number of training examples.
    path
        Of the ledger.
    saved
        What a checkpoint kept of it, if the file is not trusted to be there.
    content
        A hash of the data.
    releases
        Statistics of the examples that were released to prepare them.
    """

    def __init__(
        self,
        privacy: DpSgd,
        run: Run,
        examples: int,
        path: Path,
        saved: Any = None,
        content: str | None = None,
        releases: Sequence[Release] = (),
    ) -> None:
        cfg = run.distributed
        self._privacy, self._epochs, self._target = privacy, cfg.epochs, privacy.target_epsilon
        self._delta = privacy.delta_for(examples)
        self._steps = -(-examples // cfg.batch_size)
        self._decided = decided_by(run, "distributed")
        self._ledger = Ledger(path)
        self._ledger.restore(saved or {})
        stamp = stamp_of(run, content)
        self.salt = self._ledger.salt(stamp)
        """What makes the stamp of this run, as it goes on, another than that of its settings."""
        self._stamp = salted(stamp, self.salt)
        self._releases = releases
        latest, steps = self._ledger.latest, self._steps * cfg.epochs
        noise = None if latest is None else latest.noise_multiplier
        self.mechanism: Mechanism = privacy.mechanism(
            cfg.batch_size, examples, steps, noise, before=self._statistics
        )
        self._bound: tuple[Spent, RunningBound] | None = None

    def note_plan(self) -> None:
        """Note the noise of the run, before its first step, and charge the statistics."""
        self._ledger.charge(PLANNED, self.mechanism, 0)
        self._ledger.charge_all(self._releases)

    def reserve(self, project: ProjectCharges, epoch: int) -> None:
        """Tell the project what a run that has done `epoch` epochs will have spent in the end."""
        project.reserve(self._planned(epoch), self._statistics)

    def end(self, project: ProjectCharges) -> None:
        """Give back what the project has reserved and will not be used."""
        project.end(self._ledger.without((), purpose=TRAINING), self._ledger.statistics())

    def last_epoch(self, epoch: int) -> int:
        """Return the last epoch within the budget, of a run that has done `epoch` epochs.

        Raises `ConfigError` if not one is, of a run that begins.
        """
        if self._target is None:
            return self._epochs
        left = (self._epochs - epoch) * self._steps
        before = self._spent(epoch)
        within = rounds_within(self.mechanism, left, self._delta, self._target, before)
        last = epoch + within // self._steps
        if not last:
            key, noise = self._privacy.key, self.mechanism.noise_multiplier
            raise ConfigError(
                f"{key}.noise_multiplier={noise:g} spends more in the {self._steps} steps of one "
                f"epoch than {key}.target_epsilon={self._target:g}. Set {key}.noise_multiplier="
                "null for as much noise as that needs."
            )
        return last

    def promise(self, epoch: int) -> str:
        """Return what a user is told before training goes on after `epoch` epochs."""
        last = self.last_epoch(epoch)
        spent = added(self._statistics, self._planned(epoch))
        end = f"epoch {last}" + (
            f" (the budget ends there, before epoch {self._epochs})" if last < self._epochs else ""
        )
        return promise(self._privacy, self.mechanism, spent, self._delta, end)

    def charge(self, epoch: int) -> None:
        """Charge the steps of an epoch, counted from 1, before the first of them."""
        self._ledger.charge(self._name(epoch), self.mechanism, self._steps)
        self._ledger.sync()

    def bound(self, epoch: int) -> float:
        """Return an upper bound on epsilon after an epoch, by RDP."""
        charged = self._spent(epoch)
        others = [(m, count) for m, count in charged if m != self.mechanism]
        if self._bound is None or self._bound[0] != others:
            self._bound = others, RunningBound(self.mechanism, self._delta, others)
        return self._bound[1].after(sum(count for m, count in charged if m == self.mechanism))

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self._ledger.saved()

    def result(self) -> dict[str, Any]:
        """Return what result.json says."""
        told = [*self._privacy.assumptions(), *self._decided]
        spent, statistics = self._ledger.spent, self._ledger.statistics()
        return result(self._privacy, self.mechanism, spent, self._delta, told, statistics)

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()

    @property
    def _statistics(self) -> Spent:
        """What statistics have spent, or will before the first step."""
        return self._ledger.statistics(self._releases)

    def _planned(self, epoch: int) -> Spent:
        """Return what training will have spent in the end, of a run that has done `epoch`."""
        left = (self.last_epoch(epoch) - epoch) * self._steps
        planned = added(self._steps_of(epoch), [(self.mechanism, left)])
        charged = self._ledger.without((), purpose=TRAINING)
        return list((Counter(dict(planned)) | Counter(dict(charged))).items())

    def _spent(self, epoch: int) -> Spent:
        """Return all that is charged but the epochs to come, which are not charged again."""
        return added(self._statistics, self._steps_of(epoch))

    def _steps_of(self, epoch: int) -> Spent:
        """Return what training was charged for up to `epoch`."""
        coming = {self._name(n) for n in range(epoch + 1, self._epochs + 1)}
        return self._ledger.without(coming, purpose=TRAINING)

    def _name(self, epoch: int) -> str:
        return f"epoch {epoch} {self._stamp}"


def stamp_of(run: Run, content: str | None) -> str:
    """Return what a step's noise and charge depend on beside the run's seed.

    `content` is a hash of its data.

    A step that is done again after a crash gives the same sum, to rounding, and may have the same
    noise, if all that sums depend on is as before.
    """
    return release_stamp(settings_of_sums(run, "distributed"), content)
