"""The page of `heliotrope watch` in headless Chromium: curves grow, and no name of a run is HTML.

Needs Debian's packages chromium and chromium-driver.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heliotrope.watch.live import LiveRuns
from heliotrope.watch.server import WatchServer
from tests.report_runs import event, make_run, progress, training

HOSTILE = "<img src=x onerror=\"document.title='run'\">"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=1200,1000"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="chromium or chromedriver is not installed (Debian: chromium, chromium-driver)",
    ),
]


class Browser:
    """A session of Chromium, steered by the WebDriver protocol of chromedriver."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {
            "args": [*FLAGS, f"--user-data-dir={profile}"],
            "binary": shutil.which("chromium"),
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = driver
        made = self._ask("/session", capabilities={"alwaysMatch": wanted})
        self._session = f"{driver}/session/{made['sessionId']}"

    def _ask(self, path: str, method: str = "POST", **values: Any) -> Any:
        content = json.dumps(values).encode() if method == "POST" else None
        asked = urllib.request.Request(f"{self._session}{path}", content, method=method)  # noqa: S310
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310 - of this machine
            return json.load(answer)["value"]

    def open(self, address: str) -> None:
        self._ask("/url", url=address)

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript is in the page."""
        return self._ask("/execute/sync", script=f"return {script}", args=[])

    def command(self, name: str, **parameters: Any) -> None:
        """Send a command of the DevTools protocol."""
        self._ask("/goog/cdp/execute", cmd=name, params=parameters)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self._ask("/se/log", type="browser")]

    def until(self, script: str, holds: Callable[[Any], bool] = bool) -> Any:
        deadline = time.monotonic() + 30
        while not holds(found := self.run(script)):
            assert time.monotonic() < deadline, f"{script}: {found}"
            time.sleep(0.1)
        return found

    def close(self) -> None:
        self._ask("", "DELETE")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout is not None
        said = next(line for line in driver.stdout if "started successfully on port" in line)
        opened = Browser(f"http://127.0.0.1:{said.split()[-1].rstrip('.')}", tmp_path / "profile")
        yield opened
        opened.close()
        driver.terminate()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WatchServer]:
    (tmp_path / "runs").mkdir()
    with WatchServer(LiveRuns(tmp_path / "runs"), HOSTILE) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


def _append(directory: Path, *events: dict[str, Any]) -> None:
    with (directory / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in events)


def _ends(metric: str) -> str:
    """Return JavaScript for how many points each curve of a metric has."""
    lines = f"document.querySelectorAll(`[data-metric=${{JSON.stringify('{metric}')}}] .line`)"
    return f"[...{lines}].map((line) => line.getAttribute('d').split(/[ML]/).length - 1)"


def test_curves_grow_and_names_are_text(
    browser: Browser, server: WatchServer, tmp_path: Path
) -> None:
    browser.open(server.address)
    browser.until("document.getElementById('note').textContent.includes('no runs here yet')")
    seen = event("evaluate", **progress(1), **{f"test/{HOSTILE}": 0.5})
    first = make_run(
        tmp_path / "runs" / "0", name=HOSTILE, events=[*training(3), seen], finished=False
    )
    (first / "overrides.json").write_text(json.dumps({"overrides": [f"a={HOSTILE}"], "swept": []}))
    browser.until(_ends("test/accuracy"), lambda found: found == [3])
    assert browser.run("document.getElementById('note').hidden")

    _append(first, *training(4)[-2:])
    browser.until(_ends("test/accuracy"), lambda found: found == [4])
    make_run(tmp_path / "runs" / "1", events=training(2))
    browser.until(_ends("test/accuracy"), lambda found: found == [4, 2])
    states = "[...document.querySelectorAll('#runs .tag')].map((tag) => tag.textContent)"
    assert browser.run(states) == ["interrupted", "completed"]
    text = (first / "metrics.jsonl").read_text().splitlines(keepends=True)
    (first / "metrics.jsonl").write_text("".join(text[:3]))  # taken back to a checkpoint
    browser.until(_ends("test/accuracy"), lambda found: found == [1, 2])

    assert HOSTILE in browser.run("document.querySelector('#runs tr').textContent")
    assert HOSTILE in browser.run("document.querySelector('h1').textContent")
    assert browser.run("document.querySelectorAll('img, #runs script').length") == 0
    assert HOSTILE in browser.run("document.title")
    assert browser.console() == []


def test_runs_and_axes_are_chosen_and_any_window_reads_well(
    browser: Browser, server: WatchServer, tmp_path: Path
) -> None:
    for number in range(30):
        make_run(tmp_path / "runs" / f"{number}", seed=number, events=training(2 + number % 3))
    browser.open(server.address)
    lines = "document.querySelectorAll('[data-metric=\"test/accuracy\"] .line').length"
    browser.until(lines, lambda found: found == 20)
    browser.run("document.querySelector('[data-shown=all]').click()")
    assert browser.run(lines) == 30
    browser.run("document.querySelector('[data-shown=none]').click()")
    assert browser.run(lines) == 0
    browser.run("document.querySelectorAll('#runs input')[7].click()")
    assert browser.run(lines) == 1
    browser.run("document.querySelector('[data-axis=seconds]').click()")
    assert "seconds" in browser.run("document.querySelector('.chart svg').textContent")
    over = "document.querySelector('.chart .point').getBoundingClientRect()"
    moved = f"{{clientX: {over}.x + {over}.width / 2, clientY: {over}.y + {over}.height / 2}}"
    browser.run(
        "document.querySelector('.chart > div')"
        f".dispatchEvent(new PointerEvent('pointermove', {moved}))"
    )
    assert browser.run("document.querySelector('.chart output').value").startswith("7: 0.83333 at")

    light = browser.run("getComputedStyle(document.body).backgroundColor")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.command("Emulation.setEmulatedMedia", features=dark)
    assert browser.run("getComputedStyle(document.body).backgroundColor") != light
    narrow = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.command("Emulation.setDeviceMetricsOverride", **narrow)
    assert browser.run("document.documentElement.scrollWidth") <= 360

    server.shutdown()
    server.server_close()
    browser.until("document.getElementById('note').textContent.includes('cannot be reached')")
