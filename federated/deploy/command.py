"""`heliotrope deploy`: write, or try out, a federation on real machines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from heliotrope import config
from heliotrope.commands.output import say
from heliotrope.commands.overrides import checked
from heliotrope.config import Run
from heliotrope.config.explain import composing
from heliotrope.config.names import plain_name
from heliotrope.errors import ConfigError, RunDirectoryError, closest
from heliotrope.runs.stamp import new_stamp

from .certificates import address_of
from .deployment import prepare
from .trial import run_trial

__all__ = ["deploy_command"]

_OWN = ("output", "hosts", "nodes")
_TRIAL_NODES = 3


def deploy_command(arguments: Sequence[str]) -> None:
    """`[trial] experiment=E [output=DIR] [hosts=NAME,...] [nodes=N] [key=value ...]`.

    Writes to DIR what SuperLink and SuperNodes need; `trial` starts them all on this machine, of
    which `nodes` (3) are clients, and compares the result with the simulation's.
    """
    trial = bool(arguments) and arguments[0] == "trial"
    if arguments and not trial and "=" not in arguments[0]:
        near = closest(arguments[0], ["trial"])
        raise ConfigError(f"deploy: {arguments[0]} is neither trial nor key=value.{near}")
    own, overrides = _divided(arguments[1:] if trial else arguments)
    nodes = _number(own["nodes"]) if "nodes" in own else _TRIAL_NODES if trial else None
    run, notes = _composed(overrides, nodes)
    for note in notes:
        say(note)
    hosts = [_host(host) for host in own.get("hosts", "").split(",") if host]
    kind = "trial" if trial else "deployment"
    root = own.get("output") or f"runs/{plain_name(run.name)}/{kind}/{new_stamp()}"
    hosts = hosts or ["localhost", "127.0.0.1"]
    try:
        deployment = prepare(run, Path(root), ["127.0.0.1", *hosts] if trial else hosts, nodes)
    except OSError as error:
        raise RunDirectoryError(
            f"output={root}: {error.filename or 'a file'} cannot be written: "
            f"{error.strerror or error}. Make room there and set resume=true, or choose another "
            "folder."
        ) from error
    if trial:
        run_trial(deployment)
    else:
        say(f"{deployment.clients} clients, in {deployment.layout.root}")


def _host(written: str) -> str:
    """Return the name or address of a machine; `[::1]` and `[a,b]` are taken, too."""
    host = written.strip("[] ")
    if (address := address_of(host)) is not None:
        return str(address)
    if re.fullmatch(r"[\w-]+(\.[\w-]+)*", host, re.ASCII):
        return host
    raise ConfigError(
        f"deploy: hosts: {written!r} is no name or address of a machine. Write it without a scheme "
        "and a port, such as hosts=server.example.org."
    )


def _divided(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the command's own keys, and the overrides of the configuration."""
    own: dict[str, str] = {}
    overrides: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in _OWN:
            overrides.append(argument)
        elif not equals or not value:
            raise ConfigError(f"deploy: {key} has no value. Write, without spaces, {key}=VALUE.")
        else:
            own[key] = value
    return own, overrides


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"nodes={text} is no number of nodes. Write nodes={_TRIAL_NODES}.")
    return int(text)


def _composed(overrides: Sequence[str], nodes: int | None) -> tuple[Run, list[str]]:
    """Return the run, with as many clients as `nodes` unless an override says how many."""
    config.register_for(overrides)
    folder = str(config.conf_dir())
    with composing(), initialize_config_dir(config_dir=folder, version_base="1.3"):
        cfg = compose("config", overrides=checked(overrides))
        notes = [] if nodes is None else _with_clients(cfg, nodes, overrides)
        return config.load(cfg, "federated"), notes


def _with_clients(cfg: DictConfig, nodes: int, overrides: Sequence[str]) -> list[str]:
    """Set how many clients there are; return a line for each key that is changed."""
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    wanted = {"federated.partition.clients": nodes}
    cohort = cfg.federated.clients_per_round
    wanted["federated.clients_per_round"] = min(cohort, nodes)
    notes = []
    for key, value in wanted.items():
        section, name = cfg.federated, key.removeprefix("federated.")
        if name.startswith("partition."):
            section, name = section.partition, name.removeprefix("partition.")
        if key not in typed and section[name] not in (None, value):
            notes.append(f"{key}={value}: a client for each node, instead of {section[name]}")
            section[name] = value
    return notes
