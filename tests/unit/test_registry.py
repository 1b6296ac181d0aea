"""One entry a name: its keys come from a signature, its meaning from the docstring."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import get_args

import pytest

import federated.simulation  # noqa: F401 - builders are of the modules that other tests use
from heliotrope import config, registry
from heliotrope.builtin import BUILT_IN, Group
from heliotrope.config import PartitionConfig
from heliotrope.errors import ConfigError
from heliotrope.registry import entry, names
from heliotrope.signatures import REQUIRED, inspected
from tests.support import ROOT

OURS = [(group, name) for group in get_args(Group) for name in BUILT_IN[group]]


@pytest.mark.parametrize(("group", "name"), OURS)
def test_what_is_read_from_the_text_is_what_python_sees(group: Group, name: str) -> None:
    read = entry(group, name)
    given = registry._GIVEN[group]
    seen = inspected(read.builder, given, read.where, name)
    assert read.signature == seen
    assert read.where.endswith(f", line {inspect.getsourcelines(read.builder)[1]}")


@pytest.mark.parametrize(("group", "name"), OURS)
def test_every_choice_of_ours_says_what_it_is_and_what_its_keys_mean(
    group: Group, name: str
) -> None:
    signature = entry(group, name).signature
    assert signature.doc.endswith(".")
    common = {"optimizer": ("lr", "weight_decay")}
    for key in signature.keys:
        assert signature.meanings.get(key) or key in common.get(group, ()), f"{group}={name}: {key}"


def test_the_names_and_keys_of_ours_need_no_torch() -> None:
    code = (
        "import sys; from heliotrope import config; config.register(); "
        "from heliotrope.config.keys import known_keys; assert 'model.channels' in known_keys();"
        "print(sorted({'torch', 'numpy', 'flwr', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def _mine(*, sizes: Sequence[int] = (3, 4), rate: float | None = None, must: str) -> None:
    """Mean of nothing.

    Parameters
    ----------
    sizes : sequence of int
        Of the layers,
        from first to last.
    rate, must
        Two in one.

    Raises
    ------
    ConfigError
        Never.
    """


def test_a_signature_is_a_schema() -> None:
    registry.register("model", "mine", _mine, "mine.py, line 3")
    signature = entry("model", "mine").signature
    keys, meanings = signature.keys, signature.meanings
    assert (keys["sizes"].type, keys["sizes"].default) == (list[int], [3, 4])
    assert meanings["sizes"] == "Of the layers, from first to last."
    assert keys["must"].default is REQUIRED
    assert signature.doc == "Mean of nothing."
    assert meanings["rate"] == meanings["must"] == "Two in one."
    assert meanings.keys() == keys.keys()
    chosen, other = (config.chosen("model", "mine", must="x") for _ in range(2))
    chosen.sizes.append(5)
    assert other.sizes == [3, 4]


def test_a_choice_of_keys_is_copied_and_sent() -> None:
    registry.register("model", "mine", _mine, "mine.py, line 3")
    for chosen in (
        config.chosen("model", "mine", must="x", sizes=[1]),
        config.chosen("federated/strategy", "multikrum", num_nodes_to_select=3),
    ):
        assert pickle.loads(pickle.dumps(chosen)) == chosen  # noqa: S301 - our own
        assert copy.deepcopy(chosen) == chosen
        assert type(copy.copy(chosen)) is type(chosen)


def test_common_keys_keep_their_type_and_take_the_default_of_the_choice() -> None:
    assert issubclass(config.choice_class("federated/partition", "iid"), PartitionConfig)
    assert config.chosen("federated/partition", "iid").clients == 10
    assert config.chosen("federated/partition", "natural").clients is None
    assert config.chosen("optimizer", "adamw").weight_decay == 0.01


def _untyped(*, width=3) -> None: ...  # type: ignore[no-untyped-def]


def _odd(*, width: complex = 3j) -> None: ...


def _any(**keys: int) -> None: ...


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (_untyped, ("parameter width of model=mine has no type", "Write width: int")),
        (_odd, ("parameter width of model=mine has the type complex", "Write int")),
        (_any, ("model=mine takes **keys", "Name its keyword parameters")),
    ],
)
def test_what_is_no_schema_is_refused(target: object, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"mine\.py, line 3") as refused:
        registry.register("model", "mine", target, "mine.py, line 3")  # type: ignore[arg-type]
    for word in words:
        assert word in str(refused.value)
    assert "mine" not in names("model")


def test_a_taken_or_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mine\.py, line 3: there is a strategy=fedavg already"):
        registry.register("strategy", "fedavg", _mine, "mine.py, line 3")
    with pytest.raises(ConfigError, match=r"optimizer=adm is not one of .*Did you mean 'adam'"):
        entry("optimizer", "adm")
