"""pfl-research: FederatedAveraging on its SimulatedBackend, as its own benchmarks use it.

`--variant threads=T` sets the threads of torch; with `threads=T,private` clients count alike, are
clipped and get Gaussian noise. Under `torchrun`, pfl divides each cohort among
the processes by itself.
"""

from __future__ import annotations

import random
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops.selector import get_framework_module
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from problem import CLIP, NOISE, Problem, arguments, mean_loss, read, report
from torch import Tensor, nn


class Trainable(nn.Module):
    """The model with the two methods that pfl asks for."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.layers = problem.module()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return mean_loss(self.layers(inputs), targets)

    @torch.no_grad()
    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Weighted]:
        """Return the metrics of a user; not called in the timed rounds."""
        return {"loss": Weighted(float(self.loss(inputs, targets)) * len(targets), len(targets))}


class Clock(TrainingProcessCallback):
    """Notes when training begins and when each round ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        del model
        self.times.append(time.time())
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        del aggregate_metrics, model, central_iteration
        self.times.append(time.time())
        return False, Metrics()


def main() -> None:
    """Train, and print the times."""
    options = arguments(__doc__)
    problem = read(options.problem)
    threads, _, private = options.variant.removeprefix("threads=").partition(",")
    torch.set_num_threads(int(threads))
    postprocessors = [WeightByDatapoints()]
    if private:
        mechanism = CentrallyAppliedPrivacyMechanism(GaussianMechanism(CLIP, NOISE))
        postprocessors = [WeightByUser(), mechanism]
    random.seed(problem.seed)
    np.random.seed(problem.seed)  # noqa: NPY002 - what pfl draws its cohorts from

    users = {
        str(client): (problem.inputs[problem.rows(client)], problem.targets[problem.rows(client)])
        for client in range(problem.clients)
    }
    sizes = {user: len(targets) for user, (_, targets) in users.items()}
    data = FederatedDataset(
        make_dataset_fn=lambda user: PyTorchTensorDataset(users[user], user_id=user),
        user_sampler=get_user_sampler("minimize_reuse", list(users)),
        # Sorting costs a process of its own, for nothing if all are equal.
        user_id_to_weight=sizes if len(set(sizes.values())) > 1 else None,
    )
    module = Trainable(problem)
    model = PyTorchModel(
        model=module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=options.rounds,
            evaluation_frequency=options.rounds + 1,  # only in the first round, not timed
            train_cohort_size=problem.clients_per_round,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=postprocessors),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=problem.local_epochs,
            local_learning_rate=problem.lr,
            local_batch_size=problem.batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
    )
    if get_framework_module().distributed.global_rank == 0:
        report(options, clock.times, dict(module.layers.named_parameters()), ("pfl",))


if __name__ == "__main__":
    sys.exit(main())
