"""What privacy costs over several runs, and what a report says of privacy and attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from heliotrope.report import read_run
from heliotrope.report.frontier import Frontier, frontiers
from tests.report_runs import event, make_run, page_of, printed, progress, result
from tests.support import Command

Spent = tuple[float | None, float]  # epsilon and accuracy


def _run(
    directory: Path,
    epsilon: float | None,
    accuracy: float,
    unit: str = "client",
    delta: float = 1e-3,
    adjacency: str = "add-or-remove-one",
) -> Path:
    privacy: dict[str, Any] | None = None
    if epsilon is not None:
        privacy = {"epsilon": epsilon, "delta": delta, "unit": unit, "adjacency": adjacency}
    metrics = {"test/loss": 1 - accuracy, "test/accuracy": accuracy}
    outcome = result(metrics=metrics, privacy=privacy, directions={"accuracy": "max"})
    return make_run(directory, outcome=outcome)


def _found(folder: Path, *spent: Spent) -> Frontier:
    directories = [_run(folder / str(n), *each) for n, each in enumerate(spent)]
    (found,) = frontiers([read_run(directory) for directory in directories])
    return found


def test_the_frontier_is_of_runs_that_none_dominates(tmp_path: Path) -> None:
    found = _found(
        tmp_path,
        (8.0, 0.9),
        (1.0, 0.5),
        (3.0, 0.8),
        (4.0, 0.7),
        (3.0, 0.6),
        (1.0, 0.5),
        (None, 0.95),
    )
    assert found.metric == "test/accuracy"
    assert [(place.run, place.best) for place in found.places] == [
        (1, True),  # two that are alike dominate neither
        (5, True),
        (2, True),
        (4, False),  # as much epsilon, but less accurate
        (3, False),
        (0, True),
    ]
    assert found.without == ((6, 0.95),)


def test_the_target_says_what_runs_are_compared_by_and_lower_may_be_better(tmp_path: Path) -> None:
    spent = [(1.0, 0.5), (2.0, 0.4), (3.0, 0.8)]
    runs = []
    for number, each in enumerate(spent):
        directory = _run(tmp_path / str(number), *each)
        config = (directory / "config.yaml").read_text().replace("test/accuracy", "test/loss")
        (directory / "config.yaml").write_text(config)
        runs.append(read_run(directory))
    (found,) = frontiers(runs)
    assert (found.metric, found.lower) == ("test/loss", True)
    assert [place.best for place in found.places] == [True, False, True]


def test_what_cannot_be_compared_is_apart(tmp_path: Path) -> None:
    runs = [
        read_run(_run(tmp_path / "a", 1.0, 0.9)),
        read_run(_run(tmp_path / "b", 2.0, 0.8, unit="record")),
        read_run(_run(tmp_path / "c", 2.0, 0.8, adjacency="replace-one")),
        read_run(_run(tmp_path / "d", 0.5, 0.95, delta=1e-2)),
    ]
    found = frontiers(runs)
    assert [(each.unit, each.adjacency, len(each.places)) for each in found] == [
        ("client", "add-or-remove-one", 2),
        ("record", "add-or-remove-one", 1),
        ("client", "replace-one", 1),
    ]
    # Less epsilon at a larger delta is not more privacy.
    assert all(place.best for place in found[0].places)


@pytest.mark.parametrize("epsilon", [float("inf"), 0.0])
def test_no_frontier_without_epsilons(epsilon: float, tmp_path: Path) -> None:
    one, other = _run(tmp_path / "a", None, 0.9), _run(tmp_path / "b", epsilon, 0.8)
    assert frontiers([read_run(one), read_run(other)]) == []
    alone = _run(tmp_path / "c", 1.0, 0.8)
    assert frontiers([read_run(alone)]) == []
    assert "What privacy costs" not in page_of(one, other).text


def test_compare_shows_the_frontier(tmp_path: Path, heliotrope: Command) -> None:
    spent: list[Spent] = [(8.0, 0.9), (0.25, 0.5), (9.0, 0.8), (None, 0.95)]
    runs = [_run(tmp_path / str(n), *each) for n, each in enumerate(spent)]
    code, told, _ = heliotrope("compare", *map(str, runs))
    assert code == 0
    assert "test accuracy against epsilon, per client (add-or-remove-one)" in told
    lines = [line for line in told.splitlines() if "frontier" in line]
    assert [line.split()[0] for line in lines] == ["0.25", "8"]
    page = page_of(*runs)
    assert "What privacy costs" in page.text
    assert any("0.5000 at epsilon 0.25" in text for text in page.values("aria-label"))
    assert page.text.count("on the frontier") == 2


def test_the_report_of_a_run_shows_its_promise_and_how_epsilon_grew(tmp_path: Path) -> None:
    events = [
        event("train", **progress(n), **{"train/loss": 1.0, "privacy/epsilon_rdp": 1.5 * n})
        for n in (1, 2, 3)
    ]
    privacy = {
        "epsilon": 4.2,
        "delta": 1e-3,
        "unit": "client",
        "adjacency": "add-or-remove-one",
        "sampling": "poisson",
        "accountant": "PLD",
        "noise_source": "seeded generator",
        "assumptions": ["the server is trusted"],
    }
    page = page_of(make_run(tmp_path, events=events, outcome=result(privacy=privacy)))
    assert any("4.5 after round 3" in text for text in page.values("aria-label"))
    for words in ("ε = 4.2, δ = 0.001, per client", "accountant: PLD", "sampling: poisson"):
        assert words in page.text
    for words in ("noise source: seeded generator", "the server is trusted"):
        assert words in page.text
    assert "privacy epsilon rdp" not in page.text  # no learning curve


def test_a_simulated_attack_is_told(tmp_path: Path) -> None:
    attack = {"name": "scaling", "factor": -50.0, "clients": [1, 4, 7], "simulated": True}
    a = make_run(tmp_path / "a", outcome=result(attack=attack))
    b = make_run(tmp_path / "b")
    text = printed([read_run(a), read_run(b)])
    (line,) = (line for line in text.splitlines() if "simulated attack" in line)
    assert "scaling by 3 client(s) (factor -50.0)" in line
    assert "simulated attack" in page_of(a).text
    assert "simulated attack" not in page_of(b).text
    begun = [event("start", mode="federated", name="x", seed=1, attack=attack)]
    c = make_run(tmp_path / "c", events=begun, finished=False)
    assert "scaling by 3" in page_of(c).text
