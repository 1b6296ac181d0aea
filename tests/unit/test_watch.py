"""`heliotrope watch`: the server sends what is new of each run, and to nobody else."""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from heliotrope import cli
from heliotrope.runs.storage import Storage
from heliotrope.system.locks import Holder, lock
from heliotrope.watch import live
from heliotrope.watch.appended_lines import AppendedLines
from heliotrope.watch.feed import Feed
from heliotrope.watch.live import LiveRuns
from heliotrope.watch.server import WatchServer
from tests.report_runs import event, make_run, progress, training

HOSTILE = '</script><img src=x onerror="alert(1)">'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_WAIT", 0.0)
    monkeypatch.setattr(live, "_SHARE", 1e9)
    monkeypatch.setattr(live, "_WAIT_STORAGE", 0.0)


def _append(directory: Path, *events: dict[str, Any]) -> None:
    with (directory / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in events)


def _curve(changes: dict[str, Any], metric: str) -> list[float]:
    return [e[metric] for run in changes["runs"] for e in run["events"] if metric in e]


@contextmanager
def _served(root: Path, title: str = "runs") -> Iterator[WatchServer]:
    with WatchServer(LiveRuns(root), title) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _get(address: str, **headers: str) -> tuple[int, str, Any]:
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 - of the test's server
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", events=training(2), finished=False)
    runs = LiveRuns(tmp_path)
    first = runs.changes(0)
    assert _curve(first, "test/accuracy") == [0.5, 0.75]
    assert first["runs"][0]["anew"]
    assert [name for name, _ in first["metrics"]] == ["test/accuracy", "test/loss", "train/loss"]
    assert _curve(runs.changes(first["version"]), "test/accuracy") == []
    _append(run, *training(3)[-2:])
    second = runs.changes(first["version"])
    assert _curve(second, "test/accuracy") == [1 - 0.5 / 3]
    assert not second["runs"][0]["anew"]
    again = runs.changes(0)  # another page
    assert _curve(again, "test/accuracy") == [0.5, 0.75, 1 - 0.5 / 3]


def test_a_run_that_was_taken_back_is_sent_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", events=training(5), finished=False)
    runs = LiveRuns(tmp_path)
    version = runs.changes(0)["version"]
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-2]))
    other = {**progress(5), "seconds": 99.0, "test/accuracy": 0.125}
    _append(run, *[event("evaluate", **other)] * 3)  # longer than before, in the end
    changes = runs.changes(version)
    assert changes["runs"][0]["anew"]
    assert _curve(changes, "test/accuracy")[-4:] == [0.875, 0.125, 0.125, 0.125]


def test_lines_of_a_file_that_changes_are_those_that_are_in_it(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    generator = random.Random(seed)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"")
    reader, known, there = AppendedLines(path), list[bytes](), list[bytes]()
    for turn in range(200):
        kind = generator.randrange(4)
        if kind == 0:
            del there[generator.randrange(len(there) + 1) :]
        there += [b"%d-%d" % (turn, i) * generator.randrange(1, 40) for i in range(kind)]
        half = b"half" * generator.randrange(2)
        path.write_bytes(b"".join(line + b"\n" for line in there) + half)
        os.utime(path, ns=(turn, turn))
        while True:
            anew, lines = reader.read(generator.randrange(400, 2000))
            known = [*([] if anew else known), *lines]
            if not reader.behind:
                break
        assert known == there, (seed, turn)


def test_a_line_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"a\n" + b"x" * 1000 + b"\nb\n")
    reader = AppendedLines(path)
    found = reader.read(100)[1]
    while reader.behind:
        found += reader.read(100)[1]
    assert found == [b"a", b"b"]
    path.unlink()
    assert reader.read(100) == (True, [])
    path.symlink_to("/etc/passwd")
    assert reader.read(100) == (False, [])


def test_no_line_is_lost_to_what_other_runs_leave_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        told = [event("evaluate", **progress(i), **{"test/accuracy": i / 50}) for i in range(50)]
        for each in told:
            each["note"] = "x" * (40 * number)
        make_run(tmp_path / str(number), events=told)
    for most in (2000, 5000, 7000, 11_000, 20_000):
        monkeypatch.setattr(live, "_AT_ONCE", most)
        runs = LiveRuns(tmp_path)
        while not (changes := runs.changes(0))["wait"]:
            pass
        assert [len(run["events"]) for run in changes["runs"]] == [50] * 6, most


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    generator = random.Random(seed)
    run = make_run(tmp_path / "a", events=[], finished=False)
    feed, count, version = Feed(run, 0, 1), 0, 0
    held: list[float] = []
    while count < 5000:
        more = generator.randrange(1, 900)
        _append(
            run,
            *(
                event("train", **progress(count + i)) | {"train/loss": count + i}
                for i in range(more)
            ),
        )
        count, version = count + more, version + 1
        feed.read(version, 1 << 30)
        changes = feed.changes(version - 1)
        assert changes is not None
        held = [] if changes["anew"] else held
        held += [values["train/loss"] for values in changes["events"]]
        assert len(held) <= 500, seed
    steps = {after - before for before, after in pairwise(held)}
    assert len(steps) == 1, (seed, steps)
    assert held[0] == 0
    assert held[-1] > count - 1 - steps.pop(), seed


def test_rows_tell_state_progress_pace_and_what_is_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "jobs" / "1", events=training(2), finished=False)
    make_run(tmp_path / "jobs" / "0")
    ended = [*training(1), event("end", status="failed", reason="out of memory")]
    make_run(tmp_path / "jobs" / "2", events=ended, finished=False)
    (run / "overrides.json").write_text(
        json.dumps(
            {"overrides": ["experiment=digits", "seed=1", "optimizer.lr=2"], "swept": ["seed=1"]}
        )
    )
    runs = LiveRuns(tmp_path)
    with (run / ".lock").open("a+") as file:
        assert lock(file)
        Holder.this().write(file)
        rows = {each["row"]["name"]: each["row"] for each in runs.changes(0)["runs"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "jobs/0": "completed", "jobs/1": "running", "jobs/2": "failed"
    }  # fmt: skip
    row = rows["jobs/1"]
    assert row["progress"] == "2 of 3 rounds"
    assert row["pace"] == "2.50 s a round"
    assert row["left"] == "0 s"  # its events are of long ago
    assert row["changed"] == "seed=1 optimizer.lr=2"
    assert row["metric"] == "test accuracy 0.7500"
    assert rows["jobs/0"]["left"] == rows["jobs/2"]["left"] == ""


def test_the_pace_of_epochs_and_steps_is_that_of_the_recent_ones(tmp_path: Path) -> None:
    steps = [
        event("step", epoch=1, steps=n, examples_seen=n, seconds=5 + n / 100, **{"step/loss": 1.0})
        for n in range(1, 40)
    ]
    make_run(tmp_path / "a", mode="distributed", events=[*steps, *training(2, "epoch")])
    (changes,) = LiveRuns(tmp_path).changes(0)["runs"]
    assert changes["row"]["pace"] == "2.50 s an epoch, 10 ms a step"
    assert changes["row"]["progress"] == "2 epochs"  # its config does not tell of how many


def test_new_jobs_appear_and_removed_ones_go(tmp_path: Path) -> None:
    runs = LiveRuns(tmp_path / "later")
    empty = runs.changes(0)
    assert "no runs here yet" in empty["note"]
    first = make_run(tmp_path / "later" / "0")
    begun = runs.changes(empty["version"])
    assert (len(begun["newest"]), begun["note"]) == (1, "")
    make_run(tmp_path / "later" / "1")
    (tmp_path / "later" / "photos").mkdir()
    assert len(runs.changes(begun["version"])["runs"]) == 1
    for path in first.iterdir():
        path.unlink()
    first.rmdir()
    assert len(runs.changes(0)["newest"]) == 1


def test_a_run_is_watched_from_inside_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "mine" / "inner")
    monkeypatch.chdir(make_run(tmp_path / "mine"))
    changes = LiveRuns(Path()).changes(0)
    assert {run["row"]["name"] for run in changes["runs"]} == {"mine", "inner"}


def test_runs_of_a_storage_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{secrets.token_hex(4)}/runs"
    here = make_run(tmp_path / "here", events=training(2), finished=False)
    kept = Storage(url, here)
    kept.save()
    copied = Storage(url, tmp_path / "copy")
    runs = LiveRuns(tmp_path / "copy", copied)
    runs.fetch()
    first = runs.changes(0)
    assert first["runs"][0]["row"]["state"] == "no end yet"
    _append(here, *training(3)[-2:], event("end", status="interrupted", reason="SIGTERM"))
    kept.save()
    second = runs.changes(first["version"])
    assert _curve(second, "test/accuracy") == [1 - 0.5 / 3]
    assert second["runs"][0]["row"]["state"] == "interrupted"

    def away(*_: object, **__: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(copied._files, "find", away)
    lost = runs.changes(second["version"])
    assert "unreachable" in lost["note"]
    assert len(lost["newest"]) == 1


def test_the_page_is_for_who_has_its_address(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with _served(tmp_path, HOSTILE) as server:
        address = server.address
        status, page, headers = _get(address)
        assert status == 200
        assert HOSTILE not in page
        assert "&lt;/script&gt;" in page
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        for name in ("style.css", "watch.js"):
            assert _get(address + name)[0] == 200
        status, text, _ = _get(f"{address}changes?after=0")
        assert (status, len(json.loads(text)["runs"])) == (200, 1)
        origin, token = address[: -len(server.token) - 2], server.token
        for path in ("/", "/changes", f"/{token}x/", f"/{token[:-1]}/changes", f"/{token}",
                     f"/{token}/../a/config.yaml", f"/{token}/config.yaml", "//"):  # fmt: skip
            assert _get(origin + path)[0] == 404, path
        for host in (
            "evil.example",
            "evil.example:80",
            f"127.0.0.1.evil.example:{server.server_address[1]}",
        ):
            assert _get(address, Host=host)[0] == 421, host
        assert _get(address, Host="localhost:9999")[0] == 200  # another port, through ssh
        assert _get(f"{address}changes?after=x")[0] == 200


def test_numbers_that_are_none_are_sent_as_null(tmp_path: Path) -> None:
    lost = event("evaluate", **progress(1), **{"test/loss": None, HOSTILE + "/x": 1.0})
    run = make_run(tmp_path / "a", events=[], finished=False)
    (run / "metrics.jsonl").write_text(json.dumps(lost).replace("null", "NaN") + "\n[1]\n{\n")
    changes = LiveRuns(tmp_path).changes(0)
    assert (
        json.loads(json.dumps(changes, allow_nan=False))["runs"][0]["events"][0]["test/loss"]
        is None
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent"], "absent is no directory"),
        (["port=x"], "port=x is no port"),
        (["port=65536"], "port=65536 is no port"),
        (["prt=8"], "Did you mean 'port'?"),
        ([".", ".."], "one DIR or URL"),
        (["nowhere://bucket/runs"], "nowhere://bucket/runs cannot be used"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["watch", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WatchServer(LiveRuns(tmp_path), "runs") as server:
        port = server.server_address[1]
        assert cli.main(["watch", str(tmp_path), f"port={port}"]) == 2
    assert f"port={port} cannot be used" in capsys.readouterr().err


def test_ctrl_c_ends_it_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(WatchServer, "serve_forever", interrupted)
    assert cli.main(["watch", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"watching {tmp_path} at http://127.0.0.1:")
    assert err == ""
