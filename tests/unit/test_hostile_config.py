"""Configurations that someone else wrote: no code is called, and no secret is read into them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from heliotrope.config import conf_dir, from_resolved, from_yaml, register_for
from heliotrope.config.code_refused import refusing_code
from heliotrope.config.written import refuse_blown_up
from heliotrope.errors import ConfigError
from tests.support import Type, compose

HEADER = "# @package _global_\ndefaults:\n  - quickstart\n"
MARK = "executed"
# what stands in the file of an experiment -> what is said of it
FILES = {
    "callbacks": (
        f"hydra: {{callbacks: {{a: {{_target_: os.mkdir, path: {MARK}}}}}}}",
        "hydra.callbacks.a is code. Code comes in by plugins=[FILE] alone.",
    ),
    "a launcher's argument": (
        f"hydra: {{launcher: {{x: {{_target_: os.mkdir, path: {MARK}}}}}}}",
        "hydra.launcher.x: there is no such key",
    ),
    "another launcher": (
        "hydra: {launcher: {_target_: os.abort}}",
        "hydra.launcher._target_=os.abort names code",
    ),
    "a sweeper": (
        "hydra: {sweeper: {params: {_target_: os.abort}}}",
        "hydra.sweeper.params._target_=os.abort names code",
    ),
    "a handler by its class": (
        f"hydra: {{job_logging: {{handlers: {{a: {{class: os.mkdir, path: {MARK}}}}}}}}}",
        "hydra.job_logging.handlers.a.class=os.mkdir names code",
    ),
    "a handler by a factory": (
        f'hydra: {{hydra_logging: {{handlers: {{a: {{"()": os.mkdir, path: {MARK}}}}}}}}}',
        "hydra.hydra_logging.handlers.a.()=os.mkdir names code",
    ),
    "an object for a handler": (
        "hydra: {job_logging: {handlers: {a: {stream: 'ext://antigravity.x'}}}}",
        "stream=ext://antigravity.x names code",
    ),
    "an object for a handler, by a reference": (
        "name: 'ext://antigravity.x'\nhydra: {job_logging: {handlers: {a: {stream: '${name}'}}}}",
        "hydra.job_logging.handlers.a.stream=${name} refers to something else",
    ),
    "an object for a handler, by logging's own reference": (
        "hydra: {job_logging: {handlers: {a: {stream: 'cfg://handlers.b'}}}}",
        "stream=cfg://handlers.b names code",
    ),
    "all of logging by a reference": (
        "hydra: {job_logging: {handlers: '${hydra.sweeper.params}'}}",
        "hydra.job_logging.handlers=${hydra.sweeper.params} refers to something else",
    ),
    "a log that shells read": (
        "hydra: {job_logging: {handlers: {a: {class: logging.FileHandler, filename: .bashrc}}}}",
        "filename=.bashrc: a log is appended to it, whatever it is",
    ),
    "a log that is renamed": (
        "hydra: {job_logging: {handlers: {a: {'.': {baseFilename: .bashrc}}}}}",
        "baseFilename=.bashrc sets an attribute of an object",
    ),
    "variables for other processes": (
        "hydra: {job: {env_set: {LD_PRELOAD: /tmp/evil.so}}}",
        "hydra.job.env_set={'LD_PRELOAD'",
    ),
    "variables copied into the configuration": (
        "hydra: {job: {env_copy: [A_SECRET]}}",
        "hydra.job.env_copy=['A_SECRET']",
    ),
    "variables to copy that are not set": (
        "hydra: {job: {env_copy: [NO_SUCH_VARIABLE]}}",
        "NO_SUCH_VARIABLE",
    ),
    "packages to search": ("hydra: {searchpath: ['pkg://antigravity']}", "searchpath"),
    "a target of our own keys": (
        f"model: {{_target_: os.mkdir, path: {MARK}}}",
        "model._target_: there is no such key",
    ),
    "a target beside our keys": (
        f"x: {{_target_: os.mkdir, path: {MARK}}}",
        "x: there is no such key",
    ),
    "a variable of the environment": ("name: ${oc.env:A_SECRET}", "${oc.env:A_SECRET} would read"),
    "a variable with a default": ("name: ${oc.env:A_SECRET,x}", "${oc.env:A_SECRET} would read"),
    "a resolver that there is not": ("name: ${run:ls}", "run"),
    "a Python object": (
        f"name: !!python/object/apply:os.mkdir [{MARK}]",
        "constructor for the tag",
    ),
    "a Python name": ("name: !!python/name:os.system", "constructor for the tag"),
    "anchors that blow up": (
        "a0: &a0 [x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
        "by anchors (&) that it repeats",
    ),
    "an anchor in itself": ("metrics: &a [*a]", "nests too deeply"),
    "deep nesting": (f"metrics: {'[' * 5000}{']' * 5000}", "nests too deeply"),
}


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")], ids=["run", "sweep"])
def test_an_experiment_of_someone_else_runs_no_code_and_reads_no_secret(
    kind: str, sweep: tuple[str, ...], type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = FILES[kind]
    Path("theirs.yaml").write_text(f"{HEADER}{content}\n")
    began = time.process_time()  # what blows up takes minutes of it
    code = type_("federated", "experiment=theirs.yaml", *sweep, job=_never)
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert "Traceback" not in error
    assert "hunter2" not in error
    assert time.process_time() - began < 60
    left = [path for path in Path().rglob("*") if "runs" not in path.parts]
    assert left == [Path("theirs.yaml")]
    assert not any("hunter2" in str(path) for path in Path().rglob("*"))


def _never(*_: object) -> None:
    pytest.fail("the run began")


OVERRIDES = [
    (f"+hydra.callbacks.a={{_target_: os.mkdir, path: {MARK}}}", "hydra.callbacks.a is code"),
    (f"+hydra.launcher.x={{_target_: os.mkdir, path: {MARK}}}", "names code"),
    ("+hydra.job.env_set.PYTHONPATH=/tmp", "hydra.job.env_set"),
    ("hydra.searchpath=[pkg://antigravity]", "Name a folder"),
    ("hydra={searchpath: [pkg://antigravity]}", "Name a folder"),
    ("name=${oc.env:A_SECRET}", "${oc.env:A_SECRET} would read"),
    ("hydra.run.dir=${oc.env:A_SECRET}", "${oc.env:A_SECRET} would read"),
    ("+model._target_=os.mkdir", "no such key"),
    ("optimizer=os.mkdir", "optimizer=os.mkdir is not one of"),
    ("metrics=" + "[" * 3000 + "]" * 3000, "nests too deeply"),
]


@pytest.mark.parametrize(("override", "said"), OVERRIDES)
def test_neither_does_an_override(
    override: str, said: str, type_: Type, capsys: pytest.CaptureFixture[str]
) -> None:
    code = type_("federated", "experiment=quickstart", override, job=_never)
    error = capsys.readouterr().err
    assert (code, "Traceback" in error) == (2, False)
    assert said in error
    assert not Path(MARK).exists()
    assert not any("hunter2" in str(path) for path in Path().rglob("*"))


def test_what_hydra_has_of_its_own_still_works(type_: Type) -> None:
    ran = []
    code = type_(
        "federated",
        "experiment=quickstart",
        "hydra/job_logging=default",
        "hydra/hydra_logging=hydra_debug",
        "hydra.job.chdir=false",
        job=lambda run, _: ran.append(run.name),
    )
    assert (code, ran) == (0, ["quickstart"])


# --- what installed packages configure ----------------------------------------------------

SWEEPER = {
    "_target_": "hydra_plugins.installed.Sweeper",
    "sampler": {"_target_": "installed.Sampler", "seed": None},
    "space": None,
}
LOGGING = {
    "version": 1,
    "formatters": {"colours": {"()": "logging.BufferingFormatter"}},
    "root": {"level": "INFO"},
    "disable_existing_loggers": False,
}


@pytest.fixture
def _installed() -> Iterator[None]:
    """Configure Hydra as a package does that brings a sweeper and a kind of logging."""
    store = ConfigStore.instance()
    kinds = {"sweeper": SWEEPER, "job_logging": LOGGING}
    for kind, node in kinds.items():
        store.store("installed", node, group=f"hydra/{kind}", provider="installed")
    yield
    for kind in kinds:
        del store.repo["hydra"][kind]["installed.yaml"]


@pytest.mark.usefixtures("_installed")
def test_what_installed_packages_configure_for_typed_choices_is_taken_with_its_code() -> None:
    typed = [
        *("hydra/job_logging=installed", "hydra/sweeper=installed"),
        *("hydra.sweeper.space=mine.space", "+hydra.sweeper.n=3"),
    ]
    register_for(typed)
    with refusing_code(), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = hydra_compose("config", typed, return_hydra_config=True).hydra
    assert hydra.sweeper == {**SWEEPER, "space": "mine.space", "n": 3}
    assert hydra.job_logging.formatters == LOGGING["formatters"]


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize(
    ("content", "typed", "said"),
    [
        (
            "hydra: {sweeper: {space: os.abort}}",
            ["hydra/sweeper=installed"],
            "hydra.sweeper.space=os.abort stands in a file, and hydra_plugins.installed.Sweeper",
        ),
        (
            "hydra: {sweeper: {sampler: {_target_: os.abort}}}",
            ["hydra/sweeper=installed"],
            "hydra.sweeper.sampler._target_=os.abort names code",
        ),
        (
            "hydra: {sweeper: {_target_: hydra_plugins.installed.Sweeper}}",
            [],
            "hydra.sweeper._target_=hydra_plugins.installed.Sweeper names code",
        ),
        (
            "hydra: {job_logging: {formatters: {colours: {'()': os.abort}}}}",
            ["hydra/job_logging=installed"],
            "hydra.job_logging.formatters.colours.()=os.abort names code",
        ),
        (
            "name: theirs",
            ["hydra/job_logging=theirs", "--config-dir=theirs"],
            "hydra.job_logging.formatters.colours.()=os.abort names code",
        ),
    ],
)
def test_what_a_file_says_to_an_installed_package_is_refused(
    content: str,
    typed: list[str],
    said: str,
    type_: Type,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("theirs.yaml").write_text(f"{HEADER}{content}\n")
    folder = Path("theirs/hydra/job_logging")
    folder.mkdir(parents=True)
    evil = LOGGING | {"formatters": {"colours": {"()": "os.abort"}}}
    (folder / "theirs.yaml").write_text(yaml.safe_dump(evil))
    code = type_("federated", "experiment=theirs.yaml", *typed, job=_never)
    error = capsys.readouterr().err
    assert said in error
    assert code == 2


# --- a run's own config.yaml --------------------------------------------------------------


def test_the_config_of_a_run_refers_to_nothing(tmp_path: Path) -> None:
    values = OmegaConf.to_container(OmegaConf.structured(compose("federated")))
    assert isinstance(values, dict)
    for reference in ("${oc.env:A_SECRET}", "${seed}", "a${oc.env:HOME}b"):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**values, "name": reference}))
        with pytest.raises(ConfigError, match=r"config\.yaml: name=.* refers to something else"):
            from_resolved(path)


@pytest.mark.parametrize(
    "text",
    [
        FILES["anchors that blow up"][0],
        FILES["an anchor in itself"][0],
        FILES["deep nesting"][0],
        FILES["a Python object"][0],
        "plugins: [{x: 1}]",
        "plugins: [3]",
        "plugins: {a: 1}",
        "model: [1]",
        "{1: {2: 3}}",
        "? [a]\n: b",
        "seed: 1\nseed: 2",
        "\x00",
    ],
)
def test_a_config_that_is_none_is_refused_by_its_path(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        from_resolved(tmp_path / "config.yaml")


def test_anchors_that_are_used_as_they_should_be_are_taken() -> None:
    refuse_blown_up("a: &a {x: 1}\nb: *a\nc: [*a, *a]\n", "mine.yaml")
    run = compose("federated")
    assert from_yaml(OmegaConf.to_yaml(OmegaConf.structured(run))) == run
