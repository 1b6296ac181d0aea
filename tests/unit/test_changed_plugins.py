"""A run goes on with the code of plug-ins that it was trained with, or says that it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from heliotrope.config import Run
from heliotrope.errors import ConfigError, RunDirectoryError
from heliotrope.runs.changed_plugins import changed_plugins
from heliotrope.runs.directory import RunDirectory
from tests.support import compose


def _named(*entries: tuple[str, str], changed: str = "refuse") -> Run:
    plugins = [{"path": path, "sha256": sha256 * 32} for path, sha256 in entries]
    run = replace(compose("federated", "experiment=quickstart"), resume=True)
    return replace(run, plugins=plugins, plugins_changed=changed)


@pytest.fixture
def home(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    directory.begin(_named(("/a/mine.py", "aa"), ("/a/other.py", "bb")))
    return directory


@pytest.mark.parametrize(
    "entries",
    [
        [("/a/mine.py", "aa"), ("/a/other.py", "bb")],
        [("/b/moved.py", "aa"), ("/a/other.py", "bb")],
        [("/a/new.py", "cc"), ("/a/mine.py", "aa"), ("/a/other.py", "bb")],
    ],
)
def test_the_same_code_in_another_place_has_not_changed(
    entries: list[tuple[str, str]], home: RunDirectory
) -> None:
    home.claim(_named(*entries), "federated")
    home.release()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([("/a/mine.py", "cc"), ("/a/other.py", "bb")], "/a/mine.py has changed, SHA-256 aaaaaa"),
        ([("/a/mine.py", "aa")], "/a/other.py is not named now"),
    ],
)
def test_other_code_is_refused_unless_it_is_accepted(
    entries: list[tuple[str, str]], said: str, home: RunDirectory
) -> None:
    with pytest.raises(RunDirectoryError, match=said) as refused:
        home.claim(_named(*entries), "federated")
    assert "plugins_changed=accept" in str(refused.value)
    accepting = _named(*entries, changed="accept")
    home.claim(accepting, "federated")
    assert said in (changed_plugins(home.config, accepting) or "")
    home.begin(accepting)
    home.release()
    assert changed_plugins(home.config, accepting) is None


def test_plugins_changed_takes_two_words() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'accept'"):
        compose("federated", "plugins_changed=acept")
