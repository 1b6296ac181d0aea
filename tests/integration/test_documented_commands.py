"""Every command of README, CONTRIBUTING and docs runs, as it is typed, in a fresh clone.

Long ones run with their smallest setting: on a little data, for an epoch or a round, and benchmarks
beside the peers that this environment has (all of them in the last test). A command of a kind that
is not known here fails: say below how it is kept short.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.support import MODES, ROOT, Started, type_command
from tests.unit.test_data_load import write_idx

DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

# Folders and modules in backticks are no commands.
COMMAND = (
    r"(?:python -m |python scripts/|heliotrope |ruff |source |scripts/[\w-]+(?=[ `]|$)|\.venv/bin/)"
)

ONE_RUN = r"^python -m (federated|distributed) +experiment=(?!.*(resume|plugins|folds|_cv))"

QUICK = "--repeats 1 --patience 0"
BESIDE = "--workloads B --seconds 0.01 --peer-python bare=python --peer-python flower=python"
REACHED = "target.metric=test/accuracy target.value=0.001"  # after the first evaluation


@dataclass(frozen=True)
class Kept:
    """How a command that matches `pattern` is kept short."""

    pattern: str
    more: str = ""  # to type after it
    slow: bool = False
    instead: tuple[str, str] = ("", "")
    until: str = ""  # what it prints before Ctrl-C ends it, well


KEPT = (
    Kept(r"--help$"),
    Kept(
        r"^python -m federated .*(privacy|aggregation|attack|audit)[./]",
        "federated.rounds=1",
        slow=True,
    ),
    Kept(r"^python -m distributed .*(privacy|audit)[./]", "distributed.epochs=1", slow=True),
    Kept(
        r"^python -m distributed -m .*search\.trials=",
        "search.trials=2 distributed.epochs=1 distributed.launcher=inline distributed.workers=1",
    ),
    Kept(r"^python -m federated -m .*search\.trials=", "search.trials=2 federated.rounds=1"),
    Kept(r"^(python -m|heliotrope) distributed .*launcher=inline", "distributed.epochs=1"),
    Kept(
        r"^heliotrope distributed \.\.\.$",
        "distributed.epochs=1 distributed.launcher=inline distributed.workers=1",
        instead=("...", "experiment=quickstart"),
    ),
    Kept(
        r"^python -m distributed experiment=digits_cv",
        "distributed.epochs=1 distributed.launcher=inline distributed.workers=1",
    ),
    Kept(r"^(python -m|heliotrope) distributed ", "distributed.epochs=1", slow=True),
    Kept(r" sweep\.parallel=", "federated.rounds=1", slow=True),
    Kept(r"^(python -m|heliotrope) federated .*resume=true", "federated.rounds=2"),
    Kept(
        r"^heliotrope federated \.\.\.$",
        "federated.rounds=1",
        instead=("...", "experiment=quickstart"),
    ),
    Kept(r"^python -m federated experiment=shakespeare", "federated.rounds=1", slow=True),
    Kept(r"^(python -m|heliotrope|python -m heliotrope) federated ", "federated.rounds=1"),
    Kept(r"^heliotrope submit .*dry_run=true"),
    Kept(r"^heliotrope submit cluster=local -- federated ", "federated.rounds=1"),
    Kept(
        r"^heliotrope submit cluster=ray cluster\.address=",
        instead=("-- COMMAND", "dry_run=true -- list"),
    ),
    Kept(r"^(python -m )?heliotrope list( |$)"),
    Kept(r"^(python -m )?heliotrope new DIR$", instead=("DIR", "../project")),
    Kept(r"^python -m heliotrope audit "),
    Kept(r"^python -m heliotrope (evaluate|compare|find-lr|find-batch-size|plan|stats|predict) "),
    Kept(r"^(python -m )?heliotrope runs( |$)"),
    Kept(r"^python -m heliotrope watch port=", instead=("8765", "0"), until="until Ctrl-C"),
    Kept(
        r"^(python -m )?heliotrope watch( |$)",
        instead=("s3://bucket", "file://$PWD"),
        until="until Ctrl-C",
    ),
    Kept(r"^python -m heliotrope (generate|privacy) ", slow=True),
    Kept(r"^python -m heliotrope deploy trial ", "federated.rounds=1 nodes=1", slow=True),
    Kept(r"^python -m heliotrope deploy experiment="),
    Kept(r"^python -m heliotrope tune ", "federated.clients_per_round=2"),
    Kept(r"^scripts/quickstart$", REACHED, slow=True),
    Kept(r"^scripts/test$", "tests/unit/test_stopwatch.py"),
    Kept(r"^scripts/test -m slow$", "--collect-only -q", slow=True),
    Kept(r"^scripts/check$", slow=True),
    Kept(r"^scripts/fetch-test-data$"),
    Kept(r"^source \.venv/bin/activate$"),
    Kept(r"^ruff check --fix \. && ruff format \.$"),
    Kept(
        r"^\.venv/bin/pip install ",
        instead=("-c constraints.txt NAME", "--dry-run -c constraints.txt numpy"),
    ),
    Kept(r"/cohort\.py( |$)", f"{QUICK} {BESIDE} --peers heliotrope,bare,flower", slow=True),
    Kept(
        r"/population\.py",
        "--clients 100 --cohort 10 --cohorts 20 --examples 5 --rounds 1 --patience 0",
        slow=True,
    ),
    Kept(
        r"/layers\.py$",
        "--workloads embedding --cohorts 4 --rounds 1 --patience 0",
        slow=True,
    ),
    Kept(
        r"/robustness\.py",
        "--data digits --partition iid --rules mean --attacks none --seeds 1 --rounds 2",
        slow=True,
    ),
    Kept(
        r"/secure_aggregation\.py",
        "--clients 5 --parameters 100 --neighbours 4 --lost 1 --patience 0",
        slow=True,
    ),
    Kept(r"/deployed_round\.py", "--rounds 2 --patience 0", slow=True),
    Kept(r"/launches\.py sweep", "--jobs 2 --rounds 1 --patience 0", slow=True),
    Kept(r"/privacy\.py", "--studies dpsgd --cells 'noise 1.3'", slow=True),
    Kept(r"/dpsgd_step\.py", "--pairs 1 --patience 0", slow=True),
    Kept(r"/gpt_step\.py$", "--pairs 1 --epochs 2 --patience 0", slow=True),
    Kept(
        r"/sharded_memory\.py",
        "--width 64 --layers 2 --processes 1 --patience 0",
        slow=True,
    ),
    Kept(
        r"/plan\.py",
        "--hidden 50 --strategies ddp --patience 0",
        slow=True,
    ),
    Kept(r"/sharded_memory\.py$", "--width 32 --layers 2 --processes 1", slow=True),
    Kept(r"/checkpoint_stall\.py$", "--checkpoints 2 --patience 0", slow=True),
    Kept(
        r"/data_parallel\.py$",
        f"{QUICK} --epochs 1 --peers heliotrope,bare --peer-python bare=python",
        slow=True,
    ),
)

# What a command reads -> the documented command that writes it.
WRITERS = {
    "runs/ledger.jsonl": (
        "python -m federated experiment=quickstart data.fit=none federated/privacy=central "
        "federated.privacy.noise_multiplier=2 privacy.ledger=runs/ledger.jsonl privacy.budget=20 "
        "privacy.delta=1e-2"
    ),
    "runs/mine": "python -m federated experiment=quickstart hydra.run.dir=runs/mine",
    "runs/other": "python -m federated experiment=quickstart hydra.run.dir=runs/other",
    "runs/heart": "python -m federated experiment=heart hydra.run.dir=runs/heart",
    "runs/plays": "python -m federated experiment=shakespeare hydra.run.dir=runs/plays",
    "runs/quickstart/federated-sweep": (
        "python -m federated -m experiment=quickstart "
        "federated/strategy=fedavg,fedprox,fedadam seed=1,2"
    ),
}


def documented() -> list[str]:
    """Return each command once, without its comment, in the order of the documents."""
    found: list[str] = []
    for document in DOCUMENTS:
        text = document.read_text()
        lines = re.findall(rf"^ {{4}}({COMMAND}.*)$|`({COMMAND}[^`\n]*)`", text, re.MULTILINE)
        found += [re.sub(r"\s{2,}#.*$", "", "".join(line)) for line in lines]
    return list(dict.fromkeys(" ".join(command.split()) for command in found))


def kept(command: str) -> Kept | None:
    return next((kind for kind in KEPT if re.search(kind.pattern, command)), None)


def smallest(command: str) -> str:
    kind = kept(command)
    assert kind is not None, f"say in KEPT how `{command}` is kept short"
    return f"{command.replace(*kind.instead)} {kind.more}".strip()


def parameters() -> list[object]:
    slow = {command for command in documented() if (kind := kept(command)) and kind.slow}
    mark = pytest.mark.slow
    return [pytest.param(c, id=c, marks=[mark] if c in slow else []) for c in documented()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the checkout, set up as its scripts do it, and with a little data."""
    made = tmp_path_factory.mktemp("fresh") / "clone"
    shutil.copytree(ROOT, made, ignore=_left_out)
    environment = made / ".venv"
    environment.mkdir()
    for path in Path(sys.prefix).iterdir():
        if path.name != ".heliotrope":
            (environment / path.name).symlink_to(path)
    decides = "{ pwd && cat pyproject.toml setup.py constraints.txt; } | sha256sum"
    stamp = subprocess.run(decides, shell=True, cwd=made, capture_output=True, check=True)  # noqa: S602
    (environment / ".heliotrope").write_bytes(stamp.stdout)
    for name in ("mnist", "fashion_mnist"):
        write_little_data(made.parent / "cache" / "heliotrope" / name)
    return made


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Return what git does not keep; `runs` is also a package."""
    made = {"runs", "build"} & set(names) if Path(folder) == ROOT else set()
    return shutil.ignore_patterns(".*", "__pycache__", "*.egg-info")(folder, names) | made


def model_of_readme() -> str:
    """Return the file that README shows before the command that names it."""
    text = (ROOT / "README.md").read_text()
    code = re.search(r"((?: {4}.*\n|\n)+?) {4}python .*plugins=\[mine\.py\]", text)
    assert code is not None
    return re.sub(r"^ {4}", "", code[1], flags=re.MULTILINE)


def patients() -> str:
    """Return a table of two patients, one of whom is little known."""
    columns = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal"
    known = "63,male,typical angina,145,233,true,lv hypertrophy,150,false,2.3,downsloping,0,normal"
    return f"{columns}\n{known}\n41,female,,,,,,,,,,,\n"


def write_little_data(folder: Path) -> None:
    """Write 2000 + 200 images that look like their class."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    looks = generator.integers(0, 200, (10, 28, 28))
    for prefix, count in (("train", 2000), ("t10k", 200)):
        labels = generator.integers(0, 10, count, dtype=np.uint8)
        images = looks[labels] + generator.integers(0, 56, (count, 28, 28))
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images.astype(np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)


@pytest.fixture(scope="module")
def type_(clone: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what types a command in the clone, as in a shell with .venv active."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{clone}/.venv/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def typed(
        command: str, *, real_data: bool = False, until: str = ""
    ) -> subprocess.CompletedProcess[str]:
        little = {} if real_data else {"XDG_CACHE_HOME": str(clone.parent / "cache")}
        with subprocess.Popen(
            ["bash", "-c", command],
            cwd=clone,
            env=environment | little,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            told = ""
            if until:
                told = next((line for line in process.stdout if until in line), "")
                os.killpg(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=900)
        return subprocess.CompletedProcess(command, process.returncode, told + out, err)

    return typed


@pytest.mark.parametrize("command", parameters())
def test_a_documented_command_runs(
    command: str, clone: Path, type_: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    fetching = command == "scripts/fetch-test-data"
    if fetching:  # without the data, it would install packages
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        for there in (Path("/usr/share/datasets/fashion-mnist"), cache / "heliotrope/mnist"):
            if not there.is_dir():
                pytest.skip(f"{there} is not there, and would be fetched")
    if command.startswith(".venv/bin/pip") and not (clone / ".venv/bin/pip").exists():
        pytest.skip("this environment has no pip")
    for path, writer in WRITERS.items():
        if command == writer:
            shutil.rmtree(clone / path, ignore_errors=True)
        elif re.search(rf"{path}\b", command) and not (clone / path).exists():
            assert type_(smallest(writer)).returncode == 0
    mine, table = clone / "mine.py", clone / "patients.csv"
    if mine.name in command:
        mine.write_text(model_of_readme())
    table.write_text(patients())
    kind = kept(command)
    assert kind is not None
    done = type_(smallest(command), real_data=fetching, until=kind.until)
    mine.unlink(missing_ok=True)
    assert kind.until in done.stdout
    assert done.returncode == 0, f"{smallest(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.mark.parametrize("command", [c for c in documented() if re.search(ONE_RUN, c)])
def test_a_documented_run_is_composed_and_checked(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    named, *arguments = shlex.split(command)[2:]
    mode = next(mode for mode in MODES if mode == named)
    job = Started()
    assert type_command(monkeypatch, mode, *arguments, job=job) == 0
    assert len(job.runs) == 1


def test_the_documents_have_commands() -> None:
    commands = documented()
    assert len(commands) > 25
    assert [command for command in commands if kept(command) is None] == []
    assert all(writer in commands for path, writer in WRITERS.items() if path != "runs/other")


@pytest.mark.parametrize(
    "script",
    [
        "cohort.py",
        "layers.py",
        "population.py",
        "checkpoint_stall.py",
        "data_parallel.py",
        "gpt_step.py",
        "plan.py",
        "robustness.py",
        "privacy.py",
        "dpsgd_step.py",
        "secure_aggregation.py",
        "beyond_memory.py",
        "deployed_round.py",
        "launches.py",
        "streaming.py",
    ],
)
def test_a_benchmark_finds_all_that_it_imports(
    script: str, type_: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = type_(f"python scripts/benchmarks/{script} --help")
    assert done.returncode == 0, done.stderr
    assert "--output" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "peers"),
    [
        (f"cohort.py {QUICK} --workloads B --seconds 0.01", ("bare", "pfl", "flower")),
        (f"data_parallel.py {QUICK} --epochs 1", ("bare", "ray_train", "lightning")),
    ],
)
def test_a_benchmark_runs_beside_all_its_peers(
    command: str, peers: tuple[str, ...], type_: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Each peer in an environment of its own, which stays in the user's cache for the next time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    environments = cache / "heliotrope" / "benchmark-environments"
    if not all((environments / peer / "pins").is_file() for peer in peers):
        index = type_("python -m pip index versions pip")
        if index.returncode:
            pytest.skip("the peers are not there, and no package index is reached")
    done = type_(f"python scripts/benchmarks/{command} --environments '{environments}'")
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
