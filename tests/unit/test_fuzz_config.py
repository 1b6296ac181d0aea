"""Whatever a command line or a file of YAML holds: a configuration, or a `ConfigError`."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from heliotrope.commands.overrides import checked, prepared
from heliotrope.config import from_yaml
from heliotrope.config.keys import known_keys
from heliotrope.config.written import refuse_blown_up
from heliotrope.errors import ConfigError
from tests.fuzzing import examples
from tests.support import compose

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["${seed}", "${oc.env:HOME}", "???", "sgd", "cnn", "-1", "1e3"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=10,
)


@cache
def good() -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(compose("federated")))


KEYS = st.sampled_from(sorted(known_keys()))


@examples(25)
@given(st.dictionaries(KEYS | st.text(max_size=8), JSON, min_size=1, max_size=3))
def test_configs_of_runs_with_any_values(changed: dict[str, Any]) -> None:
    values = yaml.safe_load(good())
    for key, value in changed.items():
        *parents, last = key.replace("/", ".").split(".")
        node: Any = values
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = value
    with contextlib.suppress(ConfigError):
        from_yaml(yaml.safe_dump(values))


@examples(150)
@given(st.text(max_size=60) | st.text("{}[]:,&*!|>-? \n#'\"ab1%@`~", max_size=60))
def test_texts_that_are_no_configs(text: str) -> None:
    with contextlib.suppress(ConfigError, yaml.YAMLError):
        refuse_blown_up(text, "a file")
    try:
        from_yaml(text)
    except ConfigError:
        return
    raise AssertionError(f"{text!r} is the config of a run?")


@examples(60)
@given(st.data())
def test_damaged_configs_of_runs(data: st.DataObject) -> None:
    text = good()
    at = data.draw(st.integers(0, len(text) - 1))
    damage = data.draw(st.sampled_from(["cut", "change", "repeat"]))
    if damage == "cut":
        text = text[:at]
    elif damage == "change":
        text = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    else:
        text = text[:at] + text[at : at + 50] + text[at:]
    with contextlib.suppress(ConfigError):
        from_yaml(text)


SIGNS = [*"=,[]{}()~+:@/.* \\'", '"', "++", "${", "1", "-1", "nan", "null", "true", "-m", "--cfg"]
WORDS = ["choice", "range", "glob", "sort", "seed", "model", "optimizer.lr", "hydra.run.dir"]
PARTS = st.sampled_from([*SIGNS, *WORDS, "plugins", "experiment"])


@examples(200)
@given(st.lists(st.lists(PARTS | st.text(max_size=3), max_size=8).map("".join), max_size=3))
def test_overrides_of_any_signs(overrides: list[str]) -> None:
    for sweeping in (False, True):
        with contextlib.suppress(ConfigError):
            checked(overrides, sweeping=sweeping)
    with contextlib.suppress(ConfigError, SystemExit):  # --help and --version end the command
        prepared(overrides)


@examples(100)
@given(KEYS, st.text(max_size=12) | JSON.map(str))
def test_values_of_any_signs(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        checked([f"{key}={value}"])
