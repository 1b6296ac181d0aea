"""Where plug-ins come from: files, folders, modules, installed packages; and which are executed."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from heliotrope import config, plugin_loading, registry
from heliotrope.config import Run
from heliotrope.errors import ConfigError
from heliotrope.plugin_loading import reading
from tests.support import ROOT

_REGISTERING = """
from types import SimpleNamespace
from heliotrope import plugin
{imports}

@plugin.model
def {name}(task, *, width: int = 3):
    return SimpleNamespace(in_features=width, out_features={value})
"""


def _write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def _built(name: str) -> Any:
    """Return the number of outputs of the model that a plug-in builds."""
    return registry.entry("model", name).build({"width": 2}, task=None).out_features


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "imports",
    ["from . import sizes\nfrom .inner.more import WORDS", "import sizes\nimport inner.more"],
)
def test_a_folder_imports_its_siblings_from_what_was_hashed(imports: str, tmp_path: Path) -> None:
    text = _REGISTERING.format(imports=imports, name="of_a_folder", value="sizes.OUT")
    folder = _write(tmp_path / "mine-folder", __init__=text, sizes="OUT = 5\n")
    _write(folder / "inner", __init__="", more="from .. import sizes\nWORDS = sizes.OUT\n")
    (folder / "words.txt").write_text("a b\n")
    plugin_loading.load(["mine-folder"])
    assert _built("of_a_folder") == 5
    (source,) = [each for each in plugin_loading.loaded() if each.path == str(folder)]
    assert sorted(source.files) == [
        "__init__.py",
        "inner/__init__.py",
        "inner/more.py",
        "sizes.py",
        "words.txt",
    ]
    assert "sizes" not in sys.modules
    (folder / "words.txt").write_text("a b c\n")
    changed = reading.read("mine-folder", tmp_path, "a test")
    assert changed.sha256 != source.sha256


def test_siblings_of_two_folders_may_have_one_name(tmp_path: Path) -> None:
    for name, value in (("first_one", 5), ("second_one", 6)):
        text = _REGISTERING.format(imports="import sizes", name=name, value="sizes.OUT")
        _write(tmp_path / name, __init__=text, sizes=f"OUT = {value}\n")
    plugin_loading.load(["./first_one", "./second_one"])
    assert (_built("first_one"), _built("second_one")) == (5, 6)


def test_a_module_is_imported_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    imports = "from package_of_mine.sizes import OUT"
    text = _REGISTERING.format(imports=imports, name="of_a_module", value="OUT")
    folder = _write(tmp_path / "package_of_mine", __init__="", sizes="OUT = 7\n", models=text)
    plugin_loading.load(["package_of_mine.models"])
    assert _built("of_a_module") == 7
    builder = registry.entry("model", "of_a_module").builder
    assert builder.__module__ == "package_of_mine.models"
    (source,) = [each for each in plugin_loading.loaded() if each.path == str(folder)]
    assert source.entry()["module"] == "package_of_mine.models"
    with pytest.raises(ConfigError, match=r"no module package_of_mine\.model\..*Did you mean"):
        plugin_loading.load(["package_of_mine.model"])
    with pytest.raises(ConfigError, match="there is no module package_of_yours"):
        plugin_loading.load(["package_of_yours"])


def test_a_module_that_was_imported_before_is_a_plugin_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "imported_before"
    _write(tmp_path, **{name: _REGISTERING.format(imports="", name=name, value=3)})
    importlib.import_module(name)
    assert registry.entry("model", name).source is None
    plugin_loading.load([name])
    assert registry.entry("model", name).source in plugin_loading.loaded()


_WORKER = """
import pickle, sys
from pathlib import Path
sent, kind = pickle.loads(Path(sys.argv[1]).read_bytes())
from heliotrope import registry
entry = registry.entry("model", "travels")
print(entry.build({"width": 9}, task=None).in_features, kind is entry.builder)
print(Path(sys.modules[kind.__module__.partition(".")[0]].__file__).with_name("words.txt").read_text())
"""


@pytest.mark.parametrize("what", ["a choice", "a run of other choices"])
def test_a_worker_that_does_not_have_the_files_gets_them(what: str, tmp_path: Path) -> None:
    text = _REGISTERING.format(imports="from . import sizes", name="travels", value="sizes.OUT")
    folder = _write(tmp_path / "travelling", __init__="from . import models", models=text)
    _write(folder, sizes="OUT = 5\n")
    (folder / "words.txt").write_text("some words")
    plugin_loading.load(["./travelling"])
    chosen = config.chosen("model", "travels", width=9) if what == "a choice" else Run()
    sent = tmp_path / "sent"
    sent.write_bytes(pickle.dumps((chosen, registry.entry("model", "travels").builder)))
    folder.rename(tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", _WORKER, str(sent)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["9 True", "some words"], done.stderr


def test_an_installed_package_brings_its_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    _write(tmp_path, installed_one=_REGISTERING.format(imports="", name="installed", value=4))
    info = tmp_path / "installed_one-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-one\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[heliotrope.plugins]\nmine = installed_one\n")
    config.load_plugins(["seed=1"])
    source = registry.entry("model", "installed").source
    assert source is not None
    recorded = source.entry()
    assert recorded["distribution"] == "installed-one 1.5"
    plugin_loading.recall([recorded], "runs/x")
    other = {"distribution": "installed-one 1.4", "sha256": "00"}
    with pytest.raises(ConfigError, match=r"it was installed-one 1\.4, and is installed-one 1\.5"):
        plugin_loading.recall([recorded | other], "runs/x")
    with pytest.raises(ConfigError, match=r"package other 2, which is not installed"):
        plugin_loading.recall(
            [{**recorded, "module": "other", "distribution": "other 2"}], "runs/x"
        )


def test_an_error_in_a_folder_names_its_file_and_line(tmp_path: Path) -> None:
    _write(tmp_path / "broken", __init__="from . import models", models="x = 1\ny = x / 0\n")
    with pytest.raises(ConfigError, match=r"broken/models\.py, line 2: ZeroDivisionError"):
        plugin_loading.load(["./broken"])
    _write(tmp_path / "empty", models="")
    with pytest.raises(ConfigError, match=r"empty has no __init__\.py. Add one"):
        plugin_loading.load(["./empty"])
    assert not [name for name in sys.modules if name.startswith("heliotrope_plugin_broken")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("WIDTH = 3\n", "empty.py registers nothing: decorate a function with @plugin.model"),
        ("import sys\nsys.exit(3)\n", "empty.py, line 2: SystemExit: 3. Mend the file."),
    ],
)
def test_a_plugin_that_registers_nothing_or_exits_is_refused(
    text: str, said: str, tmp_path: Path
) -> None:
    _write(tmp_path, empty=text)
    for _ in range(2):  # a second time too
        with pytest.raises(ConfigError, match=re.escape(said)):
            plugin_loading.load(["empty.py"])


def test_the_decorators_come_with_the_package_and_without_torch() -> None:
    code = (
        "import sys, heliotrope\n@heliotrope.plugin.model\ndef mine(task): ...\n"
        "print('torch' in sys.modules, hasattr(heliotrope, 'plug'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False False\n"
