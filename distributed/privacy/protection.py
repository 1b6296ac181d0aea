"""One rank's part in a run with DP-SGD: rank 0 keeps the ledger, all add the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heliotrope.config import Run
from heliotrope.data import Dataset
from heliotrope.privacy.ledger import Release, salted
from heliotrope.training.noisy_steps import step_noise

from ..communication.process_group import sum_over_ranks
from ..topology import Topology
from .account import Account, stamp_of
from .names import privacy_of

__all__ = ["Protection", "protected"]


def protected(
    run: Run, dataset: Dataset, topology: Topology, device: torch.device, path: Path
) -> Protection | None:
    """Return the protection that the configuration asks for, whose ledger is at `path`."""
    if privacy_of(run.distributed) is None:
        return None
    examples, content = len(dataset.train), dataset.content
    return Protection(run, examples, topology, device, path, content, dataset.releases)


class Protection:
    """Charges epochs, and draws the noise of a step's sum.

    The process group must have been joined; `begin` is to be called before the first step.
    """

    def __init__(
        self,
        run: Run,
        examples: int,
        topology: Topology,
        device: torch.device,
        path: Path,
        content: str | None = None,
        releases: Sequence[Release] = (),
    ) -> None:
        privacy = privacy_of(run.distributed)
        assert privacy is not None
        self.clip = privacy.clip
        self.expected = min(run.distributed.batch_size, examples)
        self.last_epoch = run.distributed.epochs
        """The last epoch within the budget."""
        self._topology, self._device = topology, device
        self._stamp = stamp_of(run, content)
        self._noise = 0.0
        self._account: Account | None = None
        if topology.rank == 0:
            self._account = Account(
                privacy, run, examples, path, content=content, releases=releases
            )

    def begin(self, epoch: int) -> None:
        """Learn from rank 0 the noise, its salt, and the last epoch after `epoch` done ones."""
        mine = torch.zeros(3, dtype=torch.float64)
        if self._account is not None:
            account = self._account
            noise, last = account.mechanism.noise_multiplier, account.last_epoch(epoch)
            mine = torch.tensor([noise, last, account.salt], dtype=torch.float64)
        noise, last, salt = sum_over_ranks(mine, self._topology, self._device).tolist()
        self._noise, self.last_epoch = noise, int(last)
        self._stamp = salted(self._stamp, int(salt))

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise on a step's sum, in clips, once `begin` was called."""
        return self._noise

    def stream(self) -> tuple[str, str]:
        """Return what tells the run's noise and draws from those of others with its seed.

        Steps are composed as of examples drawn anew: the same ones with other noise, as in
        another trial, would tell more than is charged for.
        """
        assert self._noise > 0, "begin was not called"
        return self._stamp, repr(self._noise)

    def charge(self, epoch: int) -> None:
        """Charge an epoch, counted from 1, before its first step."""
        if self._account is not None:
            self._account.charge(epoch)

    def noise(self, step_seed: int, count: int) -> Tensor:
        """Return the noise on a step's sum of gradients, float32 [count], the same on all ranks.

        `step_seed` is the seed of the step's batch, which follows from the run's and the step.
        """
        assert self._noise > 0, "begin was not called"
        return step_noise(step_seed, self._stamp, count, self._noise * self.clip)

    def told(self, epoch: int) -> dict[str, float]:
        """Return what rank 0's event of an epoch says."""
        return {} if self._account is None else {"privacy/epsilon_rdp": self._account.bound(epoch)}

    def saved(self) -> dict[str, Any] | None:
        """Return what rank 0's checkpoint keeps."""
        return None if self._account is None else self._account.saved()

    def close(self) -> None:
        """Close the ledger."""
        if self._account is not None:
            self._account.close()
