"""Which weights of a model belong to one client alone, and never leave it."""

from __future__ import annotations

from torch import Tensor, nn

from heliotrope.errors import ConfigError

__all__ = ["personal_names"]


def personal_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names in `state_dict()` that begin as one of `model.personal`; else none.

    Raises
    ------
    ConfigError
        If `personal` is no tuple of text, one of it is the beginning of no weight, or a personal
        weight has another name too, by which it would be sent.
    """
    name = type(model).__name__
    given = getattr(model, "personal", ())
    beginnings = tuple(given) if isinstance(given, tuple | list) else (given,)
    if isinstance(given, str) or not all(isinstance(one, str) and one for one in beginnings):
        raise ConfigError(
            f"{name}.personal={given!r} must be the beginnings of names, such as "
            "personal = ('user.',). Write it as a tuple."
        )
    if not beginnings:
        return ()  # whatever its state is
    state = model.state_dict()
    for beginning in beginnings:
        if not any(weight.startswith(beginning) for weight in state):
            raise ConfigError(
                f"{name} has personal={beginning!r}, but no weight whose name begins so: all would "
                f"be sent. Its weights are {', '.join(state)}."
            )
    found = tuple(weight for weight in state if weight.startswith(beginnings))
    owned = {_memory(state[weight]): weight for weight in found if state[weight].numel()}
    for other in state.keys() - set(found):
        if state[other].numel() and (weight := owned.get(_memory(state[other]))) is not None:
            beginning = next(one for one in beginnings if weight.startswith(one))
            raise ConfigError(
                f"{name} has personal={beginning!r}, but {weight} shares its memory with {other}, "
                "which would be sent. Name both in personal, or do not tie them."
            )
    return found


def _memory(weight: Tensor) -> int:
    return weight.untyped_storage().data_ptr()
