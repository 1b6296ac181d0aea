"""`heliotrope audit` of finished runs: what it writes, what it refuses, what it leaves alone."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from html import unescape
from pathlib import Path

import pytest

from distributed.job import run_job
from federated.job import run_job as federated_job
from federated.privacy.canaries import check_canaries
from federated.protection import central
from heliotrope import config
from heliotrope.commands import audit
from heliotrope.errors import ConfigError
from tests.support import ROOT, Command, compose

SMALL = ("data=digits", "data.fit=none", "distributed.launcher=inline", "distributed.workers=1")
SHORT = ("distributed.epochs=1", "distributed.batch_size=256")
PRIVATE = ("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=2")


FEW = ROOT / "tests/few_examples.py"
RATINGS = ("experiment=movielens", f"plugins=[{FEW}]", "data=few_ratings")
RATINGS += ("model.width=3", "federated.clients_per_round=5", "federated.lr_horizon=3")
EMOJI = ("experiment=emoji", f"plugins=[{FEW}]", "data=few_emoji", "model.width=4")
EMOJI += ("model.channels=[2]", "federated.batch_size=9")


@pytest.fixture(autouse=True)
def _modes_as_imported_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the modes' modules by the names that these tests know them by."""
    monkeypatch.setattr(
        audit, "mode_module", lambda mode, name: importlib.import_module(f"{mode}.{name}")
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("planted")
    run_job(compose("distributed", *SMALL, *SHORT, *PRIVATE, "audit.canaries=60"), directory)
    return directory


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plain")
    run_job(compose("distributed", *SMALL, *SHORT), directory)
    return directory


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clients")
    run = compose(
        "federated",
        "data=digits",
        "data.fit=none",
        "federated.pool=inprocess",
        "federated.rounds=2",
        "federated.partition.clients=30",
        "federated.clients_per_round=20",
        "federated/privacy=central",
        "federated.privacy.noise_multiplier=2",
        "audit.canaries=40",
    )
    federated_job(run, directory)
    return directory


def digests(directory: Path) -> dict[str, str]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {
        str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files if "audit." not in p.name
    }


def test_a_run_says_that_canaries_were_planted(planted: Path, plain: Path) -> None:
    told = json.loads((planted / "result.json").read_text())["canaries"]
    assert told["planted"] == 60
    assert told["unit"] == "record"
    assert 10 < told["included"] < 50
    assert "canaries" not in json.loads((plain / "result.json").read_text())


def test_an_audit_tells_what_was_promised_and_found(planted: Path, heliotrope: Command) -> None:
    before = digests(planted)
    code, said, _ = heliotrope("audit", f"run={planted}", "shadows=0")
    assert code == 0, said
    assert "epsilon is at least" in said
    assert "nothing that was found contradicts" in said
    assert digests(planted) == before
    told = json.loads((planted / "audit.json").read_text())
    assert told["promised"]["unit"] == "record"
    assert told["bound"]["canaries"] == 60
    assert {check["passed"] for check in told["mechanism"]["checks"]} == {True}
    assert told["alarms"] == []


def test_the_page_tells_all_and_needs_no_other_file(planted: Path, heliotrope: Command) -> None:
    assert heliotrope("audit", f"run={planted}", "shadows=2")[0] == 0
    page = (planted / "audit.html").read_text()
    promised = json.loads((planted / "result.json").read_text())["privacy"]
    for line in (*promised["assumptions"], "60 canaries", "1 in 1,000,000", "2 shadow models"):
        assert line in unescape(page)
    assert page.count("data:image/png;base64,") == 4 * 3
    assert not re.search(r"""(src|href)=["'](?!data:)|@import|url\(""", page)
    assert "Nothing that was found contradicts" in page
    assert "and from one with" in page
    assert "guessing" in page
    assert "canary records of random numbers" in (planted / "report.html").read_text()
    told = json.loads((planted / "audit.json").read_text())
    assert [attack["name"] for attack in told["membership"]["attacks"]] == ["loss", "LiRA"]
    rates = [rate for attack in told["membership"]["attacks"] for rate in attack["rates"]]
    assert all(0 <= rate["low"] <= rate["found"] <= rate["high"] <= 1 for rate in rates)
    assert all(each["protected"]["psnr"] < 20 for each in told["inversion"])


def test_a_federated_run_is_audited_as_well(clients: Path, heliotrope: Command) -> None:
    before = digests(clients)
    code, said, errors = heliotrope("audit", f"run={clients}", "shadows=0")
    assert code == 0, errors
    assert digests(clients) == before
    told = json.loads((clients / "audit.json").read_text())
    assert (told["canaries"]["unit"], told["canaries"]["planted"]) == ("client", 40)
    assert (told["bound"]["canaries"], told["promised"]["unit"]) == (40, "client")
    assert {check["passed"] for check in told["mechanism"]["checks"]} == {True}
    assert "examples reconstructed from one step: exactly without protection" in said


@pytest.mark.parametrize("kind", ["record", "ftrl"])
def test_other_protections_are_shown_on_one_step(
    kind: str, tmp_path: Path, heliotrope: Command
) -> None:
    settings = (f"federated/privacy={kind}", "federated.privacy.noise_multiplier=4")
    settings += ("data=digits", "data.fit=none", "federated.rounds=1", "federated.pool=inprocess")
    federated_job(compose("federated", *settings), tmp_path)
    code, _, errors = heliotrope("audit", f"run={tmp_path}", "parts=inversion")
    assert code == 0, errors
    told = json.loads((tmp_path / "audit.json").read_text())
    assert all(
        each["plain"]["psnr"] is None or each["plain"]["psnr"] > 80 for each in told["inversion"]
    )
    assert all(each["protected"]["psnr"] < 20 for each in told["inversion"])
    assert told["bound"] is told["membership"] is None


def test_an_alarm_is_on_the_page(
    clients: Path, heliotrope: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = central.noisy_mean
    monkeypatch.setattr(central, "noisy_mean", lambda a, b, s, *more: drawn(a, b, s / 2, *more))
    code, said, _ = heliotrope("audit", f"run={clients}", "parts=mechanism")
    assert code == 0
    assert "ALARM: standard deviation of the noise" in said
    assert 'class="failed">FAILED' in (clients / "audit.html").read_text()
    assert json.loads((clients / "audit.json").read_text())["alarms"]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["federated/privacy=record", "federated.privacy.noise_multiplier=2"], "protects each"),
        (["experiment=movielens"], "no weights to keep"),
    ],
)
def test_clients_that_cannot_be_canaries_are_refused(more: list[str], what: str) -> None:
    run = compose("federated", "audit.canaries=10", "data.fit=none", *more)
    with pytest.raises(ConfigError, match=what):
        check_canaries(run, personal="movielens" in more[0])


def test_a_run_without_protection_is_told_so(plain: Path, heliotrope: Command) -> None:
    code, said, _ = heliotrope("audit", f"run={plain}", "shadows=2")
    assert code == 0
    assert "promised: nothing" in said
    assert "contradicts" not in said
    page = (plain / "audit.html").read_text()
    assert "this run has no protection of a single step" in page
    assert page.count("data:image/png;base64,") == 4 * 2
    told = json.loads((plain / "audit.json").read_text())
    assert set(told["left_out"]) >= {"bound", "mechanism"}


@pytest.mark.parametrize(
    ("experiment", "parts", "tried"),
    [
        (RATINGS, {"membership": "keep a part", "inversion": "no picture"}, set()),
        pytest.param(
            EMOJI,
            {"membership": "depend on one another", "inversion": "depend"},
            set(),
            marks=pytest.mark.slow,
        ),
        (("experiment=heart",), {}, {"membership", "inversion"}),
    ],
)
def test_what_a_model_does_not_allow_is_left_out(
    experiment: tuple[str, ...],
    parts: dict[str, str],
    tried: set[str],
    tmp_path: Path,
    heliotrope: Command,
) -> None:
    small = ("federated.rounds=1", "federated.pool=inprocess")
    config.load_plugins(experiment)
    federated_job(compose("federated", *experiment, *small), tmp_path)
    code, _, errors = heliotrope("audit", f"run={tmp_path}", "shadows=0")
    assert code == 0, errors
    told = json.loads((tmp_path / "audit.json").read_text())
    for part, why in parts.items():
        assert why in told["left_out"][part]
        assert told[part] is None
    assert {part for part in ("membership", "inversion") if told[part]} == tried
    assert "<table" in (tmp_path / "audit.html").read_text() or not tried


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("bound", "no canaries were planted"),
        ("mechanism", "nothing was promised"),
        ("bounds", "is not one of"),
    ],
)
def test_a_part_that_is_not_possible_is_refused(
    part: str, what: str, plain: Path, heliotrope: Command
) -> None:
    code, _, errors = heliotrope("audit", f"run={plain}", f"parts=[{part}]")
    assert code == 2
    assert what in errors


def test_what_is_no_finished_run_is_refused(
    planted: Path, tmp_path: Path, heliotrope: Command
) -> None:
    assert heliotrope("audit")[0] == 2
    assert heliotrope("audit", f"run={tmp_path}")[0] == 2
    (tmp_path / "config.yaml").write_text((planted / "config.yaml").read_text())
    code, _, errors = heliotrope("audit", f"run={tmp_path}")
    assert code == 2
    assert "not finished" in errors


def test_coins_that_were_changed_are_refused(planted: Path, heliotrope: Command) -> None:
    path = planted / "canaries.json"
    before = path.read_text()
    try:
        path.write_text(before.replace("0", "1", 1))
        code, _, errors = heliotrope("audit", f"run={planted}", "parts=bound")
        assert code == 2
        assert "other coins" in errors
    finally:
        path.write_text(before)
