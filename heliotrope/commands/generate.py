"""`generate`: a run that was trained on the next character continues a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heliotrope import config
from heliotrope.commands.arguments import keys_and_values
from heliotrope.commands.output import standard_output
from heliotrope.commands.trained import Trained, read_checkpoint, read_config
from heliotrope.data.columns import Pieces, Raw
from heliotrope.data.info import UNKNOWN
from heliotrope.data.preparation import Preparation
from heliotrope.data.preparation.text import FittedCharacters
from heliotrope.errors import ConfigError
from heliotrope.seeding import numpy_generator
from heliotrope.system.console import plain_console
from heliotrope.tasks import Task

__all__ = ["continued", "generate_command"]

_KEYS = ("run", "prompt", "length", "temperature", "seed", "checkpoint", "plugins")
_NEEDED = {"run": "DIR, the directory of a run", "prompt": "TEXT, what is to be continued"}
_SPECIAL = UNKNOWN + 1  # tokens before the first character


def generate_command(arguments: Sequence[str]) -> None:
    """`run=DIR prompt=TEXT [key=value ...]`: print the text, and how a run continues it.

    Keys::

        length=200                 characters that are added
        temperature=0.8            0 always takes the likeliest
        seed=0                     of the draws
        checkpoint=NAME            a folder of DIR/checkpoints instead of the newest one
        plugins=[mine.py]          code that the run needs, if it was never named here
    """
    config.load_plugins(arguments)
    given = keys_and_values(arguments, "generate", _KEYS, _NEEDED)
    prompt = given["prompt"]
    if not prompt:
        raise ConfigError("prompt= is empty. Give at least one character to be continued.")
    length = _whole("length", given.get("length", "200"), 1)
    seed = _whole("seed", given.get("seed", "0"), 0)
    temperature = _temperature(given.get("temperature", "0.8"))
    directory = Path(given["run"])
    run = read_config(directory)
    trained = Trained(directory, run, *read_checkpoint(directory, given.get("checkpoint")))
    characters = _characters(trained.preparation, directory)
    window = int(getattr(run.data, "length", len(prompt) + length))
    blanks = Pieces(np.full(window + 1, ord(" "), dtype=np.uint32), *np.array([[0], [window]]))
    model, task = trained.model_for(
        trained.preparation.apply(Raw({characters.column: blanks}, origin="the prompt"))
    )
    tokens = characters.numbers(np.array([ord(letter) for letter in prompt], dtype=np.uint32))
    unknown = int((tokens == UNKNOWN).sum())
    if unknown:
        plain_console(stderr=True).print(
            f"{unknown:,} of {len(prompt):,} characters of the prompt do not occur in training"
        )
    draws = numpy_generator(seed, "generate").random(length)
    found = continued(model, task, tokens, draws, temperature, window)
    with standard_output() as output:
        output.write(prompt)
        for token in found:
            output.write(characters.characters[token - _SPECIAL])
            output.flush()  # who reads sees it as it comes
        output.write("\n")


def continued(
    model: nn.Module,
    task: Task,
    tokens: NDArray[np.int32],
    draws: NDArray[np.float64],
    temperature: float,
    window: int,
) -> Iterator[int]:
    """Yield the tokens that follow `tokens`, one for each of `draws`.

    Each is the one where the distribution function of softmax(logits / temperature), summed in
    the order of the tokens in float64, exceeds its draw; of temperature 0, the likeliest. The
    model is given the last `window` tokens, as many as in training. Padding and the unknown are
    never drawn.

    Parameters
    ----------
    model, task
        In evaluation mode; of the next token.
    tokens
        [L], at least one.
    draws
        [N] in [0, 1).
    temperature
        At least 0; 1 takes the model's own distribution.
    window
        The most tokens that the model is given.
    """
    device = next(model.parameters()).device
    text = torch.from_numpy(tokens).to(device, torch.int64)[-window:]
    for draw in draws.tolist():
        batch = {"tokens": text[None], "tokens_length": torch.tensor([len(text)], device=device)}
        with torch.inference_mode():
            logits = task.call(model, batch)[0, -1].double()[_SPECIAL:]
        if temperature:
            below = logits - logits.max()  # of a tiny temperature, logits overflow
            sums = (below / temperature).softmax(dim=0).cumsum(dim=0)
            index = min(int((sums <= draw * sums[-1]).sum()), len(logits) - 1)
        else:
            index = int(logits.argmax())
        token = index + _SPECIAL
        yield token
        text = torch.cat([text, text.new_tensor([token])])[-window:]


def _characters(preparation: Preparation, directory: Path) -> FittedCharacters:
    """Return the characters that the run knows; raises `ConfigError` if it knows none."""
    for step in preparation.steps:
        if isinstance(step, FittedCharacters) and preparation.task == "next_token":
            return step
    raise ConfigError(
        f"run={directory} was trained for {preparation.task}, not to continue texts. Name a run of "
        "data=shakespeare, say, or type heliotrope predict."
    )


def _whole(key: str, value: str, least: int) -> int:
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"{key}={value} must be a whole number of at least {least}.")
    return int(value)


def _temperature(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(f"temperature={value} must be a number of at least 0, such as 0.8.")
    return found
