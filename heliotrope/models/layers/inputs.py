"""Which of our models take what a task gives, for advice where another one does not."""

from __future__ import annotations

from heliotrope.tasks import Task

__all__ = ["other_model"]

_TEXT = ("tokens", "tokens_length")
_TAKING = {
    _TEXT: ("embedding_bag", "gru"),
    ("tokens",): ("char_lstm", "gpt"),
    ("user", "item"): ("matrix_factorization",),
    ("image", *_TEXT): ("two_towers",),
}


def other_model(task: Task) -> str:
    """Return what to set so that a model takes the inputs of `task`."""
    names = _TAKING.get(task.inputs, ())
    columns = (task.facts.example[name] for name in task.inputs if name != "category")
    if not names and all(value.is_floating_point() for value in columns):
        names = ("mlp", "logistic")
    if not names:
        return f"Bring one that reads {', '.join(task.inputs)} (docs/extend.md), or other data."
    return f"Set {' or '.join(f'model={name}' for name in names)}."
