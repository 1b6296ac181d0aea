"""`predict` applies a run to new rows, `generate` continues a text: exact, and named if bad."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heliotrope import config, plugin_loading
from heliotrope.commands.generate import continued
from heliotrope.config import Run
from heliotrope.data import Dataset, load
from heliotrope.models import build
from heliotrope.runs import checkpoint
from heliotrope.runs.checkpoint import Checkpoint
from heliotrope.runs.directory import RunDirectory
from heliotrope.shell import typed
from heliotrope.tasks import task_of
from tests.support import Command, compose, fresh_seed

WORDS = dict.fromkeys(("cp", "fbs", "restecg", "exang", "slope", "thal"), "")
NUMBERS = {"age": "63", "trestbps": "145", "chol": "", "thalach": "150", "oldpeak": "2.3"}
PATIENT = {**NUMBERS, "ca": "0", "sex": "male", **WORDS}


@functools.cache
def trained_on(*overrides: str) -> tuple[Run, Dataset]:
    run = compose("federated", *overrides)
    return run, load(run.data, run.seed)


def leave_a_run(directory: Path, *overrides: str) -> Path:
    """Leave a run whose one checkpoint holds freshly drawn weights."""
    run, dataset = trained_on(*overrides)
    home = RunDirectory(directory)
    home.claim(run, "federated")
    home.begin(run)
    weights = build(run.model, task_of(dataset, run), run.seed).state_dict()
    state = {"preparation": dataset.preparation.to_json()}
    checkpoint.save(home.checkpoints, Checkpoint(1, weights, state=state))
    home.release()
    return directory


def table(path: Path, *rows: dict[str, str]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_are_told_their_class_and_its_probability(tmp_path: Path, heliotrope: Command) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=heart")
    rows = [{**PATIENT, "age": str(age), "num": "not asked"} for age in range(30, 35)]
    new, output = table(tmp_path / "new.csv", *rows), tmp_path / "said.jsonl"
    code, out, _ = heliotrope("predict", f"run={directory}", f"input={new}")
    lines = list(csv.DictReader(out.splitlines()))
    assert (code, [line["row"] for line in lines]) == (0, list("12345"))
    both = ["probability of no disease", "probability of disease"]
    for line in lines:
        chances = [float(line[name]) for name in both]
        assert sum(chances) == pytest.approx(1.0)
        assert line["prediction"] == ("no disease", "disease")[int(np.argmax(chances))]
    assert len({line[both[0]] for line in lines}) == 5
    arguments = (f"output={output}", "evaluation_batch_size=2")
    assert heliotrope("predict", f"run={directory}", f"input={new}", *arguments)[:2] == (0, "")
    others = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["prediction"] for line in others] == [line["prediction"] for line in lines]
    for line, other in zip(lines, others, strict=True):
        assert other[both[1]] == pytest.approx(float(line[both[1]]), rel=1e-6)


def test_what_is_predicted_is_what_the_evaluation_measures(
    tmp_path: Path, heliotrope: Command
) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=diabetes")
    run, dataset = trained_on("experiment=diabetes")
    assert dataset.fitting is not None
    rows = dataset.fitting.test
    columns = {
        name: list(column.values) if name != "sex" else [column.words[c] for c in column.codes]  # type: ignore[attr-defined]
        for name, column in rows.columns.items()
    }
    new = table(
        tmp_path / "new.csv",
        *({name: str(column[row]) for name, column in columns.items()} for row in range(len(rows))),
    )
    code, out, err = heliotrope("predict", f"run={directory}", f"input={new}")
    assert (code, err) == (0, "")
    said = np.array([float(line["prediction"]) for line in csv.DictReader(out.splitlines())])
    task = task_of(dataset, run)
    model = build(run.model, task, run.seed).eval()
    every = dataset.test.take(torch.arange(len(dataset.test)))
    rmse = task.metrics.measure(task.call(model, every).detach(), every).compute()["rmse"]
    assert np.sqrt(np.mean((said - np.array(columns["target"])) ** 2)) == pytest.approx(rmse)


def test_a_row_is_predicted_alike_whatever_else_the_file_holds(
    tmp_path: Path, heliotrope: Command
) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=heart", "data.fit=per_client")
    patients = [{**PATIENT, "age": age} for age in ("35", "70")]
    said = []
    for number, rows in enumerate(([patients[0]], [patients[1]], patients)):
        new = table(tmp_path / f"{number}.csv", *rows)
        code, out, _ = heliotrope("predict", f"run={directory}", f"input={new}")
        assert code == 0
        said += [float(line["probability of disease"]) for line in csv.DictReader(out.splitlines())]
    assert said[:2] == pytest.approx(said[2:], rel=1e-5)
    assert abs(said[0] - said[1]) > 1e-3


def test_what_training_has_not_seen_is_counted(tmp_path: Path, heliotrope: Command) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=heart")
    rows = [PATIENT, {**PATIENT, "thal": "unheard of"}, {**PATIENT, "thal": "new"}]
    rows.append({**PATIENT, "age": "", "chol": ""})
    new = table(tmp_path / "new.csv", *rows)
    code, out, err = heliotrope("predict", f"run={directory}", f"input={new}")
    assert code == 0
    lines = out.splitlines()
    assert lines[2].partition(",")[2] == lines[3].partition(",")[2]  # both are the unseen value
    assert "column thal: 2 of 4 values do not occur in the training data" in err
    assert "column age: 1 of 4 numbers are missing, and the training data lack none" in err
    assert "column chol" not in err  # of which it has learned what a missing one means


def test_bad_rows_are_named_or_left_out(tmp_path: Path, heliotrope: Command) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=heart")
    arguments = (f"run={directory}", f"input={tmp_path / 'new.csv'}")
    table(tmp_path / "new.csv", PATIENT, {**PATIENT, "age": "old"})
    code, out, err = heliotrope("predict", *arguments, f"output={tmp_path / 'said.csv'}")
    assert (code, out) == (2, "")
    assert "new.csv, row 2, column age: 'old' is no finite number" in err
    assert not (tmp_path / "said.csv").exists()
    code, out, err = heliotrope("predict", *arguments, "data.bad_rows=skip")
    assert (code, len(out.splitlines())) == (0, 2)
    assert "row 2, column age" in err
    table(tmp_path / "new.csv", {name: value for name, value in PATIENT.items() if name != "chol"})
    code, _, err = heliotrope("predict", *arguments)
    assert code == 2
    assert "chol" in err
    assert "which the training data has" in err


def test_pictures_are_read_from_a_folder_and_a_broken_one_is_named(
    tmp_path: Path, heliotrope: Command
) -> None:
    folder, draw = tmp_path / "pictures", np.random.default_rng(fresh_seed())
    for kind in ("cats", "dogs"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 256, (9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    settings = ("data=images", f"data.path={folder}", "data.size=8", "model.hidden=[3]")
    directory = leave_a_run(tmp_path / "run", *settings, "federated/partition=iid")
    code, out, _ = heliotrope("predict", f"run={directory}", f"input={folder}")
    lines = list(csv.DictReader(out.splitlines()))
    assert (code, len(lines)) == (0, 12)
    assert lines[0]["file"] == str(folder / "cats" / "0.png")
    broken = folder / "dogs" / "broken.png"
    broken.write_bytes(b"no picture")
    code, out, err = heliotrope("predict", f"run={directory}", f"input={folder}")
    assert (code, out) == (2, "")
    assert f"{broken}: it is no picture that can be read" in err


@pytest.fixture(scope="module")
def plays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ("experiment=shakespeare", "model.hidden=8", "data.length=12")
    return leave_a_run(tmp_path_factory.mktemp("plays") / "run", *settings)


def test_a_text_is_continued_alike_for_one_seed(plays: Path, heliotrope: Command) -> None:
    def text(*arguments: str) -> str:
        code, out, err = heliotrope("generate", f"run={plays}", "prompt=To be = é", *arguments)
        assert code == 0
        assert "2 of 9 characters of the prompt do not occur in training" in err
        return out

    first = text("length=30")
    assert first.startswith("To be = é")
    assert len(first) == 9 + 30 + 1
    assert text("length=30", "seed=0", "temperature=0.8") == first
    assert text("length=30", "seed=1") != first
    assert text("length=9", "temperature=0") == text("length=9", "temperature=0", "seed=5")


def test_draws_follow_the_distribution_and_never_are_padding() -> None:
    chances = np.array([0.5, 0.2, 0.3])

    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(
                torch.tensor([9.0, 9.0, *np.log(chances).tolist()], dtype=torch.float64)
            )
            self.longest = 0

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            self.longest = max(self.longest, tokens.shape[1])
            return self.logits.expand(*tokens.shape, 5)

    class Called:
        @staticmethod
        def call(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return model(batch["tokens"])

    model, start = Fixed(), np.array([2, 3], dtype=np.int32)
    draws = np.array([0.0, 0.499, 0.501, 0.699, 0.701, 0.999999])
    found = list(continued(model, Called, start, draws, 1.0, 4))  # type: ignore[arg-type]
    assert found == [2, 2, 3, 3, 4, 4]
    assert model.longest == 4
    cold = list(continued(model, Called, start, draws, 0.0, 4))  # type: ignore[arg-type]
    assert cold == [2] * 6
    halved = list(continued(model, Called, start, np.array([0.65, 0.67]), 0.5, 4))  # type: ignore[arg-type]
    assert halved == [2, 3]  # 25 : 4 : 9
    model.logits.data[2:] = torch.tensor([1.0, 20.0, 5.0])
    tiny = list(continued(model, Called, start, draws, 1e-307, 4))  # type: ignore[arg-type]
    assert tiny == [3] * 6  # though logits / temperature is infinite


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("predict", "run={run}"), "predict needs input=FILE"),
        (("predict", "inptu=x"), "Did you mean 'input'?"),
        (("predict", "run={run}", "input=x.csv", "output=x.txt"), "must end in .csv or .jsonl"),
        (("predict", "run={run}", "input=x.csv", "output=no/x.csv"), "there is no folder no"),
        (("predict", "run={run}", "input=x.csv", "device=gpux"), "device=gpux"),
        (("predict", "run={run}", "input=x.csv", "data.bad_rows=no"), "data.bad_rows=no"),
        (("predict", "run={run}", "input=x.csv", "evaluation_batch_size=0"), "at least 1"),
        (("predict", "run={run}", "input=x.csv"), "Type heliotrope generate run="),
        (("predict", "run=nowhere", "input=x.csv"), "run=nowhere is no run directory"),
        (("generate", "run={run}"), "generate needs prompt=TEXT"),
        (("generate", "run={run}", "prompt="), "prompt= is empty"),
        (("generate", "run={run}", "prompt=a", "length=0"), "length=0 must be a whole number"),
        (("generate", "run={run}", "prompt=a", "temperature=-1"), "temperature=-1 must be"),
        (("generate", "run={run}", "prompt=a", "temperature=nan"), "temperature=nan must be"),
        (("generate", "run={run}", "prompt=a", "seed=x"), "seed=x must be a whole number"),
        (("generate", "run={run}", "prompt=a", "checkpoint=7"), "checkpoint=7 is not in"),
    ],
)
def test_wrong_arguments_are_usage_errors(
    arguments: tuple[str, ...],
    named: str,
    plays: Path,
    tmp_path: Path,
    heliotrope: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = heliotrope(*(argument.format(run=plays) for argument in arguments))
    assert (code, out) == (2, "")
    assert named in err


def test_only_a_run_on_characters_continues_texts(tmp_path: Path, heliotrope: Command) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=heart")
    code, _, err = heliotrope("generate", f"run={directory}", "prompt=a")
    assert code == 2
    assert "was trained for classification, not to continue texts" in err


_RINGS = """import numpy as np
import torch
from torch.utils.data import TensorDataset
from heliotrope import plugin

@plugin.data
def rings(*, path: str):
    file = np.load(path)
    points, rings = torch.from_numpy(file["x"]).float(), torch.from_numpy(file["y"])
    return TensorDataset(points, rings), TensorDataset(points[:9], rings[:9])
"""


def _classes_of_test(*overrides: str) -> list[str]:
    """Return what the run's first weights say of its test split."""
    run, dataset = trained_on(*overrides)
    task = task_of(dataset, run)
    model = build(run.model, task, run.seed).eval()
    outputs = task.call(model, dataset.test.take(torch.arange(len(dataset.test)))).detach()
    return [str(value) for value in task.predictions(outputs)["prediction"]]


@pytest.mark.parametrize("data", ["arrays", "rings"])
def test_arrays_are_told_their_class_from_a_file_of_arrays(
    data: str, tmp_path: Path, heliotrope: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    draw = np.random.default_rng(fresh_seed())
    path, new = tmp_path / "rows.npz", tmp_path / "new.npz"
    x, y = draw.normal(size=(60, 3)), draw.integers(3, size=60)
    np.savez(path, x=x, y=y)
    np.savez(tmp_path / "test.npz", x=x[:9], y=y[:9])
    (tmp_path / "rings.py").write_text(_RINGS)
    plugin_loading.load([str(tmp_path / "rings.py")])
    config.register()
    plugins = f"plugins=[{tmp_path / 'rings.py'}]"
    settings = (plugins, f"data={data}", f"data.path={path}", "data.validation_fraction=0")
    if data == "arrays":
        settings = (*settings, f"data.test={tmp_path / 'test.npz'}")
    directory = leave_a_run(tmp_path / "run", *settings)
    for named in ("x", "numeric", "points"):  # the only array may have any name
        np.savez(new, **{named: x[:9]})
        code, out, err = heliotrope("predict", f"run={directory}", f"input={new}")
        assert (code, err) == (0, "")
        lines = list(csv.DictReader(out.splitlines()))
        assert [line["row"] for line in lines] == [str(row) for row in range(1, 10)]
        assert [line["prediction"] for line in lines] == _classes_of_test(*settings)
    for wrong, why in (
        ({"x": x[:, :2]}, "2"),
        ({"a": x, "b": x}, "has no"),
        ({"x": x[:0]}, "holds no rows"),
        ({"x": np.array(3.0)}, "holds no rows"),
    ):
        np.savez(new, **wrong)
        code, out, err = heliotrope("predict", f"run={directory}", f"input={new}")
        assert (code, out) == (2, "")
        assert str(new) in err
        assert why in err


def test_pairs_are_evaluated_not_predicted(tmp_path: Path, heliotrope: Command) -> None:
    directory = leave_a_run(tmp_path / "run", "experiment=emoji")
    code, _, err = heliotrope("predict", f"run={directory}", "input=x.png")
    assert code == 2
    assert "belong together, and predicts nothing of single rows. Type heliotrope eval" in err


def test_a_table_is_read_as_that_of_the_run_was_or_as_it_is_said(
    tmp_path: Path, heliotrope: Command
) -> None:
    rows = [{"größe": str(n), "farbe": "rot" if n % 3 else "grün"} for n in range(40)]
    usual = table(tmp_path / "usual.csv", *rows)
    path = tmp_path / "rows.csv"
    path.write_bytes(usual.read_text().replace(",", ";").encode("latin-1"))
    directory = leave_a_run(
        tmp_path / "run",
        *("data=table", f"data.path={path}", "data.target=farbe", "model=logistic"),
        *("data.delimiter=';'", "data.encoding=latin-1"),
    )
    asked = ("predict", f"run={directory}")
    code, out, _ = heliotrope(*asked, f"input={path}")
    assert (code, len(out.splitlines())) == (0, 41)
    code, _, err = heliotrope(*asked, f"input={usual}")
    assert code == 2
    assert f"Set {typed('data.delimiter', ',')}." in err
    said = ("data.delimiter=,", "data.encoding=utf-8")
    assert heliotrope(*asked, f"input={usual}", *said) == (0, out, "")
    assert heliotrope(*asked, f"input={path}", "data.delimiter=';'")[:2] == (0, out)
