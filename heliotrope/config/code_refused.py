"""What a configuration may not do: call code, or read the environment into what is written down.

Files of experiments are passed on, and so is a run's config.yaml. Hydra would call what
`hydra.callbacks`, handlers of its logging and `_target_` name, set variables that make other
processes load code, import packages to search them for files, and read any environment variable
by `${oc.env:NAME}`. None of these is needed here: code comes in by `plugins=` alone, and by what an
installed package configures for a choice of Hydra's that is typed, such as `hydra/sweeper=optuna`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl  # not public: comes before all else
from omegaconf import DictConfig, OmegaConf

from heliotrope.config.hydra_choices import HydraChoices
from heliotrope.config.written import leaves
from heliotrope.errors import ConfigError

__all__ = ["refuse_code", "refusing_code"]

_OF_HYDRA = "hydra._internal.core_plugins."
_INSTANTIATED = ("hydra.launcher", "hydra.sweeper")
_OF_LOGGING = ("logging.StreamHandler", "logging.FileHandler", "logging.Formatter")
_STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
_LOGGING = ("hydra.job_logging", "hydra.hydra_logging")
_LOG_FILES = ("${hydra.runtime.output_dir}/", "hydra-${hydra.job.name}")  # as Hydra's own begin
_PLUGINS = "Code comes in by plugins=[FILE] alone."


@contextmanager
def refusing_code() -> Iterator[None]:
    """Raise `ConfigError` if a configuration that Hydra composes in the block names code.

    Also in place of a variable of the environment. Before Hydra acts on any of it.
    """
    real = ConfigLoaderImpl.load_configuration

    def load(
        self: ConfigLoaderImpl,
        config_name: str | None,
        overrides: list[str],
        *args: Any,
        **kwargs: Any,
    ) -> DictConfig:
        try:
            composed = real(self, config_name, overrides, *args, **kwargs)
        except KeyError as error:
            raise ConfigError(
                f"hydra.job.env_copy names {error}, a variable that is not set. Leave it out."
            ) from error
        typed = HydraChoices(overrides, self.get_search_path(), real)
        refuse_code(composed.get("hydra"), typed)
        return composed

    OmegaConf.clear_resolver("oc.env")
    OmegaConf.register_new_resolver("oc.env", _refuse_variable)
    setattr(ConfigLoaderImpl, "load_configuration", load)  # noqa: B010 - mypy minds the other way
    try:
        yield
    finally:
        setattr(ConfigLoaderImpl, "load_configuration", real)  # noqa: B010


def refuse_code(hydra: Any, typed: HydraChoices) -> None:
    """Raise `ConfigError` naming what in Hydra's own part of a configuration is code."""
    if not isinstance(hydra, DictConfig):
        return
    values: Any = OmegaConf.to_container(hydra, resolve=False)
    if values.get("searchpath"):
        _refuse_search(values["searchpath"])
    job = values.get("job") or {}
    if job.get("env_copy"):
        raise ConfigError(
            f"hydra.job.env_copy={job['env_copy']} would copy variables to other processes, which "
            "have them anyway. Leave it out."
        )
    if job.get("env_set"):
        raise ConfigError(
            f"hydra.job.env_set={job['env_set']} would set variables that make programs load code. "
            "Set them where you type the command."
        )
    if values.get("callbacks"):
        raise ConfigError(f"hydra.callbacks.{next(iter(values['callbacks']))} is code. {_PLUGINS}")
    installed = typed.installed()
    for key, value in leaves(values, "hydra"):
        if (key, value) in installed:
            continue
        last = key.rpartition(".")[2]
        if last == "_target_" and not (
            key.removesuffix("._target_") in _INSTANTIATED and str(value).startswith(_OF_HYDRA)
        ):
            raise ConfigError(f"{key}={value} names code. {_PLUGINS}")
        if key.startswith(_LOGGING):
            _refuse_logging(key, last, value)
    for part in _INSTANTIATED:
        _refuse_arguments(part, values[part.removeprefix("hydra.")], typed)


def _refuse_arguments(part: str, values: Mapping[str, Any], typed: HydraChoices) -> None:
    """Raise `ConfigError` if an installed package is told what was not typed: it may mean code."""
    if str(values.get("_target_")).startswith(_OF_HYDRA):
        return
    for key, value in leaves({n: v for n, v in values.items() if n != "params"}, part):
        if (key, value) not in typed.installed() and not typed.names(key):
            raise ConfigError(
                f"{key}={value} stands in a file, and {values['_target_']} could take it for code. "
                "Type it on the command line."
            )


def _refuse_logging(key: str, last: str, value: object) -> None:
    """Raise `ConfigError` if a value of logging calls code, or writes what could be executed."""
    text = value if isinstance(value, str) else ""
    elsewhere = text.startswith(("ext://", "cfg://")) and text not in _STREAMS
    if elsewhere or (last in ("class", "()", "factory") and value not in _OF_LOGGING):
        raise ConfigError(f"{key}={value} names code. {_PLUGINS}")
    if ".." in key:  # under the name ".", dictConfig sets any attribute of what it has made
        raise ConfigError(f"{key}={value} sets an attribute of an object. Leave it out.")
    if last == "filename" and not text.endswith(".log"):
        raise ConfigError(
            f"{key}={value}: a log is appended to it, whatever it is. Name one that ends in .log."
        )
    if "${" in text and not (last == "filename" and text.startswith(_LOG_FILES)):
        raise ConfigError(
            f"{key}={value} refers to something else, which could be code. Write the value itself."
        )


def _refuse_search(paths: object) -> NoReturn:
    raise ConfigError(
        f"hydra.searchpath={paths} would import packages to search them for files. Name a folder: "
        "--config-dir DIR."
    )


def _refuse_variable(name: str, *_default: object) -> NoReturn:
    raise ConfigError(
        f"${{oc.env:{name}}} would read the environment into a config.yaml that others may see. "
        f'Let the shell fill it in: KEY="${name}".'
    )
