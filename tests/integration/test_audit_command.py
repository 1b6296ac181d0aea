"""`heliotrope audit` of finished runs: what it writes, what it refuses, what it leaves alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from distributed.job import run_job
from tests.support import Command, compose

SMALL = ("data=digits", "data.fit=none", "distributed.launcher=inline", "distributed.workers=1")
SHORT = ("distributed.epochs=1", "distributed.batch_size=256")
PRIVATE = ("distributed/privacy=dpsgd", "distributed.privacy.noise_multiplier=2")


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
    code, said, _ = heliotrope("audit", f"run={planted}")
    assert code == 0, said
    assert "epsilon is at least" in said
    assert "nothing that was found contradicts" in said
    assert digests(planted) == before
    told = json.loads((planted / "audit.json").read_text())
    assert told["promised"]["unit"] == "record"
    assert told["bound"]["canaries"] == 60
    assert {check["passed"] for check in told["mechanism"]["checks"]} == {True}
    assert told["alarms"] == []


def test_a_run_without_protection_is_told_so(plain: Path, heliotrope: Command) -> None:
    code, said, _ = heliotrope("audit", f"run={plain}")
    assert code == 0
    assert "promised: nothing" in said
    told = json.loads((plain / "audit.json").read_text())
    assert set(told["left_out"]) >= {"bound", "mechanism"}


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
