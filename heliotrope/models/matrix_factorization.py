"""Ratings from a vector and a bias of the user, and of what is rated."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heliotrope.models.layers.blocks import check_size
from heliotrope.models.layers.tokens import require_inputs
from heliotrope.tasks import Task

__all__ = ["MatrixFactorization", "matrix_factorization"]

_DEVIATION = 0.1  # of initial vectors


def matrix_factorization(task: Task, *, width: int = 16) -> nn.Module:
    """Biased matrix factorisation, [B, 1]: how far a rating is from the mean, in deviations.

    Source: Koren, Bell and Volinsky (2009), Matrix Factorization Techniques for Recommender
    Systems, equation 4.

    Parameters
    ----------
    width
        Length of the vectors.

    Raises
    ------
    ConfigError
        If the inputs are no users and items, or `width` is less than 1.
    """
    check_size("model.width", width)
    require_inputs(task, "matrix_factorization", ("user", "item"))
    info = task.facts.info
    return MatrixFactorization(info.users, info.items, width)


class MatrixFactorization(nn.Module):
    """The weights of users have names that begin with `user.`, those of items with `item.`.

    Of a model for one user, such as a federated client, `users` is 1: whoever the user of an
    example is, it is the one.
    """

    personal = ("user.",)
    """Beginnings of the names of weights that belong to one user, and not to all."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user = _Side(users, width)
        self.item = _Side(items, width)

    def for_one(self) -> MatrixFactorization:
        """Return a model for one user, with the weights of the items, and the user's drawn anew."""
        model = MatrixFactorization(1, len(self.item.bias.weight), self.item.vector.embedding_dim)
        model.item.load_state_dict(self.item.state_dict())
        return model

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the deviations of the ratings of `item` by `user`, int64 [B] each: [B, 1]."""
        if len(self.user.bias.weight) == 1:
            user = torch.zeros_like(user)
        product = (self.user.vector(user) * self.item.vector(item)).sum(dim=1, keepdim=True)
        deviations: Tensor = product + self.user.bias(user) + self.item.bias(item)
        return deviations


class _Side(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.vector = nn.Embedding(count, width)
        self.bias = nn.Embedding(count, 1)
        nn.init.normal_(self.vector.weight, std=_DEVIATION)
        nn.init.zeros_(self.bias.weight)
