"""Directories of runs as a report meets them, and the page read back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rich.console import Console

from heliotrope.report import RunRecord, comparison_table, read_run, write_report

CONFIG = """\
name: {name}
seed: {seed}
optimizer: {{name: sgd, lr: {lr}}}
federated:
  rounds: 3
  strategy: {{name: {strategy}}}
target: {{metric: test/accuracy, value: 0.8, stop: false}}
"""


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": 1_760_000_000.0, **fields}


def progress(step: int, unit: str = "round", size: int = 1_000_000) -> dict[str, Any]:
    return {
        unit: step,
        "steps": 10 * step,
        "examples_seen": 600 * step,
        "seconds": 2.5 * step,
        "bytes_up": size * step,
        "bytes_down": size * step,
    }


def training(steps: int, unit: str = "round", size: int = 1_000_000) -> list[dict[str, Any]]:
    events = []
    for step in range(1, steps + 1):
        done = progress(step, unit, size)
        score = {"test/accuracy": 1 - 0.5 / step, "test/loss": 2.0 / step}
        events.append(event("train", **done, **{"train/loss": 2.5 / step}))
        events.append(event("evaluate", **done, **score))
    return events


def result(mode: str = "federated", **fields: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "mode": mode,
        "experiment": "digits",
        "seed": 7,
        "status": "completed",
        "metrics": {"test/accuracy": 0.8333, "test/loss": 0.6667, "test/macro_f1": 0.81},
        "rounds" if mode == "federated" else "epochs": 3,
        "examples_seen": 1800,
        "wall_seconds": 192.0,
        "train_seconds": 90.0,
        "examples_per_second": 20.0,
        "bytes_up": 3_000_000,
        "bytes_down": 3_000_000,
        "privacy": None,
        "parameters": 4810,
        "versions": {"python": "3.11.7"},
        "git_commit": "0123abc",
        **fields,
    }


def make_run(
    directory: Path,
    *,
    mode: str = "federated",
    name: str = "digits",
    seed: int = 7,
    lr: float = 0.1,
    strategy: str = "fedavg",
    events: Sequence[dict[str, Any]] | None = None,
    outcome: dict[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIG.format(name=json.dumps(name), seed=seed, lr=lr, strategy=strategy)
    (directory / "config.yaml").write_text(config)
    unit = "round" if mode == "federated" else "epoch"
    told = [event("start", mode=mode, name=name, seed=seed)]
    told += training(3, unit) if events is None else events
    lines = "".join(json.dumps(line) + "\n" for line in told)
    (directory / "metrics.jsonl").write_text(lines)
    if finished:
        content = outcome or result(mode, experiment=name, seed=seed)
        (directory / "result.json").write_text(json.dumps(content))
    return directory


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self._text: list[str] = []
        self._hidden = 0
        self.feed(html)
        self.text = " ".join(" ".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(key, value or "") for key, value in attrs]
        self._hidden += tag in ("style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "title")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._text.append(data)

    def values(self, key: str) -> list[str]:
        return [value for name, value in self.attributes if name == key]


def page_of(*directories: Path) -> Page:
    runs = [read_run(directory) for directory in directories]
    output = directories[0] / "report.html"
    assert write_report(runs, output) == output
    return Page(output.read_text(encoding="utf-8"))


def printed(runs: Sequence[RunRecord], width: int = 200) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(comparison_table(runs, width))
    return capture.get()


def row_of(text: str, label: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return [cell.strip() for cell in line.split("│")[1:]]
